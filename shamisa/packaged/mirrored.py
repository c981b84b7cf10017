"""Mirror images: nobody judges a photograph otherwise when it is mirrored, but an encoder trained on photographs sees a
difference. The regressor learns to look past it from pairs of both, as differences of features whose gap in quality is 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..networks.encoders import normalization


class Mirrored(nn.Module):
    """An encoder that sees the mirror images of its crops; what it gives belongs to the mirrored photograph, but for the
    order of the crops."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        numbers = normalization(encoder)
        self.mean, self.std = numbers["mean"], numbers["std"]

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, crop, crop] -> [N, F]
        return self.encoder(x.flip(-1))
