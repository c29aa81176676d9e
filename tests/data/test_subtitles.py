"""Subtitle files and text tracks: what is said and when, whatever the file is like."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.helpers import video_bytes
from vtr.data.decode.tracks import read_tracks
from vtr.data.subtitles import Cue, beside, decoded, parsed, read_file

SRT = "1\n00:00:00,200 --> 00:00:00,700\n<i>hello</i> there\n\n2\n00:00:00,900 --> 00:00:01,300\nthe second line\n"
CUES = [Cue(0.2, 0.7, "hello there"), Cue(0.9, 1.3, "the second line")]


def with_track(path: Path, codec: str, clip: bytes | None = None) -> Path:
    """A clip with a text track of CUES inside."""
    source = av.open(io.BytesIO(clip or video_bytes(0, 12)))
    with av.open(path, "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        packets: list[Any] = [p for p in source.demux(video=0) if p.dts is not None]
        if codec == "mov_text":
            text: Any = out.add_stream("mov_text", rate=None)
            if not hasattr(text.codec_context, "subtitle_header"):
                pytest.skip("this PyAV cannot write mov_text")
            text.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\n[Events]\n"
            text.codec_context.time_base = text.time_base = Fraction(1, 1000)
            said = []
            for cue in CUES:
                words = cue.text.encode()
                packet = av.Packet(struct.pack(">H", len(words)) + words)
                packet.pts = packet.dts = round(1000 * cue.start)
                packet.duration, packet.time_base = round(1000 * (cue.end - cue.start)), Fraction(1, 1000)
                said.append(packet)
        else:
            form = {"subrip": "srt", "webvtt": "webvtt"}[codec]
            body = SRT if codec == "subrip" else "WEBVTT\n\n" + SRT.replace(",", ".")
            subtitles = av.open(io.BytesIO(body.encode()), format=form)
            text = out.add_stream_from_template(subtitles.streams.subtitles[0])
            said = [p for p in subtitles.demux() if p.size]
        for packet in packets:
            packet.stream = video
        for packet in said:
            packet.stream = text
        for packet in sorted([*packets, *said], key=lambda p: float(p.dts * p.time_base)):
            out.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "subrip"), ("a.mkv", "webvtt"), ("a.mp4", "mov_text")])
def test_a_text_track_inside_a_video_is_read_with_its_times(tmp_path: Path, name: str, codec: str) -> None:
    [track] = read_tracks(with_track(tmp_path / name, codec))
    assert [(round(c.start, 3), round(c.end, 3), c.text) for c in track.cues] == [tuple(c) for c in CUES]


def test_a_file_without_text_tracks_or_without_sense_has_none(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert read_tracks(video_bytes()) == read_tracks(tmp_path / "bad.mp4") == read_tracks(tmp_path / "none.mp4") == []


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_in_any_form_is_read(ends: str, encoding: str) -> None:
    text, said = decoded(("1\n00:00:01,000 --> 00:00:02,000\nGrüße\n猫\n".replace("\n", ends)).encode(encoding))
    assert (parsed(text), said) == (([Cue(1, 2, "Grüße 猫")], ""), "")


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1252", "Le garçon a mangé un gâteau près de la fenêtre, où il était déjà."),
        ("cp1251", "Привет, мир. Кошка сидит на столе и смотрит в окно."),
        ("cp932", "こんにちは世界。猫が机の上に座っています。"),
        ("gb18030", "你好，世界。一只猫坐在桌子上看着窗外。"),
    ],
)
def test_other_encodings_are_told_and_said(encoding: str, words: str) -> None:
    text, said = decoded(f"1\n00:00:01,000 --> 00:00:02,000\n{words}\n".encode(encoding))
    assert parsed(text)[0][0].text == words
    assert said == f"line 3: not UTF-8, read as {encoding}"


def test_a_broken_byte_does_not_change_the_encoding_of_the_rest() -> None:
    body = f"1\n00:00:01,000 --> 00:00:02,000\n{'ä' * 30}\n".encode() + b"\xc3"
    assert decoded(body) == (body.decode(errors="replace"), "line 4: bytes that are no UTF-8, shown as \ufffd")


def test_mark_up_is_no_text() -> None:
    text = "1\n00:01 --> 00:02.5\n{\\p1}m 0 0 l 100 0{\\p0}{\\an8}<font color='red'>A</font> &amp; <b>B</b>\\N3 < 4\n"
    assert parsed(text) == ([Cue(1.0, 2.5, "A & B 3 < 4")], "")


def test_webvtt_has_names_notes_styles_and_settings() -> None:
    text = (
        "WEBVTT - title\n\nNOTE a note\n\nSTYLE\n::cue{}\n\nintro\n01:02.000 --> 01:03.000 align:start\n"
        "<v Bob>Hi <00:01:02.500>there</v>\n\nNOTE bye\n\n2\n00:00.000 --> 00:00.000\nzero\n"
    )
    assert parsed(text) == ([Cue(0.0, 0.0, "zero"), Cue(62.0, 63.0, "Hi there")], "")


def test_cues_may_overlap_lack_numbers_and_empty_lines() -> None:
    text = "00:00:01,000 --> 00:00:09,000\none\n00:00:02,000 --> 00:00:03,000\n1984\n7\n00:00:05,000 --> 00:00:06,000\nlast"
    assert parsed(text) == ([Cue(1, 9, "one"), Cue(2, 3, "1984"), Cue(5, 6, "last")], "")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("00:00:05,000 --> 3", "expected HH:MM:SS,mmm --> HH:MM:SS,mmm, found '00:00:05,000 --> 3'; left out"),
        ("00:00:05,000 00:00:06,000", "expected HH:MM:SS,mmm --> HH:MM:SS,mmm, found '00:00:05,000 00:00:06,000'; left out"),
        ("00:75:00,000 --> 00:76:00,000", "expected HH:MM:SS,mmm --> HH:MM:SS,mmm, found '00:75:00,000 --> 00:76:00,000'; left out"),
    ],
)  # fmt: skip
def test_a_broken_cue_is_one_line_with_its_place_and_costs_itself_alone(line: str, problem: str) -> None:
    text = f"1\n00:00:01,000 --> 00:00:02,000\none\n\n2\n{line}\nlost\n\n3\n00:00:08,000 --> 00:00:09,000\nthree\n"
    assert parsed(text) == ([Cue(1, 2, "one"), Cue(8, 9, "three")], f"line 6: {problem}")


def test_a_cue_that_ends_before_it_begins_keeps_its_words_and_is_said() -> None:
    text = "1\n00:00:03,000 --> 00:00:02,000\nback\n"
    assert parsed(text) == (
        [Cue(3, 3, "back")],
        "line 2: ends before it begins ('00:00:03,000 --> 00:00:02,000'); taken as a moment",
    )


@pytest.mark.parametrize("text", ["", "\n\n", "<html>", "Dialogue: 0,0:00:01.00,0:00:02.00,hi"])
def test_a_file_without_a_cue_is_said(text: str) -> None:
    assert parsed(text)[1].startswith("no cue: expected lines as 00:01:02,500 --> 00:01:05,000, ")


def test_a_subtitle_file_goes_to_the_longest_name_that_it_begins_with() -> None:
    names = ["film.mp4", "film.srt", "film.en.SRT", "film.mp4.vtt", "film.two.mkv", "film.two.de.srt", "films.srt"]
    assert beside(names) == {
        "film.mp4": ["film.en.SRT", "film.mp4.vtt", "film.srt"],
        "film.two.mkv": ["film.two.de.srt"],
    }


def test_the_case_of_a_name_counts_only_where_names_differ_by_nothing_else() -> None:
    assert beside(["FILM.MP4", "film.srt", "Film.en.SRT"]) == {"FILM.MP4": ["Film.en.SRT", "film.srt"]}
    assert beside(["a.mp4", "A.mkv", "A.srt"]) == {"A.mkv": ["A.srt"]}
    assert beside(["ab.mp4", "AB.mkv", "Ab.srt"]) == {}
    assert beside(["FILM.MP4", "film.jpg", "film.srt"]) == {"FILM.MP4": ["film.srt"], "film.jpg": ["film.srt"]}


def test_a_clock_that_is_not_the_files_own_is_said() -> None:
    text = "WEBVTT\nX-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:{}\n\n00:01.000 --> 00:02.000\nhi\n"
    assert parsed(text.format(0)) == ([Cue(1, 2, "hi")], "")
    cues, problem = parsed(text.format(900000))
    assert cues == [Cue(1, 2, "hi")]
    assert problem.endswith("MPEGTS:900000 moves it by +10 s on its stream's clock; its times are taken as they stand")


def test_a_pipe_is_no_subtitle_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "film.srt")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(tmp_path / "film.srt")
