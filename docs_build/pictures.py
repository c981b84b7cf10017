"""Pictures of the site that the package itself draws."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import shamisa

from . import curves

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
SIDE = 192  # pixels, of a picture in the gallery
COMPOSITIONS, SEED = 6, 3


def photograph() -> Tensor:
    """The photograph of the gallery, uint8 [3, 384, 384]: a square of scikit-image's astronaut (NASA, public domain)."""
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()).permute(2, 0, 1)[:, :384, 40:424].contiguous()


def encoded(image: Tensor, kind: str = "WEBP", **options) -> bytes:
    """uint8 [3, H, W] -> the bytes of a picture of SIDE pixels."""
    out = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(out, kind, **(options or {"quality": 90, "method": 4}))
    return out.getvalue()


def small() -> Tensor:
    """The photograph at SIDE x SIDE: distortions are drawn pixel for pixel, never resized afterwards."""
    half = Image.fromarray(photograph().permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.tensor(list(half.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1).contiguous()


def plan() -> shamisa.Plan:
    """The compositions of the gallery."""
    return shamisa.DistortionEngine(compositions=COMPOSITIONS, levels=5).sample(1, seed=SEED)


def all_pictures() -> Iterator[tuple[str, bytes]]:
    """(address in the site, content) of every picture."""
    photo = small()
    yield "gallery/pristine.webp", encoded(photo)
    for name in shamisa.DISTORTIONS:
        levels = shamisa.distort(photo.expand(5, -1, -1, -1), name, severity=torch.arange(5.0))
        for level, image in enumerate(levels):
            yield f"gallery/{name}-{level + 1}.webp", encoded(image)
    engine = shamisa.DistortionEngine()
    made = engine(photo[None, None], plan(), normalize=False, dtype=torch.uint8)[0, 0]  # [C, L, 3, H, W]
    for c, levels in enumerate(made):
        for level, image in enumerate(levels):
            yield f"gallery/composition-{c + 1}-{level + 1}.webp", encoded(image)
    yield "assets/collapse.png", curves.draw()
    for path in sorted(RESULTS.glob("*/*-growth.png")):
        yield f"results/{path.name}", path.read_bytes()


def overview() -> bytes:
    """The picture of the README: every distortion at level 4 of 5, each on a part of the photograph."""
    side, columns = 112, 9
    photo = photograph()[:, 40 : 40 + 2 * side, 60 : 60 + 2 * side]
    half = torch.nn.functional.avg_pool2d(photo.float(), 2).round().to(torch.uint8)
    tiles = [half] + [shamisa.distort(half, name, severity=3.0) for name in shamisa.DISTORTIONS]
    rows = [torch.cat(tiles[i : i + columns], 2) for i in range(0, len(tiles), columns)]
    return encoded(torch.cat(rows, 1))


if __name__ == "__main__":
    (Path(__file__).resolve().parents[1] / "docs/assets/distortions.webp").write_bytes(overview())
