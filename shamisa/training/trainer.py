"""The trainer: everything a run needs, built and checked before a folder is made; one step; the loop over the steps.

One step: crops of 3 photographs at 2 scales -> chains of distortions -> encoder -> projector -> loss -> optimizer. Crops
and chains are functions of the seed, the step and the position in the step's global batch, which has batch x accumulate x
processes samples; so they do not depend on how the batch is split over processes and accumulated parts.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import opening
from ..data.decode import READ_CUT_OFF
from ..data.photos import Photos
from ..engine import DistortionEngine, Plan, normalize
from ..measuring.profiling import Recording, Stopwatch
from ..measuring.versions import versions
from ..networks.checkpoints import Checkpoint
from ..networks.devices import choose_device
from ..networks.encoders import name_of, normalization, recorded
from ..networks.models import check_record
from ..networks.weights import load_matching
from ..ops import has_kernel
from ..relations import TERMS, RelationOutput
from . import check, embeddings, graphed, loggers, runs
from . import config as configuration
from .config import Config
from .learner import Learner
from .parallel import Processes
from .parts import check_crop, choose_precision, make_optimizer, open_photos

FETCH_EVERY = 10  # steps of a GPU whose values are looked at together


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and where the last good checkpoint is."""


@dataclass(frozen=True)
class Waiting:
    """A step that was started and whose values nobody has looked at."""

    step: int
    lr: float
    values: Tensor  # [8] terms of the objective and norm of the gradient, on the device
    embedded: tuple[Tensor, Tensor] | None  # z and h, where they are to be looked at
    marks: list  # of the stopwatch


class Trainer:
    """All that is needed for steps: built, and so checked, before a run folder is made.

    Building it speaks to no other process; ``connect`` does. ``encoder``: any module, see ``learner.Learner``.
    ``photos``: any source, see ``data.photos.Photos``, in place of the configuration's refs.
    """

    def __init__(
        self,
        config: Config,
        quiet: bool = False,
        processes: Processes | None = None,
        encoder: nn.Module | None = None,
        photos: Photos | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.config, self.quiet = config, quiet or not self.processes.main
        self.device = choose_device(config.device, self.processes.local_rank if self.processes.several else None)
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # events, streams and graphs are those of the current device
        self.precision = choose_precision(config.precision, self.device)
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        check_crop(config)
        loggers.check(config)
        if config.label_root and not config.labels:
            raise ValueError(f"label-root belongs to --labels, got {config.label_root!r} without it")
        self.labelled = (
            check.LabelledPart.open(config.labels, config.label_root, config.seed, config.truncated)
            if config.labels
            else None
        )
        normalize(
            torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=self.device), backend=config.backend
        )  # is it there?
        if config.cuda_graph:
            kernels = tuple(k for k in ("cpu", "cuda") if has_kernel("distort", k))
            graphed.check_graphable(config, self.device, self.precision, self.processes.world_size, kernels)
        self.engine = DistortionEngine(**config.engine_options())
        self.references = opening.make_references(
            open_photos(config, self.processes.world_size) if photos is None else photos,
            reader=config.reader,
            device=self.device,
            batch_size=config.batch,
            seed=config.seed,
            crop=config.crop,
            pad=config.pad,
            max_skipped=config.max_skipped,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )
        self.samples = config.batch * config.accumulate * self.processes.world_size  # of a step
        self.steps_per_epoch = -(-len(self.references.source) // self.samples)
        self.steps = config.steps or math.ceil(config.epochs * self.steps_per_epoch)
        # of the demonstration's comparison; the configuration's encoder can be built again
        self.untrained = copy.deepcopy(encoder) if encoder is not None and config.demo else None
        self.model = Learner(config, encoder).to(self.device, memory_format=self.layout).train()
        self.normalization = normalization(self.model.encoder)
        if config.sync_bn:
            self.model = self.processes.share_batch_norm(self.model, self.device)
        if config.compile:
            self.model.encoder.compile()
            self.model.projector.compile()
        self.learner: nn.Module = self.model  # with gradients averaged over processes, after ``connect``
        self.optimizer = make_optimizer(config, self.model, graphed=config.cuda_graph)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.buffers = _by_type(self.model.buffers())
        self.bad = torch.zeros(
            (), dtype=torch.bool, device=self.device
        )  # a step was not finite: nothing changes any more
        self.waiting: list[Waiting] = []  # steps whose values nobody has looked at
        # each look waits for the device; a scaler's state must not run ahead of it
        self.fetch_every = 1 if self.device.type == "cpu" or self.scaler.is_enabled() else FETCH_EVERY
        self.logs: list[loggers.Logger] = []  # of the main process, opened with the run
        self.graphed: graphed.GraphedStep | None = None
        self.history = check.History()  # how the encoder was judged so far
        self.collapse = ""  # in words, why the run must end
        self.step = 0  # steps done
        self.signal = 0  # that ended the run early

    def connect(self) -> None:
        """Average gradients over the processes from now on; every process must call it."""
        self.learner = self.processes.wrap(self.model)

    def images(self) -> int:
        """Images that pass the encoder in a step, in all processes."""
        return self.samples * self.references.views * (1 + self.config.compositions * self.config.levels)

    # ---- one step ----------------------------------------------------------------------------------------------------
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

    # ---- the run -----------------------------------------------------------------------------------------------------
    def save(self, run: runs.Run) -> Path:
        """Checkpoint after ``self.step`` steps; its score is that of the checks of the last ``best_window`` steps."""
        state = {"scaler": self.scaler.state_dict(), "header": header(self.config, self.processes.world_size)}
        score = self.history.score(self.step, self.config.best_window) if self.config.best_window else None
        return run.save(self.step, self.model, self.optimizer, state, self.config.keep, score)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint: weights, optimizer, scaler, step."""
        own, other = name_of(self.model.encoder), checkpoint.index["encoder"]
        if own != other:
            raise runs.RunError(
                f"{checkpoint.path} must hold the encoder {own}, got {other}: a run of a module of your own goes on "
                "with Trainer(config, encoder=MODULE)"
            )
        owner = str(checkpoint.path)
        check_record(self.model.encoder, recorded(checkpoint.index, owner), owner)
        weights = checkpoint.model_tensors()
        load_matching(self.model, weights, f"{checkpoint.path} does not fit this configuration")
        runs.load_optimizer(self.model, self.optimizer, checkpoint.state_tensors())
        if self.scaler.is_enabled() and checkpoint.index["scaler"]:
            self.scaler.load_state_dict(checkpoint.index["scaler"])
        self.step = checkpoint.step

    def loader(self, stop_step: int) -> Iterator[tuple[int, Tensor, dict[str, str]]]:
        """Crops of the accumulated parts, one after the other, from the running step on."""
        c = self.config
        parts = (self.step * c.accumulate, stop_step * c.accumulate)
        pin = self.device.type == "cuda"
        return self.references.loader(*parts, workers=c.workers, prefetch=c.prefetch, pin_memory=pin)

    def read(self, loader: Iterator, stop: Callable[[], bool]) -> tuple[list[Tensor], dict[str, str], str]:
        """The crops of a step's parts, what is to be noted of photographs, and in words what went wrong."""
        crops, notes = [], {}
        known = set(self.references.cut_off)
        try:
            while len(crops) < self.config.accumulate and not stop():
                _, part, found = next(loader)
                crops.append(part)
                notes |= found | dict.fromkeys(sorted(self.references.cut_off - known), READ_CUT_OFF)
        except RuntimeError as error:  # too many photographs cannot be read, or Ctrl-C also reached the workers
            return crops, notes, "" if stop() else str(error)
        return crops, notes, ""

    def fit(self, run: runs.Run, stop: Callable[[], bool] = lambda: False, nvtx: bool = False, profile: int = 0) -> str:
        """Train until the last step or until ``stop()``; -> "finished" or "interrupted", with a checkpoint either way.

        Args:
            run: the main process writes to it, the others do not.
            stop: asked once per step; what one process says holds for all.
            nvtx: parts of a step as NVTX ranges.
            profile: steps to record with torch's profiler into RUN/profile.

        Raises:
            TrainingError: a term or gradient that is not finite (the state before that step is saved), too many
                photographs that cannot be read, or another process that is gone.
        """
        c, main = self.config, self.processes.main
        with self._lost_processes_named(run):
            self.connect()
            loader = self.loader(self.steps)
            with ExitStack() as stack:
                watch, bar, recording = self._open(stack, run, nvtx, profile)
                if main and c.check_every and not self.history.checks:
                    self.judge(bar)
                while self.step < self.steps:
                    read = self._next(loader, stop, run, watch, bar)
                    if read is None:
                        break
                    crops, notes = read
                    self.advance(crops, watch)
                    if main:
                        run.note_photos(notes)
                    bar.update(self.images())
                    saving = c.checkpoint_every and self.step % c.checkpoint_every == 0 and self.step < self.steps
                    judging = c.check_every and (saving or self.step % c.check_every == 0 or self.step == self.steps)
                    if saving or judging or self.due:
                        self._report(run, watch, bar)
                    recording.step()
                    if judging and main:
                        self.judge(bar)
                    if saving and main:
                        self._sync()
                        self.save(run)
                self._report(run, watch, bar)
                self._sync()
            if main:
                self.save(run)
            if self.collapse:  # after the last step: nobody else waits
                raise self._failure(self.collapse, run)
        return "finished" if self.step == self.steps else "interrupted"

    def _open(self, stack: ExitStack, run: runs.Run, nvtx: bool, profile: int) -> tuple[Stopwatch, tqdm, Recording]:
        """What goes along with the loop, closed with ``stack``: the logs last, and told whether all went well."""
        watch = Stopwatch(self.device, nvtx, record=bool(profile))
        for log in self.logs:
            stack.push(lambda kind, *_, log=log: log.close(kind is None))
        bar = stack.enter_context(self.progress())
        recording = Recording(run.path / "profile", profile if self.processes.main else 0, self.device)
        return watch, bar, stack.enter_context(recording)

    def _next(
        self, loader: Iterator, stop: Callable[[], bool], run: runs.Run, watch: Stopwatch, bar: tqdm
    ) -> tuple[list[Tensor], dict[str, str]] | None:
        """Crops and notes of the next step, or None where a process is to end; TrainingError where one cannot go on."""
        watch.start()
        watch.begin("data")
        crops, notes, error = self.read(loader, stop)
        ending, error, notes = self.processes.share(stop(), error or self.collapse, notes)
        if error:
            self._report(run, watch, bar)
            raise self._failure(error, run)
        return None if ending else (crops, notes)

    def _sync(self) -> None:
        """A checkpoint never runs ahead of the metrics."""
        for log in self.logs:
            log.sync()

    def _failure(self, reason: str, run: runs.Run) -> TrainingError:
        return TrainingError(f"step {self.step}: {reason}; last good checkpoint: {last_checkpoint(run)}")

    @contextmanager
    def _lost_processes_named(self, run: runs.Run) -> Iterator[None]:
        """What torch raises where another process is gone becomes a TrainingError."""
        try:
            yield
        except TrainingError:  # names of photographs in it may look like words of the network
            raise
        except RuntimeError as error:
            if not self.processes.lost(error):
                raise
            within = f"did not answer within {self.processes.timeout:g} s ({str(error).splitlines()[0]})"
            raise self._failure(f"another process ended or {within}", run) from error

    def _report(self, run: runs.Run, watch: Stopwatch, bar: tqdm) -> None:
        """Records of the last steps to all logs; TrainingError, after a checkpoint, where one was not finite."""
        try:
            for record in self.fetch(watch):
                for log in self.logs:
                    log.write(record)
                words = f"step {record['step'] + 1}/{self.steps} loss {record['loss']['total']:.4g}"
                bar.set_postfix_str(f"{words} {self.history.words()}".rstrip(), refresh=False)
        except FloatingPointError as error:
            where = f"; the state before this step is in {self.save(run)}" if self.processes.main else ""
            raise TrainingError(f"{error}{where}") from None

    def judge(self, bar: tqdm) -> None:
        """Check the encoder and log it; a warning, or with stop_on_collapse the end of the run, where it got worse."""
        c = self.config
        found = check.judge(self.model.encoder, self.step, crop=c.crop, backend=c.backend, labelled=self.labelled)
        self.history.checks.append(found)
        for log in self.logs:
            log.write({"check": found.record()})
        fault = self.history.fault()
        if fault and c.stop_on_collapse:
            self.collapse = fault
        elif fault:
            bar.write(f"warning: step {self.step}: {fault}", file=sys.stderr)

    def progress(self) -> tqdm:
        """A bar over images, with images/s and the time left."""
        n = self.images()
        return tqdm(
            total=self.steps * n,
            initial=self.step * n,
            unit=" images",
            unit_scale=True,
            disable=self.quiet,
            mininterval=0.3 if sys.stderr.isatty() else 15,
            smoothing=0.1,
            dynamic_ncols=True,
        )


def last_checkpoint(run: runs.Run) -> str:
    """Its path in words."""
    try:
        return str(run.latest() or "none yet")
    except (runs.RunError, OSError) as error:
        return str(error)


def _by_type(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors in groups of one data type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault(t.dtype, []).append(t)
    return list(groups.values())


def _flat(tensors: list[Tensor]) -> Tensor:
    """Tensors of one type -> a copy of all their elements, [n]."""
    return torch.cat([t.flatten() for t in tensors])


def header(config: Config, world_size: int = 1) -> dict:
    """What stands in config.json, in the first line of metrics.jsonl and in every checkpoint."""
    record = {"config": configuration.to_record(config), "versions": versions()}
    return record | {"processes": world_size}
