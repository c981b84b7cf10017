"""Photographs and readers by their names."""

from __future__ import annotations

import os

import torch

from .. import checks, remote
from .photos import EncodedPhotos, PhotoFolder, PhotoList, Photos
from .readers import References
from .shards import PhotoShards, names_shards

READERS = ("pillow", "dali")


def open_photos(path: str | os.PathLike, **options: float | str) -> EncodedPhotos:
    """A source from what a user may name. Options: see ``EncodedPhotos``.

    A folder of photographs (``PhotoFolder``), a list file (``PhotoList``), or tar shards (``PhotoShards``): a .tar file,
    a pattern such as ``DIR/shard-{000000..000009}.tar``, ``-`` for a tar on the standard input, ``pipe:COMMAND`` for one
    that a command writes, or a folder that holds .tar files, no photographs beside them and no subfolders. All but the
    streams may be URLs, see ``remote``.
    """
    if names_shards(path):
        return PhotoShards(path, **options)
    is_list = remote.is_file(path) if remote.is_url(path) else os.path.isfile(path)
    return PhotoList(path, **options) if is_list else PhotoFolder(path, **options)


def make_references(
    source: Photos, *, reader: str = "pillow", device: str | torch.device = "cpu", **fields
) -> References:
    """The reader of a name: "pillow", or "dali" (``shamisa.data.dali``), which gives the same crops.

    Args:
        source: see ``References``; "dali" needs one of files or shards.
        device: where "dali" decodes, "cpu" or "cuda[:N]"; the crops come back to the CPU. "pillow" knows the CPU only.
        fields: those of ``References``.

    Raises:
        MissingPackage: DALI is not installed.
        ValueError: an unknown reader, a source without encoded images, a field out of range.
    """
    checks.choice("reader", reader, READERS)
    if reader == "dali":
        from .dali import DaliReferences

        return DaliReferences(source, device=device, **fields)
    return References(source, **fields)
