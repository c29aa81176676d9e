"""Retrieval on held-out videos during training: embeddings alone, shared among the ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from vtr.data.cleaning import clean_caption
from vtr.data.decode import DecodeError, read_frames
from vtr.data.sampling import middle_frames
from vtr.data.transforms import eval_frames
from vtr.errors import VtrError
from vtr.eval.benchmarks import load_benchmark
from vtr.eval.metrics import retrieval_metrics
from vtr.models.video_text import VideoTextModel
from vtr.ranks import Ranks


class Validation:
    """Encodes a benchmark's videos and captions and scores them; every rank encodes a share and gets all numbers.

    Args:
        model: The model under training.
        name: Benchmark name or annotation file (`vtr.eval.benchmarks.load_benchmark`).
        data_root: Where its files lie.
        most: Videos at most, evenly spread.
        ranks: Of the run.

    Raises:
        VtrError: A video cannot be read, or too few are there or have a caption.
    """

    def __init__(self, model: VideoTextModel, name: str, data_root: Path, most: int, ranks: Ranks) -> None:
        self.model, self.ranks, self.name = model, ranks, name
        found = load_benchmark(name, data_root)
        if not found.videos:
            raise VtrError(f"validation {name}: none of its {found.total} videos was found under {data_root}")
        told = [i for i in range(len(found.videos)) if found.video_truth[i]]
        if ranks.main and found.missing:
            print(f"validation {name}: {len(found.missing)} of {found.total} videos are missing", file=sys.stderr)
        if ranks.main and len(told) < len(found.videos):
            print(f"validation {name}: {len(found.videos) - len(told)} videos have no caption", file=sys.stderr)
        if len(told) < 2:
            raise VtrError(f"validation {name}: {len(told)} of its {found.total} videos have a caption; it needs two")
        count = min(most, len(told))
        chosen = [told[round(i * (len(told) - 1) / max(1, count - 1))] for i in range(count)]
        self.videos = [found.videos[i] for i in chosen]
        self.captions = [clean_caption(found.captions[found.video_truth[i][0]]) for i in chosen]
        # Read now: a broken video is said before the first step. Small: 1,000 clips of 8 frames are 1.2 GB over all ranks.
        self._clips = [self._clip(i) for i in range(ranks.rank, count, ranks.size)]

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """R@1, 5, 10 (percent) both ways, the same on all ranks."""
        model, rank, world = self.model, self.ranks.rank, self.ranks.size
        own = range(rank, len(self.videos), world)
        model.eval()
        video, text = [], []
        for start in range(0, -(-len(self.videos) // world), 32):
            # Every rank makes as many passes: with FSDP the ranks encode together.
            part, captions = self._clips[start : start + 32], [self.captions[i] for i in own[start : start + 32]]
            clips = torch.stack(part) if part else self._blank()[None]
            with self.ranks.autocast():
                video.append(model.encode_video(clips).embedding.float().cpu()[: len(part)])
                text.append(model.encode_text(captions or [""]).embedding.float().cpu()[: len(part)])
        mine = (list(own), torch.cat(video) if video else None, torch.cat(text) if text else None)
        model.train()
        parts = self.ranks.gathered(mine)
        order = [i for places, _, _ in parts for i in places]
        back = torch.tensor(order).argsort()
        videos = torch.cat([v for _, v, _ in parts if v is not None])[back]
        texts = torch.cat([t for _, _, t in parts if t is not None])[back]
        similarity = (texts @ videos.T).float().numpy()
        result = {}
        for way, matrix in (("t2v", similarity), ("v2t", similarity.T)):
            found = retrieval_metrics(matrix)
            result.update({f"{way}_r{k}": round(float(getattr(found, f"r{k}")), 2) for k in (1, 5, 10)})
        return result

    def _blank(self) -> Tensor:
        video = self.model.config.video
        return torch.zeros(video.num_frames, 3, video.image_size, video.image_size, dtype=torch.uint8)

    def _clip(self, index: int) -> Tensor:
        video = self.model.config.video
        try:
            clip = read_frames(self.videos[index], lambda n: middle_frames(n, video.num_frames))
        except (DecodeError, OSError) as error:
            raise VtrError(f"validation {self.name}: {error}") from error
        return eval_frames(clip.frames, video.image_size, antialias=self.model.config.antialias)
