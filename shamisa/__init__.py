"""SHAMISA: self-supervised no-reference image quality assessment, with native kernels.

Importing prints, downloads, compiles and writes nothing, and needs no GPU.
"""

from ._compiled import installed_folder

# A checkout in the working directory hides the installed package: let it use the libraries that were compiled there.
__path__ += installed_folder(__path__)

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
]
