"""Model cards: what a model is, what it was trained on and how, and its figures, from the files that a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import vtr
from vtr.errors import VtrError
from vtr.models.registry import registry, source_of

if TYPE_CHECKING:
    from vtr.models.folder import SavedModel

_TASK = "text-to-video-retrieval"
_SET = (
    "corpus",
    "data",
    "task",
    "model",
    "text",
    "teacher",
    "init",
    "init_vision",
    "seed",
    "set",
)  # of a call's settings
_DEMO = "It was trained on rendered clips of coloured shapes, and knows nothing else: no real video can be searched with it."


class Origin(NamedTuple):
    """What is known of where a model comes from."""

    run: Mapping[str, object]  # the content of run.json
    source: Mapping[str, object]  # of an official checkpoint's source.json
    results: Sequence[Mapping[str, object]]  # result files of this very model
    others: list[str]  # result files of other models


def origin_of(model: SavedModel, results: Sequence[str | Path] = ()) -> Origin:
    """Collect what the run that wrote a model knows of it.

    Args:
        results: More result files of evaluations, or folders of them, beside the run's own.

    Raises:
        VtrError: A path of `results` is not there.
    """
    folder = model.folder
    if folder is not None and type(model).from_pretrained(folder).fingerprint() != model.fingerprint():
        folder = None  # trained on since: what is known of the files is not of this model
    home = folder.parent if folder is not None and folder.name == "model" else None
    run = _read(home / "run.json") if home else None
    own = [home / "results", *home.glob("results.json")] if home and run else []
    for path in map(Path, results):
        if not path.exists():
            raise VtrError(
                f"{path}: no such file or folder; vtr eval writes results to results/, and a run to its own folder"
            )
    mine, others = [], []
    for path in _files([*own, *map(Path, results)]):
        found = _read(path)
        if found is None or not {"t2v", "merged"} & found.keys():
            continue
        measured = found.get("fingerprint") == model.fingerprint() or ("merged" in found and path.parent == home)
        if measured:
            mine.append(found)
        else:
            others.append(str(path))
    return Origin(run or {}, (source_of(folder) if folder else None) or {}, mine, others)


def model_card(model: SavedModel, name: str, origin: Origin, licence: str = "") -> ModelCard:
    """The card, README.md of a model's folder on the hub.

    Args:
        name: Of the repository, OWNER/NAME.
        licence: Identifier of the weights' licence, as the hub knows it ("apache-2.0"); "": not stated.
    """
    facts = repr(model).partition("(")[2].rpartition(", on ")[0]
    searches = hasattr(model, "tokenise")
    data = ModelCardData(
        library_name="vtr",
        license=licence or None,
        pipeline_tag="feature-extraction" if searches else "video-classification",
        tags=["video", *(["text-to-video-search"] if searches else []), facts.split()[0].lower()],
        model_name=name.rpartition("/")[2],
        eval_results=_eval_results(origin.results) or None,
    )
    parts = [f"# {name.rpartition('/')[2]}", f"{type(model).__name__}: {facts}."]
    if _settings(origin).get("corpus") == "demo":
        parts.append(_DEMO)
    parts += ["## Use", _use(name, searches), "## Figures", _figures(origin.results)]
    parts += ["## Training", *_training(origin), "## Licence", _licence(origin, licence)]
    parts.append(f"Written by vtr {vtr.__version__} from the files of the run; docs/python.md says how.")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts))


def _use(name: str, searches: bool) -> str:
    call = 'rank("a dog", ["a.mp4", "b.mp4"])' if searches else 'classify("clip.mp4")'
    return f'```python\nimport vtr  # pip install vtr-search\n\nmodel = vtr.load("{name}")\nmodel.{call}\n```'


def _figures(results: Iterable[Mapping[str, object]]) -> str:
    rows, classes = [], []
    for found in results:
        for row, at in _table(found, "t2v").items():
            told = [key for key in _HOW if found.get(key) and (key != "rerank" or row != "embedding")]
            how = ", ".join(f"{_HOW[key]} {found[key]}" for key in told)
            back = _table(found, "v2t").get(row, {})
            rows.append(
                [
                    found["benchmark"],
                    row,
                    *(_table({"x": d}, "x").get(k, "") for d in (at, back) for k in _RECALLS),
                    how,
                ]
            )
        if merged := _table(found, "merged"):
            figures = ", ".join(f"{key} {value:.2f}" for key, value in merged.items() if isinstance(value, float))
            classes.append(
                f"{found.get('task')}, {found.get('videos')} videos of {found.get('views')} views: {figures}."
            )
    head = [
        "benchmark",
        "scores",
        *(f"{way} {k.replace('r', 'R@')}" for way in ("t2v", "v2t") for k in _RECALLS),
        "how",
    ]
    return "\n\n".join([*([_rows(head, rows)] if rows else []), *classes]) or "None were measured with vtr."


_RECALLS = ("r1", "r5", "r10")
_HOW = {
    "gallery": "videos",
    "frames": "frames",
    "rerank": "re-ranked",
    "precision": "precision",
    "protocol": "protocol",
}


def _eval_results(results: Iterable[Mapping[str, object]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=str(found["benchmark"]),
            dataset_name=str(found["benchmark"]),
            dataset_args={"protocol": found.get("protocol")},
            metric_type=f"recall_at_{key[1:]}",
            metric_name=f"text to video R@{key[1:]}, {row}",
            metric_value=value,
        )
        for found in results
        for row, at in _table(found, "t2v").items()
        for key, value in _table({"x": at}, "x").items()
        if key in _RECALLS
    ]


def _training(origin: Origin) -> list[str]:
    run, source = origin.run, origin.source
    if source:
        known = registry().get(str(source.get("name")))
        of = f" of {known.repository}" if known else ""
        return [f"Converted from {source.get('file')}{of} (SHA-256 {source.get('sha256')}); trained by its authors."]
    if not run:
        return ["Nothing is known here of its training: there was no run.json beside it."]
    parts = []
    if members := [m for m in _list(run.get("corpus")) if m.get("samples")]:
        head = ["data", "kind", "samples", "of published", "licence"]
        keys = ("member", "media", "samples", "published", "licence")
        parts.append(_rows(head, [[m.get(key) or "" for key in keys] for m in members]))
    for split, found in _table(run, "data").items():
        parts.append(
            f"{split}: {_table({'x': found}, 'x').get('items')} of `{_table({'x': found}, 'x').get('source')}`."
        )
    recipe = _table(run, "recipe")
    stages = [(stage, _table(recipe, stage)) for stage in _strings(recipe.get("stages"))]
    if stages:
        head = ["stage", "steps", "batch", "learning rate", "losses"]
        parts.append(_rows(head, [_stage(name, values) for name, values in stages]))
    settings = _settings(origin)
    own_words = (settings.get("model") or settings.get("corpus")) == "demo"  # whatever --text says
    told = [key for key in _SET if settings.get(key) and not (own_words and key == "text")]
    given = ", ".join(f"`{key}={settings[key]}`" for key in told)
    parts.append(
        f"Settings: {given}. torch {run.get('torch')}, {run.get('device')}. All of them are in the run's run.json."
    )
    return parts


def _stage(name: str, values: Mapping[str, object]) -> list[object]:
    losses = ", ".join(f"{key} {values[key]:g}" for key in ("uta", "vtc", "vtm", "mlm", "text") if values.get(key))
    return [name, values.get("steps"), values.get("batch_size"), _table(values, "optim").get("lr"), losses]


def _licence(origin: Origin, licence: str) -> str:
    own = f"Weights: {licence}." if licence else "The licence of these weights is not stated."
    data = {str(m.get("licence")) for m in _list(origin.run.get("corpus")) if m.get("licence") and m.get("samples")}
    known = f" Of the data they were trained on: {'; '.join(sorted(data))}." if data else ""
    return own + known + " vtr itself: Apache-2.0."


def _settings(origin: Origin) -> Mapping[str, object]:
    return _table(origin.run, "settings")


def _rows(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(str(c).split()).replace("|", "\\|").replace("<", "&lt;") for c in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _files(places: Iterable[Path]) -> Iterable[Path]:
    found = [p for place in places for p in (sorted(place.rglob("*.json")) if place.is_dir() else [place])]
    return dict.fromkeys(path for path in found if ".work" not in path.parts)


def _read(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _table(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _list(found: object) -> list[Mapping[str, object]]:
    return [m for m in found if isinstance(m, Mapping)] if isinstance(found, list) else []


def _strings(found: object) -> list[str]:
    return [str(name) for name in found] if isinstance(found, list | tuple) else []
