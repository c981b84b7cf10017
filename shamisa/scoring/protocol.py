"""The protocol of the probe: a regressor for a split, its numbers for all test images and for groups of them, their medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datasets.labels import PARTS, Labels
from ..datasets.splits import Split
from . import metrics, ridge

GROUPS = ("distortion", "level")  # of images, where the labels know them
GROUP_METRICS = ("srcc", "plcc", "krcc", "rmse")  # no logistic: a group is too small to fit one


def probe_split(
    features: Tensor,  # [n, K, F]
    labels: Labels,
    split: Split,
    device: torch.device | str = "cpu",
) -> tuple[dict, ridge.Ridge, np.ndarray]:
    """Choose the strength on val, fit on train (with val again where it was carved from train), judge on test.

    Returns:
        numbers (n, alpha, val_srcc, val_srccs of all strengths, ``metrics.summary`` of test, and ``by_group`` of test under
        ``groups``), the regressor, and predictions of test [m].
    """
    train, val, test = split.train, split.val, split.test
    y = labels.score
    model, values = ridge.select(features[train], y[train], features[val], y[val], device=device)
    if split.carved:
        both = np.sort(np.concatenate([train, val]))
        model = ridge.fit_path(features[both], y[both], model.alpha, device)
    prediction = model.predict(features[test])[:, 0].cpu().numpy()
    sizes = {p: len(getattr(split, p)) for p in PARTS}
    numbers = {"n": sizes, "alpha": model.alpha.item(), "val_srccs": values.tolist()}
    numbers["val_srcc"] = float(np.nanmax(values))
    numbers |= metrics.summary(prediction, y[test])
    return {**numbers, "groups": by_group(prediction, labels.take(test))}, model, prediction


def by_group(prediction: np.ndarray, labels: Labels) -> dict[str, dict[str, dict]]:
    """Numbers of the images of each distortion and of each level, where the labels know them.

    prediction [n] is of the n labels. Returns {"distortion": {name: {n, srcc, plcc, krcc, rmse}}, "level": ...}, names in
    order; NaN for fewer than three images.
    """
    found: dict[str, dict[str, dict]] = {}
    for kind in GROUPS:
        if (names := getattr(labels, kind)) is None:
            continue
        names = np.array(names, dtype=object)
        found[kind] = {}
        for name in sorted(set(names), key=_natural):
            x, y = (t[names == name] for t in (prediction, labels.score))
            enough = len(x) > 2
            values = {k: getattr(metrics, k)(x, y) if enough else math.nan for k in GROUP_METRICS}
            found[kind][name] = {"n": len(x), **values}
    return found


def _natural(name: str) -> tuple:
    """Sort key: numbers by value, before words."""
    return (0, float(name), "") if name.replace(".", "", 1).isdecimal() else (1, 0.0, name)


def without(split: Split, kept: list[int]) -> Split:
    """The split of the images that could be read: positions among ``kept``."""
    place = {old: new for new, old in enumerate(kept)}
    parts = {p: np.array([place[i] for i in getattr(split, p) if i in place], dtype=np.int64) for p in PARTS}
    return replace(split, **parts)


def median(numbers: list[dict]) -> dict:
    """Median of every metric over the splits, and their standard deviation as ``KEY_std``."""
    values = {k: np.array([n[k] for n in numbers]) for k in metrics.SUMMARY}
    spread = {f"{k}_std": float(v.std()) for k, v in values.items()} if len(numbers) > 1 else {}
    return {**{k: float(np.median(v)) for k, v in values.items()}, **spread}


def median_groups(numbers: list[dict]) -> dict[str, dict[str, dict]]:
    """As ``by_group``: the median over the splits in which a number of a group is defined, ``splits`` of them."""
    found: dict[str, dict[str, dict]] = {}
    for kind in numbers[0]["groups"]:
        names = sorted({name for x in numbers for name in x["groups"][kind]}, key=_natural)
        found[kind] = {}
        for name in names:
            rows = [x["groups"][kind][name] for x in numbers if name in x["groups"][kind]]
            values = {k: [r[k] for r in rows if not math.isnan(r[k])] for k in GROUP_METRICS}
            medians = {k: float(np.median(v)) if v else math.nan for k, v in values.items()}
            n = int(np.median([r["n"] for r in rows]))
            found[kind][name] = {"n": n, "splits": len(values["srcc"]), **medians}
    return found


# ---- what is printed -------------------------------------------------------------------------------------------------
def table(rows: list[tuple[str, list[dict]]]) -> str:
    """The printed table: one row for each (encoder, numbers of its splits)."""
    width = max(len(name) for name, _ in rows) + 2
    several = max(len(numbers) for _, numbers in rows) > 1
    lines = [
        f"{'encoder':{width}}{'test':>6}  {'SRCC':>7}  {'PLCC':>7}  {'PLCC*':>7}  {'KRCC':>7}  {'RMSE':>8}  {'strength':>9}"
    ]
    for name, numbers in rows:
        m = median(numbers)
        n = int(np.median([x["n"]["test"] for x in numbers]))
        correlations = "  ".join(f"{m[k]:7.4f}" for k in ("srcc", "plcc", "plcc_logistic", "krcc"))
        alpha = float(np.median([x["alpha"] for x in numbers]))
        lines.append(f"{name:{width}}{n:6d}  {correlations}  {m['rmse']:8.4f}  {alpha:9.3g}")
        if several:
            spread = "  ".join(f"{m[k + '_std']:7.4f}" for k in ("srcc", "plcc", "plcc_logistic", "krcc"))
            lines.append(f"{'  standard deviation':{width}}{'':6}  {spread}  {m['rmse_std']:8.4f}")
    lines.append(metrics.MEANING + (f"; medians of {len(rows[0][1])} splits" if several else ""))
    lines.append("PLCC* is after a 4-parameter logistic fitted on the test images; strength is the ridge penalty")
    low, high = ridge.ALPHAS[[0, -1]]
    for name, numbers in rows:
        ends = sum(x["alpha"] in (low, high) for x in numbers)
        if ends:
            where = f" in {ends} of {len(numbers)} splits" if several else ""
            lines.append(
                f"{name}: the chosen strength is at an end of the range {low:g} to {high:g}{where}; a better one may lie beyond it"
            )
    return "\n".join(lines)


def group_table(rows: Sequence[tuple[str, list[dict]]]) -> str:
    """The printed tables of groups, "" where the labels know none: SRCC / PLCC of each encoder, in the order of ``table``."""
    medians = [median_groups(numbers) for _, numbers in rows]
    lines = []
    for kind, groups in medians[0].items():
        width = max(len(name) for name in (kind, *groups)) + 2
        heads = ["SRCC    PLCC  " if len(rows) == 1 else f"{i + 1}: SRCC   PLCC  " for i in range(len(rows))]
        lines.append(f"{kind:{width}}{'test':>6}  " + "  ".join(f"{h:>16}" for h in heads))
        for name, first in groups.items():
            pairs = [f"{m[kind][name]['srcc']:8.4f}{m[kind][name]['plcc']:8.4f}" for m in medians]
            lines.append(f"{name:{width}}{first['n']:6d}  " + "  ".join(pairs))
    if lines and len(rows) > 1:
        lines.append("encoders: " + ", ".join(f"{i + 1} {name}" for i, (name, _) in enumerate(rows)))
    return "\n".join(lines)


def finite(content: Any) -> Any:
    """NaN -> None: JSON has no NaN."""
    if isinstance(content, dict):
        return {k: finite(v) for k, v in content.items()}
    if isinstance(content, list):
        return [finite(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
