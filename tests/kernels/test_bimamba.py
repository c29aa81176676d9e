"""bimamba: the C kernels and the chunked torch path against float64 and the step-by-step equations."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from tests.kernels.cases import arguments, assert_close, with_gradients
from vtr.errors import UsageError
from vtr.kernels import build
from vtr.kernels.bimamba import backend_info, bimamba, c, eager, use_backend

ROOT = Path(__file__).resolve().parents[2]
HAS_C = next(row for row in backend_info() if row.name == "c").available
needs_c = pytest.mark.skipif(not HAS_C, reason="no C compiler here")


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


SHAPES = [
    *[{"length": n} for n in (1, 2, 3, 5, 31, 33, 197, 314)],
    *[{"length": 37, "width": w} for w in (1, 7, 16, 19, 45)],
    *[{"length": 21, "states": n} for n in (1, 5, 20, 33)],
    *[{"length": 9, "taps": k} for k in (1, 2, 7, 12)],
    {"batch": 1, "length": 200, "width": 70, "rank": 1},
    {"batch": 5, "length": 65, "width": 33, "states": 17, "taps": 3},
    # around the kernels' tiles of 64 tokens, their sets of channel blocks and the blocks of their products
    *[{"length": n, "width": 40} for n in (63, 64, 65, 128, 129, 200)],
    {"batch": 1, "length": 130, "width": 100, "states": 33},
    {"batch": 7, "length": 70, "width": 161, "rank": 5},
    *[{"length": 20, "width": 50, "rank": r} for r in (15, 16, 17, 31, 48, 81, 100)],
]


@needs_c
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_c_agrees_with_float64_for_the_output_and_every_gradient(shape):
    values = arguments(**shape)
    with use_backend("c"):
        got = with_gradients(bimamba, values)
    assert_close(got, with_gradients(eager.bimamba, [v.double() for v in values]), 1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 31, 33, 64, 100])
def test_the_chunked_path_agrees_with_the_loop(length):
    values = arguments(length=length, width=7, states=5, dtype=torch.float64)
    loop = with_gradients(lambda *v: eager.bimamba(*v, loop=True), values)
    assert_close(with_gradients(eager.bimamba, values), loop, 1e-12)
    assert_close(with_gradients(bimamba, values), loop, 1e-12)


def test_the_loop_agrees_with_the_equations_written_out_in_scalars():
    values = arguments(batch=1, length=4, width=2, states=3, taps=2, rank=1, dtype=torch.float64)
    xz, ways = values[0][0], (values[1:8], values[8:15])
    want = torch.zeros(4, 2, dtype=torch.float64)
    for way, order in zip(ways, ([0, 1, 2, 3], [3, 2, 1, 0])):
        w, wb, x_proj, dt_proj, dt_bias, a_log, d = way
        h = torch.zeros(2, 3, dtype=torch.float64)
        for step, l in enumerate(order):
            before = xz[order[step - 1], :2] if step else torch.zeros(2, dtype=torch.float64)
            u = w[:, 0] * before + w[:, 1] * xz[l, :2] + wb
            u = u * torch.sigmoid(u)
            row = x_proj @ u
            delta = torch.log(1 + torch.exp(dt_proj @ row[:1] + dt_bias))
            for e in range(2):
                for n in range(3):
                    h[e, n] = torch.exp(-delta[e] * torch.exp(a_log[e, n])) * h[e, n] + delta[e] * row[1 + n] * u[e]
                want[l, e] += h[e] @ row[4:] + d[e] * u[e]
    z = xz[:, 2:]
    assert torch.allclose(eager.bimamba(*values, loop=True)[0], want * z * torch.sigmoid(z), rtol=1e-12, atol=1e-14)


def test_gradcheck_passes_in_float64():
    values = arguments(batch=1, length=5, width=3, states=2, taps=3, rank=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(bimamba, [v.requires_grad_() for v in values])


@pytest.mark.parametrize("backend", ["eager", pytest.param("c", marks=needs_c)])
def test_the_reversed_sequence_with_swapped_parameters_gives_the_reversed_output(backend):
    values = arguments(length=41, width=19)
    with use_backend(backend):
        y = bimamba(*values)
        swapped = bimamba(values[0].flip(1), *values[8:15], *values[1:8])
    assert_close([swapped.flip(1)], [y], 1e-6)


@needs_c
@pytest.mark.parametrize(
    "shape",
    [
        {"length": 70, "width": 40},
        {"batch": 1, "length": 230, "width": 90},
        {"batch": 3, "length": 66, "width": 161, "states": 20},
    ],
    ids=str,
)
def test_results_are_bitwise_equal_whatever_the_threads_and_whoever_starts_them(shape, monkeypatch):
    values = arguments(**shape)
    with use_backend("c"):
        first = with_gradients(bimamba, values)
        for threads in (2, 1, 3, 4):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, with_gradients(bimamba, values)))
        monkeypatch.setattr(c, "_team", None)
        assert all(torch.equal(a, b) for a, b in zip(first, with_gradients(bimamba, values)))


@needs_c
def test_more_batch_rows_than_parts_give_the_same_gradients():
    values = arguments(batch=c.PARTS + 3, length=7, width=20)
    with use_backend("c"):
        got = with_gradients(bimamba, values)
    assert_close(got, with_gradients(eager.bimamba, [v.double() for v in values]), 1e-5)


@needs_c
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_that_asks_for_one_thread_computes_the_same():
    # as data workers do; without it torch's own operators wait forever for OpenMP threads that the fork left behind
    code = """
import os, sys, torch
from tests.kernels.cases import arguments
from vtr.kernels.bimamba import bimamba, use_backend
torch.set_num_threads(2)
values = arguments(length=70, width=40)
with use_backend("c"):
    want = bimamba(*values)
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(bimamba(*values), want) else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@needs_c
@pytest.mark.parametrize("length", [1, 64, 150])
def test_the_lean_mode_gives_the_same_gradients_bit_for_bit(length, monkeypatch):
    values = arguments(length=length, width=40)
    with use_backend("c"):
        kept = with_gradients(bimamba, values)
        monkeypatch.setenv("VTR_BIMAMBA_LEAN", "1")
        assert all(torch.equal(a, b) for a, b in zip(kept, with_gradients(bimamba, values)))


@needs_c
def test_only_a_call_that_will_be_differentiated_keeps_states(monkeypatch):
    seen = []
    forward = c.forward
    monkeypatch.setattr(c, "forward", lambda tensors, keep=False: seen.append(keep) or forward(tensors, keep))
    values = arguments(length=70)
    with use_backend("c"):
        bimamba(*values)
        with torch.no_grad():
            bimamba(*[v.clone().requires_grad_() for v in values])
        with torch.inference_mode():
            bimamba(*values)
        bimamba(*[v.clone().requires_grad_() for v in values])
        monkeypatch.setenv("VTR_BIMAMBA_LEAN", "1")
        bimamba(*[v.clone().requires_grad_() for v in values])
    assert seen == [False, False, False, True, False]


@needs_c
@pytest.mark.parametrize("isa", build.variants())
def test_every_instruction_set_of_this_cpu_agrees_with_float64(isa, tmp_path):
    code = """
import sys, torch
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/kernels"]
import test_bimamba as t
torch.set_num_threads(1)
for shape in ({"length": 70, "width": 37}, {"length": 5, "width": 3, "states": 20}):
    values = t.arguments(**shape)
    with t.use_backend("c"):
        got = t.with_gradients(t.bimamba, values)
    t.assert_close(got, t.with_gradients(t.eager.bimamba, [v.double() for v in values]), 1e-5)
print(t.c.library()[1])
"""
    env = {**os.environ, "VTR_BIMAMBA_ISA": isa, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == isa


@needs_c
def test_extreme_steps_rates_and_gates_stay_right():
    values = arguments(length=50, width=21)
    for offset in (1, 8):
        values[offset + 4] = torch.linspace(-30, 30, 21)  # softplus of it: 1e-13 .. 30
        values[offset + 5] = torch.linspace(-14, 7, 21).unsqueeze(1).expand(21, 16).contiguous()  # A: -1e-6 .. -1e3
    values[0] = values[0] * 30
    with use_backend("c"):
        got = with_gradients(bimamba, values)
    assert all(t.isfinite().all() for t in got)
    assert_close(got, with_gradients(eager.bimamba, [v.double() for v in values]), 1e-5)


@needs_c
def test_softplus_keeps_its_relative_accuracy_for_tiny_steps():
    values = arguments(length=6, width=16)
    for offset in (1, 8):
        values[offset + 3] = torch.zeros(16, 3)
        values[offset + 4] = torch.linspace(-40, -7, 16)
        values[offset + 6] = torch.zeros(16)  # without D the output is proportional to the step
    with use_backend("c"):
        y = bimamba(*values)
    want = eager.bimamba(*[v.double() for v in values])
    error = (y - want).abs().amax((0, 1)) / want.abs().amax((0, 1))
    assert error.max() < 2e-6


@needs_c
def test_a_nan_in_the_input_reaches_the_output():
    values = arguments(length=20)
    values[0][0, 10, 3] = float("nan")
    with use_backend("c"):
        y = bimamba(*values)
    assert y[0, :, 3].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    values = arguments(dtype=dtype)
    got = with_gradients(bimamba, values)
    assert [t.dtype for t in got] == [dtype] * 16
    want = with_gradients(bimamba, [v.float() for v in values])
    assert_close(got[:1], [want[0].to(dtype)], 1e-7)
    assert_close(got, want, 1e-2)


def test_autocast_changes_nothing():
    values = arguments()
    want = with_gradients(bimamba, values)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(bimamba, values)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_strided_inputs_give_the_same_result():
    values = arguments()
    want = bimamba(*values)
    values[0] = values[0].transpose(1, 2).contiguous().transpose(1, 2)
    values[3] = values[3].t().contiguous().t()
    assert torch.equal(bimamba(*values), want)


def test_empty_batches_pass_through():
    got = with_gradients(bimamba, arguments(batch=0))
    assert got[0].shape == (0, 33, 24)
    assert all((t == 0).all() for t in got[1:])


def test_the_operator_passes_opcheck():
    values = [v.requires_grad_() for v in arguments(length=5, width=3, states=2)]
    torch.library.opcheck(torch.ops.vtr.bimamba.default, values)


def test_compile_with_fullgraph_gives_the_same_output_and_gradients():
    values = arguments()
    compiled = torch.compile(lambda *v: bimamba(*v) * 2, fullgraph=True, backend="aot_eager")
    got, want = with_gradients(compiled, values), with_gradients(lambda *v: bimamba(*v) * 2, values)
    assert_close(got, want, 1e-7)


def test_export_keeps_the_operator_and_its_output():
    class Block(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.params = torch.nn.ParameterList(values)

        def forward(self, xz):
            return bimamba(xz, *self.params)

    values = arguments()
    program = torch.export.export(
        Block(values[1:]), (values[0],), dynamic_shapes={"xz": {1: torch.export.Dim("tokens", min=2, max=4096)}}
    )
    assert "vtr.bimamba" in program.graph_module.code
    longer = arguments(length=50)[0]
    assert torch.equal(program.module()(longer), bimamba(longer, *values[1:]))


@needs_c
def test_callers_on_several_threads_do_not_disturb_each_other():
    values = arguments(length=100, width=40)
    want = bimamba(*values)
    wrong = []

    def work():
        wrong.extend(1 for _ in range(20) if not torch.equal(bimamba(*values), want))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.fixture
def fresh_library(monkeypatch, tmp_path):
    """As in a new process with an empty cache."""
    monkeypatch.setattr(c, "_library", None)
    monkeypatch.setattr(c, "_failure", None)
    monkeypatch.setattr("vtr.kernels.bimamba._chooser.warned", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("VTR_BIMAMBA", raising=False)
    return tmp_path


def test_without_a_compiler_one_warning_names_the_cause_and_torch_computes(fresh_library, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh_library))
    values = arguments()
    with pytest.warns(RuntimeWarning, match="no C compiler"):
        y = bimamba(*values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(bimamba(*values), y)
    assert_close([y], [eager.bimamba(*values)], 1e-7)
    assert not next(row for row in backend_info() if row.name == "c").available
    with pytest.raises(UsageError, match="no C compiler"), use_backend("c"):
        pass


def test_a_failing_compiler_is_named_in_the_warning(fresh_library, monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.warns(RuntimeWarning, match="false failed: exit code 1"):
        bimamba(*arguments())
    assert not list(fresh_library.rglob("*.part"))


@needs_c
def test_processes_that_start_together_share_one_cache(tmp_path):
    code = "from vtr.kernels.bimamba import c; print(c.library()[1])"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({run.communicate()[0] for run in runs}) == 1
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(list(tmp_path.rglob("*.so"))) == len(list((tmp_path / "vtr" / "kernels").iterdir())) == 1


def test_the_choice_of_backend_is_visible_and_can_be_overridden(monkeypatch):
    monkeypatch.setenv("VTR_BIMAMBA", "eager")
    assert "VTR_BIMAMBA" in {row.name: row.chosen_for for row in backend_info()}["eager"]
    with pytest.raises(UsageError, match="did you mean 'eager'"), use_backend("eagr"):
        pass
    monkeypatch.setenv("VTR_BIMAMBA", "fast")
    with pytest.raises(UsageError, match="VTR_BIMAMBA"):
        bimamba(*arguments())


def test_shapes_that_do_not_fit_are_named():
    values = arguments()
    values[10] = values[10][:-1]
    with pytest.raises(ValueError, match="x_proj_b must be"):
        bimamba(*values)
