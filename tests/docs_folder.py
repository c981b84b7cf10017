"""The folder in which the documentation's blocks run: photographs, label files, a run and a regressor under the names that
the pages use, and a shell in which training and probing are kept short."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import torch
from PIL import Image

import shamisa
from shamisa import train
from shamisa.data import dead_leaves

SHORT = "--steps 2 --check-every 0 --encoder shamisa/small --init none --crop 64 --hidden 16 --embedding 16 --workers 0"
COUNT = 6  # photographs, each distorted at five levels for the label file


def furnish(folder: Path) -> None:
    """PHOTOS, IMAGES with labels.csv, photo.png, runs/paper with a regressor."""
    photographs, images = folder / "PHOTOS", folder / "IMAGES"
    photographs.mkdir()
    images.mkdir()
    rows = ["file,score,reference,distortion,level"]
    for i in range(COUNT):
        photo = dead_leaves(i, 256)
        save(photo, photographs / f"{i}.png")
        worse = shamisa.distort(photo.expand(5, -1, -1, -1), "jpeg", severity=torch.arange(5.0))
        for level, image in enumerate(worse, 1):
            save(image, images / f"{i}-{level}.png")
            rows.append(f"{i}-{level}.png,{6 - level + i / 10},{i},jpeg,{level}")
    save(dead_leaves(COUNT, 256), folder / "photo.png")
    for name in ("labels.csv", "IMAGES/labels.csv"):
        (folder / name).write_text("\n".join(rows) + "\n")
    words = [*SHORT.split(), "--preset", "paper", "--refs", str(photographs), "--out", str(folder / "runs/paper")]
    assert train.main([*words, "--steps", "1", "--quiet", "--no-tensorboard"]) == 0
    regressor(folder)


def regressor(folder: Path) -> None:
    """runs/paper/probe/regressor.safetensors, fitted by the probe, with a copy beside the run."""
    from shamisa import probe

    out = folder / "runs/paper/probe"
    words = ["--checkpoint", str(folder / "runs/paper"), "--labels", str(folder / "labels.csv")]
    words += ["--root", str(folder / "IMAGES"), "--crop", "96", "--splits", "1", "--quiet", "--out", str(out)]
    assert probe.main(words) == 0
    for path in out.glob("regressor.*"):
        (folder / path.name).write_bytes(path.read_bytes())


def save(image: torch.Tensor, path: Path) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def environment(folder: Path) -> dict[str, str]:
    """Variables of a shell in which training makes two short steps and the probe one split, whatever else they are told."""
    there = folder / "bin"
    there.mkdir(exist_ok=True)
    for name in ("shamisa", "python", "torchrun"):
        path = there / name
        path.write_text(WRAPPER.format(python=sys.executable, short=SHORT))
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return {"PATH": f"{there}:{os.environ['PATH']}", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}


WRAPPER = """#!/usr/bin/env bash
name=$(basename "$0")
if [ "$name" = shamisa ]; then set -- -m "shamisa.${{1:-}}" "${{@:2}}"; fi
if [ "$name" = torchrun ]; then set -- -m torch.distributed.run "$@"; fi
if [ "${{1:-}}" = -m ] && [ "${{2:-}}" = shamisa.distort ]; then set -- -m shamisa distort "${{@:3}}"; fi
if [ "${{1:-}}" = -m ] && [ "${{2:-}}" = shamisa.probe ]; then set -- "$@" --crop 96 --splits 1; fi
if [ "${{1:-}}" = -m ] && [ "${{2:-}}" = shamisa.train ]; then
  case " $* " in
    *" --resume "*) set -- "$@" --steps 3 ;;
    *) set -- "$@" {short} ;;
  esac
fi
exec {python} "$@"
"""
