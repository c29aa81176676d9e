"""The two files for a GPU that is lent for minutes: short, within their time, and they run whole without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("gpu_a.sh", "gpu_b.sh")


@pytest.mark.parametrize("name", FILES)
def test_it_can_be_passed_as_one_command_and_ends_within_seven_minutes(repo: Path, name: str) -> None:
    text = (repo / "bench" / name).read_text()
    assert len(text) < 2000
    limits = [int(seconds) for seconds in re.findall(r"^\s*step (\d+) ", text, re.MULTILINE)]
    assert len(limits) >= 5
    assert sum(limits) <= 420


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts", "steps"),
    [
        ("gpu_a.sh", {"kernels"}, ["doctor", "kernels", "tests"]),
        ("gpu_b.sh", {"encoders", "indexing", "kernels"}, ["encoders", "kernels", "pretrain", "indexing"]),
    ],
)
def test_a_rehearsal_runs_every_step_and_leaves_its_results(
    repo: Path, tmp_path: Path, name: str, parts: set[str], steps: list[str]
) -> None:
    environment = {**os.environ, "REHEARSE": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(repo / "bench" / name), str(tmp_path), "nowhere"], env=environment, capture_output=True, text=True
    )
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, log
    for step in steps:
        assert f"== {step}: exit 0," in log, log
    assert {path.stem for path in tmp_path.glob("*.json")} == parts
    for path in tmp_path.glob("*.json"):
        found = json.loads(path.read_text())
        assert found["machine"]["device"] == "CPU, a rehearsal"
        assert found["rows"]
    for tool in ("compute-sanitizer", "ncu"):
        assert f"skipped, no {tool} here" in log or f"== {tool}" not in log
