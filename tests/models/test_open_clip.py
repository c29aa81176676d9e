"""open_clip models through the same door: loading, embeddings, evaluation, index and search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

import vtr
import vtr.models.hub
from tests.helpers import WORDS, write_videos
from vtr.cli import main
from vtr.errors import UsageError, VtrError
from vtr.eval.zero_shot import main as zero_shot
from vtr.models.open_clip import OpenClipModel


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """A small untrained CLIP with open_clip's own tokenizer, as a file."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "vtr-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "vtr-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("vtr-test")
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    yield f"open_clip:vtr-test/{tmp_path / 'clip.pt'}"
    open_clip.factory._MODEL_CONFIG_PATHS.clear()
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIG_PATHS.append(Path(open_clip.__file__).parent / "model_configs")
    open_clip.factory._rescan_model_configs()


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


def test_a_baseline_is_evaluated_indexed_and_searched(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "videos", 4)
    (tmp_path / "test.json").write_text(json.dumps([{"video": f"clip{i}.mp4", "caption": WORDS[i]} for i in range(4)]))
    flags = ["--data", str(tmp_path / "test.json"), "--data-root", str(tmp_path), "--out", str(tmp_path / "results")]
    assert zero_shot(["--model", name, *flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)[0]
    assert set(result["t2v"]) == {"embedding"}
    assert (result["frames"], result["rerank"]) == (8, 0)
    library = str(tmp_path / "l")
    assert main(["index", "build", str(tmp_path / "videos"), "--model", name, "--out", library]) == 0
    assert main(["search", library, "a dog", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["search", library, "a dog", "--rerank", "2"]) == 2
    assert "has no cross-modal decoder" in capsys.readouterr().err
