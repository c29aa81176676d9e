"""Benchmarks as data: protocol files, the annotation that is there, and the videos found under a root."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from vtr.data.cleaning import clean_caption
from vtr.data.finder import Found, RootIndex, VideoFinder, closer, settle
from vtr.data.tables import TEXT_SUFFIXES
from vtr.errors import VtrError, unknown_name
from vtr.eval.annotations import Item, read_annotations, read_lines, without_extension
from vtr.eval.contrasts import RULES, read_contrasts
from vtr.files import manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = manifest("benchmarks")
_CAPTION_RULES = ("each", "paragraph", "shared", "choices", "class", *RULES)
_ANNOTATION_SUFFIXES = (*TEXT_SUFFIXES, ".zip")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result on a benchmark."""

    model: str  # an official checkpoint's name, or any other
    t2v: tuple[float, ...] = ()  # text to video: R@1, R@5, R@10
    v2t: tuple[float, ...] = ()  # video to text, likewise
    row: str = "reranked"  # which of our rows it is comparable with
    note: str = ""  # printed beside it


@dataclass(frozen=True, kw_only=True)
class AnnotationFile:
    """An annotation file that a protocol accepts."""

    file: str  # relative to the data root, or only the name
    videos: int | None = None  # that it holds; another number is said: the file was cut or changed
    queries: int | None = None  # likewise
    ids: str | None = None  # list of the ids of the split, beside it
    note: str = ""  # why its counts are not the paper's
    more: tuple[str, ...] = ()  # files beside it that belong to it
    source: str = ""  # address of the folder that it and they are fetched from; none of them comes with vtr


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A benchmark file's content."""

    name: str  # the file's own; not written in it
    captions: str = "each"  # each | paragraph | shared | choices | class | counterfactual | reversed
    source: str | None = None  # of a file about several sets of videos: the set that is meant
    text: str = "label"  # label or template, of Something-Something
    frames: int = 8  # of a video, where the model does not fix them
    max_text_tokens: int = 32  # longer captions are cut
    trim_seconds: float | None = None  # only the beginning of each video is looked at
    videos: tuple[str, ...] = ()  # folders below the data root that the videos are looked for in
    annotation: tuple[AnnotationFile, ...] = ()  # files that it can be read from; the first that is there is
    paper_videos: int | None = None  # as the papers count; told where the annotation's number is another
    paper_queries: int | None = None  # likewise
    published: tuple[Published, ...] = ()  # results to set beside ours
    obtain: str = ""  # where videos and annotation come from, in words; said when they are missing
    classes: str | None = None  # of captions = "class": the file of class names, one a line
    prompts: tuple[str, ...] = ("{}",)  # of captions = "class": texts of a class, averaged
    description: str | None = None  # JSON beside the data with the ceilings of a made set
    pairs: str | None = None  # JSON beside the data with pairs of clips that differ in direction alone


class Question(NamedTuple):
    """A video with its right and its wrong text, by their places; the wrong one is right for its reversal, in `reversed`."""

    video: int
    right: int
    wrong: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A protocol with its items, as far as their videos were found."""

    protocol: Protocol
    videos: tuple[Path, ...]
    captions: tuple[str, ...]  # every text, queries first to last
    text_truth: tuple[tuple[int, ...], ...]  # right videos of each text (none where it is a wrong option)
    video_truth: tuple[tuple[int, ...], ...]  # right texts of each video
    options: tuple[tuple[int, ...], ...] = ()  # of each video: the texts it has to choose from
    questions: tuple[Question, ...] = ()  # pairs of a right and a wrong text
    classes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)  # of missing ones: why none of the files is surely theirs
    total: int = 0  # videos of the protocol, missing ones included
    all_texts: int = 0  # likewise; of pairs of texts their number
    protocol_hash: str = ""
    root: Path = Path()
    searched: tuple[Path, ...] = ()  # folders that the videos were looked for in
    annotation: Path = Path()
    format: str = ""
    expected: AnnotationFile | None = None
    pairs: Path | None = None
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.protocol.name

    @property
    def queries(self) -> int:
        """Texts of the protocol, those of missing videos included (options of a choice: one question a video)."""
        return self.total if self.options or self.protocol.captions == "choices" else self.all_texts

    @property
    def lacking(self) -> list[str]:
        """The missing videos as lines, with what is known about each."""
        return [f"{name} ({self.notes[name]})" if name in self.notes else name for name in self.missing]

    def keep(self, kept: Sequence[int]) -> tuple[Benchmark, list[int]]:
        """The same with these videos alone, and which texts have something to do with them (all classes do)."""
        place = {video: i for i, video in enumerate(kept)}
        used = {t for v in kept for t in (*self.video_truth[v], *(self.options[v] if self.options else ()))}
        asked = [q for q in self.questions if q.video in place]
        used |= {text for q in asked for text in (q.right, q.wrong)}
        texts = [t for t in range(len(self.captions)) if t in used or self.classes]
        text_place = {text: i for i, text in enumerate(texts)}
        part = replace(
            self,
            videos=tuple(self.videos[v] for v in kept),
            captions=tuple(self.captions[t] for t in texts),
            text_truth=tuple(tuple(place[v] for v in self.text_truth[t] if v in place) for t in texts),
            video_truth=tuple(tuple(text_place[t] for t in self.video_truth[v]) for v in kept),
            options=tuple(tuple(text_place[t] for t in self.options[v]) for v in kept) if self.options else (),
            questions=tuple(Question(place[q.video], text_place[q.right], text_place[q.wrong], q.kind) for q in asked),
        )
        return part, texts


def benchmark_names() -> list[str]:
    """The benchmarks that come with vtr."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


def load_protocol(name: str) -> Protocol:
    """The protocol of a benchmark by name, or that of an annotation file given by its path.

    Raises:
        UsageError: There is no such benchmark.
        VtrError: Its file cannot be meant.
    """
    if Path(name).suffix.lower() in _ANNOTATION_SUFFIXES:
        entry = AnnotationFile(file=str(Path(name).resolve()))
        return Protocol(name=Path(name).stem, annotation=(entry,))
    path = _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise unknown_name("benchmark", name, benchmark_names())
    try:
        return _protocol(name, path, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:  # no TOML, or values of other types
        raise VtrError(f"{path}: cannot be meant ({error}); expected keys and values as in msrvtt.toml") from error


def _protocol(name: str, path: Path, values: dict[str, Any]) -> Protocol:
    parts: list[tuple[dict[str, Any], type]] = [(values, Protocol)]
    parts += [(a, AnnotationFile) for a in values.get("annotation", ())]
    parts += [(row, Published) for row in values.get("published", ())]
    for keys, kind in parts:
        known = [f.name for f in fields(kind) if kind is not Protocol or f.name != "name"]
        if stray := next((key for key in keys if key not in known), None):
            raise unknown_name(f"key of {path}", stray, known)
    if "annotation" not in values:
        raise VtrError(f"{path}: no [[annotation]]; expected at least one, with its `file`")
    values["annotation"] = tuple(AnnotationFile(**a | {"more": tuple(a.get("more", ()))}) for a in values["annotation"])
    rows: list[dict[str, Any]] = values.get("published", [])
    values["published"] = tuple(
        Published(**row | {k: tuple(v) for k, v in row.items() if isinstance(v, list)}) for row in rows
    )
    for key in ("videos", "prompts"):
        if key in values:
            values[key] = tuple(values[key])
    protocol = Protocol(name=name, **values)
    if protocol.captions not in _CAPTION_RULES:
        raise VtrError(f"{path}: captions is {protocol.captions!r}, expected one of {', '.join(_CAPTION_RULES)}")
    return protocol


def load_benchmark(name: str, data_root: Path, *, paragraph: bool = False) -> Benchmark:
    """Load a benchmark: its annotation file and the videos that are there.

    Args:
        name: A benchmark, `NAME=FILE` to choose its annotation file, or an annotation file alone.
        data_root: Annotation and videos lie anywhere under it; videos of an annotation file that was given may lie
            beside it too.
        paragraph: Join a video's captions, whatever the protocol says (a reproduction switch).

    Raises:
        UsageError: There is no such benchmark, or the root is no folder.
        VtrError: The annotation file is missing or of an unknown format.
    """
    title, sign, file = name.partition("=")
    protocol = load_protocol(title if sign else name)
    if sign:
        known = {Path(a.file).name: a for a in protocol.annotation}
        entry = known.get(Path(file).name, AnnotationFile(file=file))
        protocol = replace(protocol, annotation=(replace(entry, file=str(Path(file).resolve()), more=()),))
    if paragraph:
        protocol = replace(protocol, captions="paragraph")
    root = RootIndex(data_root)
    path, entry = _annotation(protocol, root)
    ids = _beside(path, entry.ids) if entry.ids else None
    if protocol.captions in RULES:
        format_name, items = read_contrasts(
            [path, *(_beside(path, more) for more in entry.more)], protocol.source, protocol.captions
        )
    else:
        format_name, items = read_annotations(path, ids=ids, choices=protocol.captions == "choices")
    if protocol.captions != "class" and not any(item.captions for item in items):
        raise VtrError(
            f"{protocol.name}: {path} is a list of videos without captions; expected an annotation file. {protocol.obtain}"
        )
    names = [video for item in items for video in item.videos]
    given = path.is_absolute() and entry.file == str(path)
    found, notes, roots = find_videos(names, root, protocol.videos, path.parent if given else None)
    present = [video for video, file_path in found.items() if file_path is not None]
    built = _build(protocol, items, {video: i for i, video in enumerate(present)}, root)
    whole = _build(protocol, items, {video: i for i, video in enumerate(found)}, root)
    described = data_root / protocol.description if protocol.description else None
    ceilings = json.loads(described.read_text()).get("ceilings", {}) if described and described.is_file() else {}
    return Benchmark(
        protocol=protocol,
        videos=tuple(path for path in (found[v] for v in present) if path is not None),
        missing=tuple(video for video, file_path in found.items() if file_path is None),
        notes=notes,
        total=len(found),
        all_texts=len(whole.questions or whole.captions),
        protocol_hash=_hash(protocol, items),
        root=data_root,
        searched=roots,
        annotation=path,
        format=format_name,
        expected=entry,
        pairs=data_root / protocol.pairs if protocol.pairs else None,
        ceilings=ceilings,
        captions=built.captions,
        text_truth=built.text_truth,
        video_truth=built.video_truth,
        options=built.options,
        questions=built.questions,
        classes=built.classes,
    )


def find_videos(
    names: Sequence[str], root: RootIndex, folders: Sequence[str], beside: Path | None
) -> tuple[dict[str, Path | None], dict[str, str], tuple[Path, ...]]:
    """Files by name, notes on names without one, and where they were looked for: the data root, then `beside`.

    A file at its name's place beside the list is meant before one deeper under the root; two that differ, one at the
    name's place under each, are told (`closer`). A whole path is the file that it names.
    """
    finder = VideoFinder(root, folders)
    if beside is None:
        return *finder.find_all(names), (root.folder,)
    own = VideoFinder(RootIndex(beside))
    if not root.folder.is_dir():
        root, finder = own.root, own
    looks = {name: closer(finder, own, name) for name in dict.fromkeys(names)}
    if root.folder.resolve() in (beside.resolve(), *beside.resolve().parents):
        return *settle(looks, root.folder), (root.folder,)
    absent = [name for name, found in looks.items() if found.path is None and not found.note]
    if absent:  # all names are looked for, so that none takes the file of one that was found elsewhere
        there, notes = own.find_all(looks)
        looks |= {name: Found(path=there[name], note=notes.get(name, "")) for name in absent}
    return *settle(looks, root.folder), (root.folder, beside)


def _annotation(protocol: Protocol, root: RootIndex) -> tuple[Path, AnnotationFile]:
    for entry in protocol.annotation:
        path = root.find_file(entry.file)
        if path is not None:
            return path, entry
    given = protocol.annotation[0].file
    if Path(given).is_absolute():
        raise VtrError(
            f"{given}: no such annotation file; expected the path of a list (CSV, TSV, JSON, JSON lines), or a benchmark's "
            f"name ({', '.join(benchmark_names())})"
        )
    names = ", ".join(Path(a.file).name for a in protocol.annotation)
    raise VtrError(
        f"{protocol.name}: its annotation is nowhere under --data-root {root.folder}; expected one of {names}. {protocol.obtain}"
    )


def _beside(path: Path, name: str) -> Path:
    for place in (path.parent / name, path.parent / "lists" / name):
        if place.is_file():
            return place
    raise VtrError(f"{path}: {name} belongs to it: put it beside (ids of the split, or another part of the annotation)")


def _queries(protocol: Protocol, item: Item) -> tuple[str, ...]:
    if protocol.captions == "paragraph":
        return (" ".join(item.captions),)
    if protocol.captions == "shared" and len(item.captions) == 2:  # the release: label, then template
        return (item.captions[protocol.text == "template"].replace("[", "").replace("]", ""),)
    return item.captions


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """The fields of a `Benchmark` that tell its texts."""

    captions: tuple[str, ...]
    text_truth: tuple[tuple[int, ...], ...]
    video_truth: tuple[tuple[int, ...], ...]
    options: tuple[tuple[int, ...], ...]
    questions: tuple[Question, ...]
    classes: tuple[str, ...]


def _build(protocol: Protocol, items: list[Item], place: dict[str, int], root: RootIndex) -> _Texts:
    """Texts and their right videos; a text whose videos are all missing is left out."""
    captions: list[str] = []
    text_truth: list[tuple[int, ...]] = []
    video_truth: list[list[int]] = [[] for _ in place]
    options: list[tuple[int, ...]] = [() for _ in place]
    questions: list[Question] = []
    classes: tuple[str, ...] = ()

    def add(text: str, right: Iterable[int]) -> int:
        captions.append(text)
        text_truth.append(tuple(right))
        for video in text_truth[-1]:
            video_truth[video].append(len(captions) - 1)
        return len(captions) - 1

    if protocol.captions == "class":
        path = root.find_file(protocol.classes or "classes.txt")
        if path is None:
            raise VtrError(
                f"{protocol.name}: {protocol.classes} is missing: the class names, one a line. {protocol.obtain}"
            )
        classes = tuple(read_lines(path))
        wrong = [i for i in items if i.answer is None or i.answer >= len(classes)]
        if wrong:
            raise VtrError(
                f"{protocol.name}: {wrong[0].videos[0]} is of class {wrong[0].answer}, {path} names {len(classes)} classes"
            )
        for number, name in enumerate(classes):
            add(name, [place[i.videos[0]] for i in items if i.answer == number and i.videos[0] in place])
    elif protocol.captions == "choices":
        for item in items:
            video = place.get(item.videos[0])
            if video is None:
                continue
            if options[video]:
                raise VtrError(f"{protocol.name}: two questions about {item.videos[0]}; expected one a video")
            options[video] = tuple(
                add(text, [video] if number == item.answer else []) for number, text in enumerate(item.captions)
            )
    elif protocol.captions in RULES:
        questions = _questions(items, place, functools.cache(lambda text: add(text, [])))
    else:
        merged: dict[str, list[int]] = {}
        for item in items:
            right = [place[v] for v in item.videos if v in place]
            if not right:
                continue
            for text in _queries(protocol, item):
                if protocol.captions == "shared":
                    merged.setdefault(text, []).extend(right)
                else:
                    add(text, right)
        for text, shared in merged.items():
            add(text, dict.fromkeys(shared))
    return _Texts(
        captions=tuple(captions),
        text_truth=tuple(text_truth),
        video_truth=tuple(map(tuple, video_truth)),
        options=tuple(options) if protocol.captions == "choices" else (),
        questions=tuple(questions),
        classes=classes,
    )


def _questions(items: list[Item], place: dict[str, int], add: Callable[[str], int]) -> list[Question]:
    return [
        Question(place[video], add(right), add(wrong), item.kind)
        for item in items
        for video in item.videos
        if video in place
        for right, wrong in zip(item.captions, item.wrong)
    ]


def _hash(protocol: Protocol, items: list[Item]) -> str:
    """Of everything that fixes the numbers; the same whichever format the same annotation is in."""
    rules = [protocol.captions, protocol.frames, protocol.max_text_tokens, protocol.trim_seconds]
    if protocol.captions == "class":
        rules += [list(protocol.prompts)]
    content = [
        [sorted(map(without_extension, i.videos)), [clean_caption(q) for q in _queries(protocol, i)], i.answer]
        + ([[clean_caption(t) for t in i.wrong], i.kind] if i.wrong else [])
        for i in items
    ]
    return hashlib.sha256(json.dumps([rules, content]).encode()).hexdigest()[:16]
