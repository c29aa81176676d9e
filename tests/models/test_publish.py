"""Models on the hub: the card tells what is known and nothing else, an upload comes back by its name, no token is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vtr.models.load
import vtr.models.publish
from tests.helpers import small_model
from vtr.cli import run
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.errors import UsageError, VtrError
from vtr.models.publish import card_of, push
from vtr.models.recognition import RecognitionConfig, RecognitionModel
from vtr.models.video_text import VideoTextModel

NAME = "somebody/small"


class Hub:
    """Takes what HfApi would upload."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        (self.folder / name).mkdir(parents=True)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> SimpleNamespace:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def a_run(folder: Path) -> VideoTextModel:
    """A run with its model, a record of what it was trained on, and results of its own model and of another."""
    model = small_model()
    model.save_pretrained(folder / "model")
    result = {"benchmark": "msrvtt", "model": "x", "protocol": "ab12", "frames": 8, "rerank": 128, "v2t": {}}
    figures = {"r1": 12.3, "r5": 45.6, "r10": 78.9}
    (folder / "results").mkdir()
    for name, of, at in (("own", model, figures), ("other", small_model(1), {**figures, "r1": 99.1})):
        found = {**result, "fingerprint": of.fingerprint(), "t2v": {"embedding": at, "reranked": at}}
        (folder / "results" / f"{name}.json").write_text(json.dumps(found))
    (folder / "results" / "broken.json").write_text("{")
    corpus = [{"member": "web|vid", "media": "video", "samples": 1000, "published": 2000, "licence": "research only"}]
    stage = {"steps": 60, "batch_size": 32, "vtc": 1.0, "optim": {"lr": 0.002}}
    record = {"settings": {"corpus": "web"}, "recipe": {"stages": ["masked"], "masked": stage}, "corpus": corpus}
    (folder / "run.json").write_text(json.dumps({**record, "torch": "2", "device": "cpu"}))
    return VideoTextModel.from_pretrained(folder / "model")


def test_the_card_tells_data_recipe_figures_and_licence_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = card_of(a_run(tmp_path), NAME, licence="cc-by-nc-4.0")
    assert "license: cc-by-nc-4.0" in card
    assert "| web\\|vid | video | 1000 | 2000 | research only |" in card
    assert "| masked | 60 | 32 | 0.002 | vtc 1 |" in card
    assert "| msrvtt | embedding | 12.3 | 45.6 | 78.9 |  |  |  | frames 8, protocol ab12 |" in card
    assert "Of the data they were trained on: research only." in card
    assert "99.1" not in card
    assert "other.json: of another model, left out" in capsys.readouterr().err


def test_a_model_that_was_trained_on_since_has_no_card_of_its_old_run(tmp_path: Path) -> None:
    model = a_run(tmp_path)
    with torch.no_grad():
        model.temp += 1
    card = card_of(model, NAME)
    assert "12.3" not in card
    assert "Nothing is known here of its training" in card
    assert "licence of these weights is not stated" in card


def test_a_recognition_model_is_shown_by_what_it_can_do() -> None:
    assert 'model.classify("clip.mp4")' in card_of(
        RecognitionModel(RecognitionConfig(video=VideoMambaConfig(image_size=32, dim=32, depth=1))), NAME
    )


def test_what_is_pushed_comes_back_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_run(tmp_path / "run")
    assert push(model, NAME, api=Hub(tmp_path / "hub")) == f"https://hub/{NAME}/commit/1"  # type: ignore[arg-type]
    files = sorted(path.name for path in (tmp_path / "hub" / NAME).iterdir())
    assert files == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    asked: list[list[str]] = []

    def fetched(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr(vtr.models.load, "snapshot_download", fetched)
    assert vtr.models.load.load(NAME, "cpu").fingerprint() == model.fingerprint()
    assert not any("*" in pattern or pattern.endswith((".bin", ".pt", ".py")) for pattern in asked[0])


def test_a_refusal_of_the_hub_is_one_line_without_the_token(tmp_path: Path) -> None:
    class Refusing(Hub):
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            raise OSError("403\nfor hf_secret")

    with pytest.raises(VtrError, match=r"did not take the model \(403 for …\)") as error:
        push(small_model(), NAME, api=Refusing(tmp_path), token="hf_secret")  # type: ignore[arg-type]
    assert error.value.__cause__ is None


@pytest.mark.parametrize("name", ["small", "a/b/c", "some body/small", "/small", "some--body/x"])
def test_what_is_no_name_of_the_hub_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="expected OWNER/NAME"):
        card_of(small_model(), name)


def test_nothing_is_uploaded_without_a_token_or_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vtr.models.publish, "get_token", lambda: None)
    monkeypatch.setattr(vtr.models.publish, "HfApi", None)
    a_run(tmp_path)
    assert run(["models", "push", str(tmp_path), NAME, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("---\n")
    with pytest.raises(UsageError, match="no token"):
        run(["models", "push", str(tmp_path), NAME])
    with pytest.raises(VtrError, match=r"nowhere\.json: no such file"):
        run(["models", "push", str(tmp_path), NAME, "--results", str(tmp_path / "nowhere.json"), "--dry-run"])
