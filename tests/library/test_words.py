"""What is said: subtitles are indexed with their videos, kept up to date, and found beside the pictures."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_subtitles import with_track
from tests.helpers import small_model, video_bytes, write_videos
from vtr.errors import UsageError
from vtr.library import Library
from vtr.library.found import Found, fused, hit_dict, hit_lines
from vtr.library.rows import Span
from vtr.library.settings import Work
from vtr.library.words import terms_of

HERE = Work(workers=0)  # no processes to start
SAID = "1\n00:00:01,000 --> 00:00:01,500\nThe grandmother opens the door.\n\n2\n00:00:02,500 --> 00:00:03,000\nA dog barks\n"
SAID += "\n3\n00:00:01,800 --> 00:00:03,400\nThe wolf howls\n"  # longer than a window


def srt(text: str, start: float = 1.0) -> str:
    return f"1\n00:00:{start:06.3f} --> 00:00:{start + 0.5:06.3f}\n{text}\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """Four clips of 3.75 s in windows of 2 s: one with two cues, one in German and Japanese, one with a track inside."""
    folder = tmp_path_factory.mktemp("words")
    videos = write_videos(folder / "videos", 3, frames=30)
    videos[0].with_suffix(".srt").write_text(SAID)
    videos[1].with_suffix(".de.vtt").write_text(
        "WEBVTT\n\n00:01.000 --> 00:01.500\nDie Katze schläft. 猫が机の上に\nStraße ＡＢＣ हिन्दी שָׁלוֹם\n"
    )
    with_track(folder / "videos" / "inside.mkv", "subrip", video_bytes(9, 30))
    with Library.create(folder / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(folder / "videos")
        yield library


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Library, list[Path]]]:
    """A library of two clips without subtitles, to be changed."""
    videos = write_videos(tmp_path / "videos", 2, frames=16)
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=2.0) as library:
        library.add(tmp_path / "videos", work=HERE)
        yield library, videos


def names(library: Library, text: str) -> list[str]:
    return [Path(hit.path).name for hit in library.search(text, by="words")]


@pytest.mark.parametrize(
    ("text", "name", "start", "end"),
    [
        ("door", "clip0.mp4", 1.0, 1.5),
        ("Grandmothers' doors", "clip0.mp4", 1.0, 1.5),
        ('"dog barks"', "clip0.mp4", 2.5, 3.0),
        ("wolf", "clip0.mp4", 1.8, 3.4),
        ("schlaft", "clip1.mp4", 1.0, 1.5),
        ("机の上", "clip1.mp4", 1.0, 1.5),
        *(
            (text, "clip1.mp4", 1.0, 1.5)
            for text in ("schla\u0308ft", "STRASSE", "abc", "हिन्दी", "שלום", "„katze schläft“")
        ),
        ("hello there", "inside.mkv", 0.2, 0.7),
    ],
)
def test_words_find_the_moment_they_are_said_in(
    shared: Library, text: str, name: str, start: float, end: float
) -> None:
    [hit] = shared.search(text, by="words")
    assert (Path(hit.path).name, round(hit.start, 3), round(hit.end, 3), hit.match) == (name, start, end, 1.0)
    assert hit.by == ("words",)


@pytest.mark.parametrize(
    "text", ['"', "NOT", "a AND (b* OR", "x:y", "{dog}", "-dog ^cat", "NEAR(dog, 2)", "';--", "\0"]
)
def test_no_text_is_a_query_language(shared: Library, text: str) -> None:
    for term in terms_of(text):
        assert isinstance(shared.store._where(term), list)
    shared.search(text + " dog", by="words")


def test_a_text_of_any_length_counts_in_whole_or_it_is_said_what_does_not(shared: Library) -> None:
    long = " ".join(f"word{i}" for i in range(300))
    assert len(terms_of(long)) == 300
    assert shared.search(long, by="words").notes == []
    [note] = shared.search(f"a dog {long}", minus="a dog").notes
    assert (
        note == "pictures were searched for the first 32 tokens of 'a dog word0 word1 word2 word3 word4 word'…: "
        "the model takes no more"
    )
    assert shared.curve(shared.search("dog")[0].path, f"a dog {long}").notes == (note,)


@pytest.mark.parametrize("text", ["♥", "_"])
def test_what_is_no_word_is_said_nowhere(shared: Library, text: str) -> None:
    assert shared.search(text, by="words") == []
    assert shared.search(text)


def test_what_is_said_in_a_film_is_read_once_for_all_its_segments(
    shared: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[int](), shared.store.cues_of
    monkeypatch.setattr(shared.store, "cues_of", lambda video: read.append(video) or real(video))
    said = shared.store.said_in({1: Span(0.0, 2.0), 2: Span(1.0, 3.0)}, ["grandmother"])
    assert (read, {len(cues) for cues in said.values()}) == ([1], {1})


def test_a_phrase_is_not_its_words(shared: Library) -> None:
    assert names(shared, '"barks dog"') == []
    assert names(shared, "barks dog") == ["clip0.mp4"]


def test_both_is_the_default_and_each_hit_says_why(shared: Library) -> None:
    first, *others = shared.search("door")
    assert (first.measure, first.by, [c.text for c in first.said]) == (
        "fused", ("picture", "words"), ["The grandmother opens the door."],
    )  # fmt: skip
    assert {hit.by for hit in others} == {("picture",)}
    assert "picture and words at 1.0 s: 'The grandmother opens the door.'" in hit_lines([first])[0]
    assert hit_dict(first)["said"] == [{"start": 1.0, "end": 1.5, "text": "The grandmother opens the door."}]


def test_pictures_alone_are_searched_as_without_subtitles(shared: Library) -> None:
    assert {(hit.measure, hit.by) for hit in shared.search("door", by="picture")} == {("similarity", ("picture",))}


def test_filters_and_unwanted_words_hold_for_what_is_said(shared: Library) -> None:
    assert [len(shared.search("dog", by="words", where=w)) for w in ("start < 1", "start >= 1")] == [0, 1]
    assert len(shared.search("dog", by="words", minus="barks")) == 0


@pytest.mark.parametrize("options", [{"rerank": 2}, {"like": "x.mp4"}, {"more": 1}])
def test_words_alone_take_neither_examples_nor_re_ranking(shared: Library, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="by=words needs a text, and neither"):
        shared.search("dog", by="words", **options)  # type: ignore[arg-type]


def test_a_library_without_subtitles_says_so_and_asks_pictures(own: tuple[Library, list[Path]]) -> None:
    library, _ = own
    assert library.search("dog")[0].measure == "similarity"
    with pytest.raises(UsageError, match="by=words: no subtitles"):
        library.search("dog", by="words")


def test_sync_notices_new_changed_and_vanished_subtitles(own: tuple[Library, list[Path]]) -> None:
    library, videos = own
    file = videos[0].with_suffix(".srt")
    folder = file.parent
    file.write_text(srt("first words"))
    assert (library.sync(folder, quick=True).spoken, names(library, "first")) == (1, ["clip0.mp4"])
    file.write_text(srt("others instead"))
    assert (library.sync(folder, quick=False).spoken, names(library, "first"), names(library, "others")) == (
        1, [], ["clip0.mp4"],
    )  # fmt: skip
    assert library.sync(folder, quick=True).spoken == 0
    file.unlink()
    assert library.sync(folder, quick=False).spoken == 1
    assert not library.has_words()


def test_words_move_with_their_video_and_go_with_it(own: tuple[Library, list[Path]]) -> None:
    library, videos = own
    videos[0].with_suffix(".srt").write_text(srt("first words"))
    library.sync(videos[0].parent)
    videos[0].rename(videos[0].with_name("new.mp4"))
    videos[0].with_suffix(".srt").rename(videos[0].with_name("new.srt"))
    assert library.sync(videos[0].parent).moved == 1
    assert names(library, "words") == ["new.mp4"]
    library.remove([videos[0].with_name("new.mp4")])
    assert not library.has_words()


def test_a_copy_has_the_tracks_inside_it_too(tmp_path: Path) -> None:
    with_track(tmp_path / "a.mkv", "subrip", video_bytes(9, 16))
    (tmp_path / "b.mkv").write_bytes((tmp_path / "a.mkv").read_bytes())
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=2.0) as library:
        assert library.add(sorted(tmp_path.glob("*.mkv")), work=HERE).known == 1
        assert [Path(hit.path).name for hit in library.search("hello", by="words", unmerged=True)] == ["a.mkv", "b.mkv"]


def test_what_is_wrong_with_subtitles_is_a_line_with_its_place(own: tuple[Library, list[Path]]) -> None:
    library, videos = own
    videos[0].with_suffix(".srt").write_text(srt("fine") + "\n2\n00:00:02,000 --> x\nlost\n\n" + srt("late", 50))
    for name in ("clip0.en.ASS", "clip1.ass", "clip1.sub", "other.ass"):
        (videos[0].parent / name).touch()
    note, unread = library.sync(videos[0].parent).notes
    assert f"2 .ass, 1 .sub (first: {videos[0].with_suffix('.en.ASS')})" in unread
    assert note.endswith(
        "clip0.mp4, clip0.srt: line 6: expected HH:MM:SS,mmm --> HH:MM:SS,mmm, found '00:00:02,000 --> x'; left out; "
        "1 cues come after the end (50.0 s of 2.0 s)"
    )
    assert library.info()["subtitles"] == [note]
    assert library.info()["spoken"] == 1


def test_a_poster_says_nothing_of_its_film(own: tuple[Library, list[Path]]) -> None:
    library, videos = own
    for still in (videos[0].with_suffix(".png"), videos[0].with_name("photo.png")):
        Image.new("RGB", (8, 8)).save(still)
        still.with_suffix(".srt").write_text(srt("a word"))
    library.sync(videos[0].parent, work=HERE)
    assert names(library, "word") == ["clip0.mp4", "photo.png"]


def test_subtitles_are_not_counted_as_left_out_but_those_of_no_video_are(own: tuple[Library, list[Path]]) -> None:
    library, videos = own
    videos[0].with_suffix(".srt").write_text(srt("fine"))
    (videos[0].parent / "other.srt").write_text(srt("nobody's"))
    assert library.sync(videos[0].parent).skipped == "1 file skipped: 1 .srt"


def test_a_library_of_before_there_were_words_gets_them(own: tuple[Library, list[Path]]) -> None:
    library, videos = own
    folder = Path(library.path)
    library.close()
    with sqlite3.connect(folder / "library.db") as db:
        for table in ("TRIGGER words_gone", "TABLE words", "TABLE cues", "TABLE tracks", "TABLE listened"):
            db.execute(f"DROP {table}")
    db.close()
    videos[0].with_suffix(".srt").write_text(srt("old"))
    with_track(videos[1].with_name("text.mkv"), "subrip", video_bytes(1, 16)).replace(videos[1])
    with Library.open(folder, small_model()) as again:
        assert again.search("old")[0].measure == "similarity"
        again.sync(videos[0].parent, work=HERE)
        assert (names(again, "old"), names(again, "hello")) == (["clip0.mp4"], ["clip1.mp4"])


def test_ranks_are_fused_by_videos_and_what_is_said_comes_first_of_equals() -> None:
    def item(number: int, path: str, way: str) -> Found:
        return Found(0.5, 0.5, False, number, path, 0.0, 2.0, 9.0, {}, None, (way,))  # type: ignore[arg-type]

    pictures = [*(item(n, "long", "picture") for n in range(1, 9)), item(9, "b", "picture")]
    found = fused(pictures, [item(20, "c", "words"), item(9, "b", "words")])
    assert [f.path for f in found][:3] == ["b", "c", "long"]
    assert found[0].score == pytest.approx(2 / 62)
    assert found[0].by == ("picture", "words")
    copies = [item(1, "copy", "picture")._replace(content="x"), item(2, "film", "words")._replace(content="x")]
    assert [(f.path, f.by) for f in fused(copies[:1], copies[1:])] == [("film", ("picture", "words"))]
    assert len(fused(copies[:1], copies[1:], apart=True)) == 2
