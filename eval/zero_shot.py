"""Zero-shot evaluation of a trained model: retrieval, multiple choice, classification.

accelerate launch eval/zero_shot.py --model runs/demo --data demo
accelerate launch eval/zero_shot.py --model videomamba_middle.25m_f8 --data msrvtt didemo anet lsmdc msvd --data-root /data
accelerate launch eval/zero_shot.py --model open_clip:ViT-B-16/openai --data msrvtt --data-root /data
torchrun --nproc_per_node 2 eval/zero_shot.py --model runs/demo --data demo        # two ranks on a CPU
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; the repo root belongs there instead.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from vtr.errors import UsageError, VtrError, unknown_name

COMPAT = {
    "antialias": "resize with antialiasing, as torchvision does since 0.17; the published numbers were made without",
    "ties-won": "a right answer wins every tie, as in code that counts only strictly better answers",
    "paragraph": "join all captions of a video to one query, as some published MSVD numbers did",
}
"""Switches that reproduce what other numbers were made with; a result names those that were on."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotSettings:
    """Evaluate a model zero-shot, in up to three rows: embedding, re-ranked, combined."""

    model: str
    """A run, a model folder, a hub id, an official checkpoint (`vtr models`) or open_clip:MODEL/PRETRAINED."""
    data: tuple[str, ...]
    """Benchmarks by name (`vtr benchmarks`), NAME=FILE to choose the annotation, or annotation files."""
    data_root: Path = Path("data")
    """Where the benchmarks' videos and annotations are."""
    rerank: int = 128
    """Candidates of each query that the cross-modal decoder scores again; 0: none."""
    frames: int | None = None
    """Frames of a video; default: the model's."""
    compat: tuple[str, ...] = ()
    """Reproduction switches: antialias, ties-won, paragraph."""
    published: tuple[str, ...] = ()
    """Published rows to compare with, or `all`; default: that of the model itself."""
    precision: str = "auto"
    """fp32, bf16, or auto: bf16 on a GPU."""
    workers: int = 2
    """Threads of a rank that decode videos."""
    out: Path = Path("results")
    """Folder of the result files, one JSON a benchmark."""
    work: Path | None = None
    """Where features are kept until a benchmark is done; all ranks must see it. Default: OUT/.work."""
    keep_features: bool = False
    """Leave the features there afterwards."""
    allow_missing: bool = False
    """Go on without videos that are missing or broken; the result then says so."""
    json: bool = False
    """Print the results as JSON."""


def evaluate(
    model: Any,
    benchmark: Any,
    *,
    top: int = 128,
    allow_missing: bool = False,
    frames: int | None = None,
    compat: tuple[str, ...] = (),
    bf16: bool = False,
    workers: int = 2,
    work: Path | None = None,
    keep_features: bool = False,
    team: Any = None,
) -> dict[str, Any]:
    """All rows of one benchmark.

    Args:
        model: A VideoTextModel or an OpenClipModel.
        benchmark: See `load_benchmark`.
        top: Candidates that are scored again; 0: none.
        allow_missing: Go on without videos that are missing or broken.
        frames: Frames of a video; default: the model's.
        compat: Names out of `COMPAT`.
        bf16: Encode and score under bf16 autocast.
        workers: Decoding threads.
        work: Folder of the features; default: a temporary one.
        keep_features: Leave them there.
        team: The ranks that share the work; default: this process alone.

    Raises:
        VtrError: Videos are missing or broken (all are listed) and `allow_missing` is off.
    """
    from vtr.eval.features import EncodeSettings, WorkFolder
    from vtr.ranks import Ranks

    team = team or Ranks()
    rerank = top if model.reranks and benchmark.protocol.captions != "class" else 0
    settings = EncodeSettings(
        frames=frames or model.config.video.num_frames,
        antialias=model.config.antialias or "antialias" in compat,
        max_text_tokens=model.text_limit(benchmark.protocol.max_text_tokens),
        trim_seconds=benchmark.protocol.trim_seconds,
        bf16=bf16,
        tokens=rerank > 0,
        workers=workers,
    )

    def whole() -> None:
        if not allow_missing:
            _refuse(benchmark, [f"missing: {m}" for m in benchmark.missing])
        if not benchmark.videos:
            raise VtrError(f"{benchmark.name}: none of its {benchmark.total} videos can be used")

    team.together(whole)
    with tempfile.TemporaryDirectory() as temporary:
        folder = WorkFolder(_work_folder(work or Path(temporary), model, benchmark, settings))
        result = _evaluate(model, benchmark, rerank, allow_missing, compat, settings, folder, team)

        def clear() -> None:
            if team.main and not keep_features:
                folder.remove()

        team.together(clear)
    return result


def _refuse(benchmark: Any, problems: list[str]) -> None:
    if problems:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise VtrError(
            f"{benchmark.name}: {len(problems)} of {benchmark.total} videos can't be used ({shown}); "
            "--allow-missing goes on without them"
        )


def _work_folder(work: Path, model: Any, benchmark: Any, settings: Any) -> Path:
    """The features' folder: another one for whatever would make other features."""
    shape = dataclasses.asdict(settings)
    del shape["workers"]
    content = json.dumps([model.fingerprint(), shape, benchmark.captions, list(map(str, benchmark.videos))])
    return work / f"{benchmark.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _evaluate(
    model: Any,
    benchmark: Any,
    top: int,
    allow_missing: bool,
    compat: tuple[str, ...],
    settings: Any,
    work: Any,
    team: Any,
) -> dict[str, Any]:
    import torch

    from vtr.eval.features import encode_all
    from vtr.eval.rerank import match_pairs, wanted_pairs
    from vtr.eval.retrieval import chance_words, choice_rows, class_rows, retrieval_rows

    protocol = benchmark.protocol
    prompts = protocol.prompts if protocol.captions == "class" else ("{}",)
    texts_in = [p.format(c) if p != "{}" else c for c in benchmark.captions for p in prompts]
    features = encode_all(model, benchmark.videos, texts_in, settings, work, team)
    problems = [f"missing: {m}" for m in benchmark.missing]
    problems += [f"broken: {reason}" for _, reason in sorted(features.broken.items())]
    kept = [i for i in range(len(benchmark.videos)) if i not in features.broken]

    def enough() -> None:
        if not allow_missing:
            _refuse(benchmark, problems)
        if not kept:
            raise VtrError(f"{benchmark.name}: none of its {benchmark.total} videos can be used")

    team.together(enough)
    part, texts = benchmark.keep(kept)
    result: dict[str, Any] = {
        "benchmark": benchmark.name,
        "protocol": benchmark.protocol_hash,
        "annotation": f"{benchmark.annotation.name} ({benchmark.format})",
        "gallery": len(kept),
        "queries": len(texts),
        "rule": protocol.captions,
        "frames": settings.frames,
        "antialias": settings.antialias,
        "max_text_tokens": settings.max_text_tokens,
        "rerank": min(top, len(kept)),
        "compat": sorted(compat),
        "precision": "bf16" if settings.bf16 else "fp32",
        "captions_cut": features.cut,
    }
    if protocol.captions == "class":
        labels = [truth[0] for truth in part.video_truth]
        result["classification"] = class_rows(features.text, features.video[kept], len(prompts), labels)
        result["chance_r1"] = round(100 / len(part.classes), 3)
    else:
        similarity = features.text @ features.video.T
        inside = similarity[texts][:, kept]
        temperature = float(model.temp.detach())
        choice = protocol.captions == "choices"
        logits = None
        if top:
            wanted = torch.zeros(similarity.shape, dtype=torch.bool)
            if choice:
                for video, own in zip(kept, part.options):
                    wanted[[texts[i] for i in own], video] = True
            else:
                wanted[torch.tensor(texts)[:, None], torch.tensor(kept)] = wanted_pairs(inside, top)
            logits = match_pairs(model, features, wanted, work, team, bf16=settings.bf16)[texts][:, kept]
        if choice:
            result["choice"] = choice_rows(inside, logits, part.options, part.text_truth, temperature)
            result["chance_r1"] = round(100 * sum(1 / len(o) for o in part.options) / len(kept), 3)
        else:
            ties = "won" if "ties-won" in compat else "fair"
            result |= retrieval_rows(inside, logits, part.text_truth, part.video_truth, top, temperature, ties)
            result["chance_r1"] = round(100 * sum(map(len, part.text_truth)) / len(texts) / len(kept), 3)
            words = chance_words(inside, logits, part.text_truth, top)
            if words:
                result["warnings"] = words
    why_not = _differences(benchmark, settings, compat, len(kept), problems)
    if why_not:
        result["comparable"] = "no: " + "; ".join(why_not)
    if benchmark.ceilings:
        result["ceilings"] = benchmark.ceilings
    if benchmark.pairs is not None and benchmark.pairs.is_file():
        from vtr.eval.retrieval import direction_pairs

        pairs = json.loads(benchmark.pairs.read_text())
        folder = benchmark.pairs.parent / "videos"
        done = team.together(lambda: direction_pairs(model, pairs, folder, settings) if team.main else None)
        result["direction_pairs"] = done
    return result


def _differences(benchmark: Any, settings: Any, compat: tuple[str, ...], used: int, problems: list[str]) -> list[str]:
    """Why this result is not comparable with published ones."""
    protocol, out = benchmark.protocol, []
    if problems:
        out.append(f"{used} of {benchmark.total} videos")
    if protocol.paper_videos and benchmark.total != protocol.paper_videos:
        out.append(f"the annotation has {benchmark.total} videos, the paper {protocol.paper_videos}")
    if protocol.published and settings.frames != protocol.frames:
        out.append(f"{settings.frames} frames, the protocol has {protocol.frames}")
    if compat and (protocol.published or protocol.paper_videos):
        out.append("with " + ", ".join(sorted(compat)))
    return out


def compared(
    result: dict[str, Any], benchmark: Any, names: tuple[str, ...], registered: str | None
) -> list[dict[str, Any]]:
    """Published rows with the differences of ours to them.

    Raises:
        UsageError: A name that has no published row.
    """
    known = {p.model: p for p in benchmark.protocol.published}
    if "all" in names:
        names = tuple(known)
    elif not names:
        names = (registered,) if registered is not None and registered in known else ()
    out = []
    for name in names:
        if name not in known:
            raise unknown_name(f"published row of {benchmark.name}", name, known or ["(none)"])
        row = known[name]
        entry: dict[str, Any] = {"model": name, "row": row.row}
        for direction in ("t2v", "v2t"):
            figures = getattr(row, direction)
            ours = result.get(direction, {}).get(row.row) or result.get(direction, {}).get("embedding")
            if figures and ours:
                entry[direction] = list(figures)
                entry[f"{direction}_difference"] = [round(ours[k] - f, 2) for k, f in zip(("r1", "r5", "r10"), figures)]
        if row.note:
            entry["note"] = row.note
        out.append(entry)
    return out


def table(result: dict[str, Any]) -> str:
    """A result as text."""
    lines = [
        f"{result['benchmark']}: {result['gallery']} videos, {result['queries']} captions, protocol {result['protocol']}"
    ]
    lines.append("  " + _how(result))
    if "comparable" in result:
        lines.append(f"NOT COMPARABLE with published numbers ({result['comparable']})")
    lines += result.get("warnings", [])
    if "t2v" in result:
        lines.append(f"{'':26}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MdR':>7}{'MnR':>8}")
    for direction, words in (("t2v", "text to video"), ("v2t", "video to text")):
        for row, m in result.get(direction, {}).items():
            lines.append(
                f"{words + ', ' + row:<26}{m['r1']:7.1f}{m['r5']:7.1f}{m['r10']:7.1f}{m['median_rank']:7.1f}{m['mean_rank']:8.1f}"
            )
        for entry in result.get("published", ()):
            if direction in entry:
                numbers = "".join(f"{v:7.1f}" for v in entry[direction])
                lines.append(f"{'  published':<26}{numbers}   {entry['model']}, {entry['row']}")
                lines.append(
                    f"{'  ours minus published':<26}" + "".join(f"{v:+7.1f}" for v in entry[f"{direction}_difference"])
                )
    for row, value in result.get("mean_recall", {}).items():
        lines.append(f"{'mean recall, ' + row:<26}{value:7.1f}")
    for kind, words in (("choice", "multiple choice"), ("classification", "classification")):
        for row, value in result.get(kind, {}).items():
            lines.append(f"{words + ', ' + row:<28}{value:5.1f}")
    lines.append(f"{'chance':<26}{result['chance_r1']:7.1f}")
    for entry in result.get("published", ()):
        if "note" in entry:
            lines.append(f"{entry['model']}: {entry['note']}")
    if result["captions_cut"]:
        lines.append(
            f"{result['captions_cut']} of {result['queries']} texts are longer than the protocol allows and were cut"
        )
    for name, value in result.get("ceilings", {}).items():
        lines.append(f"{'ceiling, ' + name.replace('_', ' '):<42}{value:.1f}")
    for name, value in result.get("direction_pairs", {}).items():
        lines.append(f"{'direction pairs, ' + name.replace('_', '/'):<42}{value:.1f}")
    return "\n".join(lines)


_RULES = {
    "each": "each caption is a query",
    "paragraph": "a video's captions joined are a query",
    "shared": "equal captions are one query with several right videos",
    "choices": "a choice among each video's captions",
    "class": "a class is the mean of its prompts",
}


def _how(result: dict[str, Any]) -> str:
    """What was done, in words."""
    words = [
        _RULES[result["rule"]],
        f"{result['frames']} frames",
        "antialiased" if result["antialias"] else "not antialiased",
        f"texts of at most {result['max_text_tokens']} tokens",
        f"{result['rerank']} candidates re-ranked" if result["rerank"] else "not re-ranked",
        result["precision"],
    ]
    if result["compat"]:
        words.append("with " + ", ".join(result["compat"]))
    if "run" in result:
        took = result["run"]
        words.append(
            f"{took['ranks']} rank{'s' * (took['ranks'] > 1)}, {took['seconds']:g} s, {took['peak_memory_gib']:g} GiB"
        )
    return "; ".join(words)


def run(settings: ZeroShotSettings, team: Any = None) -> int:
    """Evaluate on every benchmark and write the results; returns the exit code."""
    import vtr.models.load
    from vtr.eval.benchmarks import load_benchmark
    from vtr.ranks import Ranks

    _check(settings)
    paragraph = "paragraph" in settings.compat
    team = team or Ranks()

    def prepared() -> list[Any]:
        """A wrong name or folder is said now, not after hours."""
        found = [load_benchmark(name, settings.data_root, paragraph=paragraph) for name in settings.data]
        for benchmark in found:
            compared({}, benchmark, settings.published, None)
        try:
            settings.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VtrError(f"--out {settings.out}: cannot be created ({error.strerror})") from error
        return found

    def loaded() -> Any:
        return vtr.models.load.load_encoder(settings.model)

    benchmarks = team.together(prepared)
    model = team.together(loaded)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and model.device.type == "cuda")
    fingerprint = model.fingerprint()
    results = []
    for benchmark in benchmarks:
        start = time.perf_counter()
        result = evaluate(
            model,
            benchmark,
            top=settings.rerank,
            allow_missing=settings.allow_missing,
            frames=settings.frames,
            compat=settings.compat,
            bf16=bf16,
            workers=settings.workers,
            work=settings.work or settings.out / ".work",
            keep_features=settings.keep_features,
            team=team,
        )
        published = compared(result, benchmark, settings.published, model.registered)
        if published:
            result["published"] = published
        result["model"], result["fingerprint"] = settings.model, fingerprint
        result["run"] = {
            "ranks": team.size,
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_gib": peak_memory(),
            "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "vtr": __import__("vtr").__version__,
        }
        results.append(result)
        if team.main:
            _write(settings, benchmark.name, result)
            if not settings.json:
                print(table(result), flush=True)
    if settings.json and team.main:
        print(json.dumps(results))
    return 0


def _check(settings: ZeroShotSettings) -> None:
    for name in settings.compat:
        if name not in COMPAT:
            raise unknown_name("--compat switch", name, COMPAT)
    if settings.precision not in ("auto", "fp32", "bf16"):
        raise unknown_name("--precision", settings.precision, ("auto", "fp32", "bf16"))
    if settings.rerank < 0 or settings.workers < 1 or (settings.frames is not None and settings.frames < 1):
        raise UsageError("--rerank is 0 or more, --workers and --frames are 1 or more")


def _write(settings: ZeroShotSettings, benchmark: str, result: dict[str, Any]) -> None:
    model = Path(settings.model).name if Path(settings.model).exists() else settings.model
    parts = [model, benchmark, *sorted(settings.compat)] + ([f"f{settings.frames}"] if settings.frames else [])
    path = settings.out / (re.sub(r"[^\w.+-]+", "-", "_".join(parts)) + ".json")
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise VtrError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"written: {path}", file=sys.stderr)


def peak_memory() -> float:
    """The most memory this process has had so far, in GiB; files mapped into it included."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, evaluate, return the exit code."""
    import tyro

    settings = tyro.cli(ZeroShotSettings, args=argv, description=__doc__)
    from vtr.ranks import Ranks, report

    team = None
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            team = Ranks.join()
        return run(settings, team)
    except VtrError as error:
        return report(error)
    except KeyboardInterrupt:
        print("vtr: stopped; call it again to continue", file=sys.stderr)
        return 130
    finally:
        if team is not None:
            team.end()


if __name__ == "__main__":
    sys.exit(main())
