"""How a rank of a training ends: every failure in one line, with its exit code, on all ranks together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from vtr.errors import VtrError
from vtr.pretrain.stop import Stopped
from vtr.pretrain.watch import Watch
from vtr.ranks import OtherRankFailed, report
from vtr.threads import launcher


def guarded(work: Callable[[Watch], object]) -> int:
    """Do the work of one rank under a watch; returns the exit code."""
    watch = Watch.of_environment()
    end_with_launcher()
    try:
        work(watch)
    except (Stopped, OtherRankFailed) as error:  # all ranks know
        watch.stop()
        if isinstance(error, Stopped) and watch.rank:
            return error.exit_code
        return report(error)
    except VtrError as error:
        watch.fail(str(error))
        return report(error)
    except KeyboardInterrupt:
        watch.fail("stopped by hand")
        if watch.rank == 0:
            print("vtr: stopped; --resume latest continues", file=sys.stderr)
        return 130
    except Exception as error:
        # A collective fails when another rank dies: what that one said, or that it is gone, is worth more than ours.
        cause = watch.cause(3.0) if watch.active else None
        if cause is None and watch.active and _lost_connection(error):
            gone = watch.gone(6.0)
            cause = f"rank {', '.join(map(str, gone))} is gone" if gone else None
        if cause is None:
            watch.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            raise
        watch.fail(cause)
        print(f"vtr: rank {watch.rank} stops: {cause}; --resume latest continues", file=sys.stderr)
        return 1
    finally:
        watch.stop()
    return 0


def end_with_launcher(seconds: float = 1.0) -> None:
    """Stop in order, as at SIGTERM, when the launcher that started this process is gone: nobody else would end it.

    Args:
        seconds: Between looks.
    """
    if launcher() is None:
        return
    first = os.getppid()

    def wait() -> None:
        while os.getppid() == first:
            time.sleep(seconds)
        print(f"note: rank {os.environ.get('RANK', '0')} stops: its launcher is gone", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def _lost_connection(error: Exception) -> bool:
    """Whether a collective failed because of another process."""
    text = str(error).lower()
    words = ("connection", "socket", "remote", "nccl", "gloo", "peer", "timed out")
    return isinstance(error, RuntimeError) and any(w in text for w in words)
