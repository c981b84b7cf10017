"""Peak extra memory of one call; in a process of its own: ``python benchmarks/memory.py engine '{"V": 2}'``.

Extra is what the call needs beyond its inputs and the loaded libraries, its results included. On the CPU: the kernel's
high-water mark of resident memory (VmHWM of /proc/self/status, reset through /proc/self/clear_refs) less the resident
memory before the call. A small call goes before it, so that libraries and thread pools are there. ``peak_extra`` sets
glibc's thresholds so that freed memory leaves the process. On a GPU: torch's own peak of allocated bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import backend_context, compiled_reference

import shamisa
from shamisa import DistortionEngine
from shamisa.measuring.workloads import inputs, objective  # noqa: F401

MB = 1e6


def status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status must have {field}")


def peak(call: Callable[[], object], device: str) -> float:
    """Extra bytes of a call at its peak."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what is free is not resident
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from what is resident now
    before = status("VmRSS")
    kept = call()
    high = status("VmHWM")
    del kept
    return max(0, high - before)


def engine(B: int = 1, V: int = 2, C: int = 4, L: int = 5, size: int = 224, row: str = "native", device: str = "cpu"):
    """Crops -> normalised float32; the formula is output plus prefix images, 12 H W bytes each."""

    def call(s: int) -> torch.Tensor:
        maker = DistortionEngine(compositions=C, levels=L)
        references = torch.randint(0, 256, (B, V, 3, s, s), dtype=torch.uint8, device=device)
        plan = maker.sample(B, seed=1)
        backend = "reference" if row == "reference" else "auto"
        return lambda: maker(references, plan, backend=backend)

    call(64)()
    extra = peak(call(size), device)
    output, prefix = (12.0 * size * size * n for n in (B * V * C * L, B * V * C))
    return {"extra_mb": extra / MB, "output_mb": output / MB, "prefix_mb": prefix / MB}


def loss(B: int = 2, F: int = 2048, E: int = 768, row: str = "native", device: str = "cpu"):
    """The objective and its gradients; those of z and h, 4 N (E + F) bytes, are part of its result."""
    with backend_context(row):
        step, leaves = objective(1, F, E, device)
        step(*leaves)
        step, leaves = objective(B, F, E, device)
        if row == "compiled":
            step = compiled_reference(step, *leaves)
            step(*leaves)  # compiles
        extra = peak(lambda: step(*leaves), device)
    return {"extra_mb": extra / MB, "gradients_mb": 4 * 126 * B * (E + F) / MB}


CASES = {"engine": engine, "loss": loss}


def peak_extra(case: str, **arguments) -> dict[str, float]:
    """Extra bytes of a case at its peak. On the CPU in a process of its own, because what others freed before would hide it;
    on a GPU torch counts what is allocated."""
    if arguments.get("device") == "cuda":
        return CASES[case](**arguments)
    path = os.pathsep.join([str(Path(shamisa.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    # small thresholds: what is freed goes back to the system at once, so that the peak is one of live memory
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, case, json.dumps(arguments)]
    done = subprocess.run(
        command, env={**os.environ, **malloc, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"memory.py {case} {arguments} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(CASES[sys.argv[1]](**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))))
