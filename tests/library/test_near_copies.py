"""Files that look the same - another codec, size, frame - are one hit; what merely resembles each other is not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers import small_model, write_videos
from vtr.library import Library
from vtr.library.found import Found, Moment
from vtr.library.near import Looks, folded, looks_of, pictures_of, same_looks


def written_again(source: Path, out: Path, side: int, bar: int = 0) -> None:
    """The same video as MPEG-4 at another size, with bars above and below."""
    with av.open(str(source)) as reader, av.open(str(out), "w") as writer:
        rate = reader.streams.video[0].average_rate
        stream = writer.add_stream("mpeg4", rate=rate, options={"b": "400000"})
        stream.width, stream.height, stream.pix_fmt = side, side + 2 * bar, "yuv420p"
        for number, frame in enumerate(reader.decode(video=0)):
            pixels = frame.reformat(width=side, height=side, format="rgb24").to_ndarray()
            barred = av.VideoFrame.from_ndarray(np.pad(pixels, ((bar, bar), (0, 0), (0, 0))), format="rgb24")
            barred.pts = number
            writer.mux(stream.encode(barred))
        writer.mux(stream.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lib` of three clips and two near copies of the first."""
    folder = tmp_path_factory.mktemp("near")
    first, *_ = write_videos(folder / "videos", 3, frames=16)
    written_again(first, folder / "videos" / "smaller.mp4", 32)
    written_again(first, folder / "videos" / "letterbox.avi", 48, bar=8)
    with Library.create(folder / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(folder / "videos")
    return folder


def test_near_copies_are_one_hit_that_names_them_unless_all_are_wanted(folder: Path) -> None:
    alike = {"clip0.mp4", "smaller.mp4", "letterbox.avi"}
    with Library.open(folder / "lib", small_model()) as library:
        for options in ({}, {"all_moments": True}):
            hits = library.search("a dog", k=10, **options)
            groups = [{Path(h.path).name, *(Path(p).name for p in h.near_copies)} for h in hits]
            assert [g for g in groups if len(g) > 1 or g & alike] == [alike]
        assert len(library.search("a dog", k=10)) == 3
        assert len(library.search("a dog", k=2)) == 2  # what is folded makes room for others
        for options in ({"all": True}, {"unmerged": True}):
            hits = library.search("a dog", k=10, **options)
            assert len({h.path for h in hits}) == 5
            assert not any(h.near_copies for h in hits)


def test_a_library_of_before_there_were_tiny_pictures_says_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    for file in (folder / "lib").iterdir():
        (tmp_path / "lib" / file.name).write_bytes(file.read_bytes())
    with sqlite3.connect(tmp_path / "lib" / "library.db") as db:
        db.execute("DROP TABLE looks")
    with Library.open(tmp_path / "lib", small_model()) as library:
        assert len(library.search("a dog", k=10)) == 5


def test_a_copy_of_known_content_keeps_its_tiny_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    written_again(folder / "videos" / "clip0.mp4", tmp_path / "a" / "half.mp4", 24)
    (tmp_path / "a" / "clip0.mp4").write_bytes((folder / "videos" / "clip0.mp4").read_bytes())
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a" / "clip0.mp4").read_bytes())
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "a")
        library.add(tmp_path / "b.mp4")
        library.remove([tmp_path / "a" / "clip0.mp4"])
        [hit] = library.search("a dog", k=10)
        assert {Path(hit.path).name, *(Path(p).name for p in hit.near_copies)} == {"half.mp4", "b.mp4"}


# -- what is the same ---------------------------------------------------------------------------------------------------

PICTURE = np.kron(np.random.default_rng(0).integers(40, 255, (8, 3, 6, 6)), np.ones((1, 1, 8, 8))).astype(np.uint8)
NOISE = np.random.default_rng(1).integers(-8, 8, PICTURE.shape)


def looks(frames: np.ndarray, start: float = 0.0, end: float = 8.0) -> Looks:
    return looks_of(pictures_of(frames.clip(0, 255).astype(np.uint8)), start, end)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (PICTURE + NOISE, True),
        (PICTURE * 0.9 + 8, True),
        (np.pad(PICTURE, ((0, 0), (0, 0), (12, 12), (0, 0))), True),
        (np.pad(PICTURE, ((0, 0), (0, 0), (0, 0), (12, 12))), True),
        (PICTURE[::-1], False),
        (PICTURE[..., ::-1], False),
        (PICTURE[:, ::-1], False),  # red is blue
    ],
)
def test_noise_brightness_and_bars_make_no_other_picture_but_order_sides_and_colours_do(
    frames: np.ndarray, expected: bool
) -> None:
    assert same_looks(looks(PICTURE), looks(frames)) is expected


@pytest.mark.parametrize("level", [0, 30, 200])
def test_of_pictures_with_next_to_nothing_in_them_it_cannot_be_told(level: int) -> None:
    blank = np.full(PICTURE.shape, level) + NOISE // 4
    assert not same_looks(looks(blank), looks(blank))


def test_pictures_of_other_times_are_not_compared() -> None:
    assert same_looks(looks(PICTURE, 0, 8), looks(PICTURE, 0.3, 8.3))
    assert not same_looks(looks(PICTURE, 0, 8), looks(PICTURE, 8, 16))


def moment(path: str, start: float, duration: float = 60.0) -> list[Moment]:
    found = Found(1.0, 1.0, False, 1, path, start, start + 8, duration, {}, None)
    return [Moment(found, found.start, found.end)]


def test_films_that_share_a_part_are_two_where_the_hit_lies_elsewhere() -> None:
    same, other = looks(PICTURE), looks(255 - PICTURE)

    def seen(path: str, start: float, end: float) -> Looks:
        return same if start == 0 or path == "a" else other

    assert len(folded([moment("a", 0), moment("b", 40)], 5, seen, overlapping=False)) == 2
    [(_, near)] = folded([moment("a", 0), moment("b", 0)], 5, seen, overlapping=False)
    assert near == ("b",)
    assert len(folded([moment("a", 0), moment("b", 0, 70)], 5, seen, overlapping=False)) == 2  # another length
    twice = [moment("a", 0), moment("c", 40)]
    assert len(folded(twice, 5, lambda *_: same, overlapping=False)) == 1
    assert len(folded(twice, 5, lambda *_: same, overlapping=True)) == 2
