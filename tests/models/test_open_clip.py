"""open_clip models through the same door: loading, embeddings, evaluation, index and search."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F

import vtr
import vtr.models.hub
from tests.helpers import WORDS, write_videos
from vtr.cli import main
from vtr.data.text import Tokenizer
from vtr.errors import UsageError, VtrError
from vtr.eval.zero_shot import main as zero_shot
from vtr.models.open_clip import OpenClipModel

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
NEWER = {  # of open_clip's configurations: the tower, and what its texts are cut with
    "PE-Core-T-16-384": {"timm_pool": "map", "timm_proj": None, "timm_model_name": "vit_pe_core_tiny_patch16_384"},
    "ViT-B-32-SigLIP2-256": {"timm_pool": "map", "timm_proj": "none", "timm_model_name": "vit_base_patch32_siglip_256"},
    "MobileCLIP2-S0": {"timm_pool": "avg", "timm_proj": None, "timm_model_name": "fastvit_mci0"},
}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[dict[str, object]], str]]:
    """What makes the name of an open_clip model of random weights out of its configuration."""

    def make(config: dict[str, object]) -> str:
        (tmp_path / "vtr-test.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / "vtr-test.json")
        torch.manual_seed(0)
        model = open_clip.create_model("vtr-test")
        torch.save(model.state_dict(), tmp_path / "clip.pt")
        return f"open_clip:vtr-test/{tmp_path / 'clip.pt'}"

    yield make
    open_clip.factory._MODEL_CONFIG_PATHS.clear()
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIG_PATHS.append(Path(open_clip.__file__).parent / "model_configs")
    open_clip.factory._rescan_model_configs()


@pytest.fixture
def name(small: Callable[[dict[str, object]], str]) -> str:
    """A small untrained CLIP with open_clip's own tokenizer, as a file."""
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    return small({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})


@torch.no_grad()
def test_a_video_is_the_mean_of_its_frames_as_open_clip_sees_them(name: str) -> None:
    model = vtr.load(name, "cpu")
    frames = torch.randint(0, 255, (2, 3, 3, 32, 32), dtype=torch.uint8)
    out = model.encode_video(frames)
    pixels = open_clip.get_model_preprocess_cfg(model.clip)
    mean, std = (torch.tensor(pixels[k]).view(3, 1, 1) for k in ("mean", "std"))
    unit = F.normalize(model.clip.encode_image((frames[1] / 255 - mean) / std), dim=-1)
    torch.testing.assert_close(out.embedding[1], F.normalize(unit.mean(0), dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.embedding.norm(dim=-1), torch.ones(2))


@torch.no_grad()
def test_texts_are_encoded_as_open_clip_does(name: str) -> None:
    model = vtr.load(name, "cpu")
    own = F.normalize(model.clip.encode_text(open_clip.get_tokenizer("ViT-B-32")(WORDS, 12)), dim=-1)
    torch.testing.assert_close(model.encode_text(WORDS).embedding, own, rtol=1e-4, atol=1e-5)
    assert model.tokenise(["a dog", "a dog runs"]).mask.sum(1).tolist() == [4, 5]
    assert model.cut(["a dog", "a dog " * 5, "a dog " * 6]) == 1  # 12 tokens fit, 14 do not


def test_the_published_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create(model: str, pretrained: str, **more: object) -> None:
        asked[f"{model}/{pretrained}"] = more["force_quick_gelu"]
        raise RuntimeError("stop here")

    monkeypatch.setattr(vtr.models.hub, "reach_hub", lambda: None)
    monkeypatch.setattr(open_clip, "create_model", create)
    for known in ("ViT-B-16/openai", "ViT-B-16/laion2b_s34b_b88k"):
        with pytest.raises(VtrError, match="stop here"):
            OpenClipModel.load(f"open_clip:{known}")
    assert asked == {"ViT-B-16/openai": True, "ViT-B-16/laion2b_s34b_b88k": False}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("ViT-B-17/openai", "did you mean 'ViT-B-16'"),
        ("ViT-B-16/openaj", "did you mean 'openai'"),
        ("ViT-B-16", "add /TAG, one of openai"),
    ],
)
def test_a_wrong_name_names_the_nearest(wrong: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        vtr.load(f"open_clip:{wrong}")


def test_without_a_network_and_a_cache_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(vtr.models.hub, "reach_hub", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(VtrError, match=r"neither in the Hugging Face cache.*nor downloadable") as error:
        vtr.load("open_clip:ViT-B-16/openai")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_the_names_that_open_clip_knows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "open_clip:ViT-B-16/", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"open_clip:ViT-B-16/openai"} <= {row["name"] for row in rows}
    assert all(row["name"].startswith("open_clip:ViT-B-16/") for row in rows)


def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "clip.pt").write_bytes(b"no")
    with pytest.raises(VtrError, match="cannot be loaded"):
        vtr.load(name)


def _whole_way(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Evaluate, index and search; the result of the evaluation."""
    write_videos(folder / "videos", 4)
    (folder / "test.json").write_text(json.dumps([{"video": f"clip{i}.mp4", "caption": WORDS[i]} for i in range(4)]))
    flags = ["--data", str(folder / "test.json"), "--data-root", str(folder), "--out", str(folder / "results")]
    assert zero_shot(["--model", name, *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[0]
    library = str(folder / "l")
    assert main(["index", "build", str(folder / "videos"), "--model", name, "--out", library]) == 0
    assert main(["search", library, "a dog", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["search", library, "a dog", "--rerank", "2"]) == 2
    assert "has no cross-modal decoder" in capsys.readouterr().err
    return result


def test_a_baseline_is_evaluated_indexed_and_searched(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _whole_way(name, tmp_path, capsys)
    assert set(result["t2v"]) == {"embedding"}
    assert (result["frames"], result["rerank"]) == (8, 0)


@pytest.mark.parametrize("kind", NEWER)
def test_newer_models_go_the_whole_way(
    kind: str,
    small: Callable[[dict[str, object]], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published, create = open_clip.get_model_config(kind), timm.create_model
    assert published is not None
    assert published["vision_cfg"].items() >= NEWER[kind].items()
    reduced: dict[str, object] = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    if "Mobile" in kind:
        reduced = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **{**more, **reduced}))
    text = {**published["text_cfg"], "width": 32, "heads": 2, "layers": 1, "vocab_size": 49408}
    if "hf_tokenizer_name" in text:  # of the hub there; the same kind of tokenizer here
        words = Tokenizer.train(WORDS, 90)
        (tmp_path / "words").mkdir()
        words.save(tmp_path / "words" / "tokenizer.json")
        ends = {"pad_token": "[PAD]", "tokenizer_class": "PreTrainedTokenizerFast"}
        (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps(ends))
        text["hf_tokenizer_name"] = str(tmp_path / "words")
    name = small({**published, "embed_dim": 32, "text_cfg": text})
    assert _whole_way(name, tmp_path, capsys)["frames"] == 8
    model = vtr.load(name, "cpu")
    assert (model.context, model.config.video.image_size) == (
        text["context_length"],
        published["vision_cfg"]["image_size"],
    )
    assert model.cut([*WORDS, "dog " * 100]) == 1


def test_a_tokenizer_that_is_not_here_is_named(
    small: Callable[[dict[str, object]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(vtr.models.hub, "reach_hub", no_network)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    name = small({"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**TEXT, "hf_tokenizer_name": "no-one/none"}})
    with pytest.raises(VtrError, match="its tokenizer no-one/none is neither in the Hugging Face cache") as error:
        vtr.load(name, "cpu")
    assert "\n" not in str(error.value)
