"""What runs a frozen encoder on a CPU: torch itself, or a compiler of whole networks, two to four times as fast.

The compiled program computes in float32 as torch does, with its own order of sums: scores differ by rounding only.
``python -m benchmarks.scoring`` compares them. Compiling takes seconds, which some dozen photographs earn back.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import checks

RUNTIMES = ("torch", "openvino")
EXTRA = "shamisa[openvino]"
LIMIT = 1e-4  # of features: the largest difference from torch's, as a share of the largest feature


def check_runtime(runtime: str, device: torch.device) -> str:
    """The runtime, or ValueError for another name or one that does not run on the device, or RuntimeError where its package
    is not installed."""
    checks.choice("runtime", runtime, RUNTIMES)
    if runtime == "torch":
        return runtime
    if device.type != "cpu":
        raise ValueError(f"runtime {runtime} runs on a CPU, got device {device}: choose torch there")
    checks.need("openvino", "runtime openvino needs its package", EXTRA)
    return runtime


def compile_encoder(encoder: nn.Module, crop: int, runtime: str) -> Callable[[Tensor], Tensor]:
    """A function like the encoder, normalised images [N, 3, crop, crop] float32 on the CPU -> h [N, F], for any N.

    It uses as many threads as torch does now. ``encoder`` itself stays as it is.

    Raises:
        RuntimeError: the encoder cannot be compiled, or the program's features are not torch's (``LIMIT``).
    """
    if runtime == "torch":
        return encoder
    import openvino

    # what is traced must not be what is compared: a constant in place of a computation would pass
    sample, probe = (torch.rand(n, 3, crop, crop, generator=torch.Generator().manual_seed(n)) * 4 - 2 for n in (2, 3))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracing, about constants
            model = openvino.convert_model(copy.deepcopy(encoder).eval(), example_input=sample)
        model.reshape([-1, 3, crop, crop])
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        program = openvino.Core().compile_model(model, "CPU", settings)
    except Exception as error:  # a converter raises anything
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        raise RuntimeError(f"the encoder cannot be compiled by {runtime}: {reason}") from None

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(program(x.contiguous().numpy())[0].copy())

    with torch.no_grad():
        wanted, found = encoder(probe).float(), run(probe)
    if found.shape != wanted.shape:
        raise RuntimeError(f"features by {runtime} must be {list(wanted.shape)}, got {list(found.shape)}")
    off = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)
    if not bool(off <= LIMIT):
        raise RuntimeError(f"features by {runtime} must be torch's within {LIMIT:g} of the largest, got {off:.1e}")
    return run
