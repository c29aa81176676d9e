"""Zero-shot retrieval: features once, embedding similarity, re-ranking by the cross-modal decoder, direction pairs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtr.data.decode import DecodeError, read_frames
from vtr.data.sampling import middle_frames
from vtr.data.text import clean_caption
from vtr.data.transforms import eval_frames
from vtr.eval.metrics import retrieval_metrics
from vtr.model import combined_scores


class Features:
    """A gallery of videos and a list of texts, encoded."""

    def __init__(self, video: Tensor, tokens: Tensor, text: Tensor, states: Tensor, mask: Tensor) -> None:
        self.video, self.tokens = video, tokens  # (V, E), (V, Lv, D)
        self.text, self.states, self.mask = text, states, mask  # (Q, E), (Q, L, H), (Q, L)


def load_clip(path: str | Path, model: Any, end: float | None = None) -> Tensor:
    """Middle frames of a video, resized to the model's input: uint8 (T, 3, S, S)."""
    count = model.config.video.num_frames
    clip = read_frames(path, lambda n: middle_frames(n, count), end=end)
    return eval_frames(clip.frames, model.config.video.image_size, antialias=model.config.antialias)


def find_bad(
    paths: Sequence[str | Path], model: Any, end: float | None = None
) -> tuple[list[Tensor | None], list[str]]:
    """Decode every path; the second list names those that can't be."""
    from tqdm import tqdm

    clips: list[Tensor | None] = []
    bad: list[str] = []
    for path in tqdm(paths, desc="decode", file=sys.stderr, unit="video", leave=False):
        try:
            clips.append(load_clip(path, model, end))
        except (DecodeError, OSError) as error:
            clips.append(None)
            bad.append(str(error))
    return clips, bad


@torch.inference_mode()
def encode(
    model: Any, clips: Sequence[Tensor], captions: Sequence[str], max_tokens: int = 32, batch: int = 32
) -> Features:
    """Encode clips and captions."""
    from tqdm import tqdm

    model.eval()
    starts = tqdm(range(0, len(clips), batch), desc="encode", file=sys.stderr, unit="batch", leave=False)
    videos = [model.encode_video(torch.stack(list(clips[i : i + batch]))) for i in starts]
    tokens = model.tokenizer([clean_caption(c) for c in captions], max_tokens, pad_to=None)
    texts = [
        model.encode_text(type(tokens)(ids=tokens.ids[i : i + 256], mask=tokens.mask[i : i + 256]))
        for i in range(0, len(captions), 256)
    ]
    return Features(
        torch.cat([v.embedding for v in videos]),
        torch.cat([v.tokens for v in videos]),
        torch.cat([t.embedding for t in texts]),
        torch.cat([t.tokens for t in texts]),
        torch.cat([t.mask for t in texts]),
    )


@torch.inference_mode()
def rerank(
    model: Any, features: Features, similarity: Tensor, top: int, *, video_queries: bool, batch: int = 128
) -> tuple[Tensor, Tensor]:
    """Re-score each query's `top` candidates with the matching head.

    Args:
        similarity: (Q, G) embedding similarities; rows are texts, or videos with `video_queries`.

    Returns:
        (Q, G) match logits and combined scores. Candidates below the top keep their order there: far below in the
        combined scores; out of the running (-inf) by the match logit alone.
    """
    from tqdm import tqdm

    queries, gallery = similarity.shape
    top = min(top, gallery)
    chosen = similarity.topk(top, dim=1).indices
    rows = torch.arange(queries, device=chosen.device).repeat_interleave(top)
    columns = chosen.flatten()
    texts, videos = (columns, rows) if video_queries else (rows, columns)
    logits = []
    for i in tqdm(range(0, len(rows), batch), desc="re-rank", file=sys.stderr, unit="batch", leave=False):
        t, v = texts[i : i + batch], videos[i : i + batch]
        logits.append(model.match(features.states[t], features.mask[t], features.tokens[v]).float())
    pairs = torch.cat(logits)
    matched = torch.full_like(similarity, float("-inf"))
    matched[rows, columns] = pairs[:, 1]
    temperature = float(model.temp)
    both = similarity / temperature - 1e6
    both[rows, columns] = combined_scores(similarity[rows, columns], pairs, temperature)
    return matched, both


def evaluate_retrieval(
    model: Any, features: Features, text_truth: Sequence[Sequence[int]], video_truth: Sequence[Sequence[int]], top: int
) -> dict[str, Any]:
    """Text-to-video and video-to-text in three rows: embedding, reranked (match alone), combined."""
    similarity = features.text @ features.video.T
    result: dict[str, Any] = {}
    for name, matrix, truth, by_video in (
        ("t2v", similarity, text_truth, False),
        ("v2t", similarity.T.contiguous(), video_truth, True),
    ):
        matched, both = rerank(model, features, matrix, top, video_queries=by_video)
        result[name] = {
            row: retrieval_metrics(scores.cpu().numpy(), truth).to_dict()
            for row, scores in (("embedding", matrix), ("reranked", matched), ("combined", both))
        }
    return result


@torch.inference_mode()
def direction_pairs(model: Any, pairs: Sequence[dict[str, str]], folder: Path) -> dict[str, float]:
    """Share of right decisions between a clip and its sibling, in percent, by kind and over all (chance 50).

    Four decisions a pair: each caption chooses between the two clips, each clip between the two captions.
    """
    clips = [load_clip(folder / p[k], model) for p in pairs for k in ("video_a", "video_b")]
    captions = [p[k] for p in pairs for k in ("caption_a", "caption_b")]
    f = encode(model, clips, captions)
    text, video = f.text.view(-1, 2, f.text.shape[1]), f.video.view(-1, 2, f.video.shape[1])
    scores = torch.einsum("pte,pve->ptv", text, video)  # (pairs, caption, clip)
    a, b, c, d = scores[:, 0, 0], scores[:, 0, 1], scores[:, 1, 0], scores[:, 1, 1]
    # A tie is half a right decision, so that a model blind to direction gets 50.
    right = torch.stack(
        [(x > y).float() + 0.5 * (x == y).float() for x, y in ((a, b), (d, c), (a, c), (d, b))], 1
    ).mean(1)
    right_np = 100 * right.cpu().numpy()
    kinds = np.array([p["kind"] for p in pairs])
    result = {"all": round(float(right_np.mean()), 2)}
    for kind in dict.fromkeys(kinds.tolist()):
        result[kind] = round(float(right_np[kinds == kind].mean()), 2)
    return result
