"""A training step and its split: the demonstration's small network on the CPU, ResNet-50 at published size on a GPU."""

from __future__ import annotations

import dataclasses
import statistics

import measure
import pytest
import torch
from measure import DEVICES, backend_context

from shamisa import ops, profiling
from shamisa.config import DEMO, PAPER
from shamisa.train import Trainer

CASES = [
    ("demo, 96 px, N = 126", "cpu", "native", 1),
    ("demo, 96 px, N = 126", "cpu", "native, all threads", measure.all_threads()),
    ("demo, 96 px, N = 126", "cpu", "reference", 1),
    ("paper, ResNet-50 bf16, N = 252", "cuda", "native", 1),
    ("paper, ResNet-50 bf16, N = 2016", "cuda", "native", 1),
]


STEPS = 4  # in a call, the same ones in every row: what a plan costs differs from step to step


@pytest.mark.parametrize("subject, device, who, count", [c for c in CASES if c[1] in DEVICES])
def test_step(row, benchmark, subject, device, who, count):
    """Plan, distortions, encoder, loss, backward and optimizer; the crops are there already."""
    if who != "reference" and not ops.has_kernel("distort", device):
        pytest.skip(f"no compiled kernel for {device}")
    if count == 1 and who.endswith("all threads"):
        pytest.skip("one core")
    backend = who.partition(",")[0]
    if device == "cpu":
        config = dataclasses.replace(DEMO, backend=backend, device="cpu", demo=False)
    else:
        size = 16 if "2016" in subject else 2
        config = dataclasses.replace(
            PAPER, refs="embedded", init="none", batch=size, backend=backend, device="cuda", workers=0
        )
    with measure.threads(count):
        trainer = Trainer(config, quiet=True)
        crops, _ = trainer.references.batch(0)
        watch, splits = profiling.Stopwatch(trainer.device), []

        def steps():
            trainer.step = 0
            for _ in range(STEPS):
                watch.start()
                with backend_context(who):
                    record = trainer.train_step(crops, watch)
                splits.append(record["timing"]["split"])

        try:
            steps()
        except torch.cuda.OutOfMemoryError as full:
            pytest.skip(f"too large for this GPU: {full}")
        work = {"flops": measure.operations(steps)} if config.precision != "bf16" and device == "cpu" else {}
        splits.clear()
        row(
            steps,
            section="step",
            subject=subject,
            row=who,
            device=device,
            images=STEPS * trainer.images(),
            steps=STEPS,
            seconds=5.0 if backend == "native" else 15.0,
            least=5 if backend == "native" else 3,
            **work,
        )
    if benchmark.enabled:
        measured = splits[STEPS:] or splits
        parts = {k: 1e3 * statistics.mean(s[k] for s in measured) for k in measured[0]}
        benchmark.extra_info["split_ms"] = {k: float(f"{v:.4g}") for k, v in parts.items()}
        if device == "cuda":
            benchmark.extra_info["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
