"""Features of frozen encoders that are kept: each clip is encoded once, and a killed run goes on with what is there."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import small_model, write_videos
from vtr.errors import UsageError, VtrError
from vtr.models.video_text import VideoTextModel
from vtr.pretrain import features
from vtr.pretrain.loop import Loop
from vtr.pretrain.recipes import Stage, check, recipe
from vtr.pretrain.run import main as pretrain_main

CLIPS, PER_STEP, STEPS = 40, 8, 15


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A list of clips with captions, and a model to start from."""
    paths = write_videos(tmp_path / "clips", CLIPS)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "caption"), *((p, f"a red circle number {p.stem}") for p in paths)])
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path


def words(data: Path, out: str, *more: str) -> list[str]:
    keys = (
        "keep_features=true",
        f"batch_size={PER_STEP}",
        "match_group=0",
        "streams=4",
        "optim.lr=1e-2",
        "match_loss=both",
    )
    flags = ("--stage", "matching", "--steps", STEPS, "--log-every", 1, "--save-every", 4, "--workers", 0)
    flags = (*flags, "--threads", 1)  # two sum in the order in which they come: not the same bits
    flags = (*flags, "--corpus", data / "list.csv", "--init", data / "model", "--out", data / out, *more)
    return [*map(str, flags), "--set", *(k if k.startswith("streams") else f"matching.{k}" for k in keys)]


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips each pass of the video encoder had."""
    counts: list[int] = []
    real = VideoTextModel.encode_video

    def counting(self: VideoTextModel, videos: Tensor, **more: object) -> object:
        counts.append(len(videos))
        return real(self, videos, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(VideoTextModel, "encode_video", counting)
    return counts


def test_each_clip_is_encoded_once_and_the_features_are_gone_after(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "PART", 7)
    assert pretrain_main(words(data, "kept")) == 0
    assert sum(encoded) == CLIPS < STEPS * PER_STEP
    assert not (data / "kept" / "features").exists()
    losses = [row["vtm"] for row in log(data / "kept")]
    assert len(losses) == STEPS
    assert len(set(losses)) > STEPS // 2
    assert "keep_features=true" not in capfd.readouterr().err

    encoded.clear()
    assert pretrain_main([w for w in words(data, "anew") if w != "matching.keep_features=true"]) == 0
    assert sum(encoded) == STEPS * PER_STEP
    assert "encodes each sample 3 times; with --set matching.keep_features=true" in capfd.readouterr().err


@pytest.mark.parametrize("during", ["features", "steps"])
def test_a_run_that_breaks_off_goes_on_with_the_features_that_are_there(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    monkeypatch.setattr(features, "PART", 8)
    assert pretrain_main(words(data, "whole")) == 0
    place, name, after = (features.Keeper, "_make", 3) if during == "features" else (Loop, "step", 6)
    real, calls = getattr(place, name), []

    def breaking(self: object, *given: object) -> object:
        calls.append(given)
        if len(calls) > after:
            raise VtrError("broken off")
        return real(self, *given)

    with monkeypatch.context() as broken:
        broken.setattr(place, name, breaking)
        assert pretrain_main(words(data, "broken")) == 1
    assert len(list((data / "broken" / "features").glob("*.safetensors"))) == (3 if during == "features" else 5)
    encoded.clear()
    assert pretrain_main(words(data, "broken", "--resume", "latest")) == 0
    assert sum(encoded) == (CLIPS - 24 if during == "features" else 0)
    whole, again = ((data / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "broken"))
    assert whole == again
    assert [r["vtm"] for r in log(data / "whole")] == [r["vtm"] for r in log(data / "broken")]


def test_features_of_another_model_are_made_anew(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Loop, "step", lambda *_: (_ for _ in ()).throw(VtrError("broken off")))
        assert pretrain_main(words(data, "run")) == 1
    assert sum(encoded) == CLIPS
    shutil.rmtree(data / "model")
    small_model(seed=1).save_pretrained(data / "model")
    encoded.clear()
    assert pretrain_main(words(data, "run", "--resume", "latest")) == 0  # there is no checkpoint: from the beginning
    assert sum(encoded) == CLIPS


def test_what_cannot_be_read_is_dropped_with_its_reason(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip, gone = data / "clips" / "clip3.mp4", data / "clips" / "clip5.mp4"
    clip.write_bytes(clip.read_bytes()[:900])
    gone.unlink()
    assert pretrain_main([*words(data, "run"), "max_bad_fraction=0.2"]) == 0
    said = capfd.readouterr().err
    assert "clip3.mp4: " in said
    assert "clip5.mp4: No such file" in said
    assert "clip4.mp4: " not in said
    assert log(data / "run")[-1]["bad"] >= 2


@pytest.mark.slow
def test_two_ranks_and_one_have_the_same_losses(data: Path, repo: Path) -> None:
    assert pretrain_main(words(data, "one")) == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", repo / "pretrain" / "run.py")
    command = [sys.executable, *map(str, launcher), *words(data, "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=repo)
    assert done.returncode == 0, done.stderr
    one, two = log(data / "one"), log(data / "two")
    assert [r["batch"] for r in one] == [r["batch"] for r in two]
    assert [r["vtm"] for r in two] == pytest.approx([r["vtm"] for r in one], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Stage(vtm=1.0, keep_features=True), "have none to keep"),
        (Stage(vtm=1.0, frozen=True, direction_negatives=True, keep_features=True), "played backwards"),
    ],
)
def test_stages_that_have_no_features_to_keep_are_refused(stage: Stage, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check(replace(recipe("clean", "demo"), matching=stage), ("matching",))


def test_features_that_do_not_fit_are_told_before_most_are_made(
    data: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "PART", 4)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    assert pretrain_main(words(data, "run")) == 1
    assert "need 0.0 GiB more, 0.0 are free" in capfd.readouterr().err
    assert sum(encoded) == 4


def test_a_batch_of_features_is_that_of_its_frames() -> None:
    torch.manual_seed(0)
    model = small_model()
    frames = torch.randint(0, 256, (6, 4, 3, 32, 32), dtype=torch.uint8)
    captions, ids = [f"a red circle {k}" for k in range(6)], torch.arange(6)
    stage = Stage(vtm=1.0, frozen=True, match_loss="list", match_negatives=2, keep_temporal=True)
    found = []
    for given in (frames, _features(model, frames)):
        step = features.PretrainStep(model, stage, micro_batch=4)
        model.zero_grad()
        losses = step(given, captions, ids, [{}] * 6, None, 0)
        found.append((losses["vtm"], [p.grad for p in step.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def _features(model: VideoTextModel, frames: Tensor) -> features.Features:
    with torch.no_grad():
        made = model.encode_video(frames)
    return features.Features(made.frame_embeddings, made.tokens)
