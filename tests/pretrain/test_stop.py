"""Ctrl-C and SIGTERM: a checkpoint, one line, and the same run when it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vtr.pretrain.stop import Stop, Stopped


def test_the_first_signal_is_noted_and_a_second_ctrl_c_ends_at_once() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_launcher_that_says_sigterm_twice_is_heard_once() -> None:
    stop = Stop()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_a_loop_in_another_thread_hears_nothing_and_runs() -> None:
    heard = []
    stop = Stop()

    def listen() -> None:
        with stop.listening():
            heard.append(stop.asked)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [False]


def test_the_message_names_the_checkpoint_and_the_code_the_signal(tmp_path: Path) -> None:
    error = Stopped(signal.SIGINT, 7, tmp_path / "step-00000007.pt")
    assert error.exit_code == 130
    assert "after step 7" in str(error)
    assert "--resume latest" in str(error)
    assert Stopped(signal.SIGTERM, 0, None).exit_code == 143


def rows(out: Path) -> list[dict]:
    log = out / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def started(repo: Path, data_root: Path, out: Path, *more: object, ranks: int = 1) -> subprocess.Popen[str]:
    launcher: list[object] = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks] if ranks > 1 else []
    )
    flags = ["--corpus", "demo", "--data-root", data_root, "--out", out, "--demo-clips", 96, "--demo-images", 48]
    flags += ["--stage", "unmasked", "--steps", 12, "--log-every", 1, *more, "--set", "batch_size=8", "warmup.steps=0"]
    command = [sys.executable, *launcher, repo / "pretrain" / "run.py", *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stopped_run_leaves_a_checkpoint_and_goes_on_as_if_it_had_not_been(
    ranks: int, repo: Path, demo_root: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert started(repo, demo_root, whole, "--workers", 0, ranks=ranks).wait(300) == 0
    call = started(repo, demo_root, out, *(() if ranks == 1 else ("--workers", 0)), ranks=ranks)
    while len(rows(out)) < 3 and call.poll() is None:
        time.sleep(0.02)
    if ranks == 1:
        os.killpg(call.pid, signal.SIGINT)  # as a terminal does: workers and all
    else:
        call.send_signal(signal.SIGTERM)  # to the launcher, which passes it on
    said = call.communicate(timeout=120)[1]
    assert call.returncode != 0
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("vtr: ")]
    assert len(lines) == 1, said
    assert "--resume latest continues" in lines[0]
    assert "KeyboardInterrupt" not in said
    done = len(rows(out))
    assert 3 <= done < 12
    assert (out / "checkpoints" / f"step-{done:08d}.pt").is_file()
    if ranks == 1:
        assert call.returncode == 130
        assert "Traceback" not in said
    assert started(repo, demo_root, out, "--resume", "latest", "--workers", 0, ranks=ranks).wait(300) == 0
    assert [r["loss"] for r in rows(out)] == [r["loss"] for r in rows(whole)]


@pytest.mark.slow
def test_a_run_whose_launcher_is_gone_stops_in_order(repo: Path, demo_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", repo / "pretrain" / "run.py"]
    command += ["--corpus", "demo", "--data-root", demo_root, "--out", out, "--demo-clips", 96, "--demo-images", 48]
    command += ["--stage", "unmasked", "--steps", 2000, "--log-every", 1, "--set", "batch_size=8", "warmup.steps=0"]
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        call = subprocess.Popen(list(map(str, command)), stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while len(rows(out)) < 2 and call.poll() is None:
            time.sleep(0.05)
        call.kill()
        call.wait()
    end = time.monotonic() + 300
    while "vtr: stopped" not in said.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    assert "vtr: stopped after step" in said.read_text()
    assert list((out / "checkpoints").glob("step-*.pt"))
