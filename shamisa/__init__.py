"""SHAMISA: self-supervised no-reference image quality assessment, with native kernels.

Importing prints, downloads, compiles and writes nothing, and needs no GPU.
"""

from . import functional
from ._version import __version__
from .distortions import DISTORTIONS, Distortion, distort
from .engine import DistortionEngine, Plan
from .ops import backends
from .relations import RelationLoss

__all__ = [
    "DISTORTIONS",
    "Distortion",
    "DistortionEngine",
    "Plan",
    "RelationLoss",
    "__version__",
    "backends",
    "distort",
    "functional",
]
