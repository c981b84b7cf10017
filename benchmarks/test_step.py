"""A training step and its split: the demonstration's small network on the CPU, ResNet-50 at published size on a GPU."""

from __future__ import annotations

import dataclasses
import statistics

import measure
import pytest
import torch
from measure import DEVICES, IS_REFERENCE, backend_context, error

from shamisa import ops
from shamisa.measuring import profiling
from shamisa.train import Trainer
from shamisa.training.config import DEMO, PAPER, Config

CASES = [
    ("demo, 96 px, N = 126", "cpu", "native", 1),
    ("demo, 96 px, N = 126", "cpu", "native, all threads", measure.all_threads()),
    ("demo, 96 px, N = 126", "cpu", "reference", 1),
    ("paper, ResNet-50 bf16, N = 252", "cuda", "native", 1),
    ("paper, ResNet-50 bf16, N = 2016", "cuda", "native", 1),
]


STEPS = 4  # in a call, the same ones in every row: what a plan costs differs from step to step


def config_of(subject: str, device: str, backend: str) -> Config:
    if device == "cpu":
        return dataclasses.replace(DEMO, backend=backend, device="cpu", demo=False)
    size = 16 if "2016" in subject else 2
    return dataclasses.replace(
        PAPER, refs="embedded", init="none", batch=size, backend=backend, device="cuda", workers=0
    )


def losses(config: Config, backend: str) -> torch.Tensor:
    """Totals of the first steps of a training from the beginning [STEPS]."""
    trainer = Trainer(config, quiet=True)
    crops, _ = trainer.references.batch(0)
    watch = profiling.Stopwatch(trainer.device)
    with backend_context(backend):
        return torch.tensor([trainer.train_step(crops, watch)["loss"]["total"] for _ in range(STEPS)])


@pytest.mark.parametrize("subject, device, who, count", [c for c in CASES if c[1] in DEVICES])
def test_step(row, benchmark, subject, device, who, count):
    """Plan, distortions, encoder, loss, backward and optimizer; the crops are there already."""
    if who != "reference" and not ops.has_kernel("distort", device):
        pytest.skip(f"no compiled kernel for {device}")
    if count == 1 and who.endswith("all threads"):
        pytest.skip("one core")
    backend = who.partition(",")[0]
    config = config_of(subject, device, backend)
    with measure.threads(count):
        found = IS_REFERENCE
        if "2016" in subject:
            found = "minutes of the reference"
        elif who != "reference":
            wanted = losses(config_of(subject, device, "reference"), "reference")
            found = error(losses(config, backend), wanted) | {"error_of": "loss"}
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
        flops = measure.operations(steps)
        splits.clear()
        row(
            steps,
            section="step",
            subject=subject,
            row=who,
            device=device,
            error=found,
            images=STEPS * trainer.images(),
            steps=STEPS,
            seconds=5.0 if backend == "native" else 15.0,
            least=5 if backend == "native" else 3,
            flops=flops,
            dtype="float32" if device == "cpu" else "bfloat16",  # of the encoder, where the operations are
        )
    if benchmark.enabled:
        measured = splits[STEPS:] or splits
        parts = {k: 1e3 * statistics.mean(s[k] for s in measured) for k in measured[0]}
        benchmark.extra_info["split_ms"] = {k: float(f"{v:.4g}") for k, v in parts.items()}
        if device == "cuda":
            benchmark.extra_info["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
