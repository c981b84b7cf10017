"""The model card, card.md, written from model.json."""

from __future__ import annotations

from .fit import ALLOWED


def write_card(about: dict) -> str:
    """The text (Markdown) for what model.json holds."""
    fit, labels = about["fit"], about["labels"]
    view = "their own size" if about["view"] == "full" else f"at most {about['view']} pixels on the longer side"
    rows = [
        ("cross-validation inside split=train", labels["images"], fit["srcc"], fit["plcc"]),
        *([("split=test", t["images"], t["srcc"], t["plcc"])] if (t := about["test"]) else []),
    ]
    table = "\n".join(f"| {labels['name']}, {name} | {n} | {a:.3f} | {b:.3f} |" for name, n, a, b in rows)
    used = "\n".join(f"- {s['name']}: {s['licence']}" for s in about["trained_on"])
    parts = [HEAD.format(**about, shown=view, trained=used), NUMBERS.format(table=table, **fit)]
    if about["test"] is None:
        parts.append("The test part has not been looked at with this model.\n")
    if fit["pairs_in_order"] is not None:
        parts.append(PAIRS.format(**fit, allowed=f"{ALLOWED:g}".lstrip("0")))
    if fit.get("weight_of_mirror_images"):
        parts.append(MIRRORS.format(**fit))
    parts.append(sanity(about["sanity"]) if about["sanity"] else "")
    return "\n".join(p for p in (*parts, TAIL.format(**about)) if p)


def sanity(found: dict) -> str:
    """The figures of benchmarks/sanity.py."""
    wrong = ", ".join(f"`{name}`" for name in found["missed"]) or "none"
    return SANITY.format(**found, wrong=wrong)


HEAD = """# The packaged model

A photograph in, a score out: 0 (bad) to 1 (good), without a reference. It is the default of `shamisa score`,
`shamisa.load_scorer()`, `shamisa export`, `shamisa.metric.SHAMISA`, `shamisa.hub.QualityModel.packaged` and
`shamisa.pyiqa_plugin.register`.

- encoder: `{encoder}`, weights from `{source}`
- features: `{features}` (the last layer, and mean and standard deviation of every stage, each of norm 1)
- protocol: photographs are shown at {shown}, never enlarged;
  five crops of {crop} px of that size and of half of it; features averaged over the crops
- regressor: ridge regression to human scores

## Made from
{trained}
"""

NUMBERS = """## Agreement with human scores
| labels | images | SRCC | PLCC |
| :-- | --: | --: | --: |
{table}

Cross-validation: {folds} folds, {shuffles} times, the strength of the ridge ({strength:.3g}) chosen by its SRCC, which is
therefore a little too good. The error (RMSE) of a score is {rmse:.3f}, so photographs whose scores lie closer than that are
not reliably ranked.
"""

PAIRS = """Beside human scores it was fitted on pairs of which one is a photograph and the other the same photograph distorted more
(weight {weight_of_pairs:g}, the largest that costs at most {allowed} SRCC): {pairs_in_order:.1%} of them are in order.
"""

MIRRORS = """The mirror images of the photographs with human scores were fitted on too: each shall score as the photograph itself
(weight {weight_of_mirror_images:g}).
"""

SANITY = """## Does the score fall as the distortion grows?
Over {photographs} photographs on which nothing was fitted, the mean score falls with the level (Spearman at most -0.8) for
{passed} of {distortions} distortions; not for {wrong}. The same photograph as PNG and as JPEG of quality 95 differs by
{jpeg_mean:.3f} on average ({jpeg_worst:.3f} at most), and from its mirror image by {mirror_mean:.3f} ({mirror_worst:.3f}).
"""

TAIL = """## What it is bad at
- Blur and noise that are visible only when zooming in beyond the viewing size are not seen.
- Not measured, but to be expected: it judges technical quality of photographs, not beauty or content; it has seen no
  drawings, text, screenshots or scientific images; intended blur and intended darkness count as faults.

## Make it again
```bash
{command}
```
Weights of convolutions of one pixel are float16: {float16}; on {moved_on} photographs that moves scores by at most
{moved_by_float16:.1g}. `model.json` holds the SHA-256 of the files.
"""
