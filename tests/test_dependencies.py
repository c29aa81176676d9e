"""Every dependency is used, and docs/dependencies.md says what for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.house import CODE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def declared(repo: Path) -> set[str]:
    """Names of all that an installation brings, extras included, but for those of developers and the docs."""
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    extras = [
        name
        for extra, names in project["optional-dependencies"].items()
        if extra not in ("dev", "docs")
        for name in names
    ]
    return {re.split(r"[\s\[<>=;!~]", name, maxsplit=1)[0] for name in [*project["dependencies"], *extras]}


def described(repo: Path) -> dict[str, str]:
    """The page's packages, and what each is imported as."""
    rows = re.findall(r"^\| ([\w.-]+) \| ([\w.]+) \|", (repo / "docs" / "dependencies.md").read_text(), re.MULTILINE)
    return dict(rows)


@pytest.fixture(scope="module")
def imported(repo: Path) -> set[str]:
    """Every module that the package imports, with its parents."""
    found: set[str] = set()
    for folder in CODE:
        for path in (repo / folder).rglob("*.py"):
            for name in re.findall(r"^\s*(?:import|from) ([\w.]+)", path.read_text(), re.MULTILINE):
                parts = name.split(".")
                found |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return found


def test_the_page_lists_what_is_declared_and_nothing_else(repo: Path) -> None:
    assert set(described(repo)) - {"package"} == declared(repo)


def test_every_dependency_is_imported_by_code_that_runs(repo: Path, imported: set[str]) -> None:
    assert {name for name in declared(repo) if described(repo)[name] not in imported} == set()
