"""Checkpoints as they are read: verified folders, and the trained encoder in them. ``training.runs`` writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import remote
from ..files import hash_file
from .encoders import recorded_metadata
from .models import Encoder, load_into
from .weights import load_matching

FORMAT = 1  # of a checkpoint
MODEL, STATE, INDEX = "model.safetensors", "state.safetensors", "state.json"
POINTERS = ("latest", "best")


class RunError(ValueError):
    """A run folder or checkpoint that cannot be used, with the reason."""


def read_json(path: Path) -> dict:
    """The object in a JSON file; RunError if there is none."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def contents(path: Path) -> str:
    """What a path holds, in words, for errors."""
    if not path.exists():
        return "no such file or folder"
    if not path.is_dir():
        return "a file"
    names = sorted(p.name for p in path.iterdir())[:6]
    return f"a folder with {', '.join(names)}" if names else "an empty folder"


def newest(checkpoints: Path) -> Path | None:
    """The step folder that ``latest`` names, or None before the first; RunError where the pointer leads nowhere."""
    pointer = checkpoints / "latest"
    if not pointer.is_file():
        return None
    folder = checkpoints / pointer.read_text().strip()
    if not folder.is_dir():
        raise RunError(f"{pointer} names {folder.name}, which is not there")
    return folder


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    index: dict  # state.json

    @property
    def step(self) -> int:
        """Steps done."""
        return self.index["step"]

    def model_tensors(self) -> dict[str, Tensor]:
        """encoder.*, projector.* and loss.*, on the CPU."""
        return load_file(self.path / MODEL)

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state, as ``optimizer_tensors`` names it."""
        return load_file(self.path / STATE)


def follow(path: Path) -> Path:
    """RUN/checkpoint/best or RUN/checkpoint/latest -> the step folder it names; any other path as it is."""
    if path.name not in POINTERS or not path.is_file():
        return path
    folder = path.with_name(path.read_text().strip())
    if not folder.is_dir():
        raise RunError(f"{path} names {folder.name}, which is not there")
    return folder


def find_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint of a run folder (its newest), of ``RUN/checkpoint``, ``RUN/checkpoint/best`` or a ``step-*`` folder.

    Its files are verified.

    Raises:
        RunError: nothing there, an unfinished run without a checkpoint, or files that are missing or damaged.
    """
    path = follow(Path(path))
    if (path / INDEX).is_file():
        folder = path
    else:
        folder = path if path.name == "checkpoint" else path / "checkpoint"
        if not folder.is_dir():
            raise RunError(
                "checkpoint must be a run folder, a checkpoint folder or a model.safetensors file, "
                f"got {path}: {contents(path)}"
            )
        folder = newest(folder)
        if folder is None:
            raise RunError(f"{path} has no checkpoint yet")
    index = read_json(folder / INDEX)
    if (
        index.get("format") != FORMAT
        or not isinstance(index.get("files"), dict)
        or not isinstance(index.get("step"), int)
    ):
        raise RunError(f"{folder / INDEX} must be a checkpoint of format {FORMAT}, got format {index.get('format')!r}")
    for name, expected in index["files"].items():
        file = folder / name
        if not file.is_file():
            raise RunError(f"checkpoint {folder} lacks {name}")
        if file.stat().st_size != expected["bytes"]:
            raise RunError(f"{file} is damaged: expected {expected['bytes']} bytes, got {file.stat().st_size}")
        if (found := hash_file(file)) != expected["sha256"]:
            raise RunError(f"{file} is damaged: expected SHA-256 {expected['sha256'][:16]}..., got {found[:16]}...")
    return Checkpoint(folder, index)


def fetch_checkpoint(url: str) -> Path:
    """A local copy of what ``load_encoder`` takes, by URL: of a run only its newest checkpoint."""
    try:
        if remote.is_file(url) and remote.base_name(url) not in POINTERS:
            return remote.fetch(url)
        places = [url, remote.join(url, "latest"), remote.join(url, "checkpoint/latest")]
        if not remote.is_file(remote.join(url, INDEX)):
            pointer = next((place for place in places if remote.is_file(place)), None)
            if pointer is None:
                raise RunError(
                    "checkpoint must be a run folder, a checkpoint folder or a model.safetensors file, got "
                    f"{url}: {'none of them' if remote.exists(url) else 'no such file or folder'}"
                )
            url = remote.join(remote.parent(pointer), remote.read_text(pointer).strip())
        folder = remote.temporary_folder()
        for name in (INDEX, MODEL, STATE):
            remote.fetch(remote.join(url, name), folder)
        return folder
    except remote.RemoteError as error:
        raise RunError(f"cannot read the checkpoint {error.url}: {error.reason}") from None


def load_encoder(
    path: str | Path, *, expect: str | None = None, features: str | None = None, encoder: nn.Module | None = None
) -> nn.Module:
    """The trained encoder of a run, in eval mode on the CPU: an ``Encoder``, or the module given.

    Args:
        path: a run folder, its ``checkpoint`` folder, ``checkpoint/best``, one ``step-*`` folder, or a
            model.safetensors file; or the URL of one, which is copied into the folder for temporary files.
        expect: the name the encoder must have, such as ``torchvision/resnet50``; None takes any.
        features: what h shall be, see ``Encoder``; None: as the run was trained (as all of version 0.1, the last layer).
        encoder: a module of the class that the run was trained with, where that was one of your own; it takes the weights
            and is returned.

    Raises:
        RunError: missing, unreadable or damaged, of another architecture or normalisation, an unknown stage, or a module
            of somebody else that was not given.
    """
    given, path = path, fetch_checkpoint(path) if remote.is_url(path) else follow(Path(path))
    file = path if path.is_file() else find_checkpoint(path).path / MODEL
    try:
        with safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            weights = {
                k.removeprefix("encoder."): content.get_tensor(k) for k in content.keys() if k.startswith("encoder.")
            }
    except (SafetensorError, OSError) as error:
        raise RunError(f"cannot read {file}: {error}") from None
    name = about.get("encoder")
    if name is None:
        raise RunError(
            f"{file} must be a checkpoint of shamisa (with the encoder's name inside), got another safetensors file"
        )
    if expect is not None and name != expect:
        raise RunError(f"{file} must hold the encoder {expect}, got {name}")
    try:
        record = recorded_metadata(about, str(file))
        if encoder is not None:
            return load_into(encoder, weights, name, record, str(file), features)
        if "/" not in name:
            raise RunError(f"{file} holds the encoder {name}, a module of somebody's own: load it with encoder=MODULE")
        with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
            encoder = Encoder(name, features=features or record["features"])
        encoder.adopt(record)
        encoder.source = given if remote.is_url(given) else str(file)
        load_matching(encoder, weights, f"{file} does not fit the encoder {name}")
    except (ValueError, RuntimeError) as error:
        raise RunError(str(error)) from None
    return encoder.eval()
