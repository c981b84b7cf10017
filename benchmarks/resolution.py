"""The same picture at several sizes: ``python -m benchmarks.resolution PHOTOGRAPHS``.

Each picture is scored at 512, 1024, 2048 and 4096 pixels, sharp and slightly blurred at its largest size (which a large
view shows, and a small one does not), with the viewing size of the packaged model and without one. The pictures are
stand-ins for photographs of 12 megapixels and more: mosaics of square pieces of small photographs, so that there is true
detail at 4096 pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from tqdm import tqdm

from shamisa import load_scorer
from shamisa.data.photos import PhotoFolder
from shamisa.files import write_json

SIZES = (512, 1024, 2048, 4096)
PIECE = 320  # pixels
SIGMA = 1.5  # of the blur, pixels at the largest size
VIEWS = ("fitted", "full")


def mosaic(source: PhotoFolder, seed: int) -> Image.Image:
    """A square picture of the largest size."""
    rng = np.random.default_rng(seed)
    side = -(-SIZES[-1] // PIECE)
    picture = Image.new("RGB", (side * PIECE, side * PIECE))
    order = iter(rng.permutation(len(source)))
    for place in range(side * side):
        photo = source[next(order)]
        while min(photo.shape[1:]) < PIECE:
            photo = source[next(order)]
        top, left = ((n - PIECE) // 2 for n in photo.shape[1:])
        piece = photo[:, top : top + PIECE, left : left + PIECE].permute(1, 2, 0).contiguous().numpy()
        picture.paste(Image.fromarray(piece), (place % side * PIECE, place // side * PIECE))
    return picture.crop((0, 0, SIZES[-1], SIZES[-1]))


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def main(argv: list[str] | None = None) -> int:
    """Exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resolution", description=__doc__)
    parser.add_argument("photographs", help="a folder of photographs, for the pieces")
    parser.add_argument("--count", type=int, default=6, help="pictures [%(default)s]")
    parser.add_argument("--out", default="resolution.json", help="JSON to write [%(default)s]")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    source = PhotoFolder(given.photographs)
    scorers = {view: load_scorer(view=view, device="cpu") for view in VIEWS}
    scores = np.empty((given.count, len(VIEWS), 2, len(SIZES)))
    for seed in tqdm(range(given.count), unit="picture"):
        sharp = mosaic(source, seed)
        for kind, picture in enumerate((sharp, sharp.filter(ImageFilter.GaussianBlur(SIGMA)))):
            shown = [to_tensor(picture.resize((size, size), Image.Resampling.BICUBIC)) for size in SIZES]
            for place, view in enumerate(VIEWS):
                scores[seed, place, kind] = scorers[view](shown).numpy()
    found = {
        view: {
            "mean": {kind: scores[:, i, k].mean(0).round(4).tolist() for k, kind in enumerate(("sharp", "blurred"))},
            "spread_over_sizes": float(np.ptp(scores[:, i, 0], axis=1).mean()),
            "spread_over_pictures": float(scores[:, i, 0].std(0).mean()),
        }
        for i, view in enumerate(VIEWS)
    }
    write_json(Path(given.out), {"sizes": SIZES, "sigma": SIGMA, "pictures": given.count, "views": found})
    for view, rows in found.items():
        for kind, row in rows["mean"].items():
            print(f"view {view:8} {kind:8} " + "  ".join(f"{s} px {v:.3f}" for s, v in zip(SIZES, row, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
