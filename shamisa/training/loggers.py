"""Where the records of the steps go: metrics.jsonl always, TensorBoard where it is installed, Weights & Biases on demand."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from typing import Protocol

from ..checks import MissingPackage
from . import config as configuration
from . import runs
from .config import Config

LOG = logging.getLogger(__name__)


class Logger(Protocol):
    """One place for records."""

    def write(self, record: dict) -> None:
        """The record of a step, or {"check": ...} after a check."""

    def sync(self) -> None:
        """Before a checkpoint: what was written must survive a crash where that is promised."""

    def close(self, good: bool = True) -> None:
        """The run ends here; not ``good``: by an error."""


def scalars(record: dict) -> dict[str, float]:
    """A record of metrics.jsonl as flat names: loss/total, timing/split/data, ..."""
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{k}": v for k, v in scalars(value).items()}
        elif isinstance(value, int | float) and key != "step":
            flat[key] = value
    return flat


def step_of(record: dict) -> int:
    """The step that a record is drawn at."""
    return record["check"]["step"] if "check" in record else record["step"]


class Metrics:
    """RUN/metrics.jsonl, on the disk before each checkpoint; a resumed run drops the steps that its checkpoint does not
    have."""

    def __init__(self, run: runs.Run, step: int) -> None:
        run.truncate_metrics(step)
        self.file = run.metrics.open("a")

    def write(self, record: dict) -> None:
        self.file.write(runs.to_line(record))
        self.file.flush()

    def sync(self) -> None:
        os.fsync(self.file.fileno())

    def close(self, good: bool = True) -> None:
        self.file.close()


class TensorBoard:
    """Event files in RUN/tensorboard; a resumed run hides the steps that its checkpoint does not have."""

    def __init__(self, run: runs.Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step or None, flush_secs=30)

    def write(self, record: dict) -> None:
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, step_of(record))

    def sync(self) -> None:
        self.writer.flush()

    def close(self, good: bool = True) -> None:
        self.writer.close()


class Wandb:
    """A Weights & Biases run of the project, named as the run folder; a resumed run goes on in the same one."""

    def __init__(self, run: runs.Run, config: Config) -> None:
        import wandb

        file = run.path / "wandb.json"
        identity = runs.read_json(file)["id"] if file.is_file() else secrets.token_hex(4)
        try:
            self.run = wandb.init(
                project=config.wandb,
                id=identity,
                name=run.path.name,
                resume="allow",
                dir=str(run.path),
                config=configuration.to_record(config),
            )
        except wandb.Error as error:  # no key, a wrong one, no network, no right to write there
            raise ValueError(
                f"wandb = {config.wandb!r} must be a project that can be written to, got: {_one_line(error)}; "
                "WANDB_MODE=offline keeps the records on this machine"
            ) from None
        runs.write_json(file, {"project": config.wandb, "id": identity})

    def write(self, record: dict) -> None:
        self.run.log(scalars(record), step=step_of(record))

    def sync(self) -> None:
        pass  # it sends in its own time

    def close(self, good: bool = True) -> None:
        self.run.finish(exit_code=0 if good else 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def check(config: Config) -> None:
    """MissingPackage where Weights & Biases is asked for and not installed."""
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise MissingPackage(f"wandb = {config.wandb!r} needs the package: pip install wandb")


def open_loggers(run: runs.Run, config: Config, step: int, quiet: bool = False) -> list[Logger]:
    """The loggers of a run that goes on at ``step``. Without TensorBoard there is a note, and no event files.

    Raises:
        ValueError: Weights & Biases cannot be reached or refuses; nothing of the run was changed.
    """
    last: list[Logger] = [Wandb(run, config)] if config.wandb else []
    found: list[Logger] = [Metrics(run, step)]
    if config.tensorboard:
        try:
            found.append(TensorBoard(run, step))
        except ImportError:
            if not quiet:
                LOG.warning("no TensorBoard files: pip install tensorboard, or --no-tensorboard")
    return found + last
