"""Photographs scored, files in and resident tensors in, against nothing but decoding the same files with as many threads."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import measure
import pytest
import torch
from measure import DEVICES, IS_REFERENCE, error
from PIL import Image

from shamisa.data import EmbeddedPhotos, read_photo
from shamisa.networks.models import Encoder
from shamisa.scorer import Scorer
from shamisa.scoring.features import Extractor
from shamisa.scoring.quality import QualityNet
from shamisa.scoring.ridge import Regressor

ENCODERS = {"cpu": "shamisa/small", "cuda": "torchvision/resnet50"}  # random weights: they cost the same
COUNT = {"cpu": 7, "cuda": 252}  # photographs of a call
WIDTH, HEIGHT, CROP = 512, 384, 224
WORKERS = measure.all_threads()
ROWS = ["decoding alone", "Scorer, files", "QualityNet, resident images"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[str]:
    """JPEG files of one size; those of SHAMISA_PHOTOGRAPHS where it names a folder."""
    given = os.environ.get("SHAMISA_PHOTOGRAPHS")
    folder = Path(given or tmp_path_factory.mktemp("photographs"))
    if not given:
        for split in ("train", "test"):
            photos = EmbeddedPhotos(split, leaves=0)
            for i in range(len(photos)):
                picture = Image.fromarray(photos[i].permute(1, 2, 0).numpy()).resize((WIDTH, HEIGHT))
                picture.save(folder / f"{photos.name(i)}.jpg", quality=92)
    return [str(path) for path in sorted(folder.glob("*.jpg"))]


def scorer_of(device: str) -> Scorer:
    torch.manual_seed(0)
    encoder = Encoder(ENCODERS[device], "none")
    about = {"encoder": encoder.name, "crop": CROP, "low": 1, "high": 5, "lower_better": False}
    about["encoder_hash"] = Extractor(encoder).hash
    coef = torch.randn(2 * encoder.feature_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    regressor = Regressor(coef, torch.tensor(3.0, dtype=torch.float64), about)
    return Scorer(encoder, regressor, device=device, workers=WORKERS)


@pytest.mark.parametrize("who", ROWS)
@pytest.mark.parametrize("device", DEVICES)
def test_scorer(row, photographs, tmp_path, device, who):
    """512 x 384 JPEGs; ten crops of 224 px each through the encoder (autocast bfloat16 for resident images on a GPU)."""
    files = []
    for i in range(COUNT[device]):
        files.append(str(tmp_path / f"{i}.jpg"))
        shutil.copy(photographs[i % len(photographs)], files[-1])
    few = files[: len(photographs)]
    if who == "decoding alone":
        with ThreadPoolExecutor(WORKERS) as pool:
            moved = sum(read_photo(f).numel() for f in few) * len(files) // len(few)

            def decode() -> None:
                list(pool.map(read_photo, files))

            row(decode, section="scorer", subject=ENCODERS[device], row=who, device=device, error=IS_REFERENCE,
                images=len(files), moved=moved, seconds=1.0, most=8)  # fmt: skip
        return
    scorer = scorer_of(device)
    wanted = scorer([read_photo(f) for f in few])
    if who == "Scorer, files":
        call = lambda: list(scorer.stream(files))  # noqa: E731
        found = error(torch.tensor([quality for _, quality, _ in scorer.stream(few)]), wanted)
    else:
        net = QualityNet(scorer.extractor.encoder, scorer.regressor, autocast=device == "cuda").to(device)
        images = torch.stack([read_photo(f) for f in few]).to(device).repeat(-(-len(files) // len(few)), 1, 1, 1)
        images = images[: len(files)]
        call = lambda: net(images)  # noqa: E731
        found = error(net(images[: len(few)]), wanted)
    row(
        call,
        section="scorer",
        subject=ENCODERS[device],
        row=who,
        device=device,
        error=found,
        images=len(files),
        flops=measure.operations(call),
        dtype="bfloat16" if device == "cuda" and who != "Scorer, files" else "float32",
        seconds=2.0,
        most=8,
    )
