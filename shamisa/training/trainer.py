"""The trainer: a run from its first step to its last, with its records, checks and checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from ..data.decode import READ_CUT_OFF
from ..data.photos import Photos
from ..measuring.profiling import Recording, Stopwatch
from ..measuring.versions import versions
from ..networks.checkpoints import Checkpoint
from ..networks.encoders import name_of, recorded
from ..networks.models import check_record
from ..networks.weights import load_matching
from . import check, loggers, runs
from . import config as configuration
from .config import Config
from .parallel import Processes
from .parts import resolve
from .step import Stepper


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and where the last good checkpoint is."""


class Trainer(Stepper):
    """All that a run needs: built, and so checked, before its folder is made.

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
        processes = processes or Processes()
        parts = resolve(config, processes, encoder, photos)
        super().__init__(config, processes, parts)
        self.quiet = quiet or not processes.main
        self.labelled, self.untrained = parts.labelled, parts.untrained
        self.logs: list[loggers.Logger] = []  # of the main process, opened with the run
        self.history = check.History()  # how the encoder was judged so far
        self.collapse = ""  # in words, why the run must end
        self.signal = 0  # that ended the run early

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


def header(config: Config, world_size: int = 1) -> dict:
    """What stands in config.json, in the first line of metrics.jsonl and in every checkpoint."""
    record = {"config": configuration.to_record(config), "versions": versions()}
    return record | {"processes": world_size}
