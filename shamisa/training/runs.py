"""Run folders: configuration, metrics, checkpoints. Nothing is pickled, and nothing half-written is ever found.

    RUN/run.json         status: running, finished, interrupted or failed; steps done; message
    RUN/config.json      the resolved configuration and the versions that made the run
    RUN/metrics.jsonl    line 1: the same; then one record per step, and one per check of the encoder
    RUN/.lock            locked by the process that trains the run, as long as it lives; who it is, in words
    RUN/skipped.jsonl    photographs that could not be used, and why; written only where there are some
    RUN/truncated.jsonl  truncated JPEGs that were read as far as they go (--truncated read); only where there are some
    RUN/checkpoint/latest                   the name of the newest checkpoint
    RUN/checkpoint/best                     the name of the one with the highest score, where scores are taken
    RUN/checkpoint/step-00000500/model.safetensors   encoder.*, projector.*, loss.*
                                state.safetensors   optimizer state, one tensor per parameter and kind
                                state.json          step, score, configuration, scaler, size and SHA-256 of both files

A checkpoint is written into a temporary folder, flushed to the disk, and renamed; then the pointer is replaced.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
from pathlib import Path
from typing import TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import remote
from ..data.decode import READ_CUT_OFF
from ..files import hash_file, sync, write_json, write_text
from ..networks.checkpoints import FORMAT, INDEX, MODEL, STATE, RunError, contents, newest, read_json
from ..networks.encoders import describe, to_metadata

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOG = logging.getLogger(__name__)
LOCK = ".lock"
SCORED = "check"  # what the score of a checkpoint is made of
STATUSES = ("running", "finished", "interrupted", "failed")


# ---- small files -----------------------------------------------------------------------------------------------------
def to_line(record: dict) -> str:
    """One line of metrics.jsonl."""
    return json.dumps(record, allow_nan=False) + "\n"


# ---- the run folder --------------------------------------------------------------------------------------------------
class Run:
    """A run folder. ``Run.create`` makes one, ``Run.open`` finds an existing one; neither touches checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoint"
        self.metrics = path / "metrics.jsonl"
        self._lock: TextIO | None = None

    @staticmethod
    def check_new(path: Path) -> None:
        """Raise RunError where a new run cannot be put: not a folder, or not empty."""
        remote.check_local("out", path)
        if path.exists() and not path.is_dir():
            raise RunError(f"out must be a new or empty folder, got the file {path}")
        if path.is_dir() and any(path.iterdir()):
            status = read_json(path / "run.json").get("status") if (path / "run.json").is_file() else None
            holds = (
                f"a run that is {status} (continue with --resume {path}, or choose another)"
                if status
                else "other files"
            )
            if status == "running":
                lives = Run(path).claimed()
                holds = (
                    "a run that is being trained" if lives else f"a run that was killed (continue with --resume {path})"
                )
            raise RunError(f"out must be a new or empty folder, got {path}, which holds {holds}")

    @classmethod
    def create(cls, path: Path, header: dict) -> Run:
        """Make the folder; ``header`` (JSON values) becomes config.json and the first line of metrics.jsonl."""
        cls.check_new(path)
        run, existed = cls(path), path.is_dir()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"out must be a folder that can be made, got {path}: {error.strerror}") from None
        try:
            run.claim()
            run.set_status("running", 0)
            write_json(path / "config.json", header)
            write_text(run.metrics, to_line(header))
            run.checkpoints.mkdir()
        except BaseException:
            run.release()
            run.remove(keep_folder=existed)
            raise
        return run

    def remove(self, keep_folder: bool) -> None:
        """Undo ``create``, and all that was put into the folder since."""
        for entry in self.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        if not keep_folder:
            self.path.rmdir()

    # ---- who works on it ---------------------------------------------------------------------------------------------
    def claim(self) -> None:
        """Become the process that trains this run, until ``release`` or the end of the process, however it ends.

        By hand rather than with filelock, which empties its file at every attempt: here it holds who trains, in words.

        Raises:
            RunError: another process trains it.
        """
        if fcntl is None:  # Windows
            return
        try:
            lock = (self.path / LOCK).open("a+")
        except OSError as error:
            raise RunError(f"{self.path} must be a folder that can be written to: {error.strerror}") from None
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.seek(0)
            raise RunError(f"{self.path} is being trained by {lock.read().strip() or 'another process'}") from None
        except OSError:  # a file system without locks: nobody can be kept out
            return
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Let others train this run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def claimed(self) -> bool:
        """Whether another process trains this run now; run.json says "running" also after a process was killed."""
        if fcntl is None or not (self.path / LOCK).is_file():
            return False
        with (self.path / LOCK).open("a") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return True
            except OSError:
                return False
        return False

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run; RunError where there is none."""
        if not (path / "run.json").is_file() or not (path / "config.json").is_file():
            raise RunError(f"{path} must be a run folder with run.json and config.json, got " + contents(path))
        return cls(path)

    def status(self) -> dict:
        """The content of run.json."""
        found = read_json(self.path / "run.json")
        if found.get("status") not in STATUSES or not isinstance(found.get("step"), int):
            raise RunError(f"{self.path / 'run.json'} must have a status and a step, got {found}")
        return found

    def set_status(self, status: str, step: int, message: str = "") -> None:
        """Write run.json: status, number of steps done, and why it ended."""
        assert status in STATUSES, status
        write_json(self.path / "run.json", {"status": status, "step": step, "message": message})

    def truncate_metrics(self, step: int) -> None:
        """Drop the records from step ``step`` on, which the checkpoint does not have, and a torn last line."""
        kept = []
        if not self.metrics.is_file():
            raise RunError(f"{self.path} must be a run folder with metrics.jsonl, got " + contents(self.path))
        for line in self.metrics.read_text().splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            done = record.get("check", {}).get("step", record.get("step", -1) + 1)
            if line.endswith("\n") and done <= step:
                kept.append(line)
        write_text(self.metrics, "".join(kept))

    def records(self) -> list[dict]:
        """The records of the steps in metrics.jsonl."""
        lines = self.metrics.read_text().splitlines()
        return [r for r in map(json.loads, lines[1:]) if "step" in r]

    def checks(self) -> list[dict]:
        """The checks of the encoder in metrics.jsonl, see ``check.Check``."""
        lines = self.metrics.read_text().splitlines()
        return [r["check"] for r in map(json.loads, lines[1:]) if "check" in r]

    def note_photos(self, notes: dict[str, str]) -> None:
        """Add photographs (name -> reason) to skipped.jsonl, those that were read although truncated to truncated.jsonl."""
        for file, read in (("skipped.jsonl", False), ("truncated.jsonl", True)):
            found = {name: reason for name, reason in notes.items() if (reason == READ_CUT_OFF) == read}
            if found:
                with (self.path / file).open("a") as lines:
                    lines.writelines(to_line({"name": name, "reason": reason}) for name, reason in found.items())

    def noted(self, file: str) -> dict[str, str]:
        """Name -> reason in skipped.jsonl or truncated.jsonl; a resumed run may have met a photograph twice."""
        place = self.path / file
        lines = map(json.loads, place.read_text().splitlines() if place.is_file() else ())
        return {line["name"]: line["reason"] for line in lines}

    def latest(self) -> Path | None:
        """The newest checkpoint folder, or None before the first; RunError where the pointer leads nowhere."""
        return newest(self.checkpoints)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict,
        keep: int,
        score: float | None = None,
    ) -> Path:
        """Write the checkpoint of ``step`` steps done, point to it, and drop all but the newest ``keep`` and the best.

        ``model`` has the children encoder, projector and loss; ``state`` more JSON values (configuration, scaler). The
        best is the one with the highest ``score``, of those that have one.
        An error (OSError for a full disk) leaves the earlier checkpoints and the pointer as they were.
        """
        target = self.checkpoints / f"step-{step:08d}"
        if self.latest() == target:  # no step since: the same content
            return target
        temporary = self.checkpoints / f".{target.name}.{os.getpid()}"
        self.remove_temporary()
        try:
            temporary.mkdir()
            about = {"format": str(FORMAT), "feature_dim": str(model.feature_dim), **to_metadata(model.encoder)}
            save_file(_plain(model.state_dict()), temporary / MODEL, metadata=about)
            save_file(_plain(optimizer_tensors(model, optimizer)), temporary / STATE)
            files = {
                n: {"bytes": (temporary / n).stat().st_size, "sha256": hash_file(temporary / n)} for n in (MODEL, STATE)
            }
            for name in files:
                sync(temporary / name)
            index = {"format": FORMAT, "step": step, **describe(model.encoder), "files": files, "score": score}
            index["scored"] = SCORED
            index |= state
            write_json(temporary / INDEX, index)
            if target.exists():  # killed before the pointer was replaced, and resumed from an earlier one
                _remove_folder(target)
            os.replace(temporary, target)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, SafetensorError):  # what it makes of a full disk
                raise OSError(f"cannot write {target}: {error}") from None
            raise
        sync(self.checkpoints)
        write_text(self.checkpoints / "latest", target.name + "\n")
        best = self.best()
        if best is not None:
            write_text(self.checkpoints / "best", best.name + "\n")
        for old in sorted(self.checkpoints.glob("step-*"))[:-keep]:
            if old not in (target, best):
                _remove_folder(old)
        return target

    def best(self) -> Path | None:
        """The checkpoint folder with the highest score, the later of equal ones; None where none has a score."""
        scored = []
        for folder in self.checkpoints.glob("step-*"):
            try:
                index = read_json(folder / INDEX)
            except RunError:  # damaged by somebody else: no reason to end the run
                continue
            # format 1 without "scored" ranked by the total of the objective, which is no measure of an encoder
            score = index.get("score") if index.get("scored") == SCORED else None
            if score is not None:
                scored.append((score, int(folder.name.removeprefix("step-")), folder))
        return max(scored)[2] if scored else None

    def remove_temporary(self) -> None:
        """Remove what a killed process left half-written."""
        for left in self.checkpoints.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)


def _remove_folder(folder: Path) -> None:
    """Remove a checkpoint folder; killed in between, it is one of the hidden ones that the next save removes."""
    hidden = folder.with_name(f".{folder.name}.old")
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.detach().cpu().contiguous() for k, t in tensors.items()}


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as {"PARAMETER|KIND": tensor}; parameters without state (no gradient yet) have none."""
    found = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{name}|{kind}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``; RunError for tensors that do not fit the model."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, kind = key.partition("|")
        if name not in parameters or (value.dim() and value.shape != parameters[name].shape):
            raise RunError(f"optimizer state {key} {list(value.shape)} does not fit any parameter of this model")
        # the layout of the parameter, because sums over another layout could round differently
        last = value.dim() == 4 and parameters[name].is_contiguous(memory_format=torch.channels_last)
        value = value.contiguous(memory_format=torch.channels_last) if last else value
        group = next(g for g in optimizer.param_groups if any(p is parameters[name] for p in g["params"]))
        on_host = kind == "step" and not (group.get("fused") or group.get("capturable"))
        optimizer.state[parameters[name]][kind] = value if on_host else value.to(parameters[name].device)


# ---- while it runs ---------------------------------------------------------------------------------------------------
class Stop:
    """Ctrl-C and SIGTERM ask for a stop after the running step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.pid = os.getpid()

    def __call__(self) -> bool:
        return self.signal != 0

    def handle(self, number: int, _) -> None:
        if os.getpid() != self.pid:  # in a loader process, which the training process ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        self.signal = number
        for n, action in self.earlier.items():
            signal.signal(n, action)
        LOG.warning("\nstopping after this step")

    def __enter__(self) -> Stop:
        self.earlier = {n: signal.signal(n, self.handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for n, action in self.earlier.items():
            signal.signal(n, action)
