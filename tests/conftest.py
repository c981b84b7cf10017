"""What several tests look at."""

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def photo() -> Tensor:
    """[1, 3, 128, 128] uint8, a crop of a photograph with fine detail, smooth parts and colours."""
    crop = skimage.data.astronaut()[20:148, 150:278]
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]


@pytest.fixture(scope="session")
def small(photo: Tensor) -> Tensor:
    """[2, 3, 50, 61] float32, two parts of the photograph."""
    return torch.stack([photo[0, :, 5:55, 20:81], photo[0, :, 70:120, 60:121]]).float() / 255
