"""How the packaged model is made: the regressor with ordered pairs, and the command from photographs to files."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import Ridge
from torch.testing import assert_close

import shamisa
from shamisa.data.embedded import dead_leaves
from shamisa.data.photos import PhotoFolder
from shamisa.networks.encoders import normalization
from shamisa.networks.models import EFFICIENTNET, Encoder
from shamisa.packaged import CARD, __main__, fit, load_packaged, read_model
from shamisa.packaged.mirrored import Mirrored
from shamisa.packaged.ordered import HELD_OUT, LEVELS, Ordered, for_fitting, held_out, make_ordered
from shamisa.scoring.features import hash_encoder


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_without_pairs_it_is_ridge_regression():
    X, y = normal(40, 60), normal(40, seed=1)
    coef, intercept = fit.solve(X, y, [], np.array([0.3, 5.0]))
    for i, alpha in enumerate((0.3, 5.0)):
        known = Ridge(alpha=alpha).fit(X.numpy(), y.numpy())
        assert_close(coef[i], torch.from_numpy(known.coef_))
        assert_close(float(intercept[i]), float(known.intercept_))


def test_pairs_minimise_what_is_said():
    """The gradient of the stated objective is zero at the solution."""
    X, y, D, gap = normal(30, 12), normal(30, seed=1), normal(20, 12, seed=2), normal(20, seed=3).abs()
    flipped = X + 0.1 * normal(30, 12, seed=4)
    alpha = 2.0
    coef, intercept = fit.solve(X, y, [fit.Gaps(D, gap, 0.7), *fit.mirrors(X, flipped)], np.array([alpha]))
    w, b = coef[0].clone().requires_grad_(), intercept[0].clone().requires_grad_()
    cost = (y - X @ w - b).square().sum() + alpha * w.square().sum()
    cost = cost + 0.7 * 30 / 20 * (gap - D @ w).square().sum() + fit.MIRROR * ((X - flipped) @ w).square().sum()
    cost.backward()
    assert_close(w.grad, torch.zeros_like(w), rtol=0, atol=1e-8)
    assert_close(b.grad, torch.zeros_like(b), rtol=0, atol=1e-8)


def test_pairs_are_taken_while_they_cost_nothing_and_turn_what_labels_do_not_say():
    X = normal(200, 10)
    X[:, 1] *= 0.02  # a direction that the scores say nothing about
    y = X[:, 0] * 0.2 + 0.02 * normal(200, seed=1)
    D = torch.zeros(60, 10, dtype=torch.float64)
    D[:, 1] = 1 + 0.1 * normal(60, seed=2)
    steps = torch.ones(60)
    found = fit.fit(X, y, Ordered(D.float(), steps, torch.zeros(60, dtype=torch.int64)))
    alone = fit.fit(X, y)
    assert found.weight > 0 and found.agreeing == 1
    assert found.srcc >= alone.srcc - fit.ALLOWED and alone.agreeing is None
    # pairs that contradict the scores are left out
    against = Ordered(-3 * X.float(), torch.ones(200), torch.zeros(200, dtype=torch.int64))
    against = Ordered((against.difference * y.sign()[:, None].float()), against.steps, against.kind)
    refused = fit.fit(X, y, against)
    assert refused.weight == 0 and refused.srcc == alone.srcc


def test_mirror_images_score_alike_without_a_loss():
    X = normal(200, 10)
    y = X[:, :2].sum(1) * 0.1 + 0.02 * normal(200, seed=1)
    X = torch.cat([X, X[:, 1:2]], 1)  # the second feature twice; the copy changes in the mirror
    flipped = X.clone()
    flipped[:, 10] += normal(200, seed=2)
    found, alone = fit.fit(X, y, flipped=flipped), fit.fit(X, y)
    assert found.mirror == fit.MIRROR and alone.mirror == 0
    spread = [float(((flipped - X) @ f.coef).std()) for f in (found, alone)]
    assert spread[0] < 0.2 * spread[1] and found.srcc > alone.srcc - 0.002


def test_a_mirrored_encoder_sees_mirror_images():
    encoder = Encoder("shamisa/small").eval()
    encoder.set_normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    flipped = Mirrored(encoder)
    x = normal(2, 3, 40, 40).float()
    assert torch.equal(flipped(x), encoder(x.flip(3))) and not torch.equal(flipped(x), encoder(x))
    assert normalization(flipped) == normalization(encoder) and hash_encoder(flipped) != hash_encoder(encoder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 small photographs, and labels: 20 of train, 3 of test."""
    path = tmp_path_factory.mktemp("photographs")
    rows = []
    for i in range(23):
        photo = dead_leaves(i, 72)
        quality = (i % 5) / 4
        worse = shamisa.distort(photo, "gaussian_blur", severity=4 * (1 - quality))
        Image.fromarray(worse.permute(1, 2, 0).numpy()).save(path / f"{i:02d}.png")
        rows.append((f"{i:02d}.png", quality, "train" if i < 20 else "test"))
    with open(path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "mos", "split"), *rows])
    return path


def test_photographs_for_checks_are_not_fitted_on(folder):
    source = PhotoFolder(str(folder))
    kept = held_out(source)
    assert kept == [0, HELD_OUT]
    assert not set(kept) & set(for_fitting(source, 21)) and len(set(for_fitting(source, 21))) == 21
    with pytest.raises(ValueError, match="ordered photographs must be 1..21 of this folder, got 22"):
        for_fitting(source, 22)


def test_ordered_differences(folder):
    source = PhotoFolder(str(folder))
    encoder = Encoder("shamisa/small").eval()
    found = make_ordered(encoder, source, [1], crop=48, progress=False)
    assert found.difference.shape == (26 * len(LEVELS), 512)
    assert found.steps.view(26, -1).tolist() == [[1.0, 2.0, 2.0]] * 26
    assert found.kind.view(26, -1)[:, 0].tolist() == list(range(26))
    # of one photograph, all chains begin at the same features: sums of differences are those to the worst
    again = make_ordered(encoder, source, [1], crop=48, progress=False)
    assert torch.equal(again.difference, found.difference) and found.difference.abs().sum(1).gt(0).sum() > 70


def test_command_from_photographs_to_files(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "CHECKED", 2)
    out = tmp_path / "model"
    words = [
        "--labels",
        str(folder / "labels.csv"),
        "--scale",
        "0",
        "1",
        "--crop",
        "48",
        "--view",
        "64",
        "--out",
        str(out),
    ]
    sources = ["--source", "leaves", "Apache-2.0"]
    assert __main__.main(["--checkpoint", f"untrained:{EFFICIENTNET}", *words, *sources]) == 0
    about = read_model(out)
    encoder, regressor = load_packaged(out)
    assert about["labels"]["images"] == 20 and regressor.view == 64 and encoder.features == "stages"
    assert about["float16"] and about["moved_by_float16"] < 1e-3
    assert str(folder) not in json.dumps(about) and "--out" not in about["command"]
    card = (out / CARD).read_text()
    assert "leaves: Apache-2.0" in card and "has not been looked at" in card
    scorer = shamisa.load_scorer(out / "encoder.safetensors", out / "regressor.safetensors", device="cpu")
    assert scorer(torch.zeros(3, 60, 60, dtype=torch.uint8)).shape == (1,)

    assert __main__.main(["--test", *words]) == 0
    tested = read_model(out)["test"]
    assert tested["images"] == 3 and "split=test | 3 |" in (out / CARD).read_text()
    capsys.readouterr()
    assert __main__.main(["--checkpoint", "untrained:shamisa/small", *words]) == 2
    assert "checkpoint must hold the encoder" in capsys.readouterr().err
    assert __main__.main(["--out", str(out)]) == 2
