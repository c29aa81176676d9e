"""Checkpoints: atomic, pruned, refused when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from vtr.errors import VtrError
from vtr.pretrain.state import changes, checkpoints, load_checkpoint, mark_best, save_checkpoint


def test_the_last_two_checkpoints_are_kept_and_latest_is_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, {"step": step, "w": torch.ones(2)})
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000010.pt", "step-00000100.pt"]
    state = load_checkpoint(tmp_path, "latest")
    assert state is not None
    assert state["step"] == 100


def test_latest_without_checkpoints_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, "latest") is None


def test_a_half_written_file_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / "step-00000002.123.tmp").write_bytes(b"half")
    state = load_checkpoint(tmp_path, "latest")
    assert state is not None
    assert state["step"] == 1


def test_a_truncated_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"w": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(VtrError, match="damaged") as error:
        load_checkpoint(tmp_path, "latest")
    assert "\n" not in str(error.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(VtrError, match=r"gone\.pt"):
        load_checkpoint(tmp_path, str(tmp_path / "gone.pt"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_rest(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_checkpoint(tmp_path, 1, {"step": 1})
    before = path.read_bytes()

    def full(state: object, file: BinaryIO) -> None:
        file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(VtrError, match="cannot be written"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_the_best_checkpoint_outlives_the_last_k_and_has_a_name(tmp_path: Path) -> None:
    for step in range(1, 7):
        path = save_checkpoint(tmp_path, step, {"step": step}, keep=3)
        if step == 2:
            mark_best(tmp_path, path)
    assert [p.name for p in checkpoints(tmp_path)] == [f"step-{s:08d}.pt" for s in (4, 5, 6)]
    best = load_checkpoint(tmp_path, "best")
    assert best is not None
    assert best["step"] == 2


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({"lr": 1.0, "turned": False}, []),
        ({"lr": 1.0, "turned": True}, ["masked.turned was False, is True"]),
        ({"lr": 2.0, "turned": False}, ["masked.lr was 1.0, is 2.0"]),
        ({"lr": 1.0, "unknown": 3}, ["masked.unknown was None, is 3"]),
    ],
)
def test_a_checkpoint_of_before_a_key_did_what_the_keys_default_does(now: dict[str, object], found: list[str]) -> None:
    defaults = {"masked": {"lr": 9.0, "turned": False}}
    assert changes({"masked": {"lr": 1.0}}, {"masked": now}, defaults) == found
