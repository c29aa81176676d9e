"""Re-ranking by the cross-modal decoder, batched across queries: each video is read and projected once for all texts
that ask for it, in whichever direction.

V videos, Q texts, L text tokens, H width of the text states.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtr.eval.features import Features, WorkFolder, _own, autocast, video_batches, video_tokens
from vtr.models.base import VideoTextEncoder
from vtr.ranks import Ranks

_CHUNK_TOKENS = 4096  # text tokens scored at once


def wanted_pairs(similarity: Tensor, top: int) -> Tensor:
    """(Q, V) bool: the pairs among the `top` of a text or of a video."""
    wanted = torch.zeros(similarity.shape, dtype=torch.bool)
    for matrix, mask in ((similarity, wanted), (similarity.T, wanted.T)):
        best = matrix.topk(min(top, matrix.shape[1]), dim=1).indices
        mask.scatter_(1, best, True)
    return wanted


@torch.inference_mode()
def match_video(model: VideoTextEncoder, tokens: Tensor, states: list[Tensor]) -> Tensor:
    """Match logits (n, 2) of one video (Lv, D) with texts of states (L_i, H), in their order."""
    memory = model.visual_memory(tokens[None].to(model.device))
    order = sorted(range(len(states)), key=lambda i: len(states[i]))  # equal lengths together: little padding
    out = torch.empty(len(states), 2)
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and len(states[order[last]]) * (last + 1 - first) <= _CHUNK_TOKENS:
            last += 1
        chosen = order[first:last]
        padded = pad_sequence([states[i] for i in chosen], batch_first=True)
        lengths = torch.tensor([len(states[i]) for i in chosen])
        mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
        out[chosen] = model.match(padded.to(model.device), mask.to(model.device), memory).float().cpu()
        first = last
    return out


def match_pairs(
    model: VideoTextEncoder, features: Features, wanted: Tensor, work: WorkFolder, team: Ranks, *, bf16: bool = False
) -> Tensor:
    """Match logits (Q, V, 2) of the wanted pairs, 0 elsewhere; each rank scores the videos of its batches.

    Args:
        wanted: (Q, V) bool.
    """
    digest = hashlib.sha256(wanted.numpy().tobytes()).hexdigest()[:12]
    count = video_batches(len(features.video))

    def score() -> None:
        for number in _own(count, team, "re-rank"):
            name = f"match-{digest}-{number:05d}"
            features_of = work.notes(f"video-{number:05d}")
            if work.notes(name) == features_of:
                continue
            videos, tokens = video_tokens(work, number)
            texts, columns, logits = [], [], []
            for video, video_states in zip(videos, tokens):
                rows = wanted[:, video].nonzero()[:, 0]
                if not len(rows):
                    continue
                with autocast(model, bf16):
                    logits.append(match_video(model, video_states, work.text_states(rows.tolist())))
                texts.append(rows)
                columns.append(torch.full_like(rows, video))
            empty = torch.zeros(0, dtype=torch.long)
            parts = {
                "texts": torch.cat([*texts, empty]),
                "videos": torch.cat([*columns, empty]),
                "logits": torch.cat([*logits, torch.zeros(0, 2)]),
            }
            work.write(name, parts, features_of or {})  # scores of other files are not these

    team.together(score)

    def collect() -> Tensor:
        out = torch.zeros(*wanted.shape, 2)
        for number in range(count):
            part = work.read(f"match-{digest}-{number:05d}")
            out[part["texts"], part["videos"]] = part["logits"]
        return out

    return team.together(collect)
