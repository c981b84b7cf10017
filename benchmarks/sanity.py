"""Does the score of the packaged model behave as people expect? ``python -m benchmarks.sanity PHOTOGRAPHS``.

Over photographs on which nothing was fitted (every twentieth of the folder, see ``shamisa.packaged.ordered``): the mean score
against the level, pristine and the five of the table, for each of the 26 distortions, with Spearman's correlation; the
same photograph as PNG and as JPEG of quality 95; and its mirror image. Writes the figures as JSON, and a plot.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from shamisa import DISTORTIONS, distort, load_scorer
from shamisa.data.photos import PhotoFolder
from shamisa.files import write_json
from shamisa.packaged.ordered import held_out
from shamisa.scoring.metrics import srcc

WISHED = -0.8  # the correlation that a distortion should have at most
LEVELS = 5


def as_jpeg(photo: Tensor, quality: int = 95) -> Tensor:
    """The photograph, uint8 [3, H, W], after a JPEG file of Pillow."""
    file = io.BytesIO()
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).contiguous()


def measure(scorer, source: PhotoFolder, positions: list[int]) -> dict:
    """scores [photographs, 26, 6] (level 0 is the photograph as it is), and the differences of JPEG and mirror image."""
    scores = np.empty((len(positions), len(DISTORTIONS), LEVELS + 1))
    jpeg, mirror = [], []
    for row, position in zip(scores, tqdm(positions, unit="photograph"), strict=True):
        photo = source[position]
        clean, compressed, flipped = scorer([photo, as_jpeg(photo), photo.flip(2)]).tolist()
        row[:, 0] = clean
        jpeg.append(abs(compressed - clean))
        mirror.append(abs(flipped - clean))
        for number, name in enumerate(DISTORTIONS):
            worse = [distort(photo, name, severity=float(s), seed=position) for s in range(LEVELS)]
            row[number, 1:] = scorer(worse).numpy()
    return {"scores": scores, "jpeg": np.array(jpeg), "mirror": np.array(mirror)}


def summarise(found: dict, names: list[str]) -> dict:
    """What results files and the card hold (JSON values)."""
    means = found["scores"].mean(0)  # [26, 6]
    correlation = [srcc(row, np.arange(LEVELS + 1)) for row in means]
    passed = [bool(c <= WISHED) for c in correlation]  # NaN, of a constant, has not passed
    table = {
        name: {"mean": [round(float(v), 4) for v in row], "spearman": round(float(np.nan_to_num(c)), 4)}
        for name, row, c in zip(DISTORTIONS, means, correlation, strict=True)
    }
    summary = {
        "photographs": len(names),
        "distortions": len(table),
        "passed": sum(passed),
        "missed": [name for name, good in zip(table, passed, strict=True) if not good],
    }
    for kind in ("jpeg", "mirror"):
        summary |= {f"{kind}_mean": float(found[kind].mean()), f"{kind}_worst": float(found[kind].max())}
    return {"summary": summary, "distortions": table, "photographs": names}


def plot(table: dict, path: Path) -> None:
    """The mean score against the level, a panel for each distortion."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 7, figsize=(17, 9), sharex=True, sharey=True)
    for axis, (name, row) in zip(axes.flat, table.items(), strict=False):
        good = row["spearman"] <= WISHED
        axis.plot(range(LEVELS + 1), row["mean"], "o-", color="tab:blue" if good else "tab:red", markersize=3)
        axis.set_title(f"{name} {row['spearman']:+.2f}", fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(table) :]:
        axis.axis("off")
    figure.supxlabel("level (0: the photograph as it is)")
    figure.supylabel("mean score")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sanity", description=__doc__)
    parser.add_argument("photographs", help="a folder of pristine photographs")
    parser.add_argument("--count", type=int, default=50, help="how many of every twentieth [%(default)s]")
    parser.add_argument("--checkpoint", help="another model than the packaged one, with --regressor")
    parser.add_argument("--regressor")
    parser.add_argument(
        "--out", default="sanity.json", help="JSON to write; the plot has its name with .png [%(default)s]"
    )
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    source = PhotoFolder(given.photographs)
    kept = held_out(source)
    count = min(given.count, len(kept))
    positions = [kept[i * len(kept) // count] for i in range(count)]
    found = summarise(
        measure(load_scorer(given.checkpoint, given.regressor, device="cpu"), source, positions),
        [source.name(i) for i in positions],
    )
    out = Path(given.out)
    write_json(out, found)
    plot(found["distortions"], out.with_suffix(".png"))
    for name, row in found["distortions"].items():
        print(f"{name:24}{row['spearman']:+.2f}  " + " ".join(f"{v:.3f}" for v in row["mean"]))
    print(found["summary"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
