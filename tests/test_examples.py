"""Examples of the docstrings and of docs/python.md are run, and there is one of every public name; its docstring is whole."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import vtr
from tests.helpers import small_model, write_videos
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.models.open_clip import OpenClipModel
from vtr.models.recognition import RecognitionConfig, RecognitionModel

PLACES = (
    "vtr",
    "vtr.models.load",
    "vtr.models.rank",
    "vtr.models.video_text",
    "vtr.models.folder",
    "vtr.library.library",
)
PLACES += ("vtr.library.search", "vtr.library.found")
PAGE = "docs/python.md"
# Methods that other files of vtr call, between which the library has to be locked: nothing is promised of them.
INNER = {
    "asked",
    "belongs",
    "calibrate",
    "create_from",
    "encoded",
    "example_frames",
    "note_precision",
    "pipeline",
    "read",
}
INNER |= {"said", "set_windows", "snapshot", "update_index"}
ELSEWHERE = re.compile(r"([Aa]s|see|in) `")  # where its parameters are explained
SHAPE = re.compile(r"\([A-Z…n\dm][^()]*\)|`?torch\.Size")


def sources(repo: Path) -> dict[str, str]:
    """Every text with examples, by where it stands; fences end what an example prints."""
    found = {PAGE: re.sub(r"^```.*$", "", (repo / PAGE).read_text(), flags=re.MULTILINE)}
    for place in PLACES:
        finder = doctest.DocTestFinder(exclude_empty=True)
        for test in finder.find(importlib.import_module(place), place):
            if test.examples:
                found[test.name] = test.docstring or ""
    return found


def public() -> Iterator[tuple[str, object]]:
    """Every public name with what it is: of vtr, and the members that its classes add to torch's and Python's."""
    classes = {name: getattr(vtr, name) for name in vtr.__all__ if inspect.isclass(getattr(vtr, name))}
    known = {name for base in (torch.nn.Module, list, tuple, Exception) for name in dir(base)}
    for name in vtr.__all__:
        yield name, getattr(vtr, name)
    for owner, cls in {**classes, "OpenClipModel": OpenClipModel, "RecognitionModel": RecognitionModel}.items():
        for name in dir(cls):
            found = getattr(inspect.getattr_static(cls, name), "__func__", inspect.getattr_static(cls, name))
            inner = name in known | INNER or name.startswith("_") or getattr(found, "__name__", "").startswith("_")
            if not inner and callable(found):
                yield f"{owner}.{name}", getattr(cls, name)


def lacks(name: str, found: object, examples: str) -> list[str]:
    """What is missing of a name."""
    said = inspect.getdoc(found) or ""
    short = name.rpartition(".")[2]
    out = [] if said else ["a docstring"]
    if not re.search(rf"\b{short}\b", examples):
        out.append("an example")
    if not inspect.isclass(found) and callable(found):
        out += parts_missing(found, said)
    return out


def parts_missing(function: Callable[..., object], said: str) -> list[str]:
    """Parameters that are not mentioned, a shape that is not given, errors that are not named."""
    signature = inspect.signature(function)
    names = [n for n in signature.parameters if n not in ("self", "cls")]
    explained = len(names) < 2 or ELSEWHERE.search(said)
    out = [f"its parameter {n}" for n in names if not explained and not re.search(rf"\b{n}\b", said)]
    if re.search(r"Tensor|ndarray", str(signature.return_annotation)) and not SHAPE.search(said):
        out.append("a shape")
    if re.search(r"^ *raise (?!Attribute)", inspect.getsource(function), re.MULTILINE) and "Error" not in said:
        out.append("its errors")
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples expect it."""
    folder = tmp_path_factory.mktemp("examples")
    small_model().save_pretrained(folder / "runs/demo/model")
    video = VideoMambaConfig(image_size=32, dim=32, depth=1, num_frames=4, num_classes=10)
    RecognitionModel(RecognitionConfig(video=video)).save_pretrained(folder / "runs/actions/model")
    write_videos(folder / "holidays", 3)
    for name, clip in (("clip", 0), ("a", 2), ("b", 1)):
        (folder / f"{name}.mp4").write_bytes((folder / f"holidays/clip{clip}.mp4").read_bytes())
    return folder


def test_every_example_gives_what_it_says(place: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    told: list[str] = []
    for name, text in sources(repo).items():
        test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
        assert test.examples, f"{name} has no example"
        runner.run(test, out=told.append)
    assert not told, "".join(told)
    assert runner.tries > 50


def test_every_public_name_has_an_example_and_a_whole_docstring(repo: Path) -> None:
    examples = "\n".join(
        e.source for text in sources(repo).values() for e in doctest.DocTestParser().get_examples(text)
    )
    lacking = {name: found for name, item in public() if (found := lacks(name, item, examples))}
    assert not lacking, "\n".join(f"{name} lacks {', '.join(parts)}" for name, parts in lacking.items())


def test_a_name_without_example_shape_and_errors_is_found() -> None:
    def bare(text: str, count: int) -> torch.Tensor:
        raise ValueError

    assert lacks("bare", bare, "") == ["a docstring", "an example", *parts_missing(bare, "")]
    assert parts_missing(bare, "") == ["its parameter text", "its parameter count", "a shape", "its errors"]


if __name__ == "__main__":
    # The list for a report: every public name, and what it lacks.
    EXAMPLES = "\n".join(
        e.source
        for t in sources(Path(__file__).parent.parent).values()
        for e in doctest.DocTestParser().get_examples(t)
    )
    for name, item in public():
        print(f"{name:<40}{', '.join(lacks(name, item, EXAMPLES)) or 'whole'}")
