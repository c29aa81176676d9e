"""Any of our models through MTEB's video-text tasks, and our benchmarks as tasks of its kind (extra `mteb`).

python -m vtr.eval.mteb --model runs/demo --data demo                       # a benchmark of ours, by MTEB's measures
python -m vtr.eval.mteb --model videomamba_middle.25m_f8 --tasks MSRVTTT2V   # one of MTEB's, its videos come from the hub

MTEB's sets are its own (MSRVTTT2V: 879 videos) and its main score is nDCG@10: neither it nor its recall@1 is the R@1 of
1k-A, which `eval/zero_shot.py` measures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from vtr.data.decode import DecodeError, read_frames
from vtr.data.sampling import middle_frames
from vtr.data.transforms import eval_frames
from vtr.errors import UsageError, VtrError, reports_errors
from vtr.eval.benchmarks import Benchmark, load_benchmark
from vtr.eval.evaluate import enough
from vtr.files import install_command
from vtr.models.base import VideoTextEncoder
from vtr.models.load import load_encoder
from vtr.settings import parsed

try:
    import datasets
    import mteb
    from mteb.abstasks.abstask import AbsTask
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"vtr: MTEB is not installed ({error}): {install_command('mteb')}")

if TYPE_CHECKING:
    from mteb.models.models_protocols import EncoderProtocol
    from mteb.types import PromptType

_BATCH = 16
_SAYS = (
    "MTEB's sets and measures are its own: these scores are not the R@1 of 1k-A or of any other published split "
    "(eval/zero_shot.py measures those)"
)


class Inputs(Protocol):
    """What MTEB gives a model to encode: a loader of its data set."""

    @property
    def dataset(self) -> datasets.Dataset: ...


class MtebModel:
    """One of our models in MTEB's protocol of encoders.

    Args:
        model: Whatever `vtr.models.load.load_encoder` gives.
        name: As MTEB is to call it; OWNER/NAME.
    """

    def __init__(self, model: VideoTextEncoder, name: str) -> None:
        self.model = model.eval()
        meta = ModelMeta.create_empty(
            {"name": name if "/" in name else f"vtr/{name}", "revision": model.fingerprint()[:12]}
        )
        self._meta = meta.model_copy(update={"modalities": ["text", "video"], "embed_dim": model.config.embed_dim})

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Name, revision (of the weights), modalities."""
        return self._meta

    @torch.inference_mode()
    def encode(
        self,
        inputs: Inputs,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Embeddings (N, E) of the texts or videos of a data set; of a text with a video their sum.

        Videos are decoded here, as everywhere in vtr: the model's number of frames, from the middles of equal parts.

        Raises:
            VtrError: Sound or pictures are asked for, or a video cannot be decoded (a score would silently lack it).
        """
        rows = inputs.dataset
        known = [kind for kind in ("text", "video") if kind in rows.features]
        if not known or {"audio", "image"} & set(rows.features):
            raise VtrError(f"{task_metadata.name}: {', '.join(rows.features)}; this model takes texts and videos alone")
        parts = []
        if "video" in known:
            rows = rows.cast_column("video", datasets.Video(decode=False))
        for first in range(0, len(rows), _BATCH):
            some = rows[first : first + _BATCH]
            found = [self._texts(some["text"])] if "text" in known else []
            found += [self._videos(some["video"], f"{task_metadata.name}, row {first}")] if "video" in known else []
            parts.append(torch.stack(found).sum(0).float().cpu())
        return torch.cat(parts)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self.model.tokenise(texts, self.model.text_limit())).embedding

    def _videos(self, videos: Sequence[Mapping[str, str | bytes | None]], place: str) -> Tensor:
        video, clips = self.model.config.video, []
        for number, stored in enumerate(videos):
            source = stored["bytes"] or stored["path"]
            try:
                clip = read_frames(source or "", lambda n: middle_frames(n, video.num_frames))
            except (DecodeError, OSError) as error:
                raise VtrError(f"{place} + {number}: {error}") from error
            clips.append(eval_frames(clip.frames, video.image_size, antialias=self.model.config.antialias))
        return self.model.encode_video(torch.stack(clips)).embedding

    def similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Cosines (N, M)."""
        return _units(one) @ _units(other).T

    def similarity_pairwise(self, one: Tensor, other: Tensor) -> Tensor:
        """Cosines (N,)."""
        return (_units(one) * _units(other)).sum(-1)


def _units(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(vectors).float(), dim=-1)


def local_task(benchmark: Benchmark) -> AbsTaskRetrieval:
    """A retrieval benchmark of ours, text to video, as a task of MTEB.

    Raises:
        VtrError: Videos are missing, or it is no retrieval benchmark.
    """
    if benchmark.options or benchmark.questions or benchmark.classes:
        raise VtrError(f"{benchmark.name}: {benchmark.protocol.captions}; expected a retrieval benchmark")
    enough(benchmark, [f"missing: {name}" for name in benchmark.lacking], benchmark.videos, False)
    facts = TaskMetadata(
        name=f"Local{benchmark.name.title().replace('_', '')}",
        description=f"{benchmark.name} of vtr, protocol {benchmark.protocol_hash}: local data",
        dataset={"path": "local", "revision": benchmark.protocol_hash},
        type="Any2AnyRetrieval",
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
        main_score="ndcg_at_10",
        category="t2v",
        modalities=["text", "video"],
    )

    class Local(AbsTaskRetrieval):
        metadata = facts

        def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
            """From the benchmark; nothing is fetched."""
            names = [str(i) for i in range(len(benchmark.videos))]
            videos = [{"bytes": None, "path": str(path)} for path in benchmark.videos]
            corpus = datasets.Dataset.from_dict({"id": names, "video": videos}).cast_column("video", datasets.Video())
            asked = {"id": [f"q{i}" for i in range(len(benchmark.captions))], "text": list(benchmark.captions)}
            right = {f"q{i}": {str(v): 1 for v in own} for i, own in enumerate(benchmark.text_truth)}
            split = RetrievalSplitData(
                corpus=corpus, queries=datasets.Dataset.from_dict(asked), relevant_docs=right, top_ranked=None
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local()


@dataclass(frozen=True, kw_only=True)
class MtebSettings:
    """Evaluate a model by MTEB's measures."""

    model: str
    """A run, a model folder, an official checkpoint (`vtr models`), open_clip:MODEL/PRETRAINED."""
    tasks: tuple[str, ...] = ()
    """Tasks of MTEB, text and video: MSRVTTT2V, DiDeMoT2VRetrieval.v2, MSVDT2VRetrieval …"""
    data: tuple[str, ...] = ()
    """Retrieval benchmarks of ours, as local tasks."""
    data_root: Path = Path("data")
    """Where the benchmarks' videos and annotations are."""
    json: bool = False
    """Print the scores as JSON."""


def scores(model: MtebModel, tasks: Sequence[AbsTask]) -> dict[str, dict[str, float]]:
    """Main score and recalls of each task, in percent."""
    found = mteb.evaluate(
        cast("EncoderProtocol", model),
        tasks,
        cache=None,
        overwrite_strategy="always",
        encode_kwargs={"batch_size": _BATCH},
    )
    out = {}
    for result in found.task_results:
        measured = next(iter(result.scores.values()))[0]
        shown = ("main_score", "ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10")
        out[result.task_name] = {name: round(100 * float(measured[name]), 2) for name in shown if name in measured}
    return out


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    settings = parsed(MtebSettings, argv, "python -m vtr.eval.mteb", __doc__ or "")
    if not settings.tasks and not settings.data:
        raise UsageError("nothing to evaluate: --tasks MSRVTTT2V …, or --data demo … for benchmarks of ours")
    try:
        tasks: list[AbsTask] = list(mteb.get_tasks(tasks=list(settings.tasks))) if settings.tasks else []
    except KeyError as error:
        raise UsageError(f"--tasks: MTEB has no such task ({error})") from error
    tasks += [local_task(load_benchmark(name, settings.data_root)) for name in settings.data]
    found = scores(MtebModel(load_encoder(settings.model), Path(settings.model).name), tasks)
    print(_SAYS, file=sys.stderr)
    if settings.json:
        print(json.dumps({"note": _SAYS, "scores": found}))
        return 0
    for task, values in found.items():
        print(f"{task:<28}" + "  ".join(f"{name} {value:.2f}" for name, value in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
