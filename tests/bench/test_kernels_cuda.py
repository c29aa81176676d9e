"""The GPU benchmark's arithmetic, time limit and table, without a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
import torch

from bench import kernels as bench
from bench import kernels_cuda as bench_cuda
from bench import mamba_baseline
from tests.kernels.emulation import Emulator, needs_gxx
from vtr.errors import UsageError, VtrError
from vtr.kernels import nvrtc
from vtr.kernels.bimamba import BackendRow, cuda, eager, mamba

H100 = bench_cuda.Machine(name="H100", multiprocessors=132, clock_ghz=1.755, bytes_per_second=3e12)


def test_the_floor_of_the_reference_shape_is_the_documented_one():
    assert bench_cuda.floor_ms(H100, 32, 1569, 1152, backward=False) == pytest.approx(0.59, abs=0.01)
    assert bench_cuda.floor_ms(H100, 32, 1569, 1152, backward=True) == pytest.approx(0.59 + 2 * 0.5, abs=0.02)
    slow = bench_cuda.Machine(name="slow memory", multiprocessors=132, clock_ghz=1.755, bytes_per_second=3e11)
    seven = 7 * 32 * 1569 * 1152 * 2 / 3e11 * 1e3
    assert bench_cuda.floor_ms(slow, 32, 1569, 1152, backward=False) == pytest.approx(seven)


def test_without_time_every_measurement_is_listed_as_not_made():
    rows = list(bench_cuda.scan_rows(H100, lambda: True))
    assert len(rows) == len(bench_cuda.SHAPES) * len(bench_cuda.WIDTHS) * 2 * len(bench_cuda._backends())
    assert {row["note"] for row in rows} == {"no time left"}


def test_the_table_shows_ratios_and_what_is_missing():
    row = {"what": "bimamba", "encoder": "middle", "shape": "video", "batch": 32, "length": 1569, "width": 1152}
    row |= {"pass": "forward", "floor_ms": 0.5}
    encoder = {"what": "encoder", "encoder": "tiny", "batch": 8, "pass": "training"}
    rows = [
        {**row, "backend": "cuda", "ms": 1.0, "peak_gib": 1.5},
        {**row, "backend": "mamba_ssm", "ms": 4.0, "peak_gib": 2.0},
        {**row, "backend": "eager", "note": "out of memory"},
        {**encoder, "backend": "cuda", "ms": 10.0, "clips_per_second": 800.0, "peak_gib": 3.0},
        {**encoder, "backend": "mamba_ssm", "ms": 25.0, "clips_per_second": 320.0, "peak_gib": 4.0},
    ]
    text = bench_cuda.table({"machine": {"device": "H100"}, "rows": rows})
    assert "| middle | video 32 x 1569 | forward | 0.500 | 1.000 | 2.00 | 4.000 | 4.00x | out of memory | - |" in text
    assert "| tiny | 8 | training | 800.0 | 320.0 | 2.50x |" in text


@needs_gxx
def test_a_run_writes_every_row_and_keeps_what_it_has(tmp_path, monkeypatch):
    """The whole command on the CPU, with emulated kernels and a clock that always says one millisecond."""
    import vtr.encoders.videomamba as videomamba

    def milliseconds(call, repeats=1):
        call()
        return 1.0

    monkeypatch.setattr(bench_cuda, "SHAPES", [("video", 1, 9)])
    monkeypatch.setattr(bench_cuda, "WIDTHS", {"tiny": 32})
    monkeypatch.setattr(bench_cuda, "ENCODERS", [("tiny", 1)])
    monkeypatch.setattr(bench_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(bench_cuda, "milliseconds", milliseconds)
    monkeypatch.setattr(bench_cuda.Machine, "here", classmethod(lambda cls: H100))
    monkeypatch.setattr(
        bench_cuda, "backend_info", lambda: [BackendRow(name="cuda", available=True, reason="", chosen_for="")]
    )
    monkeypatch.setattr(bench_cuda, "use_backend", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(mamba, "available", lambda: (True, ""))
    monkeypatch.setattr(mamba, "bimamba", eager.bimamba)
    sizes = dataclasses.replace(videomamba.VIDEOMAMBA_SIZES["tiny"], dim=16, depth=2)
    monkeypatch.setattr(videomamba, "VIDEOMAMBA_SIZES", {"tiny": sizes})
    monkeypatch.setattr("vtr.kernels.bimamba._choose", lambda tensors: "cuda" if len(tensors[0]) == 1 else "eager")
    monkeypatch.setattr(nvrtc, "launcher", lambda unit, device, defines: Emulator(unit, defines, cuda.Job))
    monkeypatch.setattr(nvrtc, "multiprocessors", lambda index: 1)
    monkeypatch.setattr(nvrtc, "index_of", lambda device: 0)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    assert bench_cuda.main(1.0, tmp_path, None, False) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    scans, encoders = ([row for row in rows if row["what"] == what] for what in ("bimamba", "encoder"))
    assert [row["backend"] for row in scans] == ["cuda", "mamba_ssm", "eager"] * 2
    assert [(row["pass"], row["backend"]) for row in encoders] == [
        (which, name) for which in ("inference", "training") for name in ("cuda", "mamba_ssm")
    ]
    assert all(row["ms"] == 1.0 for row in rows)
    assert "| tiny | video 1 x 9 | forward |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(capsys, tmp_path):
    assert bench.main(["--device", "cuda", "--out", str(tmp_path)]) == VtrError("").exit_code
    assert "the CUDA kernels are not available here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_source_archive_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no mamba_ssm-\*\.tar\.gz"):
        mamba_baseline._unpack(tmp_path, "mamba_ssm", tmp_path)


def test_the_mamba_ssm_path_computes_bimamba(monkeypatch):
    """With a plain scan in the place of mamba-ssm's kernel; the package itself is tested on a GPU."""

    def selective_scan_fn(u, delta, a, b, c, d, z, delta_bias, delta_softplus):
        assert delta_softplus
        step = torch.nn.functional.softplus(delta.transpose(1, 2) + delta_bias)
        y = eager.scan_loop(u.transpose(1, 2), step, b.transpose(1, 2), c.transpose(1, 2), a) + d * u.transpose(1, 2)
        return (y * torch.nn.functional.silu(z.transpose(1, 2))).transpose(1, 2)

    monkeypatch.setattr(mamba, "_package", lambda: (selective_scan_fn, None, ""))
    values = bench.example(24, 13, batch=2)
    assert torch.allclose(mamba.bimamba(*values), eager.bimamba(*values), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_mamba_ssm_agrees_where_it_is_installed():
    there, reason = mamba.available()
    if not there:
        pytest.skip(reason)
    values = [v.cuda() for v in bench.example(384, 197, batch=2)]
    error = (mamba.bimamba(*values) - eager.bimamba(*values)).norm() / eager.bimamba(*values).norm()
    assert error < 1e-4
