"""Photographs in, ``uint8`` crops out: sources (folder, list, shards, embedded) and the readers that cut them."""

from __future__ import annotations

from .embedded import EmbeddedPhotos, dead_leaves
from .opening import READERS, make_references, open_photos
from .photos import EXTENSIONS, EncodedPhotos, PhotoError, PhotoFiles, PhotoFolder, PhotoList, Photos, read_photo
from .readers import References
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
