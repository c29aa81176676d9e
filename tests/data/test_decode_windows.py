"""Windows of odd but real files: on the player's clock, by time on display, no more than there are frames."""

from __future__ import annotations

import io
import resource
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.media import BLUE, GREEN, RED, film, moved, plain, remuxed, scenes, seen
from vtr.data.decode import Window, probe, read_moment, read_windows


def cut(data: bytes, window: float = 2.0, stride: float = 1.0) -> list[Window]:
    return list(read_windows(data, window=window, stride=stride, frames=4, size=16))


def shown(windows: list[Window]) -> dict[tuple[float, float], list[str]]:
    return {(round(w.start, 2), round(w.end, 2)): seen(w) for w in windows}


@pytest.mark.parametrize("fmt", ["mp4", "matroska"])
def test_picture_that_begins_after_the_sound_has_the_players_times(fmt: str) -> None:
    data = film(scenes(), fmt=fmt, begin=6.0, sound=(0.0, 18.0))
    windows = shown(cut(data))
    assert next(iter(windows)) == (6.0, 8.0)
    assert windows[7.0, 9.0] == ["red"]
    assert windows[11.0, 13.0] == ["blue"]
    assert windows[16.0, 18.0] == ["green"]
    assert probe(data).duration == pytest.approx(18.0, abs=0.1)


def test_picture_before_its_sound_begins_at_nought() -> None:
    windows = shown(cut(film(scenes(), sound=(4.0, 12.0))))
    assert windows[0.0, 2.0] == ["red"]
    assert windows[10.0, 12.0] == ["green"]


@pytest.mark.parametrize("fmt", ["mpegts", "mpeg", "flv", "avi", "asf", "matroska", "mp4", "mov"])
def test_frames_out_of_order_have_their_times_in_every_container(fmt: str) -> None:
    codec = {"mpeg": "mpeg2video", "asf": "wmv2"}.get(fmt, "libx264")
    fps = 25 if fmt == "mpeg" else 5
    data = film(scenes(fps=fps), fmt=fmt, codec=codec, fps=fps, options={"bf": "2"} if codec != "wmv2" else {})
    windows = shown(cut(data))
    assert windows[0.0, 2.0] == ["red"]
    assert windows[3.0, 5.0] == ["red", "blue"]
    assert windows[5.0, 7.0] == ["blue"]
    assert windows[9.0, 11.0] == ["green"]


@pytest.mark.parametrize(("fmt", "codec"), [("mpegts", "libx264"), ("mpeg", "mpeg2video"), ("mpegts", "mpeg2video")])
def test_recordings_glued_together_go_on_after_one_another(fmt: str, codec: str) -> None:
    parts = [film(scenes(fps=25, colours=(c,)), fmt=fmt, codec=codec, fps=25) for c in (RED, BLUE, GREEN)]
    data = b"".join(parts)
    assert probe(data).duration == pytest.approx(12.0, abs=0.2)
    windows = shown(cut(data))
    assert windows[1.0, 3.0] == ["red"]
    assert windows[5.0, 7.0] == ["blue"]
    assert windows[9.0, 11.0] == ["green"]


def test_a_transport_stream_whose_stamps_wrap_or_start_late_begins_at_nought() -> None:
    base = film(scenes(), options={"bf": "2"})
    for shift in (1000.0, 95_443.7 - 5.0):  # the second passes 2^33 ticks of 90 kHz on the way
        windows = shown(cut(remuxed(base, "mpegts", shift=shift, muxer={"mpegts_copyts": "1"})))
        assert windows[0.0, 2.0] == ["red"], shift
        assert windows[5.0, 7.0] == ["blue"], shift
        assert windows[9.0, 11.0] == ["green"], shift


def test_matroska_that_starts_late_keeps_the_times_a_browser_shows() -> None:
    windows = shown(cut(film(scenes(), fmt="matroska", begin=10.0)))
    assert windows[11.0, 13.0] == ["red"]
    assert windows[19.0, 21.0] == ["green"]
    assert max(windows) == (20.0, 22.0)


@pytest.mark.parametrize("seconds", [10_800, 95_443, 946_080_000])
@pytest.mark.parametrize("number", [29, 59])
def test_one_stamp_far_away_makes_no_windows(number: int, seconds: int) -> None:
    def far(place: int, packet: av.Packet) -> None:
        if place == number:
            packet.pts = packet.dts = round(seconds / packet.time_base)

    held = io.BytesIO()
    base = film(scenes(), options={"bf": "0"})
    with av.open(io.BytesIO(base)) as source, av.open(held, "w", format="matroska") as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(p for p in source.demux() if p.size):
            packet.stream = track
            stamp = packet.pts
            far(place, packet)
            if place == number and place < 59:  # the muxer wants decoding stamps that ascend
                packet.dts = stamp
            target.mux(packet)
    windows = cut(held.getvalue())
    assert [w.start for w in windows] == pytest.approx(range(11))
    assert seen(windows[-1]) == ["green"]


def test_one_bad_frame_in_the_middle_of_an_mp4_loses_nothing() -> None:
    data = film(scenes(), change=moved(30, 20_000.0))
    windows = shown(cut(data))
    assert len(windows) == 11
    assert max(windows)[1] == pytest.approx(12.0, abs=0.05)
    assert windows[5.0, 7.0] == ["blue"]
    assert probe(data).duration == pytest.approx(12.0, abs=0.2)


def test_a_negative_first_stamp_is_hidden_by_the_edit_list() -> None:
    late = remuxed(film(scenes()), "mp4", shift=-2.0, muxer={"avoid_negative_ts": "disabled"})
    windows = shown(cut(late))
    assert windows[0.0, 2.0] == ["red"]
    assert windows[3.0, 5.0] == ["blue"]
    assert max(windows)[1] == pytest.approx(10.0, abs=0.05)


def test_fragments_and_live_recordings_without_a_length_are_cut_to_their_end() -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    for data in (
        remuxed(film(scenes()), "mp4", muxer=fragments),
        film(scenes(), fmt="webm", codec="libvpx", muxer={"live": "1"}, options={"deadline": "realtime"}),
    ):
        windows = cut(data)
        assert seen(windows[0]) == ["red"]
        assert seen(windows[-1]) == ["green"]
        assert windows[-1].end == pytest.approx(12.0, abs=0.5)
        assert windows[-1].end - windows[-1].start == pytest.approx(2.0)


def test_frames_are_chosen_by_the_time_they_are_on_display() -> None:
    times = [0.0, 5.0, *(6 + i / 25 for i in range(100)), 10.0]  # red stands, blue runs, green stands to the end
    frames = [plain(RED)] * 2 + [plain(BLUE)] * 100 + [plain(GREEN)]
    data = film(frames, times=times, sound=(0.0, 16.0), fps=25)
    windows = {(w.start, w.end): w for w in cut(data, 4.0, 2.0)}
    names = ["red" if f.float()[0].mean() > 100 else "blue" for f in windows[4.0, 8.0].frames]
    assert names == ["red", "red", "blue", "blue"]
    assert seen(windows[10.0, 14.0]) == ["green"]
    assert probe(data).duration == pytest.approx(16.0, abs=0.1)
    assert len(windows) <= len(frames)


def test_pictures_that_stand_long_are_one_window_each() -> None:
    colours = [RED, BLUE, GREEN, RED, BLUE]
    data = film([plain(c) for c in colours], times=[0, 12, 24, 36, 48], sound=(0.0, 60.0), gop=1)
    windows = cut(data, 8.0, 4.0)
    assert [seen(w) for w in windows] == [["red"], ["blue"], ["green"], ["red"], ["blue"]]
    assert all(w.start <= at < w.end for w, at in zip(windows, [0, 12, 24, 36, 48]))
    lapse = film([plain(c) for c in colours * 6], times=[60 * i for i in range(30)])
    assert len(cut(lapse, 8.0, 4.0)) == 30


def test_the_last_window_does_not_repeat_the_one_before_it() -> None:
    data = film(scenes(), fmt="matroska", sound=(0.0, 12.03))
    assert [w.start for w in cut(data)] == pytest.approx(range(11))


def test_a_film_of_one_picture_lasts_as_long_as_its_sound() -> None:
    (only,) = cut(film([plain(RED)], sound=(0.0, 9.0)), 4.0, 2.0)
    assert (only.start, only.end, seen(only)) == (0.0, 4.0, ["red"])
    (still,) = cut(film([plain(RED)]), 4.0, 2.0)
    assert (still.start, still.end) == (0.0, 0.0)


def test_a_film_with_a_cover_track_first_is_a_film() -> None:
    held = io.BytesIO()
    with av.open(held, "w", format="matroska") as target:
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        body = target.add_stream("libx264", rate=5)
        body.width, body.height, body.pix_fmt = 64, 48, "yuv420p"
        white = av.VideoFrame.from_ndarray(plain((255, 255, 255), (32, 32))).reformat(format="yuvj420p")
        white.pts = 0
        packets = [*cover.encode(white), *cover.encode(None)]
        for number, pixels in enumerate(scenes()):
            frame = av.VideoFrame.from_ndarray(pixels).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            packets += body.encode(frame)
        packets += body.encode(None)
        target.start_encoding()
        for packet in packets:
            target.mux(packet)
    windows = cut(held.getvalue())
    assert len(windows) == 11
    assert seen(windows[5]) == ["blue"]


def test_an_animation_is_cut_into_windows_and_its_last_delay_counts() -> None:
    from PIL import Image

    pictures = [Image.fromarray(plain(c)) for c in (RED, BLUE, GREEN)]
    for kind, delays, length in (("PNG", [3000, 2000, 3000], 8.0), ("WEBP", [3000, 2000, 3000], 8.0)):
        held = io.BytesIO()
        pictures[0].save(held, kind, save_all=True, append_images=pictures[1:], duration=delays, lossless=True)
        assert probe(held.getvalue()).duration == pytest.approx(length)
        windows = shown(cut(held.getvalue(), 4.0, 2.0))
        assert windows == {
            (0.0, 4.0): ["red", "blue"],
            (2.0, 6.0): ["red", "blue", "green"],
            (4.0, 8.0): ["blue", "green"],
        }
    held = io.BytesIO()
    pictures[0].save(held, "PNG", save_all=True, append_images=pictures[1:], duration=0)
    assert probe(held.getvalue()).duration == pytest.approx(0.3)  # no delay is shown as a tenth of a second


def test_the_last_frame_is_on_display_where_a_header_says_that_the_file_ends_with_it() -> None:
    from PIL import Image

    pictures = [Image.fromarray(plain(c)) for c in (RED, BLUE, GREEN)]
    held = io.BytesIO()
    pictures[0].save(held, "GIF", save_all=True, append_images=pictures[1:], duration=0)
    assert probe(held.getvalue()).duration == pytest.approx(0.3)
    (only,) = cut(held.getvalue(), 4.0, 4.0)
    assert seen(only) == ["red", "blue", "green"]


def test_a_picture_for_old_programs_is_no_frame_of_an_animated_png() -> None:
    from PIL import Image

    pictures = [Image.fromarray(plain(c)) for c in (RED, BLUE, GREEN)]
    held = io.BytesIO()
    pictures[0].save(held, "PNG", save_all=True, append_images=pictures[1:], duration=1000, default_image=True)
    assert (probe(held.getvalue()).frames, probe(held.getvalue()).duration) == (2, pytest.approx(2.0))
    (only,) = cut(held.getvalue(), 4.0, 4.0)
    assert seen(only) == ["blue", "green"]


def test_a_moment_has_the_frames_of_its_window() -> None:
    from vtr.data.transforms import eval_frames

    for fmt, codec in (("mp4", "libx264"), ("avi", "mpeg4"), ("mpegts", "libx264")):
        rng = np.random.default_rng(0)
        frames = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(60)]
        data = film(frames, fmt=fmt, codec=codec, fps=5, options={"bf": "2"})
        for w in cut(data, 2.0, 1.0):
            clip = read_moment(data, 4, start=w.start, end=w.end)
            assert np.array_equal(eval_frames(clip.frames, 16).numpy(), w.frames.numpy()), (fmt, w.start)
        (whole,) = cut(data, 60.0, 60.0)
        assert np.array_equal(eval_frames(read_moment(data, 4).frames, 16).numpy(), whole.frames.numpy())


def test_windows_are_let_go_when_they_are_given_out() -> None:
    """Pictures of 384 px, so that 300 windows kept would be 1 GB."""
    rng = np.random.default_rng(0)
    second = [np.repeat(rng.integers(0, 255, (96, 96, 1), dtype=np.uint8), 3, 2) for _ in range(4)]
    data = film([second[i % 4] for i in range(1200)], fps=4, gop=40, options={"preset": "ultrafast"})
    windows = read_windows(data, window=2.0, stride=1.0, frames=8, size=384)
    for _ in range(20):
        next(windows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in windows) > 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_nothing_is_decoded_or_read_ahead_of_the_first_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.data.decode import container

    read: list[int] = []
    real = container._Input.read

    def counting(self: container._Input, size: int = -1) -> bytes:
        data = real(self, size)
        read.append(len(data))
        return data

    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(20)]
    data = film([noise[i % 20] for i in range(3000)], fmt="matroska", options={"preset": "ultrafast", "crf": "10"})
    monkeypatch.setattr(container._Input, "read", counting)
    next(read_windows(data, window=2.0, stride=1.0, frames=4, size=16))
    assert sum(read) < len(data) / 4


@pytest.mark.parametrize(("muxer", "read"), [({"mpegts_start_pid": "512"}, True), ({"mpegts_service_id": "2"}, False)])
def test_a_recording_glued_on_goes_on_with_other_tracks_or_is_told(muxer: dict[str, str], read: bool) -> None:
    if not read:  # a programme of its own
        muxer |= {"mpegts_pmt_start_pid": "4352", "mpegts_start_pid": "768"}
    first, second = (film([plain(c)] * 20, fmt="mpegts", muxer=m) for c, m in ((RED, {}), (BLUE, muxer)))
    windows = read_windows(first + second, window=2.0, stride=1.0, frames=4, size=16)
    colours = {name for w in windows for name in seen(w)}
    assert colours == ({"red", "blue"} if read else {"red"})
    assert ("another recording glued to it" in windows.lacking) is not read


def test_an_avi_whose_index_leads_nowhere_says_how_little_of_it_was_read() -> None:
    data = film(scenes(), fmt="avi", codec="mpeg4", options={"bf": "0"})
    index = data.index(b"idx1") + 8
    places = range(index, index + int.from_bytes(data[index - 4 : index], "little"), 16)
    spoilt = bytearray(data)
    for place in places:
        spoilt[place + 8 : place + 12] = b"\xff\xff\xff\x0f"
    told = []
    for film_ in (data, bytes(spoilt)):
        windows = read_windows(film_, window=2.0, stride=1.0, frames=4, size=16)
        list(windows)
        told.append(windows.lacking)
    assert told == ["", "its header names 12.0 s, 0.2 s are there: damaged, or a wrong index"]
