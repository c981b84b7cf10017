"""Where the time goes: rounds of a call, a stopwatch of a step's parts (and ranges for profilers), a recording of steps."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

LOG = logging.getLogger(__name__)
PARTS = ("data", "distortions", "encoder", "loss", "backward", "optimizer")  # of a step, in order
WAIT = 2  # steps before a recording: the first ones allocate and choose algorithms


# ---- a call ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with this many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def all_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EventTimer:
    """Seconds on the current GPU's own clock, read twice around many launches."""

    def __init__(self) -> None:
        self.first = torch.cuda.Event(enable_timing=True)
        self.first.record()

    def __call__(self) -> float:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        mark.synchronize()
        return self.first.elapsed_time(mark) / 1000


def timer(device: str) -> Callable[[], float]:
    """The clock for work on a device type, "cpu" or "cuda"."""
    return EventTimer() if device == "cuda" else time.perf_counter


def time_rounds(
    call: Callable[[], object], device: str, *, seconds: float = 0.0, least: int = 3, most: int = 50
) -> list[float]:
    """Seconds of a call, one figure per round, after a call that warms up and is not counted.

    A round repeats a call that is shorter than a millisecond.

    Args:
        device: its type, whose clock is read.
        seconds: no new round begins after them, but for the least.
        least, most: number of rounds, at least 1.
    """
    call()
    clock, taken, repeat = timer(device), [], 1
    begin = start = clock()
    while len(taken) < least or (len(taken) < most and start - begin < seconds):
        for _ in range(repeat):
            call()
        end = clock()
        if repeat == 1 and not taken and end - start < 1e-3:  # not kept, as it is a round of another length
            repeat = max(2, math.ceil(1e-3 / max(end - start, 1e-6)))
        else:
            taken.append((end - start) / repeat)
        start = clock()
    return taken


# ---- a step ----------------------------------------------------------------------------------------------------------
class Stopwatch:
    """Seconds of the parts of a step: host time on a CPU, events on a GPU, so that timing never waits for it.

    Args:
        device: of the training.
        nvtx: each part is an NVTX range as well, for Nsight Systems.
        record: each part is a range of torch's profiler as well.

    Raises:
        RuntimeError: ``nvtx`` with a torch that was built without CUDA.
    """

    def __init__(self, device: torch.device, nvtx: bool = False, record: bool = False) -> None:
        if nvtx and torch.version.cuda is None:
            raise RuntimeError(f"nvtx needs a torch built with CUDA, got torch {torch.__version__}")
        self.events, self.nvtx, self.record = device.type == "cuda", nvtx, record
        self.marks: list = []
        self.range: torch.profiler.record_function | None = None

    def start(self) -> None:
        """A new step: no part yet."""
        self.stop()
        self.marks = []

    def begin(self, name: str) -> None:
        """The running part ends and the part ``name`` begins; parts of one name are added up."""
        self._mark(name)

    def stop(self) -> None:
        """The running part ends."""
        if self.marks and self.marks[-1][0]:
            self._mark("")

    def _mark(self, name: str) -> None:
        if self.nvtx or self.record:
            self._range(name)
        if self.events:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def _range(self, name: str) -> None:
        running = bool(self.marks and self.marks[-1][0])
        if self.nvtx:
            if running:
                torch.cuda.nvtx.range_pop()
            if name:
                torch.cuda.nvtx.range_push(name)
        if self.record:
            if self.range is not None:
                self.range.__exit__(None, None, None)
            self.range = torch.profiler.record_function(name) if name else None
            if self.range is not None:
                self.range.__enter__()

    def take(self) -> list:
        """The marks of the step since ``start``, for ``seconds``; ends the running part. Waits for nothing."""
        self.stop()
        return self.marks

    def seconds(self, marks: list) -> dict[str, float]:
        """Seconds of each part between the marks of a step; waits for a GPU that has not come so far."""
        if self.events and marks:
            marks[-1][1].synchronize()
        split: dict[str, float] = {}
        for (name, a), (_, b) in zip(marks[:-1], marks[1:], strict=True):
            split[name] = split.get(name, 0.0) + (a.elapsed_time(b) / 1000 if self.events else b - a)
        return {name: round(seconds, 6) for name, seconds in split.items()}

    def read(self) -> dict[str, float]:
        """Seconds of each part since ``start``; ends the running one."""
        return self.seconds(self.take())


class Recording:
    """torch's profiler over a few steps: call ``step`` after each. Does nothing for ``steps`` = 0.

    Writes FOLDER/trace.json (for chrome://tracing or Perfetto) and FOLDER/ops.txt, the operators by time.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self.folder, self.on_gpu = folder, device.type == "cuda"
        self.written = False
        self.profiler = None
        if steps:
            kinds = torch.profiler.ProfilerActivity
            self.profiler = torch.profiler.profile(
                activities=[kinds.CPU, kinds.CUDA] if self.on_gpu else [kinds.CPU],
                schedule=torch.profiler.schedule(wait=WAIT - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
            )

    def _write(self, profiler: torch.profiler.profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
        (self.folder / "ops.txt").write_text(table)
        self.written = True
        LOG.info("profile: %s", self.folder)

    def step(self) -> None:
        """A training step is done."""
        if self.profiler is not None:
            self.profiler.step()

    def __enter__(self) -> Recording:
        if self.profiler is not None:
            self.profiler.__enter__()
        return self

    def __exit__(self, *error) -> None:
        if self.profiler is not None:
            self.profiler.__exit__(*error)
            if not self.written:
                LOG.warning("profile: nothing recorded, it needs more than %d steps", WAIT)
