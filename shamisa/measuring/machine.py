"""The machine that figures were measured on: its processor, GPU, libraries and compiled kernels."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

import torch

from ..ops import backends
from .profiling import all_threads
from .versions import versions


def cpu_model() -> str:
    """As the processor calls itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine() -> dict:
    """Hardware, versions and commit: no host names, no paths."""
    model, cores, gpu, memory = cpu_model(), all_threads(), None, None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
    name = f"gpu-{gpu}" if gpu else f"cpu-{model}-{cores}core"
    with contextlib.suppress(OSError, ValueError):  # not told by every system
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "cpu": model,
        "cores": cores,
        "memory_gb": memory,
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions(),
        "backends": {op: list(b) for op, b in backends().items()},
    }
