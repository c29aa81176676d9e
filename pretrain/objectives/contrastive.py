"""VTC: videos and captions of the global batch told apart, both ways."""

from __future__ import annotations

from torch import Tensor

from vtr.encoders.losses import contrastive_loss
from vtr.pretrain.objectives.base import EmbeddingObjective, Embeddings


class Contrastive(EmbeddingObjective):
    """See `contrastive_loss`."""

    uses_temperature = True
    weakened = True

    def kinds(self) -> tuple[str, ...]:
        """The sibling captions, where the stage takes them for negatives."""
        return ("sibling",) if self.stage.sibling_negatives else ()

    def loss(self, batch: Embeddings) -> Tensor:
        """Of the global batch."""
        return contrastive_loss(
            batch.video,
            batch.texts["caption"],
            batch.ids,
            batch.temperature,
            siblings=batch.texts["sibling"] if self.stage.sibling_negatives else None,
            sibling_mask=batch.has_sibling,
            reversal=batch.reversal,
        )
