"""Linear layers that run at full speed on AMD's CPUs, too: oneDNN there, torch's own product everywhere else.

torch sends float32 products on a CPU to MKL, which takes its AVX2 code on CPUs that are not Intel's; oneDNN, which comes
with torch, takes AVX-512 wherever it is. `linear_info` says which one runs and why, `VTR_LINEAR` overrides the choice.

M rows, K features of the input, N of the output.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vtr.kernels.backends import BackendRow, Chooser

__all__ = ["Linear", "linear", "linear_info"]

_chooser = Chooser("linear", ("onednn", "torch"))
# Multiplications and additions of a product from which oneDNN is taken. Every new shape costs it 0.4 ms and 0.5 MiB (code
# is made for it; torch keeps that of 1024 shapes), where 16 MFLOP take MKL 0.18 ms and oneDNN 0.11: paid back by the sixth
# call. Row counts do vary (texts of other lengths, masks), so smaller products, with less to gain, are left to torch.
MIN_FLOPS = 16e6
# Rows that a gradient of the weight is summed over at once: what is copied for it stays in the cache.
ROWS = 1024


def _vendor() -> str:
    """Of the CPU, as it calls itself: GenuineIntel, AuthenticAMD, …; empty where the system doesn't say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return next((name for name in ("GenuineIntel", "AuthenticAMD") if name in platform.processor()), "")


def _operator() -> Callable[..., Tensor] | None:
    """oneDNN's linear on plain tensors, which torch's compiler uses; None in a torch that doesn't have it."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@functools.cache
def _has_onednn() -> tuple[bool, str]:
    """Whether the operator can be called on this machine, and why not."""
    if not torch.backends.mkldnn.is_available():
        return False, "this torch was built without oneDNN"
    if _operator() is None:
        return False, f"torch {torch.__version__} has no operator mkldnn::_linear_pointwise"
    if (capability := torch.backends.cpu.get_cpu_capability()) != "AVX512":
        return False, f"no AVX-512 on this CPU ({capability})"
    return True, "AVX-512"


@functools.cache
def _helps() -> tuple[bool, str]:
    """Whether it is the faster one on this machine, and why (not)."""
    there, reason = _has_onednn()
    vendor = _vendor()
    if not there:
        return False, reason
    if not torch.backends.mkl.is_available():
        return False, "torch's own products don't go to MKL here"
    if vendor in ("", "GenuineIntel"):
        return False, f"MKL uses AVX-512 on {vendor}" if vendor else "the CPU's vendor is unknown"
    return True, f"AVX-512, which MKL does not use on {vendor}"


def linear_info() -> list[BackendRow]:
    """Both ways, with the reason it is or isn't there and what it is chosen for.

    Raises:
        UsageError: VTR_LINEAR names none of them, or one that is not available.
    """
    taken = _onednn_wanted()
    there, reason = _has_onednn()
    if there:
        reason = _helps()[1] if torch.backends.mkldnn.enabled else "switched off: torch.backends.mkldnn.enabled"
    large = f"float32 on the CPU from {MIN_FLOPS / 1e6:g} MFLOP a product{_chooser.by('onednn')}"
    rest = "all else" if taken else f"everything{_chooser.by('torch')}"
    return [
        BackendRow(name="onednn", available=there, reason=reason, chosen_for=large if taken else ""),
        BackendRow(name="torch", available=True, reason="torch.nn.functional.linear", chosen_for=rest),
    ]


def _onednn_wanted() -> bool:
    forced = _chooser.forced()
    if forced == "onednn" and not _has_onednn()[0]:
        raise _chooser.missing(forced, _has_onednn()[1])
    return forced != "torch" and (forced == "onednn" or _helps()[0]) and bool(torch.backends.mkldnn.enabled)


def _plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary float32 tensors on the CPU: no subclass (fake, distributed, …), none quantised or sparse."""
    return all(
        t is None
        or (
            type(t) in (Tensor, nn.Parameter)
            and t.dtype == torch.float32
            and t.device.type == "cpu"
            and t.layout == torch.strided
        )
        for t in tensors
    )


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether it is worth it, and of shapes that need no message."""
    if x.is_nested or x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    return 2 * x.numel() * weight.shape[0] >= max(1, MIN_FLOPS)


def _observed() -> bool:
    """Whether someone other than autograd follows the calls: autocast, function transforms, forward mode, modes."""
    return (
        torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, as `torch.nn.functional.linear`.

    Args:
        x: (…, K).
        weight: (N, K).
        bias: (N,) or None.

    Returns:
        (…, N). Through oneDNN where that is faster: float32 on an AMD CPU with AVX-512, products of a certain size, not
        under autocast, torch.compile and the like. There it is differentiable once; a second time is an error.

    Raises:
        UsageError: VTR_LINEAR names no backend, or one that is not available.
    """
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or not _fits(x, weight, bias)  # first: where products are small, every microsecond counts
        or not _onednn_wanted()
        or not _plain(x, weight, bias)
        or _observed()
    ):
        return F.linear(x, weight, bias)
    needs = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if needs and torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _forward(x, weight, bias)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias through oneDNN; a transposed weight is read as it is."""
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    operator = _operator()
    assert operator is not None  # by `_has_onednn`
    return operator(x.contiguous(), weight, bias, "none", [], "")


def _sum_of_products(g: Tensor, x: Tensor) -> Tensor:
    """g^T x of (M, N) and (M, K), a slice of rows at a time, always the same and in the same order."""
    total: Tensor | None = None
    for rows, others in zip(g.split(ROWS), x.split(ROWS)):
        part = _forward(rows.t(), others.t())
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


class _Context(Protocol):
    """What autograd hands from forward to backward."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Linear(torch.autograd.Function):
    """The product and its gradients, all through oneDNN."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (rows, k), n = (x.numel() // x.shape[-1], x.shape[-1]), weight.shape[0]
        d_x = d_weight = d_bias = None
        grad = grad.contiguous()
        flat = grad.view(rows, n)
        if ctx.needs_input_grad[0]:
            d_x = _forward(grad, weight.t())
        if ctx.needs_input_grad[1]:
            # The first operand is transposed by torch, slowly: this one or the other way round, whichever copies less.
            inputs = x.reshape(rows, k)
            if k * (rows + n) < rows * n:
                d_weight = _sum_of_products(inputs, flat).t().contiguous()
            else:
                d_weight = _sum_of_products(flat, inputs)
        if ctx.needs_input_grad[2]:
            d_bias = flat.sum(0)
        return d_x, d_weight, d_bias


class Linear(nn.Linear):
    """torch.nn.Linear through `linear`: same parameters, names and initialisation."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) -> (…, N)."""
        return linear(x, self.weight, self.bias)
