"""A wheel in an environment of any Python: installed, every module imported, the C kernel against torch, one search.

python tests/smoke.py                      # `make smoke PYTHON=python3.13`: this Python, all dependencies from the index
python tests/smoke.py --env FOLDER         # an environment that is there already, with what it has installed

Wants nothing but Python itself: the environment does the rest. The checkout gives two helpers of its tests and no `vtr`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


# What the modules behind one command or one kind of model import, from extras that are not here.
EXTRAS = ("datasets", "mcp", "mteb", "ray", "sentence_transformers")


def imported() -> str:
    """Import every module of the installed package; returns how many they are, and which wait for an extra."""
    import vtr

    assert REPO not in Path(vtr.__file__).resolve().parents, f"{vtr.__file__} is the checkout"
    names = [module.name for module in pkgutil.walk_packages(vtr.__path__, "vtr.")]
    waiting = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            cause = error.__cause__ or error  # a line of ours that says what to install, or Python's own
            if not isinstance(cause, ModuleNotFoundError) or cause.name not in EXTRAS:
                raise
            waiting.append(f"{name} ({cause.name})")
    return f"{len(names) - len(waiting)} modules imported; without their extra: {', '.join(waiting) or 'none'}"


def kernel() -> str:
    """Compile the C kernel and compare output and gradients with float64; returns what it was compiled for."""
    from tests.kernels.cases import arguments, assert_close, with_gradients
    from vtr.kernels.bimamba import backend_info, bimamba, eager, use_backend

    (row,) = [row for row in backend_info() if row.name == "c"]
    assert row.available, f"the C kernel: {row.reason}"
    values = arguments()
    with use_backend("c"):
        got = with_gradients(bimamba, values)
    assert_close(got, with_gradients(eager.bimamba, [value.double() for value in values]), 1e-5)
    return row.reason


def found(folder: Path) -> str:
    """Index three clips with a random model and search once through the command; returns what it printed."""
    from tests.helpers import small_model, write_videos

    small_model().save_pretrained(folder / "model")
    write_videos(folder / "videos", 3)
    vtr = [sys.executable, "-I", "-m", "vtr.cli"]
    build = [*vtr, "index", "build", "videos", "--model", "model", "--out", "my.library"]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    search = [*vtr, "search", "my.library", "a dog", "-k", "3"]
    printed = subprocess.run(search, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert all(f"clip{i}.mp4" in printed for i in range(3)), printed
    return printed.strip().splitlines()[0]


def inside() -> int:
    """What is tried in the environment."""
    begin = time.perf_counter()
    print(f"Python {platform.python_version()}: {imported()}", flush=True)
    sys.path.append(str(REPO))  # last, and vtr is loaded: only `tests` comes from there
    print(f"  C kernel as in float64: {kernel()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        print(f"  first of three hits: {found(Path(name))}")
    print(f"  {time.perf_counter() - begin:.0f} s")
    return 0


def main() -> int:
    """Build the wheel, install it, and run this file's second half there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--env", type=Path, help="an environment whose packages are used as they are")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.inside:
        return inside()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        place = flags.env or root / "env"
        if flags.env is None:
            venv.create(place, with_pip=True)
        python = [str(place.resolve() / "bin" / "python"), "-I"]
        pip = [*python, "-m", "pip", "--disable-pip-version-check"]
        shutil.rmtree(REPO / "build" / "lib", ignore_errors=True)  # setuptools packs what an older build left there
        subprocess.run([*pip, "wheel", "-q", "--no-deps", "--wheel-dir", root / "dist", REPO], check=True)
        (wheel,) = (root / "dist").glob("*.whl")
        subprocess.run([*pip, "install", "-q", f"{wheel}[serve]"], check=True)
        # The same version may be there from an earlier call: this wheel takes its place.
        subprocess.run([*pip, "install", "-q", "--no-deps", "--force-reinstall", wheel], check=True)
        return subprocess.run([*python, str(Path(__file__).resolve()), "--inside"], cwd=root).returncode


if __name__ == "__main__":
    sys.exit(main())
