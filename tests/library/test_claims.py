"""Claims: each piece of work is one process's, a dead one's is taken over, one that kills is given up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtr.library.claims import Claims

HOLD = """
import sys, time
from pathlib import Path
from vtr.library.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    assert claims.take(sys.argv[2]) == "mine"
    print("held", flush=True)
    time.sleep(60)
"""


def killed_holder(folder: Path, what: str, repo: Path) -> None:
    """A process claims something, and is killed."""
    words = [sys.executable, "-c", HOLD, str(folder), what]
    with subprocess.Popen(words, cwd=repo, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)


def test_a_claim_is_one_processs_until_it_gives_it_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert [c.take("a") for c in (one, other, one)] == ["mine", "taken", "taken"]
        assert one.others()
        one.release("a")
        assert other.take("a") == "mine"
    assert not Claims(tmp_path).others()


def test_what_a_killed_process_had_is_taken_over_at_once(tmp_path: Path, repo: Path) -> None:
    killed_holder(tmp_path, "a", repo)
    with Claims(tmp_path) as claims, Claims(tmp_path) as other:
        assert claims.take("a") == "mine"
        assert other.take("a") == "taken"


def test_work_that_several_processes_died_over_is_given_up(tmp_path: Path, repo: Path) -> None:
    for _ in range(3):
        killed_holder(tmp_path, "a", repo)
    with Claims(tmp_path) as claims:
        assert claims.take("a") == "given up"
        assert claims.take("b") == "mine"


def test_a_process_elsewhere_is_dead_when_it_gives_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vtr.library.claims as module

    with monkeypatch.context() as elsewhere, Claims(tmp_path) as far:
        elsewhere.setattr(module, "_machine", lambda: "elsewhere-1")
        far.name = f"elsewhere-1.{os.getpid()}.00"
        (tmp_path / f"{far.name}.alive").touch()
        assert far.take("a") == "mine"
        elsewhere.undo()
        with Claims(tmp_path) as near:
            assert near.take("a") == "taken"
            old = time.time() - 3600
            far._over.set()  # its thread touches nothing any more
            far._thread.join()
            os.utime(tmp_path / f"{far.name}.alive", (old, old))
            assert near.take("a") == "mine"
