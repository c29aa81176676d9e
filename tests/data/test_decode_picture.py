"""Frames as a person sees them: light, colour, pixel shape; photos of every kind, upright and in bounded time."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.media import box, colour, film, plain
from vtr.data.decode import DecodeError, probe, read_frames, read_moment, read_windows
from vtr.data.decode.picture import standard_range

BARS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (235, 235, 235), (20, 20, 20)]
LUMA = {"smpte170m": (0.299, 0.114, 6), "bt709": (0.2126, 0.0722, 1), "bt2020nc": (0.2627, 0.0593, 9)}


def stored(rgb: tuple[float, ...], matrix: str, full: bool, bits: int) -> list[int]:
    """Codes of one colour, as a matrix and a range ask for."""
    kr, kb, _ = LUMA[matrix]
    r, g, b = (c / 255 for c in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v, scale, top = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr)), 1 << (bits - 8), (1 << bits) - 1
    if full:
        return [round(y * top), round(u * top + (top + 1) / 2), round(v * top + (top + 1) / 2)]
    return [round((16 + 219 * y) * scale), round((128 + 224 * u) * scale), round((128 + 224 * v) * scale)]


def bars(
    matrix: str, *, full: bool = False, bits: int = 8, transfer: int = 1, high: int = 32, tag: bool = True
) -> bytes:
    """Bars of the colours above, losslessly, tagged with how they are stored."""
    pix_fmt = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
    held = io.BytesIO()
    with av.open(held, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 16 * len(BARS), high, pix_fmt
        context = stream.codec_context
        if tag:
            context.color_range, context.colorspace = (2 if full else 1), LUMA[matrix][2]
            context.color_primaries, context.color_trc = LUMA[matrix][2], transfer
        for number in range(2):
            frame = av.VideoFrame(stream.width, high, pix_fmt)
            for place, plane in enumerate(frame.planes):
                kind = np.uint8 if bits == 8 else np.uint16
                row = np.zeros(plane.line_size // kind().itemsize, kind)
                row[: stream.width] = np.repeat(
                    [stored(_coded(c, transfer), matrix, full, bits)[place] for c in BARS], 16
                )
                plane.update(np.tile(row, (high, 1)).tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 5)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return held.getvalue()


def _coded(rgb: tuple[int, ...], transfer: int) -> tuple[float, ...]:
    """SDR codes as PQ or HLG codes of the same light; diffuse white at 203 nits (BT.2408)."""
    light = [(c / 255) ** 2.4 * 203 for c in rgb]
    if transfer == 16:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = [(n / 10_000) ** m1 for n in light]
        return tuple(255 * ((c1 + c2 * p) / (1 + c3 * p)) ** m2 for p in power)
    if transfer == 18:
        luma = 0.2627 * light[0] + 0.678 * light[1] + 0.0593 * light[2]
        scene = [n / 1000 * (luma / 1000) ** (1 / 1.2 - 1) for n in light]
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return tuple(255 * ((3 * s) ** 0.5 if s <= 1 / 12 else a * np.log(12 * s - b) + c) for s in scene)
    return rgb


def read_bars(data: bytes) -> np.ndarray:
    frame = read_frames(data, lambda n: [0]).frames[0]
    return np.array([frame[frame.shape[0] // 2, 16 * i + 8] for i in range(len(BARS))], int)


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", sorted(LUMA))
def test_each_matrix_and_range_gives_the_colours_that_were_stored(matrix: str, full: bool, bits: int) -> None:
    assert np.abs(read_bars(bars(matrix, full=full, bits=bits)) - np.array(BARS)).max() <= 4


def test_an_untold_matrix_is_that_of_its_size() -> None:
    assert np.abs(read_bars(bars("smpte170m", tag=False)) - np.array(BARS)).max() <= 4
    assert np.abs(read_bars(bars("bt709", tag=False, high=720)) - np.array(BARS)).max() <= 4


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_shown_as_its_light_asks(transfer: int) -> None:
    got = read_bars(bars("bt2020nc", bits=10, transfer=transfer))
    assert np.abs(got[4:] - np.array(BARS[4:])).max() <= 6  # white and black, which no primaries change
    assert [colour_of(c) for c in got[:3]] == [0, 1, 2]
    assert got[0][0] > 225  # a red of BT.2020's primaries is more than BT.709's


@pytest.mark.parametrize(("transfer", "code"), [(16, 148), (18, 191)])
@pytest.mark.parametrize("kind", ["avif", "png"])
def test_hdr_stills_are_shown_as_their_light_asks(kind: str, transfer: int, code: int) -> None:
    """Diffuse white in the codes of its transfer, told by the container alone."""
    from PIL import Image

    held = io.BytesIO()
    Image.new("RGB", (32, 24), (code,) * 3).save(held, kind)
    data = bytearray(held.getvalue())
    assert read_bars_of(bytes(data))[0] == pytest.approx(code, abs=2)
    if kind == "avif":
        place = data.index(b"colrnclx") + 8
        data[place : place + 4] = bytes([0, 9, 0, transfer])
    else:
        chunk = b"cICP" + bytes([9, transfer, 0, 1])
        data[33:33] = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    assert read_bars_of(bytes(data))[0] > 225


def read_bars_of(data: bytes) -> np.ndarray:
    return read_frames(data, lambda n: [0]).frames[0][12, 16]


def colour_of(pixel: np.ndarray) -> int:
    return int(np.argmax(pixel))


def test_light_above_white_is_compressed_and_not_cut() -> None:
    codes = np.linspace(30_000, 65_535, 40).astype(np.uint16)
    grey = standard_range(np.repeat(codes[None, :, None], 3, 2), 16)[0, :, 0].astype(int)
    assert (np.diff(grey) >= 0).all()
    at_203 = int(np.argmin(np.abs(codes - 0.5807 * 65535)))
    assert 225 <= grey[at_203] <= 250
    assert grey[-1] == 255


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [
        (Fraction(64, 45), (576, 1024)),
        (Fraction(16, 15), (576, 768)),
        (Fraction(9, 16), (1024, 720)),
        (Fraction(1000, 1), (576, 720)),
        (None, (576, 720)),
    ],
)
def test_pixels_that_are_no_squares_are_shown_as_wide_as_they_are(
    aspect: Fraction | None, shown: tuple[int, int]
) -> None:
    data = film([plain((200, 0, 0), (720, 576))] * 2, aspect=aspect, fmt="matroska")
    frame = read_frames(data, lambda n: [0]).frames[0]
    assert frame.shape[:2] == shown
    assert (probe(data).height, probe(data).width) == shown
    assert read_moment(data, 1).frames[0].shape[:2] == shown


def heic(turn: bytes = b"", columns: int = 2, cut: int = 0, one: list[np.ndarray] | None = None) -> bytes:
    """A photo of 2 x 2 tiles of 64 x 64: red, green, blue, yellow; or of `one` piece, and of its opacity."""
    tiles = []
    colours = ((200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 220, 40))
    for picture in one or [plain(rgb, (64, 64)) for rgb in colours]:
        options = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=1:info=0"}
        with av.open(io.BytesIO(film([picture], codec="libx265", options=options))) as made:
            stream = made.streams.video[0]
            tiles.append((bytes(stream.codec_context.extradata or b""), bytes(next(made.demux(stream)))))

    def full(kind: bytes, body: bytes, version: int = 0, flags: int = 0) -> bytes:
        return box(kind, bytes([version]) + flags.to_bytes(3, "big") + body)

    grid = bytes([0, 0, 1, columns - 1]) + struct.pack(">HH", 120, 100)
    coded = range(1, len(tiles) + 1)
    entries = [full(b"infe", struct.pack(">HH4s", i, 0, b"hvc1") + b"\0", 2, 1) for i in coded]
    entries.append(full(b"infe", struct.pack(">HH4s", 5, 0, b"grid") + b"\0", 2))
    properties = [
        box(b"hvcC", tiles[0][0]),
        full(b"ispe", struct.pack(">II", 64, 64)),
        full(b"ispe", struct.pack(">II", 120, 100)),
    ]
    own = bytes([1, 0x03])
    if turn:
        properties.append(turn)
        own = bytes([2, 0x03, 0x84])
    holds = {i: bytes([2, 0x81, 0x02]) for i in coded}
    if one and turn:
        holds[1] = bytes([3, 0x81, 0x02, 0x84])
    elif one:
        properties.append(full(b"auxC", b"urn:mpeg:hevc:2015:auxid:1\0"))
        holds[2] = bytes([3, 0x81, 0x02, 0x84])
    owned = b"".join(struct.pack(">H", i) + h for i, h in holds.items()) + struct.pack(">H", 5) + own
    blobs = [t[1] for t in tiles] + [grid]
    derived = (
        box(b"auxl", struct.pack(">HHH", 2, 1, 1)) if one else box(b"dimg", struct.pack(">HH4H", 5, 4, 1, 2, 3, 4))
    )

    def meta(first: int) -> bytes:
        places, at = b"", first
        for item, blob in zip((*coded, 5), blobs):
            places += struct.pack(">HHHII", item, 0, 1, at, len(blob))
            at += len(blob)
        return full(
            b"meta",
            full(b"hdlr", b"\0" * 4 + b"pict" + b"\0" * 13)
            + full(b"pitm", struct.pack(">H", 1 if one else 5))
            + full(b"iloc", bytes([0x44, 0]) + struct.pack(">H", len(blobs)) + places)
            + full(b"iinf", struct.pack(">H", len(blobs)) + b"".join(entries))
            + full(b"iref", derived)
            + box(b"iprp", box(b"ipco", b"".join(properties)) + full(b"ipma", struct.pack(">I", len(blobs)) + owned)),
        )

    head = box(b"ftyp", b"heic" + b"\0\0\0\0" + b"mif1heic")
    data = head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", b"".join(blobs))
    return data[: len(data) - cut] if cut else data


def corners(frame: np.ndarray) -> list[list[int]]:
    return [(frame[y, x] > 100).astype(int).tolist() for y in (10, -10) for x in (10, -10)]


TILES = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("turn", "order", "shape"),
    [
        (b"", [0, 1, 2, 3], (100, 120)),
        (box(b"irot", b"\x01"), [1, 3, 0, 2], (120, 100)),  # a quarter anticlockwise
        (box(b"irot", b"\x02"), [3, 2, 1, 0], (100, 120)),
        (box(b"irot", b"\x03"), [2, 0, 3, 1], (120, 100)),
        (box(b"imir", b"\x01"), [1, 0, 3, 2], (100, 120)),
    ],
)
def test_a_photo_of_tiles_is_put_together_and_turned(turn: bytes, order: list[int], shape: tuple[int, int]) -> None:
    data = heic(turn)
    frame = read_frames(data, lambda n: [0]).frames[0]
    assert frame.shape[:2] == shape
    assert corners(frame) == [TILES[i] for i in order]
    info = probe(data)
    assert (info.kind, info.height, info.width) == ("image", *shape)
    (only,) = read_windows(data, window=8, stride=4, frames=4, size=16)
    assert (only.start, only.end, only.frames.shape) == (0.0, 0.0, (4, 3, 16, 16))


QUARTERS = np.repeat(
    np.repeat(np.array([[[200, 30, 30], [30, 160, 30]], [[30, 30, 200], [220, 220, 40]]], np.uint8), 32, 0), 32, 1
)


@pytest.mark.parametrize(
    ("change", "order", "shape"),
    [
        (box(b"imir", b"\x01"), [1, 0, 3, 2], (64, 64)),
        (box(b"imir", b"\x00"), [2, 3, 0, 1], (64, 64)),
        (box(b"clap", struct.pack(">IIIIiIiI", 62, 2, 30, 1, 33, 2, 17, 1)), [3, 3, 3, 3], (30, 31)),  # bottom right
    ],
)
def test_a_photo_in_one_piece_is_mirrored_and_cropped(change: bytes, order: list[int], shape: tuple[int, int]) -> None:
    data = heic(change, one=[QUARTERS])
    frame = read_frames(data, lambda n: [0]).frames[0]
    assert corners(frame) == [TILES[i] for i in order]
    info = probe(data)
    assert frame.shape[:2] == (info.height, info.width) == shape


def test_a_transparent_photo_is_shown_on_white() -> None:
    opacity = plain((255, 255, 255), (64, 64))
    opacity[:32] = 0
    frame = read_frames(heic(one=[QUARTERS, opacity]), lambda n: [0]).frames[0]
    assert corners(frame) == [[1, 1, 1], [1, 1, 1], TILES[2], TILES[3]]


def test_a_photo_of_tiles_that_lacks_some_is_refused_in_one_line() -> None:
    for broken in (heic(columns=3), heic(cut=300)):
        with pytest.raises(DecodeError, match="HEIC photo") as caught:
            read_frames(broken, lambda n: [0])
        assert "\n" not in str(caught.value)


def jpeg(width: int, height: int, **extra: object) -> bytes:
    image = Image.new("RGB", (width, height), (40, 160, 60))
    image.paste((220, 40, 40), (0, 0, width // 2, height // 2))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=60, **extra)
    return held.getvalue()


@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240)])
def test_photos_of_108_and_200_million_pixels_are_indexed(size: tuple[int, int]) -> None:
    data = jpeg(*size)
    (only,) = read_windows(data, window=8, stride=4, frames=4, size=32)
    assert only.frames[0, :, 4, 4].tolist() == pytest.approx([220, 40, 40], abs=6)
    assert only.frames[0, :, 28, 28].tolist() == pytest.approx([40, 160, 60], abs=6)
    assert min(read_moment(data, 1, least=480).frames.shape[1:3]) >= 480


def test_a_picture_that_is_too_large_says_what_to_do() -> None:
    held = io.BytesIO()
    Image.new("1", (16_320, 12_240)).save(held, "PNG")
    with pytest.raises(DecodeError, match="save it smaller, or as JPEG"):
        read_frames(held.getvalue(), lambda n: [0])


def test_a_photo_is_decoded_and_resized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtr.data import transforms
    from vtr.data.decode.image import ImageReader

    calls: list[str] = []
    turn, resize = ImageReader._rgb, transforms._resize
    monkeypatch.setattr(ImageReader, "_rgb", lambda self: (calls.append("decode"), turn(self))[1])
    monkeypatch.setattr(
        transforms, "_resize", lambda f, *a: (calls.append(f"resize {tuple(f.shape)}"), resize(f, *a))[1]
    )
    (only,) = read_windows(jpeg(800, 600), window=8, stride=4, frames=8, size=32)
    assert calls == ["decode", "resize (1, 3, 75, 100)"]  # an eighth of its size is enough for 32 pixels
    assert only.frames.shape == (8, 3, 32, 32)


def test_a_reduced_photo_looks_like_the_whole_one_and_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = read_moment(jpeg(1600, 1200, exif=exif), 1, least=100).frames[0]
    whole = read_frames(jpeg(1600, 1200, exif=exif), lambda n: [0]).frames[0]
    assert whole.shape == (1600, 1200, 3)
    assert small.shape == (200, 150, 3)
    assert small[20, -20].tolist() == pytest.approx(whole[160, -160].tolist(), abs=6)


def test_deep_and_printed_pictures_keep_their_light() -> None:
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))
    held = io.BytesIO()
    dark.save(held, "PNG")
    assert read_frames(held.getvalue(), lambda n: [0]).frames.max() == 0  # 200 of 65,535 is black
    held = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(held, "JPEG", quality=95)
    assert colour(read_frames(held.getvalue(), lambda n: [0]).frames[0]) == "red"


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_a_picture_of_floats_keeps_its_light(white: float) -> None:
    held = io.BytesIO()
    Image.fromarray(np.linspace(0, white, 64, dtype=np.float32).reshape(8, 8)).save(held, "TIFF")
    grey = read_frames(held.getvalue(), range).frames[0, ..., 0].reshape(-1)
    np.testing.assert_allclose(grey, np.linspace(0, 255, 64), atol=1)


def test_a_turned_tiff_has_the_size_that_it_is_shown_with() -> None:
    held, turn = io.BytesIO(), Image.Exif()
    turn[0x0112] = 6
    Image.new("RGB", (32, 16)).save(held, "TIFF", exif=turn)
    info, clip = probe(held.getvalue()), read_frames(held.getvalue(), range)
    assert (info.height, info.width) == clip.frames.shape[1:3] == (32, 16)
