"""Blocks' weights, gradients and optimiser state shared among the ranks (FSDP2), and whole again for checkpoints.

What is outside the blocks (embeddings, heads, projections: a tenth of a model) stays on every rank. A checkpoint holds
whole tensors: a run may resume with sharding or without it, on any number of ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vtr.models.video_text import VideoTextModel
from vtr.pretrain.state import State
from vtr.ranks import world_size

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

V = TypeVar("V")


def shard_blocks(model: VideoTextModel, device: torch.device, *, reshard: bool = True) -> None:
    """Share the parameters of every block of the video encoder and BERT layer among all ranks, in place.

    Args:
        model: A `VideoTextModel` on its device, equal on all ranks.
        reshard: Free a block's gathered weights between its forward and backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in (*model.vision_encoder.blocks, *model.text_encoder.encoder.layer):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)


def is_sharded(x: object) -> TypeGuard[DTensor]:
    """Whether a tensor is a share of one that all ranks hold together."""
    # Half a second to load; before that nothing is shared.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(x, tensors.DTensor)


def any_sharded(model: nn.Module) -> bool:
    """Whether a model's blocks are shared."""
    return any(is_sharded(p) for p in model.parameters())


def whole(value: V) -> V | Tensor:
    """A shared tensor as a whole one; all ranks call this together. Anything else as it is."""
    return value.full_tensor() if is_sharded(value) else value


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with whole tensors, on all ranks."""
    return {name: whole(value.detach()) for name, value in model.state_dict().items()}


def _like(value: V, pattern: object) -> V | Tensor:
    """A whole tensor as this rank's share, where `pattern` is one and of the same shape."""
    if not (is_sharded(pattern) and isinstance(value, Tensor) and value.shape == pattern.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a model, shared or not."""
    own = model.state_dict()
    model.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order of the numbers that its state dict uses."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def whole_optimizer(optimizer: torch.optim.Optimizer) -> State:
    """The optimiser's state with whole tensors, on all ranks."""
    found = optimizer.state_dict()
    state = {i: {k: whole(v) for k, v in values.items()} for i, values in found["state"].items()}
    return {**found, "state": state}


def load_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Load what `whole_optimizer` returned into the optimiser of a model, shared or not."""
    parameters = _parameters(optimizer)
    shares = {i: {k: _like(v, parameters[i]) for k, v in values.items()} for i, values in state["state"].items()}
    optimizer.load_state_dict({**state, "state": shares})


_BUCKET = 16 << 20  # elements of one all-reduce


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of all ranks, where each holds its rows' share of the global batch's gradient."""
    if world_size() == 1:
        return
    whole_ones: list[Tensor | None] = []
    for gradient in [p.grad for p in parameters if p.grad is not None]:
        if is_sharded(gradient):
            gradient.mul_(world_size())  # FSDP has taken the mean over the ranks
        else:
            whole_ones.append(gradient)
    bucket: list[Tensor] = []
    size = 0
    for last in [*whole_ones, None]:
        if bucket and (last is None or size + last.numel() > _BUCKET or last.dtype != bucket[0].dtype):
            flat = torch.cat([g.flatten() for g in bucket])
            dist.all_reduce(flat)
            for g, part in zip(bucket, flat.split([g.numel() for g in bucket])):
                g.copy_(part.view_as(g))
            bucket, size = [], 0
        if last is not None:
            bucket.append(last)
            size += last.numel()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm over the whole model is `limit` at most; the norm before."""
    parameters = list(parameters)
    if not any(is_sharded(p) for p in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    shares = [g.to_local() for g in gradients if is_sharded(g)]
    total = sum((g.float().square().sum() for g in shares), torch.zeros((), device=gradients[0].device))
    dist.all_reduce(total)
    norm = (total + sum(g.float().square().sum() for g in gradients if not is_sharded(g))).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
    for g in (*shares, *(g for g in gradients if not is_sharded(g))):
        g.mul_(scale)
    return norm


def portable(model: VideoTextModel) -> VideoTextModel:
    """The model itself, or a whole copy of a shared one on the CPU; all ranks call this together."""
    if not any_sharded(model):
        return model
    state = {name: value.cpu() for name, value in whole_state(model).items()}
    copy = VideoTextModel(model.config, model.tokenizer)
    copy.load_state_dict(state)
    return copy.eval()
