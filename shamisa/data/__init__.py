"""Photographs in, ``uint8`` crops out: sources (folder, list, shards, embedded) and the readers that cut them."""

from __future__ import annotations

from .embedded import EmbeddedPhotos, dead_leaves
from .photos import (
    EXTENSIONS,
    EncodedPhotos,
    PhotoError,
    PhotoFiles,
    PhotoFolder,
    PhotoList,
    Photos,
    open_photos,
    read_photo,
)
from .readers import READERS, References, make_references
from .shards import PhotoShards

__all__ = [
    "EXTENSIONS",
    "EncodedPhotos",
    "EmbeddedPhotos",
    "PhotoError",
    "PhotoFiles",
    "PhotoFolder",
    "PhotoList",
    "PhotoShards",
    "Photos",
    "READERS",
    "References",
    "dead_leaves",
    "make_references",
    "open_photos",
    "read_photo",
]
