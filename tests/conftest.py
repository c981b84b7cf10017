"""What several tests look at."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
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


@pytest.fixture
def server():
    """An S3 server on loopback with an empty bucket, and the environment that leads to it."""
    if missing := [name for name in ("fsspec", "s3fs", "moto", "flask") if find_spec(name) is None]:
        pytest.skip(f"needs s3fs and moto[server], lacks {', '.join(missing)}")
    import fsspec

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    given = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(given["AWS_ENDPOINT_URL"], timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        yield system
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        fsspec.get_filesystem_class("s3").clear_instance_cache()
