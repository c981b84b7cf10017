"""Measure this machine: are the kernels compiled, can the engine feed a network, what does the objective cost.

Prints medians, within about half a minute on a CPU and in seconds on a GPU: distorted images/s of the engine, and forward
and backward of the objective at N = 126 B nodes, by the compiled kernels and by the PyTorch reference, which does a stated
share of the engine's images. It is a quick look. The full benchmarks (every op, other libraries, errors, memory, ceilings)
are in the source folder: pytest benchmarks --benchmark-only
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from .cli import guard
from .files import write_json
from .measuring.allocator import keep_freed_memory
from .measuring.machine import machine
from .measuring.profiling import Stopwatch, all_threads, threads, time_rounds
from .measuring.workloads import SIZE, Case, E, F, make_cases
from .networks.devices import choose_device
from .ops import TABLE, backend_context, has_kernel, how_to_compile
from .training.config import EMBEDDED, resolve
from .training.trainer import Trainer

TITLES = {
    "engine": f"engine: ms per distorted image, uint8 crops of {SIZE} px -> normalised network input, published sampling",
    "objective": f"objective: ms, forward and backward, F = {F}, E = {E}",
    "distortions": f"distortions at level 3 of 5: ms per image, {SIZE} px, float32",
    "step": "training step: ms of a step, the crops are there already",
}
STEPS = 4  # what a step costs depends on its plan: these, in turn
HEAD = f"{'':46}{'ms':>9}{'images/s':>10}{'native=1x':>10}{'rounds':>8}"


# ---- measuring -------------------------------------------------------------------------------------------------------
def measure(case: Case, device: torch.device, seconds: float) -> dict:
    """One row: median ms of a call and, where there are images, of one, and images/s; rounds; what was done."""
    with threads(case.threads), backend_context(case.backend):
        taken = time_rounds(case.make(), device.type, seconds=seconds, least=2)
    return record(case, taken)


def record(case: Case, taken: list[float], **more) -> dict:
    """Seconds of the rounds of a case -> its row."""
    names = ("section", "subject", "setting", "backend", "threads", "images", "whole")
    row = {name: getattr(case, name) for name in names} | {"ms": 1e3 * statistics.median(taken), "rounds": len(taken)}
    if case.images:
        row |= {"ms_per_image": row["ms"] / case.images, "images_per_s": 1e3 * case.images / row["ms"]}
    return row | more


def measure_step(preset: str, device: torch.device, count: int | None, seconds: float) -> dict:
    """The row of a training step, with its split in ms; the crops are there already."""
    config = resolve(preset, {"refs": EMBEDDED, "init": "none", "device": str(device)})
    count = count or all_threads()
    with threads(count):
        trainer, splits = Trainer(config, quiet=True), []
        watch, crops = Stopwatch(device), [trainer.references.batch(i)[0] for i in range(config.accumulate)]

        def step() -> None:
            trainer.step %= STEPS
            watch.start()
            splits.append(trainer.train_step(crops, watch)["timing"]["split"])

        taken = time_rounds(step, device.type, seconds=seconds, least=STEPS)
    backend = "native" if has_kernel("distort", device.type) else "reference"
    setting = f"{count} thread{'s' * (count > 1)}" if device.type == "cpu" else str(trainer.precision).split(".")[1]
    images = trainer.images()
    case = Case("step", f"preset {preset}, N = {images}", setting, backend, count, tuple, images, images)
    timed = splits[-len(taken) :]
    return record(case, taken, split_ms={part: 1e3 * statistics.median(s[part] for s in timed) for part in timed[0]})


# ---- the table -------------------------------------------------------------------------------------------------------
def digits(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}"


def line(row: dict, native: dict | None) -> str:
    """A row of the table; native: the row that it is compared with."""
    unit = "ms_per_image" if row["section"] in ("engine", "distortions") else "ms"
    label = ", ".join(filter(None, (row["subject"], row["backend"], row["setting"])))
    speed = digits(row["images_per_s"]) if row["images"] else ""
    ratio = f"{digits(row[unit] / native[unit])}x" if native else ""
    share = f"  on {row['images']} of the {row['whole']} images" if row["images"] != row["whole"] else ""
    split = "".join(f" {part} {ms:.1f}" for part, ms in row.get("split_ms", {}).items())
    return f"  {label:44}{digits(row[unit]):>9}{speed:>10}{ratio:>10}{row['rounds']:>8}{share}{split and '  split:' + split}"


def describe(device: torch.device, about: dict) -> str:
    """Two lines: the device, and which ops have compiled kernels for it."""
    what, lacking = f"{about['cpu']}, {about['cores']} cores", [op for op in TABLE if not has_kernel(op, device.type)]
    if device.type == "cuda":
        what = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    elif not torch.cuda.is_available():
        what += f"; torch {torch.__version__} finds no GPU"
    compiled = f"all {len(TABLE)} ops" if not lacking else f"{len(TABLE) - len(lacking)} of {len(TABLE)} ops"
    if lacking:
        compiled += f", the PyTorch reference runs for {'the others' if len(lacking) < len(TABLE) else 'all'}"
        compiled += f", which is many times slower: {how_to_compile(device.type)}"
        compiled += f" ({', '.join(lacking)})" if len(lacking) < len(TABLE) else ""
    return f"device {device}: {what}\ncompiled kernels for {device.type}: {compiled}"


# ---- the command -----------------------------------------------------------------------------------------------------
def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="shamisa bench",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N [auto]")
    add("--threads", type=int, metavar="N", help="CPU threads [1, and all that this process may use]")
    add("--samples", type=int, nargs="+", default=[1, 2, 8], metavar="B", help="of the objective, N = 126 B [1 2 8]")
    add("--seconds", type=float, default=1.0, help="time per row, about; two rounds at least, 50 at most [1]")
    add("--distortions", action="store_true", help="each distortion too, at level 3 of 5: about a minute more")
    add("--step", action="store_true", help="a training step too, with its split")
    add("--preset", metavar="NAME", help="of the step, as in shamisa train; paper needs minutes on a CPU [demo]")
    add("--no-reference", action="store_true", help="compiled kernels only")
    add("--out", type=Path, metavar="FILE", help="write the rows and the machine as JSON too")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def check(given: argparse.Namespace) -> torch.device:
    """The device; ValueError, before any work, naming an argument that does not fit."""
    count = 1 if given.threads is None else given.threads
    for name, values, high in (("--threads", [count], 1024), ("--samples", given.samples, 4096)):
        if not all(1 <= v <= high for v in values):
            raise ValueError(f"{name} must lie in 1..{high}, got {' '.join(map(str, values))}")
    if not 0 < given.seconds <= 600:  # NaN too
        raise ValueError(f"--seconds must lie in (0, 600], got {given.seconds:g}")
    if given.preset is not None and not given.step:
        raise ValueError("--preset is that of the training step: give --step too")
    resolve(given.preset or "demo", {})
    if given.out is not None:
        try:
            tempfile.TemporaryFile(dir=given.out.parent).close()
        except OSError as error:
            raise ValueError(
                f"--out must lie in a folder that can be written, got {given.out}: {error.strerror}"
            ) from None
        if given.out.is_dir():
            raise ValueError(f"--out must be a file, got the folder {given.out}")
    return choose_device(given.device)


def run(given: argparse.Namespace) -> int:
    """Everything between the command line and the exit status."""
    from tqdm import tqdm

    device = check(given)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and streams are those of the current device
    else:
        keep_freed_memory()  # as `train`
    cases = make_cases(device, given.samples, given.threads, not given.no_reference, given.distortions)
    if not cases:
        raise ValueError(f"--no-reference leaves nothing: no kernels for {device.type}; {how_to_compile(device.type)}")
    about, rows = machine(), []
    print(describe(device, about), flush=True)
    with tqdm(total=len(cases) + given.step, unit="row", disable=given.quiet, leave=False) as bar:

        def add(row: dict) -> None:
            if not rows or rows[-1]["section"] != row["section"]:
                bar.write(f"\n{TITLES[row['section']]}\n{HEAD}")
            same = [r for r in rows if all(r[k] == row[k] for k in ("section", "subject", "setting"))]
            bar.write(line(row, same[0] if same else None))
            rows.append(row)
            bar.update()

        for case in cases:
            add(measure(case, device, given.seconds))
        if given.step:
            add(measure_step(given.preset or "demo", device, given.threads, given.seconds))
    if given.out is not None:
        write_json(given.out, {"format": 1, "machine": about, "device": str(device), "rows": rows})
        print(f"\nwrote {given.out}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input, 130 interrupted, told on stderr in one line."""
    given = make_parser().parse_args(argv)
    return guard("bench", lambda: run(given), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
