"""library.json: what a library was made with, what its index is, and what it was told to remember."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypedDict

from vtr.errors import UsageError, VtrError, unknown_name
from vtr.files import write_atomically
from vtr.library.index_types import Description

FORMAT = 1
_NEEDED = ("format", "model", "fingerprint", "width", "window", "stride", "frames")


@dataclass(frozen=True, kw_only=True)
class LibrarySettings:
    """The content of library.json.

    Attributes:
        model: Where the model is stored, if it is.
        fingerprint: SHA-256 over it: a library is searched with the model it was made with.
        width: Length of a vector.
        window, stride: Seconds of a segment and between the starts of two.
        frames: Frames that stand for a segment.
        format: Of the folder.
        id: Of this library, random; None in older ones.
        index: What index.faiss is; None before there were segments.
        max_memory: Bytes the index may take; None: half of the machine's.
        token_cache: Bytes of visual tokens kept on disk for re-ranking; None: none.
        keyframes: Only key frames were looked at: a quick look.
        precision: What vectors were encoded in: "fp32", "bf16", or both; "" before there were any.
        parity: Lowest cosine between vectors in bf16 and in fp32, as it was measured on the first batch; None in fp32.
        cutting: "windows", along "shots", or "auto" (shots in films over two minutes); see `read_windows`.
        frame_vectors: Vectors of single frames that are kept of a segment, for finer boundaries; 0: none.
        exclude, include_hidden: Which files are left out of folders, see `vtr.library.scan.find_media`.
    """

    model: str | None
    fingerprint: str
    width: int
    window: float
    stride: float
    frames: int
    format: int = FORMAT
    id: str | None = None
    index: Description | None = None
    max_memory: int | None = None
    token_cache: int | None = None
    keyframes: bool = False
    cutting: str = "windows"
    frame_vectors: int = 0
    precision: str = ""
    parity: float | None = None
    exclude: tuple[str, ...] = ()
    include_hidden: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> LibrarySettings:
        """From parsed JSON; ValueError where something needed is not there."""
        lacking = [name for name in _NEEDED if name not in values]
        if lacking:
            raise ValueError(f"lacks {', '.join(sorted(lacking))}")
        known = {f.name for f in fields(cls)}
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**own)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: Path) -> LibrarySettings:
        """Of the library in a folder.

        Raises:
            VtrError: There is none, it is damaged, or of a format that this vtr does not know.
        """
        path = folder / "library.json"
        try:
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("not a table")
            settings = cls.from_json(values)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VtrError(
                lambda say: f"{folder}: not a library (no library.json); make one with: {say.call('index build')}"
            ) from error
        except (OSError, ValueError) as error:
            raise VtrError(f"{path} cannot be read ({error}); restore it or build anew") from error
        if settings.format != FORMAT:
            raise VtrError(f"{folder} has format {settings.format}, this vtr reads {FORMAT}: use the vtr it is from")
        return settings

    def write(self, folder: Path) -> None:
        """Write library.json; VtrError where that cannot be done."""
        try:
            with write_atomically(folder / "library.json") as partial:
                partial.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        except OSError as error:
            raise VtrError(f"{folder}/library.json cannot be written ({error.strerror})") from error

    def as_json(self) -> dict[str, object]:
        """The content of library.json; what was not asked for is left out."""
        optional = {f.name: f.default for f in fields(self) if f.name not in (*_NEEDED, "id", "index")}
        return {k: v for k, v in asdict(self).items() if k not in optional or v != optional[k]}

    def with_windows(
        self,
        window: float | None,
        stride: float | None,
        keyframes: bool | None = None,
        segments: str | None = None,
    ) -> LibrarySettings:
        """The same with other windows, where they are given."""
        window = self.window if window is None else window
        stride = self.stride if stride is None else stride
        check_windows(window, stride)
        quick = self.keyframes if keyframes is None else keyframes
        return replace(self, window=window, stride=stride, keyframes=quick, cutting=segments or self.cutting)

    def encoded_in(self, precision: str, parity: float | None) -> LibrarySettings:
        """The same with vectors in a precision among its own, of which the parity was measured, or not."""
        all_used = {*filter(None, self.precision.split("+")), precision}
        known = [round(value, 6) for value in (self.parity, parity) if value is not None]
        return replace(self, precision="+".join(sorted(all_used)), parity=min(known, default=None))

    @property
    def origin(self) -> dict[str, object]:
        """What embeddings that leave the library carry with them."""
        shots = {} if self.cutting == "windows" else {"cutting": self.cutting}
        return {**{k: getattr(self, k) for k in ORIGIN}, **shots}


class Info(TypedDict, total=False):
    """What a library holds, with the content of library.json and the files that could not be read; how many videos have
    subtitles, and what could not be taken of those as it stands."""

    path: str
    model: str | None
    fingerprint: str
    width: int
    window: float
    stride: float
    frames: int
    format: int
    id: str | None
    index: Description | None
    max_memory: int | None
    token_cache: int | None
    exclude: list[str]
    include_hidden: bool
    keyframes: bool
    cutting: str
    frame_vectors: int
    precision: str
    parity: float | None
    videos: int
    segments: int
    seconds: float
    unreadable: list[str]
    cut_off: list[str]
    spoken: int
    subtitles: list[str]


class Compacted(TypedDict):
    """What `compact` did: live segments, bytes saved, the index."""

    segments: int
    saved: int
    index: Description | None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What indexing works with.

    Attributes:
        workers: Decoding processes; None: as many as serve on this machine; 0: none, decode in this
            process, which is also done where none can be forked (not on Linux, or beside gRPC, as of a client of Milvus).
        devices: Devices that encode, each with a copy of the model; empty: all GPUs where the model is on the first,
            else where the model is.
        precision: "fp32", "bf16" or "auto" (bf16 on a GPU, else fp32).
    """

    workers: int | None = None
    devices: tuple[str, ...] = ()
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(lambda say: f"{say.given('workers', self.workers)}: expected a number, 0 or more")


ALL = Work()
SEGMENTS = ("windows", "shots", "auto")
ORIGIN = ("model", "fingerprint", "width", "window", "stride", "frames")


def check_windows(window: float, stride: float, segments: str = "windows") -> None:
    """UsageError where windows make no sense."""
    if segments not in SEGMENTS:
        raise unknown_name("segments", segments, SEGMENTS)
    if not (0 < window < float("inf") and 0 < stride < float("inf")):
        raise UsageError(
            lambda say: (
                f"{say.given('window', f'{window:g}')} {say.given('stride', f'{stride:g}')}: expected positive seconds"
            )
        )
