"""The quality model that comes with the package: encoder, regressor, ``model.json`` with their SHA-256, and ``card.md``.

``python -m shamisa.packaged`` makes these files again, see ``make``.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..files import hash_file
from ..networks.models import Encoder
from ..scoring.ridge import Regressor

FOLDER = Path(__file__).parent
ENCODER, REGRESSOR, MODEL, CARD = "encoder.safetensors", "regressor.safetensors", "model.json", "card.md"
AGAIN = "install shamisa again"


def read_model(folder: Path = FOLDER) -> dict:
    """What model.json says, once the files that it names have been compared with their SHA-256.

    Raises RuntimeError for a file that is missing or damaged, naming it, what was expected and what was found.
    """
    try:
        about = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RuntimeError(
            f"the packaged model must have the file {folder / MODEL}, which is missing: {AGAIN}"
        ) from None
    except (OSError, ValueError) as error:
        raise RuntimeError(f"cannot read {folder / MODEL} of the packaged model ({error}): {AGAIN}") from None
    for name, expected in about["sha256"].items():
        try:
            found = hash_file(folder / name)
        except OSError as error:
            found = f"none ({error.strerror})"
        if found != expected:
            raise RuntimeError(
                f"{folder / name} of the packaged model must have the SHA-256 {expected}, got {found}: {AGAIN}"
            )
    return about


def load_packaged(folder: Path = FOLDER) -> tuple[Encoder, Regressor]:
    """The encoder, in eval mode, and its regressor; RuntimeError as ``read_model``."""
    about = read_model(folder)
    encoder = Encoder(about["encoder"], str(folder / ENCODER), about["features"])
    encoder.source = f"packaged with shamisa, {about['source']}"
    return encoder.eval(), Regressor.load(folder / REGRESSOR)
