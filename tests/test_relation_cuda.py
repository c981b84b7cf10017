"""The CUDA relation ops against the reference: the same edges, values and gradients.

Where there is a GPU they run on it. Everywhere the same sources, launchers and kernels, run on the CPU under the emulator
of ``tests/native``, as ``torch.ops.shamisa_emulated``; sizes are small because every CUDA thread is a fiber there.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_relation_kernels import rows
from torch import Tensor
from torch.testing import assert_close
from torch.utils.cpp_extension import include_paths, library_paths

from shamisa import ops
from shamisa.reference import relations as reference

ROOT = Path(__file__).parents[1]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
# as in setup.py, but quick to compile: the fibers cost more than the arithmetic
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
SOURCES = sorted(p for p in (ROOT / "csrc/cuda").glob("*.cu") if p.name != "distort.cu")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 1e-2}

Case = tuple[str, tuple]  # op, arguments


# ---- the emulated library --------------------------------------------------------------------------------------------
def build(source: Path) -> Path:
    """The emulated library of one .cu file, compiled once for these sources, flags and torch."""
    headers = [*(ROOT / "csrc").glob("*/*.h"), *(ROOT / "csrc").glob("*/*.cuh"), ROOT / "tests/native/emulator.h"]
    state = hashlib.sha256(repr((COMPILER, FLAGS, torch.__version__, torch.__file__)).encode())
    for path in (source, *sorted(headers)):
        state.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"shamisa-emulated-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    library = folder / f"{source.stem}-{state.hexdigest()[:16]}.so"
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers of pytest-xdist wait for the first
        if not library.exists():
            made = library.with_suffix(".part")
            command = [*COMPILER, *FLAGS, "-include", str(ROOT / "tests/native/emulator.h"), str(source)]
            command += [f"-isystem{p}" for p in include_paths()]
            command += [f"-L{p}" for p in library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch", "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
            made.rename(library)
    return library


@pytest.fixture(scope="session")
def emulated() -> Callable:
    """name -> the op under the emulator"""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no C++ compiler {COMPILER[0]!r}")
    library = torch.library.Library("shamisa_emulated", "DEF")
    for name in ops.TABLE:
        library.define(str(getattr(torch.ops.shamisa, name).default._schema).removeprefix("shamisa::"))
    KEPT.append(library)
    for source in SOURCES:
        torch.ops.load_library(build(source))
    return lambda name: getattr(torch.ops.shamisa_emulated, name)


KEPT = []  # a library that is collected takes its ops along
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=GPU)])
def run(request) -> Callable:
    """run(op, *arguments): on a GPU or emulated, CPU tensors in and out."""
    if request.param == "emulated":
        emulated = request.getfixturevalue("emulated")
        return lambda name, *arguments: emulated(name)(*arguments)

    def on_gpu(name, *arguments):
        assert ops.has_kernel(name, "cuda"), f"{name} has no CUDA kernel"
        out = getattr(torch.ops.shamisa, name)(*(a.cuda() if isinstance(a, Tensor) else a for a in arguments))
        return out.cpu() if isinstance(out, Tensor) else tuple(x.cpu() for x in out)

    return on_gpu


# ---- cases -----------------------------------------------------------------------------------------------------------
def generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def pair_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    z = torch.randn(N, D, generator=g, dtype=torch.float64).to(dtype)
    for M in (0, 1, 5 * N + 3):
        index = torch.randint(N, (2, M), generator=g)  # loops among them
        index[0, : M // 3] = N // 2  # one node has many edges
        weight = torch.rand(M, generator=g, dtype=torch.float64).to(wide(dtype))
        weight[::7] = 0
        yield "pair_cost", (z, weight, index)
        squared = reference.pair_cost(z, weight, index)[1]
        yield "pair_cost_backward", (torch.tensor(1.5, dtype=wide(dtype)), z, weight, index, squared)


def neighbor_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    for kind in ("distinct", "duplicates", "near"):
        for k in sorted({1, min(31, N - 1), N - 1} if N < 100 else {31}):
            h = rows(N, D, dtype, kind)
            yield "knn_graph", (h, k)
            distance, neighbor, _ = reference.knn_graph(h, k)
            grad = torch.randn(N, k, generator=generator(N, k), dtype=wide(dtype))
            yield "knn_graph_backward", (grad, h, distance, neighbor)


# op family -> its cases at a size; each row of a table is one test
CASES: dict[str, Callable[[int, int, torch.dtype], Iterator[Case]]] = {
    "neighbor": neighbor_cases,
    "pair": pair_cases,
}
# around the sizes of warps, of tiles (64), of sums put aside (256 columns); rows that can and cannot be read 16 bytes at once
SIZES = [(2, 1), (7, 3), (40, 16), (65, 33), (130, 96), (64, 520)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("N, D", SIZES)
@pytest.mark.parametrize("family", CASES)
def test_cuda_equals_reference(run, family, N, D, dtype):
    for name, arguments in CASES[family](N, D, dtype):
        before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        compare(name, run(name, *arguments), getattr(reference, name)(*arguments))
        for a, b in zip(arguments, before, strict=True):
            assert not isinstance(a, Tensor) or torch.equal(a, b), f"{name} changes its input"


def compare(name: str, actual, expected) -> None:
    actual, expected = (x if isinstance(x, tuple | list) else (x,) for x in (actual, expected))
    for a, e in zip(actual, expected, strict=True):
        if not e.is_floating_point():
            assert_close(a, e, msg=lambda m: f"{name}: {m}")
        else:
            rtol = TOLERANCE[e.dtype]
            atol = rtol * e.abs().max().item() if e.numel() else 0
            assert_close(a, e, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


def test_every_emulated_op_is_tested(emulated):
    """An op that a .cu file registers has cases in the table."""
    tested = {name for cases in CASES.values() for name, _ in cases(7, 3, torch.float32)}
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert {name for name in ops.TABLE if has(f"shamisa_emulated::{name}", "CPU")} <= tested
