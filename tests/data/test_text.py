"""Caption cleaning and the tokenizer: BERT's own results, and small vocabularies made from captions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from vtr.data.cleaning import clean_caption
from vtr.data.text import Tokenizer
from vtr.errors import UsageError, VtrError

CAPTIONS = ["a red circle moves left", "a blue circle moves right", "a red square grows", "the circle turns"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A dog, running!", "a dog running"),
        ("It's 5 o'clock; (really?)", "its 5 oclock really"),
        ("black-and-white / close-up", "black and white close up"),
        ("<person> waves #fun ~*", "person waves fun"),
        ("  two\t spaces\nand lines ", "two spaces and lines"),
        ('"Quoted": yes', "quoted yes"),
        ("...", ""),
    ],
)
def test_captions_are_cleaned_as_the_published_models_saw_them(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


def test_cleaning_twice_changes_nothing_more() -> None:
    once = clean_caption("<Person>'s half-open door -- (take 2).")
    assert clean_caption(once) == once


def test_word_pieces_and_ids_are_those_of_bert(shared: Path) -> None:
    golden = shared / "data/misc/bert_golden"
    if not golden.is_dir():
        pytest.skip("the recorded BERT tokens are absent")
    tokenizer = Tokenizer.from_vocab(shared / "data/misc/bert-base-uncased_vocab.txt")
    rows = json.loads((golden / "question_tokens.json").read_text(encoding="utf-8"))
    wanted = json.loads((golden / "tokenized_questions.json").read_text(encoding="utf-8"))
    batch = tokenizer([row["original"] for row in rows], max_length=512)
    got = [ids[mask.bool()].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert got == [[101, *ids, 102] for ids in wanted]
    sample = rows[::97]
    assert [tokenizer.tokens(row["original"]) for row in sample] == [row["wordpiece"] for row in sample]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id) == (30522, 0, 103, 100)


def test_a_long_text_keeps_its_end_mark_when_cut() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 100)
    batch = tokenizer(["a red circle moves left", "a"], max_length=4)
    assert batch.ids.shape == (2, 4)
    assert batch.ids[0, 0] == tokenizer.cls_id
    assert batch.ids[0, 3] == tokenizer.sep_id
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.ids[1, 3] == tokenizer.pad_id
    assert batch.ids.dtype == batch.mask.dtype == torch.int64


def test_padding_goes_to_the_longest_or_to_the_length_asked_for() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 100)
    assert tokenizer(["a red square", "a"]).ids.shape == (2, 5)
    assert tokenizer(["a red square", "a"], pad_to=9).ids.shape == (2, 9)
    with pytest.raises(ValueError, match="pad_to 3"):
        tokenizer(["a red square"], pad_to=3)


def test_the_order_of_captions_does_not_change_a_trained_vocabulary() -> None:
    shuffled = CAPTIONS.copy()
    random.Random(3).shuffle(shuffled)
    first, second = Tokenizer.train(CAPTIONS, 40), Tokenizer.train(shuffled, 40)
    assert [first.piece(i) for i in range(first.vocab_size)] == [second.piece(i) for i in range(second.vocab_size)]


def test_a_trained_vocabulary_keeps_to_its_size_and_spells_unknown_words() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 60)
    assert tokenizer.vocab_size <= 60
    assert tokenizer.tokens("circle") == ["circle"]
    assert tokenizer.tokens("rug") == ["r", "##u", "##g"]
    assert tokenizer.tokens("狗") == ["[UNK]"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 60)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = ["a red zebra", "moves Right!", ""]
    assert torch.equal(tokenizer(texts).ids, again(texts).ids)
    assert again.decode(again(["a red circle"]).ids[0]) == "a red circle"
    assert again.vocab_size == tokenizer.vocab_size


def test_broken_tokenizer_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("dog\ncat\n", encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.json", "vocab.txt", "binary.txt", "absent.json"):
        with pytest.raises(VtrError) as caught:
            Tokenizer.load(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(VtrError, match="more than once"):
        Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "dog"])
    with pytest.raises(UsageError):
        Tokenizer.train(CAPTIONS, 5)


def test_one_string_instead_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError):
        Tokenizer.train(CAPTIONS, 60)("a red circle")
