"""Several ranks and several machines through `vtr pretrain`: the losses of one process, and an end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def command(data_root: Path, out: Path, *more: object) -> list[str]:
    words = ["pretrain", "--corpus", "demo", "--data-root", data_root, "--out", out, "--stage", "unmasked"]
    words += ["--demo-clips", 96, "--demo-images", 48, "--log-every", 1, *more]
    return [sys.executable, "-m", "vtr.cli", *map(str, words), "--set", "batch_size=8", "warmup.steps=0"]


def losses(out: Path) -> list[float]:
    log = out / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return [row["loss"] for row in rows if "loss" in row]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def agents(data_root: Path, out: Path, steps: int) -> list[subprocess.Popen[str]]:
    """Two machines of one rank each, both of them this one."""
    main = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command(
                data_root,
                out,
                "--steps",
                steps,
                "--nodes",
                2,
                "--node-rank",
                node,
                "--main",
                main,
                "--ranks",
                1,
                "--workers",
                0,
            ),
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        for node in (0, 1)
    ]


@pytest.mark.slow
def test_two_machines_of_one_rank_each_have_the_losses_of_one_process(demo_root: Path, tmp_path: Path) -> None:
    one = subprocess.run(
        command(demo_root, tmp_path / "one", "--steps", 3, "--workers", 0), capture_output=True, text=True
    )
    assert one.returncode == 0, one.stderr
    for agent in agents(demo_root, tmp_path / "two", 3):
        said = agent.communicate(timeout=300)[1]
        assert agent.returncode == 0, said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "two")) == 3


def ended(first: subprocess.Popen[str]) -> list[str]:
    """What the machine that is left says, in lines of ours; it must end within a minute."""
    begin = time.monotonic()
    said = first.communicate(timeout=120)[1]
    assert time.monotonic() - begin < 60
    assert first.returncode != 0
    assert "Traceback" not in said
    return [line for line in said.replace("\r", "\n").splitlines() if line.startswith("vtr: ")]


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_other_within_a_minute_with_the_cause(demo_root: Path, tmp_path: Path) -> None:
    first, second = agents(demo_root, tmp_path / "run", 5000)
    while len(losses(tmp_path / "run")) < 2 and first.poll() is None:
        time.sleep(0.1)
    for process in [*psutil.Process(second.pid).children(recursive=True), psutil.Process(second.pid)]:
        process.kill()
    second.communicate()
    (line,) = ended(first)
    assert "rank 1" in line
    assert "--resume latest continues" in line


@pytest.mark.slow
def test_an_agent_that_dies_alone_ends_both_machines_in_order(demo_root: Path, tmp_path: Path) -> None:
    first, second = agents(demo_root, tmp_path / "run", 5000)
    while len(losses(tmp_path / "run")) < 2 and first.poll() is None:
        time.sleep(0.1)
    second.kill()
    (line,) = ended(first)
    assert "rank 1 stops: its launcher is gone" in second.communicate(timeout=300)[1]
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert "stopped after step" in line


@pytest.mark.slow
def test_ctrl_c_once_ends_all_ranks_with_one_line_and_a_checkpoint(demo_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    call = subprocess.Popen(
        command(demo_root, out, "--steps", 500, "--ranks", 2), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(losses(out)) < 2 and call.poll() is None:
        time.sleep(0.05)
    os.killpg(call.pid, signal.SIGINT)
    said = call.communicate(timeout=120)[1]
    assert call.returncode == 130
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("vtr: ")]
    assert len(lines) == 1, said
    assert list((out / "checkpoints").glob("step-*.pt"))
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(call.pid, 0)  # nobody is left
