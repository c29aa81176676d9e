"""The text warm-up of the demo: captions that differ in direction alone told apart before any video is seen."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from tqdm import tqdm

from vtr.data.demo import warmup_triples
from vtr.models.video_text import VideoTextModel
from vtr.pretrain.objectives.text_pair import text_pair_loss
from vtr.pretrain.optim import AdamW
from vtr.pretrain.recipes import Recipe


def warm_up(model: VideoTextModel, recipe: Recipe) -> None:
    """The text warm-up on the demo's grammar (no-op where the recipe asks for none, as outside the demo)."""
    settings = recipe.warmup
    if settings.steps == 0:
        return
    triples = warmup_triples(settings.steps * settings.batch_size, seed=recipe.seed)
    cosine = warm_up_text(
        model, triples, batch_size=settings.batch_size, lr=settings.lr, temperature=settings.temperature
    )
    print(
        f"text warm-up: cosine between direction-swapped captions {cosine:.2f} (below 0.8 direction is learned)",
        file=sys.stderr,
    )


def warm_up_text(
    model: VideoTextModel, triples: list[tuple[str, str, str]], *, batch_size: int, lr: float, temperature: float
) -> float:
    """Teach a text encoder from scratch that captions which differ in direction alone differ.

    Args:
        model: Its text layers and text projection are trained.
        triples: (caption, paraphrase, direction-swapped caption or ""); used once, in order.

    Returns:
        The mean cosine between caption and swapped caption in the last batch; below 0.8 direction can be learned.
    """
    parameters = [p for m in (model.text_encoder, model.text_proj) for p in m.parameters() if p.requires_grad]
    optimizer = AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    cosine = 1.0
    starts = range(0, len(triples) - batch_size + 1, batch_size)
    for start in tqdm(starts, desc="text warm-up", file=sys.stderr, unit="step"):
        part = triples[start : start + batch_size]
        texts = [t[i] for i in range(3) for t in part]
        a, p, n = model.encode_text(texts).embedding.chunk(3)
        has = torch.tensor([bool(t[2]) for t in part], device=a.device)
        loss = text_pair_loss(a, p, n, has, temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if bool(has.any()):
            cosine = F.cosine_similarity(a[has], n[has], dim=-1).mean().item()
    return cosine
