"""bimamba: conv, bidirectional selective scan and gate of a VideoMamba block as one differentiable operator.

The operator is `torch.ops.vtr.bimamba`; which code computes it is chosen per call: C on the CPU and CUDA on the GPU in
float32 and below, torch otherwise. `backend_info` says what is there and why, `use_backend` and `VTR_BIMAMBA` override the choice.
Shapes: B batch, L tokens, E inner width, N state, R rank of delta, K conv taps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from vtr.kernels import nvrtc
from vtr.kernels.backends import BackendRow, Chooser
from vtr.kernels.bimamba import c, cuda, eager, mamba
from vtr.kernels.build import BuildError
from vtr.kernels.operators import operator

__all__ = ["BackendRow", "backend_info", "bimamba", "use_backend"]

_chooser = Chooser("bimamba", ("c", "cuda", "mamba_ssm", "eager"))
_DEVICES = {"c": "the CPU", "cuda": "the GPU", "mamba_ssm": "the GPU"}


def _has_c() -> tuple[bool, str]:
    try:
        _, isa = c.library()
    except BuildError as error:
        return False, str(error)
    return True, f"compiled for {isa}, {torch.get_num_threads()} threads"


def _has_cuda() -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device here"
    try:
        nvrtc.kernels(cuda.UNIT, torch.device("cuda"), {"STORAGE": 0, "TAPS": 4})
    except BuildError as error:
        return False, str(error)
    major, minor = torch.cuda.get_device_capability()
    return True, f"compiled for {torch.cuda.get_device_name()} (sm_{major}{minor})"


def backend_info() -> list[BackendRow]:
    """Every backend in the order of preference, with the reason it is or isn't there and what it is chosen for."""
    forced = _chooser.forced()
    there = {"c": _has_c(), "cuda": _has_cuda(), "mamba_ssm": mamba.available(), "eager": (True, "plain torch")}
    taken = {_DEVICES[name]: name for name in ("c", "cuda") if there[name][0]}
    if forced == "eager":
        taken = {}
    elif forced is not None:
        taken[_DEVICES[forced]] = forced
    chosen = {name: f"float32, bfloat16 and float16 on {device}{_chooser.by(name)}" for device, name in taken.items()}
    chosen["eager"] = "all else" if taken else f"everything{_chooser.by('eager')}"
    return [
        BackendRow(name=name, available=available, reason=reason, chosen_for=chosen.get(name, ""))
        for name, (available, reason) in there.items()
    ]


def use_backend(name: str) -> contextlib.AbstractContextManager[None]:
    """Within the block, compute bimamba by this backend, in every thread.

    Args:
        name: "c", "cuda", "mamba_ssm" or "eager". What the named one cannot compute (float64, tensors on another
            device) is computed as without it.

    Raises:
        UsageError: no such backend, or it is not available here (with the reason).
    """
    return _chooser.use(name, backend_info)


def _lean() -> bool:
    return torch.compiler.is_exporting() or os.environ.get("VTR_BIMAMBA_LEAN", "") not in ("", "0")


def _choose(tensors: Sequence[Tensor]) -> str:
    forced = _chooser.forced()
    device = tensors[0].device
    if forced == "eager" or eager.compute_dtype(*tensors) == torch.float64:
        return "eager"
    if device.type == "cpu":
        there, reason = _has_c()
        name = "c"
    elif device.type == "cuda" and forced == "mamba_ssm":
        there, reason = mamba.available()
        name = "mamba_ssm"
    elif device.type == "cuda" and torch.cuda.is_available() and forced != "c":
        there, reason, name = True, cuda.unsupported(tensors) or "", "cuda"
        if not reason:
            try:
                nvrtc.kernels(cuda.UNIT, device, cuda.defines(tensors))
            except BuildError as error:
                reason = str(error)
        there = not reason
    else:
        return "eager"
    if there:
        return name
    if forced == name:
        raise _chooser.missing(name, reason)
    return _chooser.plain(reason)


def _check(tensors: Sequence[Tensor]) -> None:
    xz, ways = tensors[0], (tensors[1:8], tensors[8:15])
    if xz.dim() != 3 or xz.shape[-1] % 2:
        raise ValueError(f"bimamba: xz must be (B, L, 2E), got {tuple(xz.shape)}")
    width = xz.shape[-1] // 2
    first = ways[0]
    if any(t.dim() != 2 for t in (first[0], first[3], first[5])):
        raise ValueError("bimamba: conv_weight, dt_proj and A_log must be (E, K), (E, R), (E, N)")
    taps, rank, n = first[0].shape[1], first[3].shape[1], first[5].shape[1]
    want = [(width, taps), (width,), (rank + 2 * n, width), (width, rank), (width,), (width, n), (width,)]
    names = ("conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D")
    for way, suffix in zip(ways, ("", "_b")):
        for tensor, name, shape in zip(way, names, want):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"bimamba: {name}{suffix} must be {shape} for E={width}, got {tuple(tensor.shape)}")
            if tensor.device != xz.device:
                raise ValueError(f"bimamba: {name}{suffix} is on {tensor.device}, xz on {xz.device}")


_SEVEN = "Tensor conv_weight{0}, Tensor conv_bias{0}, Tensor x_proj{0}, Tensor dt_proj{0}, Tensor dt_bias{0}, Tensor A_log{0}, Tensor D{0}"
_ARGUMENTS = f"Tensor xz, {_SEVEN.format('')}, {_SEVEN.format('_b')}"


def _forward(*tensors: Tensor) -> Tensor:
    return _forward_keep(*tensors, keep=False)[0]


def _forward_keep(*tensors: Tensor, keep: bool = True) -> tuple[Tensor, Tensor]:
    _check(tensors)
    nothing = tensors[0].new_empty(0, dtype=torch.float32)
    if tensors[0].numel() == 0:
        return tensors[0].new_zeros(*tensors[0].shape[:2], tensors[0].shape[2] // 2), nothing
    backend = _choose(tensors)
    if backend == "c":
        return c.forward(tensors, keep=keep)
    if backend == "cuda":
        return cuda.forward(tensors, keep=keep)
    with torch.no_grad():
        return _differentiable(backend)(*tensors), nothing


def _differentiable(backend: str) -> Callable[..., Tensor]:
    return mamba.bimamba if backend == "mamba_ssm" else eager.bimamba


def _autograd_backward(backend: str, grad: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = _differentiable(backend)(*leaves)
        grads = torch.autograd.grad(y, leaves, grad)
    return tuple(g.contiguous() for g in grads)


def _backward(grad: Tensor, kept: Tensor, *tensors: Tensor) -> list[Tensor]:
    if tensors[0].numel() == 0:
        return [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in tensors]
    backend = _choose(tensors)
    if backend == "c":
        return list(c.backward(grad, kept, tensors))
    if backend == "cuda":
        return list(cuda.backward(grad, kept, tensors))
    # Inside an operator autograd is switched off for this thread, so the recomputation runs in one of its own.
    stream = torch.cuda.current_stream(grad.device) if grad.is_cuda else None

    def work() -> tuple[Tensor, ...]:
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            return _autograd_backward(backend, grad, tensors)

    with ThreadPoolExecutor(1) as pool:
        return list(pool.submit(work).result())


def _forward_fake(*tensors: Tensor) -> Tensor:
    _check(tensors)
    xz = tensors[0]
    return xz.new_empty(xz.shape[0], xz.shape[1], tensors[1].shape[0])


def _keep_fake(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    sizes = {"c": c.kept_numel, "cuda": cuda.kept_numel}.get(_choose(tensors))
    kept = sizes(tensors) if sizes else 0
    return _forward_fake(*tensors), tensors[0].new_empty(kept, dtype=torch.float32)


def _backward_fake(grad: Tensor, kept: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0].new_empty(0, dtype=torch.float32), *inputs)


def _setup_context_keep(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs)


def _autograd(ctx, grad, _=None):
    return tuple(_backward_op(grad, *ctx.saved_tensors))


_forward_op = operator("bimamba", f"({_ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_keep_op = operator("bimamba_keep", f"({_ARGUMENTS}) -> (Tensor, Tensor)", _forward_keep, _keep_fake)
_backward_op = operator(
    "bimamba_backward", f"(Tensor grad, Tensor kept, {_ARGUMENTS}) -> Tensor[]", _backward, _backward_fake
)
torch.library.register_autograd("vtr::bimamba", _autograd, setup_context=_setup_context)
torch.library.register_autograd("vtr::bimamba_keep", _autograd, setup_context=_setup_context_keep)


def bimamba(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    conv_weight_b: Tensor,
    conv_bias_b: Tensor,
    x_proj_b: Tensor,
    dt_proj_b: Tensor,
    dt_bias_b: Tensor,
    A_log_b: Tensor,
    D_b: Tensor,
) -> Tensor:
    """The inside of a bidirectional Mamba block (VideoMamba, "bimamba v2"), between in_proj and out_proj.

    Per direction: u = SiLU(causal depthwise conv(x)); low, B, C = split(x_proj u); delta = softplus(dt_proj low +
    dt_bias); h = exp(delta A) h + delta B u, A = -exp(A_log); out = C h + D u. The reversed direction sees the tokens in
    reverse order with its own parameters; the two outputs are added in place and multiplied by SiLU(z).

    Args:
        xz: (B, L, 2E), u | z.
        conv_weight: (E, K), tap K-1 is the token itself.
        conv_bias: (E,).
        x_proj: (R + 2N, E), rows delta | B | C.
        dt_proj: (E, R).
        dt_bias: (E,).
        A_log: (E, N).
        D: (E,).
        conv_weight_b: As above, for the reversed direction; so are the rest.
        conv_bias_b: (E,).
        x_proj_b: (R + 2N, E).
        dt_proj_b: (E, R).
        dt_bias_b: (E,).
        A_log_b: (E, N).
        D_b: (E,).

    Returns:
        (B, L, E) in the dtype of xz; computed in float64 where any argument is float64, else in float32, also under
        autocast. Differentiable once in every argument. Where a gradient will be asked for, the kernels keep the states
        at tile ends for it, on the CPU under twice the memory of the output; `VTR_BIMAMBA_LEAN=1`, or an activation checkpoint
        around the call, has them computed again instead.

    Raises:
        ValueError: shapes that do not fit together, tensors on several devices.
    """
    forward = (conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A_log, D)
    reverse = (conv_weight_b, conv_bias_b, x_proj_b, dt_proj_b, dt_bias_b, A_log_b, D_b)
    if not _lean() and torch.is_grad_enabled() and any(t.requires_grad for t in (xz, *forward, *reverse)):
        return _keep_op(xz, *forward, *reverse)[0]
    return _forward_op(xz, *forward, *reverse)
