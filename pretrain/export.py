"""Models out of runs: of a checkpoint, finished or not, and what another run starts from."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import vtr.models.load
from vtr.data.text import Tokenizer
from vtr.errors import UsageError, VtrError
from vtr.models.base import load_strictly
from vtr.models.video_text import ModelConfig, VideoTextModel
from vtr.pretrain.state import find_checkpoint, read_checkpoint


def checkpoint_model(run: Path, which: str = "latest") -> tuple[VideoTextModel, int]:
    """The `VideoTextModel` of a checkpoint, and the steps it had done.

    Args:
        run: Run folder; it holds the tokenizer.
        which: `latest`, `best` or a checkpoint file.

    Raises:
        VtrError: There is no such run or checkpoint, or it is damaged.
    """
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


def initial_weights(origin: str) -> dict[str, Tensor]:
    """Weights to start from: a run, a model folder, a hub id, or a checkpoint file inside its run.

    Raises:
        VtrError: It is none of them.
    """
    path = Path(origin)
    if path.suffix == ".pt":
        return checkpoint_model(path.resolve().parent.parent, str(path))[0].state_dict()
    return vtr.models.load.load(origin, "cpu").state_dict()


def initial_model(origin: str) -> VideoTextModel:
    """The model of --init itself, with its sizes and tokenizer: what no --model asks for otherwise.

    Raises:
        UsageError: It is no video-text model.
    """
    path = Path(origin)
    if path.suffix == ".pt":
        return checkpoint_model(path.resolve().parent.parent, str(path))[0]
    model = vtr.models.load.load(origin, "cpu")
    if not isinstance(model, VideoTextModel):
        raise UsageError(f"--init {origin}: not a video-text model; pretrain/finetune.py trains recognition models")
    return model
