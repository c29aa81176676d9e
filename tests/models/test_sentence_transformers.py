"""sentence-transformers models that take images or videos: loading, embeddings, evaluation, index and search."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vtr
import vtr.models.hub
from tests.helpers import WORDS, write_videos
from vtr.cli import main
from vtr.errors import UsageError, VtrError
from vtr.eval.zero_shot import main as zero_shot
from vtr.models.sentence_transformers import SentenceTransformerModel

transformers = pytest.importorskip("transformers")
library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers.base.modules import InputModule  # noqa: E402 - only where the library is


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small untrained CLIP as a folder of transformers, which sentence-transformers opens as it is."""
    monkeypatch.setattr(vtr.models.hub, "reach_hub", lambda: None)
    letters = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**text, "pad_token_id": 1}, vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=8
    )  # fmt: skip
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "clip")
    return f"sentence-transformers:{tmp_path / 'clip'}"


class Clips(InputModule):
    """A model of texts and videos: a video's vector is its first frames' colours, a text's its length."""

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds, self.seen = list(kinds), list[object]()
        self.register_parameter("weight", torch.nn.Parameter(torch.ones(3)))

    @property
    def modalities(self) -> list[str]:
        return self.kinds

    def preprocess(self, inputs: Sequence[object], prompt: str | None = None, **_: object) -> dict[str, Tensor]:
        self.seen += inputs
        rows = []
        for item in inputs:
            assert isinstance(item, dict)
            if "video" in item:
                rows.append(item["video"]["array"].float().mean((0, 2, 3)))
            else:
                rows.append(torch.tensor([len(item["text"]), 1.0, 0.0]))
        return {"rows": torch.stack(rows)}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": features["rows"] * self.weight}

    def get_embedding_dimension(self) -> int:
        return 3

    def save(self, *_: object, **__: object) -> None:
        raise NotImplementedError


def own(*kinds: str) -> SentenceTransformerModel:
    return SentenceTransformerModel(library.SentenceTransformer(modules=[Clips(kinds)], device="cpu"), "clips")


@torch.no_grad()
def test_a_video_is_the_mean_of_its_frames_where_the_model_takes_images(name: str) -> None:
    model = vtr.load(name, "cpu")
    frames = torch.randint(0, 255, (2, 3, 3, 32, 32), dtype=torch.uint8)
    out = model.encode_video(frames)
    assert out.frame_embeddings.shape == (2, 3, 8)
    pixels = transformers.CLIPImageProcessor.from_pretrained(name.partition(":")[2])(
        list(frames[1]), return_tensors="pt"
    )
    inner = transformers.CLIPModel.from_pretrained(name.partition(":")[2]).eval()
    features = inner.get_image_features(**pixels)
    unit = torch.nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)
    torch.testing.assert_close(
        out.embedding[1], torch.nn.functional.normalize(unit.mean(0), dim=0), rtol=1e-3, atol=1e-4
    )
    assert model.config.video.image_size == 32
    assert float(model.temp) == pytest.approx(float(1 / inner.logit_scale.exp()))


@torch.no_grad()
def test_texts_are_texts_whatever_they_look_like(name: str) -> None:
    model = vtr.load(name, "cpu")
    texts = ["a dog", "clip.mp4", "http://x/y.png", "Ünïcode"]
    together = model.encode_text(model.tokenise(texts)).embedding
    for text, row in zip(texts, together):
        torch.testing.assert_close(model.encode_text(text).embedding[0], row, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])
    assert model.text_limit() == 24
    assert model.cut(["a dog", "a dog " * 10]) == 1


@torch.no_grad()
def test_a_model_of_videos_is_given_whole_clips() -> None:
    model = own("text", "image", "video")
    frames = torch.randint(0, 255, (2, 3, 3, 8, 8), dtype=torch.uint8)
    out = model.encode_video(frames)
    assert out.frame_embeddings.shape == (2, 1, 3)
    mean = torch.nn.functional.normalize(frames.float().mean((1, 3, 4)), dim=-1)
    torch.testing.assert_close(out.embedding, mean)
    assert model.visual_shape(8) == (1, 3)
    with pytest.raises(UsageError, match="expected frames as uint8"):
        model.encode_video(frames.float())
    with pytest.raises(UsageError, match="cannot re-rank"):
        model.visual_memory(frames)


def test_a_model_of_texts_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="clips takes text: expected a model of texts and images or videos"):
        own("text")


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(vtr.models.hub, "reach_hub", no_network)
    with pytest.raises(VtrError, match="cannot be loaded") as error:
        vtr.load(f"sentence-transformers:{tmp_path / 'none'}")
    assert "\n" not in str(error.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "vtr.models.sentence_transformers")
    with pytest.raises(VtrError, match=r"pip install .*\[sentence-transformers\]"):
        vtr.load("sentence-transformers:x/y")


def test_it_is_evaluated_indexed_and_searched(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path / "videos", 4)
    (tmp_path / "test.json").write_text(json.dumps([{"video": f"clip{i}.mp4", "caption": WORDS[i]} for i in range(4)]))
    flags = ["--data", str(tmp_path / "test.json"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert zero_shot(["--model", name, *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[0]
    assert set(result["t2v"]) == {"embedding"}
    built = str(tmp_path / "l")
    assert main(["index", "build", str(tmp_path / "videos"), "--model", name, "--out", built]) == 0
    assert main(["search", built, "a dog", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["search", built, "a dog", "--rerank", "2"]) == 2
    assert "has no cross-modal decoder" in capsys.readouterr().err
