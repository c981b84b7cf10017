"""The CUDA relation ops against the reference: the same edges, values and gradients.

Where there is a GPU they run on it. Everywhere the same sources, launchers and kernels, run on the CPU under the emulator
of ``tests/native``, as ``torch.ops.shamisa_emulated``; sizes are small because every CUDA thread is a fiber there.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_relation_kernels import rows
from test_relations import batch, small_loss
from torch import Tensor
from torch.testing import assert_close

from shamisa import ops
from shamisa.reference import relations as reference

ROOT = Path(__file__).parents[1]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
# as in setup.py, but quick to compile: the fibers cost more than the arithmetic
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
RACES = os.environ.get("SHAMISA_RACES") == "1"  # slower: every access to memory is judged, see tests/native/races.cpp
SOURCES = sorted(p for p in (ROOT / "csrc/cuda").rglob("*.cu") if p.name != "distort.cu")
REPEATS = 2
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 1e-2}

Case = tuple[str, tuple]  # op, arguments


# ---- the emulated library --------------------------------------------------------------------------------------------
def compile_(*arguments: str) -> None:
    done = subprocess.run([*COMPILER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join((*COMPILER, *arguments))}\n{done.stderr}"


def build(source: Path) -> Path:
    """The emulated library of one .cu file, compiled once for these sources, flags and torch."""
    from torch.utils.cpp_extension import include_paths, library_paths

    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh"), ROOT / "tests/native/emulator.h"]
    headers += (ROOT / "tests/native").glob("races.*")
    state = hashlib.sha256(repr((COMPILER, FLAGS, RACES, torch.__version__, torch.__file__)).encode())
    for path in (source, *sorted(headers)):
        state.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"shamisa-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    library = folder / f"{source.stem}-{state.hexdigest()[:16]}.so"
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers of pytest-xdist wait for the first
        if not library.exists():
            made = library.with_suffix(".part")
            objects = [made.with_suffix(".o")]
            flags = [
                *FLAGS,
                "-include",
                str(ROOT / "tests/native/emulator.h"),
                *(f"-isystem{p}" for p in include_paths()),
            ]
            if RACES:
                objects.append(made.with_suffix(".races.o"))
                flags += ["-fsanitize=thread", "-DSHAMISA_RACES"]
                compile_(*FLAGS, "-O2", "-c", str(ROOT / "tests/native/races.cpp"), "-o", str(objects[1]))
            compile_(*flags, "-c", str(source), "-o", str(objects[0]))
            libraries = [*(f"-L{p}" for p in library_paths()), "-lc10", "-ltorch_cpu", "-ltorch"]
            compile_("-shared", *map(str, objects), *libraries, "-o", str(made))
            for path in objects:
                path.unlink()
            made.rename(library)
    return library


@functools.cache  # two test files use the fixture, and a namespace of ops is defined once
def emulated_ops() -> Callable:
    table = torch.library.Library("shamisa_emulated", "DEF")
    for name in ops.TABLE:
        table.define(str(getattr(torch.ops.shamisa, name).default._schema).removeprefix("shamisa::"))
    KEPT.append(table)
    loaded = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for library in list(pool.map(build, SOURCES)):
            torch.ops.load_library(library)
            loaded.append(ctypes.CDLL(str(library)))

    def races() -> list[int]:  # so far; standard error says where they are
        return [library.shamisa_races() for library in loaded] if RACES else []

    def watched(name: str) -> Callable:
        def call(*arguments):
            before = races()
            out = getattr(torch.ops.shamisa_emulated, name)(*arguments)
            assert races() == before, f"{name} has threads that touch the same memory without an order"
            return out

        return call

    return watched


@pytest.fixture(scope="session")
def emulated() -> Callable:
    """name -> the op under the emulator"""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no C++ compiler {COMPILER[0]!r}")
    return emulated_ops()


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
    for kind in ("distinct", "duplicates", "near", "collapsed", "clusters"):
        whole = N * D < 3000 and kind in ("distinct", "duplicates", "near")
        for k in sorted({1, min(31, N - 1), N - 1} if whole else {min(31, N - 1)}):
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
SIZES = [(2, 1), (7, 3), (40, 16), (65, 33), (130, 96), (70, 520)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("N, D", SIZES)
@pytest.mark.parametrize("family", CASES)
def test_cuda_equals_reference(run, family, N, D, dtype):
    for name, arguments in CASES[family](N, D, dtype):
        before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        actual = run(name, *arguments)
        compare(name, actual, getattr(reference, name)(*arguments))
        for _ in range(REPEATS if N < 50 else 0):  # the emulator changes the order of threads and blocks
            compare(name, run(name, *arguments), actual, exact=True)
        for a, b in zip(arguments, before, strict=True):
            assert not isinstance(a, Tensor) or torch.equal(a, b), f"{name} changes its input"


def compare(name: str, actual, expected, exact: bool = False) -> None:
    actual, expected = (x if isinstance(x, tuple | list) else (x,) for x in (actual, expected))
    for a, e in zip(actual, expected, strict=True):
        if exact or not e.is_floating_point():
            assert_close(a, e, rtol=0, atol=0, msg=lambda m: f"{name}{' again' * exact}: {m}")
        else:
            rtol = TOLERANCE[e.dtype]
            atol = rtol * e.abs().max().item() if e.numel() else 0
            assert_close(a, e, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("k", [1, 5, 31])
def test_rows_without_a_distance(run, k):
    """NaN and infinity: no index outside the rows, NaN distances, and the other rows as if these were not there."""
    h = rows(40, 12, torch.float32, "distinct")
    h[7, 3] = torch.nan
    h[20] = torch.inf
    distance, neighbor, mutual = run("knn_graph", h, k)
    assert neighbor.min() >= 0 and neighbor.max() < 40
    bad = torch.zeros(40, dtype=torch.bool)
    bad[[7, 20]] = True
    assert distance[bad].isnan().all() and not mutual[bad].any()
    kept = (~bad).nonzero()[:, 0]
    expected = reference.knn_graph(h[kept], k)
    assert_close(distance[kept], expected[0])
    assert_close(neighbor[kept], kept[expected[1]])
    gradient = run("knn_graph_backward", torch.ones(40, k), h, distance, neighbor)
    assert gradient[7].isnan().all()
    few = run("knn_graph", torch.full((6, 2), torch.nan), 3)
    assert few[0].isnan().all() and (few[1] == 5).all()


@pytest.mark.parametrize("spread", [1e-1, 1e-3])
def test_rows_close_to_each_other(run, spread):
    """Features in a narrow cone, as an encoder gives early on: products of such rows alone cannot tell them apart."""
    g = generator(1)
    x = torch.relu(torch.randn(1, 64, generator=g) + spread * torch.randn(120, 64, generator=g))
    h = x / x.norm(dim=1, keepdim=True)
    compare("knn_graph", run("knn_graph", h, 9), reference.knn_graph(h, 9))


def test_equal_rows_and_overflow(run):
    """All rows equal: distance 0, ties to the smaller row, gradient 0. Rows whose squares overflow stay in range."""
    h = torch.ones(37, 5)
    distance, neighbor, mutual = run("knn_graph", h, 4)
    expected = reference.knn_graph(h, 4)
    for a, b in zip((distance, neighbor, mutual), expected, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    gradient = run("knn_graph_backward", torch.ones(37, 4), h, distance, neighbor)
    assert_close(gradient, torch.zeros(37, 5), rtol=0, atol=0)
    distance, neighbor, _ = run("knn_graph", h * torch.arange(1, 38)[:, None] * 1e19, 4)
    assert neighbor.min() >= 0 and neighbor.max() < 37


def test_pair_cost_of_nothing_and_of_loops(run):
    z = torch.randn(9, 6, generator=generator(9))
    cost, squared = run("pair_cost", z, torch.empty(0), torch.empty(2, 0, dtype=torch.int64))
    assert_close((cost, squared), (torch.tensor(0.0), torch.empty(0)))
    loops = torch.arange(9).expand(2, 9)
    cost, squared = run("pair_cost", z * torch.inf, torch.ones(9), loops)  # a loop is not even read
    assert_close((cost, squared), (torch.tensor(0.0), torch.zeros(9)))
    dz, dw = run("pair_cost_backward", torch.tensor(1.0), z * torch.inf, torch.ones(9), loops, squared)
    assert_close((dz, dw), (torch.zeros(9, 6), torch.zeros(9)))


@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_an_index_outside_poisons(run, bad):
    """The op cannot raise without waiting for the device: NaN comes out, and no memory outside is touched."""
    z, weight = torch.randn(9, 6, generator=generator(9)), torch.ones(3)
    index = torch.tensor([[0, 1, 2], [3, bad, 4]])
    cost, squared = run("pair_cost", z, weight, index)
    assert cost.isnan() and squared.isnan().tolist() == [False, True, False]
    dz, _ = run("pair_cost_backward", torch.tensor(1.0), z, weight, index, squared)
    assert dz.isnan().any()


def test_a_node_with_thousands_of_edges(run):
    """More than are sorted in shared memory, and than one block sums."""
    g, N, M = generator(3), 1100, 2200  # and more nodes than one step of the scan
    z, weight = torch.randn(N, 7, generator=g), torch.rand(M, generator=g)
    index = torch.stack([torch.full((M,), 11), torch.randint(12, N, (M,), generator=g)])
    squared = reference.pair_cost(z, weight, index)[1]
    arguments = (torch.tensor(1.0), z, weight, index, squared)
    actual = run("pair_cost_backward", *arguments)
    compare("pair_cost_backward", actual, reference.pair_cost_backward(*arguments))
    for _ in range(REPEATS):
        compare("pair_cost_backward", run("pair_cost_backward", *arguments), actual, exact=True)


def test_layouts(run):
    """Columns that are not contiguous, and rows that do not start at 16 bytes."""
    whole = rows(40, 25, torch.float32, "distinct")
    for h in (whole[:, ::2], whole.T.contiguous().T, whole.flatten()[1:801].view(40, 20)):
        compare("knn_graph", run("knn_graph", h, 6), reference.knn_graph(h, 6))


def test_shapes_are_checked(emulated):
    """Before any memory is touched."""
    z, weight, index = torch.zeros(5, 3), torch.zeros(4), torch.zeros(2, 4, dtype=torch.int64)
    for name, arguments, message in [
        ("knn_graph", (z, 5), r"h must be \[N, F\] with N > k = 5, got \[5, 3\]"),
        ("pair_cost", (z, weight, index[:, :3]), r"index must be \[2, 4\], got \[2, 3\]"),
        ("pair_cost_backward", (weight[0], z, weight, index, weight[:2]), r"squared must be \[4\], got \[2\]"),
        ("knn_graph_backward", (z, z, z, index), r"neighbor must be \[5, 4\], got \[2, 4\]"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            emulated(name)(*arguments)


def test_objective(emulated, monkeypatch):
    """Value and gradients of the whole objective with the emulated ops in the place of the others."""
    leaves, plan = batch(1, F=64, E=24, dtype=torch.float32)
    loss = small_loss(64, dtype=torch.float32, anchors=32)
    inputs = [*leaves, *loss.anchors.parameters()]
    expected = loss(*leaves, plan)
    gradients = torch.autograd.grad(expected.total, inputs)
    called = []
    rules = {"knn_graph": (ops._knn_backward, ops._knn_context), "pair_cost": (ops._pair_backward, ops._pair_context)}
    for name, (backward, context) in rules.items():
        torch.library.register_autograd(f"shamisa_emulated::{name}", backward, setup_context=context, lib=KEPT[0])
        for op in (name, f"{name}_backward"):  # the rules look the backward up by name

            def counted(*arguments, op=op):
                called.append(op)
                return emulated(op)(*arguments)

            monkeypatch.setattr(torch.ops.shamisa, op, counted)
    actual = loss(*leaves, plan)
    assert_close(actual.graph.index, expected.graph.index)
    assert_close(actual.total, expected.total, rtol=1e-5, atol=1e-6)
    for a, e in zip(torch.autograd.grad(actual.total, inputs), gradients, strict=True):
        assert_close(a, e, rtol=1e-4, atol=1e-5 * e.abs().max().item())
    assert sorted(called) == ["knn_graph", "knn_graph_backward", "pair_cost", "pair_cost_backward"]


# ---- what only a GPU shows -------------------------------------------------------------------------------------------
@GPU
@pytest.mark.parametrize("N, F", [(2016, 2048), (4999, 64), (4100, 33)])  # whole by symmetry, and panel by panel
def test_many_rows(N, F):
    h = rows(N, F, torch.float32, "duplicates")
    distance, neighbor, mutual = torch.ops.shamisa.knn_graph(h, 31)
    actual = torch.ops.shamisa.knn_graph(h.cuda(), 31)
    compare("knn_graph", [x.cpu() for x in actual], (distance, neighbor, mutual))
    arguments = (torch.randn(N, 31, generator=generator(N)), h, distance, neighbor)
    expected = torch.ops.shamisa.knn_graph_backward(*arguments)
    compare("knn_graph_backward", torch.ops.shamisa.knn_graph_backward(*(a.cuda() for a in arguments)).cpu(), expected)


def assert_waits_for_nothing_and_replays(step: Callable[[], tuple], change: Callable[[], None]) -> None:
    """step() does not synchronise; a CUDA graph of it gives the same bits, also after change() of what it reads."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made once is made before the capture
        step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    for _ in range(2):  # counters are back at 0 after a replay
        graph.replay()
        assert_close(replayed, eager, rtol=0, atol=0)
    change()
    graph.replay()
    assert_close(replayed, step(), rtol=0, atol=0)


@GPU
def test_no_synchronisation_and_graph_replay():
    """From h and z to the cost and the gradients without waiting; a CUDA graph replays the same on new contents."""
    k, op = 31, torch.ops.shamisa
    h, z, one = (
        rows(700, 64, torch.float32, "distinct").cuda(),
        torch.randn(700, 24).cuda(),
        torch.ones((), device="cuda"),
    )

    def step():
        distance, neighbor, mutual = op.knn_graph(h, k)
        index = torch.stack([torch.arange(700, device="cuda")[:, None].expand_as(neighbor), neighbor]).flatten(1)
        weight = (1 / (1 + distance)).view(-1)
        cost, squared = op.pair_cost(z, weight, index)
        dz, dw = op.pair_cost_backward(one, z, weight, index, squared)
        return cost, dz, dw, mutual, op.knn_graph_backward(dw.view(-1, k), h, distance, neighbor)

    def change():
        h.copy_(h.flip(0))
        z.mul_(1.5)

    assert_waits_for_nothing_and_replays(step, change)


def test_every_emulated_op_is_tested(emulated):
    """An op that a .cu file registers has cases in a table."""
    from test_relation_cuda_terms import CASES as more

    tested = {name for cases in (*CASES.values(), *more.values()) for name, _ in cases(7, 3, torch.float32)}
    tested |= {"philox", "resize_bicubic"}  # in test_randomness.py, test_resize.py
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert {name for name in ops.TABLE if has(f"shamisa_emulated::{name}", "CPU")} <= tested
