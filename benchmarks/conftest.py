"""Settings of the benchmarks: one thread unless a benchmark says otherwise, sleeping OpenMP threads, fixed inputs."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its pool

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """CPU figures are per core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photos():
    """Crops of packaged photographs, uint8 [16, 3, 224, 224]."""
    from shamisa.data.embedded import EmbeddedPhotos

    source = EmbeddedPhotos(split="train")
    crops = []
    for i in range(16):
        photo = source[i % len(source)]
        top, left = (37 * i % (n - 223) for n in photo.shape[1:])
        crops.append(photo[:, top : top + 224, left : left + 224])
    return torch.stack(crops)
