"""`vtr models`: the official checkpoints, listed, described, fetched."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from vtr.errors import UsageError, unknown_name
from vtr.files import manifest_names, read_manifest
from vtr.models.registry import Checkpoint, cache_folder, known_defect, registry, source_of

_TASKS = {
    "image": "image classification",
    "video": "action recognition",
    "masked": "masked pretraining",
    "retrieval": "text-video retrieval",
    "qa": "question answering",
}


def _known_results(name: str) -> list[str]:
    """Published retrieval results, one line a benchmark."""
    lines = []
    for benchmark in manifest_names("benchmarks"):
        for row in read_manifest("benchmarks", benchmark).get("published", []):
            if row["model"] == name:
                ways = {"text to video": row.get("t2v"), "video to text": row.get("v2t")}
                figures = [f"{way} {'/'.join(f'{v:g}' for v in found)}" for way, found in ways.items() if found]
                note = f" ({row['note']})" if "note" in row else ""
                lines.append(f"{benchmark}: {', '.join(figures)}{note}")
    return lines


@dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    """List the official checkpoints; with a name: all that is known of it."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names, or parts of names to list fewer; open_clip lists what that library has."""
    get: bool = False
    """Fetch and convert it, so that it loads offline."""
    file: Path | None = None
    """The official file, where it is on this machine already."""
    vocabulary: Path | None = None
    """BERT's tokenizer.json or vocab.txt, where it is on this machine already."""
    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """Upload a model of yours to the Hugging Face hub, with a card of its data, recipe and figures."""

    model: tyro.conf.Positional[str]
    """A run, a model folder, or an official checkpoint."""
    name: tyro.conf.Positional[str]
    """OWNER/NAME on the hub; vtr.load and --model take it then."""
    dry_run: bool = False
    """Print the card, upload nothing."""
    licence: str = ""
    """Of the weights, as the hub names it (apache-2.0, cc-by-nc-4.0 …); default: not stated."""
    results: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Result files, or folders of them, beside the run's own (may be given several times); those of other models are left out."""
    private: bool = False
    """Make the repository private, where it is new."""


def push(settings: PushSettings) -> int:
    """`vtr models push`; the token is HF_TOKEN, or what `hf auth login` has kept."""
    from vtr.models.folder import SavedModel
    from vtr.models.load import load  # torch comes with it
    from vtr.models.publish import card_of

    model = load(settings.model, "cpu")
    if not isinstance(model, SavedModel):
        raise UsageError(f"{settings.model} is another project's model: only models of vtr are uploaded")
    if settings.dry_run:
        print(card_of(model, settings.name, licence=settings.licence, results=settings.results))
        return 0
    given = {"licence": settings.licence, "results": settings.results, "private": settings.private}
    print(model.push_to_hub(settings.name, **given))
    return 0


def models(settings: ModelsSettings) -> int:
    """`vtr models`."""
    if settings.get or settings.file or settings.vocabulary:
        if len(settings.names) != 1:
            raise UsageError("--get, --file and --vocabulary need one name: vtr models NAME --get")
        from vtr.models.official import load_checkpoint  # torch comes with it

        model = load_checkpoint(settings.names[0], file=settings.file, vocabulary=settings.vocabulary, device="cpu")
        count = sum(p.numel() for p in model.parameters())
        print(f"{settings.names[0]}: ready, {count / 1e6:.1f} M parameters, {cache_folder() / settings.names[0]}")
        return 0
    if settings.names and settings.names[0].startswith("open_clip"):
        return _baselines(settings)
    known = registry()
    exact = {n: known[n] for n in settings.names if n in known}  # a whole name may be the beginning of others
    if len(exact) == len(settings.names) == 1:
        chosen = exact
    else:
        chosen = {n: c for n, c in known.items() if not settings.names or any(word in n for word in settings.names)}
    if not chosen:
        raise unknown_name("model", settings.names[0], known)
    if settings.json:
        print(json.dumps({n: dataclasses.asdict(c) for n, c in chosen.items()}))
        return 0
    if len(chosen) == 1:
        print(_details(next(iter(chosen.values()))))
        return 0
    print(f"{'name':<42}{'trained on':<14}{'px':>4}{'frames':>8}{'top-1':>7}  {'here':<6}file")
    for name, c in chosen.items():
        here = "yes" if source_of(cache_folder() / name) else ""
        top1 = f"{c.top1:.1f}" if c.top1 else ("R@1" if c.task == "retrieval" else "")
        mark = " *" if c.defects else ""
        print(f"{name:<42}{c.data:<14}{c.image_size:>4}{c.frames:>8}{top1:>7}  {here:<6}{c.file}{mark}")
    print("R@1: zero-shot retrieval, see vtr models NAME    *: something is known of the file, see vtr models NAME")
    print("Baselines of open_clip: vtr models open_clip")
    return 0


def _baselines(settings: ModelsSettings) -> int:
    """The weights that open_clip knows, as names for `vtr.load`."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    words = [w.removeprefix("open_clip").removeprefix(":") for w in settings.names]
    for model, tag in open_clip.list_pretrained():
        name = f"open_clip:{model}/{tag}"
        if all(word in name for word in words):
            repository, _, file = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "").rpartition("/")
            files = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
            here = any(isinstance(try_to_load_from_cache(repository, f), str) for f in files if repository)
            row = {"name": name, "here": here, "repository": repository}
            print(json.dumps(row) if settings.json else f"{name:<64}{'yes' if here else '':<6}{repository}")
    return 0


def _details(c: Checkpoint) -> str:
    rows = {
        "task": f"{_TASKS[c.task]}, {c.data}"
        + (f", {c.classes} classes" if c.classes else "")
        + (f", from {c.init}" if c.init else ""),
        "model": f"{c.model} {c.size.removeprefix('umt_')}, {c.image_size} px, {c.frames} frame{'s' * (c.frames > 1)}",
        "source": f"{c.repository}, {c.file}",
        "here": str(cache_folder() / c.name)
        if source_of(cache_folder() / c.name)
        else "no (vtr models NAME --get [--file FILE])",
    }
    if c.top1:
        rows["known"] = f"{'accuracy' if c.task == 'qa' else 'top-1'} {c.top1:.1f} %" + (
            f", {c.views}" if c.views else ""
        )
    if c.protocol is not None:
        words = ", ".join(f"{name} {count}" for name, count in c.protocol.text_tokens.items())
        how = f"made with {c.protocol.frames} frames, {c.protocol.rerank} candidates re-ranked; text tokens: {words}"
        rows["figures"] = how
    lines = [c.name] + [f"  {key:<8}{value}" for key, value in rows.items()]
    lines += [f"  known   {line}" for line in _known_results(c.name)]
    lines += [f"  defect  {d}: {known_defect(c, d)}" for d in c.defects]
    return "\n".join(lines)


COMMANDS = {"models": (ModelsSettings, models), "models push": (PushSettings, push)}
