"""The probe's page: one self-contained HTML file (no network, no script), readable on a telephone, light and dark.

``write_report`` writes index.html and, beside it, scatter.png and a PNG of bars for each kind of group.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.photos import PhotoError, read_photo
from ..datasets.labels import describe_scale
from ..files import printable, write_text
from ..scoring.metrics import MEANING

THUMBNAILS = 10  # worst and best predictions, each
_SIDE = 240  # pixels, the longer one of a thumbnail; shown at about two thirds
_COLUMNS = (("SRCC", "srcc"), ("PLCC", "plcc"), ("PLCC*", "plcc_logistic"), ("KRCC", "krcc"), ("RMSE", "rmse"))
_LOGISTIC = f"{MEANING}. PLCC* is PLCC after a 4-parameter logistic that was fitted to the same test images."

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c2128; --dim: #59636e; --line: #d5dae0; --bar: #3572b0;
  --bad: #b5483a; --soft: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e3e7eb; --dim: #9aa4ae; --line: #343b43;
  --bar: #5b9bd8; --bad: #e0796b; --soft: #1f242a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem 1rem 3rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .8rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .dim, small { color: var(--dim); } small { font-size: .8rem; display: block; }
.headline { display: flex; flex-wrap: wrap; gap: .3rem 2.2rem; align-items: baseline; }
.headline b { font-size: 2.4rem; line-height: 1.1; font-variant-numeric: tabular-nums; margin-left: .4rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1rem; margin: .8rem 0; }
dt { color: var(--dim); } dd { margin: 0; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; } pre { white-space: pre-wrap; background: var(--soft);
  padding: .6rem .8rem; border-radius: .4rem; margin: .3rem 0; }
pre span { display: inline-block; max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .35rem; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; color: var(--dim); } th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
th:first-child { overflow-wrap: normal; }
.group td:nth-child(2) { width: 45%; text-align: left; }
.bar { display: inline-block; height: .7rem; background: var(--bar); border-radius: .15rem; min-width: 1px; }
.bar.negative { background: var(--bad); }
img { max-width: 100%; height: auto; display: block; border-radius: .3rem; } .plot { width: min(100%, 40rem); }
.thumbnails { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10rem, 45%), 1fr)); gap: 1rem .8rem; }
figure { margin: 0; } figcaption { font-size: .82rem; line-height: 1.35; margin-top: .3rem; }
figure .frame { height: 8rem; display: flex; align-items: center; justify-content: center; background: var(--soft);
  border-radius: .3rem; } .frame img { max-height: 100%; width: auto; }
.within { color: var(--dim); }
@media (max-width: 36rem) { body { font-size: 15px; padding: 1rem .8rem 2rem; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .45rem; } th, td { padding: .3rem .2rem; font-size: .85rem; } .group td:nth-child(2) { width: 26%; } }
"""


# ---- pieces ----------------------------------------------------------------------------------------------------------
def text(content: object) -> str:
    """Anything -> text for HTML, attributes included. Bytes of file names that are not UTF-8 are shown as \\xNN."""
    return html.escape(printable(content), quote=True)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _page(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'
    )


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    """Pairs of words and HTML."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def _command(command: str) -> str:
    """Broken between the words only, where they fit."""
    return "<pre>" + " ".join(f"<span>{text(shlex.quote(word))}</span>" for word in shlex.split(command)) + "</pre>"


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
def _headline(results: dict) -> str:
    best, splits = results["encoders"][0]["median"], results["splits"]
    n = _sizes(results)["test"]
    spread = f" (standard deviation {_number(best['srcc_std'], 3)})" if len(splits) > 1 else ""
    how = f"median of {len(splits)} splits{spread}" if len(splits) > 1 else text(splits[0]["origin"])
    return (
        f'<p class="headline"><span>SRCC<b>{_number(best["srcc"], 3)}</b></span>'
        f"<span>PLCC<b>{_number(best['plcc'], 3)}</b></span>"
        f'<span class="dim">{n} test images, {how}; PLCC* {_number(best["plcc_logistic"], 3)}</span></p>'
    )


def _sizes(results: dict) -> dict[str, int]:
    rows = [s["n"] for s in results["encoders"][0]["splits"]]
    return {part: int(np.median([r[part] for r in rows])) for part in rows[0]}


def _truncated(results: dict) -> list[tuple[str, str]]:
    cases = (("truncated", "left out"), ("truncated_read", "read as far as they go"))
    return [("Truncated JPEGs", f"{len(results[key])}, {words}") for key, words in cases if results.get(key)]


def _protocol(results: dict) -> str:
    said, splits, n = results["protocol"], results["splits"], _sizes(results)
    return _facts(
        [
            ("Data", f"{text(results['labels'])}, {results['images']} images, scores {describe_scale(**results['scale'])}"),
            ("Unreadable", f"{len(results['unreadable'])}, left out") if results["unreadable"] else ("Unreadable", "none"),
            *_truncated(results),
            ("Images", f"{n['train']} train, {n['val']} val, {n['test']} test" + (" (medians)" if len(splits) > 1 else "")),
            ("Splits", text(splits[0]["origin"]) + (f" ... {text(splits[-1]['origin'])}" if len(splits) > 1 else "")),
            ("Split hash", f"<code>{text(splits[0]['hash'])}</code>"),
            ("Features", text(said["features"])),
            ("Regressor", f"{text(said['regressor'])}; strength {text(said['strength'])}"),
            ("Encoder hash", f"<code>{text(results['encoders'][0]['encoder_hash'])}</code>"),
        ]
    )  # fmt: skip


def _encoders(results: dict) -> str:
    rows = []
    for record in results["encoders"]:
        m = record["median"]
        cells = []
        for _, key in _COLUMNS:
            spread = f"<small>&plusmn; {_number(m[f'{key}_std'], 3)}</small>" if f"{key}_std" in m else ""
            cells.append(_number(m[key], 3) + spread)
        rows.append([text(record["checkpoint"]), *cells])
    return _table(["Encoder", *(label for label, _ in _COLUMNS)], rows)


def _groups(results: dict, kind: str) -> str:
    """A row with a bar for every distortion or level: the first encoder's SRCC; the others' as numbers."""
    records = results["encoders"]
    head = [kind.capitalize(), "", "SRCC", *(f"{i + 1}: SRCC" for i in range(1, len(records))), "PLCC", "n"]
    rows = []
    for name, first in records[0]["groups"][kind].items():
        value = first["srcc"]
        width = 0 if value is None else 100 * min(abs(value), 1)
        negative = " negative" if value is not None and value < 0 else ""
        bar = f'<span class="bar{negative}" style="width:{width:.1f}%"></span>'
        others = [_number(r["groups"][kind].get(name, {}).get("srcc"), 3) for r in records[1:]]
        rows.append([text(name), bar, _number(value, 3), *others, _number(first["plcc"], 3), str(first["n"])])
    note = "Of the first encoder" + ("; negative correlations in the other colour" if "negative" in str(rows) else "")
    if len(records) > 1:
        note += "; " + ", ".join(f"{i + 1}: {text(r['checkpoint'])}" for i, r in enumerate(records) if i)
    return f'<p class="dim">{note}.</p>' + _table(head, rows, "group")


def _thumbnails(first, positions: Iterable[int]) -> str:
    labels, test, figures = first.source.labels, first.split.test, []
    for i in positions:
        image, given, predicted = test[i], labels.score[test[i]], first.prediction[i]
        picture = thumbnail(first.source.paths[image])
        picture = f'<img src="{picture}" alt="">' if picture else '<span class="dim">cannot be read again</span>'
        figures.append(
            f'<figure><div class="frame">{picture}</div><figcaption>score {given:.4g}, predicted {predicted:.4g} '
            f"({predicted - given:+.3g})<br>{text(labels.files[image])}</figcaption></figure>"
        )
    return '<div class="thumbnails">' + "\n".join(figures) + "</div>"


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
    parts = [f"<h1>Image quality probe: {text(name)}, {kind}</h1>", _headline(results)]
    parts += [_protocol(results), _command(results["command"])]
    parts += ["<h2>Encoders</h2>", _encoders(results), f'<p class="dim">{_LOGISTIC}</p>']
    where = ", first split" if len(results["splits"]) > 1 else ""
    parts += [f"<h2>Worst predictions{where}</h2>", _thumbnails(first, order[:count])]
    parts += [f"<h2>Best predictions{where}</h2>", _thumbnails(first, order[::-1][:count])]
    parts.append(
        f'<h2>Scores and predictions{where}</h2><picture><source srcset="{plots[0]}" media="(prefers-color-scheme: dark)">'
        f'<img class="plot" src="{plots[1]}" alt="ground-truth scores against predicted scores, with the 4-parameter logistic"></picture>'
    )
    for group, members in encoder["groups"].items():
        values = {n: math.nan if v["srcc"] is None else v["srcc"] for n, v in members.items()}
        bars(values, folder / f"{group}.png", name)
        parts += [f"<h2>Per {group}</h2>", _groups(results, group)]
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    parts.append(f'<p class="dim">{text(versions)}</p>')
    write_text(folder / "index.html", _page(name, parts))
    return folder / "index.html"


# ---- the page of a cross-dataset matrix ------------------------------------------------------------------------------
def write_cross(folder: str | os.PathLike, results: dict) -> Path:
    """The page of ``--cross``, index.html, from what cross.json holds."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(results["sets"])
    parts = [f"<h1>Cross-dataset probe: {text(', '.join(names))}</h1>"]
    parts.append('<p class="dim">Trained on the row, tested on the column; on the diagonal within the set.</p>')
    for record in results["encoders"]:
        parts.append(f"<h2>{text(record['checkpoint'])}</h2>")
        for label, key in _COLUMNS[:3]:
            rows = [
                [text(row), *(f"<span class={'within' if row == c else 'across'}>{_number(record['matrix'][row][c][key], 3)}</span>" for c in names)]
                for row in names
            ]  # fmt: skip
            parts.append(_table([label, *map(text, names)], rows))
    parts.append(f'<h2>Protocol</h2><p class="dim">{_LOGISTIC}</p>')
    parts.append(_facts((key, text(value)) for key, value in results["protocol"].items()))
    hashes = (
        (n, f"{s['images']} images, first split <code>{text(s['splits'][0]['hash'])}</code>")
        for n, s in results["sets"].items()
    )
    parts += [_facts(hashes), _command(results["command"])]
    write_text(folder / "index.html", _page(f"Cross-dataset probe: {', '.join(names)}", parts))
    return folder / "index.html"
