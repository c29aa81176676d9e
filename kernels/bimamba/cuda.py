"""bimamba on a GPU through scan.cu: projections by torch, conv and scan by the kernels; and how work is cut up.

Shapes: B batch, L tokens, E inner width, N state (up to 16), R rank of delta, K conv taps. Tensors have xz's dtype
("storage"); states, decays and sums are float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtr.files import package_file
from vtr.kernels import nvrtc
from vtr.kernels.bimamba.sizes import Sizes
from vtr.kernels.nvrtc import Launch

STATES = 16  # NS of scan.cu; fewer are padded with zeros
SEGMENT = 32  # SEG of scan.cu
BACK_CHANNELS = 64  # BACK_CHANNELS of scan.cu
MAX_TAPS = 16  # the convolution keeps its window in registers
KEEP, ADJOINT = 1, 2  # flags of scan.cu

UNIT = nvrtc.Unit(
    source=package_file("vtr.kernels", "bimamba", "scan.cu"),
    threads={
        "conv_forward_4": 64,
        "conv_forward_1": 64,
        "conv_backward_4": 64,
        "conv_backward_1": 64,
        "scan_plain_1": 64,
        "scan_gated_1": 64,
        "scan_plain_2": 64,
        "scan_plain_4": 64,
        "scan_ends_4": 64,
        "scan_adjoint_4": 64,
        "scan_edges": 64,
        "gate_sum": 256,
        "scan_backward": 128,
        "sum_bc": 256,
        "sum_parts": 64,
    },
)

_PAIR = ctypes.c_void_p * 2


class Job(ctypes.Structure):
    """job_t of scan.cu, passed to every kernel by value."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "L", "E", "R", "chunk", "chunks", "direction")),
        *((name, ctypes.c_int64) for name in ("flags", "run")),
        *((name, ctypes.c_void_p) for name in ("xz", "u", "dt", "low")),
        *((name, _PAIR) for name in ("conv_w", "conv_b", "bias", "A_log", "D")),
        *((name, ctypes.c_void_p) for name in ("y", "ys", "states", "edges", "sums", "gy", "du", "ddt", "dxz")),
        *((name, ctypes.c_void_p) for name in ("part_bc", "dlow", "dA", "dD", "dbias", "dconv")),
        *((name, _PAIR) for name in ("out_conv_w", "out_conv_b", "out_bias", "out_A_log", "out_D")),
    ]


def _low(sizes: Sizes) -> int:
    """Columns of the projection: delta | B | C, with the padding of the states."""
    return sizes.rank + 2 * STATES


def unsupported(tensors: Sequence[Tensor]) -> str | None:
    """Why these kernels do not take such arguments, or None."""
    sizes = Sizes.of(tensors)
    if tensors[0].dtype not in nvrtc.STORAGE:
        return f"xz is {tensors[0].dtype}; the kernels take float32, bfloat16 and float16"
    if sizes.n > STATES:
        return f"{sizes.n} states; the kernels hold up to {STATES}"
    if sizes.taps > MAX_TAPS:
        return f"a convolution of {sizes.taps} taps; the kernels hold up to {MAX_TAPS}"
    return None


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a call is cut into blocks.

    A warp issues one exp2 per lane every 8 cycles of a multiprocessor's quarter, and each thread has 16 of them at hand
    per token, so about eight warps a multiprocessor keep its special-function units busy (docs/notes/kernels.md).
    """

    one_direction: bool  # a launch per direction, the second adds and gates; else both at once and a pass that does
    lanes: int  # that share a channel when both directions run at once: 1, 2 or 4
    chunk: int  # tokens; a multiple of SEGMENT unless there is one chunk
    chunks: int
    back_chunk: int  # of the backward
    back_chunks: int
    run: int  # tokens of a thread of the convolution

    @classmethod
    def choose(cls, sizes: Sizes, multiprocessors: int) -> Cut:
        """Fewer sequences: both directions at once, then lanes that share a channel, then L is cut too."""
        enough = 8 * multiprocessors
        warps = sizes.batch * -(-sizes.width // 32)  # of one direction with a channel per thread
        one_direction = warps >= enough
        lanes = next((n for n in (1, 2) if 2 * n * warps >= enough), 4)
        chunk, chunks = sizes.length, 1
        # Chunks compute every exponential twice: worth it only where they more than double the warps.
        if 2 * lanes * warps < 6 * multiprocessors:
            chunk, chunks = _chunks(sizes.length, 14 * multiprocessors // (2 * lanes * warps))
        blocks = 2 * sizes.batch * -(-sizes.width // BACK_CHANNELS)  # three fit a multiprocessor
        back_chunk, back_chunks = sizes.length, 1
        if blocks < 2 * multiprocessors:
            back_chunk, back_chunks = _chunks(sizes.length, 3 * multiprocessors // blocks)
        threads = sizes.batch * -(-sizes.width // 4)
        runs = max(1, -(-16 * 32 * multiprocessors // threads))
        run = min(sizes.length, max(32, -(-sizes.length // runs)))
        return cls(
            one_direction=one_direction,
            lanes=lanes,
            chunk=chunk,
            chunks=chunks,
            back_chunk=back_chunk,
            back_chunks=back_chunks,
            run=run,
        )

    def runs(self, sizes: Sizes) -> int:
        """Runs of the convolution per sequence."""
        return -(-sizes.length // self.run)


def _chunks(length: int, want: int) -> tuple[int, int]:
    """Chunk length, a multiple of SEGMENT, and count: at most `want`, each of two segments or more."""
    want = max(1, min(want, length // (2 * SEGMENT)))
    if want == 1:
        return length, 1
    chunk = -(-length // (want * SEGMENT)) * SEGMENT
    return chunk, -(-length // chunk)


def _bytes(sizes: Sizes, itemsize: int) -> dict[str, int]:
    """Bytes of each thing that the forward may keep for the backward, in their order in one flat tensor."""
    tokens = sizes.batch * sizes.length
    return {
        "states": 2 * sizes.batch * ((sizes.length - 1) // SEGMENT) * STATES * sizes.width * 4,
        "ys": tokens * sizes.width * itemsize,
        "low": 2 * tokens * _low(sizes) * itemsize,
    }


def kept_numel(tensors: Sequence[Tensor]) -> int:
    """Float32 elements that `forward(tensors, keep=True)` keeps for the backward: about three outputs in bfloat16."""
    return sum(-(-n // 256) * 64 for n in _bytes(Sizes.of(tensors), tensors[0].element_size()).values())


def _split(kept: Tensor, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor]:
    parts, start = {}, 0
    for name, count in _bytes(sizes, dtype.itemsize).items():
        part = kept[start : start + -(-count // 256) * 64]
        start += part.numel()
        parts[name] = part if name == "states" else part.view(dtype)[: count // dtype.itemsize]
    return parts


def _pointers(pair: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return _PAIR(*(t.data_ptr() for t in pair))


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What forward and backward share: sizes, contiguous arguments, stacked weights and a launcher."""

    sizes: Sizes
    cut: Cut
    job: Job
    launch: Launch
    xz: Tensor
    x_proj: Tensor  # (2, R + 32, E) in storage
    dt_proj: Tensor  # (2, E, R)
    hold: list[Tensor]  # whatever else a pointer of the job refers to

    @classmethod
    def of(cls, tensors: Sequence[Tensor], cut: Cut | None, launch: Launch | None) -> _Call:
        sizes = Sizes.of(tensors)
        xz = tensors[0].detach().contiguous()
        if cut is None:
            cut = Cut.choose(sizes, nvrtc.multiprocessors(nvrtc.index_of(xz.device)))
        job = Job(B=sizes.batch, L=sizes.length, E=sizes.width, R=sizes.rank, run=cut.run)
        job.xz = xz.data_ptr()
        ways = [[t.detach() for t in tensors[1 + 7 * d : 8 + 7 * d]] for d in (0, 1)]
        n, pad = sizes.n, STATES - sizes.n
        projections = torch.stack([w[2] for w in ways]).to(xz.dtype)
        a_log = [w[5] for w in ways]
        if pad:
            # states that read and write nothing
            parts = projections.split([sizes.rank, n, n], dim=1)
            projections = torch.cat([parts[0], F.pad(parts[1], (0, 0, 0, pad)), F.pad(parts[2], (0, 0, 0, pad))], 1)
            a_log = [F.pad(a, (0, pad)) for a in a_log]
        hold: list[Tensor] = []
        for name, pair in {
            "conv_w": [w[0] for w in ways],
            "conv_b": [w[1] for w in ways],
            "bias": [w[4] for w in ways],
            "A_log": a_log,
            "D": [w[6] for w in ways],
        }.items():
            pair = [t.to(torch.float32).contiguous() for t in pair]
            hold += pair
            setattr(job, name, _pointers(pair))
        return cls(
            sizes=sizes,
            cut=cut,
            job=job,
            launch=launch or nvrtc.launcher(UNIT, xz.device, defines(tensors)),
            xz=xz,
            x_proj=projections,
            dt_proj=torch.stack([w[3] for w in ways]).to(xz.dtype),
            hold=hold,
        )

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.xz.new_empty(shape, dtype=dtype or self.xz.dtype)

    def point(self, **tensors: Tensor) -> None:
        self.hold.extend(tensors.values())
        for name, tensor in tensors.items():
            setattr(self.job, name, tensor.data_ptr())

    def convolve(self, name: str) -> None:
        wide = self.sizes.width % 4 == 0 and self.xz.data_ptr() % 16 == 0
        channels = 64 * (4 if wide else 1)
        grid = (self.sizes.batch * self.cut.runs(self.sizes), -(-self.sizes.width // channels))
        self.launch(f"{name}_{4 if wide else 1}", grid, self.job)

    def project(self, low: Tensor, has_low: bool) -> tuple[Tensor, Tensor]:
        """u after the convolution and dt before bias and softplus, each (2, B * L, E); fills `low` unless it is there."""
        s = self.sizes
        u = self.new(2, s.batch * s.length, s.width)
        self.point(u=u)
        self.convolve("conv_forward")
        low = low.view(2, -1, _low(s))
        if not has_low:
            torch.bmm(u, self.x_proj.transpose(1, 2), out=low)
        dt = torch.bmm(low[:, :, : s.rank], self.dt_proj.transpose(1, 2))
        self.point(low=low, dt=dt)
        return u, dt

    def scan(self, y: Tensor, ys: Tensor, states: Tensor | None) -> None:
        """The output into y; with `states`, they and the output before the gate are kept for the backward."""
        s, cut, job = self.sizes, self.cut, self.job
        self.point(y=y, ys=ys)
        keep = 0
        if states is not None:
            self.point(states=states)
            keep = KEEP
        if cut.one_direction:
            job.chunk, job.chunks, job.flags = s.length, 1, keep
            grid = (s.batch * -(-s.width // 64), 1)
            for direction in (0, 1):
                job.direction = direction
                self.launch("scan_gated_1" if direction else "scan_plain_1", grid, job)
            return
        job.chunk, job.chunks, job.direction = cut.chunk, cut.chunks, 0
        if cut.chunks > 1:
            self.edges(0)
        job.flags = keep
        grid = (s.batch * -(-s.width * cut.lanes // 64), 2 * cut.chunks)
        self.launch(f"scan_plain_{cut.lanes}", grid, job)
        self.launch("gate_sum", (-(-y.numel() // 256), 1), job)

    def edges(self, flags: int) -> None:
        """The states, or with ADJOINT their gradients, that enter each chunk."""
        s, job = self.sizes, self.job
        self.point(
            edges=self.new(2, s.batch, job.chunks, STATES, s.width, dtype=torch.float32),
            sums=self.new(2, s.batch, job.chunks, s.width, dtype=torch.float32),
        )
        job.flags = flags
        grid = (s.batch * -(-s.width // 16), 2 * job.chunks)
        self.launch("scan_adjoint_4" if flags & ADJOINT else "scan_ends_4", grid, job)
        self.launch("scan_edges", (-(-s.width // 64), 2 * s.batch * STATES), job)


def defines(tensors: Sequence[Tensor]) -> dict[str, int]:
    """Macros that the kernels of a call are compiled with."""
    return {"STORAGE": nvrtc.STORAGE[tensors[0].dtype], "TAPS": tensors[1].shape[1]}


def _guard(tensor: Tensor) -> AbstractContextManager[None]:
    return torch.cuda.device_of(tensor)  # does nothing for a tensor on the CPU (the tests' emulation)


def forward(
    tensors: Sequence[Tensor], keep: bool = False, cut: Cut | None = None, launch: Launch | None = None
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward needs of it.

    Args:
        tensors: The fifteen arguments of `bimamba`, on one GPU, accepted by `unsupported`.
        keep: Keep states, projections and the output before the gate.
        cut: How to cut the work; chosen for the GPU unless given.
        launch: Runs a kernel; the GPU's own unless given (the tests emulate).

    Returns:
        y (B, L, E) in the dtype of xz; a flat float32 tensor, empty unless `keep`.
    """
    with _guard(tensors[0]), torch.autocast(tensors[0].device.type, enabled=False), torch.no_grad():
        call = _Call.of(tensors, cut, launch)
        s = call.sizes
        kept = call.new(kept_numel(tensors) if keep else 0, dtype=torch.float32)
        parts = _split(kept, s, call.xz.dtype) if keep else {}
        low = parts["low"] if keep else call.new(2 * s.batch * s.length * _low(s))
        call.project(low, has_low=False)
        y = call.new(s.batch, s.length, s.width)
        call.scan(y, parts["ys"] if keep else torch.empty_like(y), parts.get("states"))
        return y, kept


def backward(
    grad: Tensor, kept: Tensor, tensors: Sequence[Tensor], cut: Cut | None = None, launch: Launch | None = None
) -> tuple[Tensor, ...]:
    """The gradients of the fifteen arguments, each in its argument's dtype; two calls are bitwise equal.

    Args:
        grad: (B, L, E) gradient of y.
        kept: What the forward kept; an empty tensor has it computed again.
        tensors: The fifteen arguments of `bimamba`.
        cut: As for `forward`.
        launch: As for `forward`.
    """
    with _guard(tensors[0]), torch.autocast(tensors[0].device.type, enabled=False), torch.no_grad():
        call = _Call.of(tensors, cut, launch)
        s, job, cut = call.sizes, call.job, call.cut
        lean = kept.numel() == 0
        if lean:
            kept = call.new(kept_numel(tensors), dtype=torch.float32)
        saved = _split(kept, s, call.xz.dtype)
        u, dt = call.project(saved["low"], has_low=not lean)
        if lean:
            call.scan(call.new(s.batch, s.length, s.width), saved["ys"], saved["states"])
        tokens, f32 = s.batch * s.length, torch.float32
        blocks = -(-s.width // BACK_CHANNELS)
        du, dxz = torch.empty_like(u), torch.empty_like(call.xz)
        ddt = dt  # the thread that reads an element of dt writes its gradient there, and nobody reads it again
        dlow = call.new(2, tokens, _low(s))
        call.point(gy=grad.detach().to(call.xz.dtype).contiguous(), du=du, ddt=ddt, dxz=dxz, dlow=dlow)
        call.point(states=saved["states"], ys=saved["ys"])
        job.chunk, job.chunks, job.direction = cut.back_chunk, cut.back_chunks, 0
        parts = s.batch * cut.back_chunks
        call.point(
            part_bc=call.new(blocks, 2, tokens, 2 * STATES, dtype=f32),
            dA=call.new(2, parts, STATES, s.width, dtype=f32),
            dD=call.new(2, parts, s.width, dtype=f32),
            dbias=call.new(2, parts, s.width, dtype=f32),
            dconv=call.new(2, s.batch * cut.runs(s), s.taps + 1, s.width, dtype=f32),
        )
        if cut.back_chunks > 1:
            call.edges(ADJOINT)
        call.launch("scan_backward", (s.batch * blocks, 2 * cut.back_chunks), job)
        call.launch("sum_bc", (-(-2 * tokens * 2 * STATES // 256), 1), job)
        torch.bmm(ddt, call.dt_proj, out=dlow[:, :, : s.rank])
        torch.baddbmm(du, dlow, call.x_proj, out=du)
        call.convolve("conv_backward")
        # A tensor of its own for each gradient: an operator's results may not share memory.
        shapes = {"conv_w": (s.width, s.taps), "conv_b": (s.width,), "bias": (s.width,), "A_log": (s.width, STATES)}
        out = {
            name: [call.new(*shape, dtype=f32) for _ in (0, 1)] for name, shape in (shapes | {"D": (s.width,)}).items()
        }
        for name, pair in out.items():
            setattr(job, f"out_{name}", _pointers(pair))
        call.launch("sum_parts", (-(-s.width // 64), 2 * (STATES + 2 + s.taps + 1)), job)
        result = [dxz]
        delta = saved["low"].view(2, -1, _low(s))[:, :, : s.rank]
        for d in (0, 1):
            d_x_proj, d_a_log = torch.mm(dlow[d].t(), u[d]), out["A_log"][d]
            if s.n < STATES:
                keep = [*range(s.rank + s.n), *range(s.rank + STATES, s.rank + STATES + s.n)]
                d_x_proj, d_a_log = d_x_proj[keep], d_a_log[:, : s.n].contiguous()
            d_dt_proj = torch.mm(ddt[d].t(), delta[d])
            result += [out["conv_w"][d], out["conv_b"][d], d_x_proj, d_dt_proj, out["bias"][d], d_a_log, out["D"][d]]
        return tuple(g.to(t.dtype) for g, t in zip(result, tensors))
