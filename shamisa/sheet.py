"""Draw what the distortions do to a photograph.

Without further options: the distortions, each at its five levels with the value of its parameter. --compose N draws N
random compositions of distortions instead, --plan FILE those of a saved plan.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .cli import guard
from .data.decode import TRUNCATED
from .data.photos import PhotoError, read_photo
from .distortions import DISTORTIONS
from .engine import DistortionEngine, Plan, distort
from .files import write_bytes, write_text
from .reports.grids import crop_centre, draw_grid


def levels_sheet(photo: Tensor, seed: int = 0, backend: str = "auto") -> Image.Image:
    """All distortions at their five levels: photo uint8 [3, H, W] -> picture."""
    rows = []
    for name, row in DISTORTIONS.items():
        images = photo.expand(5, -1, -1, -1)
        out = distort(images, name, severity=torch.arange(5.0), seed=seed, backend=backend)
        tiles = [(f"{v:g}", image) for v, image in zip(row.levels, out, strict=True)]
        rows.append((f"{name} ({row.group})", [("pristine", photo), *tiles]))
    return draw_grid(rows)


def plan_sheet(photo: Tensor, plan: Plan, backend: str = "auto") -> Image.Image:
    """Every composition of a plan on one photograph, one row each, with its recipe: photo uint8 [3, H, W] -> picture."""
    B, C, L, _ = plan.shape
    out = DistortionEngine()(photo.expand(B, 1, -1, -1, -1), plan, normalize=False, dtype=torch.uint8, backend=backend)
    rows = []
    for b in range(B):
        for c in range(C):
            varying = int(plan.varying[b, c])
            tiles = []
            for level in range(L):
                steps = plan.recipe(b, c, level)
                text = [f"{'>' if d == varying else ' '}{n} {v:.3g}" for d, (n, _, v) in enumerate(steps)]
                tiles.append(("\n".join(text), out[b, 0, c, level]))
            rows.append((f"sample {b} composition {c}, varying: {plan.recipe(b, c, 0)[varying][0]}", tiles))
    return draw_grid(rows)


def main(argv: list[str] | None = None) -> int:
    """The command. Returns 0, or 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="shamisa distort", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", help="an image file, or its URL")
    parser.add_argument("--out", type=Path, required=True, help="picture to write, such as sheet.png")
    parser.add_argument("--size", type=int, default=224, help="side of the central crop, in pixels [224]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random distortions and of --compose [0]")
    parser.add_argument("--compose", type=int, metavar="N", help="draw N compositions, at five levels each")
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="draw the plan in a file written by --save-plan or Plan.to_json"
    )
    parser.add_argument("--save-plan", type=Path, metavar="FILE", help="with --compose: also write the plan, as JSON")
    parser.add_argument(
        "--backend",
        choices=("auto", "native", "reference"),
        default="auto",
        help="compiled kernels (native), PyTorch (reference), or compiled where available [auto]",
    )
    parser.add_argument(
        "--truncated",
        choices=TRUNCATED,
        default="skip",
        help="a JPEG without its end marker or its last rows: refuse it (skip), or read it as far as it goes [%(default)s]",
    )
    given = parser.parse_args(argv)
    return guard("distort", lambda: run(given), "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Everything between the command line and the exit status."""
    if given.compose is not None and given.plan is not None:
        raise ValueError("--compose and --plan cannot be combined")
    if given.size < 1:
        raise ValueError(f"--size must be at least 1, got {given.size}")
    kinds = Image.registered_extensions()
    if given.out.suffix.lower() not in kinds or not given.out.parent.is_dir():
        raise ValueError(f"--out must be a picture such as sheet.png in an existing folder, got {given.out}")
    plan = None
    try:
        photo = crop_centre(read_photo(given.photo, truncated=given.truncated), given.size)
    except PhotoError as error:
        raise ValueError(f"{error}{'; --truncated read reads it' if error.truncated else ''}") from None
    if given.plan is not None:
        picture = plan_sheet(photo, Plan.from_json(given.plan.read_text()), given.backend)
    elif given.compose is not None:
        plan = DistortionEngine(compositions=given.compose).sample(1, seed=given.seed)
        picture = plan_sheet(photo, plan, given.backend)
    else:
        picture = levels_sheet(photo, given.seed, given.backend)
    content = io.BytesIO()
    picture.save(content, format=kinds[given.out.suffix.lower()])
    if plan is not None and given.save_plan is not None:
        write_text(given.save_plan, plan.to_json())
    write_bytes(given.out, content.getvalue())
    print(f"wrote {given.out} ({picture.width} x {picture.height})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
