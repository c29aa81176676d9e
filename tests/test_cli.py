"""The command line: verbs, exit codes, one-line errors, and the whole way from files to an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import small_model, write_videos
from vtr.cli import VERBS, main, usage


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    assert all(verb in usage() for verb in VERBS)
    code = "import sys; from vtr.cli import main; main(['--help']); print([m for m in ('torch', 'faiss', 'tyro') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("words", "says"), [(["serch", "x", "y"], "search"), (["index", "bild"], "index build"), (["shard"], "shards")]
)
def test_an_unknown_verb_names_the_nearest_and_exits_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err.strip()
    assert says in message
    assert "\n" not in message


def test_from_files_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save_pretrained(tmp_path / "run" / "model")
    write_videos(tmp_path / "videos", 3)
    lib, page = str(tmp_path / "my.library"), tmp_path / "hits.html"
    assert main(["index", "build", str(tmp_path / "videos"), "--model", str(tmp_path / "run"), "--out", lib]) == 0
    assert main(["search", lib, "a dog", "-k", "2", "--html", str(page), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]) >= {"score", "path", "start", "end", "duration", "segment"}
    assert [row["rank"] for row in rows] == [1, 2]
    assert page.stat().st_size > 1000
    assert main(["index", "info", lib, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 3


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["search", "{tmp}/none", "a dog"], 1, "not a library"),
        (["index", "build", "{tmp}/none", "--model", "{tmp}/none", "--out", "{tmp}/l"], 1, "no such file or folder"),
        (["index", "add", "{tmp}/none", "x"], 1, "not a library"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([w.format(tmp=tmp_path) for w in words]) == code
    message = capsys.readouterr().err.strip()
    assert message.startswith("vtr: ")
    assert says in message
    assert "\n" not in message


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save_pretrained(tmp_path / "m")
    (tmp_path / "videos").mkdir()
    assert (
        main(["index", "build", str(tmp_path / "videos"), "--model", str(tmp_path / "m"), "--out", str(tmp_path / "l")])
        == 1
    )
    assert "no video or image files" in capsys.readouterr().err


def test_doctor_says_which_kernel_runs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in report["bimamba"]} >= {"c", "eager"}
    assert all(row["reason"] for row in report["bimamba"])
