"""Pictures of a run: curves of metrics.jsonl, a contact sheet of a real batch; of a probe: a scatter plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..engine import DistortionEngine, Plan
from ..files import printable
from ..relations import TERMS
from .grids import draw_grid

COLUMNS = 4  # of panels


def loss_curves(records: list[dict], path: Path) -> None:
    """Draw the terms of the objective, learning rate, effective rank and speed over the steps -> PNG.

    records: the step records of metrics.jsonl. Thin lines are single steps, thick ones a running mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        *((term, lambda r, term=term: r["loss"].get(term)) for term in TERMS),
        ("gradient norm", lambda r: r.get("grad_norm")),
        ("learning rate", lambda r: r["lr"]),
        ("effective rank of z", lambda r: r.get("rank_z")),
        ("images/s", lambda r: r["timing"]["images_per_s"]),
        ("seconds per step", lambda r: sum(r["timing"]["split"].values())),
    ]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(14, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, COLUMNS).flat
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, read) in zip(grid, panels, strict=False):
        points = [(r["step"], y) for r in records if (y := read(r)) is not None]
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if not points:
            continue
        x, y = (torch.tensor(v, dtype=torch.float64) for v in zip(*points, strict=True))
        axes.plot(x, y, linewidth=0.6, alpha=0.5, marker="." if len(x) < 50 else None)
        width = max(1, len(x) // 20)
        if width > 1:
            axes.plot(x[width - 1 :] - (width - 1) / 2, _smooth(y, width), linewidth=1.8)
    figure.savefig(path, dpi=80)


def checks(found: list[dict], path: Path) -> None:
    """Draw the checks of the encoder over the steps, each with its value at the start -> PNG. found: ``Run.checks``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "srcc": "label-free check: SRCC with SSIM",
        "rank_h": "effective rank of h",
        "label_srcc": "SRCC with labels",
    }
    panels = {k: title for k, title in panels.items() if any(k in c for c in found)}
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        x, y = zip(*((c["step"], c[key]) for c in found if key in c), strict=True)
        axes.plot(x, y, marker=".")
        axes.axhline(y[0], color="gray", linestyle="--", linewidth=1, label="at the start")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=80)


def _smooth(y: Tensor, width: int) -> Tensor:
    """Running mean [n] -> [n - width + 1]."""
    return y.unfold(0, width, 1).mean(1)


def step_times(records: list[dict], path: Path) -> None:
    """Draw the parts of a step, stacked, over the steps (running mean), and their shares of the whole run -> PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(k for r in records for k in r["timing"]["split"]))
    parts = torch.tensor([[r["timing"]["split"].get(k, 0.0) for r in records] for k in names], dtype=torch.float64)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    over, total = figure.subplots(1, 2, width_ratios=(2, 1))
    over.set_title("milliseconds per step")
    over.set_xlabel("step")
    total.set_title("mean of all steps, ms")
    if records:
        width = max(1, len(records) // 40)
        x = torch.tensor([r["step"] for r in records], dtype=torch.float64)[width - 1 :] - (width - 1) / 2
        over.stackplot(x.numpy(), *((1e3 * _smooth(y, width)).numpy() for y in parts), labels=names)
        over.legend(loc="upper left", fontsize=8)
        # the first step may take far longer than the others: it shall not set the scale
        over.set_ylim(0, 1.3e3 * float(parts.sum(0)[min(1, len(records) - 1) :].quantile(0.95)))
        mean = 1e3 * parts.mean(1)
        bars = total.barh(names, mean.tolist(), color=[f"C{i}" for i in range(len(names))])
        total.bar_label(bars, [f"{m:.3g} ({m / mean.sum():.1%})" for m in mean.tolist()], padding=3, fontsize=8)
        total.set_xlim(0, 1.35 * float(mean.max()))
        total.invert_yaxis()
    figure.savefig(path, dpi=80)


def embedding_figures(records: list[dict], figures: dict, path: Path) -> None:
    """Draw what became of the embeddings -> PNG.

    records: the step records of metrics.jsonl (effective rank and spread over the steps). figures: what
    ``embeddings.evaluate`` returned (distance against severity gap, purity of the neighbours).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["rank", "spread", "gap"], ["composition", "kind", "kind"]])
    for name, title in (("rank", "effective rank"), ("spread", "spread: rms distance from the mean")):
        axes[name].set_title(title)
        axes[name].set_xlabel("step")
        for what in ("z", "h"):
            points = [(r["step"], r[f"{name}_{what}"]) for r in records if f"{name}_{what}" in r]
            if points:
                axes[name].plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=what)
        if axes[name].lines:
            axes[name].set_ylim(bottom=0)
            axes[name].legend()
    axes["gap"].set_title("distance of levels of a chain\n(1: mean distance of all images)", fontsize=10)
    axes["gap"].set_xlabel("severity gap")
    for what, found in figures["distance_by_gap"].items():
        points = [(g, d) for g, d in zip(found["gap"], found["distance"], strict=True) if d is not None]
        if points:
            axes["gap"].plot(*zip(*points, strict=True), marker="o", label=what)
            axes["gap"].legend()
    axes["gap"].set_ylim(bottom=0)
    for name, title in (("composition", "chain, other views"), ("kind", "kind of distortion, other photographs")):
        found = figures[name]
        axes[name].set_title(f"nearest neighbours of the same {title}", fontsize=10)
        if found is None:
            axes[name].text(0.5, 0.5, "one photograph or one distortion only", ha="center")
            continue
        axes[name].bar(range(len(found["labels"])), found["share"])
        axes[name].set_xticks(range(len(found["labels"])), found["labels"], rotation=90, fontsize=7)
        axes[name].axhline(found["mean"], color="black", linewidth=1, label=f"mean {found['mean']:.2f}")
        axes[name].axhline(found["chance"], color="gray", linestyle="--", label=f"chance {found['chance']:.2f}")
        axes[name].set_ylim(0, 1.2)  # room for the legend
        axes[name].legend(loc="upper right", ncols=2)
    for axis in axes.values():
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def enlarge(image: Tensor, width: int = 170) -> Tensor:
    """Repeat the pixels of [3, H, W] until a line of the recipe fits below."""
    times = -(-width // image.shape[2])
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2)


def contact_sheet(
    references: Tensor, plan: Plan, engine: DistortionEngine, path: Path, backend: str = "auto", samples: int = 2
) -> None:
    """Draw what the encoder sees of a batch, with the recipe under each image -> PNG.

    references [B, V, 3, H, W] uint8; of the first ``samples`` samples, one view for each composition: the pristine
    crop, then the L levels. Small crops are enlarged by repeating pixels. `>` marks the stage that varies.
    """
    B, C, L, D = plan.shape
    V = references.shape[1]
    shown = engine(references, plan, normalize=False, dtype=torch.uint8, backend=backend)
    rows = []
    for b in range(min(B, samples)):
        for c in range(C):
            view, varying = c % V, int(plan.varying[b, c])
            tiles = [("pristine", enlarge(references[b, view]))]
            for level in range(L):
                steps = plan.recipe(b, c, level)
                text = [f"{'>' if d == varying else ' '}{name} {value:.3g}" for d, (name, _, value) in enumerate(steps)]
                tiles.append(("\n".join(text), enlarge(shown[b, view, c, level])))
            title = f"sample {b}, view {view}, composition {c}, varying: {plan.recipe(b, c, 0)[varying][0]}"
            rows.append((title, tiles))
    draw_grid(rows).save(path)


def _plain(text: str) -> str:
    """Any text -> text that is drawn as it stands: no formulas, no halves of characters."""
    return printable(text).replace("$", r"\$")


def bars(values: dict[str, float], path: Path, title: str, label: str = "SRCC") -> None:
    """Draw a horizontal bar for each name, in the order given -> PNG. NaN has no bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1.4 + 0.26 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    drawn = axes.barh(range(len(values)), np.nan_to_num(list(values.values())), height=0.7)
    axes.bar_label(drawn, ["-" if np.isnan(v) else f"{v:.3f}" for v in values.values()], padding=3, fontsize=8)
    axes.set_yticks(range(len(values)), [_plain(n) for n in values], fontsize=8)
    axes.invert_yaxis()
    lowest = min(0.0, *np.nan_to_num(list(values.values())))
    axes.set_xlim(lowest - 0.12 * (lowest < 0), 1.12)
    axes.set_xlabel(label)
    axes.set_title(_plain(title), fontsize=10, wrap=True)
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=100)


def scatter(
    prediction: np.ndarray,
    target: np.ndarray,
    path: Path,
    title: str,
    *,
    dark: bool = False,
) -> None:
    """Draw target [n] over prediction [n] with the 4-parameter logistic between them -> PNG; ``dark``: on a dark ground."""
    from matplotlib import rc_context, style

    ground = {f"{part}.facecolor": "#14171b" for part in ("figure", "axes", "savefig")}  # that of the page
    with rc_context(style.library["dark_background"] | ground if dark else {}):
        _scatter(prediction, target, path, title)


def _scatter(prediction: np.ndarray, target: np.ndarray, path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..scoring.metrics import fit_logistic, logistic

    figure = Figure(figsize=(6.4, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(prediction, target, ".", markersize=4, alpha=0.5)
    if np.ptp(prediction) > 0:
        x = np.linspace(prediction.min(), prediction.max(), 200)
        axes.plot(x, logistic(x, fit_logistic(prediction, target)), linewidth=1.8, label="4-parameter logistic")
        axes.legend()
    axes.set_title(_plain(title), fontsize=10, wrap=True)
    axes.set_xlabel("predicted score")
    axes.set_ylabel("ground-truth score")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
