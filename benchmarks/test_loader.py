"""From files to crops: every reader against nothing but decoding, on packaged photographs or a folder (SHAMISA_PHOTOS)."""

from __future__ import annotations

import functools
import os
import time

import numpy as np
import peers
import pytest
import torch
from measure import IS_REFERENCE, error, errors
from PIL import Image

from shamisa.data import EmbeddedPhotos, PhotoFolder, PhotoList, PhotoShards, References, make_references, read_photo
from shamisa.data.pack import pack

MOST = 100  # photographs of a folder
ROWS = {  # row -> shards, reader, bytes of cache
    "References": (False, "pillow", 0),
    "References, shards": (True, "pillow", 0),
    "References, DALI": (False, "dali", 0),
    "References, DALI, shards": (True, "dali", 0),
    "References, photographs cached": (False, "pillow", 1 << 30),
}
DECODERS = ("read_photo", "Pillow decode", "torchvision decode")


@pytest.fixture(scope="module")
def subject() -> str:
    return "photographs of a folder" if "SHAMISA_PHOTOS" in os.environ else "packaged photographs"


@pytest.fixture(scope="module")
def files() -> list[str]:
    if folder := os.environ.get("SHAMISA_PHOTOS"):
        source = PhotoFolder(folder)
        return [source.path(i) for i in range(min(MOST, len(source)))]
    return [str(p) for split in ("train", "test") for p in EmbeddedPhotos(split, leaves=0)._paths]


@pytest.fixture(scope="module")
def sources(files, tmp_path_factory) -> dict[bool, PhotoList | PhotoShards]:
    """The files, and the same packed into shards."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "photos.txt").write_text("\n".join(files))
    listed = PhotoList(folder / "photos.txt")
    pack(listed, folder / "shards", shard_count=2)
    return {False: listed, True: PhotoShards(folder / "shards")}


def cpu_seconds(call) -> float:
    """Processor time of a call, of all threads of this process."""
    start = time.process_time()
    call()
    return time.process_time() - start


@pytest.mark.parametrize("who", ROWS)
def test_loader(row, files, sources, subject, who):
    """3 photographs a sample, decoded, cut and halved into 6 crops of 224 px; images are photographs read."""
    in_shards, reader, cache = ROWS[who]
    source = sources[in_shards] if not cache else PhotoList(_list(sources[False]), cache_bytes=cache)
    if reader == "dali":
        pytest.importorskip("nvidia.dali")
    references = make_references(source, reader=reader, batch_size=1, seed=0)
    steps = range(len(files))  # every photograph is somebody's own once
    expected = References(sources[in_shards], batch_size=1, seed=0)
    few = steps[:7]
    found = error(*(torch.stack([r.batch(s)[0] for s in few]) for r in (references, expected)))

    def call() -> None:
        for s in steps:
            references.batch(s)

    call()
    crops = len(steps) * references.views
    extra = {"cpu_ms_per_crop": 1e3 * cpu_seconds(call) / crops}
    images = len(steps) * references.references
    read = 0 if cache else references.references * sum(map(os.path.getsize, files))  # each is read so often, about
    extra["moved"] = read + crops * 3 * references.crop**2
    row(call, section="loader", subject=subject, row=who, error=found, images=images, seconds=1.0, most=8, **extra)


def _list(source: PhotoList) -> str:
    return os.path.join(source.root, "photos.txt")


def pillow_decode(path: str) -> torch.Tensor:
    """-> [3, H, W] uint8, a view."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("who", DECODERS)
def test_decoding(row, files, subject, who):
    """The ceiling: photographs decoded, nothing more."""
    decode = read_photo
    if who == "torchvision decode":
        try:
            decode = functools.partial(peers.need("torchvision.io").decode_image, mode="RGB")
            decode(files[0])
        except (peers.Missing, RuntimeError, AttributeError) as missing:
            pytest.skip(f"torchvision decodes nothing here: {missing}")
    elif who == "Pillow decode":
        decode = pillow_decode

    def call() -> None:
        for file in files:
            decode(file)

    call()
    found = IS_REFERENCE
    if who != "Pillow decode":
        found = errors(map(decode, files), map(pillow_decode, files))
    # a photograph decoded once gives two crops
    extra = {"cpu_ms_per_crop": 1e3 * cpu_seconds(call) / (2 * len(files))}
    extra["moved"] = sum(os.path.getsize(file) + read_photo(file).numel() for file in files)
    row(call, section="loader", subject=subject, row=who, error=found, images=len(files), seconds=1.0, most=8, **extra)
