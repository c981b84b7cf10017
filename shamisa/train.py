"""Train an encoder without labels: ``python -m shamisa.train``.

Without arguments: the embedded demonstration on packaged photographs. ``--preset paper --refs FOLDER`` is the published
configuration. One step: crops of 3 photographs at 2 scales -> chains of distortions -> encoder -> projector -> loss.
Crops, chains and first weights are functions of the seed; on the CPU equal seeds give equal metrics bit for bit, and a
killed run that is resumed continues as if it had never stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import config as configuration
from . import demo, plots, runs
from .config import Config
from .data import photos
from .data.embedded import EmbeddedPhotos
from .data.photos import Photos
from .data.readers import References
from .distortions import DISTORTIONS
from .engine import DistortionEngine, Plan, normalize
from .models import Learner, load_matching
from .ops import has_kernel
from .relations import RelationOutput

TERMS = ("total", "invariance", "variance", "covariance", "pair", "transport", "regularizer")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and where the last good checkpoint is."""


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred rows, 1..min(n, E); z [n, E]."""
    x = z.detach().flatten(0, -2).double()
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-300)
    return float(torch.special.entr(p).sum().exp())


class Trainer:
    """All that is needed for steps: built, and so checked, before a run folder is made."""

    def __init__(self, config: Config, quiet: bool = False) -> None:
        self.config, self.quiet = config, quiet
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        check_crop(config)
        normalize(
            torch.zeros(1, 3, 1, 1, dtype=torch.uint8, device=self.device), backend=config.backend
        )  # is it there?
        self.engine = DistortionEngine(**config.engine_options())
        self.references = References(
            open_photos(config.refs),
            batch_size=config.batch,
            seed=config.seed,
            crop=config.crop,
            pad=config.pad,
            max_skipped=config.max_skipped,
        )
        self.steps_per_epoch = self.references.steps_per_epoch
        self.steps = config.steps or math.ceil(config.epochs * self.steps_per_epoch)
        self.model = Learner(config).to(self.device, memory_format=self.layout).train()
        self.optimizer = make_optimizer(config, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.buffers = [b for b in self.model.buffers()]
        self.step = 0  # steps done
        self.signal = 0  # that ended the run early

    def images(self) -> int:
        """Images that pass the encoder in a step."""
        c = self.config
        return c.batch * self.references.views * (1 + c.compositions * c.levels)

    # ---- one step ----------------------------------------------------------------------------------------------------
    def forward(self, references: Tensor, plan: Plan, watch: runs.Stopwatch) -> tuple[RelationOutput, Tensor]:
        """references [B, V, 3, H, W] uint8 on the device -> terms of the objective, embeddings of distorted images."""
        mixed = self.precision != torch.float32
        options = {"dtype": self.precision, "memory_format": self.layout, "backend": self.config.backend}
        x = self.engine(references, plan, **options)
        x_ref = normalize(references, **options)
        watch.lap("distortions")
        with torch.autocast(self.device.type, self.precision, enabled=mixed):
            z_ref, z_dist, h_ref, h_dist = self.model.embed(x_ref, x)
        watch.lap("encoder")
        return self.model.loss(z_ref, z_dist, h_ref, h_dist, plan), z_dist

    def train_step(self, crops: Tensor, watch: runs.Stopwatch) -> dict:
        """One step on crops [B, V, 3, H, W] uint8 -> its record; FloatingPointError leaves all as it was."""
        c, step = self.config, self.step
        plan = self.engine.sample(c.batch, seed=c.seed, step=step).to(self.device, non_blocking=True)
        references = crops.to(self.device, non_blocking=True)
        before = [b.clone() for b in self.buffers]  # batch normalisation changes them in the forward pass
        out, z_dist = self.forward(references, plan, watch)
        watch.lap("loss")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(out.total).backward()
        watch.lap("backward")
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # one transfer, the only wait for the device in a step
        *terms, norm_value = torch.stack([*(getattr(out, t).detach().float() for t in TERMS), norm.float()]).tolist()
        values = dict(zip(TERMS, terms, strict=True))
        bad = [f"{n} is {v}" for n, v in values.items() if not math.isfinite(v)]
        if not math.isfinite(norm_value) and not self.scaler.is_enabled():  # a scaler skips such a step by itself
            bad.append(f"norm of the gradient is {norm_value}")
        if bad:
            torch._foreach_copy_(self.buffers, before)
            raise FloatingPointError(f"step {step}: " + ", ".join(bad))
        if c.clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), c.clip, norm)
        lr = c.learning_rate(step, self.steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        watch.lap("optimizer")
        record = {"step": step, "epoch": step / self.steps_per_epoch, "lr": lr, "loss": values}
        record["grad_norm"] = norm_value if math.isfinite(norm_value) else None
        if c.rank_every and step % c.rank_every == 0:
            record["rank_z"] = effective_rank(z_dist)
        self.step += 1
        split = watch.read()
        record["timing"] = {"images_per_s": round(self.images() / sum(split.values()), 3), "split": split}
        return record

    # ---- the run -----------------------------------------------------------------------------------------------------
    def save(self, run: runs.Run) -> Path:
        """Checkpoint after ``self.step`` steps."""
        state = {"scaler": self.scaler.state_dict(), "header": header(self.config)}
        return run.save(self.step, self.model, self.optimizer, state, self.config.keep)

    def load(self, checkpoint: runs.Checkpoint) -> None:
        """Go back to a checkpoint: weights, optimizer, scaler, step."""
        weights = checkpoint.model_tensors()
        load_matching(self.model, weights, f"{checkpoint.path} does not fit this configuration")
        runs.load_optimizer(self.model, self.optimizer, checkpoint.state_tensors())
        if self.scaler.is_enabled() and checkpoint.index["scaler"]:
            self.scaler.load_state_dict(checkpoint.index["scaler"])
        self.step = checkpoint.step

    def fit(self, run: runs.Run, stop: Callable[[], bool] = lambda: False) -> str:
        """Train until the last step or until ``stop()``; -> "finished" or "interrupted", with a checkpoint either way.

        Raises:
            TrainingError: a term or gradient that is not finite (the state before that step is saved), or too many
                photographs that cannot be read.
        """
        c, watch, bar = self.config, runs.Stopwatch(self.device), self.progress()
        loader = self.references.loader(self.step, self.steps, workers=c.workers, pin_memory=self.device.type == "cuda")
        with bar, run.metrics.open("a") as log:
            while self.step < self.steps and not stop():
                watch.start()
                try:
                    _, crops, skipped = next(loader)
                except RuntimeError as error:  # too many photographs cannot be read, or Ctrl-C also reached the workers
                    if stop():
                        break
                    raise TrainingError(
                        f"step {self.step}: {error}; last good checkpoint: {last_checkpoint(run)}"
                    ) from error
                watch.lap("data")
                try:
                    record = self.train_step(crops, watch)
                except FloatingPointError as error:
                    raise TrainingError(f"{error}; the state before this step is in {self.save(run)}") from None
                run.note_skipped(skipped)
                log.write(runs.to_line(record))
                log.flush()
                bar.update(self.images())
                bar.set_postfix_str(f"step {self.step}/{self.steps} loss {record['loss']['total']:.4g}", refresh=False)
                if c.checkpoint_every and self.step % c.checkpoint_every == 0 and self.step < self.steps:
                    os.fsync(log.fileno())  # a checkpoint never runs ahead of the metrics
                    self.save(run)
            os.fsync(log.fileno())
        self.save(run)
        return "finished" if self.step == self.steps else "interrupted"

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


# ---- choices, each checked before any work ---------------------------------------------------------------------------
def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N -> device; ValueError for one that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(number or 0) >= count:
        raise ValueError(f"device {name} is not there: torch {torch.__version__} finds {count} CUDA devices")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The data type of encoder and projector."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return getattr(torch, name)


def check_crop(config: Config) -> None:
    """ValueError where a distortion needs larger images than ``crop``."""
    small = [n for n in config.distortions or DISTORTIONS if DISTORTIONS[n].min_size > config.crop]
    if small:
        need = max(DISTORTIONS[n].min_size for n in small)
        raise ValueError(f"crop must be at least {need} pixels for {', '.join(small)}, got {config.crop}")


def open_photos(refs: str) -> Photos:
    """'embedded', a folder or a list file -> source; ValueError for anything else, and for one without photographs."""
    if refs == configuration.EMBEDDED:
        return EmbeddedPhotos(split="train")
    if not refs or not Path(refs).exists():
        fault = f"{refs!r}, which does not exist" if refs else "nothing"
        raise ValueError(f"refs must be a folder, a list file or 'embedded', got {fault}")
    return photos.open_photos(refs)


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """sgd or adamw over all parameters."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def header(config: Config) -> dict:
    """What stands in config.json, in the first line of metrics.jsonl and in every checkpoint."""
    return {"config": configuration.to_record(config), "versions": configuration.versions()}


def free_folder(preset: str) -> Path:
    """runs/PRESET, or runs/PRESET-2, ... where that is taken."""
    number, path = 1, Path("runs", preset)
    while path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        number += 1
        path = Path("runs", f"{preset}-{number}")
    return path


# ---- the command -----------------------------------------------------------------------------------------------------
def prepare(
    config: Config, out: Path | None = None, resume: Path | None = None, quiet: bool = False
) -> tuple[Trainer, runs.Run]:
    """Check everything, then make the new folder ``out``, or go back to the last checkpoint of the run ``resume``.

    Raises ValueError, TypeError or RuntimeError for bad input; then no folder was made or changed.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    if resume is None:
        runs.Run.check_new(out)
        trainer = Trainer(config, quiet)
        return trainer, runs.Run.create(out, header(config))
    run = runs.Run.open(resume)
    saved = configuration.from_record(runs.read_json(run.path / "config.json").get("config"))
    configuration.resume(saved, dataclasses.asdict(config))
    trainer = Trainer(config, quiet)
    if run.latest() is not None:
        trainer.load(runs.find_checkpoint(resume))
    if trainer.step > trainer.steps:
        raise ValueError(f"steps must be at least the {trainer.step} that {resume} has done, got {trainer.steps}")
    if run.status()["status"] == "finished" and trainer.step == trainer.steps:
        raise ValueError(f"resume must be a run with steps to do, got {resume}, which finished all {trainer.steps}")
    run.remove_temporary()
    run.truncate_metrics(trainer.step)
    run.set_status("running", trainer.step)
    return trainer, run


def execute(trainer: Trainer, run: runs.Run) -> str:
    """Train to the end and draw the pictures; -> "finished" or "interrupted", which run.json then says too.

    Raises TrainingError where training cannot go on; run.json says "failed" after any error.
    """
    status, message = "failed", ""
    try:
        with runs.Stop() as stop:
            status = trainer.fit(run, stop)
            trainer.signal = stop.signal
            message = f"stopped by {signal.Signals(stop.signal).name}" if stop.signal else ""
        if status == "finished":
            status = "failed"  # until the last picture is there
            finish(trainer, run)
            status = "finished"
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError):  # a full disk, most likely
            raise TrainingError(
                f"step {trainer.step}: {error}; last good checkpoint: {last_checkpoint(run)}"
            ) from error
        raise
    finally:
        try:
            run.set_status(status, trainer.step, message)
        except OSError as error:  # the folder then still says "running", which is not "finished"
            print(f"cannot write {run.path / 'run.json'}: {error}", file=sys.stderr)
    return status


def last_checkpoint(run: runs.Run) -> str:
    """Its path in words."""
    try:
        return str(run.latest() or "none yet")
    except (runs.RunError, OSError) as error:
        return str(error)


def describe(trainer: Trainer, run: runs.Run) -> str:
    """One line of what runs where."""
    c = trainer.config
    compiled = c.backend != "reference" and has_kernel("distort", trainer.device.type)
    return (
        f"{run.path}: {c.encoder} ({sum(p.numel() for p in trainer.model.encoder.parameters()) / 1e6:.2f} M) on "
        f"{trainer.device}, {str(trainer.precision).removeprefix('torch.')}; "
        f"{len(trainer.references.source)} photographs; "
        f"steps {trainer.step}..{trainer.steps}, {trainer.images()} images of {c.crop} px each; distortions by "
        + ("compiled kernels" if compiled else "the PyTorch reference, which is tens of times slower")
    )


def finish(trainer: Trainer, run: runs.Run) -> None:
    """Pictures, the summary of times, and for the demonstration the comparison of trained and untrained encoder."""
    records = run.records()
    plots.loss_curves(records, run.path / "curves.png")
    last = max(0, trainer.steps - 1)
    crops, _ = trainer.references.batch(last)
    plan = trainer.engine.sample(trainer.config.batch, seed=trainer.config.seed, step=last)
    plots.contact_sheet(crops, plan, trainer.engine, run.path / "contact_sheet.png", trainer.config.backend)
    if not trainer.quiet and records:
        print(time_table(records))
    if trainer.config.demo:
        config = trainer.config
        untrained = Learner(config).encoder.to(trainer.device)
        crop = min(config.crop, 224)  # fits into every held-out photograph
        options = {"crop": crop, "backend": config.backend, "compositions": 60}  # 720 images: fewer make a noisy figure
        demo.compare(untrained, trainer.model.encoder, run.path / "demo.json", **options)


def time_table(records: list[dict]) -> str:
    """Mean seconds of the parts of a step, and the speed."""
    n = len(records)
    parts = {k: sum(r["timing"]["split"][k] for r in records) / n for k in records[0]["timing"]["split"]}
    rows = "".join(f"  {k:12} {1000 * s:9.1f} ms  {s / sum(parts.values()):6.1%}\n" for k, s in parts.items())
    images = sum(r["timing"]["images_per_s"] * sum(r["timing"]["split"].values()) for r in records)
    return f"mean of {n} steps:\n{rows}  {images / (n * sum(parts.values())):.1f} images/s"


def make_parser() -> argparse.ArgumentParser:
    """--preset, --out, --resume, --quiet, and one flag per field of Config."""
    parser = argparse.ArgumentParser(
        prog="python -m shamisa.train",
        usage="%(prog)s [--preset demo|paper] [--refs PHOTOS] [--out RUN | --resume RUN] [--FIELD VALUE ...]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=configuration.PRESETS, help="fields that are not given [demo]")
    parser.add_argument("--out", type=Path, help="the new run folder [runs/PRESET, numbered where that exists]")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run that was stopped, from its last checkpoint"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    configuration.add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command -> 0 finished, 1 failed in training, 2 bad input, 128 + signal stopped."""
    options = make_parser().parse_args(argv)
    try:
        given = configuration.given_fields(options)
        if options.resume is not None:
            if options.preset is not None or options.out is not None:
                raise ValueError("--resume goes on with a run as it is: it excludes --preset and --out")
            record = runs.read_json(runs.Run.open(options.resume).path / "config.json")
            config = configuration.resume(configuration.from_record(record.get("config")), given)
        else:
            preset = options.preset or "demo"
            config = configuration.resolve(preset, given)
            options.out = options.out or free_folder(preset)
        trainer, run = prepare(config, options.out, options.resume, options.quiet)
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"shamisa train: {error}", file=sys.stderr)
        return 2
    if not options.quiet:
        print(describe(trainer, run), file=sys.stderr)
    try:
        status = execute(trainer, run)
    except TrainingError as error:
        print(f"shamisa train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a second one, or one while the pictures are drawn
        print(f"shamisa train: interrupted; go on with --resume {run.path}", file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"{status}: {run.path}")
    return 0 if status == "finished" else 128 + trainer.signal


if __name__ == "__main__":
    sys.exit(main())
