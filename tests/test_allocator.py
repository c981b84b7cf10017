"""Freed memory stays in the process that asked for it, unless the user decided otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
PROGRAM = """
import ctypes, resource, sys
from shamisa.measuring.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
import torch
for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):  # what glibc starts with, without its guesses
    ctypes.CDLL(None).mallopt(threshold, 128 << 10)
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):  # a step: six blocks live at once, then none
    step = [torch.empty(24 << 20, dtype=torch.uint8).fill_(1) for _ in range(6)]
    del step
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults * resource.getpagesize() / (24 << 20))
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")


def run(word: str, **environment: str) -> tuple[str, float]:
    """What keep_freed_memory returned, and how many of 8 x 6 blocks of 24 MiB were mapped anew."""
    clean = {k: v for k, v in os.environ.items() if k not in MALLOC}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, word], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, blocks = done.stdout.split()
    return kept, float(blocks)


def test_freed_blocks_are_used_again():
    kept, blocks = run("keep")
    assert kept == "True"
    assert blocks < 18  # those of the first step, and what else the process did
    assert run("leave")[1] > 2 * blocks  # what it is for


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_the_users_choice_stands(environment):
    kept, blocks = run("keep", **environment)
    assert kept == "False"
    assert blocks > 18
