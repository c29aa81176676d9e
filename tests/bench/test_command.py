"""What the benchmarks share: every one's help, tables, results that are whole or not there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from bench.command import RESULTS, machine, save, split_doc, table, whole_number

BENCH = Path(__file__).resolve().parents[2] / "bench"
COMMANDS = sorted(path.stem for path in BENCH.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_explains_itself_with_each_example_on_a_line_of_its_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"bench.{name}").main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    examples = said.partition("\nexamples:\n")[2].splitlines()
    assert f"usage: python -m bench.{name} " in said
    assert examples
    assert all(
        line.startswith(f"  python -m bench.{name} ") or line == f"  python -m bench.{name}" for line in examples
    )
    assert "(default: )" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_an_example_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"bench.{name}")
    helps = []
    for words in (
        ["--help"],
        *([["kills", "--help"], ["ranks", "--help"], ["faults", "--help"]] if name == "drills" else []),
    ):
        with pytest.raises(SystemExit):
            module.main(words)
        helps.append(capsys.readouterr().out.partition("\nexamples:\n")[0])
    known = set(re.findall(r"--[a-z-]+", " ".join(helps)))
    lines = split_doc(module.__doc__)[1].splitlines()
    used = set(re.findall(r"--[a-z-]+", " ".join(line.partition("  # ")[0] for line in lines)))
    assert used <= known


def test_a_docstring_is_split_into_words_and_examples() -> None:
    about, examples = split_doc("Does it.\n\npython -m bench.it      # so\npython -m bench.it --no\n\nMore of it.\n")
    assert about.split("\n") == ["Does it.", "", "", "More of it."]
    assert examples == "examples:\n  python -m bench.it      # so\n  python -m bench.it --no"


def test_a_cell_cannot_break_a_table() -> None:
    assert table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n| --- | --- |\n| x/y | 1 2 |"


def test_a_result_replaces_the_old_one_in_one_step(tmp_path: Path) -> None:
    save(tmp_path / "new" / "r.md", "one")
    save(tmp_path / "new" / "r.md", "two\n")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.md"]
    assert (tmp_path / "new" / "r.md").read_text() == "two\n"


def test_results_go_to_the_docs_wherever_the_command_is_called() -> None:
    assert BENCH.parent / "docs" / "results" == RESULTS


def test_a_report_names_its_machine() -> None:
    found = machine()
    assert re.search(r", \d+ cores$", found["device"])
    assert set(found) == {"device", "date", "torch", "Python"}


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_a_count_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="expected a whole number, 1 or more"):
        whole_number(1)(text)
