"""The figures of two training runs that the page on recipes shows: ``python -m docs_build.curves HEALTHY COLLAPSING`` copies them
from the run folders to docs/assets/collapse.json; the picture is drawn from that file when the site is built."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs/assets/collapse.json"
NAMES = ("healthy", "collapsing")
PANELS = ("total loss", "label-free check (SRCC with SSIM)", "effective rank of h")


def trim(run: Path) -> dict:
    """What is shown of a run: recipe, loss of each step, checks."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())["config"]
    recipe = ("regularizer", "variance_weight", "invariance_weight", "covariance_weight", "steps", "crop", "encoder")
    return {
        "recipe": {name: config[name] for name in recipe},
        "loss": [round(r["loss"]["total"], 4) for r in records if "loss" in r],
        "checks": [r["check"] for r in records if "check" in r],
    }


def draw() -> bytes:
    """Loss, check and effective rank of both runs -> PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = json.loads(FILE.read_text())
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for name, colour in zip(NAMES, ("tab:green", "tab:red"), strict=True):
        loss, checks = runs[name]["loss"], runs[name]["checks"]
        steps = [c["step"] for c in checks]
        panels[0].plot(range(1, len(loss) + 1), loss, color=colour, linewidth=1, label=name)
        panels[1].plot(steps, [c["srcc"] for c in checks], "o-", color=colour, markersize=3, label=name)
        panels[2].plot(steps, [c["rank_h"] for c in checks], "o-", color=colour, markersize=3, label=name)
    for axes, title in zip(panels, PANELS, strict=True):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    panels[2].set_ylim(bottom=0)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def main(argv: list[str] | None = None) -> int:
    folders = sys.argv[1:] if argv is None else argv
    if len(folders) != len(NAMES):
        print("usage: python -m docs_build.curves HEALTHY COLLAPSING", file=sys.stderr)
        return 2
    runs = {name: trim(Path(folder)) for name, folder in zip(NAMES, folders, strict=True)}
    FILE.write_text(json.dumps(runs) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
