"""Builds sdist and wheel, checks them, installs the wheel into an environment of its own, tries it from another folder.

python -m tests.installed                # `make wheel`
python -m tests.installed --keep dist    # `make release`: keep both archives there, and print what would be uploaded

Heavy dependencies come from this environment through a .pth file; nothing of the checkout is on the path.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

from tests.helpers import small_model, write_videos

REPO = Path(__file__).resolve().parent.parent
PACKAGED = ("vtr", "encoders", "kernels", "pretrain", "eval", "data_manifests")
DATA = (".py", ".toml", ".yaml", ".c", ".cu", ".cuh", ".html", ".typed")
CHECKPOINT = "videomamba_tiny.in1k_res224"


def build(folder: Path) -> Path:
    """Both archives, checked by twine and against the tree; returns the wheel."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPO],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, folder.iterdir())], check=True)
    (wheel,) = folder.glob("*.whl")
    (source,) = folder.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files", *PACKAGED], cwd=REPO, capture_output=True, text=True, check=True)
    files = [name for name in tracked.stdout.split() if name.endswith(DATA)]
    absent = [name for name in files if (name if name.startswith("vtr/") else f"vtr/{name}") not in inside]
    assert not absent, f"not in the wheel: {absent}"
    assert not set(files) - packed, f"not in the sdist: {set(files) - packed}"
    assert all(name.startswith(("vtr/", "vtr_search-")) for name in inside), "the wheel has a top-level name of others"
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """An environment with the wheel and this one's dependencies; returns its folder of commands."""
    venv.create(place)
    (site,) = place.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    into = [sys.executable, "-m", "pip", "--python", place / "bin/python"]
    subprocess.run([*into, "install", "-q", "--no-deps", wheel], check=True)
    return place / "bin"


def release_notes(version: str, changes: str) -> str:
    """The section of CHANGELOG.md of a version; AssertionError where it has none with a date."""
    found = re.search(
        rf"^## {re.escape(version)}, \d{{4}}-\d\d-\d\d$(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL
    )
    assert found, f"CHANGELOG.md has no section '## {version}, DATE'"
    return found[0].strip()


def offer(archives: Path, place: Path) -> None:
    """Put checked archives where they are uploaded from, and say what that would be."""
    wheel = next(archives.glob("*.whl"))
    version = wheel.name.split("-")[1]
    notes = release_notes(version, (REPO / "CHANGELOG.md").read_text())
    assert f"version: {version}\n" in (REPO / "CITATION.cff").read_text(), f"CITATION.cff is not of {version}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(archives, place)
    print(f"\n{notes}\n\nwould be uploaded (nothing was; python -m twine upload {place}/*):")
    for path in sorted(place.iterdir()):
        print(f"  {path}  {path.stat().st_size / 1e6:.2f} MB  sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main(kept: Path | None = None) -> int:
    """Run every command; the first that fails ends it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        commands = install(build(root / "dist"), root / "env")
        away = root / "away"
        away.mkdir()
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "VTR_"))}
        environment = {
            **keep,
            "XDG_CACHE_HOME": str(root / "cache"),
            "VTR_CACHE": str(root / "models"),
            "HF_HUB_OFFLINE": "1",
        }

        def vtr(*words: object, says: str = "") -> str:
            begin = time.perf_counter()
            done = subprocess.run(
                [commands / "vtr", *map(str, words)],
                cwd=away,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
            print(
                f"$ vtr {' '.join(map(str, words))}: {time.perf_counter() - begin:.1f} s, exit {done.returncode}",
                flush=True,
            )
            assert done.returncode == 0, done.stderr
            assert says in done.stdout + done.stderr, done.stdout + done.stderr
            return done.stdout

        place = vtr("doctor", says="c          yes  compiled for")
        assert f"from {root}/env" in place, place
        assert list((root / "cache/vtr/kernels").glob("bimamba-*.so")), "the C kernel was not compiled"
        vtr("version", says="vtr 0.")
        vtr("models", says=CHECKPOINT)
        vtr("models", CHECKPOINT, says="source")
        vtr("benchmarks", says="msrvtt")
        write = f"import torch; from tests.models.test_official import official; torch.save(official({CHECKPOINT!r}, depth=24), {str(root / 'f.pth')!r})"
        subprocess.run([sys.executable, "-c", write], cwd=REPO, check=True)
        vtr("models", CHECKPOINT, "--file", root / "f.pth", says="ready")
        load = f"import vtr; print(type(vtr.load({CHECKPOINT!r})).__name__, vtr.__file__)"
        told = subprocess.run(
            [commands / "python", "-c", load], cwd=away, env=environment, capture_output=True, text=True
        )
        assert told.stdout.startswith(f"RecognitionModel {root}/env"), told.stdout + told.stderr
        tiny = ("--clips", 96, "--images", 48, "--steps", 2, "--stage", "unmasked", "--rerank", 2)
        vtr("demo", *tiny, "--set", "warmup.steps=2", "batch_size=16", says="all numbers: ")
        small_model().save_pretrained(root / "model")
        write_videos(root / "videos", 3)
        vtr("index", "build", root / "videos", "--model", root / "model", "--out", "my.library")
        vtr("search", "my.library", "a dog", "-k", 1, says="clip")
        words = [commands / "vtr", "serve", "my.library", "--port", "8471"]
        server = subprocess.Popen(list(map(str, words)), cwd=away, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            answer = _asked("http://127.0.0.1:8471/api/search?q=a+dog&k=1", server)
            assert "clip" in answer, answer
            assert "<html" in _asked("http://127.0.0.1:8471/", server).lower()
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=120)
        print("$ vtr serve my.library, one request and the page: answered", flush=True)
        changed = [
            p
            for p in root.glob("env/lib/python*/site-packages/vtr/**/*")
            if p.is_file() and p.suffix not in (*DATA, ".pyc")
        ]
        assert not changed, f"written into the package: {changed}"
        if kept is not None:
            offer(root / "dist", kept)
    return 0


def _asked(address: str, server: subprocess.Popen[str]) -> str:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                return answer.read().decode()
        except OSError:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.2)


if __name__ == "__main__":
    given = argparse.ArgumentParser(description="Build, check, install and try both archives.")
    given.add_argument("--keep", type=Path, help="folder for the archives")
    sys.exit(main(given.parse_args().keep))
