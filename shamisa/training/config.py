"""Configuration of a training run: one frozen dataclass, its presets, and the command line made from it.

Every field states its meaning and unit once, in ``setting(...)``, those of engine and objective where these are; ``--help``
and the checks come from there. The class defaults are the published configuration (arXiv 2603.13669); presets are instances.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass

from .. import checks
from ..data import READERS
from ..data.decode import MAX_SECONDS, TRUNCATED
from ..engine import EngineOptions
from ..options import setting
from ..relations import RelationOptions
from . import presets

EMBEDDED = "embedded"  # the value of refs that means the photographs packaged with scikit-image and scikit-learn


@dataclass(frozen=True)
class Config(EngineOptions, RelationOptions):
    """What a training run is: the options of engine and objective, and these. ValueError where a value does not fit."""

    # data
    refs: str = setting(
        EMBEDDED,
        "pristine photographs: a folder, a list file with one path per line, tar shards (a .tar, a folder of them, "
        "DIR/shard-{000000..000009}.tar, pipe:COMMAND, - for the standard input), or 'embedded'",
    )
    reader: str = setting("pillow", "decoder: pillow, or dali (NVIDIA DALI, on the training device)", choices=READERS)
    batch: int = setting(
        2,
        "B, samples per process and forward pass; each gives 6 pristine and 6 C L distorted images. A step has "
        "batch x accumulate x processes samples",
        low=1,
        high=4096,
    )
    crop: int = setting(224, "side of the square crops, in pixels", low=16, high=4096)
    pad: str = setting(
        "zero",
        "padding of photographs smaller than a crop: zeros or reflection",
        choices=("zero", "reflect"),
    )
    max_skipped: float = setting(
        0.5, "fraction of the photographs that may be unreadable before the run fails", low=0, high=1
    )
    max_seconds: float = setting(
        MAX_SECONDS,
        "seconds that decoding one photograph may take before it counts as unreadable; 0: no limit",
        low=0,
        high=999999,
    )
    truncated: str = setting(
        "skip",
        "a JPEG without its end marker or its last rows: leave it out, or read it as far as it goes, as viewers do",
        choices=TRUNCATED,
    )
    workers: int = setting(
        4, "loader processes per training process; 0: load in the training process itself", low=0, high=256, live=True
    )
    prefetch: int = setting(2, "batches that each loader process prefetches", low=1, high=1024, live=True)
    backend: str = setting(
        "auto",
        "distortion kernels: compiled (native), PyTorch (reference), or compiled where available (auto)",
        choices=("auto", "native", "reference"),
        live=True,
    )
    # model
    encoder: str = setting(
        "torchvision/resnet50",
        "encoder network: torchvision/resnet18, resnet34 or resnet50, shamisa/small, shamisa/efficientnet_lite0, or timm/NAME",
    )
    init: str = setting(
        "imagenet", "initial weights of the encoder: imagenet, none (random), or a .safetensors or .pth file"
    )
    features: str = setting(
        "last",
        "what h is: last (the network's output), stages (that and mean and standard deviation of every stage, each of "
        "norm 1), or some of last,stage1,stage2,...",
    )
    hidden: int = setting(3072, "width of the projector's hidden layer", low=1, high=65536)
    embedding: int = setting(768, "E, dimension of the embedding", low=2, high=65536)
    # optimisation
    epochs: float = setting(1.0, "passes over the photographs; used when --steps is 0", low=0)
    steps: int = setting(0, "training steps; 0: as many as --epochs gives", low=0, high=2**31)
    accumulate: int = setting(
        1, "batches whose gradients are accumulated in a step; each batch has its own objective", low=1, high=65536
    )
    optimizer: str = setting("sgd", "sgd (with momentum) or adamw; fused on a GPU", choices=("sgd", "adamw"))
    lr: float = setting(1.5e-3, "peak learning rate", low=0)
    encoder_lr: float = setting(1.0, "learning rate of the encoder, as a multiple of --lr", low=0)
    momentum: float = setting(0.9, "momentum of sgd", low=0, high=1)
    weight_decay: float = setting(1e-4, "weight decay coefficient", low=0)
    schedule: str = setting(
        "restarts",
        "learning-rate schedule: restarts (cosines of 1, 2, 4, ... epochs), cosine (one over the run), or constant",
        choices=("restarts", "cosine", "constant"),
    )
    eta_min: float = setting(1e-6, "learning rate at the end of each cosine", low=0)
    warmup: int = setting(0, "steps of linear learning-rate warm-up", low=0, high=2**31)
    clip: float = setting(0.0, "clip the gradient to this norm; 0: no clipping", low=0)
    # precision and layout
    precision: str = setting(
        "auto",
        "precision of encoder and projector; auto: bfloat16 on a GPU (float16 on older ones), float32 on a CPU",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    channels_last: bool = setting(True, "use the channels-last memory format")
    sync_bn: bool = setting(False, "synchronise batch normalisation over all processes")
    compile: bool = setting(False, "run encoder and projector through torch.compile (rounding differs)", live=True)
    cuda_graph: bool = setting(
        False, "on one GPU: capture a step as a CUDA graph and replay it, which removes launch overhead", live=True
    )
    one_pass: bool = setting(
        False, "pass pristine and distorted images through the encoder in one call (published: two)"
    )
    # run
    seed: int = setting(
        0, "seed of initial weights, crops and chains: everything random depends on it alone", low=0, high=2**62
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N", live=True)
    threads: int = setting(0, "CPU threads of each training process; 0: torch's default", low=0, high=4096, live=True)
    checkpoint_every: int = setting(500, "steps between checkpoints; 0: only at the end", low=0, high=2**31, live=True)
    keep: int = setting(2, "number of newest checkpoints to keep", low=1, high=10**6, live=True)
    best_window: int = setting(
        100,
        "steps whose checks are averaged to rank checkpoints; the best is kept as checkpoint/best; 0: keep none",
        low=0,
        high=2**31,
        live=True,
    )
    check_every: int = setting(
        250,
        "steps between checks of the encoder on held-out packaged photographs, distorted: SRCC of a ridge regressor "
        "with SSIM, and effective rank; also at the start and the end; a warning tells when they fall; 0: never",
        low=0,
        high=2**31,
        live=True,
    )
    labels: str = setting(
        "",
        "label file (CSV with file and score) whose train and val parts join the checks; test is never read",
        live=True,
    )
    label_root: str = setting("", "folder of the files in --labels [that of the file]", live=True)
    stop_on_collapse: bool = setting(
        False, "end the run, as failed, where a check says that training destroys what the encoder knew", live=True
    )
    rank_every: int = setting(
        10, "steps between records of the effective rank and spread of h and z; 0: never", low=0, high=2**31
    )
    timeout: float = setting(
        600.0, "seconds a process waits for the others before it gives up", low=1, high=10**6, live=True
    )
    tensorboard: bool = setting(True, "also write TensorBoard files, if TensorBoard is installed", live=True)
    wandb: str = setting("", "Weights & Biases project to log to as well", live=True)
    demo: bool = setting(
        False,
        "at the end, compare the trained with the untrained encoder on packaged photographs (target: SSIM, a proxy)",
        live=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.steps or self.epochs):
            raise ValueError("steps or epochs must be positive, got 0 for both")
        kind, _, name = self.encoder.partition("/")
        if kind not in ("torchvision", "timm", "shamisa") or not name:
            raise ValueError(f"encoder must be torchvision/NAME, timm/NAME or shamisa/NAME, got {self.encoder!r}")

    def engine_options(self) -> dict:
        """Keyword arguments of shamisa.DistortionEngine."""
        return self.part(EngineOptions) | {"distortions": self.distortions or None}

    def loss_options(self) -> dict:
        """Keyword arguments of shamisa.RelationLoss."""
        return self.part(RelationOptions)

    def learning_rate(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """The rate of step 0, 1, ... of ``steps``: a pure function, so that resuming needs no scheduler state."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return self.lr
        position, period = step - self.warmup, max(1, steps - self.warmup)
        if self.schedule == "restarts":
            period = steps_per_epoch
            while position >= period:  # cosines of 1, 2, 4, ... epochs
                position, period = position - period, 2 * period
        return self.eta_min + (self.lr - self.eta_min) * (1 + math.cos(math.pi * position / period)) / 2


PAPER = Config(refs="")  # its photographs have to be named
DEMO = Config(**presets.DEMO)
BASES = {"demo": DEMO, "paper": PAPER}
ABLATIONS = {letter: dataclasses.replace(PAPER, **fields) for letter, (_, fields) in presets.ABLATIONS.items()}
PRESETS = BASES | ABLATIONS | {name: ABLATIONS[letter] for letter, (name, _) in presets.ABLATIONS.items()}


# ---- the command line ------------------------------------------------------------------------------------------------
SECTIONS = {  # title of a group in --help: the options that it inherits, the first of its own fields
    "data": (None, "refs"),
    "distortions": (EngineOptions, "backend"),
    "model": (None, "encoder"),
    "objective": (RelationOptions, None),
    "optimisation": (None, "epochs"),
    "precision and layout": (None, "precision"),
    "run": (None, "seed"),
}


def sections() -> dict[str, list[dataclasses.Field]]:
    """The fields by group, in the order of --help."""
    found = {title: list(dataclasses.fields(group)) if group else [] for title, (group, _) in SECTIONS.items()}
    inherited = {f.name for fields in found.values() for f in fields}
    first = {name: title for title, (_, name) in SECTIONS.items()}
    title = ""
    for f in dataclasses.fields(Config):
        if f.name not in inherited:
            title = first.get(f.name, title)
            found[title].append(f)
    return found


def _parse_tuple(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per field of Config; a flag that is not given leaves no trace, so that presets and runs show through."""
    for title, fields in sections().items():
        group = parser.add_argument_group(title)
        for f in fields:
            _add_flag(group, f)


def _add_flag(group: argparse._ArgumentGroup, f: dataclasses.Field) -> None:
    flag, kind = "--" + f.name.replace("_", "-"), type(f.default)
    values = [getattr(p, f.name) for p in BASES.values()]
    shown = [",".join(v) or "all" if isinstance(v, tuple) else "none" if v == "" else str(v) for v in values]
    same = len(set(shown)) == 1
    default = shown[0] if same else ", ".join(f"{p}: {s}" for p, s in zip(BASES, shown, strict=True))
    text = f"{f.metadata['help']} [{default}]".replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    options = {"choices": f.metadata["choices"]} if f.metadata["choices"] else {"metavar": kind.__name__.upper()}
    if kind is tuple:
        options["metavar"] = "NAMES"
    convert = _parse_tuple if kind is tuple else kind
    group.add_argument(flag, type=convert, default=argparse.SUPPRESS, help=text, **options)


def given_fields(namespace: argparse.Namespace) -> dict:
    """The fields of Config that the command line named."""
    return {f.name: getattr(namespace, f.name) for f in dataclasses.fields(Config) if hasattr(namespace, f.name)}


def resolve(preset: str, given: dict) -> Config:
    """A preset with some fields replaced; ValueError for an unknown preset or a bad value."""
    checks.choice("preset", preset, PRESETS)
    return dataclasses.replace(PRESETS[preset], **given)


def describe_ablations() -> str:
    """The ablations for --help: letter, name, what differs from the paper preset."""
    rows = []
    for letter, (name, fields) in presets.ABLATIONS.items():
        given = ", ".join(f"{k} {','.join(v) if isinstance(v, tuple) else v}" for k, v in fields.items())
        rows.append(f"  {letter}  {name:28} {given}")
    return (
        "ablations of the paper preset (the letters are this package's, grouped by part of the method):\n"
        + "\n".join(rows)
    )


def resume(saved: Config, given: dict, world: int = 1, saved_world: int = 1) -> Config:
    """The configuration of a run that goes on, with the flags that may change; ValueError for the others.

    batch and accumulate may change with the number of processes (``saved_world`` to ``world``) as long as a step has as
    many samples as before; without a word from ``given``, batch follows the number of processes.
    """
    if saved.refs.startswith("pipe:") and "refs" not in given:  # a run folder may be somebody else's
        raise ValueError(f"refs of this run is a command: name it again to run it, --refs {saved.refs!r}")
    given, samples = dict(given), saved.batch * saved.accumulate * saved_world
    accumulate = given.get("accumulate", saved.accumulate)
    if "batch" not in given and not samples % (accumulate * world):
        given["batch"] = samples // (accumulate * world)
    batch = given.get("batch", saved.batch)
    if batch * accumulate * world != samples:
        raise ValueError(
            f"batch x accumulate x processes of a resumed run must stay {saved.batch} x {saved.accumulate} x "
            f"{saved_world} = {samples} samples per step, got {batch} x {accumulate} x {world}"
        )
    for f in dataclasses.fields(Config):
        if f.name not in given or given[f.name] == getattr(saved, f.name) or f.metadata["live"]:
            continue
        if f.name in ("batch", "accumulate") or (f.name in ("steps", "epochs") and saved.schedule != "cosine"):
            continue
        raise ValueError(f"{f.name} of a resumed run must stay {getattr(saved, f.name)!r}, got {given[f.name]!r}")
    return dataclasses.replace(saved, **given)


NEWER = {  # fields that runs of the first format do not have: what was done then
    "truncated": "skip",
    "features": "last",
    "encoder_lr": 1.0,
    "check_every": 0,
    "labels": "",
    "label_root": "",
    "stop_on_collapse": False,
}


# ---- records ---------------------------------------------------------------------------------------------------------
def to_record(config: Config) -> dict:
    """Plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_record(record: dict) -> Config:
    """The inverse of ``to_record``. Fields that are newer than the run say what was done before (``NEWER``).

    Raises ValueError for missing or unknown fields (a newer version wrote it)."""
    names = {f.name for f in dataclasses.fields(Config)}
    got = set(record) if isinstance(record, dict) else set()
    if missing := names - got - set(NEWER):
        raise ValueError(f"config has other fields than this version: missing {sorted(missing)}")
    if got - names:
        raise ValueError(f"config has other fields than this version: unknown {sorted(got - names)}")
    return Config(**(NEWER | record))
