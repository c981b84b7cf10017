"""Which files count as photographs: what the installed Pillow and its plugins read, and what to say of the others.

Pillow reads AVIF from 11.3 on. HEIC and JPEG XL come by plugins, which the extra ``formats`` installs: ``pillow-heif`` and
``pillow-jxl-plugin``. Importing this module registers them, in every process that decodes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from PIL import Image, features

_KINDS = {  # format of Pillow -> endings of photographs; drawings, documents and video that Pillow knows are no photographs
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pnm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "MPO": (".mpo",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
_LIBRARY = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}  # what Pillow must be built with
_PLUGIN = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # modules


def _register() -> tuple[str, ...]:
    """Register the plugins that are installed; -> the formats that can be read."""
    Image.init()
    readable = []
    for kind in _KINDS:
        if kind in _PLUGIN:
            try:
                plugin = importlib.import_module(_PLUGIN[kind])
            except ImportError:
                continue
            if kind == "HEIF":
                plugin.register_heif_opener()
        elif kind in _LIBRARY and not features.check(_LIBRARY[kind]):
            continue
        if kind in Image.OPEN or kind == "MPO":  # MPO is opened as a JPEG
            readable.append(kind)
    return tuple(readable)


FORMATS = _register()
EXTENSIONS = tuple(ending for kind in FORMATS for ending in _KINDS[kind])


def count(number: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def shorten(names: Sequence[str], most: int = 5) -> str:
    """ "a, b, c" of a few names, "a, b, c, d, e and 2 more" of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def describe_ignored(others: dict[str, int]) -> str:
    """Number of files that are no photographs by ending -> "3 files with other endings ignored (.heic 2, .svg 1); install
    shamisa[formats]", "" where there are none. The advice stands where it would make some of them photographs."""
    if not others:
        return ""
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    endings = ", ".join(f"{ending or 'without ending'} {n}" for ending, n in most[:8]) + (", ..." if most[8:] else "")
    missing = {kind for kind, known in _KINDS.items() if kind not in FORMATS and any(e in others for e in known)}
    advice = "; install shamisa[formats]" if missing & set(_PLUGIN) else ""
    advice += "; .avif needs Pillow 11.3 or newer" if "AVIF" in missing else ""
    return f"{count(sum(others.values()), 'file')} with other endings ignored ({endings}){advice}"
