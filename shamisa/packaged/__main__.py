"""Make the packaged model: encoder, regressor, model.json and card.md in the folder of this package.

The regressor is fitted on the rows of the label file whose split is train (all rows where it has no such column); the others
are not opened. Weights of convolutions of one pixel, nine tenths of all, are stored in float16 where that moves no score by
1e-3 or more. With --test the packaged model is judged on the rows whose split is test, and the card gets the figures; with
--sanity it gets those of benchmarks/sanity.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..cli import guard
from ..data.photos import PhotoFolder
from ..datasets.labels import Labels, find_files, read_csv
from ..files import hash_file, write_bytes, write_json, write_text
from ..networks.encoders import describe, to_metadata
from ..networks.models import EFFICIENTNET, EFFICIENTNET_OF_TIMM, Encoder
from ..scoring.crops import VIEW, check_view
from ..scoring.features import Extractor, extract, hash_encoder
from ..scoring.inputs import open_encoder
from ..scoring.metrics import summary
from ..scoring.ridge import Regressor
from ..scoring.runtimes import RUNTIMES
from . import CARD, ENCODER, FOLDER, MODEL, REGRESSOR, load_packaged, read_model
from .card import write_card
from .fit import FOLDS, SHUFFLES, Fit, fit
from .mirrored import Mirrored
from .ordered import for_fitting, make_ordered

LIMIT = 1e-3  # by which float16 may move a score
CHECKED = 20  # photographs on which that is measured
NAMES = (EFFICIENTNET, f"timm/{EFFICIENTNET_OF_TIMM}")


def part_of(labels: Labels, part: str) -> Labels:
    """The rows of one part; of labels without a split column all are train. ValueError where there are none."""
    rows = [i for i in range(len(labels)) if (labels.split[i] if labels.split else "train") == part]
    if not rows:
        raise ValueError(f"labels must have rows whose split is {part}, {labels.name} has none")
    return labels.take(rows)


def in_half(name: str, t: Tensor) -> bool:
    """Whether a weight is that of a convolution of one pixel."""
    return t.dim() == 4 and t.shape[2:] == (1, 1)


def rounded(encoder: Encoder, half: bool) -> Encoder:
    """The encoder as it is packaged: under the name of the network without timm, its weights as they will be stored."""
    made = Encoder(EFFICIENTNET, features=encoder.features)
    made.set_normalization(encoder.mean, encoder.std)
    weights = {k: t.half().float() if half and in_half(k, t) else t for k, t in encoder.network.state_dict().items()}
    made.network.load_state_dict(weights)
    return made.eval()


def save_encoder(encoder: Encoder, path: Path, half: bool) -> None:
    """As a checkpoint, which --init and --checkpoint read too."""
    from safetensors.torch import save

    weights = {
        f"encoder.network.{k}": (t.half() if half and in_half(k, t) else t).contiguous()
        for k, t in encoder.network.state_dict().items()
    }
    write_bytes(path, save(weights, to_metadata(encoder)))


def to_regressor(found: Fit, encoder: Encoder, labels: Labels, crop: int, view: int | None) -> Regressor:
    """On the scale of the labels, with what is needed to use it."""
    span = (labels.high - labels.low) * (-1 if labels.lower_better else 1)
    about = {
        **describe(encoder),
        "encoder_hash": hash_encoder(encoder),
        "crop": crop,
        "view": "full" if view is None else view,
        "full_reference": False,
        "labels": labels.name,
        "split": "train",
        **labels.scale,
    }
    offset = labels.high if labels.lower_better else labels.low
    return Regressor(found.coef * span, found.intercept * span + offset, about)


def make(given: argparse.Namespace, out: Path) -> None:
    """Fit, round, check and write; ValueError or RuntimeError for bad input."""
    view = check_view(given.view)
    labels = part_of(read_labels(given), "train")
    paths = find_files(labels, given.root or Path(given.labels).parent)
    encoder = open_encoder(given.checkpoint, features=given.features)
    if getattr(encoder, "name", None) not in NAMES:
        raise ValueError(f"checkpoint must hold the encoder {' or '.join(NAMES)}, got {getattr(encoder, 'name', '?')}")
    options = {"crop": given.crop, "view": given.view, "workers": given.workers}
    many = {"cache": given.cache, "runtime": given.runtime, **options}
    features = extract(Extractor(encoder, **many), paths, label="features")
    labels = labels.take(features.kept)
    paths = [paths[i] for i in features.kept]
    flipped = extract(Extractor(Mirrored(encoder), **many), paths, label="mirror images")
    if flipped.failed:
        raise RuntimeError(f"photographs must stay as they are meanwhile: {next(iter(flipped.failed.values()))}")
    pairs = None
    if given.ordered:
        source = PhotoFolder(given.ordered)
        pairs = make_ordered(encoder, source, for_fitting(source, given.ordered_photographs), given.crop)
    means = [f.values.double().mean(1) for f in (features, flipped)]
    found = fit(means[0], torch.from_numpy(labels.quality()), pairs, means[1])

    half, moved = True, 0.0
    few = [paths[i * len(paths) // CHECKED] for i in range(CHECKED)]
    before = extract(Extractor(rounded(encoder, False), **options), few, label="as trained").values
    after = extract(Extractor(rounded(encoder, True), **options), few, label="in float16").values
    coef = found.coef
    moved = float(((before.double() - after.double()).mean(1) @ coef).abs().max())
    if not moved < LIMIT:
        half = False
    packaged = rounded(encoder, half)
    write_model(
        given, out, packaged, half, moved, to_regressor(found, packaged, labels, given.crop, view), found, labels
    )


def write_model(
    given: argparse.Namespace,
    out: Path,
    encoder: Encoder,
    half: bool,
    moved: float,
    regressor: Regressor,
    found: Fit,
    labels: Labels,
) -> None:
    """All files; model.json, which names their SHA-256, last."""
    out.mkdir(parents=True, exist_ok=True)
    save_encoder(encoder, out / ENCODER, half)
    regressor.save(out / REGRESSOR)
    names = (ENCODER, REGRESSOR)
    about = {
        "format": 1,
        "encoder": encoder.name,
        "features": encoder.features,
        "source": given.checkpoint,
        "command": given.command,
        "view": regressor.view,
        "crop": given.crop,
        "float16": half,
        "moved_by_float16": moved,
        "moved_on": CHECKED,
        "trained_on": [{"name": name, "licence": licence} for name, licence in given.source],
        "labels": {"name": labels.name, "images": len(labels), "split": "train"},
        "fit": {
            "folds": FOLDS,
            "shuffles": SHUFFLES,
            "strength": found.alpha,
            "weight_of_pairs": found.weight,
            "weight_of_mirror_images": found.mirror,
            "pairs_in_order": found.agreeing,
            "srcc": found.srcc,
            "plcc": found.plcc,
            "rmse": found.rmse,
        },
        "sha256": {name: hash_file(out / name) for name in names},
        "test": None,
        "sanity": None,
    }
    write_json(out / MODEL, about)
    write_text(out / CARD, write_card(about))


def read_labels(given: argparse.Namespace) -> Labels:
    """The label file."""
    if given.labels is None:
        raise ValueError("--labels CSV is needed, got none")
    scale = tuple(given.scale) if given.scale else None
    return read_csv(given.labels, given.score_column, scale=scale)


def judge(given: argparse.Namespace, out: Path) -> dict:
    """The packaged model on the rows whose split is test."""
    labels = part_of(read_labels(given), "test")
    paths = find_files(labels, given.root or Path(given.labels).parent)
    encoder, regressor = load_packaged(out)
    options = {"crop": regressor.about["crop"], "view": regressor.view, "workers": given.workers}
    options |= {"runtime": given.runtime}
    found = extract(Extractor(encoder, cache=given.cache, **options), paths, label="test")
    labels = labels.take(found.kept)
    numbers = summary(regressor.predict(found.values).numpy(), labels.score)
    return {"labels": labels.name, "images": len(labels), **{k: float(v) for k, v in numbers.items()}}


def without_folders(word: str) -> str:
    """A word of the command line as it is recorded: of a path of this machine, the last two names."""
    return "/".join(Path(word).parts[-2:]) if Path(word).is_absolute() else word


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m shamisa.packaged",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", metavar="RUN", help=f"as of the probe; an encoder {' or '.join(NAMES)}")
    add("--features", default="stages", metavar="NAMES", help="features of the encoder, as of the probe [%(default)s]")
    add("--labels", metavar="CSV", help="label file, as of the probe")
    add("--root", metavar="DIR", help="folder that its names are relative to [its own]")
    add("--score-column", metavar="NAME", help="column with the scores [score, mos or dmos]")
    add("--scale", nargs=2, type=float, metavar=("LOW", "HIGH"), help="ends of the rating scale [of the scores]")
    add(
        "--ordered",
        metavar="DIR",
        help="also fit on pairs made from these pristine photographs, see packaged/ordered.py",
    )
    add("--ordered-photographs", type=int, default=12, metavar="N", help="number of those [%(default)s]")
    add(
        "--source",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "LICENCE"),
        help="what it was trained on and under which licence, for the card; may be repeated",
    )
    add("--view", default=VIEW, metavar="PIXELS|full", help="viewing size [%(default)s]")
    add("--crop", type=int, default=224, help="side of the crops, in pixels [%(default)s]")
    add("--cache", metavar="DIR", help="cache features here [none]")
    add("--workers", type=int, default=2, help="decoding threads [%(default)s]")
    add("--runtime", choices=RUNTIMES, default="torch", help="what runs the encoder, as of the scorer [%(default)s]")
    add("--out", metavar="DIR", help="folder to write [this package's]")
    add("--test", action="store_true", help="judge the packaged model on the rows whose split is test")
    add("--sanity", metavar="JSON", help="put the figures of benchmarks/sanity.py into the card")
    return parser


def run(given: argparse.Namespace) -> int:
    """Everything between the command line and the exit status."""
    out = Path(given.out) if given.out else FOLDER
    if not (given.checkpoint or given.test or given.sanity):
        raise ValueError(
            "give --checkpoint RUN to make a model, --test or --sanity JSON to complete its card, got none"
        )
    if given.checkpoint:
        make(given, out)
    about = read_model(out)
    if given.test:
        about["test"] = judge(given, out)
    if given.sanity:
        about["sanity"] = json.loads(Path(given.sanity).read_text(encoding="utf-8"))["summary"]
    write_json(out / MODEL, about)
    write_text(out / CARD, write_card(about))
    fitted = about["fit"]
    print(
        f"{out}: cross-validated SRCC {fitted['srcc']:.4f}, PLCC {fitted['plcc']:.4f}, strength {fitted['strength']:.3g}"
    )
    if given.test:
        print(f"test: SRCC {about['test']['srcc']:.4f}, PLCC {about['test']['plcc']:.4f}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input, 130 interrupted, told on stderr in one line."""
    argv = sys.argv[1:] if argv is None else argv
    given = make_parser().parse_args(argv)
    kept = [word for i, word in enumerate(argv) if word != "--out" and argv[i - 1 : i] != ["--out"]]
    given.command = shlex.join(["python", "-m", "shamisa.packaged", *map(without_folders, kept)])
    return guard("packaged", lambda: run(given), "start it again")


if __name__ == "__main__":
    sys.exit(main())
