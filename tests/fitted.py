"""A regressor for an untrained small encoder, for the tests of everything that scores."""

from __future__ import annotations

from pathlib import Path

import torch

from shamisa.scoring.features import Extractor
from shamisa.scoring.inputs import open_encoder
from shamisa.scoring.ridge import Regressor

SMALL = "untrained:shamisa/small"
CHECKPOINT = "/home/somebody/run"  # which the probe was told, and nobody else shall know


def fitted(folder: Path, crop: int = 24, lower_better: bool = False) -> Path:
    """Writes regressor.safetensors: scale 1..5; scores of photographs spread over the middle of 0..1."""
    encoder = open_encoder(SMALL)
    coef = torch.randn(2 * encoder.feature_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    about = {
        "encoder": encoder.name,
        "encoder_hash": Extractor(encoder).hash,
        "checkpoint": CHECKPOINT,
        "crop": crop,
        "low": 1,
        "high": 5,
        "lower_better": lower_better,
    }
    path = folder / "regressor.safetensors"
    Regressor(coef, torch.tensor(3.0, dtype=torch.float64), about).save(path)
    return path
