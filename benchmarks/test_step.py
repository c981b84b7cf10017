"""A training step and its split: the demonstration's small network on the CPU, ResNet-50 at published size on a GPU."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

import measure
import pytest
import torch
from measure import DEVICES, IS_REFERENCE, backend_context, error

from shamisa import ops
from shamisa.measuring import profiling
from shamisa.train import Trainer
from shamisa.training.config import DEMO, PAPER, Config

ALONE, GRAPH = "encoder alone", "native, CUDA graph"
CASES = [
    ("demo, 96 px, N = 126", "cpu", ALONE, 1),
    ("demo, 96 px, N = 126", "cpu", "native", 1),
    ("demo, 96 px, N = 126", "cpu", "native, all threads", measure.all_threads()),
    ("demo, 96 px, N = 126", "cpu", "reference", 1),
]
SAMPLES = {f"paper, ResNet-50 bf16, N = {126 * B}": B for B in (2, 8, 16)}
CASES += [(subject, "cuda", who, 1) for subject in SAMPLES for who in (ALONE, "native", GRAPH)]


STEPS = 4  # in a call, the same ones in every row: what a plan costs differs from step to step
ALONE_SECONDS: dict[tuple[str, int], float] = {}  # subject, threads -> of the row of the encoder alone, measured before


def config_of(subject: str, device: str, backend: str, cuda_graph: bool = False) -> Config:
    if device == "cpu":
        return dataclasses.replace(DEMO, backend=backend, device="cpu", demo=False)
    options = {"refs": "embedded", "init": "none", "backend": backend, "device": "cuda", "workers": 0}
    return dataclasses.replace(PAPER, batch=SAMPLES[subject], cuda_graph=cuda_graph, **options)


def losses(config: Config, backend: str) -> torch.Tensor:
    """Totals of the first steps of a training from the beginning [STEPS]."""
    trainer = Trainer(config, quiet=True)
    crops, _ = trainer.references.batch(0)
    watch = profiling.Stopwatch(trainer.device)
    with backend_context(backend):
        return torch.tensor([trainer.train_step(crops, watch)["loss"]["total"] for _ in range(STEPS)])


def encoder_alone(trainer: Trainer) -> Callable[[], None]:
    """STEPS steps of the encoder and its optimizer on random images that are there already: what no step can beat."""
    c = trainer.config
    counts = [c.batch * trainer.references.views * n for n in (1, c.compositions * c.levels)]  # pristine, distorted
    images = [
        torch.randn(n, 3, c.crop, c.crop, device=trainer.device).to(trainer.precision, memory_format=trainer.layout)
        for n in counts
    ]
    low = trainer.precision != torch.float32

    def call() -> None:
        for _ in range(STEPS):
            trainer.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(trainer.device.type, trainer.precision, enabled=low):
                h = [trainer.model.encoder(x) for x in images]
            sum(x.float().square().mean() for x in h).backward()
            trainer.optimizer.step()

    return call


@pytest.mark.parametrize("subject, device, who, count", [c for c in CASES if c[1] in DEVICES])
def test_step(row, benchmark, subject, device, who, count):
    """Plan, distortions, encoder, loss, backward and optimizer; the crops are there already."""
    if who != "reference" and not ops.has_kernel("distort", device):
        pytest.skip(f"no compiled kernel for {device}")
    if count == 1 and who.endswith("all threads"):
        pytest.skip("one core")
    backend = who.partition(",")[0] if who != ALONE else "native"
    config = config_of(subject, device, backend, cuda_graph=who == GRAPH)
    with measure.threads(count):
        try:
            found, wanted = IS_REFERENCE, None
            if who == ALONE:
                found = "no loss"
            elif who == GRAPH:  # the same kernels, launched one by one
                wanted = losses(config_of(subject, device, backend), backend)
            elif SAMPLES.get(subject, 2) > 2:
                found = "minutes of the reference"
            elif who != "reference":
                wanted = losses(config_of(subject, device, "reference"), "reference")
            if wanted is not None:
                found = error(losses(config, backend), wanted) | {"error_of": "loss"}
            trainer = Trainer(config, quiet=True)
            crops, _ = trainer.references.batch(0)
            watch, splits = profiling.Stopwatch(trainer.device), []
            alone = encoder_alone(trainer) if who == ALONE else None

            def steps():
                if alone is not None:
                    return alone()
                trainer.step = 0
                for _ in range(STEPS):
                    watch.start()
                    with backend_context(who):
                        record = trainer.train_step(crops, watch)
                    splits.append(record["timing"]["split"])

            steps()
            # a graph that is replayed calls no operator that could be counted
            counted = steps if who != GRAPH else lambda: losses(config_of(subject, device, backend), backend)
            flops = measure.operations(counted)
        except torch.cuda.OutOfMemoryError as full:
            pytest.skip(f"too large for this GPU: {full}")
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
        info, median = benchmark.extra_info, benchmark.stats.stats.median
        if who == ALONE:
            ALONE_SECONDS[subject, count] = median
        elif (subject, count) in ALONE_SECONDS:
            info["share_of_encoder"] = ALONE_SECONDS[subject, count] / median
        measured = splits[STEPS:] or splits
        if measured:
            parts = {k: 1e3 * statistics.mean(s[k] for s in measured) for k in measured[0]}
            info["split_ms"] = {k: float(f"{v:.4g}") for k, v in parts.items()}
        if device == "cuda":
            info["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
