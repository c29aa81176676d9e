# Draws the scenes of the demo corpus and encodes them: all frames of a clip at once, in numpy.
"""Rendering of the demo corpus: 64 x 64 pixels, 16 frames at 8 frames per second, H.264 in MP4, or JPEG."""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np

from vtr.data.demo.captions import COLOURS, STILL, Scene, Thing

SIZE = 64
FRAMES = 16
FPS = 8
# Radius in pixels (smallest, largest) when the scene has one object or two.
_RADIUS = {("small", 1): (9.0, 10.5), ("large", 1): (17.0, 19.5), ("small", 2): (7.0, 8.0), ("large", 2): (12.5, 14.0)}


def render(scene: Scene, rng: np.random.Generator, *, frames: int = FRAMES) -> np.ndarray:
    """Draw `scene`: uint8 array (frames, 64, 64, 3), RGB.  The sibling of a clip is this array played backwards."""
    canvas = np.repeat(_background(scene.background, rng)[None], frames, axis=0)
    for thing, box in zip(scene.things, _lanes(scene, rng), strict=True):
        _draw(canvas, thing, box, len(scene.things), rng)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _lanes(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """One box (x0, y0, x1, y1) per object: the whole frame for one, two halves along the direction of travel for two."""
    full = float(SIZE)
    if not scene.things:  # the background alone
        return []
    if len(scene.things) == 1:
        return [(0.0, 0.0, full, full)]
    motions = {thing.motion for thing in scene.things}
    if motions & {"left", "right"}:
        stacked = True
    elif motions & {"up", "down"}:
        stacked = False
    else:
        stacked = bool(rng.random() < 0.5)
    half = full / 2
    boxes = (
        [(0.0, 0.0, full, half), (0.0, half, full, full)]
        if stacked
        else [(0.0, 0.0, half, full), (half, 0.0, full, full)]
    )
    return boxes if rng.random() < 0.5 else boxes[::-1]


def _draw(canvas: np.ndarray, thing: Thing, box: tuple, count: int, rng: np.random.Generator) -> None:
    frames = len(canvas)
    low, high = _RADIUS[thing.size, count]
    radius = float(rng.uniform(low, high))
    x0, y0, x1, y1 = box
    margin = radius + 1.5
    # The room for the centre; paths run over 85 to 100 % of it.
    left, right, top, bottom = x0 + margin, x1 - margin, y0 + margin, y1 - margin
    cx = np.full(frames, _lattice(rng, left, right), np.float32)
    cy = np.full(frames, _lattice(rng, top, bottom), np.float32)
    r = np.full(frames, radius, np.float32)
    alpha = np.ones(frames, np.float32)
    angle = np.full(frames, rng.uniform(-0.12, 0.12), np.float32)
    t = np.linspace(0.0, 1.0, frames, dtype=np.float32)
    cut_a, cut_b = rng.uniform(0.0, 0.075, size=2)
    along = cut_a + t * (1.0 - cut_a - cut_b)  # 0 .. 1, a little short of both ends
    if thing.motion == "right":
        cx = left + along * (right - left)
    elif thing.motion == "left":
        cx = right - along * (right - left)
    elif thing.motion == "down":
        cy = top + along * (bottom - top)
    elif thing.motion == "up":
        cy = bottom - along * (bottom - top)
    elif thing.motion == "growing":
        r = radius * (0.25 + 0.75 * along)
    elif thing.motion == "shrinking":
        r = radius * (1.0 - 0.75 * along)
    elif thing.motion == "clockwise":
        angle = angle + (along - 0.5) * np.pi
    elif thing.motion == "counterclockwise":
        angle = angle - (along - 0.5) * np.pi
    elif thing.motion == "appearing":
        alpha = np.clip((along - 0.15) / 0.6, 0.0, 1.0)
    elif thing.motion == "disappearing":
        alpha = np.clip((0.85 - along) / 0.6, 0.0, 1.0)
    elif thing.motion != STILL:
        raise ValueError(f"motion {thing.motion!r} cannot be drawn")

    # Only the pixels that the object ever touches are worked on.
    reach = float(r.max()) * 1.25 + 3.0
    xa, xb = max(0, int(cx.min() - reach)), min(SIZE, int(cx.max() + reach) + 1)
    ya, yb = max(0, int(cy.min() - reach)), min(SIZE, int(cy.max() + reach) + 1)
    px = np.arange(xa, xb, dtype=np.float32) + 0.5
    py = np.arange(ya, yb, dtype=np.float32) + 0.5
    shape = (frames, 1, 1)
    dx = px[None, None, :] - np.asarray(cx, np.float32).reshape(shape)
    dy = py[None, :, None] - np.asarray(cy, np.float32).reshape(shape)
    cos, sin = np.cos(angle, dtype=np.float32).reshape(shape), np.sin(angle, dtype=np.float32).reshape(shape)
    scale = np.asarray(r, np.float32).reshape(shape)
    u = (cos * dx + sin * dy) / scale  # in units of the radius, in the object's own frame
    v = (cos * dy - sin * dx) / scale
    distance = _DISTANCE[thing.shape](u, v) * scale  # pixels, negative inside

    outer = np.clip(1.9 - distance, 0.0, 1.0)  # with a white outline of about 1.4 pixels
    inner = np.clip(0.5 - distance, 0.0, 1.0)
    # A white spot near the top shows the turning of round shapes too.
    spot = np.clip(0.5 - (np.hypot(u, v + 0.45) - 0.22) * scale, 0.0, 1.0)
    colour = np.asarray(COLOURS[thing.colour], np.float32) * float(rng.uniform(0.94, 1.03))
    shade = np.ones_like(distance)
    if thing.texture == "striped":
        shade = np.where(np.sin(u * 9.0) > 0.25, np.float32(0.55), np.float32(1.0))
    elif thing.texture == "dotted":
        cell_u, cell_v = u * 2.2 - np.rint(u * 2.2), v * 2.2 - np.rint(v * 2.2)
        shade = np.where(cell_u**2 + cell_v**2 < 0.07, np.float32(0.45), np.float32(1.0))
    opacity = np.asarray(alpha, np.float32).reshape(shape) * outer
    white = 1.0 - inner * (1.0 - spot)
    region = canvas[:, ya:yb, xa:xb]
    for channel in range(3):
        paint = white * 250.0 + (1.0 - white) * shade * colour[channel]
        region[..., channel] += opacity * (paint - region[..., channel])


def _lattice(rng: np.random.Generator, low: float, high: float) -> float:
    """A place between `low` and `high` on an 8-pixel lattice (the middle where the room is narrower than that)."""
    middle = (low + high) / 2
    steps = int((high - low) / 2 // 8)
    return middle + 8.0 * int(rng.integers(-steps, steps + 1)) if steps > 0 else middle


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.95


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v - 0.2
    return np.maximum(v, np.abs(u) * 0.8660254 - v * 0.5) - 0.62


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The wedge between a tip and the next inner corner, repeated around the centre (v points down, a tip points up).
    turn = np.arctan2(u, -v)
    wedge = 2 * np.pi / 5
    fold = np.abs(turn - np.rint(turn / wedge) * wedge)
    length = np.hypot(u, v)
    along, across = length * np.cos(fold), length * np.sin(fold)
    tip, corner = 1.15, 0.5
    edge_x, edge_y = corner * np.cos(wedge / 2) - tip, corner * np.sin(wedge / 2)
    norm = np.hypot(edge_x, edge_y)
    return ((along - tip) * edge_y - across * edge_x) / norm


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 1.0, b - 0.34), np.maximum(a - 0.34, b - 1.0))


_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross}


@cache
def _background_sheet(name: str) -> np.ndarray:
    """A textured sheet (96, 96, 3) from which each scene cuts its own background; float32, 0 to 255."""
    n = 96
    rng = np.random.default_rng(sum(name.encode()))
    y, x = np.mgrid[0:n, 0:n].astype(np.float32)
    base = {
        "night": (6, 6, 18),
        "sand": (118, 98, 60),
        "grass": (18, 66, 24),
        "water": (14, 40, 88),
        "bricks": (92, 38, 28),
        "wall": (84, 84, 88),
    }[name]
    light: np.ndarray = np.ones((n, n), np.float32)
    if name == "night":
        stars = rng.random((n, n)) > 0.985
        light = light + stars * 9.0
    elif name == "sand":
        light = light + rng.normal(0, 0.06, (n // 2, n // 2)).repeat(2, 0).repeat(2, 1)
    elif name == "grass":
        light = light + rng.normal(0, 0.22, (1, n)).astype(np.float32) * (0.6 + 0.4 * np.sin(y / 5.0))
    elif name == "water":
        light = light + 0.22 * np.sin(y / 2.2 + 1.2 * np.sin(x / 6.0))
    elif name == "bricks":
        row = (y // 8).astype(int)
        mortar = (y % 8 < 1) | ((x + 8 * (row % 2)) % 16 < 1)
        light = np.where(mortar, 1.7, 1.0).astype(np.float32)
    return light[..., None] * np.asarray(base, np.float32)


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    sheet = _background_sheet(name)
    x, y = rng.integers(0, sheet.shape[1] - SIZE + 1, size=2)
    return (sheet[y : y + SIZE, x : x + SIZE] * float(rng.uniform(0.9, 1.1))).astype(np.float32)


def encode_clip(frames: np.ndarray) -> bytes:
    """Frames (T, H, W, 3) uint8 RGB as an H.264 MP4 (`moov` first, a key frame every 8 frames, one thread: repeatable)."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "14", "g": "8", "bf": "0", "rc-lookahead": "0"}
        for array in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return _moov_first(buffer.getvalue())


def _moov_first(data: bytes) -> bytes:
    """Move the index of an MP4 in front of its media, as `-movflags faststart` does for files on disk."""
    atoms, at = [], 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        atoms.append((kind, data[at : at + size]))
        at += size
    moov = bytearray(next(body for kind, body in atoms if kind == b"moov"))
    table = moov.find(b"stco") + 8  # version and flags, then the number of chunks and their places in the file
    (count,) = struct.unpack(">I", moov[table : table + 4])
    for i in range(count):
        place = table + 4 + 4 * i
        (offset,) = struct.unpack(">I", moov[place : place + 4])
        moov[place : place + 4] = struct.pack(">I", offset + len(moov))
    head = [body for kind, body in atoms if kind == b"ftyp"]
    rest = [body for kind, body in atoms if kind not in (b"ftyp", b"moov")]
    return b"".join([*head, bytes(moov), *rest])


def encode_image(frame: np.ndarray) -> bytes:
    """One frame (H, W, 3) uint8 RGB as a JPEG of quality 95 without colour subsampling."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
