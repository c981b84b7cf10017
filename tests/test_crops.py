"""The ten crops as tensor arithmetic are those of features.views, bit for bit."""

import pytest
import torch

from shamisa.crops import ten_crops
from shamisa.features import views

SIDES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 47, 63, 64, 65, 100, 127, 255, 301]


@pytest.mark.parametrize("kind", ["noise", "black and white", "smooth"])
def test_same_pixels_as_views(kind):
    generator = torch.Generator().manual_seed(len(kind))
    for i, height in enumerate(SIDES):
        width = SIDES[(7 * i + 3) % len(SIDES)]
        photo = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        if kind == "black and white":  # overshoots and is clipped
            photo = (photo > 127).to(torch.uint8) * 255
        if kind == "smooth":
            photo = torch.linspace(0, 255, height * width).view(height, width).expand(3, -1, -1).to(torch.uint8)
        crops = ten_crops(photo.unsqueeze(0), 16)
        assert crops.shape == (1, 2, 5, 3, 16, 16) and crops.dtype == torch.uint8
        assert torch.equal(crops[0], views(photo, 16)), (height, width)


def test_images_of_a_batch_are_apart(small):
    images = (small * 255).to(torch.uint8)
    assert torch.equal(ten_crops(images, 24), torch.stack([views(i, 24) for i in images]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_pixels_on_a_gpu(photo):
    assert torch.equal(ten_crops(photo.cuda(), 48).cpu()[0], views(photo[0], 48))
