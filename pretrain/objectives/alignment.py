"""UTA: the encoder's unmasked tokens aligned with the teacher's (paper 3.4)."""

from __future__ import annotations

from torch import Tensor

from vtr.encoders.distill import alignment_loss
from vtr.pretrain.objectives.base import Encoded, Piece, PieceObjective


class Alignment(PieceObjective):
    """See `alignment_loss`."""

    needs_text = False
    needs_teacher = True
    parts = (".clip_decoder.",)

    def loss(self, piece: Piece, encoded: Encoded) -> Tensor | None:
        """2 - 2 cos, the mean over layers, rows and visible tokens."""
        if piece.target is None or encoded.aligned is None:
            return None
        return alignment_loss(encoded.aligned, piece.target)
