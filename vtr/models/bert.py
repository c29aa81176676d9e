"""BERT of the Hugging Face hub for our text side: weights, configuration and words, through transformers.

Any checkpoint of the type `bert` serves (other sizes, languages, cased or not). Its first layers become the text encoder,
the rest the cross-modal decoder, whose cross-attention is new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor

from vtr.data.text import Tokenizer
from vtr.encoders.bert import Bert, BertConfig
from vtr.errors import UsageError, VtrError
from vtr.models import hub
from vtr.models.folder import Undrawn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DEFAULT = "google-bert/bert-base-uncased"
_OWNER = "google-bert/"  # of names that had no owner once; both are found in the cache
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_WORDS = ("tokenizer.json", "vocab.txt")
_FUSION = {12: 9, 24: 19}  # the published models' first cross-modal layer, by depth; elsewhere the last quarter


class PretrainedText(NamedTuple):
    """A text side as it comes from the hub."""

    name: str
    config: BertConfig
    tokenizer: Tokenizer
    state: dict[str, Tensor]  # with our names; without the language head where the checkpoint has none

    def load_into(self, text: Bert) -> None:
        """Load the weights; cross-attention and what the checkpoint lacks stay new.

        Raises:
            VtrError: It lacks something else, or the sizes differ.
        """
        self.check(text)
        text.load_state_dict({**text.state_dict(), **self.state})

    def check(self, text: Bert) -> None:
        """Refuse weights that are not this network's; raises as `load_into` does."""
        own = text.state_dict()
        wrong = [
            f"{k} is missing" for k in own if k not in self.state and ".crossattention." not in k and k[:4] != "cls."
        ]
        wrong += [f"{k} is not in a BERT of this configuration" for k in self.state if k not in own]
        wrong += [
            f"{k} is {tuple(v.shape)}, expected {tuple(own[k].shape)}"
            for k, v in self.state.items()
            if k in own and own[k].shape != v.shape
        ]
        if wrong:
            raise VtrError(f"text model {self.name!r}: {wrong[0]} (of {len(wrong)} differences)")


def is_hub_name(name: str) -> bool:
    """Whether a text side's name may be one of the hub, or a folder: OWNER/NAME, bert-…, a path."""
    return "/" in name or name.startswith("bert-") or Path(name).is_dir()


def locate_text(name: str = DEFAULT) -> Path:
    """The folder of a BERT checkpoint: a folder itself, in the hub's cache, or downloaded.

    Raises:
        VtrError: It is in neither place; the message names the files, where they go and the way without them.
    """
    if Path(name).is_dir():
        return Path(name)
    for repository in names_of(name):
        weights = _first_cached(repository, _WEIGHTS)
        if weights is not None and _first_cached(repository, _WORDS) is not None:
            return weights.parent
    repository = names_of(name)[0]
    try:
        folder = hub.download(repository, ("config.json", "tokenizer*", "vocab.txt", "*.safetensors", "*.index.json"))
        if not any((folder / file).is_file() for file in _WEIGHTS):
            folder = hub.download(repository, ("pytorch_model.bin",))
        return folder
    except Exception as error:  # no network, unknown name, gated: many kinds
        place = Path(constants.HF_HUB_CACHE) / ("models--" + repository.replace("/", "--"))
        raise VtrError(
            f"text model {name!r}: config.json, tokenizer.json and model.safetensors are neither in {place} nor "
            f"downloadable ({' '.join(str(error).split())[:120] or type(error).__name__}); on a machine with a network "
            f"run: hf download {repository} config.json tokenizer.json model.safetensors, and copy that folder here; "
            "or start without it: --text scratch"
        ) from error


def pretrained_text(name: str = DEFAULT, *, vision_width: int, fusion_layer: int | None = None) -> PretrainedText:
    """A BERT checkpoint as a text side.

    Args:
        name: Of the hub (OWNER/NAME; `bert-base-uncased` and its like without the owner too), or a folder.
        vision_width: Width of the visual tokens that the cross-modal layers read.
        fusion_layer: The first layer that reads them; default: as the published models of this depth have it.

    Raises:
        UsageError: It is no BERT, or one that our network is not equal to.
        VtrError: It cannot be found or read.
    """
    folder = locate_text(name)
    from transformers import AutoConfig, AutoTokenizer  # half a second: nobody else needs it
    from transformers import BertConfig as TheirConfig

    try:
        if (folder / "config.json").is_file():
            theirs = AutoConfig.from_pretrained(folder, local_files_only=True)
        elif DEFAULT in names_of(name):
            theirs = TheirConfig()
        else:
            raise VtrError(f"text model {name!r}: config.json is missing in {folder}")
        _refuse_others(name, theirs)
        with _quiet():
            words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            state = _plain_weights(folder, theirs) or _their_weights(folder, theirs)
    except VtrError:
        raise
    except Exception as error:  # damaged or missing files: transformers raises many kinds
        raise VtrError(
            f"text model {name!r} cannot be loaded from {folder}: {' '.join(str(error).split())[:300]}"
        ) from error
    backend = getattr(words, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"text model {name!r}: its tokenizer is none of the `tokenizers` library's")
    layers = int(theirs.num_hidden_layers)
    config = BertConfig(
        vocab_size=int(theirs.vocab_size),
        hidden=int(theirs.hidden_size),
        layers=layers,
        fusion_layer=_FUSION.get(layers, max(1, layers * 3 // 4)) if fusion_layer is None else fusion_layer,
        heads=int(theirs.num_attention_heads),
        intermediate=int(theirs.intermediate_size),
        max_positions=int(theirs.max_position_embeddings),
        dropout=float(theirs.hidden_dropout_prob),
        vision_width=vision_width,
    )
    found = PretrainedText(name, config, Tokenizer(backend, f"text model {name!r}"), state)
    with torch.device("meta"), Undrawn():
        found.check(Bert(config))
    return found


def names_of(name: str) -> tuple[str, ...]:
    """A model's name of today, then its old one."""
    name = DEFAULT if name == "bert" else name
    if name.startswith(_OWNER):
        return name, name.removeprefix(_OWNER)
    return (_OWNER + name, name) if "/" not in name else (name,)


def _first_cached(repository: str, files: Sequence[str]) -> Path | None:
    return next((path for path in (hub.cached(repository, file) for file in files) if path is not None), None)


def _refuse_others(name: str, theirs: PretrainedConfig) -> None:
    """Whatever our network would compute differently."""
    if theirs.model_type != "bert":
        raise UsageError(
            f"text model {name!r} is of the type {theirs.model_type}, whose words, positions or layers are not BERT's; "
            f"expected one of the type bert, as {DEFAULT}"
        )
    wanted: dict[str, object] = {"hidden_act": "gelu", "position_embedding_type": "absolute", "layer_norm_eps": 1e-12}
    for key, value in wanted.items():
        found = getattr(theirs, key, value)
        if found != value:
            raise UsageError(f"text model {name!r}: its {key} is {found!r}; only {value!r} is supported")
    if theirs.num_hidden_layers < 2:
        raise UsageError(f"text model {name!r} has one layer: at least two are needed, one to read the video")


def _plain_weights(folder: Path, theirs: PretrainedConfig) -> dict[str, Tensor] | None:
    """The one file of weights as it is, None where transformers has something to do: a second and a half less to import."""
    plain = folder / "model.safetensors"
    if not plain.is_file() or getattr(theirs, "quantization_config", None) is not None:
        return None
    state = {_key(key): value for key, value in load_file(plain).items()}
    if not all(
        value.is_floating_point() for key, value in state.items() if key.startswith(("encoder.", "embeddings.Lay"))
    ):
        return None
    return _ours(state)


def _their_weights(folder: Path, theirs: PretrainedConfig) -> dict[str, Tensor]:
    """Weights of files of every other kind, through transformers."""
    from transformers import BertForMaskedLM  # a second and a half

    with torch.random.fork_rng(devices=[]):  # what a checkpoint lacks is drawn at random: those draws are nobody's
        found = BertForMaskedLM.from_pretrained(
            folder, config=theirs, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    model, loading = cast("tuple[BertForMaskedLM, dict[str, set[str]]]", found)
    drawn = {_key(key) for key in loading["missing_keys"]}
    return _ours({name: value for key, value in model.state_dict().items() if (name := _key(key)) not in drawn})


def _key(key: str) -> str:
    """Our name of a tensor; old files call the norms' weight and bias gamma and beta."""
    key = key.removeprefix("bert.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What our text side has of a checkpoint; a language head that is not whole is none."""
    head = {
        "bias",
        "transform.dense.weight",
        "transform.dense.bias",
        "transform.LayerNorm.weight",
        "transform.LayerNorm.bias",
    }
    whole = all(f"cls.predictions.{key}" in state for key in head)
    out = {}
    for key, value in state.items():
        if not key.startswith(("embeddings.", "encoder.", "cls.predictions.")):
            continue  # other heads, the pooler
        if key.startswith("cls.predictions.decoder.") or "position_ids" in key or "token_type_ids" in key:
            continue  # tied to the word embeddings; buffers
        if key.startswith("cls.") and not whole:
            continue
        if key == "embeddings.token_type_embeddings.weight":
            value = torch.cat([value, value[:1]])[
                :2
            ]  # some have one kind of token, some three; ours are all of the first
        out[key] = value.detach().float().clone()
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and log lines: what matters in them is said in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
