"""The entry script as a user calls it: stages, resume, ranks, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtr.cli import main
from vtr.pretrain.recipes import STAGES
from vtr.pretrain.run import main as pretrain_main

SMALL = ("--demo-clips", "96", "--demo-images", "48")


def pretrain(
    repo: Path, *flags: object, launcher: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(repo / "pretrain" / "run.py"), *map(str, flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, cwd=repo)


def demo_flags(data_root: Path, out: Path, *more: object) -> tuple[object, ...]:
    quick = ("warmup.steps=2", "batch_size=16")
    return ("--corpus", "demo", "--data-root", data_root, "--out", out, *SMALL, "--set", *quick, *more)


@pytest.mark.slow
def test_all_stages_run_and_leave_a_model_that_loads(repo: Path, demo_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    watched = ("--validate-every", 2, "--validate-samples", 8)
    done = pretrain(repo, "--steps", 2, "--log-every", 1, *watched, *demo_flags(demo_root, out))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    validations = [r["validation"] for r in rows if "validation" in r]
    assert [set(v) >= {"t2v_r1", "v2t_r10"} for v in validations] == [True] * 3  # of the stages that contrast captions
    rows = [r for r in rows if "loss" in r]
    assert [r["stage"] for r in rows] == [s for s in STAGES for _ in range(2)]
    assert {"uta", "vtc", "mlm", "vtm"} <= set(rows[3])
    assert all(r["loss"] > 0 for r in rows)
    import vtr

    model = vtr.load(out)
    assert model.config.video.dim == 96
    assert main(["export", str(out), "--out", str(tmp_path / "last")]) == 0
    assert vtr.load(tmp_path / "last").fingerprint() == model.fingerprint()
    assert main(["export", str(out), "--checkpoint", "best", "--out", str(tmp_path / "best")]) == 0
    record = json.loads((out / "run.json").read_text())
    assert [(m["member"], m["samples"]) for m in record["corpus"]] == [("demo-video", 96), ("demo-image", 48)]


@pytest.mark.slow
def test_a_dry_run_counts_plans_measures_and_writes_nothing(
    demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--dry-run", "--workers", 0, "--stage", "masked", "--steps", 50)
    assert pretrain_main([*map(str, (*flags, *demo_flags(demo_root, tmp_path / "dry")))]) == 0
    said = capsys.readouterr().out
    assert "demo-video" in said
    assert "masked: 50 steps on every rank" in said
    assert "s a step over 20 steps" in said
    assert "GiB" in said
    assert not (tmp_path / "dry").exists()


@pytest.mark.slow
def test_two_ranks_on_a_cpu_hold_equal_weights(repo: Path, demo_root: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    flags = ("--stage", "unmasked", "--steps", 2, "--workers", 0, *demo_flags(demo_root, tmp_path / "two"))
    done = pretrain(repo, *flags, launcher=launcher, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert "2 ranks hold equal weights" in done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "vtr.pretrain.train" in loaded
    assert not loaded & {"torch._dynamo", "torch.distributed.fsdp", "open_clip"}  # seconds, for what is not used here


@pytest.mark.slow
def test_a_training_step_reads_real_shards_as_they_are(shared: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "real.toml"
    shard = shared / "data" / "shards" / "cc12m-train-0000.tar"
    corpus.write_text(f'[[member]]\nname = "cc12m"\nmedia = "image"\nshards = "{shard}"\n')
    words = f"--corpus {corpus} --model demo --stage unmasked --steps 1 --log-every 1 --workers 0 --out {tmp_path}/run"
    assert pretrain_main([*words.split(), "--set", "streams=4", "batch_size=8"]) == 0
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert row["media"] == "image"
    assert row["vtc"] > 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--corpus", "5N"), "5M"),
        (("--corpus", "demo", "--recipe", "clear"), "clean"),
        (("--corpus", "demo", "--set", "unmasked.optm.lr=1"), "optim"),
        (("--corpus", "demo", "--stage", "maksed"), "masked"),
        (("--corpus", "demo", "--steps", "0"), "positive"),
        (("--corpus", "demo", "--report-to", "tensorbord"), "tensorboard"),
        (("--corpus", "demo", "--report-to", "clearml"), "pip install clearml"),
        (("--corpus", "demo", "--out", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(
    flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = () if "--out" in flags else ("--out", str(tmp_path / "run"))
    code = pretrain_main([*flags, *out, "--data-root", str(tmp_path)])
    message = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert message.startswith("vtr: ")
    assert says in message
    assert "\n" not in message
