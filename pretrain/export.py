"""A model out of a run's checkpoint, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtr.errors import VtrError


def checkpoint_model(run: Path, which: str = "latest") -> tuple[Any, int]:
    """The `VideoTextModel` of a checkpoint, and the steps it had done.

    Args:
        run: Run folder; it holds the tokenizer.
        which: `latest`, `best` or a checkpoint file.

    Raises:
        VtrError: There is no such run or checkpoint, or it is damaged.
    """
    from vtr.data.text import Tokenizer
    from vtr.models.base import load_strictly
    from vtr.models.video_text import ModelConfig, VideoTextModel
    from vtr.pretrain.state import find_checkpoint, read_checkpoint

    path = find_checkpoint(run / "checkpoints", which)
    if path is None:
        raise VtrError(f"{run}: no checkpoint yet; expected a run folder that pretrain/run.py has saved to")
    state = read_checkpoint(path)
    tokenizer = run / "tokenizer.json"
    if not tokenizer.is_file():
        raise VtrError(f"{tokenizer} is missing; expected the run folder that {path.name} comes from")
    try:
        config, weights, step = state["identity"]["model"], state["model"], int(state["step"])
    except KeyError as error:
        raise VtrError(f"{path}: not a checkpoint of pretrain/run.py (no {error})") from None
    model = VideoTextModel(ModelConfig.from_dict(config), Tokenizer.load(tokenizer))
    load_strictly(model, weights, str(path))
    return model.eval(), step


def initial_weights(origin: str) -> dict[str, Any]:
    """Weights to start from: a run, a model folder, a hub id, or a checkpoint file inside its run.

    Raises:
        VtrError: It is none of them.
    """
    import vtr.models.load

    path = Path(origin)
    if path.suffix == ".pt":
        return checkpoint_model(path.resolve().parent.parent, str(path))[0].state_dict()
    return vtr.models.load.load(origin, "cpu").state_dict()
