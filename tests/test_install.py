"""What a user installs: the name, the extras, packages that stand in each other's way, machines that lack something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers import small_model, write_videos
from vtr.cli import main
from vtr.doctor import conflicts
from vtr.files import DISTRIBUTION, checkout, install_command, package_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGED = ("vtr", "encoders", "kernels", "pretrain", "eval", "data_manifests")
CODE = (*PACKAGED, "bench", "tests")


@pytest.fixture(scope="module")
def project(repo: Path) -> dict[str, object]:
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


def test_the_project_is_installed_under_the_name_the_code_knows(project: dict[str, object]) -> None:
    assert project["name"] == DISTRIBUTION


def test_no_message_or_page_tells_to_install_somebody_elses_package(repo: Path) -> None:
    pages = [p for folder in CODE for p in (repo / folder).rglob("*.py")]
    pages += [*repo.glob("*.md"), *(repo / "docs").rglob("*.md"), *repo.rglob("vtr/**/*.html"), repo / "Makefile"]
    stranger = re.compile(r"pip install [^\n]*?(?<![-\w/.])vtr(?![-\w/.])")
    wrong = [f"{p}: {line}" for p in pages for line in p.read_text().splitlines() if stranger.search(line)]
    assert [line for line in wrong if "test_install.py" not in line] == []


def test_the_command_is_for_a_checkout_in_a_checkout(
    repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert checkout() == repo
    monkeypatch.chdir(repo)
    assert install_command("serve") == "pip install -e '.[serve]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("serve") == f"pip install -e '{repo}[serve]'"
    monkeypatch.setattr("vtr.files.checkout", lambda: None)
    assert install_command("serve") == f"pip install '{DISTRIBUTION}[serve]'"
    assert install_command() == f"pip install '{DISTRIBUTION}'"


def test_every_extra_that_a_message_names_exists(repo: Path, project: dict[str, object]) -> None:
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    named = set()
    for page in [p for folder in PACKAGED for p in (repo / folder).rglob("*.py")]:
        named |= set(re.findall(r"install_command\(['\"](\w+)", page.read_text()))
    for page in [*repo.glob("*.md"), *(repo / "docs").rglob("*.md")]:
        named |= set(re.findall(rf"(?:{DISTRIBUTION}|\.)\[([a-z,]+)\]", page.read_text()))
    assert {"serve", "milvus"} <= named
    assert {extra for names in named for extra in names.split(",")} <= set(extras)


@pytest.mark.parametrize(
    ("installed", "providers", "says"),
    [
        ({"faiss-cpu": "1", "faiss-gpu-cu12": "1"}, (), ["faiss-cpu and faiss-gpu-cu12", "pip uninstall -y faiss-cpu"]),
        ({"faiss-cpu": "1"}, ("vtr", DISTRIBUTION), ["'vtr'", f"pip uninstall -y vtr {DISTRIBUTION}"]),
        ({"kernels": "1"}, (DISTRIBUTION,), ["named `kernels`"]),
        ({"faiss-cpu": "1", "torch": "2"}, ("Vtr_Search",), []),
    ],
)
def test_doctor_names_packages_that_overwrite_each_other(
    installed: dict[str, str], providers: tuple[str, ...], says: list[str]
) -> None:
    notes = "\n".join(conflicts(installed, providers))
    assert all(text in notes for text in says)
    assert bool(notes) == bool(says)


def test_doctor_sees_another_distribution_that_provides_vtr(tmp_path: Path) -> None:
    info = tmp_path / "vtr-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vtr\nVersion: 0.1.0\n")
    (info / "top_level.txt").write_text("vtr\n")
    done = python("from vtr.cli import main; main(['doctor', '--json'])", PYTHONPATH=str(tmp_path))
    assert any(
        "the distribution 'vtr' has a package named vtr too" in note for note in json.loads(done.stdout)["notes"]
    )


def test_a_file_of_a_package_without_an_init_is_found() -> None:
    assert package_file("vtr.kernels", "common.cuh").is_file()
    assert package_file("vtr.kernels", "bimamba", "scan.c").is_file()
    assert package_file("vtr.library.serve", "page.html").is_file()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python; paths of PYTHONPATH come before the checkout's."""
    paths = [environment.pop("PYTHONPATH", ""), *os.environ.get("PYTHONPATH", "").split(os.pathsep), str(checkout())]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


HIDDEN = """
    import sys
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        sys.modules[name] = None
"""


OPTIONAL = ("fastapi", "pymilvus", "uvicorn", "python_multipart", "mamba_ssm", "ray", "mteb", "datasets", "mcp")


def test_every_module_imports_where_fcntl_and_resource_are_absent(repo: Path) -> None:
    found = [path.relative_to(repo) for folder in PACKAGED for path in (repo / folder).rglob("*.py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found]
    names = [name if name.split(".")[0] == "vtr" else f"vtr.{name}" for name in names]
    assert len(names) > 80
    python(
        HIDDEN
        + f"""
    import importlib
    from vtr.errors import VtrError
    for name in ("ray", "mteb", "datasets", "mcp"):  # where they are installed they want them
        sys.modules[name] = None
    for name in {sorted(names)!r}:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert str(error.name).split(".")[0] in {OPTIONAL!r}, (name, error)
        except VtrError as error:  # an extra that is not there, said in our words
            assert "pip install" in str(error), (name, error)
    """
    )


def test_a_library_is_made_and_searched_without_fcntl_resource_and_proc(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    write_videos(tmp_path / "videos", 2)
    done = python(
        HIDDEN
        + f"""
    import builtins, pathlib
    opened, text = builtins.open, pathlib.Path.read_text
    def is_proc(path): return str(path).startswith("/proc")
    def refuse(path): raise FileNotFoundError(2, "No such file or directory", str(path))
    builtins.open = lambda path, *a, **k: refuse(path) if is_proc(path) else opened(path, *a, **k)
    pathlib.Path.read_text = lambda path, *a, **k: refuse(path) if is_proc(path) else text(path, *a, **k)
    from vtr.cli import main
    root = {str(tmp_path)!r}
    assert main(["index", "build", root + "/videos", "--model", root + "/model", "--out", root + "/l"]) == 0
    assert main(["search", root + "/l", "a dog", "-k", "1"]) == 0
    assert main(["doctor"]) == 0
    """
    )
    assert "clip" in done.stdout


@pytest.mark.parametrize("home", ["/dev/null", "/proc/self/none"])
def test_without_a_home_kernels_are_compiled_elsewhere_and_that_is_said_once(tmp_path: Path, home: str) -> None:
    done = python(
        "from vtr.kernels.build import library_path; print(library_path()[0]); library_path()",
        HOME=home,
        XDG_CACHE_HOME="",
        TMPDIR=str(tmp_path),
    )
    assert done.stdout.startswith(str(tmp_path))
    assert done.stderr.count("cannot be written") == 1
    assert done.stderr.count("\n") == 1


def test_a_folder_that_others_may_write_to_is_no_place_for_compiled_code(tmp_path: Path) -> None:
    place = tmp_path / f"vtr-{os.getuid()}"
    place.mkdir()
    place.chmod(0o777)
    done = python(
        """
        from vtr.kernels.build import BuildError, library_path
        try:
            print(library_path())
        except BuildError as error:
            print("refused:", error)
        """,
        HOME="/dev/null",
        XDG_CACHE_HOME="",
        TMPDIR=str(tmp_path),
    )
    assert done.stdout.startswith("refused: cannot write /dev/null/.cache/vtr/kernels")


def test_without_a_compiler_it_computes_in_torch_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = python(
        "from vtr.cli import main; main(['doctor'])", PATH="/nonexistent", XDG_CACHE_HOME=str(tmp_path), CC=""
    )
    assert "no C compiler (cc, gcc or clang) on the PATH" in done.stdout


@pytest.mark.parametrize(("verb", "extra"), [("serve", "serve"), ("push", "milvus")])
def test_a_missing_extra_is_one_line_with_the_command_that_installs_it(
    verb: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if extra == "serve":
        words, module = ["serve", str(tmp_path)], "uvicorn"
        for name in [m for m in sys.modules if m.startswith("vtr.library.serve")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr("vtr.library.serve", raising=False)
    else:
        words, module = ["search", "milvus://127.0.0.1:1/clips", "a dog"], "pymilvus"
    monkeypatch.setitem(sys.modules, module, None)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert install_command(extra) in said
    assert said.count("\n") == 1
