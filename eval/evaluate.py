"""One model on one benchmark: encode, score, re-rank, and say what keeps the figures from being compared.

V videos, Q texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vtr.errors import VtrError
from vtr.eval.benchmarks import Benchmark
from vtr.eval.features import EncodeSettings, Features, WorkFolder, encode_all
from vtr.eval.report import Figures, Result
from vtr.eval.rerank import match_pairs, wanted_pairs
from vtr.eval.retrieval import chance_words, choice_rows, class_rows, direction_pairs, retrieval_rows
from vtr.models.base import VideoTextEncoder
from vtr.models.registry import release_protocol
from vtr.ranks import Ranks

COMPAT = {
    "antialias": "resize with antialiasing, as torchvision does since 0.17; the published numbers were made without",
    "match-logit": "re-rank by the logit of a match instead of the log-odds; released checkpoints always are",
    "ties-won": "a right answer wins every tie, as in code that counts only strictly better answers",
    "paragraph": "join all captions of a video to one query, as some published MSVD numbers did",
}
"""Switches that reproduce what other numbers were made with; a result names those that were on."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is evaluated.

    Attributes:
        rerank: Candidates that are scored again; 0: none.
        allow_missing: Go on without videos that are missing or broken.
        frames: Frames of a video; default: the model's.
        compat: Names out of `COMPAT`.
        bf16: Encode and score under bf16 autocast.
        workers: Decoding threads.
        work: Folder of the features; default: a temporary one.
        keep_features: Leave them there.
    """

    rerank: int = 128
    allow_missing: bool = False
    frames: int | None = None
    compat: tuple[str, ...] = ()
    bf16: bool = False
    workers: int = 2
    work: Path | None = None
    keep_features: bool = False


def evaluate(
    model: VideoTextEncoder, benchmark: Benchmark, options: Options | None = None, ranks: Ranks | None = None
) -> Result:
    """All rows of one benchmark.

    Args:
        model: A VideoTextModel, an OpenClipModel, or whatever has what they have.
        benchmark: See `load_benchmark`.
        options: Default: those of `Options`.
        ranks: Who share the work; default: this process alone.

    Raises:
        VtrError: Videos are missing or broken (all are listed) and `allow_missing` is off.
    """
    options, ranks = options or Options(), ranks or Ranks()
    protocol = benchmark.protocol
    top = options.rerank if model.reranks and protocol.captions != "class" else 0
    release = release_protocol(model.registered)
    words = release.text_tokens.get(benchmark.name) if release is not None else None
    settings = EncodeSettings(
        frames=options.frames or model.config.video.num_frames,
        antialias=model.config.antialias or "antialias" in options.compat,
        max_text_tokens=model.text_limit(words or protocol.max_text_tokens),
        trim_seconds=protocol.trim_seconds,
        bf16=options.bf16,
        tokens=top > 0,
        workers=options.workers,
    )
    missing = [f"missing: {name}" for name in benchmark.lacking]
    ranks.together(lambda: _enough(benchmark, missing, benchmark.videos, options.allow_missing))
    with tempfile.TemporaryDirectory() as temporary:
        work = WorkFolder(_work_folder(options.work or Path(temporary), model, benchmark, settings))
        result = _Job(model, benchmark, dataclasses.replace(options, rerank=top), settings, work, ranks).result()
        if not options.keep_features:
            ranks.main_only(work.remove)
    return result


def _enough(benchmark: Benchmark, problems: Sequence[str], usable: Sequence[object], allowed: bool) -> None:
    """Refuse a benchmark with problems, unless they are allowed; and in any case an empty one."""
    if problems and not allowed:
        shown = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        text = f"{benchmark.name}: {len(problems)} of {benchmark.total} videos can't be used ({shown})"
        where = ", ".join(map(str, benchmark.searched))
        raise VtrError(
            lambda say: (
                f"{text}; they were looked for under {where}: {say.name('data_root')} says where else, "
                f"{say.name('allow_missing')} goes on without them"
            )
        )
    if not usable:
        raise VtrError(f"{benchmark.name}: none of its {benchmark.total} videos can be used")


def _work_folder(work: Path, model: VideoTextEncoder, benchmark: Benchmark, settings: EncodeSettings) -> Path:
    """The features' folder: another one for whatever would make other features."""
    shape = dataclasses.asdict(settings)
    del shape["workers"]
    content = json.dumps([model.fingerprint(), shape, benchmark.captions, list(map(str, benchmark.videos))])
    return work / f"{benchmark.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class _Job:
    """An evaluation under way."""

    model: VideoTextEncoder
    benchmark: Benchmark
    options: Options
    settings: EncodeSettings
    work: WorkFolder
    ranks: Ranks

    def result(self) -> Result:
        benchmark, settings, protocol = self.benchmark, self.settings, self.benchmark.protocol
        prompts = protocol.prompts if protocol.captions == "class" else ("{}",)
        words = [p.format(c) if p != "{}" else c for c in benchmark.captions for p in prompts]
        features = encode_all(self.model, benchmark.videos, words, settings, self.work, self.ranks)
        problems = [f"missing: {m}" for m in benchmark.lacking]
        problems += [f"broken: {reason}" for _, reason in sorted(features.broken.items())]
        kept = [i for i in range(len(benchmark.videos)) if i not in features.broken]
        self.ranks.together(lambda: _enough(benchmark, problems, kept, self.options.allow_missing))
        part, texts = benchmark.keep(kept)
        if protocol.captions == "class":
            labels = [truth[0] for truth in part.video_truth]
            accuracy = class_rows(features.text, features.video[kept], len(prompts), labels)
            figures = Figures(classification=accuracy, chance_r1=round(100 / len(part.classes), 3))
        else:
            figures = self._figures(features, part, texts, kept)
        pairs = self._direction_pairs()
        why_not = _differences(benchmark, self.options, settings.frames, len(kept), problems, self.model.registered)
        return Result(
            benchmark=benchmark.name,
            protocol=benchmark.protocol_hash,
            annotation=f"{benchmark.annotation.name} ({benchmark.format})",
            gallery=len(kept),
            queries=len(texts),
            rule=protocol.captions,
            frames=settings.frames,
            antialias=settings.antialias,
            max_text_tokens=settings.max_text_tokens,
            match_by="logit" if self._by_logit() else "log-odds",
            rerank=min(self.options.rerank, len(kept)),
            compat=tuple(sorted(self.options.compat)),
            precision="bf16" if settings.bf16 else "fp32",
            captions_cut=features.cut,
            figures=figures,
            comparable="no: " + "; ".join(why_not) if why_not else "",
            ceilings=benchmark.ceilings,
            direction_pairs=pairs.get("embedding", {}),
            match_direction_pairs=pairs.get("match", {}),
        )

    def _figures(self, features: Features, part: Benchmark, texts: list[int], kept: list[int]) -> Figures:
        """Of retrieval, or of a choice among options."""
        inside = (features.text @ features.video.T)[texts][:, kept]
        temperature, top = float(self.model.temp.detach()), self.options.rerank
        logits = self._logits(features, part, texts, kept, inside) if top else None
        if part.protocol.captions == "choices":
            rows = choice_rows(inside, logits, part.options, part.text_truth, temperature)
            return Figures(choice=rows, chance_r1=round(100 * sum(1 / len(o) for o in part.options) / len(kept), 3))
        ties = "won" if "ties-won" in self.options.compat else "fair"
        by_logit = self._by_logit()
        found = retrieval_rows(inside, logits, part.text_truth, part.video_truth, top, temperature, ties, by_logit)
        return Figures(
            t2v=found.t2v,
            v2t=found.v2t,
            mean_recall=found.mean_recall,
            chance_r1=round(100 * sum(map(len, part.text_truth)) / len(texts) / len(kept), 3),
            warnings=tuple(chance_words(inside, logits, part.text_truth, top)),
        )

    def _by_logit(self) -> bool:
        """Whether a re-ranked row is made as the published ones were."""
        return self.model.registered is not None or "match-logit" in self.options.compat

    def _logits(self, features: Features, part: Benchmark, texts: list[int], kept: list[int], inside: Tensor) -> Tensor:
        """Match logits (Q, V, 2) of the options of each video, or of what is among the top."""
        wanted = torch.zeros(len(features.text), len(features.video), dtype=torch.bool)
        if part.protocol.captions == "choices":
            for video, own in zip(kept, part.options):
                wanted[[texts[i] for i in own], video] = True
        else:
            wanted[torch.tensor(texts)[:, None], torch.tensor(kept)] = wanted_pairs(inside, self.options.rerank)
        logits = match_pairs(self.model, features, wanted, self.work, self.ranks, bf16=self.settings.bf16)
        return logits[texts][:, kept]

    def _direction_pairs(self) -> dict[str, dict[str, float]]:
        file = self.benchmark.pairs
        if file is None or not file.is_file():
            return {}
        pairs = json.loads(file.read_text())
        match, folder = bool(self.options.rerank), file.parent / "videos"
        return self.ranks.together(
            lambda: direction_pairs(self.model, pairs, folder, self.settings, match) if self.ranks.main else {}
        )


def _differences(
    benchmark: Benchmark, options: Options, frames: int, used: int, problems: list[str], registered: str | None
) -> list[str]:
    """Why this result is not comparable with published ones."""
    protocol, out = benchmark.protocol, []
    if problems:
        out.append(f"{used} of {benchmark.total} videos")
    if protocol.paper_videos and benchmark.total != protocol.paper_videos:
        out.append(f"the annotation has {benchmark.total} videos, the paper {protocol.paper_videos}")
    release = release_protocol(registered)
    wanted = protocol.frames if release is None else release.frames
    if protocol.published and frames != wanted:
        out.append(f"{frames} frames, the protocol has {wanted}")
    if protocol.published and release is not None and options.rerank < min(release.rerank, used):
        out.append(f"{options.rerank} candidates re-ranked, the protocol has {release.rerank}")
    if options.compat and (protocol.published or protocol.paper_videos):
        out.append("with " + ", ".join(sorted(options.compat)))
    return out
