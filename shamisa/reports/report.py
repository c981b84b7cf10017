"""The probe's page: one self-contained HTML file (no network, no script), readable on a telephone, light and dark.

``write_report`` writes index.html and, beside it, scatter.png and a PNG of bars for each kind of group. The pages are the
templates beside this module; everything put into them is escaped.
"""

from __future__ import annotations

import base64
import io
import math
import os
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..data.photos import PhotoError, read_photo
from ..datasets.labels import describe_scale
from ..files import printable, write_text
from ..scoring.metrics import MEANING

THUMBNAILS = 10  # worst and best predictions, each
_SIDE = 240  # pixels, the longer one of a thumbnail; shown at about two thirds
_COLUMNS = (("SRCC", "srcc"), ("PLCC", "plcc"), ("PLCC*", "plcc_logistic"), ("KRCC", "krcc"), ("RMSE", "rmse"))
_LOGISTIC = f"{MEANING}. PLCC* is PLCC after a 4-parameter logistic that was fitted to the same test images."


# ---- pieces ----------------------------------------------------------------------------------------------------------
def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _shown(value: object) -> object:
    """What is put into a page; bytes of file names that are not UTF-8 are shown as \\xNN."""
    return value if isinstance(value, Markup) else printable(value)


def _write(path: Path, template: str, **values: object) -> Path:
    """The page of a template."""
    pages = Environment(
        loader=PackageLoader("shamisa", "reports"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["number"] = _number
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, pages.get_template(template).render(values) + "\n")
    return path


def _code(content: str) -> Markup:
    return Markup("<code>{}</code>").format(content)


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _words(command: str) -> list[str]:
    """A command is broken between these only, where they fit."""
    return [shlex.quote(word) for word in shlex.split(command)]


def thumbnail(path: str | os.PathLike) -> str:
    """A photograph, made small -> data URI of a JPEG; "" where it cannot be read."""
    try:
        photo = read_photo(
            path, truncated="read", note=lambda remark: None
        )  # the page says elsewhere what was left out
    except PhotoError:
        return ""
    image = Image.fromarray(photo.permute(1, 2, 0).numpy())
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return _uri(buffer.getvalue(), "jpeg")


# ---- the page of a probe ---------------------------------------------------------------------------------------------
def _sizes(results: dict) -> dict[str, int]:
    rows = [s["n"] for s in results["encoders"][0]["splits"]]
    return {part: int(np.median([r[part] for r in rows])) for part in rows[0]}


def _truncated(results: dict) -> list[tuple[str, str]]:
    cases = (("truncated", "left out"), ("truncated_read", "read as far as they go"))
    return [("Truncated JPEGs", f"{len(results[key])}, {words}") for key, words in cases if results.get(key)]


def _protocol(results: dict) -> list[tuple[str, str]]:
    said, splits, n = results["protocol"], results["splits"], _sizes(results)
    medians, last = (" (medians)", f" ... {splits[-1]['origin']}") if len(splits) > 1 else ("", "")
    return [
        ("Data", f"{results['labels']}, {results['images']} images, scores {describe_scale(**results['scale'])}"),
        ("Unreadable", f"{len(results['unreadable'])}, left out" if results["unreadable"] else "none"),
        *_truncated(results),
        ("Images", f"{n['train']} train, {n['val']} val, {n['test']} test{medians}"),
        ("Splits", f"{splits[0]['origin']}{last}"),
        ("Split hash", _code(splits[0]["hash"])),
        ("Features", said["features"]),
        ("Regressor", f"{said['regressor']}; strength {said['strength']}"),
        ("Encoder hash", _code(results["encoders"][0]["encoder_hash"])),
    ]


def _group(records: list[dict], kind: str) -> list[dict]:
    """A row with a bar for every distortion or level: the first encoder's SRCC; the others' as numbers."""
    rows = []
    for name, first in records[0]["groups"][kind].items():
        value = first["srcc"]
        rows.append(
            {
                "name": name,
                "width": 0 if value is None else 100 * min(abs(value), 1),
                "negative": value is not None and value < 0,
                "others": [r["groups"][kind].get(name, {}).get("srcc") for r in records[1:]],
                **first,
            }
        )
    return rows


def _images(first, positions: Iterable[int]) -> list[dict]:
    labels, test = first.source.labels, first.split.test
    return [
        {
            "uri": thumbnail(first.source.paths[test[i]]),
            "file": labels.files[test[i]],
            "score": labels.score[test[i]],
            "predicted": first.prediction[i],
        }
        for i in positions
    ]


def write_report(folder: str | os.PathLike, results: dict, first) -> Path:
    """The page of a probe.

    Args:
        folder: made if need be; index.html, scatter.png and, where the labels know groups, distortion.png and level.png.
        results: what results.json holds.
        first: ``probe.First``, the first encoder on the first split.

    Returns the path of index.html.
    """
    from .plots import bars, scatter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder, target = results["encoders"][0], first.source.labels.score[first.split.test]
    name = printable(f"{encoder['checkpoint']} on {results['labels']}")
    scatter(first.prediction, target, folder / "scatter.png", name)
    with tempfile.TemporaryDirectory() as scratch:
        dark = Path(scratch) / "dark.png"
        scatter(first.prediction, target, dark, name, dark=True)
        plots = [_uri(p.read_bytes(), "png") for p in (dark, folder / "scatter.png")]
    kind = "full reference" if results["full_reference"] else "no reference"
    error = np.abs(first.prediction - target)
    order = np.argsort(-error, kind="stable")
    count = min(THUMBNAILS, len(order) // 2)
    for group, members in encoder["groups"].items():
        bars(
            {n: math.nan if v["srcc"] is None else v["srcc"] for n, v in members.items()}, folder / f"{group}.png", name
        )
    several = len(results["splits"]) > 1
    return _write(
        folder / "index.html",
        "probe.html",
        title=f"{name}, {kind}",
        best=encoder["median"],
        sizes=_sizes(results),
        several=several,
        splits=results["splits"],
        protocol=_protocol(results),
        words=_words(results["command"]),
        encoders=results["encoders"],
        columns=_COLUMNS,
        logistic=_LOGISTIC,
        where=", first split" if several else "",
        worst=_images(first, order[:count]),
        best_images=_images(first, order[::-1][:count]),
        scatter_dark=plots[0],
        scatter=plots[1],
        groups={group: _group(results["encoders"], group) for group in encoder["groups"]},
        versions=results["versions"],
    )


# ---- the page of a cross-dataset matrix ------------------------------------------------------------------------------
def write_cross(folder: str | os.PathLike, results: dict) -> Path:
    """The page of ``--cross``, index.html, from what cross.json holds."""
    names = list(results["sets"])
    return _write(
        Path(folder) / "index.html",
        "cross.html",
        title=f"Cross-dataset probe: {', '.join(names)}",
        names=names,
        encoders=results["encoders"],
        columns=_COLUMNS[:3],
        logistic=_LOGISTIC,
        protocol=list(results["protocol"].items()),
        sets=results["sets"],
        words=_words(results["command"]),
    )
