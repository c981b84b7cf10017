"""Fixtures of the benchmarks: one thread unless a row says otherwise, sleeping OpenMP threads, packaged photographs.

``row(...)`` times one row and notes what the report needs; the hooks at the end trim the JSON to what may be committed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its pool
# the threads of NumPy and SciPy do not listen to torch.set_num_threads
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import json
import math
import time

import measure
import memory
import pytest
import torch

from shamisa.measuring.allocator import keep_freed_memory

CEILINGS: dict[str, dict] = {}  # device -> rates, for the JSON

# Whether glibc gives freed memory back to the system, so that the next call pays for it in page faults, depends on what ran
# before, and moved rows by a factor of two. Here it keeps it, for ours and for what ours is compared with,
# unless the environment decides.
keep_freed_memory()


def pytest_addoption(parser):
    parser.addoption("--compiled", action="store_true", help="rows of torch.compile of the reference too: minutes more")
    parser.addoption(
        "--quick", action="store_true", help="one round of each row: a rehearsal, whose figures are worth little"
    )
    parser.addoption("--rows", help="append each row to this file as soon as it is measured, for rows.py")


def pytest_collection_modifyitems(config, items):
    """Rows whose parameters name torch.compile run on request only: each compiles for seconds to a minute."""
    if not config.getoption("compiled"):
        compiled = pytest.mark.skip(reason="--compiled")
        for item in items:
            values = getattr(getattr(item, "callspec", None), "params", {}).values()
            if any(isinstance(v, str) and v == "compiled" for v in values):  # arrays have no truth value
                item.add_marker(compiled)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """--benchmark-disable runs each benchmark once; the project's default --benchmark-skip would skip them all."""
    if config.getoption("benchmark_disable"):
        config.option.benchmark_skip = False


@pytest.fixture(autouse=True)
def one_thread():
    """CPU figures are per core. What a GPU benchmark freed is there for the next one's own process."""
    with measure.threads(1):
        yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def photos():
    """Crops of packaged photographs, uint8 [16, 3, 224, 224]."""
    from shamisa.data.embedded import EmbeddedPhotos

    source = EmbeddedPhotos(split="train", leaves=12)
    crops = []
    for i in range(16):
        photo = source[i % len(source)]
        top, left = (37 * i % (n - 223) for n in photo.shape[1:])
        crops.append(photo[:, top : top + 224, left : left + 224])
    return torch.stack(crops)


def pytest_sessionstart(session):
    if session.config.getoption("rows"):
        append(session.config, {"machine": measure.machine()})


@pytest.fixture(scope="session")
def ceilings(request):
    """device -> its copy bandwidth and matrix rates, measured once in this session (CPU: one thread)."""
    small = bool(request.config.getoption("benchmark_disable"))

    def of(device: str) -> dict:
        if device not in CEILINGS:
            with measure.threads(1):
                CEILINGS[device] = measure.measure_ceilings(device, small)
            append(request.config, {"ceilings": {device: CEILINGS[device]}})
        return CEILINGS[device]

    return of


@pytest.fixture
def row(request, benchmark, ceilings):
    """Time ``call()`` as one row of the report; returns nothing, the figures go into ``benchmark.extra_info``."""

    def run(
        call,
        *,
        section: str,  # table of the report
        subject: str,  # what is done, the same in all rows that are compared
        row: str,  # who does it: native, reference, or the name of a peer
        error: dict[str, float]
        | str,  # against the reference, as measure.error gives it, or in words why there is none
        device: str = "cpu",
        images: int | None = None,  # per call
        moved: float | None = None,  # bytes that the call must read and write
        flops: float | None = None,  # floating-point operations of the call
        dtype: str = "float32",  # in which they are done: of which rate they are a share
        seconds: float = 0.15,  # to spend on the rounds, about
        least: int = 3,
        most: int = 20,
        **info,  # memory, notes
    ) -> None:
        if not (moved or flops):
            raise TypeError(f"a row must say what it moves or computes, got neither for {subject}: {row}")
        benchmark.group = f"{section}: {subject}, {device}"
        benchmark._timer = measure.timer(device)
        extra = benchmark.extra_info
        extra.update(section=section, subject=subject, row=row, device=device, threads=torch.get_num_threads())
        extra.update({"no_error": error} if isinstance(error, str) else error)
        extra.update({k: v for k, v in info.items() if v is not None})
        if not benchmark.enabled:
            benchmark.pedantic(call, rounds=1, iterations=1)
            return
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        once = time.perf_counter() - start
        iterations = max(1, math.ceil(1e-3 / once))  # a round takes a millisecond at least
        rounds = min(most, max(least, int(seconds / (once * iterations))))
        if request.config.getoption("quick"):
            rounds = 1
        benchmark.pedantic(
            call, rounds=rounds, iterations=iterations, warmup_rounds=1 if once < 1 and rounds > 1 else 0
        )
        median = benchmark.stats.stats.median
        if "extra_mb" not in info and os.access("/proc/self/clear_refs", os.W_OK):
            extra["extra_mb"] = memory.peak(call, device) / memory.MB
        if images:
            extra.update(images=images, images_per_s=images / median, ms_per_image=1e3 * median / images)
        if moved:
            extra["gb_per_s"] = moved / median / 1e9
            extra["share_of_copy"] = moved / median / 1e9 / ceilings(device)["copy_gb_s"]
        if flops:
            extra["gflop_per_s"] = flops / median / 1e9
            extra["share_of_matmul"] = flops / median / 1e9 / ceilings(device)[f"matmul_{dtype}_gflop_s"]

    yield run
    if benchmark.enabled and benchmark.stats is not None and "subject" in benchmark.extra_info:
        stats = {k: getattr(benchmark.stats.stats, k) for k in STATISTICS if k != "iterations"}
        append(request.config, trim(benchmark, {**stats, "iterations": benchmark.stats.iterations}) | {"load": load()})


def append(config, content: dict) -> None:
    """A line of the file that --rows names."""
    if path := config.getoption("rows"):
        with open(path, "a") as file:
            file.write(json.dumps(rounded(content)) + "\n")


def load() -> float:
    """Processes that wanted a core in the last minute."""
    return round(os.getloadavg()[0], 2)


def trim(benchmark, stats: dict) -> dict:
    """What is kept of a row."""
    return {"name": benchmark.name, "group": benchmark.group, "stats": stats, "info": benchmark.extra_info}


# ---- the JSON --------------------------------------------------------------------------------------------------------
STATISTICS = ("min", "max", "mean", "median", "iqr", "rounds", "iterations")


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep hardware, versions, ceilings, statistics and notes; drop raw times, host name and paths."""
    rows = []
    for b in output_json["benchmarks"]:
        stats = {k: b["stats"][k] for k in STATISTICS}
        rows.append({"name": b["name"], "group": b["group"], "stats": rounded(stats), "info": rounded(b["extra_info"])})
    output_json.clear()
    output_json.update(
        format=1, machine=measure.machine(), load_at_end=load(), ceilings=rounded(CEILINGS), benchmarks=rows
    )


def rounded(content):
    """Floats to five digits, all through."""
    if isinstance(content, dict):
        return {k: rounded(v) for k, v in content.items()}
    return float(f"{content:.5g}") if isinstance(content, float) else content
