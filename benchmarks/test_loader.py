"""From files to crops: ``References`` against nothing but decoding, on the photographs packaged with scikit-image and -learn."""

from __future__ import annotations

import peers
import pytest
import torch
from measure import error

from shamisa.data.embedded import PACKAGED, EmbeddedPhotos
from shamisa.data.photos import PhotoList, read_photo
from shamisa.data.readers import References

ROWS = ("References", "References, photographs cached", "read_photo", "Pillow decode", "torchvision decode")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    paths = EmbeddedPhotos("train", leaves=0)._paths + EmbeddedPhotos("test", leaves=0)._paths
    assert len(paths) == sum(len(p) for p in PACKAGED.values())
    return [str(p) for p in paths]


@pytest.mark.parametrize("who", ROWS)
def test_loader(row, files, tmp_path, who):
    """References: 3 photographs a sample, decoded, cut and halved into 6 crops of 224 px; images are photographs read."""
    names = tmp_path / "photos.txt"
    names.write_text("\n".join(files))
    extra = {}
    if who.startswith("References"):
        source = PhotoList(names, cache_bytes=1 << 30 if "cached" in who else 0)
        references = References(source, batch_size=1, seed=0)
        steps = range(len(files))  # every photograph is somebody's own once
        call, images = lambda: [references.batch(s)[0] for s in steps], 3 * len(files)  # noqa: E731
        if "cached" not in who:
            cached = References(PhotoList(names, cache_bytes=1 << 30), batch_size=1, seed=0)
            extra = error(torch.stack(call()), torch.stack([cached.batch(s)[0] for s in steps]))
    else:
        images = len(files)
        if who == "read_photo":
            call = lambda: [read_photo(f) for f in files]  # noqa: E731
        elif who == "Pillow decode":
            Image = peers.need("PIL.Image")

            def call():
                for f in files:
                    with Image.open(f) as image:
                        image.convert("RGB").load()

        else:
            try:
                decode = peers.need("torchvision.io").decode_image
                decode(files[0], mode="RGB")
            except (peers.Missing, RuntimeError, AttributeError) as missing:
                pytest.skip(f"torchvision decodes nothing here: {missing}")
            call = lambda: [decode(f, mode="RGB") for f in files]  # noqa: E731
    row(
        call,
        section="loader",
        subject="packaged photographs",
        row=who,
        images=images,
        seconds=1.0,
        most=8,
        **extra,
    )
