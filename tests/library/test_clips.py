"""Hits that leave the library: clips, edit lists, tables, subtitles."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.data.test_cut import MADE, numbered, numbers
from tests.helpers import small_model
from vtr.data.subtitles import Cue, parsed
from vtr.errors import UsageError
from vtr.library.clips import write_clips
from vtr.library.found import Hit
from vtr.library.timeline import _code, _frames_of, _usual, timeline, write_timeline

otio = pytest.importorskip("opentimelineio", reason="pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [numbered(folder / name, *codecs) for name, codecs in MADE.items()]


def hit(path: Path, start: float = 1.2, end: float = 2.4, rank: int = 1, **more: Any) -> Hit:
    return Hit(
        score=0.5, path=str(path), start=start, end=end, duration=4.0, segment=rank, rank=rank, match=0.5, **more
    )


@pytest.fixture
def hits(films: list[Path]) -> list[Hit]:
    said = (Cue(1.2, 1.9, 'he says <"hello"> & goes'),)
    return [hit(films[0], rank=1, said=said), hit(films[1], 0.4, 1.0, rank=2), hit(films[0], 3.0, 3.6, rank=3)]


def frames(clip: Any) -> tuple[int, int]:
    """First frame and number of frames, of a clip that was read back."""
    span = clip.source_range
    return round(span.start_time.to_seconds() * 25), round(span.duration.to_seconds() * 25)


@pytest.mark.parametrize(("ending", "adapter"), [(".edl", "cmx_3600"), (".fcpxml", "fcpx_xml")])
def test_an_edit_list_is_read_back_with_the_same_frames_of_the_same_files(
    hits: list[Hit], tmp_path: Path, ending: str, adapter: str
) -> None:
    write_timeline(tmp_path / f"hits{ending}", hits, 'a "dog" & <cat>')
    options = {"rate": 25} if ending == ".edl" else {}
    read = otio.adapters.read_from_file(str(tmp_path / f"hits{ending}"), adapter, **options)
    timeline = read if hasattr(read, "tracks") else read[0]
    clips = list(timeline.find_clips())
    assert [frames(clip) for clip in clips] == [(30, 30), (10, 15), (75, 15)]
    assert [clip.name for clip in clips] == ["a.mp4", "a.mkv", "a.mp4"]
    places = [clip.range_in_parent().start_time.to_seconds() for clip in clips]
    assert [round(25 * (p - places[0])) for p in places] == [0, 30, 45]
    if ending == ".fcpxml":
        assert {clip.media_reference.target_url for clip in clips} == {Path(h.path).as_uri() for h in hits}


def test_rates_are_the_usual_ones_and_timecodes_are_counted_from() -> None:
    assert _usual(Fraction(2997, 100)) == Fraction(30000, 1001)
    assert _usual(Fraction(25001, 1000)) == 25
    assert _usual(Fraction(37, 2)) == Fraction(37, 2)
    assert _frames_of("01:00:00:00", Fraction(25)) == 90_000
    assert _frames_of("00:10:00;00", Fraction(30000, 1001)) == 17_982  # what drop-frame time is for
    assert _frames_of("none", Fraction(25)) == 0


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(60000, 1001)])
@pytest.mark.parametrize("code", ["00:00:59;29", "00:01:00;04", "00:10:00;00", "01:00:00;00", "23:59:59;29"])
def test_drop_frame_timecodes_are_read_and_written_alike(code: str, rate: Fraction) -> None:
    assert _code(_frames_of(code, rate), rate, True) == code


@pytest.mark.parametrize(
    ("code", "rate", "mode", "times"),
    [
        ("10:00:00:00", Fraction(25), "NON-DROP", "10:00:01:05 10:00:02:10 01:00:00:00 01:00:01:05"),
        ("01:00:00;00", Fraction(30000, 1001), "DROP", "01:00:01;06 01:00:02;12 01:00:00;00 01:00:01;06"),
    ],
)
def test_a_sources_own_timecode_is_where_its_frames_are_counted_from(
    tmp_path: Path, code: str, rate: Fraction, mode: str, times: str
) -> None:
    with av.open(tmp_path / "code.mov", "w") as out:
        stream: Any = out.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 16
        stream.metadata["timecode"] = code
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            out.mux(packet)
    text, _ = timeline(".edl", [hit(tmp_path / "code.mov")], "")
    assert f"FCM: {mode}" in text.replace(" FRAME", "").splitlines()
    assert f"C        {times}" in text


def test_what_cannot_be_counted_is_said(tmp_path: Path) -> None:
    _, [note] = timeline(".edl", [hit(tmp_path / "gone.mp4")], "")
    assert note == "gone.mp4 cannot be opened (No such file or directory): counted at 25 frames a second"


def test_samples_of_shards_are_said_to_be_in_them(films: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        shard.add(films[0], "a.mp4")
    _, [note] = timeline(".edl", [hit(tmp_path / "x.tar" / "a.mp4")], "")
    assert note.startswith("1 files lie in shards")


def test_a_table_loses_no_column_and_computes_nothing() -> None:
    told = {"rank": "first", "note": "=1+2", "n": -5}
    text, _ = timeline(".csv", [hit(Path("a.mp4"), metadata=told, copies=("b c.mp4", "d"))], "")
    [row] = csv.DictReader(text.splitlines(keepends=True))
    assert (row["rank"], row["meta.rank"], row["note"], row["n"]) == ("1", "first", "'=1+2", "-5")
    assert row["copies"].splitlines() == ["b c.mp4", "d"]


def test_subtitles_of_equal_spans_and_images_are_written_and_said() -> None:
    said = (Cue(1, 2, "there --> here"),)
    text, _notes = timeline(".srt", [hit(Path("a.mp4"), rank=1, said=said), hit(Path("a.mp4"), rank=2)], "")
    assert [(c.start, c.end) for c in parsed(text)[0]] == [(1.2, 2.4)] * 2
    assert timeline(".srt", [hit(Path("a.png"), 0, 0)], "") == ("", ["1 images are no clips and left out"])


def test_tables_hold_what_hits_say(hits: list[Hit], tmp_path: Path) -> None:
    write_timeline(tmp_path / "hits.csv", hits)
    rows = list(csv.DictReader((tmp_path / "hits.csv").open()))
    assert [float(row["end"]) for row in rows] == [2.4, 1.0, 3.6]
    assert (rows[0]["path"], rows[0]["said"]) == (hits[0].path, 'he says <"hello"> & goes')
    write_timeline(tmp_path / "hits.json", hits, "a dog")
    values = json.loads((tmp_path / "hits.json").read_text())
    assert (values["query"], [h["end"] for h in values["hits"]]) == ("a dog", [2.4, 1.0, 3.6])


def test_subtitles_are_on_the_clock_of_one_video_or_of_the_hits_in_a_row(hits: list[Hit], tmp_path: Path) -> None:
    [note] = write_timeline(tmp_path / "one.srt", [hits[2], hits[0]])
    cues, problem = parsed((tmp_path / "one.srt").read_text())
    assert ([(c.start, c.end) for c in cues], problem) == ([(1.2, 2.4), (3.0, 3.6)], "")
    assert note.startswith("times are those of the video")
    [note] = write_timeline(tmp_path / "all.srt", hits)
    cues, _ = parsed((tmp_path / "all.srt").read_text())
    assert [(c.start, c.end) for c in cues] == [(0.0, 1.2), (1.2, 1.8), (1.8, 2.4)]
    assert "of several videos" in note


def test_no_hits_and_images_alone_make_lists_without_clips(tmp_path: Path) -> None:
    for ending in (".edl", ".fcpxml", ".csv", ".srt", ".json"):
        write_timeline(tmp_path / f"none{ending}", [])
    assert write_timeline(tmp_path / "still.edl", [hit(tmp_path / "a.jpg", 0, 0)]) == [
        "1 images are no clips and left out"
    ]


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"export=\.xls: expected \.edl, \.fcpxml, \.csv, \.srt, \.json"):
        write_timeline(tmp_path / "hits.xls", [])


def test_hits_become_clips_once(films: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    wanted = [hit(films[0]), hit(films[0].with_name("gone.mp4"), rank=2), hit(tmp_path / "a.png", 0, 0, rank=3)]
    report = write_clips(wanted, tmp_path / "out", exact=True)
    assert [Path(m.path).suffix for m in report.made] == [".mp4", ".png"]
    assert (len(report.failed), "gone.mp4" in report.failed[0]) == (1, True)
    assert numbers(report.made[0].path) == list(range(30, 60))
    again = write_clips(wanted, tmp_path / "out", exact=True)
    assert (again.made, again.there) == ([], [m.path for m in report.made])
    assert not write_clips(wanted[:1], tmp_path / "out").there  # a copy is another clip


def test_a_file_that_took_anothers_place_is_another_clip(tmp_path: Path) -> None:
    still = tmp_path / ("𠀀" * 62 + ".png")
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(still)
        os.utime(still, ns=(0, ord(colour[0])))
        [made] = write_clips([hit(still, 0, 0)], tmp_path / "out").made
        assert made.path.read_bytes() == still.read_bytes()


@pytest.mark.parametrize("exact", [True, False])
def test_clips_of_every_container_play_in_a_browser(
    films: list[Path], tmp_path: Path, browser: Any, exact: bool
) -> None:
    report = write_clips([hit(film, rank=n) for n, film in enumerate(films, 1)], tmp_path / "out", exact=exact)
    assert report.failed == []
    (tmp_path / "page.html").write_text("<video muted></video>")
    page = browser.new_page()
    for clip in report.made:
        shutil.copyfile(clip.path, tmp_path / f"clip{clip.path.suffix}")
        page.goto((tmp_path / "page.html").as_uri())
        shown = page.evaluate(
            """name => new Promise(done => {
                const video = document.querySelector('video')
                video.onended = () => done([video.videoWidth, video.duration, video.error])
                video.onerror = () => done(['error', video.error.message])
                video.src = name; video.playbackRate = 4; video.play()
            })""",
            f"clip{clip.path.suffix}",
        )
        assert (shown[0], shown[2]) == (64, None)
        assert shown[1] == pytest.approx(clip.end - clip.start, abs=0.1)
    page.close()


def test_the_server_cuts_moments_it_knows_and_hands_out_lists(films: list[Path], tmp_path: Path) -> None:
    import httpx

    from tests.library.serving import make_library, running
    from vtr.library.serve import make_app

    library = make_library(tmp_path, 2)
    with running(make_app(library, small_model())) as at, httpx.Client(base_url=at, timeout=60) as client:
        [first, _] = client.get("/api/search", params={"q": "a dog"}).json()["hits"]
        place = f"/api/segments/{first['segment']}/clip"
        for exact in (False, True):
            answer = client.get(place, params={"exact": exact})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
            (tmp_path / "got.mp4").write_bytes(answer.content)
            with av.open(tmp_path / "got.mp4") as clip:
                assert clip.duration / 1e6 == pytest.approx(2.0, abs=1.9 if not exact else 0.05)
        wider = client.get(place, params={"exact": True, "start": 0.5, "end": 3.0})  # ends of a hit, not of its segment
        (tmp_path / "got.mp4").write_bytes(wider.content)
        with av.open(tmp_path / "got.mp4") as clip:
            assert clip.duration / 1e6 == pytest.approx(2.5, abs=0.05)
        assert client.get(place, params={"start": 3, "end": 1}).status_code == 400
        assert client.get("/api/segments/999/clip").status_code == 404
        assert client.get(place, params={"path": "/etc/passwd"}).status_code == 400
        listed = client.get("/api/export", params={"q": "a dog", "format": "edl", "k": 1})
        assert (listed.status_code, listed.text.startswith("TITLE: a dog")) == (200, True)
        assert "attachment" in listed.headers["content-disposition"]
        Path(first["path"]).write_bytes(b"changed")
        assert client.get(place).status_code == 409
