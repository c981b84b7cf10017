"""Crops, mirroring and half size against definitions and against training's; the tensor arithmetic bit for bit the same."""

import pytest
import torch
from torch.testing import assert_close

from shamisa.data.crops import cut
from shamisa.scoring.crops import five_crops, half_size, ten_crops, views

SIDES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 47, 63, 64, 65, 100, 127, 255, 301, 640, 333]


def photo(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_five_crops_are_corners_and_centre():
    p = photo(20, 31)
    found = five_crops(p, 8)
    expected = [p[:, :8, :8], p[:, :8, -8:], p[:, -8:, :8], p[:, -8:, -8:], p[:, 6:14, 11:19]]
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5), (2, 7), (5, 40), (7, 8), (8, 8)])
def test_small_photographs_are_mirrored(height, width):
    p = photo(height, width)
    crop = 16
    found = five_crops(p, crop)
    assert found.shape == (5, 3, crop, crop)

    def mirrored(i, n):  # walk from pixel to pixel, turning round at the ends
        position, step = 0, 1 if i >= 0 else -1
        for _ in range(abs(i)):
            if n == 1:
                return 0
            if not 0 <= position + step < n:
                step = -step
            position += step
        return position

    rows = [mirrored(i - (crop - height) // 2, height) for i in range(crop)]
    assert torch.equal(
        found[0], p[:, rows][:, :, [mirrored(i - max(0, (crop - width) // 2), width) for i in range(crop)]]
    )


def test_half_size_is_a_smooth_halving():
    flat = torch.full((3, 9, 12), 77, dtype=torch.uint8)
    assert torch.equal(half_size(flat), torch.full((3, 5, 6), 77, dtype=torch.uint8))
    stripes = torch.zeros(3, 32, 32, dtype=torch.uint8)
    stripes[:, :, ::2] = 200  # finer than half size can show: antialiasing leaves grey
    half = half_size(stripes)[:, 4:-4, 4:-4].float()
    assert_close(half, torch.full_like(half, 100), atol=6, rtol=0)


@pytest.mark.parametrize("height, width", [(40, 64), (41, 64), (57, 33)])
def test_half_size_is_what_training_cuts_from(height, width):
    whole, crop = photo(height, width), 16
    half = half_size(whole)
    for row, column in ((0, 0), (2**31, 2**30), (2**32 - 1, 2**32 - 1)):
        seen = torch.zeros(3, crop, crop, dtype=torch.uint8)
        cut(whole, 0.5, (row, column), "zero", out=seen)
        top, left = (word * (n - crop + 1) >> 32 for word, n in ((row, half.shape[1]), (column, half.shape[2])))
        wanted = half[:, top : top + crop, left : left + crop]
        if height % 2 == width % 2 == 0:
            assert torch.equal(seen, wanted)
        else:  # ends of the part are rounded to float32: a sum close to a half may round the other way
            assert_close(seen.int(), wanted.int(), rtol=0, atol=1)
            assert (seen != wanted).float().mean() < 0.01


@pytest.mark.parametrize("kind", ["noise", "black and white", "smooth"])
def test_same_pixels_as_views(kind):
    generator = torch.Generator().manual_seed(len(kind))
    for i, height in enumerate(SIDES):
        width = SIDES[(7 * i + 3) % len(SIDES)]
        p = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        if kind == "black and white":  # overshoots and is clipped
            p = (p > 127).to(torch.uint8) * 255
        if kind == "smooth":
            p = torch.linspace(0, 255, height * width).view(height, width).expand(3, -1, -1).to(torch.uint8)
        crops = ten_crops(p.unsqueeze(0), 16)
        assert crops.shape == (1, 2, 5, 3, 16, 16) and crops.dtype == torch.uint8
        assert torch.equal(crops[0], views(p, 16)), (height, width)


def test_images_of_a_batch_are_apart(small):
    images = (small * 255).to(torch.uint8)
    assert torch.equal(ten_crops(images, 24), torch.stack([views(i, 24) for i in images]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "call", [views, lambda p, crop: ten_crops(p.unsqueeze(0), crop)[0]], ids=["views", "ten_crops"]
)
def test_same_pixels_on_a_gpu(call):
    for size in ((90, 101), (30, 44)):
        p = photo(*size)
        found = call(p.cuda(), 48)
        assert found.is_cuda
        assert torch.equal(found.cpu(), views(p, 48))
