"""`vtr pretrain|finetune|eval`, help, completion and version: what a user types first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vtr
from tests.helpers import write_videos
from vtr.cli import main
from vtr.completion import SHELLS, script
from vtr.verbs import VERBS

LAUNCHED = [verb for verb, (module, _) in VERBS.items() if module == "vtr.launch"]


def helped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_no_noise_of_types_and_empty_defaults(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(verb.split(), capsys)
    assert "(default: )" not in " ".join(text.split())
    assert "{None}" not in text
    assert f"vtr {verb}" in text


@pytest.mark.parametrize("verb", LAUNCHED)
def test_examples_stand_on_lines_of_their_own_and_name_the_word(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped([verb], capsys)
    examples = text.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) >= 3
    assert sum(line.startswith(f"  vtr {verb} --") for line in examples) >= 3


@pytest.mark.parametrize("script_file", ["pretrain/run.py", "pretrain/finetune.py", "eval/zero_shot.py"])
def test_a_wrong_flag_of_an_entry_script_is_one_line(repo: Path, script_file: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repo / script_file), "--nonsense"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vtr: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--corpsu", "demo"], "--corpus"),
        (["--corpus", "demo", "--nodes", "2"], "--main"),
        (["--corpus", "demo", "--ranks", "-1"], "--ranks"),
        (["--corpus", "demo", "--config-file", "/none.yaml"], "no such file"),
        (["--corpus", "demo", "--config-file", __file__, "--ranks", "2"], "leave --ranks"),
    ],
)
def test_wrong_words_for_a_launch_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_an_error_of_several_ranks_is_one_line_with_its_exit_code_and_nothing_of_the_launcher(tmp_path: Path) -> None:
    write_videos(tmp_path, 4)
    (tmp_path / "list.csv").write_text("video,caption\n" + "".join(f"clip{i}.mp4,{i}\n" for i in range(4)))
    (tmp_path / "bad").mkdir()
    words = ["pretrain", "--corpus", str(tmp_path / "list.csv"), "--ranks", "2", "--out", str(tmp_path / "out")]
    words += ["--init", str(tmp_path / "bad"), "--stage", "unmasked", "--set", "batch_size=2", "streams=2"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "VTR_"))}
    done = subprocess.run(
        [sys.executable, "-m", "vtr.cli", *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 1
    [said] = [line for line in done.stderr.splitlines() if "vtr:" in line or "Error" in line]
    assert (
        said == f"vtr: {tmp_path / 'bad'}: config.json is missing; expected a model folder or a run that has finished"
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_verb_and_its_flags(shell: str) -> None:
    text = script(shell, VERBS)
    assert all(verb.split()[-1] in text for verb in VERBS)
    assert ("--rerank" in text) or ("-l rerank" in text)


def test_bash_completes_verbs_and_flags(tmp_path: Path) -> None:
    (tmp_path / "vtr.bash").write_text(script("bash", VERBS))
    lines = f"""
        source {tmp_path}/vtr.bash
        COMP_WORDS=(vtr ser) COMP_CWORD=1; _vtr; echo "${{COMPREPLY[*]}}"
        COMP_WORDS=(vtr index bu) COMP_CWORD=2; _vtr; echo "${{COMPREPLY[*]}}"
        COMP_WORDS=(vtr index build --mod) COMP_CWORD=3; _vtr; echo "${{COMPREPLY[*]}}"
        COMP_WORDS=(vtr pretrain --ra) COMP_CWORD=2; _vtr; echo "${{COMPREPLY[*]}}"
    """
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["serve", "build", "--model", "--ranks"]


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err


def test_version_is_a_verb_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"vtr {vtr.__version__}\n"


def test_dir_of_vtr_is_its_public_names() -> None:
    assert {"load", "Library", "VideoTextModel", "VtrError"} <= set(dir(vtr))
    assert {"Any", "Path", "TYPE_CHECKING", "annotations"}.isdisjoint(dir(vtr))
