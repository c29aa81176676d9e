"""Cut-off media: found by the container's own account, or by the duration that its header names."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers import video_bytes
from vtr.data.whole import cut_off

FORMATS = {"mp4": "libx264", "mov": "libx264", "matroska": "libx264", "webm": "libvpx", "avi": "mpeg4", "flv": "flv1",
           "asf": "wmv2", "ogg": "libtheora", "gif": "gif", "apng": "apng"}  # fmt: skip


def clip(folder: Path, container: str, options: dict[str, str] | None = None, frames: int = 60) -> bytes:
    """A clip of noise, 4 frames a second, so that every container has something to lose."""
    rng = np.random.default_rng(0)
    out = folder / f"whole.{container}"
    with av.open(str(out), "w", format=container, options=options or {}) as file:
        try:
            stream = file.add_stream(FORMATS[container], rate=4)
        except ValueError:
            pytest.skip(f"this PyAV cannot write {FORMATS[container]}")
        stream.width = stream.height = 64
        stream.pix_fmt = {"gif": "rgb8", "apng": "rgb24"}.get(container, "yuv420p")
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), format="rgb24")
            file.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        file.mux(stream.encode())
    return out.read_bytes()


@pytest.mark.parametrize("container", sorted(FORMATS))
@pytest.mark.parametrize("share", [0.3, 0.67])
def test_a_file_cut_off_anywhere_is_found_in_every_container(container: str, share: float, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if container in ("mp4", "mov") else None
    data = clip(tmp_path, container, options)
    assert cut_off(data) == ""
    assert cut_off(data[: int(len(data) * share)], thorough=False).startswith("cut off: ")


@pytest.mark.parametrize(("packet", "prefix"), [(188, b""), (192, b"time")])
def test_a_transport_stream_whose_last_packet_is_not_whole_is_cut_off(packet: int, prefix: bytes) -> None:
    data = (prefix + b"G".ljust(188, b"\xff")) * 10
    assert cut_off(data) == ""
    assert cut_off(data[:-100]) == f"cut off: 100 of its {10 * packet} bytes are missing"


def test_a_live_recording_that_does_not_know_its_length_is_whole(tmp_path: Path) -> None:
    data = clip(tmp_path, "matroska", {"live": "1"})
    assert cut_off(data) == ""
    assert cut_off(video_bytes()) == ""


def test_a_duration_far_from_the_headers_is_found_where_all_bytes_are_there(tmp_path: Path) -> None:
    data = bytearray(clip(tmp_path, "matroska"))
    place = data.index(b"\x18S\x80g") + 4
    width = 9 - data[place].bit_length()
    data[place : place + width] = b"\x01" + b"\xff" * 7 if width == 8 else data[place : place + width]  # unknown size
    assert cut_off(bytes(data)) == ""
    assert "its header names 15.0 s" in cut_off(bytes(data[: len(data) // 2]), thorough=False)


def test_a_path_is_looked_into_as_its_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(clip(tmp_path, "matroska")[:-2000])
    assert cut_off(path).startswith("cut off: 2000 of its ")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"<html>", b"\x1aE\xdf\xa3", b"GIF89a", b"RIFF\0\0\0\0AVI ", b"OggS", b"FLV"]
)
def test_what_is_no_media_is_left_to_its_decoder(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert isinstance(cut_off(tmp_path / "a"), str)
    assert cut_off(tmp_path / "gone.mp4") == ""
    assert cut_off(tmp_path) == ""


def test_no_real_clip_is_taken_for_cut_off_and_every_one_that_is_cut_is_found(shared: Path) -> None:
    folder = shared / "data" / "real_clips"
    missed = []
    for path in sorted(p for p in folder.iterdir() if not p.name.endswith((".json", ".jsonl"))):
        assert cut_off(path) == "", path.name
        data = path.read_bytes()
        if not cut_off(data[: len(data) * 2 // 3], thorough=False):
            missed.append(path.name)
    assert missed == ["filetype_fixture2.mpg"]  # an MPEG programme stream says neither its length nor its duration
