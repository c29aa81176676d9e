"""Fine-tune VideoMamba on images or videos with labels, test it on many views; or a video-text model for retrieval.

accelerate launch pretrain/finetune.py --task k400 --data data/k400 --init videomamba_tiny.in1k_res224 --model tiny
accelerate launch pretrain/finetune.py --task lvu-relation --data data/lvu --init k400_f32.pth --model tiny --resume latest
accelerate launch pretrain/finetune.py --task imagenet --data data/imagenet --model middle --teacher runs/small
accelerate launch pretrain/finetune.py --task ssv2 --data data/ssv2 --dry-run               # recipe, files, a few steps
accelerate launch pretrain/finetune.py --task retrieval --data msrvtt --init runs/5M        # then zero-shot evaluation
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there (see run.py).
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from vtr.threads import wait_asleep

    wait_asleep()  # before torch is loaded

from vtr.errors import reports_errors
from vtr.pretrain.recognition.settings import TuneSettings
from vtr.settings import parsed


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Parse the flags, fine-tune, return the exit code."""
    return start(parsed(TuneSettings, argv, header=__doc__ or ""))


def start(settings: TuneSettings) -> int:
    """Fine-tune as one rank; returns the exit code."""
    # Only now what takes seconds to load: --help and a wrong flag are answered before.
    from vtr.pretrain.guard import guarded

    if settings.task == "retrieval":
        from vtr.pretrain.retrieval import tune_retrieval

        return guarded(lambda watch: tune_retrieval(settings, watch))
    from vtr.pretrain.recognition.tune import tune

    return guarded(lambda watch: tune(settings, watch))


if __name__ == "__main__":
    sys.exit(main())
