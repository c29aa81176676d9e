"""Commands of README.md and docs/ are read by what would run them, and each is run by tests/readme.py or marked with its needs."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import tyro

from tests.readme import NEEDS, REPO, SMALLER, Command, commands, pages, smaller
from vtr.completion import flags_of
from vtr.errors import VtrError
from vtr.verbs import VERBS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXTS = {str(page.relative_to(REPO)): page.read_text() for page in pages()}
COMMANDS = {page: commands(text) for page, text in TEXTS.items()}
ALL = [(page, command) for page, found in COMMANDS.items() for command in found]
# Each command once, wherever it stands.
DISTINCT = {command.text: (page, command) for page, command in reversed(ALL) if not command.python}
PLACEHOLDER = re.compile(r"\b(VIDEOS|[A-Z]+_MODEL|HOST|NAME|FILE|MODEL)\b|(^| )/data\b")
OURS = ("vtr", "python", "accelerate", "torchrun", "pip", "make")  # others may not be here, in blocks marked with tools


class Read(BaseException):
    """The flags have been read; nothing is done with them."""


@contextlib.contextmanager
def reading_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever reads flags inside ends with `Read` where it would go on."""
    cli, parse_args = tyro.cli, argparse.ArgumentParser.parse_args

    def read_by_tyro(*args: object, **named: object) -> NoReturn:
        cli(*args, **named)  # type: ignore[arg-type]
        raise Read

    def read_by_argparse(*args: object, **named: object) -> NoReturn:
        parse_args(*args, **named)  # type: ignore[arg-type]
        raise Read

    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", read_by_tyro)
        patch.setattr(argparse.ArgumentParser, "parse_args", read_by_argparse)
        try:
            yield
        except Read:
            return
    pytest.fail("it went on without reading its flags")


def read(words: list[str], repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the flags of a command read by what would run it; fails where they would be refused."""
    program, *rest = [Path(words[0]).name, *words[1:]]
    if program in ("accelerate", "torchrun"):
        read(launched(program, rest), repo, monkeypatch)
        return
    if program == "vtr":
        program, rest = "python", ["-m", "vtr.cli", *rest]
    if program == "python":
        module = rest[0] == "-m"
        name, *flags = rest[1:] if module else rest
        if any(command.text.startswith(f"cat > {name} <<") for _, command in ALL):
            return  # the page has written it
        monkeypatch.setattr(sys, "argv", [name, *flags])
        with reading_only(monkeypatch):
            if name == "vtr.cli":
                importlib.import_module("vtr.cli").run(flags)
            elif module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(repo / name), run_name="__main__")
    elif program == "pip":
        check_install(rest, repo)
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (repo / "Makefile").read_text(), re.MULTILINE), f"no target {rest[0]}"
    else:
        assert program == "printf" or shutil.which(program), f"{program}: no such command"


def launched(launcher: str, words: list[str]) -> list[str]:
    """What a launcher starts, as a command of its own."""
    if launcher == "torchrun":
        from torch.distributed.run import parse_args

        args = parse_args(words)
    else:
        from accelerate.commands.launch import launch_command_parser

        assert words[0] == "launch"
        args = launch_command_parser().parse_args(words[1:])
    return ["python", *(["-m"] if args.module else []), args.training_script, *args.training_script_args]


def check_install(words: list[str], repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(r"(.+)\[(\w+)\]", words[-1])
    assert found, words
    assert found[1] == ("." if "-e" in words else project["name"])
    assert found[2] in project["optional-dependencies"]


def shown(page: str, command: Command) -> str:
    return f"{page}:{command.line}: {command.text.splitlines()[0]}"


@pytest.mark.parametrize(("page", "command"), DISTINCT.values(), ids=[shown(*found) for found in DISTINCT.values()])
def test_a_command_of_a_page_has_flags_that_exist(
    page: str, command: Command, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", str(repo))
    if "tools" in command.needs and command.text.split()[0] not in OURS:
        return
    for text in {command.text, smaller(command.text, 96, 48)}:
        first = text.partition("\n")[0] if "<<'EOF'" in text else text
        read(shlex.split(os.path.expandvars(first.partition(" && ")[0])), repo, monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        "vtr search my.library --nearest 5",
        "vtr query my.library",
        "accelerate launch pretrain/run.py --corpora demo",
        "torchrun --nproc_per_node 2 -m vtr.cli embed shards --model x --outs y",
        "python -m bench.kernels --lenght 3",
        "python -m bench.kernel",
        "pip install 'vtr-serch[serve]'",
        "make demos",
    ],
)
def test_a_command_with_a_name_that_does_not_exist_is_found(
    text: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((VtrError, SystemExit, AssertionError, ImportError)):
        read(shlex.split(text), repo, monkeypatch)


def test_python_of_the_pages_compiles_and_names_what_vtr_has() -> None:
    import vtr

    blocks = [(page, command.text) for page, command in ALL if command.python]
    assert "README.md" in dict(blocks)
    for page, text in blocks:
        compile(text, page, "exec")
        assert [name for name in re.findall(r"\bvtr\.(\w+)\(", text) if not hasattr(vtr, name)] == [], page


def test_a_command_with_a_placeholder_is_not_run_and_says_why() -> None:
    wrong = [shown(*found) for found in ALL if PLACEHOLDER.search(found[1].text) and not found[1].needs]
    assert wrong == []


@pytest.mark.parametrize("page", TEXTS)
def test_a_block_of_commands_says_that_it_is_one(page: str) -> None:
    assert (
        re.findall(r"^```(?:text|sh|console)?\n(?:vtr|pip|make|python|accelerate|torchrun) .*", TEXTS[page], re.M) == []
    )


def test_every_mark_is_known_and_every_smaller_size_belongs_to_a_command() -> None:
    assert {need for _, command in ALL for need in command.needs} <= set(NEEDS)
    for start in SMALLER:
        assert any(command.text.startswith(start) for _, command in ALL), f"{start}: no such command on any page"


@pytest.mark.parametrize("page", [page for page, found in COMMANDS.items() if found])
def test_a_folder_that_a_command_reads_is_the_demos_or_made_before(page: str) -> None:
    made, wrong = ["runs/demo", "data/demo"], []
    for command in (c for c in COMMANDS[page] if not c.python and not c.why_not and "<<'EOF'" not in c.text):
        words = shlex.split(command.text)
        for before, word in zip(["", *words], words):
            ours = re.fullmatch(r"(runs|data)/\S+|\w+\.library|my_\w+(/\S+)?|shards|embeddings|parts", word)
            if not ours or before == "-m":
                continue
            if before in ("--out", ">", "-p") or "--generate" in words or (words[0] == "cp" and word == words[-1]):
                made.append(word)
            elif words[0] != "vtr" or word != words[1]:
                wrong += [] if any(word.startswith(m) for m in made) else [f"{shown(page, command)}: {word}"]
    assert wrong == []


@pytest.mark.parametrize("page", TEXTS)
def test_a_flag_module_or_page_that_the_text_names_exists(page: str, repo: Path, known_flags: set[str]) -> None:
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        for flag in re.findall(
            r"(?<!\S)--[a-z][a-z-]*", code if not code.startswith(("python", "pip", "pytest")) else ""
        ):
            assert flag in known_flags, f"`{code}`: no verb has {flag}"
        for module in re.findall(r"python -m ([a-z_.]+)(?!\S)", code):
            assert importlib.util.find_spec(module), f"`{code}`: no such module"
    for target in re.findall(r"\]\(([\w/.-]+)\)", prose):
        assert ((repo / page).parent / target).is_file(), f"{target}: no such page"


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    return {flag for verb in VERBS for flag in flags_of(verb)}


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].split()) <= 900


def test_commands_are_read_with_continued_lines_files_and_needs_but_without_remarks() -> None:
    page = (
        '# T\n```bash\nvtr a \\\n    --b 1    # what\n\nvtr c "#17"\n```\ntext\n```toml\na = 1\n```\n```bash needs=gpu,data\n'
        "cat > x <<'EOF'\na # b\n\nEOF\nls\n```\n```python\nimport vtr\n```\n"
    )
    first, second, file, listed, python = commands(page)
    assert (first.line, first.text.split(), first.block, first.needs) == (3, ["vtr", "a", "--b", "1"], 0, ())
    assert (second.line, second.text) == (6, 'vtr c "#17"')
    assert (file.line, file.text, file.needs, file.block) == (13, "cat > x <<'EOF'\na # b\n\nEOF", ("gpu", "data"), 1)
    assert (listed.line, listed.text) == (17, "ls")
    assert (python.line, python.text, python.python, python.block) == (20, "import vtr\n", True, 2)


def test_smaller_sizes_replace_those_of_the_readme() -> None:
    assert smaller("python -m bench.drills kills") == "python -m bench.drills kills --moments 1 --ranks 1"
    small = smaller("python -m bench.library --count 1000000 --out x")
    assert "--count 3000" in small
    assert "1000000" not in small
    assert small.endswith("--out x")
