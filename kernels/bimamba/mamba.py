"""bimamba through the package mamba-ssm, for those who have it: two passes over the sequence, one of them flipped.

Shapes: B batch, L tokens, E inner width, N state, R rank of delta, K conv taps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vtr.errors import UsageError

_Function = Callable[..., Tensor]


@lru_cache(maxsize=1)
def _package() -> tuple[_Function | None, _Function | None, str]:
    """mamba-ssm's selective scan, causal-conv1d's convolution (or None), and why there is no scan."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # a build for another torch fails with ImportError, OSError or a missing symbol
        return None, None, f"mamba-ssm cannot be imported ({type(error).__name__}: {str(error).splitlines()[0]})"
    try:
        from causal_conv1d import causal_conv1d_fn
    except Exception:  # optional, as it is for mamba-ssm itself
        causal_conv1d_fn = None
    return selective_scan_fn, causal_conv1d_fn, ""


def available() -> tuple[bool, str]:
    """Whether mamba-ssm can be used here, and how or why not."""
    scan, conv, reason = _package()
    if scan is None:
        return False, reason
    if not torch.cuda.is_available():
        return False, "mamba-ssm is here, but torch sees no CUDA device"
    return True, "mamba-ssm" + (" and causal-conv1d" if conv is not None else ", convolution by torch")


def bimamba(xz: Tensor, *params: Tensor) -> Tensor:
    """`vtr.kernels.bimamba.bimamba` by mamba-ssm's kernels, differentiable.

    Args:
        xz: (B, L, 2E), any dtype those kernels take.
        *params: The seven tensors of the forward direction, then the seven of the reversed one.

    Returns:
        (B, L, E) in the dtype of `xz`.
    """
    scan, conv, reason = _package()
    if scan is None:
        raise UsageError(reason)
    with torch.autocast(xz.device.type, enabled=False):
        x, z = xz.transpose(1, 2).chunk(2, dim=1)  # (B, E, L)
        outs = []
        for reverse in (False, True):
            w, wb, x_proj, dt_proj, dt_bias, a_log, d = params[7 * reverse : 7 * reverse + 7]
            n, rank = a_log.shape[1], dt_proj.shape[1]
            u = (x.flip(-1) if reverse else x).contiguous()
            if conv is not None and w.shape[1] in (2, 3, 4):
                u = conv(u, w.to(u.dtype), wb.to(u.dtype), activation="silu")
            else:
                u = F.conv1d(
                    F.pad(u, (w.shape[1] - 1, 0)), w.to(u.dtype).unsqueeze(1), wb.to(u.dtype), groups=w.shape[0]
                )
                u = F.silu(u)
            low, b, c = F.linear(u.transpose(1, 2), x_proj.to(u.dtype)).split([rank, n, n], dim=-1)
            delta = F.linear(low, dt_proj.to(u.dtype)).transpose(1, 2)
            y = scan(
                u,
                delta,
                -torch.exp(a_log.float()),
                b.transpose(1, 2).contiguous(),
                c.transpose(1, 2).contiguous(),
                d.float(),
                z=(z.flip(-1) if reverse else z).contiguous(),
                delta_bias=dt_bias.float(),
                delta_softplus=True,
            )
            outs.append(y.flip(-1) if reverse else y)
        return (outs[0] + outs[1]).transpose(1, 2)
