"""Captions to token ids: BERT's word pieces on the `tokenizers` library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vtr.errors import UsageError, VtrError

if TYPE_CHECKING:
    import tokenizers

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KEPT = 65_536  # texts whose ids are kept


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Token ids of a batch of texts, padded to one length.

    Attributes:
        ids: int64 (B, L).
        mask: int64 (B, L), 1 where there is a token, 0 where there is padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(ids=self.ids.to(device), mask=self.mask.to(device))

    def __len__(self) -> int:
        return int(self.ids.shape[0])


def _assemble(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """BERT's uncased pipeline around a vocabulary."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    engine = Engine(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    engine.decoder = decoders.WordPiece(prefix="##")
    engine.add_special_tokens([t for t in _SPECIAL if t in vocabulary])
    return engine


class Tokenizer:
    """Lower-casing BERT word pieces: texts in, `[CLS] … [SEP]` ids and a mask out.

    Attributes:
        vocab_size: Number of ids.
        pad_id, unk_id, cls_id, sep_id, mask_id: Ids of the special tokens.
    """

    def __init__(self, engine: tokenizers.Tokenizer, origin: str = "tokenizer") -> None:
        self._engine = engine
        self._engine.no_padding()
        self._engine.no_truncation()
        self._seen: dict[str, list[int]] = {}
        missing = [t for t in _SPECIAL if engine.token_to_id(t) is None]
        if missing:
            raise VtrError(f"{origin}: the vocabulary lacks {', '.join(missing)}; a BERT vocabulary is expected")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            int(engine.token_to_id(t) or 0) for t in _SPECIAL
        )
        self.vocab_size = int(engine.get_vocab_size(with_added_tokens=True))

    @classmethod
    def from_vocab(cls, vocabulary: str | Path | Sequence[str]) -> Tokenizer:
        """From a `vocab.txt` (one piece per line, the line number is the id) or the list of pieces itself."""
        origin = "vocabulary"
        if isinstance(vocabulary, (str, Path)):
            origin = str(vocabulary)
            try:
                text = Path(vocabulary).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise VtrError(f"{origin}: cannot read the vocabulary: {error}") from None
            pieces = [line.rstrip("\r") for line in text.split("\n")]
            while pieces and not pieces[-1]:
                pieces.pop()
        else:
            pieces = list(vocabulary)
        table = {piece: index for index, piece in enumerate(pieces)}
        if len(table) != len(pieces):
            twice = next(p for p, c in Counter(pieces).items() if c > 1)
            raise VtrError(f"{origin}: the piece {twice!r} stands in the vocabulary more than once")
        missing = [t for t in _SPECIAL if t not in table]
        if missing:
            raise VtrError(f"{origin}: the vocabulary lacks {', '.join(missing)}; a BERT vocabulary is expected")
        return cls(_assemble(table), origin)

    @classmethod
    def train(cls, captions: Iterable[str], size: int) -> Tokenizer:
        """A small vocabulary made from captions: special tokens, single characters, then whole words by frequency.

        The same captions give the same ids in any order: words of equal frequency stand in alphabetical order. A word
        outside the vocabulary falls apart into characters, so only unseen characters are unknown.

        Args:
            captions: The texts, cleaned or not.
            size: Most ids the vocabulary may have.
        """
        from tokenizers import normalizers, pre_tokenizers

        if size < len(_SPECIAL) + 2:
            raise UsageError(f"a vocabulary of {size} ids has no room for words: ask for at least 7")
        normalise = normalizers.BertNormalizer(lowercase=True)
        split = pre_tokenizers.BertPreTokenizer()
        words: Counter[str] = Counter()
        for caption in captions:
            words.update(word for word, _ in split.pre_tokenize_str(normalise.normalize_str(caption)))
        characters: Counter[str] = Counter()
        for word, count in words.items():
            for position, character in enumerate(word):
                characters[character if position == 0 else "##" + character] += count
        pieces = list(_SPECIAL)
        pieces += sorted(p for p, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[: size - 5])
        known = set(pieces)
        for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
            if len(pieces) >= size:
                break
            if word not in known:
                pieces.append(word)
                known.add(word)
        return cls.from_vocab(pieces)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, which the `tokenizers` and `transformers` libraries read too."""
        Path(path).write_text(self._engine.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what `save` wrote (a `tokenizer.json`), or a `vocab.txt`."""
        from tokenizers import Tokenizer as Engine

        if Path(path).suffix == ".txt":
            return cls.from_vocab(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise VtrError(f"{path}: cannot read the tokenizer: {error}") from None
        try:
            engine = Engine.from_str(text)
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise VtrError(f"{path}: not a tokenizer.json: {str(error).splitlines()[0]}") from None
        return cls(engine, str(path))

    def __call__(self, texts: Sequence[str], max_length: int = 32, pad_to: int | None = None) -> TokenBatch:
        """Token ids of a batch.

        Args:
            texts: B texts. Not cleaned here: see `vtr.data.cleaning`.
            max_length: Most tokens per text, [CLS] and [SEP] included; the end is cut off.
            pad_to: Length to pad to; None: that of the longest text in the batch.
        """
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one string")
        if max_length < 2:
            raise ValueError(f"max_length {max_length} has no room for [CLS] and [SEP]: at least 2")
        rows = [[self.cls_id, *ids[: max_length - 2], self.sep_id] for ids in self._ids(texts)]
        longest = max((len(row) for row in rows), default=2)
        length = longest if pad_to is None else pad_to
        if length < longest:
            raise ValueError(f"pad_to {length} is shorter than the longest text ({longest} tokens): lower max_length")
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[index, : len(row)] = 1
        return TokenBatch(ids=ids, mask=mask)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts; those of the last ones are kept: training meets the same captions again and again."""
        seen = self._seen
        if len(seen) > _KEPT:
            seen = self._seen = {}
        new = list(dict.fromkeys(text for text in texts if text not in seen))
        for text, encoding in zip(new, self._engine.encode_batch(new, add_special_tokens=False)):
            seen[text] = encoding.ids
        return [seen[text] for text in texts]

    def tokens(self, text: str) -> list[str]:
        """The word pieces of one text, without [CLS] and [SEP]."""
        return list(self._engine.encode(text, add_special_tokens=False).tokens)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of ids, special tokens left out."""
        values: Any = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        return str(self._engine.decode(values, skip_special_tokens=True))

    def piece(self, index: int) -> str | None:
        """The word piece with this id, None where there is none."""
        return self._engine.id_to_token(index)
