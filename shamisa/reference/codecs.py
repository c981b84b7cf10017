"""The two codecs as distortions, on 8-bit samples: trunc(255 x) there, / 255 back."""

from __future__ import annotations

from torch import Tensor

from . import color


def jpeg(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Quality v, 4:2:0; see ``jpeg.py``."""
    from .jpeg import jpeg as codec

    return color.divide(codec(color.to_bytes(x), value.long()).float(), 255)


def jpeg2000(x: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Compression ratio v; see ``jpeg2000.py``."""
    from .jpeg2000 import jpeg2000 as codec

    return color.divide(codec(color.to_bytes(x), value).float(), 255)
