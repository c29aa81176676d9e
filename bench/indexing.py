"""Times indexing on CPU cores: films it makes, beside decoding every frame and beside encoding alone on the same cores.

python -m bench.indexing                                        # all; indexing.md and .json in docs/results
python -m bench.indexing --quick --out /tmp/indexing            # short films, few cases: whether it runs
python -m bench.indexing --models demo --demo runs/demo/model --cores 2 --films 720p-h264

Each case runs in a process of its own, bound to its cores; reading the model and what a library does once, with its first files,
are not counted.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.command import RESULTS, flags_of, machine, save, table, whole_number
from vtr.data.text import Tokenizer
from vtr.encoders.bert import BertConfig
from vtr.encoders.videomamba import VIDEOMAMBA_SIZES
from vtr.errors import VtrError, reports_errors

if TYPE_CHECKING:
    from vtr.models.base import VideoTextEncoder

WINDOW, STRIDE = 8.0, 4.0
_TOGETHER = 16  # windows that are encoded alone
_WARM = 3  # films before those that are timed: enough that the library knows how unrelated texts score, once
LINES = (360, 720, 1080)
CODECS = {
    "h264": ("libx264", {"preset": "veryfast"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
}
SIZES = {"Ti": "tiny", "S": "small", "M": "middle"}
OPEN_CLIP = ("ViT-B-32", "PE-Core-B-16", "PE-Core-S-16-384", "PE-Core-T-16-384")
MODELS = ("demo", *SIZES, *OPEN_CLIP)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case: hours of video an hour, wall clock and CPU seconds a minute of film.

    `decode`, `encode` (torch's way) and `spread` (indexing's) are what the same cores reach when they do nothing else; a
    plain script has none.
    """

    how: str  # "vtr" | "plain script"
    model: str
    film: str
    cores: int
    ours: float
    cpu: float
    decode: float | None = None
    encode: float | None = None
    spread: float | None = None

    @property
    def ratio(self) -> float | None:
        """To the lower of decoding every frame and encoding torch's way."""
        return self.ours / min(self.decode, self.encode) if self.decode and self.encode else None

    @property
    def turns(self) -> float | None:
        """To what cores reach that do both, by turns: decode every frame, and encode indexing's way."""
        return self.ours * (1 / self.decode + 1 / self.spread) if self.decode and self.spread else None


def film(lines: int, codec: str, seconds: int) -> bytes:
    """A film (16:9, 25 frames a second) of smooth noise that moves, with B-frames and 10 s between key frames."""
    import av

    rng = np.random.default_rng(lines)
    width = round(lines * 16 / 9 / 2) * 2
    coarse = rng.integers(0, 256, (lines // 16 + 30, width // 16 + 50, 3), np.uint8).repeat(24, 0).repeat(24, 1)
    texture = np.minimum(coarse.astype(np.int16) + rng.integers(0, 24, coarse.shape), 255).astype(np.uint8)
    room = np.asarray(texture.shape[:2]) - (lines, width)
    name, options = CODECS[codec]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream(name, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, lines, "yuv420p", 250
        for i in range(25 * seconds):
            top, left = (np.array([0.7, 1.3]) * i).astype(int) % room
            picture = np.ascontiguousarray(texture[top : top + lines, left : left + width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def copies(folder: Path, content: bytes, numbers: range) -> list[Path]:
    """Files that show the same and differ in their bytes, by a box that players pass over: equal files are encoded once."""
    folder.mkdir()
    paths = [folder / f"{number:03}.mp4" for number in numbers]
    for number, path in zip(numbers, paths):
        path.write_bytes(content + b"\0\0\0\x10free" + number.to_bytes(8, "big"))
    return paths


def model_of(name: str, demo: Path | None) -> VideoTextEncoder:
    """A model with random weights; of the demo the trained one where its folder is given."""
    torch.manual_seed(0)
    if name in OPEN_CLIP:
        import open_clip

        from vtr.models.open_clip import OpenClipModel

        return OpenClipModel(open_clip.create_model(name).eval(), open_clip.get_tokenizer(name), name).eval()
    if name == "demo" and demo is not None:
        from vtr.models.load import load_encoder

        return load_encoder(demo, "cpu")
    from vtr.models.video_text import ModelConfig, VideoTextModel

    video = replace(VIDEOMAMBA_SIZES[SIZES.get(name, "tiny")], pool_norm=True)
    if name == "demo":
        video = replace(video, image_size=64, dim=96, depth=4)
    text = BertConfig(hidden=64, layers=2, fusion_layer=1, heads=1, intermediate=64, vocab_size=200)
    return VideoTextModel(ModelConfig(video=video, text=text), Tokenizer.train(["a dog"], 200)).eval()


# -- what is timed, each in a process bound to its cores ------------------------------------------------------------------


def every_frame(path: Path) -> int:
    """Decode a file by one thread, as fast as PyAV does."""
    import av

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        return sum(1 for _ in file.decode(stream))


def decode_limit(paths: Sequence[Path], cores: int) -> float:
    """Seconds in which so many processes decode every frame of the files."""
    with ProcessPoolExecutor(cores, get_context("fork")) as pool:
        list(pool.map(every_frame, [paths[0]] * cores))
        start = time.perf_counter()
        list(pool.map(every_frame, paths))
        return time.perf_counter() - start


def encode_limit(name: str, demo: Path | None, cores: int, batches: int) -> float:
    """Seconds for a window, in batches of 16 on all cores at once: torch's way, if it is left alone."""
    model, frames = _windows(name, demo, cores)
    with torch.inference_mode():
        model.encode_video(frames)
        start = time.perf_counter()
        for _ in range(batches):
            model.encode_video(frames)
    return (time.perf_counter() - start) / (batches * _TOGETHER)


def spread_limit(name: str, demo: Path | None, cores: int, batches: int) -> float:
    """Seconds for a window, in batches and threads as indexing has them."""
    from vtr.library.devices import Encoders

    model, frames = _windows(name, demo, cores)
    woken = queue.SimpleQueue[None]()
    encoders: Encoders[None] = Encoders(model, (), "fp32", lambda: woken.put(None))
    parts = [part.numpy() for part in frames.split(encoders.batch)]

    def encode(times: int) -> None:
        for part in parts * times:
            encoders.encode([None] * len(part), part)
        for _ in parts * times:
            woken.get()
        list(encoders.collect())

    encode(1)
    start = time.perf_counter()
    encode(batches)
    took = time.perf_counter() - start
    encoders.close()
    return took / (batches * _TOGETHER)


def _windows(name: str, demo: Path | None, cores: int) -> tuple[VideoTextEncoder, torch.Tensor]:
    """A model, and frames of windows for it."""
    torch.set_num_threads(cores)
    model = model_of(name, demo)
    model.eval()
    facts = model.config.video
    return model, torch.randint(
        0, 256, (_TOGETHER, facts.num_frames, 3, facts.image_size, facts.image_size), dtype=torch.uint8
    )


def index(name: str, demo: Path | None, cores: int, warm: Path, folder: Path, stride: float) -> tuple[float, float]:
    """Wall clock and CPU seconds of indexing a folder."""
    from vtr.library import Library

    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as place:
        library = Library.create(Path(place) / "library", model_of(name, demo), window=WINDOW, stride=stride)
        library.add(warm)
        before, start = sum(os.times()[:4]), time.perf_counter()
        report = library.add(folder)
        took, cpu = time.perf_counter() - start, sum(os.times()[:4]) - before
    if report.failed:
        raise VtrError(f"{report.failed[0]}: a generated file could not be indexed")
    if report.known:
        raise VtrError(f"{report.known} generated files have the content of others, which costs nothing to index")
    return took, cpu


def plain_script(name: str, cores: int, paths: Sequence[Path]) -> tuple[float, float]:
    """The script that people write: PyAV, a frame a second through open_clip's preprocessing and encoder, FAISS."""
    import av
    import faiss
    import open_clip

    torch.set_num_threads(cores)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    index = None
    before, start = sum(os.times()[:4]), time.perf_counter()
    for path in paths:
        with av.open(str(path)) as file, torch.no_grad():
            for number, frame in enumerate(file.decode(video=0)):
                if number % 25 == 0:
                    vector = model.encode_image(preprocess(frame.to_image())[None])
                    vector = (vector / vector.norm(dim=-1, keepdim=True)).numpy()
                    index = index or faiss.IndexFlatIP(vector.shape[1])
                    index.add(vector)
    return time.perf_counter() - start, sum(os.times()[:4]) - before


def _bound(cores: int, call: Callable[..., object], words: tuple[object, ...]) -> object:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    return call(*words)


def alone(cores: int, call: Callable[..., object], *words: object) -> object:
    """A call in a fresh process that has so many cores."""
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS=str(cores))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_bound, cores, call, words).result()


def measure(options: Options) -> Iterator[Row]:
    """All cases, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        for kind in options.films:
            lines, _, codec = kind.partition("p-")
            content = film(int(lines), codec, options.seconds)
            folder = Path(name) / kind
            paths = copies(folder, content, range(options.count))
            warm = Path(name) / f"{kind}-warm"
            copies(warm, content, range(options.count, options.count + _WARM))
            total = options.count * options.seconds
            for cores in options.cores:
                decode = total / _number(alone(cores, decode_limit, paths, cores))
                for model in options.models:
                    encode, spread = (
                        STRIDE / _number(alone(cores, limit, model, options.demo, cores, options.batches))
                        for limit in (encode_limit, spread_limit)
                    )
                    took, cpu = _pair(alone(cores, index, model, options.demo, cores, warm, folder, STRIDE))
                    yield Row(how="vtr", model=model, film=kind, cores=cores, ours=total / took, cpu=60 * cpu / total,
                              decode=decode, encode=encode, spread=spread)  # fmt: skip
                if OPEN_CLIP[0] in options.models:
                    yield from _beside_a_script(kind, cores, paths, warm, folder, total)


def _beside_a_script(
    kind: str, cores: int, paths: Sequence[Path], warm: Path, folder: Path, total: int
) -> Iterator[Row]:
    """The plain script, and vtr at the same frame a second."""
    name = OPEN_CLIP[0]
    for how, found in (
        ("plain script", alone(cores, plain_script, name, cores, paths)),
        ("vtr, a frame a second", alone(cores, index, name, None, cores, warm, folder, WINDOW)),
    ):
        took, cpu = _pair(found)
        yield Row(how=how, model=name, film=kind, cores=cores, ours=total / took, cpu=60 * cpu / total)


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value


def _pair(value: object) -> tuple[float, float]:
    assert isinstance(value, tuple)
    return float(value[0]), float(value[1])


def _cells(row: Row) -> list[object]:
    def shown(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [row.how, row.model, row.film, row.cores, *(shown(v, 1) for v in (row.decode, row.encode, row.spread, row.ours)),
            *(shown(v, 2) for v in (row.ratio, row.turns, row.cpu))]  # fmt: skip


def _line(row: Row) -> str:
    return "  ".join(str(cell) for cell in _cells(row))


def page(rows: Sequence[Row], where: str, command: str) -> str:
    """The results as a page."""
    titles = ["how", "model", "film", "cores", "decode every frame", "encode, all cores at once", "encode, a window a core", "indexed",
              "to the lower of the first two", "to both by turns", "CPU s a minute of film"]  # fmt: skip
    text = (
        f"Hours of video an hour, windows of {WINDOW:g} s every {STRIDE:g} s, random weights (but for a demo model that was "
        f"given). {where}. What the same cores reach alone: decoding every frame; encoding in batches of {_TOGETHER} as torch "
        "does it with all cores; encoding as indexing does it. Cores that do both do it by turns: 1.00 there is decoding every "
        "frame and encoding with nothing lost between; frames that no window looks at are passed over, so that it can be "
        "exceeded. The plain script and the row beside it look at a frame a second."
    )
    return f"# Indexing\n\n{text}\n\n{table(titles, map(_cells, rows))}\n\n`{command}`\n"


@dataclass(kw_only=True)
class Options:
    """What is measured."""

    models: list[str]
    films: list[str]
    cores: list[int]
    seconds: int
    count: int
    batches: int
    demo: Path | None
    out: Path


def options_of(argv: Sequence[str] | None) -> Options:
    """The flags."""
    kinds = [f"{lines}p-{codec}" for lines in LINES for codec in CODECS]
    parser = flags_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--films", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--cores", nargs="+", type=whole_number(1), default=[1, 2])
    parser.add_argument("--seconds", type=whole_number(1), default=60, help="of a film")
    parser.add_argument("--count", type=whole_number(1), default=8, help="films")
    parser.add_argument("--batches", type=whole_number(1), default=2, help="that are encoded alone")
    parser.add_argument("--demo", type=Path, help="the trained demo model (default: one of its size)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of indexing.md and .json")
    parser.add_argument("--quick", action="store_true", help="two short films of one kind, demo: whether it runs")
    found = parser.parse_args(argv)
    quick = vars(found).pop("quick")
    options = Options(**vars(found))
    if quick:
        options = replace(options, models=["demo"], films=kinds[:1], cores=[1], seconds=4, count=2, batches=1)
    return options


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = options_of(argv)
    facts = machine()
    command = " ".join(["python -m bench.indexing", *(sys.argv[1:] if argv is None else argv)])
    where = f"{facts['device']}, {facts['date']}, torch {facts['torch']}"
    rows: list[Row] = []
    for row in measure(options):
        print(_line(row), file=sys.stderr)
        rows.append(row)
        listed = [{**asdict(row), "ratio": row.ratio, "turns": row.turns} for row in rows]
        # After each: all of them take hours.
        save(
            options.out / "indexing.json", json.dumps({"machine": facts, "command": command, "rows": listed}, indent=1)
        )
        save(options.out / "indexing.md", page(rows, where, command))
    print(page(rows, where, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
