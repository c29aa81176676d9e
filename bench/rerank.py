"""Re-ranking measured: batched across queries against query by query, and the memory that a whole benchmark takes.

python -m bench.rerank                                # 1,000 texts x 1,000 videos, k = 128: both ways and their times
python -m bench.rerank --texts 40 --videos 40 --k 8   # a moment, to try it
python -m bench.rerank --memory                       # 4,917 videos of 8 x 196 tokens of width 576: memory and disk

The model is small and untrained and the tokens are random: they cost what trained ones cost.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.command import parsed
from vtr.errors import reports_errors

_CHUNK = 32  # pairs scored at once query by query, as in the official code
_VIDEOS, _TEXTS, _TOP = 4917, 4917, 128  # ActivityNet


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Time re-ranking, or measure its memory."""

    texts: int = 1000
    videos: int = 1000
    k: int = 128
    """Candidates of each query."""
    tokens: int = 784
    """Visual tokens of a video (16 frames of 7 x 7)."""
    words: int = 12
    """Tokens of a text."""
    width: int = 64
    """Of the visual tokens and of the text side."""
    threads: int = 2
    """Of torch."""
    memory: bool = False
    """Measure memory on as many videos and tokens as ActivityNet has, with few candidates."""
    work: Path | None = None
    """Folder for the tokens on disk; default: a temporary one."""


def _model(width: int, visual: int, words: int) -> Any:
    from vtr.encoders.bert import BertConfig
    from vtr.encoders.videomamba import VideoMambaConfig
    from vtr.models.video_text import ModelConfig, VideoTextModel

    text = BertConfig(
        vocab_size=100, hidden=width, layers=3, fusion_layer=1, heads=max(1, width // 64), intermediate=4 * width,
        max_positions=max(32, words), vision_width=visual,
    )  # fmt: skip
    video = VideoMambaConfig(image_size=16, dim=visual, depth=1)
    return VideoTextModel(ModelConfig(video=video, text=text, embed_dim=32), None).eval()


def _write(work: Any, settings: BenchSettings, visual: int, dtype: torch.dtype) -> Any:
    """Random features in a work folder, as `encode_all` leaves them."""
    from tqdm import tqdm

    from vtr.eval.features import _TEXT_BATCH, _VIDEO_BATCH, Features

    generator = torch.Generator().manual_seed(0)
    unit = [
        torch.nn.functional.normalize(torch.randn(n, 32, generator=generator), dim=-1)
        for n in (settings.videos, settings.texts)
    ]
    one = torch.randn(_VIDEO_BATCH, settings.tokens, visual, generator=generator).to(dtype)
    for number, start in enumerate(
        tqdm(range(0, settings.videos, _VIDEO_BATCH), "tokens", file=sys.stderr, leave=False)
    ):
        size = min(_VIDEO_BATCH, settings.videos - start)
        shifted = one[:size].roll(number, 1)  # other tokens in every batch, quickly
        work.write(f"video-{number:05d}", {"embedding": unit[0][start : start + size], "tokens": shifted},
                   {"files": [[str(i), 0, 0] for i in range(size)], "broken": {}})  # fmt: skip
    for number, start in enumerate(range(0, settings.texts, _TEXT_BATCH)):
        size = min(_TEXT_BATCH, settings.texts - start)
        states = torch.randn(size * settings.words, settings.width, generator=generator).to(dtype)
        ends = torch.arange(1, size + 1) * settings.words
        work.write(
            f"text-{number:05d}", {"embedding": unit[1][start : start + size], "states": states, "ends": ends}, {}
        )
    lengths = torch.full((settings.texts,), settings.words)
    return Features(video=unit[0], text=unit[1], lengths=lengths, broken={}, cut=0)


@torch.inference_mode()
def _one_by_one(model: Any, work: Any, features: Any, top: int) -> Tensor:
    """Match logits of each query's candidates, a query after the other, in both directions; all tokens in memory."""
    from vtr.eval.features import video_batches, video_tokens

    tokens = torch.cat([video_tokens(work, n)[1] for n in range(video_batches(len(features.video)))])
    states = torch.stack(work.text_states(range(len(features.text))))
    mask = torch.ones(1, states.shape[1], dtype=torch.long)
    similarity = features.text @ features.video.T
    out = torch.zeros(*similarity.shape, 2)
    for row, best in enumerate(similarity.topk(top, 1).indices):
        for part in best.split(_CHUNK):
            n = len(part)
            out[row, part] = model.match(states[row].expand(n, -1, -1), mask.expand(n, -1), tokens[part])
    for column, best in enumerate(similarity.T.topk(top, 1).indices):
        for part in best.split(_CHUNK):
            n = len(part)
            # Copied for each text, as the official code does; our fused path would notice one video for all.
            seen = tokens[column].expand(n, -1, -1).contiguous()
            out[part, column] = model.match(states[part], mask.expand(n, -1), seen)
    return out


def speed(settings: BenchSettings) -> int:
    """Both ways on the same features: their times and the largest difference."""
    from vtr.eval.features import WorkFolder
    from vtr.eval.rerank import match_pairs, wanted_pairs
    from vtr.ranks import Ranks

    torch.manual_seed(0)
    model = _model(settings.width, settings.width, settings.words)
    top = min(settings.k, settings.videos, settings.texts)
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        work = WorkFolder(Path(folder))
        features = _write(work, settings, settings.width, torch.float32)
        start = time.perf_counter()
        wanted = wanted_pairs(features.text @ features.video.T, top)
        batched = match_pairs(model, features, wanted, work, Ranks())
        ours = time.perf_counter() - start
        start = time.perf_counter()
        loop = _one_by_one(model, work, features, top)
        theirs = time.perf_counter() - start
    largest = float((batched - loop)[wanted].abs().max())
    print(
        f"{settings.texts} texts x {settings.videos} videos, k = {top}, {int(wanted.sum())} pairs, {settings.threads} threads"
    )
    print(f"query by query  {theirs:8.1f} s   (all tokens in memory)")
    print(f"batched         {ours:8.1f} s   (tokens read from disk)   {theirs / ours:.1f} x as fast")
    print(f"largest difference of a match logit {largest:.1e}")
    return 0 if largest < 1e-4 else 1


def memory(settings: BenchSettings) -> int:
    """Match scores of a benchmark of ActivityNet's size: what is on disk, and the memory it took."""
    from vtr.eval.features import WorkFolder
    from vtr.eval.rerank import match_pairs, wanted_pairs
    from vtr.eval.zero_shot import peak_memory
    from vtr.ranks import Ranks

    torch.manual_seed(0)
    visual = 576
    model = _model(64, visual, 150)
    sizes = BenchSettings(texts=_TEXTS, videos=_VIDEOS, tokens=8 * 196, words=60, width=64, k=2)
    before = peak_memory()
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        work = WorkFolder(Path(folder))
        work.need_space(sizes.videos * sizes.tokens * visual * 2)
        features = _write(work, sizes, visual, torch.bfloat16)
        disk = sum(p.stat().st_size for p in Path(folder).iterdir()) / 2**30
        written = peak_memory()
        wanted = wanted_pairs(features.text @ features.video.T, sizes.k)
        start = time.perf_counter()
        match_pairs(model, features, wanted, work, Ranks(), bf16=True)
        seconds = time.perf_counter() - start
    print(
        f"{sizes.videos} videos of {sizes.tokens} x {visual} bf16 tokens, {sizes.texts} texts, {int(wanted.sum())} pairs"
    )
    print(f"on disk {disk:.1f} GiB; memory at the start {before:.2f} GiB, with the features written {written:.2f} GiB")
    print(f"peak memory of the whole re-ranking {peak_memory():.2f} GiB ({seconds:.0f} s)")
    return 0


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m bench.rerank`."""
    settings = parsed(BenchSettings, __doc__, argv)
    torch.set_num_threads(settings.threads)
    return memory(settings) if settings.memory else speed(settings)


if __name__ == "__main__":
    sys.exit(main())
