"""Benchmarks as data: protocol files, annotation formats, and the videos found under a root."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtr.errors import UsageError, VtrError, unknown_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).resolve().parent.parent / "data_manifests" / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A protocol with its items: queries are texts, the gallery is videos."""

    name: str
    videos: tuple[Path, ...]
    captions: tuple[str, ...]
    text_truth: tuple[tuple[int, ...], ...]  # right videos of each caption
    video_truth: tuple[tuple[int, ...], ...]  # right captions of each video
    missing: tuple[str, ...] = ()
    total: int = 0  # videos of the protocol, missing ones included
    max_text_tokens: int = 32
    trim_seconds: float | None = None  # only the start of longer videos
    protocol_hash: str = ""
    root: Path = Path()
    pairs: Path | None = None
    ceilings: dict[str, float] = field(default_factory=dict)


def benchmark_names() -> list[str]:
    """The benchmarks that come with vtr."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


def load_benchmark(name: str, data_root: Path) -> Benchmark:
    """Load a benchmark by name, or an annotation file (.json or .csv) whose videos lie under `data_root`.

    Raises:
        UsageError: There is no such benchmark.
        VtrError: The annotation file is missing or of an unknown format.
    """
    if Path(name).suffix in (".json", ".csv"):
        protocol: dict[str, Any] = {"annotation": str(Path(name).resolve()), "videos": "."}
        title = Path(name).stem
    else:
        path = _FOLDER / f"{name}.toml"
        if not path.is_file():
            raise unknown_name("benchmark", name, benchmark_names())
        protocol, title = tomllib.loads(path.read_text()), name
    annotation = data_root / protocol["annotation"]
    items = read_annotations(annotation)
    if protocol.get("paragraph"):
        items = [(video, [" ".join(captions)]) for video, captions in items]
    finder = VideoFinder(data_root / protocol["videos"])
    videos: list[Path] = []
    captions: list[str] = []
    video_truth: list[tuple[int, ...]] = []
    text_truth: list[tuple[int, ...]] = []
    missing = []
    for video, texts in items:
        found = finder.find(video)
        if found is None:
            missing.append(video)
            continue
        own = range(len(captions), len(captions) + len(texts))
        video_truth.append(tuple(own))
        text_truth += [(len(videos),)] * len(texts)
        captions += texts
        videos.append(found)
    digest = hashlib.sha256(
        json.dumps([{k: v for k, v in protocol.items() if k != "videos"}, items]).encode()
    ).hexdigest()
    extra = data_root / protocol["description"] if "description" in protocol else None
    ceilings = json.loads(extra.read_text()).get("ceilings", {}) if extra and extra.is_file() else {}
    pairs = data_root / protocol["pairs"] if "pairs" in protocol else None
    return Benchmark(
        name=title,
        videos=tuple(videos),
        captions=tuple(captions),
        text_truth=tuple(text_truth),
        video_truth=tuple(video_truth),
        missing=tuple(missing),
        total=len(items),
        max_text_tokens=protocol.get("max_text_tokens", 32),
        trim_seconds=protocol.get("trim_seconds"),
        protocol_hash=digest[:16],
        root=data_root,
        pairs=pairs,
        ceilings=ceilings,
    )


def read_annotations(path: Path) -> list[tuple[str, list[str]]]:
    """(video, captions) of an annotation file: official JSON, JSFusion CSV, or LSMDC's tab-separated text."""
    if not path.is_file():
        raise VtrError(f"{path}: the annotation file is missing; give its folder with --data-root")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VtrError(f"{path}: not UTF-8 text (byte {error.start})") from error
    grouped: dict[str, list[str]] = {}
    if path.suffix == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise VtrError(f"{path}: not JSON (line {error.lineno})") from error
        if not isinstance(rows, list) or not all(isinstance(r, dict) and "video" in r and "caption" in r for r in rows):
            raise VtrError(f'{path}: expected a list of {{"video": …, "caption": …}}')
        for row in rows:
            caption = row["caption"]
            grouped.setdefault(str(row["video"]), []).extend(caption if isinstance(caption, list) else [caption])
    elif path.suffix == ".csv":
        reader = csv.DictReader(text.splitlines())
        if not {"video_id", "sentence"} <= set(reader.fieldnames or ()):
            raise VtrError(f"{path}: columns {', '.join(reader.fieldnames or ())}; expected video_id and sentence")
        for line in reader:
            grouped.setdefault(line["video_id"], []).append(line["sentence"])
    else:
        for number, line_text in enumerate(text.splitlines(), 1):
            parts = line_text.split("\t")
            if len(parts) != 6:
                raise VtrError(f"{path}: line {number} has {len(parts)} tab-separated columns; LSMDC's files have 6")
            grouped.setdefault(parts[0], []).append(parts[5])
    if not grouped:
        raise VtrError(f"{path}: no annotations")
    return list(grouped.items())


class VideoFinder:
    """Finds a video under a root by its relative path, or by its name whatever the extension or folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_stem: dict[str, Path] | None = None

    def find(self, name: str) -> Path | None:
        """The file, or None."""
        direct = self.root / name
        if direct.is_file():
            return direct
        if self._by_stem is None:
            if not self.root.is_dir():
                raise UsageError(f"--data-root: {self.root} is not a folder")
            self._by_stem = {}
            for path in sorted(self.root.rglob("*")):
                if path.is_file() and path.suffix.lower() not in (".json", ".csv", ".txt", ".jsonl"):
                    self._by_stem.setdefault(path.name, path)
                    self._by_stem.setdefault(path.stem, path)
        stem = Path(name).name
        return self._by_stem.get(stem) or self._by_stem.get(Path(stem).stem)
