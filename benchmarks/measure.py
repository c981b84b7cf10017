"""What every benchmark needs: devices, clocks, ceilings of the machine, errors, peak memory, the machine's name."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from shamisa import ops
from shamisa.measuring import machine as hardware
from shamisa.measuring.profiling import all_threads, threads, time_rounds, timer  # noqa: F401
from shamisa.ops import Reference, backend_context  # noqa: F401  (for the others here)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def compiled_reference(function: Callable, *inputs: Tensor) -> Callable:
    """torch.compile of a function of tensors in which the package's ops are replaced by their references, backwards too.

    The replacing happens while the function is traced on these inputs, so the result is for their shapes. Gradients that the
    function takes itself are part of the trace; the result has none.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    table = {getattr(torch.ops.shamisa, name).default: reference for name, reference in ops.TABLE.items()}
    traced = torch.compile(make_fx(function, decomposition_table=table)(*inputs), dynamic=False)
    return torch.no_grad()(lambda *tensors: traced(*tensors))


# ---- ceilings --------------------------------------------------------------------------------------------------------
def seconds_of(function: Callable[[], object], device: str, rounds: int = 7) -> float:
    """Median seconds of a call, after one to warm up."""
    return statistics.median(time_rounds(function, device, least=rounds, most=rounds))


def copy_rate(device: str, megabytes: int) -> float:
    """Bytes read plus bytes written per second by a copy between two buffers far larger than the caches."""
    source = torch.rand(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def matmul_rate(device: str, dtype: torch.dtype, n: int) -> float:
    """Floating-point operations per second of an n x n x n matrix product of random numbers."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds_of(lambda: a @ b, device)


def measure_ceilings(device: str, small: bool = False) -> dict[str, float]:
    """Copy bandwidth and matrix rates of a device; on the CPU with the threads that torch has now."""
    if device == "cuda":
        rates = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        found = {"copy_gb_s": copy_rate(device, 2048) / 1e9}
        return found | {f"matmul_{k}_gflop_s": matmul_rate(device, t, 8192) / 1e9 for k, t in rates.items()}
    n, megabytes = (128, 1) if small else (1024, 256)
    return {
        "copy_gb_s": copy_rate(device, megabytes) / 1e9,
        "matmul_float32_gflop_s": matmul_rate(device, torch.float32, n) / 1e9,
    }


# ---- errors ----------------------------------------------------------------------------------------------------------
IS_REFERENCE = "reference"  # instead of an error: the row is what the others are compared with


def error(got: Tensor, wanted: Tensor) -> dict[str, float]:
    """Largest and mean absolute difference as a share of the largest absolute value wanted."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    if got.shape != wanted.shape:
        raise ValueError(f"the results must have one shape, got {list(got.shape)} and {list(wanted.shape)}")
    scale = wanted.abs().max().clamp(min=1e-30)
    difference = (got - wanted).abs() / scale
    return {"max_error": difference.max().item(), "mean_error": difference.mean().item()}


def errors(got: Iterable[Tensor], wanted: Iterable[Tensor]) -> dict[str, float]:
    """The largest of the errors of several results, each on its own scale."""
    each = [error(a, b) for a, b in zip(got, wanted, strict=True)]
    return {k: max(e[k] for e in each) for k in each[0]}


def moments_error(images: Tensor, got: Tensor, wanted: Tensor) -> dict[str, float | str]:
    """Of two random draws: the difference in mean and spread of what they changed, per channel, as a share of the spread."""
    changes = [(x.cpu().double() - images.cpu().double()).transpose(0, 1).flatten(1) for x in (got, wanted)]
    spread = changes[1].std(1)
    mean, std = ((f(changes[0]) - f(changes[1])).abs() / spread for f in (lambda x: x.mean(1), lambda x: x.std(1)))
    found = torch.cat([mean, std])
    return {"max_error": found.max().item(), "mean_error": found.mean().item(), "error_of": "moments"}


# ---- work ------------------------------------------------------------------------------------------------------------
def size_of(*tensors: Tensor) -> int:
    """Bytes of tensors: what a call that takes or gives them must at least move."""
    return sum(t.numel() * t.element_size() for t in tensors)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the products and convolutions that torch runs in a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        call()
    return counted.get_total_flops()


# ---- memory ----------------------------------------------------------------------------------------------------------
def free_memory(device: str) -> float:
    """Bytes that a process can still have."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        return 1024 * int(re.search(r"^MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)[1])
    except (OSError, TypeError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


# ---- the machine -----------------------------------------------------------------------------------------------------
def machine() -> dict:
    """Hardware, versions and commit, those of the peers too: no host names, no paths."""
    found = hardware.machine()
    for peer in ("scikit-learn", "kornia", "nvidia-dali-cuda130"):
        with contextlib.suppress(PackageNotFoundError):
            found["versions"][peer] = version(peer)
    return found
