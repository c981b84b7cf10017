"""What several tests look at."""

import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from shamisa.data import dead_leaves

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks; after the installed package, which is what is tested


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """[1, 3, 128, 128] uint8, a crop of a photograph with fine detail, smooth parts and colours."""
    crop = skimage.data.astronaut()[20:148, 150:278]
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of five small photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        Image.fromarray(dead_leaves(i, 72).permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def small(photo: Tensor) -> Tensor:
    """[2, 3, 50, 61] float32, two parts of the photograph."""
    return torch.stack([photo[0, :, 5:55, 20:81], photo[0, :, 70:120, 60:121]]).float() / 255
