"""Decoding files made here: counts, orientation, spans of time, windows, images, limits, and the errors' one line."""

from __future__ import annotations

import io
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from vtr.data.decode import DecodeError, probe, read_frames, read_windows
from vtr.data.decode.picture import oriented
from vtr.data.sampling import middle_frames, picker
from vtr.errors import UsageError

av = pytest.importorskip("av")


def video(count: int = 40, size: tuple[int, int] = (64, 48), fps: int = 10) -> bytes:
    """A video whose frame i has the grey level 4 * (i mod 50) + 20 in its upper half and is black below."""
    held = io.BytesIO()
    with av.open(held, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.options = {"g": "10", "crf": "10", "bf": "2"}
        for index in range(count):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            pixels[: size[1] // 2] = 4 * (index % 50) + 20
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return held.getvalue()


def levels(frames: np.ndarray) -> list[int]:
    """The number of each frame, read off its grey level."""
    return [round((float(f[: f.shape[0] // 3].mean()) - 20) / 4) for f in frames]


def with_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4 with (a, b, c, d) in the display matrix of its track header."""
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (v << 16 for v in matrix)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


@pytest.fixture(scope="module")
def clip() -> bytes:
    return video()


def test_the_frames_asked_for_are_the_frames_given(clip: bytes) -> None:
    got = read_frames(clip, lambda n: [0, 7, n - 1, 7])
    assert levels(got.frames) == [0, 7, 39, 7]
    assert got.times == pytest.approx([0.0, 0.7, 3.9, 0.7])
    assert got.frames.shape == (4, 48, 64, 3)


def test_a_path_and_its_bytes_give_the_same_pixels(clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "-a %03d name.mp4"
    path.write_bytes(clip)
    assert np.array_equal(read_frames(path, picker(8)).frames, read_frames(clip, picker(8)).frames)


def test_only_frames_between_start_and_end_are_counted(clip: bytes) -> None:
    counts: list[int] = []

    def pick(n: int) -> list[int]:
        counts.append(n)
        return list(range(n))

    got = read_frames(clip, pick, start=1.0, end=1.5)
    assert counts == [5]
    assert levels(got.frames) == [10, 11, 12, 13, 14]
    shown = read_frames(clip, pick, start=2.05, end=2.06)
    assert levels(shown.frames) == [20]
    with pytest.raises(DecodeError, match=r"lasts 4\.00 s"):
        read_frames(clip, pick, start=9.0)


def test_seeking_gives_the_frames_that_decoding_from_the_start_gives() -> None:
    data = video(200, fps=10)
    whole = read_frames(data, lambda n: list(range(150, 160))).frames
    part = read_frames(data, lambda n: list(range(n)), start=15.0, end=16.0)
    assert np.array_equal(part.frames, whole)


def test_nothing_is_decoded_past_the_last_frame_needed(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.data.decode import pyav as decode_pyav

    seen: list[int] = []
    real = decode_pyav.VideoReader.play

    def counting(self: decode_pyav.VideoReader):
        for item in real(self):
            seen.append(1)
            yield item

    monkeypatch.setattr(decode_pyav.VideoReader, "play", counting)
    read_frames(clip, lambda n: [2, 5])
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda f: f),
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
        ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
        ((1, 0, 0, -1), lambda f: f[::-1]),
        ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda f: np.rot90(f, 2).transpose(1, 0, 2)),
    ],
)
def test_the_display_matrix_turns_and_mirrors(clip: bytes, matrix: tuple[int, int, int, int], turned) -> None:
    upright = read_frames(clip, lambda n: [3]).frames[0]
    asked = with_matrix(clip, matrix)
    got = read_frames(asked, lambda n: [3]).frames[0]
    assert np.array_equal(got, turned(upright))
    info = probe(asked)
    assert (info.height, info.width) == got.shape[:2]


def test_a_matrix_moves_each_corner_to_where_it_says() -> None:
    pixels = np.arange(2 * 3).reshape(2, 3, 1).repeat(3, axis=2).astype(np.uint8)
    for a, b, c, d in [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)]:
        out = oriented(pixels, (a << 16, b << 16, c << 16, d << 16))
        places = {(a * x + c * y, b * x + d * y): pixels[y, x, 0] for y in range(2) for x in range(3)}
        left, top = min(x for x, _ in places), min(y for _, y in places)
        assert all(out[y - top, x - left, 0] == value for (x, y), value in places.items())


def test_probe_tells_what_the_decoder_gives(clip: bytes) -> None:
    info = probe(clip)
    assert (info.kind, info.width, info.height, info.frames, info.codec) == ("video", 64, 48, 40, "h264")
    assert info.duration == pytest.approx(4.0)
    assert info.fps == pytest.approx(10.0)


def test_windows_cover_the_video_and_hold_their_own_middle_frames(clip: bytes) -> None:
    windows = list(read_windows(clip, window=1.0, stride=0.5, frames=5, size=48))
    assert [(round(w.start, 3), round(w.end, 3)) for w in windows] == [(i / 2, i / 2 + 1) for i in range(7)]
    for w in windows:
        assert w.frames.shape == (5, 3, 48, 48)
        first = round(w.start * 10)
        assert levels(w.frames.permute(0, 2, 3, 1).numpy()) == [first + i for i in middle_frames(10, 5)]


def test_a_short_video_and_an_image_give_one_window(clip: bytes) -> None:
    (only,) = read_windows(clip, window=60.0, stride=30.0, frames=4, size=32)
    assert (only.start, only.end) == (0.0, pytest.approx(4.0))
    (still,) = read_windows(picture("PNG"), window=8.0, stride=4.0, frames=4, size=32)
    assert (still.start, still.end, still.frames.shape) == (0.0, 0.0, (4, 3, 32, 32))


def test_windows_hold_few_frames_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.data.decode.picture import Painter

    converted: list[int] = []
    real = Painter.rgb
    monkeypatch.setattr(Painter, "rgb", lambda self, f: (converted.append(1), real(self, f))[1])
    windows = read_windows(video(200), window=2.0, stride=2.0, frames=4, size=16)
    next(windows)
    assert len(converted) <= 8
    assert len(list(windows)) == 9


def picture(kind: str, mode: str = "RGB", **extra: object) -> bytes:
    from PIL import Image

    image = Image.new("RGB", (20, 10), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 10, 10))  # left half red
    held = io.BytesIO()
    image.convert(mode).save(held, kind, **extra)
    return held.getvalue()


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("GIF", {}),
        ("PPM", {}),
    ],
)
def test_images_are_clips_of_one_frame(kind: str, extra: dict[str, object]) -> None:
    data = picture(kind, **extra)
    got = read_frames(data, picker(4))
    assert got.frames.shape == (4, 10, 20, 3)
    assert got.frames[0, 5, 2].tolist() == pytest.approx([255, 0, 0], abs=8)
    assert got.frames[0, 5, 17].tolist() == pytest.approx([0, 0, 255], abs=8)
    info = probe(data)
    assert (info.kind, info.frames, info.duration, info.width, info.height) == ("image", 1, 0.0, 20, 10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright(orientation: int) -> None:
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = picture("PNG", exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(read_frames(data, lambda n: [0]).frames[0], wanted)
    info = probe(data)
    assert (info.height, info.width) == wanted.shape[:2]


def test_transparency_is_shown_on_white() -> None:
    from PIL import Image

    held = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(held, "PNG")
    assert (read_frames(held.getvalue(), lambda n: [0]).frames == 255).all()


def test_animated_webp_is_a_video() -> None:
    from PIL import Image

    held = io.BytesIO()
    shades = [Image.new("RGB", (16, 16), (v, v, v)) for v in (0, 100, 200)]
    shades[0].save(held, "WEBP", save_all=True, append_images=shades[1:], duration=500, lossless=True)
    got = read_frames(held.getvalue(), lambda n: list(range(n)))
    assert [int(f[0, 0, 0]) for f in got.frames] == [0, 100, 200]
    assert got.times.tolist() == [0.0, 0.5, 1.0]
    assert probe(held.getvalue()).kind == "video"


@pytest.mark.parametrize(
    ("name", "data", "cause"),
    [
        ("empty.mp4", b"", "empty"),
        ("pointer.mp4", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        ("page.mp4", b"\n<!DOCTYPE html><html>404</html>", "HTML page"),
        ("list.mp4", b"#EXTM3U\n/etc/passwd\n", "playlist"),
        ("notes.mp4", "grüße an alle".encode(), "is text"),
        ("zip.mp4", b"PK\x03\x04" + bytes(100), "zip archive"),
        ("shard.tar", bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
        ("zeros.mp4", bytes(5000), "zero bytes"),
        ("noise.mp4", np.random.default_rng(0).bytes(5000), "not recognised"),
        ("photo.jpg", b"\xff\xd8\xff\xe0" + bytes(50), "image"),
    ],
)
def test_what_is_no_media_is_called_by_its_name(tmp_path: Path, name: str, data: bytes, cause: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for call in (
        lambda: read_frames(path, picker(4)),
        lambda: probe(path),
        lambda: list(read_windows(path, window=8, stride=4, frames=4, size=16)),
    ):
        with pytest.raises(DecodeError) as caught:
            call()
        assert str(caught.value).startswith(f"{path}: ")
        assert cause in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"absent\.mp4: no such file"):
        read_frames(tmp_path / "absent.mp4", picker(4))
    with pytest.raises(DecodeError, match="is a folder"):
        read_frames(tmp_path, picker(4))
    with pytest.raises(DecodeError, match=r"cannot be read|no such file"):
        read_frames("a\x00b.mp4", picker(4))


def test_the_time_limit_ends_a_decode(clip: bytes) -> None:
    with pytest.raises(DecodeError, match="time limit of 0 s"):
        read_frames(clip, picker(4), timeout=0.0)
    with pytest.raises(DecodeError, match="time limit"):
        list(read_windows(clip, window=8, stride=4, frames=4, size=16, timeout=0.0))


def test_a_wrong_choice_of_frames_is_not_blamed_on_the_file(clip: bytes) -> None:
    for bad in ([], [40], [-1]):
        with pytest.raises(ValueError, match="pick returned"):
            read_frames(clip, lambda n, bad=bad: bad)
    with pytest.raises(UsageError, match="pyav"):
        read_frames(clip, picker(4), backend="pyva")


def test_the_isolated_decoder_gives_the_same(clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    wanted = read_frames(clip, picker(4))
    for source in (clip, path):
        got = read_frames(source, picker(4), isolated=True)
        assert np.array_equal(got.frames, wanted.frames)
        assert got.times.tolist() == wanted.times.tolist()
    with pytest.raises(DecodeError, match="upload: the file is empty"):
        read_frames(b"", picker(4), isolated=True)
    with pytest.raises(ValueError, match="pick returned"):
        read_frames(clip, lambda n: [n], isolated=True)


def test_decord_gives_the_same_pixels_of_plain_h264(clip: bytes) -> None:
    pytest.importorskip("decord")
    wanted = read_frames(clip, picker(8))
    got = read_frames(clip, picker(8), backend="decord")
    assert np.array_equal(got.frames, wanted.frames)
    assert got.times == pytest.approx(wanted.times, abs=1e-3)
    with pytest.raises(DecodeError, match="decord"):
        read_frames(clip[: len(clip) // 2], picker(8), backend="decord")


def test_errors_survive_the_way_from_a_loader_worker() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "two\nlines")))
    assert str(error) == "a.mp4: two lines"
    assert (error.name, error.cause) == ("a.mp4", "two lines")


def test_several_threads_may_decode_at_once(clip: bytes) -> None:
    wanted = read_frames(clip, picker(8)).frames
    results: list[bool] = []
    workers = [
        threading.Thread(target=lambda: results.append(np.array_equal(read_frames(clip, picker(8)).frames, wanted)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 4


def test_a_span_reached_by_seeking_has_the_pixels_of_a_whole_read(shared: Path) -> None:
    # the first frames after a seek in this file refer to frames before it, and the decoder marks them corrupt
    path = shared / "data/real_clips/imageio_cockatoo_yuv444.mp4"
    whole = read_frames(path, lambda n: list(range(n)))
    span = read_frames(path, lambda n: list(range(n)), start=6.0, end=9.0)
    assert len(span.times) > 30
    at = {round(t, 4): i for i, t in enumerate(whole.times)}
    for time, frame in zip(span.times, span.frames):
        assert np.array_equal(frame, whole.frames[at[round(time, 4)]]), time
