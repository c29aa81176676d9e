"""Residual add and RMSNorm as one differentiable operator: one kernel on a GPU, plain torch elsewhere.

Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from vtr.files import package_file
from vtr.kernels import nvrtc
from vtr.kernels.backends import BackendRow, Chooser
from vtr.kernels.build import BuildError
from vtr.kernels.nvrtc import Launch
from vtr.kernels.operators import operator

__all__ = ["add_norm", "add_norm_info"]

MAX_WIDTH = 1024  # a warp holds a row in registers
UNIT = nvrtc.Unit(
    source=package_file("vtr.kernels", "add_norm", "add_norm.cu"),
    threads={"add_norm_forward": 128, "add_norm_backward": 128, "add_norm_weight": 256},
)
_chooser = Chooser("add_norm", ("cuda", "torch"))


class Job(ctypes.Structure):
    """job_t of add_norm.cu."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "D", "L")),
        *((name, ctypes.c_void_p) for name in ("residual", "hidden", "scale", "weight", "x", "rstd", "out")),
        *((name, ctypes.c_void_p) for name in ("g_out", "g_x", "d_residual", "d_hidden", "parts", "d_weight")),
        ("blocks", ctypes.c_int64),
        ("eps", ctypes.c_double),
    ]


def add_norm(
    residual: Tensor,
    hidden: Tensor | None,
    weight: Tensor,
    *,
    scale: Tensor | None = None,
    eps: float = 1e-5,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """x = residual + scale hidden and its RMSNorm, x weight / sqrt(mean(x^2) + eps).

    Args:
        residual: (B, L, D) float32, the residual stream.
        hidden: (B, L, D) what a block adds to it, or None.
        weight: (D,).
        scale: (B,) of hidden (stochastic depth: 0 or 1 / (1 - rate)); None is 1.
        eps: Added to the mean square.
        dtype: Of the normed output; statistics are float32.

    Returns:
        The normed x in `dtype`, and x in float32 (the residual itself without `hidden`).
    """
    if _fused(residual, hidden, weight, dtype):
        out, x, _ = _forward_op(residual, hidden, weight, scale, eps, dtype)
        return out, residual if hidden is None else x
    return _torch(residual, hidden, weight, scale, eps, dtype)


def _torch(
    residual: Tensor, hidden: Tensor | None, weight: Tensor, scale: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x = residual
    if hidden is not None:
        if scale is not None:
            hidden = hidden * scale.to(hidden.dtype)[:, None, None]
        x = x + hidden.float()
    if x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # torch's own is made of six passes with three temporary tensors of the size of x
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        return torch.mul(x, square.div_(x.shape[-1]).add_(eps).rsqrt_()).mul_(weight.to(x.dtype)).to(dtype), x
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps).to(dtype), x


def _has_cuda(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device here"
    try:
        nvrtc.kernels(UNIT, device, {"STORAGE": nvrtc.STORAGE[dtype]})
    except BuildError as error:
        return False, str(error)
    return True, f"compiled for {torch.cuda.get_device_name(device)}"


# A compiled graph would trace into the cache of loaded kernels and its lock. This mark is all that
# torch.compiler.assume_constant_result makes, but its call loads the compiler: 1.4 s of each start of `vtr`.
vars(_has_cuda)["_dynamo_marked_constant"] = True


def add_norm_info() -> list[BackendRow]:
    """Both ways, with the reason it is or isn't there and what it is chosen for."""
    there, reason = _has_cuda(torch.device("cuda"), torch.float32)
    taken = there and _chooser.forced() != "torch"
    widths = f"float32 streams on the GPU, widths to {MAX_WIDTH} in fours{_chooser.by('cuda')}"
    return [
        BackendRow(name="cuda", available=there, reason=reason, chosen_for=widths if taken else ""),
        BackendRow(
            name="torch",
            available=True,
            reason="plain torch",
            chosen_for="all else" if taken else f"everything{_chooser.by('torch')}",
        ),
    ]


def _fused(residual: Tensor, hidden: Tensor | None, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel takes these; says so once where it should but cannot be had."""
    if residual.device.type != "cuda" or residual.dtype != torch.float32 or dtype not in nvrtc.STORAGE:
        return False
    width = residual.shape[-1]
    if width % 4 or width > MAX_WIDTH or residual.numel() == 0 or (hidden is not None and hidden.dtype != dtype):
        return False
    forced = _chooser.forced()
    if forced == "torch":
        return False
    there, reason = _has_cuda(residual.device, dtype)
    if not there and forced == "cuda":
        raise _chooser.missing(forced, reason)
    if not there and torch.cuda.is_available():
        _chooser.plain(reason)
    return there


def _launch(tensor: Tensor, dtype: torch.dtype) -> Launch:
    return nvrtc.launcher(UNIT, tensor.device, {"STORAGE": nvrtc.STORAGE[dtype]})


def forward(
    residual: Tensor,
    hidden: Tensor | None,
    weight: Tensor,
    scale: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel: out, x (empty without hidden) and the rows' 1 / root mean square.

    Args:
        residual: As for `add_norm`.
        hidden: As for `add_norm`.
        weight: As for `add_norm`.
        scale: As for `add_norm`.
        eps: As for `add_norm`.
        dtype: As for `add_norm`.
        launch: Runs a kernel; the GPU's own unless given.
    """
    with torch.cuda.device_of(residual):
        residual, width = residual.detach().contiguous(), residual.shape[-1]
        rows = residual.numel() // width
        out = torch.empty_like(residual, dtype=dtype)
        rstd = residual.new_empty(rows)
        job = Job(rows=rows, D=width, L=residual.shape[1], eps=eps)
        keep = [weight.detach().float().contiguous()]
        job.residual, job.weight, job.out, job.rstd = (t.data_ptr() for t in (residual, keep[0], out, rstd))
        x = torch.empty_like(residual) if hidden is not None else residual.new_empty(0)
        if hidden is not None:
            keep.append(hidden.detach().contiguous())
            job.hidden, job.x = keep[-1].data_ptr(), x.data_ptr()
            if scale is not None:
                keep.append(scale.detach().float().contiguous())
                job.scale = keep[-1].data_ptr()
        (launch or _launch(residual, dtype))("add_norm_forward", (-(-rows // 4), 1), job)
        return out, x, rstd


def backward(
    g_out: Tensor,
    g_x: Tensor | None,
    x: Tensor,
    rstd: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    with_hidden: bool,
    launch: Launch | None = None,
    blocks: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of residual, hidden (empty unless `with_hidden`) and weight; two calls are bitwise equal.

    Args:
        g_out: (B, L, D) of the normed output, in its dtype.
        g_x: (B, L, D) float32 of x, or None.
        x: (B, L, D) that was normed.
        rstd: (B L,) from the forward.
        weight: (D,).
        scale: (B,) or None.
        with_hidden: Whether the forward added something.
        launch: As for `forward`.
        blocks: Of the grid; chosen for the GPU unless given.
    """
    with torch.cuda.device_of(x):
        width = x.shape[-1]
        rows = x.numel() // width
        g_out, x = g_out.contiguous(), x.contiguous()
        blocks = min(-(-rows // 4), blocks or 8 * nvrtc.multiprocessors(nvrtc.index_of(x.device)))
        d_residual = torch.empty_like(x)
        d_hidden = torch.empty_like(g_out) if with_hidden else g_out.new_empty(0)
        parts, d_weight = x.new_empty(blocks, width), x.new_empty(width)
        job = Job(rows=rows, D=width, L=x.shape[1], blocks=blocks)
        keep = [weight.detach().float().contiguous()]
        job.residual, job.rstd, job.weight = x.data_ptr(), rstd.data_ptr(), keep[0].data_ptr()
        job.g_out, job.d_residual = g_out.data_ptr(), d_residual.data_ptr()
        job.parts, job.d_weight = parts.data_ptr(), d_weight.data_ptr()
        if g_x is not None:
            keep.append(g_x.float().contiguous())
            job.g_x = keep[-1].data_ptr()
        if with_hidden:
            job.d_hidden = d_hidden.data_ptr()
        if scale is not None:
            keep.append(scale.detach().float().contiguous())
            job.scale = keep[-1].data_ptr()
        launch = launch or _launch(x, g_out.dtype)
        launch("add_norm_backward", (blocks, 1), job)
        launch("add_norm_weight", (-(-width // 32), 1), job)
        return d_residual, d_hidden, d_weight.to(weight.dtype)


def _forward_fake(residual, hidden, weight, scale, eps, dtype):
    x = torch.empty_like(residual) if hidden is not None else residual.new_empty(0)
    rows = residual.shape[0] * residual.shape[1]
    return torch.empty_like(residual, dtype=dtype), x, residual.new_empty(rows)


def _backward_fake(g_out, g_x, x, rstd, weight, scale, with_hidden):
    d_hidden = torch.empty_like(g_out) if with_hidden else g_out.new_empty(0)
    return torch.empty_like(x), d_hidden, torch.empty_like(weight)


def _setup_context(ctx, inputs, output) -> None:
    residual, hidden, weight, scale, _, ctx.out_dtype = inputs
    _, x, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.with_hidden = hidden is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if ctx.with_hidden else residual, rstd, weight, scale)


def _autograd(ctx, g_out, g_x, _):
    x, rstd, weight, scale = ctx.saved_tensors
    if g_out is None:  # only x was used: the sum's gradient goes to both
        if g_x is None:
            return None, None, None, None, None, None
        d_hidden = g_x if scale is None else g_x * scale[:, None, None]
        return g_x, d_hidden.to(ctx.out_dtype) if ctx.with_hidden else None, None, None, None, None
    d_residual, d_hidden, d_weight = _backward_op(g_out, g_x, x, rstd, weight, scale, ctx.with_hidden)
    return d_residual, d_hidden if ctx.with_hidden else None, d_weight, None, None, None


_forward_op = operator(
    "add_norm",
    "(Tensor residual, Tensor? hidden, Tensor weight, Tensor? scale, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    lambda residual, hidden, weight, scale, eps, dtype: forward(residual, hidden, weight, scale, eps, dtype),
    _forward_fake,
)
_backward_op = operator(
    "add_norm_backward",
    "(Tensor g_out, Tensor? g_x, Tensor x, Tensor rstd, Tensor weight, Tensor? scale, bool with_hidden)"
    " -> (Tensor, Tensor, Tensor)",
    lambda g_out, g_x, x, rstd, weight, scale, with_hidden: backward(g_out, g_x, x, rstd, weight, scale, with_hidden),
    _backward_fake,
)
torch.library.register_autograd("vtr::add_norm", _autograd, setup_context=_setup_context)
