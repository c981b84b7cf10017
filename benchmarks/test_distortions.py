"""Each distortion, and the whole engine, native against reference: ms per 224 x 224 image, images per second and core."""

import pytest
import torch

from shamisa import DISTORTIONS, DistortionEngine, ops
from shamisa.distortions import distort

BACKENDS = ["native", "reference"] if ops.has_kernel("distort", "cpu") else ["reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DISTORTIONS)
def test_distortion(benchmark, photos, name, backend):
    """Four float images at level 3 (severity 2)."""
    images = photos[:4].float() / 255
    try:
        distort(images[:1], name, severity=2, backend=backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    benchmark.group = f"distort {name} [4, 3, 224, 224] float32 cpu"
    benchmark.pedantic(lambda: distort(images, name, severity=2, backend=backend), rounds=3, warmup_rounds=1)
    out = distort(images, name, severity=2, backend=backend)
    expected = distort(images, name, severity=2, backend="reference")
    benchmark.extra_info["max error"] = (out - expected).abs().max().item()
    if benchmark.stats:
        benchmark.extra_info["ms/image"] = benchmark.stats.stats.median * 1e3 / 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_engine(benchmark, photos, backend):
    """Published sampling, from uint8 crops to normalised float32: V = 2 views, C = 4, L = 5, a new plan per round."""
    engine = DistortionEngine()
    references = photos[:2].unsqueeze(0)  # [1, 2, 3, 224, 224]
    plans = iter([engine.sample(1, seed=1, step=s) for s in range(64)])
    benchmark.group = "engine, distorted [224, 224] images, cpu"

    def setup():
        return (references, next(plans)), {"backend": "auto" if backend == "native" else backend}

    rounds = 24 if backend == "native" else 3
    benchmark.pedantic(engine, setup=setup, rounds=rounds)
    if benchmark.stats:
        stats = benchmark.stats.stats
        benchmark.extra_info["images/s"] = 2 * 4 * 5 / stats.mean  # plans differ, so the mean is the rate
        benchmark.extra_info["threads"] = torch.get_num_threads()
