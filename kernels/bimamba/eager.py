"""bimamba in plain torch: the oracle of the tests, and the path for every device and dtype without a kernel.

Shapes: B batch, L tokens, E inner width, N state, R rank of delta, K conv taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32  # tokens per chunk; chunks run side by side, so a sequence costs CHUNK + L / CHUNK dependent steps


def _inputs(
    u: Tensor, conv_weight: Tensor, conv_bias: Tensor, x_proj: Tensor, dt_proj: Tensor, dt_bias: Tensor, n: int
):
    """Conv, SiLU and the projections of one direction: u, delta (B, L, E) and the rows B, C (B, L, N)."""
    width, taps = conv_weight.shape
    u = F.conv1d(F.pad(u.transpose(1, 2), (taps - 1, 0)), conv_weight.unsqueeze(1), conv_bias, groups=width)
    u = F.silu(u.transpose(1, 2))
    low, b, c = F.linear(u, x_proj).split([dt_proj.shape[1], n, n], dim=-1)
    return u, F.softplus(F.linear(low, dt_proj) + dt_bias), b, c


def scan(u: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, chunk: int = CHUNK) -> Tensor:
    """The recurrence h = exp(delta a) h + delta b u, y = sum over states of c h, over all chunks at once.

    Args:
        u: (B, L, E) inputs.
        delta: (B, L, E) steps, after bias and softplus.
        b: (B, L, N) input rows.
        c: (B, L, N) output rows.
        a: (E, N), negative.
        chunk: Tokens per chunk; changes rounding only.

    Returns:
        (B, L, E), without the D skip.
    """
    batch, length, width = u.shape
    chunk = min(chunk, length)
    short = -length % chunk
    # delta = 0 keeps the state as it is, so padded steps after the end change nothing.
    parts = [F.pad(v, (0, 0, 0, short)).unflatten(1, (-1, chunk)).unbind(2) for v in (u, delta, b, c)]
    h = u.new_zeros(())
    total = u.new_zeros(())
    ys, totals = [], []
    for ui, di, bi, ci in zip(*parts):  # (B, S, E or N), S chunks side by side
        h = torch.exp(di.unsqueeze(-1) * a) * h + (di * ui).unsqueeze(-1) * bi.unsqueeze(-2)
        ys.append(torch.matmul(h, ci.unsqueeze(-1)).squeeze(-1))
        total = total + di
        totals.append(total)
    # What a chunk inherits: exponents are sums of negative steps, so nothing is ever divided or overflows.
    if h.shape[1] > 1:
        state = u.new_zeros(batch, width, a.shape[1])
        states = []
        decay = torch.exp(total.unsqueeze(-1) * a)
        for end, keep in zip(h.unbind(1), decay.unbind(1)):
            states.append(state)
            state = keep * state + end
        start = torch.stack(states, 1)
        ys = [
            y + torch.matmul(torch.exp(t.unsqueeze(-1) * a) * start, ci.unsqueeze(-1)).squeeze(-1)
            for y, t, ci in zip(ys, totals, parts[3])
        ]
    return torch.stack(ys, 2).flatten(1, 2)[:, :length]


def scan_loop(u: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor) -> Tensor:
    """The same as `scan`, one token after the other, as the equations say it. Slow; tests and the bench use it."""
    h = u.new_zeros(u.shape[0], u.shape[2], a.shape[1])
    ys = []
    # unbind: indexing would make its backward fill a whole zero tensor per token
    for ui, di, bi, ci in zip(u.unbind(1), delta.unbind(1), b.unbind(1), c.unbind(1)):
        h = torch.exp(di.unsqueeze(-1) * a) * h + (di * ui).unsqueeze(-1) * bi.unsqueeze(-2)
        ys.append(torch.matmul(h, ci.unsqueeze(-1)).squeeze(-1))
    return torch.stack(ys, 1)


def bimamba(xz: Tensor, *params: Tensor, loop: bool = False) -> Tensor:
    """`vtr.kernels.bimamba.bimamba` in differentiable torch, in the common dtype of its arguments.

    Args:
        xz: (B, L, 2E).
        *params: The seven tensors of the forward direction, then the seven of the reversed one.
        loop: Token by token instead of in chunks.

    Returns:
        (B, L, E) in the dtype of `xz`.
    """
    dtype = compute_dtype(xz, *params)
    out_dtype = xz.dtype
    with torch.autocast(xz.device.type, enabled=False):
        x, z = xz.to(dtype).chunk(2, dim=-1)
        y = x.new_zeros(())
        for reverse in (False, True):
            w, wb, x_proj, dt_proj, dt_bias, a_log, d = (p.to(dtype) for p in params[7 * reverse : 7 * reverse + 7])
            u, delta, b, c = _inputs(x.flip(1) if reverse else x, w, wb, x_proj, dt_proj, dt_bias, a_log.shape[1])
            out = (scan_loop if loop else scan)(u, delta, b, c, -torch.exp(a_log)) + d * u
            y = y + (out.flip(1) if reverse else out)
        return (y * F.silu(z)).to(out_dtype)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where any argument is, else float32: the recurrence never runs in 16 bits."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
