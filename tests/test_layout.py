"""The house: every folder is in the wheel, imports go one way, nothing hides or grows too long, cited pages exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDERS = ("vtr", "encoders", "kernels", "pretrain", "eval", "data_manifests")
# What a change may not make worse.
MOST_DEFERRED = 0.16  # share of imports inside functions: only to delay something heavy
MOST_ANY = 9  # a thousand lines
LONGEST_FUNCTION = 80
LONGEST_FILE = 600
OURS_TOP_LEVEL = {"encoders", "kernels", "pretrain", "eval", "data_manifests"}


def python_files(repo: Path) -> list[Path]:
    return [p for folder in (*FOLDERS, "tests") for p in (repo / folder).rglob("*.py") if "__pycache__" not in p.parts]


def test_every_folder_with_code_is_a_package_of_the_wheel(repo: Path) -> None:
    packages = set(tomllib.loads((repo / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder in FOLDERS:
        for path in (repo / folder).rglob("*"):
            if (
                path.suffix in (".py", ".toml", ".yaml", ".c", ".cu", ".cuh", ".html")
                and "__pycache__" not in path.parts
            ):
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


def test_no_named_tuple_is_generic_which_python_3_10_cannot_have(repo: Path) -> None:
    for path in python_files(repo):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and len(node.bases) > 1:
                assert "NamedTuple" not in map(ast.unparse, node.bases), f"{path}: {node.name}"


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


@pytest.fixture(scope="module")
def sources(repo: Path) -> dict[Path, house.Source]:
    return house.read(repo)


def test_imports_go_one_way_through_the_layers(sources: dict[Path, house.Source]) -> None:
    assert "\n".join(house.wrong_ways(sources)) == "", "docs/architecture.md says who may import whom"


def test_no_files_import_each_other_in_a_circle(sources: dict[Path, house.Source]) -> None:
    assert "\n".join(house.circles(sources)) == "", "move what both need into a file below them"


def test_imports_inside_functions_are_the_exception(sources: dict[Path, house.Source]) -> None:
    inside = sorted((len(s.deferred), f"{s.path}:{s.deferred[0]}") for s in sources.values() if s.deferred)
    share = sum(count for count, _ in inside) / sum(s.statements for s in sources.values())
    assert share <= MOST_DEFERRED, f"{share:.1%} of imports are inside functions; most in {inside[-5:]}"


def test_any_is_the_exception(sources: dict[Path, house.Source]) -> None:
    found = sorted((len(s.anys), f"{s.path}:{s.anys[0]}") for s in sources.values() if s.anys)
    rate = 1000 * sum(count for count, _ in found) / sum(s.lines for s in sources.values())
    assert rate <= MOST_ANY, f"{rate:.1f} `Any` a thousand lines; most in {found[-5:]}"


def test_no_function_and_no_file_is_too_long(sources: dict[Path, house.Source]) -> None:
    long = [f"{s.path}: {s.lines} lines" for s in sources.values() if s.lines > LONGEST_FILE]
    long += [
        f"{s.path}:{line}: {name} has {length} lines"
        for s in sources.values()
        for name, line, length in s.functions
        if length > LONGEST_FUNCTION
    ]
    assert long == []


def test_every_page_that_is_cited_is_there(repo: Path) -> None:
    kinds = {".py", ".c", ".cu", ".cuh", ".toml", ".yaml", ".yml", ".md", ".html", ".sh"}
    tracked = subprocess.run(["git", "ls-files"], cwd=repo, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    files = [repo / name for name in tracked if Path(name).suffix in kinds and name != "tests/test_layout.py"]
    if not files:
        pytest.skip("not a git checkout")
    assert "\n".join(house.absent_pages(repo, iter(files))) == ""


def test_the_house_s_rules_see_what_breaks_them(tmp_path: Path) -> None:
    """On a small house with one fault of each kind."""
    files = {
        "vtr/__init__.py": "",
        "vtr/errors.py": "",
        "vtr/data/__init__.py": "",
        "vtr/data/a.py": "import vtr.errors\n\ndef f():\n    from vtr.data.b import g\n",
        "vtr/data/b.py": "from typing import Any\nfrom vtr.data.a import f\nx: Any = 1\n",
        "kernels/k.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vtr.models.m\n",
        "vtr/models/__init__.py": "",
        "vtr/models/m.py": "import vtr.kernels.k\n",
        "encoders/e.py": '# docs/gone.md\n# docs/here.md, "Below"\n# docs/here.md, "Above"\nfrom vtr.models import m\n',
        "docs/here.md": "# Here\n\n## Below\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    sources = house.read(tmp_path)
    assert house.wrong_ways(sources) == ["encoders/e.py:4: encoders may not import models (vtr/models/m.py)"]
    assert house.circles(sources) == ["vtr/data/b.py:2: imports vtr/data/b.py <- vtr/data/a.py, a circle"]
    assert (sources[Path("vtr/data/a.py")].deferred, sources[Path("vtr/data/b.py")].anys) == ([4], [3])
    assert house.absent_pages(tmp_path, iter([tmp_path / "encoders/e.py"])) == [
        "encoders/e.py:1: cites docs/gone.md, which is not there",
        "encoders/e.py:3: docs/here.md has no heading 'Above'",
    ]
