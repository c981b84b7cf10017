"""``--dry-run``: what a run would do, what it would take, from a few real steps; nothing is written."""

from __future__ import annotations

import statistics
import sys
import time

import torch

from ..measuring.profiling import Stopwatch
from .trainer import Trainer, TrainingError

STEPS, WARMUP, SECONDS = 20, 2, 60.0  # timed steps, steps before them, and when to stop early


def run(trainer: Trainer) -> tuple[str, str]:
    """The plan as a table of lines, and what is to be noted of it ("": nothing); both "" but in the main process.

    Every process must call it. The trainer is used up.

    Raises:
        TrainingError: no photograph can be read, or a step fails.
    """
    before = peak_memory(trainer.device)
    splits, seconds = measure(trainer)
    if not trainer.processes.main:
        return "", ""
    c, world, per = trainer.config, trainer.processes.world_size, trainer.images()
    mean = statistics.median(sum(s.values()) for s in splits)
    counts = {
        n: sum(p.numel() for p in getattr(trainer.model, n).parameters()) for n in ("encoder", "projector", "loss")
    }
    rows = {
        "device": f"{f'{world} processes, ' if world > 1 else ''}{trainer.device}, {trainer.precision}".replace(
            "torch.", ""
        ),
        "photographs": f"{len(trainer.references.source)} in {c.refs}",
        "samples of a step": f"{trainer.samples} = batch {c.batch} x accumulate {c.accumulate} x processes {world}",
        "images of a step": f"{per}, of {c.crop} x {c.crop} pixels",
        "steps": f"{trainer.steps}, of {trainer.steps_per_epoch} in an epoch",
        "images in all": f"{trainer.steps * per:,}",
        "parameters": ", ".join(f"{n} {count / 1e6:.2f} M" for n, count in counts.items()),
    }
    rows |= memory(trainer, before)
    rows["step"] = (
        f"{1000 * mean:.1f} ms, median of {len(splits)} timed steps after {WARMUP}; {per / mean:.1f} images/s"
    )
    rows["split"] = ", ".join(
        f"{k} {1000 * statistics.median(s[k] for s in splits):.1f}" for k in splits[0]
    ) + " ms"  # fmt: skip
    rows["time in all"] = f"{clock(trainer.steps * mean)}, without checkpoints and pictures"
    few = f"only {len(splits)} of {STEPS} steps were timed: {seconds:.0f} s were enough"
    return "\n".join(f"{name:18} {text}" for name, text in rows.items()), few if len(splits) < STEPS else ""


def measure(trainer: Trainer) -> tuple[list[dict[str, float]], float]:
    """(split of each timed step, seconds they all took); at least one step, fewer than STEPS after SECONDS."""
    trainer.connect()
    loader, watch, splits, start = trainer.loader(WARMUP + STEPS), Stopwatch(trainer.device), [], time.perf_counter()
    while trainer.step < WARMUP + STEPS:
        watch.start()
        watch.begin("data")
        crops, _, error = trainer.read(loader, lambda: False)
        late = trainer.step > WARMUP and time.perf_counter() - start > SECONDS
        late, error, _ = trainer.processes.share(late, error)
        if error:
            raise TrainingError(f"step {trainer.step}: {error}")
        if late:
            break
        trainer.advance(crops, watch)
        if trainer.due:
            splits += _splits(trainer, watch)
    return (splits + _splits(trainer, watch))[WARMUP:], time.perf_counter() - start


def _splits(trainer: Trainer, watch: Stopwatch) -> list[dict[str, float]]:
    try:
        return [record["timing"]["split"] for record in trainer.fetch(watch)]
    except FloatingPointError as error:
        raise TrainingError(str(error)) from None


def memory(trainer: Trainer, before: int) -> dict[str, str]:
    """Rows about memory: measured peak of this process, and what of it can be counted."""
    c, mb = trainer.config, 1e-6
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    state = sum(
        t.numel() * t.element_size() for s in trainer.optimizer.state.values() for t in s.values() if torch.is_tensor(t)
    )
    pixels = 3 * c.crop**2
    views = c.batch * trainer.references.views
    images = views * (1 + c.compositions * c.levels)
    itemsize = torch.empty((), dtype=trainer.precision).element_size()
    known = {
        "weights": weights,
        "gradients": weights,
        "optimizer": state,
        "crops": views * pixels,
        "images": images * pixels * itemsize,
        "prefixes of chains": views * c.compositions * pixels * 4,
        "h and z with gradients": 2 * 4 * images * (trainer.model.feature_dim + c.embedding),
    }
    peak = peak_memory(trainer.device)
    counted = sum(known.values())
    what = (
        "on the GPU"
        if trainer.device.type == "cuda"
        else f"of the process (before the first step: {before * mb:.0f} MB)"
    )
    return {
        "memory, measured": f"{peak * mb:,.0f} MB, the peak {what}",
        "memory, counted": f"{counted * mb:,.0f} MB: " + ", ".join(f"{n} {b * mb:,.1f}" for n, b in known.items()),
        "memory, rest": f"{(peak - counted) * mb:,.0f} MB: activations of the encoder, workspace, "
        + ("fragments" if trainer.device.type == "cuda" else "Python and libraries"),
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest allocation on the GPU, or the largest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def clock(seconds: float) -> str:
    """Seconds as days, hours and minutes."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    days, rest = divmod(round(minutes), 24 * 60)
    return (f"{days} d " if days else "") + f"{rest // 60} h {rest % 60} min"
