"""What ``<!-- generated: NAME -->`` in a page stands for: Markdown made from parsers, dataclasses, tables and results."""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import shamisa
from benchmarks import report, scores
from shamisa import cli, ops, train
from shamisa.datasets.iqa_sets import SETS
from shamisa.reference.distort import FUNCTIONS

from . import pictures

ROOT = Path(__file__).resolve().parents[1]
Config = train.Config
configuration = sys.modules[Config.__module__]  # where its presets are


def cell(text: object) -> str:
    """Text of a table's cell: nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]|#~^$])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, (":--",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# ---- commands --------------------------------------------------------------------------------------------------------
class _Found(BaseException):
    """Carries the parser of a command out of it."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command builds, without running the command."""

    def stop(parser, args=None, namespace=None):
        raise _Found(parser)

    parse_args, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, stop
    try:
        cli.main([command])
    except _Found as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_args = parse_args
    raise RuntimeError(f"shamisa {command} parsed no arguments")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: sub for action in actions for name, sub in action.choices.items()}


def flags(command: str) -> set[str]:
    """All options of a command and of its own commands, such as --out."""
    parser = parser_of(command)
    every = [parser, *subparsers(parser).values()]
    return {word for p in every for a in p._actions for word in a.option_strings}


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for each group of options."""
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
                continue
            value = "" if action.nargs == 0 else formatter._format_args(action, action.metavar or action.dest.upper())
            words = [f"`{' '.join(filter(None, (flag, value)))}`" for flag in action.option_strings] or [f"`{value}`"]
            rows.append((", ".join(words).replace("|", "\\|"), cell(formatter._expand_help(action))))
        if rows:
            title = {"positional arguments": "arguments"}.get(group.title, group.title)
            yield table((title, "meaning"), rows)


def commands() -> str:
    parts = []
    for command, text in cli.COMMANDS.items():
        parser = parser_of(command)
        parts += [f"## `shamisa {command}`", f"{text[0].upper()}{text[1:]}."]
        parts.append(f"```text\n{parser.format_usage().removeprefix('usage: ').strip()}\n```")
        parts += _options(parser)
        for name, sub in subparsers(parser).items():
            parts += [f"### `shamisa {command} {name}`", cell(sub.description or ""), *_options(sub)]
    return "\n\n".join(parts)


# ---- configuration ---------------------------------------------------------------------------------------------------
def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{v}`" for v in value) or "all"
    return f"`{value}`" if value != "" else "none"


def config_fields() -> str:
    parts = []
    for title, fields in configuration.sections().items():
        rows = [_config_row(f) for f in fields]
        heading = f"## {title[0].upper()}{title[1:]}"
        parts += [heading, table(("field", "published", "allowed", "on resume", "meaning"), rows)]
    return "\n\n".join(parts)


def _config_row(f: dataclasses.Field) -> tuple[str, ...]:
    m, allowed = f.metadata, type(f.default).__name__
    if m["choices"] or m["known"]:
        allowed = ", ".join(f"`{c}`" for c in m["choices"] or m["known"])
    elif m["above"] is not None:
        allowed += f" above {m['above']:g}"
    elif m["low"] is not None or m["high"] is not None:
        low, high = ("" if v is None else f"{v:g}" for v in (m["low"], m["high"]))
        allowed += f" {low}..{high}" if high else f" from {low}"
    return f"`{f.name}`", _shown(f.default), allowed, "may change" if m["live"] else "", cell(m["help"])


def presets() -> str:
    """The demonstration and the ablations: what differs from the published configuration."""
    rows, names = [], {}
    for name, preset in configuration.PRESETS.items():
        names.setdefault(id(preset), []).append(name)
    for known in names.values():
        preset = configuration.PRESETS[known[0]]
        other = [f for f in dataclasses.fields(Config) if getattr(preset, f.name) != f.default and f.name != "refs"]
        differs = ", ".join(f"`{f.name}` {_shown(getattr(preset, f.name))}" for f in other)
        rows.append((", ".join(f"`{n}`" for n in known), differs or "nothing: the published configuration"))
    return table(("preset", "differs in"), rows)


# ---- operators -------------------------------------------------------------------------------------------------------
def operators() -> str:
    parts = []
    for name in shamisa.backends():
        schema = str(getattr(torch.ops.shamisa, name).default._schema).removeprefix("shamisa::")
        doc = (ops.TABLE[name].__doc__ or "").strip()
        first = " ".join(doc.split("\n\n")[0].split())
        parts += [f"## `{name}`", cell(first), f"```text\n{schema}\n```"]
    return "\n\n".join(parts)


# ---- gallery ---------------------------------------------------------------------------------------------------------
def _figures(images: list[tuple[str, str, str]]) -> str:
    """(address, words for who cannot see it, caption) of each -> a row that wraps on small screens."""
    side = pictures.SIDE
    shown = "".join(
        f'<figure><img src="gallery/{address}" alt="{html.escape(alt)}" width="{side}" height="{side}" loading="lazy">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for address, alt, caption in images
    )
    return f'<div class="tiles">{shown}</div>'


def gallery() -> str:
    """A section per group, in it one per distortion: definition, levels, limits, pictures."""
    parts, group = [], None
    for name, row in shamisa.DISTORTIONS.items():
        if row.group != group:
            group = row.group
            parts.append(f"## {group[0].upper()}{group[1:]}")
        definition = [" ".join(p.split()) for p in (FUNCTIONS[name].__doc__ or "").strip().split("\n\n")]
        parts += [f"### {name}", *(cell(p) for p in definition)]
        images = [("pristine.webp", "the photograph", "pristine")]
        images += [
            (f"{name}-{i}.webp", f"{name} at level {i}", f"level {i}: v = {v:g}") for i, v in enumerate(row.levels, 1)
        ]
        parts.append(_figures(images))
        facts = [f"v in {row.low:g}..{row.high:g}"]
        facts.append(
            "an integer" if row.discrete else "rounded to an integer by the published engine" if row.integer else "real"
        )
        facts.append("random: depends on the seed" if row.random else "not random")
        facts.append(f"at least {row.min_size} x {row.min_size} pixels" if row.min_size > 1 else "any size")
        parts.append("; ".join(facts) + f". Reference: `{FUNCTIONS[name].__module__}.{FUNCTIONS[name].__name__}`.")
    return "\n\n".join(parts)


def compositions() -> str:
    """Random chains with their recipes."""
    parts, plan = [], pictures.plan()
    _, C, L, _ = plan.shape
    for c in range(C):
        varying = int(plan.varying[0, c])
        recipes = [plan.recipe(0, c, level) for level in range(L)]
        parts.append(f"### Composition {c + 1}, varying {recipes[0][varying][0]}")
        images = [
            (f"composition-{c + 1}-{i}.webp", f"composition {c + 1} at level {i}", f"severity {r[varying][1]:.2f}")
            for i, r in enumerate(recipes, 1)
        ]
        parts.append(_figures(images))
        rows = []
        for d, (name, severity, value) in enumerate(recipes[0]):
            values = [r[d][2] for r in recipes]
            shown = ", ".join(f"{v:.3g}" for v in values) if d == varying else f"{value:.3g}"
            severities = ", ".join(f"{r[d][1]:.2f}" for r in recipes) if d == varying else f"{severity:.2f}"
            rows.append((str(d + 1), f"[{name}](#{name})", severities, shown))
        parts.append(table(("stage", "distortion", "severity", "v"), rows))
    return "\n\n".join(parts)


# ---- quality model ----------------------------------------------------------------------------------------------------
QUALITY = report.RESULTS / "0.1.0" / "quality"


def quality() -> str:
    """The packaged model beside what else runs without a network; its test part has been looked at for this table only."""
    found = json.loads((QUALITY / "biq2021-test.json").read_text(encoding="utf-8"))
    rows = [(r["row"], *(f"{r[k]:.3f}" for k in ("srcc", "plcc", "krcc"))) for r in found["rows"]]
    return table(("row", "SRCC", "PLCC", "KRCC"), rows) + f"\n\nHash of the split: `{found['hashes'][0][:12]}`."


def trials() -> str:
    """What was tried to improve on the start of the packaged model."""
    found = json.loads((QUALITY / "trials.json").read_text(encoding="utf-8"))
    return table(("row", "SRCC", "PLCC"), [(r["row"], f"{r['srcc']:.3f}", f"{r['plcc']:.3f}") for r in found["rows"]])


# ---- other texts of the source ---------------------------------------------------------------------------------------
def sets() -> str:
    """The published data sets by the names of --dataset."""
    rows = []
    for name, s in SETS.items():
        images = f"{s.images:,}" + (f" of {s.references}" if s.references else "")
        scale = f"{s.low:g}..{s.high:g}, {'lower' if s.lower_better else 'higher'} is better"
        rows.append((f"`{name}`", s.title, images, scale, cell(s.layout)))
    return table(("`--dataset`", "set", "images (of references)", "scores", "in its folder"), rows)


def adding_a_distortion() -> str:
    """The section of CONTRIBUTING.md, without its heading and what the page says already."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Adding a distortion\n")[2].partition("\n## ")[0]
    return section[section.index("\n1. ") :].strip()


def simclr() -> str:
    return f"```python\n{(ROOT / 'examples' / 'simclr.py').read_text().rstrip()}\n```"


# ---- benchmarks ------------------------------------------------------------------------------------------------------
def benchmarks() -> str:
    text = "\n\n".join(report.render(report.load(path)) for path in report.committed())
    return re.sub(r"(?<=\de)-(?=\d)", "\u2011", text)  # 1e-07 stays on one line


def lost() -> str:
    """The rows that this package loses, of every machine."""
    return "\n".join(f"- {line}" for path in report.committed() for line in report.losses(report.load(path)))


def growth() -> str:
    paths = sorted(path for result in report.committed() for path in result.parent.glob(f"{result.stem}-*-growth.png"))
    return "\n\n".join(
        f"![Time and memory of the objective against the number of nodes](../results/{path.name})" for path in paths
    )


PAGES = {
    "commands": commands,
    "configuration": config_fields,
    "presets": presets,
    "operators": operators,
    "gallery": gallery,
    "compositions": compositions,
    "benchmarks": benchmarks,
    "lost": lost,
    "growth": growth,
    "scores": scores.text,
    "quality": quality,
    "trials": trials,
    "sets": sets,
    "adding-a-distortion": adding_a_distortion,
    "simclr": simclr,
}
