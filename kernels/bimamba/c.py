"""bimamba on the CPU through scan.c: projections by torch, conv and scan by the compiled kernels.

Shapes: B batch, L tokens, E inner width, N state, R rank of delta, K conv taps.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtr.kernels.bimamba.sizes import Sizes
from vtr.kernels.build import BuildError, library_path

STATES = 16  # states per pass of the kernels; others are padded with zeros
TASKS = 8  # work items that the backward is cut into at least; fixed, because dB and dC are summed in this grouping

TURNS_FROM = 2**23  # elements of u in both directions; for fewer, the memory is no matter and the turns cost time

_POINTERS = ctypes.c_void_p * 2


class _Job(ctypes.Structure):
    """job_t of scan.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "L", "E", "N", "K", "row", "groups")),
        ("xz", ctypes.c_void_p),
        *((name, _POINTERS) for name in ("conv_w", "conv_b", "u", "dt", "Bm", "Cm", "A", "D", "bias")),
        *((name, ctypes.c_void_p) for name in ("y", "ys")),
        ("states", _POINTERS),
        *((name, ctypes.c_void_p) for name in ("gy", "dxz")),
        *((name, _POINTERS) for name in ("du", "ddt", "dbc", "dA", "dD", "dbias", "dconv_w", "dconv_b")),
        *((name, ctypes.c_int64) for name in ("first", "last", "next")),
    ]


_lock = threading.Lock()
_library: tuple[ctypes.CDLL, str] | None = None
_failure: str | None = None
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def library() -> tuple[ctypes.CDLL, str]:
    """The loaded kernels and their ISA variant; raises BuildError where they can't be had (tried once)."""
    global _library, _failure
    with _lock:
        if _library is None and _failure is None:
            try:
                path, name = library_path()
                loaded = ctypes.CDLL(str(path))
                for function in (loaded.bimamba_job_size, loaded.bimamba_tile, loaded.bimamba_lanes):
                    function.restype = ctypes.c_int64
                if loaded.bimamba_job_size() != ctypes.sizeof(_Job):
                    raise BuildError("scan.c and c.py disagree about the job's layout")
                _library = (loaded, name)
            except (BuildError, OSError) as error:
                _failure = str(error)
        if _library is None:
            raise BuildError(_failure)
        return _library


def _after_fork() -> None:
    # the threads of a pool don't survive a fork, and a lock may have been held: start anew in the child
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            # an outgrown pool ends by itself once its last job is done
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="bimamba"), count
        return _pool


def _run(name: str, job: _Job, tasks: int) -> None:
    """Runs one kernel on as many threads as torch uses, the calling one among them."""
    function = getattr(library()[0], name)
    job.next = 0
    extra = min(torch.get_num_threads(), tasks) - 1
    pending = []
    if extra > 0:
        pool = _helpers(extra)
        pending = [pool.submit(function, ctypes.byref(job)) for _ in range(extra)]
    codes = [function(ctypes.byref(job))]
    codes += [f.result() for f in pending if not f.cancel()]
    if any(codes):
        raise MemoryError(f"{name}: no memory for its scratch space")


@dataclass(kw_only=True)
class _State:
    """The tensors behind a job: whatever a pointer refers to is kept alive here."""

    job: _Job
    keep: list[Any] = field(default_factory=list)

    def point(self, name: str, *tensors: Tensor, offset: Sequence[int] = (0, 0)) -> None:
        self.keep.extend(tensors)
        where = [t.data_ptr() + 4 * o for t, o in zip(tensors, offset)]
        setattr(self.job, name, where[0] if len(where) == 1 else _POINTERS(*where))


def _f32(t: Tensor) -> Tensor:
    return t.detach().to(torch.float32).contiguous()


def _aligned(count: int) -> int:
    return -(-count // 16) * 16


class _Sizes(Sizes):
    """With what the C kernels make of them."""

    @property
    def padded(self) -> int:
        return -(-self.n // STATES) * STATES

    def kept(self) -> dict[str, int]:
        """Floats of each thing that the forward may keep for the backward, in their order in one flat tensor."""
        lanes, tile = library()[0].bimamba_lanes(), library()[0].bimamba_tile()
        blocks, ends = -(-self.width // lanes), -(-self.length // tile) - 1
        tokens = self.batch * self.length
        return {
            "low": 2 * tokens * (self.rank + 2 * self.n),
            "ys": tokens * self.width,
            "states_forward": self.batch * blocks * ends * self.padded * lanes,
            "states_reverse": self.batch * blocks * ends * self.padded * lanes,
        }


def kept_numel(tensors: Sequence[Tensor]) -> int:
    """Floats that `forward(tensors, keep=True)` keeps for the backward: under twice its output at real sizes."""
    return sum(_aligned(count) for count in _Sizes.of(tensors).kept().values())


def _split(kept: Tensor, sizes: _Sizes) -> dict[str, Tensor]:
    parts, start = {}, 0
    for name, count in sizes.kept().items():
        parts[name] = kept[start : start + count]
        start += _aligned(count)
    return parts


def _start(tensors: Sequence[Tensor], sizes: _Sizes) -> tuple[_State, dict[str, Any]]:
    """A job with all that is not computed: its arguments and their transposes."""
    xz = _f32(tensors[0])
    ways = [[_f32(t) for t in tensors[1 + 7 * i : 8 + 7 * i]] for i in (0, 1)]
    n, padded = sizes.n, sizes.padded
    state = _State(job=_Job(B=sizes.batch, L=sizes.length, E=sizes.width, N=padded, K=sizes.taps))
    a = [F.pad(-torch.exp(w[5]), (0, padded - n)).t().contiguous() for w in ways]
    state.point("xz", xz)
    state.point("conv_w", *(w[0].t().contiguous() for w in ways))
    state.point("conv_b", *(w[1] for w in ways))
    state.point("A", *a)
    state.point("D", *(w[6] for w in ways))
    state.point("bias", *(w[4] for w in ways))
    return state, {"xz": xz, "ways": ways, "a": a}


def _project(
    state: _State,
    ways: Sequence[Sequence[Tensor]],
    sizes: _Sizes,
    directions: Sequence[int],
    u: Sequence[Tensor],
    dt: Sequence[Tensor],
    low: Sequence[Tensor],
    has_low: bool,
) -> None:
    """Conv and projections of some directions, into u, dt (B L, E) and, unless it is there, low (B L, R + 2N) of each."""
    rank, n, padded, job = sizes.rank, sizes.n, sizes.padded, state.job
    job.first, job.last = directions[0], directions[-1] + 1
    state.point("u", *u)
    state.point("dt", *dt)
    _run("bimamba_conv_forward", job, sizes.batch * -(-sizes.width // 16))
    for d in directions:
        # products of plain matrices: F.linear copies a strided input of three dimensions first
        if not has_low:
            torch.mm(u[d], ways[d][2].t(), out=low[d])
        torch.mm(low[d][:, :rank], ways[d][3].t(), out=dt[d])
    if padded == n:
        job.row = rank + 2 * n
        state.point("Bm", *low, offset=(rank, rank))
        state.point("Cm", *low, offset=(rank + n, rank + n))
    else:
        job.row = padded
        state.point("Bm", *(F.pad(x[:, rank : rank + n], (0, padded - n)).contiguous() for x in low))
        state.point("Cm", *(F.pad(x[:, rank + n :], (0, padded - n)).contiguous() for x in low))


def _scan(state: _State, sizes: _Sizes, y: Tensor, kept: dict[str, Tensor] | None) -> None:
    state.point("y", y)
    if kept is not None:
        state.point("ys", kept["ys"])
        state.point("states", kept["states_forward"], kept["states_reverse"])
    _run("bimamba_scan_forward", state.job, sizes.batch * -(-sizes.width // 16))


def forward(tensors: Sequence[Tensor], keep: bool = False) -> tuple[Tensor, Tensor]:
    """Both in one pass: the output, and what makes the backward cheaper.

    Args:
        tensors: The fifteen arguments of `bimamba`, on the CPU.
        keep: Keep the states at the end of every tile, the projections and the output before the gate.

    Returns:
        y (B, L, E) in the dtype of xz, computed in float32; a flat float32 tensor, empty unless `keep`.
    """
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        sizes = _Sizes.of(tensors)
        state, parts = _start(tensors, sizes)
        ways, tokens, width = parts["ways"], sizes.batch * sizes.length, sizes.width
        kept = parts["xz"].new_empty(kept_numel(tensors) if keep else 0)
        y = kept.new_empty(sizes.batch, sizes.length, width)
        saved = _split(kept, sizes) if keep else None
        # What is kept needs both directions side by side; else those of long sequences take turns in the same memory.
        turns = [(0, 1)] if keep or 2 * tokens * width < TURNS_FROM else [(0,), (1,)]

        def pair(columns: int) -> list[Tensor]:
            return [kept.new_empty(tokens, columns) for _ in turns[0]] * len(turns)

        u, dt = pair(width), pair(width)
        low = list(saved["low"].view(2, tokens, -1)) if saved else pair(sizes.rank + 2 * sizes.n)
        for directions in turns:
            _project(state, ways, sizes, directions, u, dt, low, has_low=False)
            _scan(state, sizes, y, saved)
        return y.to(tensors[0].dtype), kept


def backward(grad: Tensor, kept: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of the fifteen arguments, each in its argument's dtype.

    Args:
        grad: (B, L, E) gradient of y.
        kept: What the forward kept; an empty tensor has it computed again.
        tensors: The fifteen arguments of `bimamba`, on the CPU.
    """
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        sizes = _Sizes.of(tensors)
        lean = kept.numel() == 0
        if lean:
            kept = kept.new_empty(kept_numel(tensors), dtype=torch.float32)
        saved = _split(kept, sizes)
        state, parts = _start(tensors, sizes)
        job, xz, ways = state.job, parts["xz"], parts["ways"]
        rank, n, batch, length, width = sizes.rank, sizes.n, sizes.batch, sizes.length, sizes.width
        u, dt = ([kept.new_empty(batch * length, width) for _ in ways] for _ in range(2))
        low = list(saved["low"].view(2, batch * length, -1))
        _project(state, ways, sizes, (0, 1), u, dt, low, has_low=not lean)
        if lean:
            _scan(state, sizes, kept.new_empty(batch, length, width), saved)
        state.point("ys", saved["ys"])
        state.point("states", saved["states_forward"], saved["states_reverse"])

        def pair(*shape: int) -> list[Tensor]:
            return [xz.new_empty(*shape) for _ in ways]

        job.groups = max(1, min(-(-width // 16), -(-TASKS // max(batch, 1))))
        dxz = torch.empty_like(xz)
        out = {
            "du": pair(batch, length, width),
            "ddt": pair(batch, length, width),
            "dbc": pair(job.groups, batch, length, 2, sizes.padded),
            "dA": pair(batch, sizes.padded, width),
            "dD": pair(batch, width),
            "dbias": pair(batch, width),
            "dconv_w": pair(batch, sizes.taps, width),
            "dconv_b": pair(batch, width),
        }
        for name, tensors_of in out.items():
            state.point(name, *tensors_of)
        state.point("gy", _f32(grad))
        state.point("dxz", dxz)
        _run("bimamba_scan_backward", job, batch * job.groups)
        grads = []
        for i, (_, _, x_proj, dt_proj, *_) in enumerate(ways):
            ddt = out["ddt"][i].view(-1, width)
            dlow = xz.new_empty(batch * length, rank + 2 * n)
            # this way round: a product that ends up narrow is several times slower
            dlow[:, :rank].copy_(torch.mm(dt_proj.t(), ddt.t()).t())
            bc = out["dbc"][i].view(job.groups, -1, 2, sizes.padded)
            bc = bc[0] if job.groups == 1 else bc.sum(0)
            dlow[:, rank:].view(-1, 2, n).copy_(bc[..., :n])
            out["du"][i].view(-1, width).addmm_(dlow, x_proj)
            da_log = (out["dA"][i].sum(0) * parts["a"][i]).t()[:, :n].contiguous()
            d_x_proj = dlow.t() @ u[i]
            d_dt_proj = (low[i][:, :rank].t() @ ddt).t().contiguous()
            grads.append([d_x_proj, d_dt_proj, out["dbias"][i].sum(0), da_log, out["dD"][i].sum(0)])
        _run("bimamba_conv_backward", job, batch * -(-width // 16))
        result = [dxz]
        for i in (0, 1):
            result += [out["dconv_w"][i].sum(0).t().contiguous(), out["dconv_b"][i].sum(0), *grads[i]]
        return tuple(g.to(t.dtype) for g, t in zip(result, tensors))
