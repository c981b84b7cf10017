"""SHAMISA: self-supervised no-reference image quality assessment, with native kernels.

Importing prints, downloads, compiles and writes nothing, and needs no GPU.
"""

from ._compiled import installed_folder as _installed_folder

# A checkout in the working directory hides the installed package: let it use the libraries that were compiled there.
__path__ += _installed_folder(__path__)

from . import functional
from ._version import __version__
from .distortions import DISTORTIONS, Distortion
from .engine import distort
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
    "load_scorer",
]


def __getattr__(name: str):
    """What needs more than the kernels is imported when it is asked for."""
    if name == "load_scorer":
        from .scorer import load_scorer

        return load_scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
