"""Photographs in, ``uint8`` crops out: sources (folder, list, embedded) and the reader that cuts them."""

from __future__ import annotations

from .embedded import EmbeddedPhotos, dead_leaves
from .photos import EXTENSIONS, PhotoError, PhotoFiles, PhotoFolder, PhotoList, Photos, open_photos, read_photo
from .readers import References

__all__ = [
    "EXTENSIONS",
    "EmbeddedPhotos",
    "PhotoError",
    "PhotoFiles",
    "PhotoFolder",
    "PhotoList",
    "Photos",
    "References",
    "dead_leaves",
    "open_photos",
    "read_photo",
]
