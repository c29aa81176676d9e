"""What all models share: features, input statistics, strict loading. B batch, F pooled vectors, L tokens, E joint width."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vtr.errors import VtrError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoFeatures(NamedTuple):
    """A batch of encoded videos."""

    embedding: Tensor  # (B, E) fp32: mean over F of unit vectors, so that dot(text, embedding) is the mean cosine
    frame_embeddings: Tensor  # (B, F, E) unit vectors
    tokens: Tensor  # (B, Lv, D) visual tokens for the cross-modal decoder
    pooled: Tensor  # (B, F, D)
    aligned: Tensor | None  # (K, B, 1 + Lv, C)


class TextFeatures(NamedTuple):
    """A batch of encoded texts."""

    embedding: Tensor  # (B, E) unit vectors
    tokens: Tensor  # (B, L, H) states after the text layers
    mask: Tensor  # (B, L)
    ids: Tensor  # (B, L)


def combined_scores(similarity: Tensor, match_logits: Tensor, temperature: float, weight: float = 1.0) -> Tensor:
    """What search ranks by: the contrastive logit plus the matching head's log-odds.

    Args:
        similarity: (…) cosine similarities.
        match_logits: (…, 2) logits of the matching head.
        temperature: The contrastive temperature.
        weight: Of the log-odds.
    """
    odds = match_logits[..., 1].float() - match_logits[..., 0].float()
    return similarity.float() / temperature + weight * odds


def load_strictly(module: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load `state` or raise one line that names the first difference and the number of them."""
    own = module.state_dict()
    wrong = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    wrong += [f"{k} is missing" for k in own if k not in state] + [f"{k} is unexpected" for k in state if k not in own]
    if wrong:
        raise VtrError(
            f"{origin}: {wrong[0]}" + (f" (and {len(wrong) - 1} more differences)" if len(wrong) > 1 else "")
        )
    module.load_state_dict(state)
