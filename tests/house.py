"""How the code is laid out, read from its syntax trees: who imports whom, what is hidden in functions, what is too long."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# A room may import itself, the ground, and what stands here; docs/architecture.md has the picture.
LAYERS = {
    "kernels": "",
    "encoders": "kernels",
    "data": "",
    "models": "encoders kernels data",
    "library": "models data",
    "eval": "models encoders kernels data",
    "pretrain": "eval models encoders kernels data",
    "top": "pretrain eval library models encoders kernels data",
}
# Files directly in vtr/ that anybody may import; the others there are "top".
GROUND = {"errors", "files", "hub", "progress", "ranks", "settings", "threads"}
CODE = ("vtr", "encoders", "kernels", "pretrain", "eval", "data_manifests")


@dataclass(frozen=True, kw_only=True)
class Import:
    """One file of ours that a line imports."""

    line: int
    target: Path


@dataclass(kw_only=True)
class Source:
    """A file, and what its syntax tree says."""

    path: Path  # relative to the checkout
    lines: int
    imports: list[Import] = field(default_factory=list)  # of our own files, those for type checkers left out
    statements: int = 0  # imports of anything
    deferred: list[int] = field(default_factory=list)  # lines of those inside functions
    anys: list[int] = field(default_factory=list)
    functions: list[tuple[str, int, int]] = field(default_factory=list)  # name, line, length

    @property
    def room(self) -> str:
        """The layer that the file belongs to."""
        first, *rest = self.path.with_suffix("").parts
        if first != "vtr":
            return "ground" if first == "data_manifests" else first
        if len(rest) > 1:
            return rest[0]
        return "ground" if rest[0] in GROUND else "top"


def read(root: Path) -> dict[Path, Source]:
    """Every Python file of the package in a checkout."""
    paths = [p.relative_to(root) for folder in CODE for p in sorted((root / folder).rglob("*.py"))]
    names = {_dotted(path): path for path in paths}
    return {path: _source(root, path, names) for path in paths}


def _dotted(path: Path) -> str:
    parts = [part for part in path.with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[0] == "vtr" else ["vtr", *parts])


def _source(root: Path, path: Path, names: dict[str, Path]) -> Source:
    text = (root / path).read_text(encoding="utf-8")
    found = Source(path=path, lines=text.count("\n"))
    for node, inside, for_types in _walk(ast.parse(text), False, False):
        if isinstance(node, ast.Name) and node.id == "Any":
            found.anys.append(node.lineno)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.functions.append((node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.statements += 1
            if inside:
                found.deferred.append(node.lineno)
            if not for_types:
                targets = {_ours(name, names) for name in _wanted(node)} - {None, path}
                found.imports += [Import(line=node.lineno, target=target) for target in targets if target]
    return found


def _walk(node: ast.AST, inside: bool, for_types: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Every node, whether it is inside a function, and whether only a type checker sees it."""
    for child in ast.iter_child_nodes(node):
        yield child, inside, for_types
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        checked = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, inside or function, for_types or checked)


def _wanted(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _ours(name: str, names: dict[str, Path]) -> Path | None:
    """The file that an imported name is of: the module itself, or the nearest package above; None for `vtr` alone."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return names[name] if name and name != "vtr" else None


def circles(sources: dict[Path, Source]) -> list[str]:
    """A line for every chain of imports that comes back to its start, imports inside functions included."""
    found, done = [], set()

    def follow(path: Path, way: list[Import | Path]) -> None:
        for step in sources[path].imports:
            on_way = [place for place in way if isinstance(place, Path)]
            if step.target in on_way:
                chain = on_way[on_way.index(step.target) :]
                if frozenset(chain) not in done:
                    done.add(frozenset(chain))
                    found.append(f"{path}:{step.line}: imports {' <- '.join(map(str, reversed(chain)))}, a circle")
            elif step.target not in seen:
                seen.add(step.target)
                follow(step.target, [*way, step.target])

    seen: set[Path] = set()
    for path in sources:
        if path not in seen:
            seen.add(path)
            follow(path, [path])
    return found


def wrong_ways(sources: dict[Path, Source]) -> list[str]:
    """A line for every import that the layers do not allow."""
    found = []
    for path, source in sources.items():
        allowed = {source.room, "ground", *LAYERS.get(source.room, "").split()}
        for step in source.imports:
            room = sources[step.target].room
            if room not in allowed:
                found.append(f"{path}:{step.line}: {source.room} may not import {room} ({step.target})")
    return found


_PAGE = re.compile(r"\b(docs/[\w/.-]+?\.(?:md|json|svg)|[A-Z][A-Z_]{3,}\.md)\b(?:, \"([^\"\n]+)\")?")


def absent_pages(root: Path, files: Iterator[Path]) -> list[str]:
    """A line for every citation of a page, or of a heading in it (written `PAGE, "Heading"`), that is not there."""
    found = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for page, heading in _PAGE.findall(line):
                there = root / page
                if not there.is_file():
                    found.append(f"{path.relative_to(root)}:{number}: cites {page}, which is not there")
                elif heading and not re.search(rf"^#+ {re.escape(heading)}$", there.read_text(), re.MULTILINE):
                    found.append(f"{path.relative_to(root)}:{number}: {page} has no heading {heading!r}")
    return found
