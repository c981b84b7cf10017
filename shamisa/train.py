"""Train an encoder without labels.

Without arguments, this runs a short demonstration on packaged photographs; --preset paper --refs FOLDER is the published
configuration. One step: crops of 3 photographs at 2 scales -> chains of distortions -> encoder -> projector -> loss.
Crops, chains and initial weights depend on the seed alone. On the CPU, equal seeds give bit-identical metrics, and a run
that was killed and resumed continues as if it had never stopped.

Several processes: torchrun --nproc-per-node 8 -m shamisa.train ... A step then has batch x accumulate x processes samples.
With --gather --sync-bn it equals a step of one process with the whole batch; without them, each process has its own
objective and batch normalisation. A run may be resumed with another number of processes if a step has as many samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path

import torch

from .cli import INTERRUPTED, complain, show_log
from .data.decode import is_truncated
from .data.formats import shorten
from .data.photos import Photos
from .distortions import DISTORTIONS
from .measuring.allocator import keep_freed_memory
from .networks.checkpoints import find_checkpoint
from .networks.encoders import features_of, name_of
from .ops import has_kernel
from .reports import plots
from .scoring import demo
from .training import config as configuration
from .training import dryrun, embeddings, loggers, runs
from .training.check import Check
from .training.config import Config
from .training.learner import Learner
from .training.parallel import Processes, launched
from .training.trainer import Trainer, TrainingError, header, last_checkpoint


# ---- before the first step -------------------------------------------------------------------------------------------
def read_config(preset: str | None, resume: Path | None, given: dict, world: int = 1) -> Config:
    """The configuration of a new run of a preset, or of the run ``resume`` that goes on, with the given fields."""
    if resume is None:
        return configuration.resolve(preset or "demo", given)
    file = runs.Run.open(resume).path / "config.json"
    record = runs.read_json(file)
    try:
        saved = configuration.from_record(record.get("config"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from None
    return configuration.resume(saved, given, world, record.get("processes", 1))


def prepare(
    config: Config,
    out: Path | None = None,
    resume: Path | None = None,
    quiet: bool = False,
    processes: Processes | None = None,
    encoder: torch.nn.Module | None = None,
    photos: Photos | None = None,
) -> tuple[Trainer, runs.Run]:
    """Check everything, then make the new folder ``out``, or go back to the last checkpoint of the run ``resume``.

    ``encoder``: any module in place of the configuration's encoder, see ``learner.Learner``; ``photos``: any source in
    place of its refs, see ``data.photos.Photos``.

    Every process must call it. Of several processes only the main one writes; the others must see the same files.

    Raises ValueError, TypeError, RuntimeError or OSError for bad input, on all processes; then no folder was made, and
    none was changed.
    """
    processes = processes or Processes()
    trainer, run = processes.agree(lambda: _check(config, out, resume, quiet, processes, encoder, photos))
    return trainer, processes.agree(lambda: _begin(trainer, run, resumed=resume is not None))


def _check(
    config: Config,
    out: Path | None,
    resume: Path | None,
    quiet: bool,
    processes: Processes,
    encoder: torch.nn.Module | None = None,
    photos: Photos | None = None,
) -> tuple[Trainer, runs.Run]:
    """All that can be known before anything is written."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if resume is None:
        if processes.main:
            runs.Run.check_new(out)
        return Trainer(config, quiet, processes, encoder, photos), runs.Run(out)
    run = runs.Run.open(resume)
    config = read_config(None, resume, dataclasses.asdict(config), processes.world_size)
    trainer = Trainer(config, quiet, processes, encoder, photos)
    if run.latest() is not None:
        trainer.load(find_checkpoint(resume))
    if trainer.step > trainer.steps:
        raise ValueError(f"steps must be at least the {trainer.step} that {resume} has done, got {trainer.steps}")
    if run.status()["status"] == "finished" and trainer.step == trainer.steps:
        more = "" if config.schedule == "cosine" else "; --steps N goes on to step N"
        raise ValueError(
            f"resume must be a run with steps to do, got {resume}, which finished all {trainer.steps}{more}"
        )
    return trainer, run


def _begin(trainer: Trainer, run: runs.Run, resumed: bool) -> runs.Run:
    """The main process makes the folder, or takes it over, and opens the logs; what fails leaves it as it was."""
    if not trainer.processes.main:
        return run
    existed = run.path.is_dir()
    if resumed:
        run.claim()
    else:
        run = runs.Run.create(run.path, header(trainer.config, trainer.processes.world_size))
    try:
        trainer.logs = loggers.open_loggers(run, trainer.config, trainer.step, trainer.quiet)
    except BaseException:  # Ctrl-C too, for Weights & Biases may let one wait
        run.release()
        if not resumed:
            run.remove(keep_folder=existed)
        raise
    if resumed:
        run.remove_temporary()
        trainer.history.checks.extend(Check(**c) for c in run.checks())
        run.set_status("running", trainer.step)
    return run


def free_folder(preset: str) -> Path:
    """runs/PRESET, or runs/PRESET-2, ... where that is taken."""
    number, path = 1, Path("runs", preset)
    while path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        number += 1
        path = Path("runs", f"{preset}-{number}")
    return path


def describe(trainer: Trainer, run: runs.Run) -> str:
    """One line of what runs where."""
    c, world = trainer.config, trainer.processes.world_size
    encoder, step = trainer.model.encoder, trainer.step
    source = getattr(encoder, "source", None)
    weights = f"weights of step {step}, " if step else f"weights: {source}, " if isinstance(source, str) else ""
    compiled = c.backend != "reference" and has_kernel("distort", trainer.device.type)
    return (
        f"{run.path}: {name_of(encoder)} ({sum(p.numel() for p in encoder.parameters()) / 1e6:.2f} M, {weights}features "
        f"{features_of(encoder)}) on "
        f"{f'{world} processes, ' if world > 1 else ''}{trainer.device}, "
        f"{str(trainer.precision).removeprefix('torch.')}; {len(trainer.references.source)} photographs; "
        f"steps {trainer.step}..{trainer.steps}, {trainer.images()} images of {c.crop} px each; distortions by "
        + ("compiled kernels" if compiled else "the PyTorch reference, which is tens of times slower")
    )


# ---- the run ---------------------------------------------------------------------------------------------------------
def execute(trainer: Trainer, run: runs.Run, nvtx: bool = False, profile: int = 0) -> str:
    """Train to the end and draw the pictures; -> "finished" or "interrupted", which run.json then says too.

    Raises TrainingError where training cannot go on; run.json says "failed" after any error.
    """
    status, message, main = "failed", "", trainer.processes.main
    try:
        with runs.Stop() as stop:
            status = trainer.fit(run, stop, nvtx, profile)
            trainer.signal = stop.signal
            message = f"stopped by {signal.Signals(stop.signal).name}" if stop.signal else ""
        if status == "finished" and main:
            status = "failed"  # until the last picture is there
            finish(trainer, run)
            status = "finished"
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, torch.OutOfMemoryError):
            reason = str(error).split(". ")[0]
            raise TrainingError(
                f"step {trainer.step}: {reason}; a smaller --batch with --accumulate gives the same samples per step; "
                f"last good checkpoint: {last_checkpoint(run)}"
            ) from error
        if isinstance(error, OSError):  # a full disk, most likely
            raise TrainingError(
                f"step {trainer.step}: {error}; last good checkpoint: {last_checkpoint(run)}"
            ) from error
        raise
    finally:
        try:
            if main:
                run.set_status(status, trainer.step, message)
        except OSError as error:  # the folder then still says "running", which is not "finished"
            print(f"cannot write {run.path / 'run.json'}: {error}", file=sys.stderr)
    return status


def finish(trainer: Trainer, run: runs.Run) -> None:
    """Pictures, the summary of times, and for the demonstration the comparison of trained and untrained encoder."""
    records, config = run.records(), trainer.config
    plots.loss_curves(records, run.path / "curves.png")
    plots.step_times(records, run.path / "times.png")
    if checks := run.checks():
        plots.checks(checks, run.path / "checks.png")
    last = max(0, trainer.steps - 1)
    shown = min(config.batch, 2)  # samples
    crops, _ = trainer.references.batch(last * config.accumulate)
    plan = trainer.engine.sample(shown, seed=config.seed, step=last)
    plots.contact_sheet(crops[:shown], plan, trainer.engine, run.path / "contact_sheet.png", config.backend)
    figures = embeddings.evaluate(trainer)
    runs.write_json(run.path / "embeddings.json", figures)
    plots.embedding_figures(records, figures, run.path / "embeddings.png")
    if not trainer.quiet and records:
        print(time_table(records))
    for line in describe_photos(run):
        print(line, file=sys.stderr)
    if config.demo:
        untrained = Learner(config).encoder if trainer.untrained is None else trainer.untrained
        untrained = untrained.to(trainer.device)
        least = max(row.min_size for row in DISTORTIONS.values())
        crop = min(max(config.crop, least), 224)  # all distortions can work on it; fits into every held-out photograph
        options = {"crop": crop, "backend": config.backend, "compositions": 60}  # 720 images: fewer make a noisy figure
        print(demo.describe(demo.compare(untrained, trainer.model.encoder, run.path / "demo.json", **options)))


def describe_photos(run: runs.Run) -> list[str]:
    """In lines: the photographs that could not be used, truncated JPEGs apart, and those that were read all the same."""
    skipped, lines = run.noted("skipped.jsonl"), []
    cut_off = [name for name, reason in skipped.items() if is_truncated(reason)]
    if others := len(skipped) - len(cut_off):
        lines.append(f"photographs that could not be used: {others}, see {run.path / 'skipped.jsonl'}")
    if cut_off:
        lines.append(f"truncated JPEGs left out (--truncated read reads them): {len(cut_off)}: {shorten(cut_off)}")
    if read := list(run.noted("truncated.jsonl")):
        lines.append(f"truncated JPEGs read as far as they go: {len(read)}: {shorten(read)}")
    return lines


def time_table(records: list[dict]) -> str:
    """Mean seconds of the parts of a step, and the speed."""
    n = len(records)
    names = dict.fromkeys(k for r in records for k in r["timing"]["split"])
    parts = {k: sum(r["timing"]["split"].get(k, 0.0) for r in records) / n for k in names}
    rows = "".join(f"  {k:12} {1000 * s:9.1f} ms  {s / sum(parts.values()):6.1%}\n" for k, s in parts.items())
    images = sum(r["timing"]["images_per_s"] * sum(r["timing"]["split"].values()) for r in records)
    return f"mean of {n} steps:\n{rows}  {images / (n * sum(parts.values())):.1f} images/s"


# ---- the command -----------------------------------------------------------------------------------------------------
def make_parser() -> argparse.ArgumentParser:
    """--preset, --out, --resume, ..., and one flag per field of Config."""
    parser = argparse.ArgumentParser(
        prog="python -m shamisa.train",
        usage="%(prog)s [--preset demo|paper|A1..F1] [--refs PHOTOS] [--out RUN | --resume RUN] [--FIELD VALUE ...]",
        description=__doc__,
        epilog=configuration.describe_ablations(),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        choices=configuration.PRESETS,
        metavar="NAME",
        help="where options that are not given take their values from [demo]: demo, paper, or an ablation below",
    )
    parser.add_argument("--out", type=Path, help="new run folder [runs/PRESET, numbered if that exists]")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue a stopped run from its last checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--dry-run", action="store_true", help="report steps, memory and time, from a few measured steps; write nothing"
    )
    parser.add_argument(
        "--profile",
        type=int,
        nargs="?",
        const=5,
        default=0,
        metavar="STEPS",
        help="profile a few early steps with torch.profiler; a trace and the operators by time go to RUN/profile [5]",
    )
    parser.add_argument(
        "--nvtx", action="store_true", help="mark the parts of a step as NVTX ranges, for Nsight Systems"
    )
    configuration.add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command -> 0 finished, 1 failed in training, 2 bad input, 128 + signal stopped."""
    options = make_parser().parse_args(argv)
    show_log()
    speaks = True

    def end(message: object, status: int) -> int:
        return complain("train", message, status) if speaks else status

    try:
        rank, world = launched() or (0, 1)
        speaks = rank == 0  # of several processes one prints
        if options.resume is not None and (options.preset is not None or options.out is not None or options.dry_run):
            raise ValueError(
                "--resume continues a run as it is: it cannot be combined with --preset, --out or --dry-run"
            )
        if options.profile < 0:
            raise ValueError(f"profile must be a number of steps of at least 1, got {options.profile}")
        config = read_config(options.preset, options.resume, configuration.given_fields(options), world)
        processes = Processes.connect(config.device, config.timeout)
        if options.dry_run:
            trainer = processes.agree(lambda: Trainer(config, options.quiet, processes))
        else:
            out = options.out or free_folder(options.preset or "demo")
            trainer, run = prepare(config, out, options.resume, options.quiet, processes)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        return end(str(error) or repr(error), 2)
    except KeyboardInterrupt:
        return end(
            f"interrupted; {f'{options.resume} is as it was' if options.resume else 'nothing was made'}", INTERRUPTED
        )
    if trainer.device.type == "cpu":
        keep_freed_memory()
    try:
        if options.dry_run:
            plan, note = dryrun.run(trainer)
            if plan:
                print(plan)
            if note:
                print(note, file=sys.stderr)
            status = "finished"
        else:
            if not trainer.quiet:
                print(describe(trainer, run), file=sys.stderr)
                if ignored := getattr(trainer.references.source, "ignored", ""):
                    print(ignored, file=sys.stderr)
            status = execute(trainer, run, options.nvtx, options.profile)
    except TrainingError as error:
        return complain("train", error, 1)  # every process: the one that speaks may be gone
    except KeyboardInterrupt:  # a second one, or one while the pictures are drawn
        if options.dry_run:
            return end("interrupted; nothing was written", INTERRUPTED)
        return end(
            f"interrupted; last checkpoint: {last_checkpoint(run)}; continue with --resume {run.path}", INTERRUPTED
        )
    processes.close()
    if status == "interrupted":
        kept = f"step {trainer.step} of {trainer.steps} is in {run.path}; continue with --resume {run.path}"
        return end(f"interrupted; {kept}", 128 + (trainer.signal or signal.SIGTERM))
    if speaks and not options.dry_run:
        print(f"finished: {run.path}")
        if trainer.config.demo:
            print("a photograph of yours is scored by the packaged model: shamisa score PHOTO")
    return 0


if __name__ == "__main__":
    sys.exit(main())
