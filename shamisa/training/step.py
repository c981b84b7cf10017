"""One step of training: crops -> chains of distortions -> encoder -> projector -> objective -> optimizer.

Crops and chains are functions of the seed, the step and the position in the step's global batch, which has batch x accumulate
x processes samples; so they do not depend on how the batch is split over processes and accumulated parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine import Plan, normalize
from ..measuring.profiling import Stopwatch
from ..networks.encoders import normalization
from ..relations import TERMS, RelationOutput
from . import embeddings, graphed
from .config import Config
from .parallel import Processes
from .parts import Parts

FETCH_EVERY = 10  # steps of a GPU whose values are looked at together


@dataclass(frozen=True)
class Waiting:
    """A step that was started and whose values nobody has looked at."""

    step: int
    lr: float
    values: Tensor  # [8] terms of the objective and norm of the gradient, on the device
    embedded: tuple[Tensor, Tensor] | None  # z and h, where they are to be looked at
    marks: list  # of the stopwatch


class Stepper:
    """Model, optimizer and what a step needs beside them. ``connect`` comes before the first step."""

    def __init__(self, config: Config, processes: Processes, parts: Parts) -> None:
        self.config, self.processes = config, processes
        self.device, self.precision, self.layout = parts.device, parts.precision, parts.layout
        self.engine, self.references = parts.engine, parts.references
        self.model, self.optimizer = parts.model, parts.optimizer
        self.normalization = normalization(self.model.encoder)
        self.learner: nn.Module = self.model  # with gradients averaged over processes, after ``connect``
        self.samples = config.batch * config.accumulate * processes.world_size  # of a step
        self.steps_per_epoch = -(-len(self.references.source) // self.samples)
        self.steps = config.steps or math.ceil(config.epochs * self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.buffers = _by_type(self.model.buffers())
        # a step was not finite: nothing changes any more
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)
        self.waiting: list[Waiting] = []  # steps whose values nobody has looked at
        # each look waits for the device; a scaler's state must not run ahead of it
        self.fetch_every = 1 if self.device.type == "cpu" or self.scaler.is_enabled() else FETCH_EVERY
        self.graphed: graphed.GraphedStep | None = None
        self.step = 0  # steps done

    def connect(self) -> None:
        """Average gradients over the processes from now on; every process must call it."""
        self.learner = self.processes.wrap(self.model)

    def images(self) -> int:
        """Images that pass the encoder in a step, in all processes."""
        return self.samples * self.references.views * (1 + self.config.compositions * self.config.levels)

    def plan(self, part: int = 0) -> Plan:
        """The plan of this process's samples in accumulated part ``part`` of the running step, on the CPU."""
        first = (part * self.processes.world_size + self.processes.rank) * self.config.batch
        return self.engine.sample(self.config.batch, seed=self.config.seed, step=self.step, first_sample=first)

    def forward(
        self, references: Tensor, plan: Plan, begin: Callable[[str], None] = lambda part: None
    ) -> tuple[RelationOutput, Tensor, Tensor]:
        """references [B, V, 3, H, W] uint8, plan, both on the device -> objective, z_dist, h_dist.

        ``begin`` is told when a part of the step begins.
        """
        begin("distortions")
        options = {"dtype": self.precision, "memory_format": self.layout, "backend": self.config.backend}
        options |= self.normalization
        x = self.engine(references, plan, **options)
        x_ref = normalize(references, **options)
        begin("encoder")
        return self.learner(x_ref, x, plan, begin)

    @staticmethod
    def terms(out: RelationOutput) -> list[Tensor]:
        """The terms of the objective in the order of TERMS, detached."""
        return [getattr(out, t).detach().float() for t in TERMS]

    def train_step(self, crops: Tensor | Sequence[Tensor], watch: Stopwatch) -> dict:
        """One step, waited for -> its record; FloatingPointError leaves all as it was.

        crops: [B, V, 3, H, W] uint8, or a list of ``accumulate`` of them.
        """
        self.advance(crops, watch)
        return list(self.fetch(watch))[-1]

    def advance(self, crops: Tensor | Sequence[Tensor], watch: Stopwatch) -> None:
        """Start one step; nothing waits for a GPU. ``fetch`` tells how it went.

        A step with a value that is not finite changes neither weights nor optimizer, nor do those after it.
        """
        c, step = self.config, self.step
        parts = [crops] if isinstance(crops, Tensor) else crops
        lr = c.learning_rate(step, self.steps, self.steps_per_epoch)
        values, z, h = (self._graphed_step if c.cuda_graph else self._eager_step)(parts, lr, watch)
        looked_at = c.rank_every and step % c.rank_every == 0 and self.processes.main
        embedded = (z.clone(), h.clone()) if looked_at else None
        self.waiting.append(Waiting(step, lr, values, embedded, watch.take()))
        self.step += 1

    @property
    def due(self) -> bool:
        """Whether the values of the last steps are to be fetched now; the same in all processes."""
        return (self.step - 1) % self.fetch_every == 0

    def fetch(self, watch: Stopwatch) -> Iterator[dict]:
        """The records of the steps since the last call, by one transfer.

        Raises:
            FloatingPointError: at the first step with a value that is not finite, naming both; all, ``step`` too, is
                then as it was before that step.
        """
        waiting, self.waiting = self.waiting, []
        rows = torch.stack([w.values for w in waiting]).tolist() if waiting else []
        for w, row in zip(waiting, rows, strict=True):
            try:
                values = self._check(w.step, row)
            except FloatingPointError:
                self.step = w.step
                self.bad.zero_()
                raise
            norm = values.pop("grad_norm")
            record = {"step": w.step, "epoch": w.step / self.steps_per_epoch, "lr": w.lr, "loss": values}
            record["grad_norm"] = norm if math.isfinite(norm) else None
            if w.embedded:
                record |= embeddings.summary(*w.embedded)
            split = watch.seconds(w.marks)
            record["timing"] = {"images_per_s": round(self.images() / sum(split.values()), 3), "split": split}
            yield record

    def _eager_step(self, parts: Sequence[Tensor], lr: float, watch: Stopwatch) -> tuple[Tensor, Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        watch.begin("distortions")
        return self.update([(crops, self.plan(i)) for i, crops in enumerate(parts)], watch.begin)

    def _graphed_step(self, parts: Sequence[Tensor], lr: float, watch: Stopwatch) -> tuple[Tensor, Tensor, Tensor]:
        watch.begin("step")  # what happens inside a graph has no times of its own
        plan = self.plan()
        if self.graphed is None:
            self.graphed = graphed.GraphedStep(self, parts[0], plan)
        values, z, h = self.graphed(parts[0], plan, lr)
        return values.clone(), z, h

    def update(
        self, batches: Sequence[tuple[Tensor, Plan]], begin: Callable[[str], None] = lambda part: None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forward, backward and optimizer over the parts of a step, crops [B, V, 3, H, W] uint8 and plan each.

        -> values [8] (terms of the objective, norm of the gradient; means over parts and processes), z_dist, h_dist.
        Whether they are finite is decided on the device: if not, weights, optimizer and buffers stay as they were, from
        then on (``bad``). Where only gradients overflow under a scaler, this step alone is left out.
        """
        totals = None
        before = [_flat(group) for group in self.buffers]  # batch normalisation changes them in the forward pass
        self.optimizer.zero_grad(set_to_none=True)
        for i, (crops, plan) in enumerate(batches):
            with self.processes.without_averaging(self.learner, skip=i < len(batches) - 1):
                crops, plan = crops.to(self.device, non_blocking=True), plan.to(self.device, non_blocking=True)
                out, z, h = self.forward(crops, plan, begin)
                begin("backward")
                self.scaler.scale(out.total / len(batches)).backward()
            terms = torch.stack(self.terms(out)) / len(batches)
            totals = terms if totals is None else totals + terms
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        values = self.processes.mean(torch.cat([totals, norm.float()[None]]))
        begin("optimizer")
        finite = values.isfinite()
        self.bad.logical_or_(~(finite[:-1] if self.scaler.is_enabled() else finite).all())
        if self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip, norm)
        self.optimizer.found_inf = (self.bad | ~finite.all()).float()  # fused optimizers then change nothing
        self.optimizer.step()
        self.scaler.update()
        for group, old in zip(self.buffers, before, strict=True):
            kept = torch.where(self.bad, old, _flat(group)).split([b.numel() for b in group])
            torch._foreach_copy_(group, [k.view_as(b) for k, b in zip(kept, group, strict=True)])
        return values, z.detach(), h.detach()

    def _check(self, step: int, values: list[float]) -> dict[str, float]:
        """Terms and norm by name; FloatingPointError, naming them, where some are not finite."""
        named = dict(zip((*TERMS, "grad_norm"), values, strict=True))
        may_overflow = self.scaler.is_enabled()  # a scaler skips such a step by itself
        bad = [
            f"{'norm of the gradient' if n == 'grad_norm' else n} is {v}"
            for n, v in named.items()
            if not math.isfinite(v) and not (n == "grad_norm" and may_overflow)
        ]
        if bad:
            raise FloatingPointError(f"step {step}: " + ", ".join(bad))
        return named


def _by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors in groups of one data type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    return list(groups.values())


def _flat(tensors: list[Tensor]) -> Tensor:
    """Tensors of one type -> a copy of all their elements, [n]."""
    return torch.cat([t.flatten() for t in tensors])
