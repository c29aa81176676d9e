"""bimamba on the CPU through scan.c.

Shapes: B batch, L tokens, E inner width, N state, R rank of delta, K conv taps.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtr.kernels.bimamba.sizes import Sizes
from vtr.kernels.build import BuildError, library_path

STATES = 16  # states per pass of the kernels; others are padded with zeros
# What the backward's sums are cut into, fixed so that no result depends on the threads: sums over tokens into parts of
# the batch, sums over channels into groups, which small batches need to keep every thread busy.
PARTS, GROUPS = 32, 6

_POINTERS = ctypes.c_void_p * 2


class _Job(ctypes.Structure):
    """job_t of scan.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("B", "L", "E", "K", "R", "N", "states", "row", "groups", "parts", "threads")
        ),
        ("xz", ctypes.c_void_p),
        *((name, _POINTERS) for name in ("conv_w", "conv_b", "x_proj", "dt_proj", "bias", "A", "D", "packed", "low")),
        *((name, ctypes.c_void_p) for name in ("y", "ys")),
        ("ends", _POINTERS),
        *((name, ctypes.c_void_p) for name in ("gy", "dxz")),
        *(
            (name, _POINTERS)
            for name in ("du", "dlow", "dx_proj", "ddt_proj", "dA", "dD", "dbias", "dconv_w", "dconv_b")
        ),
        *((name, ctypes.c_int64) for name in ("next", "failed")),
    ]


_lock = threading.Lock()
_library: tuple[ctypes.CDLL, str] | None = None
_failure: str | None = None
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _openmp() -> Callable[..., None] | None:
    """GNU OpenMP's entry for a parallel region, where torch has it loaded; None elsewhere.

    Its threads are those of torch's own operators, so they are awake between two of them; threads of a pool of ours would
    have to share the cores with them while they wait by spinning.
    """
    try:
        entry = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    entry.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    entry.restype = None
    return entry


_team = _openmp() if "OpenMP" in torch.__config__.parallel_info() else None


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
    # threads don't survive a fork, and a lock may have been held: start anew in the child, without OpenMP, which can't
    global _pool, _pool_size, _lock, _team
    _pool, _pool_size, _lock, _team = None, 0, threading.Lock(), None


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
    job.next = job.failed = 0
    threads = min(job.threads, tasks)
    if threads == 1:
        function(ctypes.byref(job))
    elif _team is not None:
        # the whole team: one of another size would make OpenMP end threads and start them again
        _team(function, ctypes.byref(job), int(job.threads), 0)
    else:
        pending = [_helpers(threads - 1).submit(function, ctypes.byref(job)) for _ in range(threads - 1)]
        function(ctypes.byref(job))
        for helper in pending:
            if not helper.cancel():
                helper.result()
    if job.failed:
        raise MemoryError(f"{name}: no memory for its scratch space")


@dataclass(kw_only=True)
class _State:
    """The tensors behind a job: whatever a pointer refers to is kept alive here."""

    job: _Job
    keep: list[Tensor | Sequence[Tensor]] = field(default_factory=list)

    def point(self, **tensors: Tensor | Sequence[Tensor]) -> None:
        """One tensor, or one of each direction, by the names of job_t."""
        for name, value in tensors.items():
            self.keep.append(value)
            if isinstance(value, Tensor):
                setattr(self.job, name, value.data_ptr())
            else:
                setattr(self.job, name, _POINTERS(*(t.data_ptr() for t in value)))


def _f32(t: Tensor) -> Tensor:
    return t.detach().to(torch.float32).contiguous()


def _aligned(count: int) -> int:
    return -(-count // 16) * 16


class _Sizes(Sizes):
    """With what the C kernels make of them."""

    @property
    def padded(self) -> int:
        """States, a multiple of STATES."""
        return -(-self.n // STATES) * STATES

    @property
    def lanes(self) -> int:
        """Channels of a vector."""
        return library()[0].bimamba_lanes()

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return -(-self.width // self.lanes)

    @property
    def row(self) -> int:
        """Floats of a row of low: B | C | delta."""
        return 2 * self.padded + -(-self.rank // self.lanes) * self.lanes

    @property
    def tiles(self) -> int:
        """Tiles of a sequence."""
        return -(-self.length // library()[0].bimamba_tile())

    def kept(self) -> dict[str, int]:
        """Floats of each thing that the forward may keep for the backward, in their order in one flat tensor."""
        tokens = self.batch * self.length
        ends = self.batch * self.blocks * (self.tiles - 1) * self.padded * self.lanes
        return {"low": 2 * tokens * self.row, "ys": tokens * self.width, "ends_forward": ends, "ends_reverse": ends}


def kept_numel(tensors: Sequence[Tensor]) -> int:
    """Floats that `forward(tensors, keep=True)` keeps for the backward: under twice its output at real sizes."""
    return sum(_aligned(count) for count in _Sizes.of(tensors).kept().values())


def _split(kept: Tensor, sizes: _Sizes) -> dict[str, Tensor | Sequence[Tensor]]:
    """Views of it by their names in job_t."""
    parts, start = {}, 0
    for name, count in sizes.kept().items():
        parts[name] = kept[start : start + count]
        start += _aligned(count)
    return {
        "low": list(parts["low"].view(2, -1)),
        "ys": parts["ys"],
        "ends": [parts["ends_forward"], parts["ends_reverse"]],
    }


def _start(tensors: Sequence[Tensor], sizes: _Sizes) -> tuple[_State, Tensor, list[Tensor]]:
    """A job with all that is not computed, its arguments and their transposes; of them xz and A (E, N) by themselves."""
    xz = _f32(tensors[0])
    ways = [[_f32(t) for t in tensors[1 + 7 * i : 8 + 7 * i]] for i in (0, 1)]
    a = [torch.exp(w[5]).neg_() for w in ways]
    job = _Job(B=sizes.batch, L=sizes.length, E=sizes.width, K=sizes.taps, R=sizes.rank, N=sizes.n)
    job.states, job.row, job.threads = sizes.padded, sizes.row, torch.get_num_threads()
    state = _State(job=job)
    state.point(xz=xz, A=a, conv_w=[w[0].t().contiguous() for w in ways], conv_b=[w[1] for w in ways])
    state.point(x_proj=[w[2] for w in ways], dt_proj=[w[3] for w in ways])
    state.point(bias=[w[4] for w in ways], D=[w[6] for w in ways])
    return state, xz, a


def _forward(state: _State, sizes: _Sizes, y: Tensor) -> None:
    """Writes y (B, L, E) and low, which the job points to, and what else of the kept it points to."""
    state.point(y=y, packed=[y.new_empty(sizes.blocks * sizes.lanes, sizes.row) for _ in (0, 1)])
    _run("bimamba_pack", state.job, 2 * sizes.blocks)
    _run("bimamba_project", state.job, 2 * sizes.batch * sizes.tiles)
    _run("bimamba_scan_forward", state.job, sizes.batch * sizes.blocks)


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
        state, xz, _ = _start(tensors, sizes)
        kept = xz.new_empty(kept_numel(tensors) if keep else 0)
        y = xz.new_empty(sizes.batch, sizes.length, sizes.width)
        if keep:
            state.point(**_split(kept, sizes))
        else:
            state.point(low=list(xz.new_empty(2, sizes.batch * sizes.length * sizes.row)))
        _forward(state, sizes, y)
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
        state, xz, rates = _start(tensors, sizes)
        job, n, padded, rank = state.job, sizes.n, sizes.padded, sizes.rank
        batch, length, width = sizes.batch, sizes.length, sizes.width
        lean = kept.numel() == 0
        if lean:
            kept = xz.new_empty(kept_numel(tensors))
        state.point(**_split(kept, sizes))
        if lean:
            _forward(state, sizes, xz.new_empty(batch, length, width))

        def pair(*shape: int) -> list[Tensor]:
            return [xz.new_empty(*shape) for _ in (0, 1)]

        job.parts = min(batch, PARTS)
        job.groups = min(sizes.blocks, -(-GROUPS // job.parts))
        dxz = torch.empty_like(xz)
        du, dlow = pair(batch, length, width), pair(job.groups, batch, length, sizes.row)
        sums = {
            "dconv_w": pair(job.parts, sizes.taps, width),
            "dconv_b": pair(job.parts, width),
            "dx_proj": pair(job.parts, sizes.row, width),
            "ddt_proj": pair(job.parts, rank, width),
            "dbias": pair(job.parts, width),
            "dA": pair(job.parts, padded, width),
            "dD": pair(job.parts, width),
        }
        state.point(gy=_f32(grad), dxz=dxz, du=du, dlow=dlow, **sums)
        _run("bimamba_scan_backward", job, 2 * job.parts * job.groups)
        if job.groups > 1:
            state.point(dlow=[x.sum(0) for x in dlow])
        _run("bimamba_conv_backward", job, job.parts * sizes.blocks)
        result = [dxz]
        for i, a in enumerate(rates):
            g = {name: tensors[i][0] if job.parts == 1 else tensors[i].sum(0) for name, tensors in sums.items()}
            b, c, delta = g["dx_proj"].split([padded, padded, sizes.row - 2 * padded])
            result += [g["dconv_w"].t().contiguous(), g["dconv_b"], torch.cat([delta[:rank], b[:n], c[:n]])]
            result += [g["ddt_proj"].t().contiguous(), g["dbias"], g["dA"][:n].t().mul(a).contiguous(), g["dD"]]
        return tuple(g.to(t.dtype) for g, t in zip(result, tensors))
