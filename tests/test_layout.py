"""The house: every code folder is in the wheel, and nothing of ours can be mistaken for another top-level package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDERS = ("vtr", "encoders", "kernels", "pretrain", "eval", "data_manifests")
OURS_TOP_LEVEL = {"encoders", "kernels", "pretrain", "eval", "data_manifests"}


def python_files(repo: Path) -> list[Path]:
    return [p for folder in (*FOLDERS, "tests") for p in (repo / folder).rglob("*.py") if "__pycache__" not in p.parts]


def test_every_folder_with_code_is_a_package_of_the_wheel(repo: Path) -> None:
    packages = set(tomllib.loads((repo / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder in FOLDERS:
        for path in (repo / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".c", ".cu", ".html", ".yaml") and "__pycache__" not in path.parts:
                dotted = ".".join(path.parent.relative_to(repo).parts)
                found.add(dotted if folder == "vtr" else f"vtr.{dotted}")
    assert found == packages


def test_kernels_is_a_namespace_so_that_it_never_shadows_another_package(repo: Path) -> None:
    assert not (repo / "kernels" / "__init__.py").exists()


def test_no_file_imports_our_folders_under_their_bare_names(repo: Path) -> None:
    wrong = []
    for path in python_files(repo):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                assert node.level == 0, f"{path}:{node.lineno}: relative import"
            wrong += [f"{path}:{node.lineno}: {n}" for n in names if n.split(".")[0] in OURS_TOP_LEVEL]
    assert wrong == []


def test_every_file_says_what_it_is_on_its_first_line(repo: Path) -> None:
    silent = [p for p in python_files(repo) if p.stat().st_size and not p.read_text().startswith(('"""', "# "))]
    assert silent == []


def test_importing_vtr_loads_nothing_heavy() -> None:
    code = (
        "import sys, vtr; print([m for m in ('torch', 'faiss', 'av', 'transformers', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("script", ["pretrain/run.py", "pretrain/finetune.py", "eval/zero_shot.py"])
def test_an_entry_script_runs_from_a_checkout_that_is_not_installed(repo: Path, script: str, tmp_path: Path) -> None:
    # -I -S would hide torch as well; an empty folder as working directory hides the checkout.
    done = subprocess.run(
        [sys.executable, str(repo / script), "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
