"""Threads of a rank: its share of the cores; a launcher's OMP_NUM_THREADS is not the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtr import threads
from vtr.threads import Launcher, choose


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, no launcher, nothing set."""
    monkeypatch.setattr(threads, "cores", lambda: 8)
    monkeypatch.setattr(threads, "launcher", lambda: None)
    for name in [n for n in os.environ if n.startswith(("OMP_", "TORCHELASTIC_", "ACCELERATE_", "LOCAL_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_rank_has_its_share_of_the_cores_less_what_the_data_workers_need(machine: pytest.MonkeyPatch) -> None:
    assert choose().number == 8
    assert choose(workers=1).number == 7
    assert choose(workers=12).number == 6  # a quarter of them at most
    machine.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose(workers=4).number == 2
    assert "4 ranks" in choose().why
    machine.setenv("LOCAL_WORLD_SIZE", "16")
    assert choose(workers=4).number == 1


def test_what_the_user_says_counts(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("OMP_NUM_THREADS", "3")
    assert choose(workers=4) == (3, "OMP_NUM_THREADS")
    assert choose(5) == (5, "--threads")


def test_a_launchers_own_setting_does_not_count(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("OMP_NUM_THREADS", "1")
    assert choose().number == 1
    for words in (["python", "/bin/accelerate", "launch", "x.py"], ["python", "-m", "torch.distributed.run", "x.py"]):
        machine.setattr(threads, "launcher", lambda words=words: Launcher(words, {}))
        assert choose().number == 8
        # The user's own setting reaches us through the launcher.
        machine.setattr(threads, "launcher", lambda words=words: Launcher(words, {"OMP_NUM_THREADS": "1"}))
        assert choose().number == 1
    for flag in (["--num_cpu_threads_per_process", "1"], ["--num-cpu-threads-per-process=1"]):
        machine.setattr(threads, "launcher", lambda flag=flag: Launcher(["accelerate", "launch", *flag], {}))
        assert choose().number == 1


def test_a_launcher_that_cannot_be_seen_is_known_by_its_marks(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("OMP_NUM_THREADS", "1")
    machine.setenv("TORCHELASTIC_RUN_ID", "none")
    assert choose().number == 8
    machine.setenv("OMP_NUM_THREADS", "2")
    assert choose().number == 2


def test_a_containers_quota_is_a_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads._quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads._quota(tmp_path) is None
    assert threads._quota(tmp_path / "nowhere") is None
    assert threads.cores() >= 1


def test_threads_wait_asleep_unless_the_user_has_said_how(machine: pytest.MonkeyPatch) -> None:
    machine.delenv("GOMP_SPINCOUNT", raising=False)
    machine.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    machine.delenv("OMP_WAIT_POLICY")
    machine.setenv("GOMP_SPINCOUNT", "100")
    threads.wait_asleep()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.slow
def test_accelerate_launch_is_seen_through(repo: Path, tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text("from vtr.threads import choose, cores; print(choose().number == cores(), choose().why)")
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(repo)}
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.startswith("True"), done.stdout + done.stderr
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.rstrip().endswith("OMP_NUM_THREADS"), done.stdout + done.stderr
