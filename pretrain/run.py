"""Pretrain a video-text model: masked distillation, joint image+video, unmasked tuning, in this order.

accelerate launch pretrain/run.py --corpus demo                      # minutes on a laptop CPU
accelerate launch pretrain/run.py --corpus 5M --data-root /data      # CC3M + WebVid-2M, VideoMamba-M
torchrun --nproc_per_node 2 pretrain/run.py --corpus demo --steps 20 # two ranks on a CPU
accelerate launch pretrain/run.py --corpus 5M --resume latest        # continue where it stopped
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there, so that `vtr` is found un-installed
    # and nothing in this folder shadows an installed package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from vtr.threads import wait_asleep

    wait_asleep()  # before torch is loaded

from vtr.errors import VtrError, reports_errors
from vtr.pretrain.settings import RunSettings
from vtr.settings import parsed


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Parse the flags, train, return the exit code."""
    return start(parsed(RunSettings, argv, header=__doc__ or ""))


def start(settings: RunSettings) -> int:
    """Train as one rank; returns the exit code."""
    _look(settings)
    # Only now what takes seconds to load: --help and a wrong flag are answered before.
    from vtr.pretrain.dry_run import dry_run
    from vtr.pretrain.guard import guarded
    from vtr.pretrain.train import train

    return guarded(lambda watch: dry_run(settings, watch) if settings.dry_run else train(settings, watch))


def _look(settings: RunSettings) -> None:
    """Refuse own shards without captions before what takes seconds to load; of every corpus that is checked later too."""
    told = any(name in text for text in settings.set for name in ("vtc", "vtm", "mlm", "max_bad_fraction"))
    if settings.stage == "masked" or told or os.environ.get("RANK", "0") != "0":
        return
    from vtr.data.manifests import own_data, why_captionless

    title, shards = own_data(settings.corpus) or ("", [])
    why = why_captionless(title, shards)
    if why:
        raise VtrError(f"corpus {title}: {why}; without captions only the masked stage trains (--stage masked)")


if __name__ == "__main__":
    sys.exit(main())
