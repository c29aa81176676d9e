"""The GPU benchmarks' arithmetic, time limit and tables, without a GPU."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from bench import encoders_cuda, kernels_cuda, mamba_baseline, report
from bench.device import Device
from bench.kernel_cases import SHAPES, WIDTHS, example
from vtr.errors import UsageError, VtrError
from vtr.kernels.bimamba import eager, mamba

H100 = Device(type="cuda", name="H100", multiprocessors=132, clock_ghz=1.755, bytes_per_second=3e12)
SLOW = Device(type="cuda", name="slow memory", multiprocessors=132, clock_ghz=1.755, bytes_per_second=3e11)


def test_the_floor_of_the_reference_shape_is_the_documented_one() -> None:
    assert kernels_cuda.floor_ms(H100, 32, 1569, 1152, backward=False) == pytest.approx(0.59, abs=0.01)
    assert kernels_cuda.floor_ms(H100, 32, 1569, 1152, backward=True) == pytest.approx(0.59 + 2 * 0.5, abs=0.02)
    seven = 7 * 32 * 1569 * 1152 * 2 / 3e11 * 1e3
    assert kernels_cuda.floor_ms(SLOW, 32, 1569, 1152, backward=False) == pytest.approx(seven)


def test_without_time_every_measurement_is_listed_as_not_made() -> None:
    rows = list(kernels_cuda.scan_rows(H100, SHAPES, WIDTHS, lambda: True))
    assert len(rows) == len(SHAPES) * len(WIDTHS) * 2 * len(kernels_cuda.backends(H100))
    assert {row.note for row in rows} == {"no time left"}


def _scan(backend: str, **found: object) -> report.ScanRow:
    return report.ScanRow(
        encoder="middle", shape="video", batch=32, length=1569, width=1152, passes="forward", floor_ms=0.5,
        backend=backend, **found,
    )  # fmt: skip


def test_the_tables_show_ratios_and_what_is_missing(tmp_path: Path) -> None:
    part = report.Part(tmp_path / "kernels.json", {"device": "H100"})
    for row in (
        _scan("cuda", ms=1.0, peak_gib=1.5),
        _scan("mamba_ssm", ms=4.0, peak_gib=2.0),
        _scan("eager", note="out of memory"),
    ):
        part.add(row)
    encoder = {"size": "tiny", "frames": 8, "batch": 8}
    part = report.Part(tmp_path / "encoders.json", {"device": "H100"})
    for model, passes, backend, ms, peak in (
        ("VideoMamba", "inference", "cuda", 10.0, 3.0),
        ("VideoMamba", "inference", "mamba_ssm", 25.0, 4.0),
        ("TimeSformer", "inference", "naive", 150.0, 120.0),
    ):
        rate = 8 / ms * 1e3
        part.add(
            report.EncoderRow(
                model=model, **encoder, passes=passes, backend=backend, ms=ms, clips_per_second=rate, peak_gib=peak
            )
        )
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "| middle | video 32 x 1569 | forward | 0.500 | 1.000 | 2.00 | 4.000 | 4.00x | out of memory | - |" in text
    assert "| tiny | 8 | 8 | inference | 800.0 | 320.0 | 2.50x | 3.00 | 4.00 |" in text
    assert "| tiny | 8 | 8 | naive | 800.0 | 53.3 | 15.00x | 3.00 | 120.00 | 40.00x |" in text


def test_a_row_measured_again_replaces_the_old_one_and_others_stay(tmp_path: Path) -> None:
    report.Part(tmp_path / "k.json", {"device": "H100"}).add(_scan("eager", ms=9.0))
    report.Part(tmp_path / "k.json", {"device": "H100"}).add(_scan("cuda", ms=2.0))
    report.Part(tmp_path / "k.json", {"device": "H100"}).add(_scan("cuda", ms=1.0))
    assert [row["ms"] for row in json.loads((tmp_path / "k.json").read_text())["rows"]] == [9.0, 1.0]
    report.Part(tmp_path / "k.json", {"device": "H200"}).add(_scan("cuda", ms=3.0))
    assert [row["ms"] for row in json.loads((tmp_path / "k.json").read_text())["rows"]] == [3.0]


def test_both_benchmarks_run_whole_in_a_rehearsal_which_is_no_result(tmp_path: Path) -> None:
    assert kernels_cuda.main(["--rehearse", "--only", "reference", "--out", str(tmp_path)]) == 0
    assert encoders_cuda.main(["--rehearse", "--out", str(tmp_path)]) == 0
    scans, encoders = (json.loads((tmp_path / f"{n}.json").read_text())["rows"] for n in ("kernels", "encoders"))
    assert [row["backend"] for row in scans] == ["cuda", "mamba_ssm", "eager"] * 2
    assert [(row["model"], row["passes"], row["backend"]) for row in encoders] == [
        ("VideoMamba", "training", "cuda"),
        ("VideoMamba", "training", "mamba_ssm"),
        ("VideoMamba", "inference", "cuda"),
        ("VideoMamba", "inference", "mamba_ssm"),
        ("TimeSformer", "inference", "naive"),
        ("TimeSformer", "inference", "fused"),
    ]
    assert all(row["ms"] > 0 for row in scans + encoders)
    assert report.main([str(tmp_path)]) == UsageError("").exit_code  # not into docs/results


def test_what_does_not_fit_is_halved_for_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_one(
        device: Device, model: torch.nn.Module, case: encoders_cuda.Case, training: bool
    ) -> tuple[float, float]:
        if case.batch > 32:
            raise torch.OutOfMemoryError
        return 1.0, 1.0

    monkeypatch.setattr(encoders_cuda, "_time_one", time_one)
    monkeypatch.setattr(encoders_cuda, "build", lambda *_: torch.nn.Identity())
    case = encoders_cuda.Case(size="tiny", frames=64, batch=128)
    rows = list(encoders_cuda.peer_rows(Device.rehearsal(), [case], lambda: False))
    assert [(row.backend, row.batch) for row in rows] == [("naive", 32), ("fused", 32), ("cuda", 32)]


def test_one_call_for_a_profiler_checks_its_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels_cuda.main(["--rehearse", "--once", "1", "9"]) == 0
    assert "one forward and backward of 1 x 9 x 32" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_commands_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in (kernels_cuda, encoders_cuda):
        assert command.main(["--out", str(tmp_path)]) == VtrError("").exit_code
        assert "the CUDA kernels are not available here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_source_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no mamba_ssm-\*\.tar\.gz"):
        mamba_baseline.unpack(tmp_path, "mamba_ssm", tmp_path)


def test_a_packed_wheel_installs_as_the_part_that_is_needed(tmp_path: Path) -> None:
    package = tmp_path / "mamba_ssm"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("import all_of_it\n")
    (package / "ops" / "scan.py").write_text("HERE = True\n")
    (tmp_path / "scan_cuda.so").write_bytes(b"code")
    wheel = tmp_path / "mamba_ssm-2.3.2+bf16-cp312-cp312-linux_x86_64.whl"
    mamba_baseline.pack(wheel, "mamba_ssm", "2.3.2+bf16", package, tmp_path / "scan_cuda.so")
    with zipfile.ZipFile(wheel) as found:
        assert found.read("mamba_ssm/__init__.py") == b""
        assert found.read("mamba_ssm/ops/scan.py") == b"HERE = True\n"
        assert found.read("scan_cuda.so") == b"code"
        assert b"Tag: cp312-cp312-linux_x86_64" in found.read("mamba_ssm-2.3.2+bf16.dist-info/WHEEL")
        assert "mamba_ssm-2.3.2+bf16.dist-info/RECORD" in found.namelist()


def test_the_mamba_ssm_path_computes_bimamba(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plain scan in the place of mamba-ssm's kernel; the package itself is tested on a GPU."""

    def selective_scan_fn(u, delta, a, b, c, d, z, delta_bias, delta_softplus):
        assert delta_softplus
        step = torch.nn.functional.softplus(delta.transpose(1, 2) + delta_bias)
        y = eager.scan_loop(u.transpose(1, 2), step, b.transpose(1, 2), c.transpose(1, 2), a) + d * u.transpose(1, 2)
        return (y * torch.nn.functional.silu(z.transpose(1, 2))).transpose(1, 2)

    monkeypatch.setattr(mamba, "_package", lambda: (selective_scan_fn, None, ""))
    values = example(24, 13, batch=2)
    assert torch.allclose(mamba.bimamba(*values), eager.bimamba(*values), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_on_a_gpu_mamba_ssm_agrees_where_it_is_installed() -> None:
    there, reason = mamba.available()
    if not there:
        pytest.skip(reason)
    values = [v.cuda() for v in example(384, 197, batch=2)]
    error = (mamba.bimamba(*values) - eager.bimamba(*values)).norm() / eager.bimamba(*values).norm()
    assert error < 1e-4
