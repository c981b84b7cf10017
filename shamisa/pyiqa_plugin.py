"""Make a metric of pyiqa, where that is installed: it is no dependency (its licence is non-commercial).

shamisa.pyiqa_plugin.register()  # the packaged model; or register("runs/paper", "regressor.safetensors")
pyiqa.create_metric("shamisa")(images)  # [N, 3, H, W] in 0..1 -> [N, 1]; or the path of a file
"""

from __future__ import annotations

import os

from torch import Tensor, nn

from .checks import MissingPackage
from .scorer import load_quality_net


class SHAMISA(nn.Module):
    """A pyiqa architecture: images [N, 3, H, W] in 0..1 -> quality [N, 1] in 0..1, higher is better; no gradient."""

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        regressor: str | os.PathLike | None = None,
        batch: int | None = None,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        self.net = load_quality_net(checkpoint, regressor, batch=batch, autocast=autocast)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.expand(-1, 3, -1, -1).clamp(0, 1)).unsqueeze(1)  # pyiqa lets grey images through


def register(
    checkpoint: str | os.PathLike | None = None, regressor: str | os.PathLike | None = None, name: str = "shamisa"
) -> None:
    """Add a metric ``name`` to pyiqa, read from these files (or the package) when it is created. Several names may be
    registered.

    Raises:
        MissingPackage: pyiqa is not installed, or is of a version without the two registries.
        ValueError: pyiqa has another metric of that name.
    """
    try:
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
        from pyiqa.utils.registry import ARCH_REGISTRY
    except ImportError as error:
        raise MissingPackage(f"pyiqa_plugin needs pyiqa: pip install pyiqa ({error})") from None
    kind = SHAMISA.__name__
    if name in DEFAULT_CONFIGS and DEFAULT_CONFIGS[name]["metric_opts"]["type"] != kind:
        raise ValueError(f"name must be new to pyiqa, got {name!r}")
    if kind not in ARCH_REGISTRY:
        ARCH_REGISTRY.register(SHAMISA)
    files = {"checkpoint": checkpoint, "regressor": regressor}
    DEFAULT_CONFIGS[name] = {
        "metric_opts": {"type": kind} | {k: os.fspath(path) for k, path in files.items() if path is not None},
        "metric_mode": "NR",
        "lower_better": False,
        "score_range": "0, 1",
    }
