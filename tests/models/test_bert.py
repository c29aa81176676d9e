"""BERT of the hub as our text side: equal to transformers', found in the cache under both names, others refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer, RobertaConfig

import vtr.models.hub
from tests.helpers import WORDS
from vtr.data.cleaning import clean_caption
from vtr.encoders.bert import Bert
from vtr.errors import UsageError, VtrError
from vtr.models.bert import locate_text, pretrained_text

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefg")]


def bert_folder(folder: Path, **changes: object) -> BertForMaskedLM:
    """A small random BERT as `save_pretrained` leaves it."""
    words = sorted({w for text in WORDS for w in clean_caption(text).split()} - set(PIECES))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*PIECES, *words]) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
             "intermediate_size": 128, "max_position_embeddings": 40}  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():  # as a trained one: no bias is zero, no norm is one
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with nothing in it and no network beside it."""

    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(vtr.models.hub, "reach_hub", no_network)
    return tmp_path / "hub"


def snapshot(cache: Path, name: str) -> Path:
    """The folder that the cache has for a repository."""
    folder = cache / ("models--" + name.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


@torch.no_grad()
def test_hidden_states_of_padded_texts_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = bert_folder(tmp_path)
    found = pretrained_text(str(tmp_path), vision_width=32)
    assert (found.config.layers, found.config.fusion_layer, found.config.hidden) == (4, 3, 64)
    ours = Bert(found.config).eval()
    found.load_into(ours)
    batch = found.tokenizer(WORDS)
    assert (batch.mask == 0).any()
    states = theirs.bert(batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
    real = batch.mask.bool()
    torch.testing.assert_close(ours.encode_text(batch.ids, batch.mask)[real], states[3][real], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_decoders_layers_and_the_language_head_are_theirs_too(tmp_path: Path) -> None:
    theirs = bert_folder(tmp_path)
    found = pretrained_text(str(tmp_path), vision_width=32, fusion_layer=4)
    ours = Bert(found.config).eval()
    found.load_into(ours)
    batch = found.tokenizer(WORDS)
    expected = theirs(batch.ids, attention_mask=batch.mask).logits
    got = ours.mlm_logits(ours.encode_text(batch.ids, batch.mask))
    real = batch.mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=1e-5, atol=2e-5)
    split = Bert(pretrained_text(str(tmp_path), vision_width=32).config)
    pretrained_text(str(tmp_path), vision_width=32).load_into(split)
    for name, value in ours.state_dict().items():
        assert torch.equal(split.state_dict()[name], value), name


@pytest.mark.parametrize(
    "text", ["a red square", "A RED Square, moving: left!", "naïve café 東京", "", "xyz unknownword"]
)
def test_token_ids_are_those_of_transformers(text: str, tmp_path: Path) -> None:
    bert_folder(tmp_path)
    ours = pretrained_text(str(tmp_path), vision_width=32).tokenizer
    assert ours([text]).ids[0].tolist() == AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]


@pytest.mark.parametrize("there", ["google-bert/bert-base-uncased", "bert-base-uncased"])
@pytest.mark.parametrize("asked", ["bert", "google-bert/bert-base-uncased", "bert-base-uncased"])
def test_both_names_of_bert_are_found_in_the_cache_without_a_network(there: str, asked: str, cache: Path) -> None:
    bert_folder(snapshot(cache, there))
    assert locate_text(asked) == snapshot_of(cache, there)
    assert pretrained_text(asked, vision_width=32).config.hidden == 64


def snapshot_of(cache: Path, name: str) -> Path:
    return cache / ("models--" + name.replace("/", "--")) / "snapshots" / ("0" * 40)


def test_old_names_of_the_norms_are_understood(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    expected = pretrained_text(str(tmp_path), vision_width=32).state
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    found = pretrained_text(str(tmp_path), vision_width=32).state
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_one_file_read_as_it_is_and_files_that_transformers_reads_give_the_same_weights(tmp_path: Path) -> None:
    theirs = bert_folder(tmp_path)
    expected = pretrained_text(str(tmp_path), vision_width=32).state
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    found = pretrained_text(str(tmp_path), vision_width=32).state
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_layers_that_the_configuration_does_not_have_are_refused(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(VtrError, match=r"encoder\.layer\.3.* is not in a BERT of this configuration"):
        pretrained_text(str(tmp_path), vision_width=32)


def test_a_checkpoint_without_a_language_head_leaves_ours_new_and_draws_nothing(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    bare = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith("cls.")}
    save_file({k.removeprefix("bert."): v for k, v in bare.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    found = pretrained_text(str(tmp_path), vision_width=32)
    assert torch.equal(torch.rand(2), expected)
    assert not [k for k in found.state if k.startswith("cls.")]
    found.load_into(Bert(found.config))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["bert.encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VtrError, match=r"encoder\.layer\.1\.output\.dense\.weight is missing"):
        pretrained_text(str(tmp_path), vision_width=32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"num_hidden_layers": 1}, "at least two"),
    ],
)
def test_a_bert_that_our_network_is_not_equal_to_is_refused(
    changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    bert_folder(tmp_path, **changes)
    with pytest.raises(UsageError, match=says):
        pretrained_text(str(tmp_path), vision_width=32)


def test_another_type_of_model_is_refused_in_one_line(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"of the type roberta.*expected one of the type bert") as error:
        pretrained_text(str(tmp_path), vision_width=32)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said_with_the_files_their_folder_and_the_way_without(cache: Path) -> None:
    with pytest.raises(VtrError) as error:
        locate_text("bert")
    for part in ("config.json, tokenizer.json and model.safetensors", str(cache / "models--google-bert--bert-base-unc"),
                 "hf download google-bert/bert-base-uncased", "--text scratch", "no network"):  # fmt: skip
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(VtrError, match="cannot be loaded") as error:
        pretrained_text(str(tmp_path), vision_width=32)
    assert "\n" not in str(error.value)


def test_a_hub_that_does_not_answer_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(OSError, match="refused"):
        vtr.models.hub.reach_hub()


def test_a_tokenizer_config_is_not_needed(tmp_path: Path) -> None:
    bert_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordPiece"
    assert pretrained_text(str(tmp_path), vision_width=32).tokenizer(["a dog"]).mask.sum() == 4
