"""The command line: verbs, exit codes, one-line errors, and the whole way from files to an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vtr
from tests.helpers import small_model, write_videos
from vtr.cli import VERBS, main, usage
from vtr.errors import UsageError, VtrError


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["indx"], "unknown verb 'indx': did you mean 'index'?"),
        (["index", "zzz"], "unknown verb 'index zzz': known: add, backup, build, "),
        (["benchmarks", "nope"], "unknown benchmark 'nope': known: anet, "),
        (["search"], "missing PATH: A library's folder, "),
        (["search", "lib", "x", "--rerak"], "unknown: --rerak; did you mean --rerank INT (vtr search --help)"),
        (["search", "lib", "x", "-k", "many"], "-k/--k: expected a whole number, got 'many' (vtr search --help)"),
    ],
)
def test_wrong_words_are_told_what_they_are_and_what_is_near(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"vtr: {says}")


@pytest.mark.parametrize("verb", ["benchmarks", "benchmarks check", "models", "search", "index build", "results"])
def test_the_help_of_a_verb_that_needs_no_torch_does_not_load_it(verb: str) -> None:
    code = f"""import sys
from vtr.cli import main
try:
    main([*{verb.split()!r}, "--help"])
except SystemExit:
    print([m for m in ("torch", "faiss", "av") if m in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "lib"], "text"),
        (["search", "lib", "x", "--rerak", "3"], "--rerank"),
        (["search", "lib", "x", "-k", "many"], "'many'"),
        (["index", "build", "videos", "--out", "lib"], "--model"),
        (["index", "add", "lib"], "no paths"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("vtr: ")
    assert says in told.err
    assert told.err.count("\n") == 1


def test_underscores_are_dashes_and_filters_reach_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, lib = small_model(), str(tmp_path / "my.library")
    model.save_pretrained(tmp_path / "m")
    write_videos(tmp_path / "videos", 3)
    assert main(["index", "build", str(tmp_path / "videos"), "--model", str(tmp_path / "m"), "--out", lib]) == 0
    capsys.readouterr()
    assert main(["search", lib, "a dog", "--all_moments", "--where", 'path ~ "clip1"']) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.split()[0] == "similarity"
    assert line.split()[2:] == ["0.0-1.5s", "#2", str(tmp_path / "videos" / "clip1.mp4")]
    assert main(["search", lib, "a dog", "--where", "1=1"]) == 2
    assert main(["index", "remove", lib, str(tmp_path / "videos" / "clip1.mp4")]) == 0
    assert main(["search", lib, "a dog", "--where", 'path ~ "clip1"']) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "nothing found" in told.err
    (tmp_path / "m").rename(tmp_path / "moved")
    assert main(["search", lib, "a dog"]) == 1
    assert main(["search", lib, "a dog", "--model", str(tmp_path / "moved")]) == 0


def test_a_build_in_which_nothing_could_be_read_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model().save_pretrained(tmp_path / "m")
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    words = ["index", "build", str(tmp_path / "page.mp4"), "--model", str(tmp_path / "m"), "--out", str(tmp_path / "l")]
    assert main(words) == 1
    assert "page.mp4: is an HTML page" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (UsageError("a\nb"), 2), (VtrError("a"), 1)])
def test_every_end_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(words: list[str]) -> int:
        raise error

    monkeypatch.setattr("vtr.cli.run", ends)
    assert main(["search"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "import sys, vtr.cli as c; c.run = lambda words: print('x' * 10**6) or 0; sys.exit(c.main([]))"
    victim = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert victim.stdout is not None
    assert victim.stderr is not None
    victim.stdout.close()
    assert victim.stderr.read() == b""
    assert victim.wait() == 141


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vtr {vtr.__version__}\n"
