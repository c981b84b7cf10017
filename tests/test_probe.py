"""The probe end to end on small photographs whose scores are their noise, and everything that it refuses."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.torch import save_file

from shamisa import probe
from shamisa.datasets import iqa_sets
from shamisa.datasets.labels import Labels
from shamisa.datasets.splits import Split
from shamisa.networks.models import Encoder
from shamisa.scoring import inputs, metrics, ridge

N = 48
SMALL = "untrained:shamisa/small"
FAST = ["--crop", "32", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of 48 photographs (a ramp, 40 x 36, with noise) and labels.csv with split, and plain.csv without."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, 40)[None, :, None] * np.ones((36, 1, 3))
    rows = []
    for i in range(N):
        amount = rng.uniform(0, 40)
        pixels = np.clip(ramp + rng.normal(size=ramp.shape) * amount, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        rows.append((f"{i}.png", round(100 - amount, 3), "test" if i % 4 == 0 else "train"))
    for name, columns in (("labels.csv", ("file", "mos", "split")), ("plain.csv", ("file", "mos"))):
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows([columns, *(r[: len(columns)] for r in rows)])
    return root


def call(data, out, *extra, checkpoint=SMALL, labels="labels.csv"):
    arguments = [
        "--checkpoint",
        str(checkpoint),
        "--labels",
        str(data / labels),
        "--root",
        str(data),
        "--out",
        str(out),
    ]
    return probe.main([*arguments, *FAST, *extra])


def test_end_to_end(data, tmp_path, capsys):
    weights = {f"encoder.{k}": t for k, t in inputs.open_encoder(SMALL, seed=7).state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"encoder": "shamisa/small"})
    out = tmp_path / "out"
    assert call(data, out, "--untrained", checkpoint=tmp_path / "model.safetensors") == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    trained, untrained = results["encoders"]
    assert untrained["checkpoint"] == SMALL and trained["encoder_hash"] != untrained["encoder_hash"]
    assert results["splits"][0]["hash"][:16] in printed and "PLCC*" in printed and SMALL in printed
    for encoder in (trained, untrained):
        (numbers,) = encoder["splits"]
        assert numbers["n"] == {"train": 32, "val": 4, "test": 12}
        assert numbers["srcc"] > 0.8 and numbers["plcc"] > 0.8  # noise is easy to see
        assert (
            f"{numbers['srcc']:.4f}" in printed and encoder["feature_dim"] == 2 * Encoder("shamisa/small").feature_dim
        )
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    prediction, score = (np.array([float(r[k]) for r in rows]) for k in ("prediction", "score"))
    assert_allclose(metrics.srcc(prediction, score), trained["median"]["srcc"])
    assert Image.open(out / "scatter.png").size == (640, 600)

    regressor = ridge.Regressor.load(out / "regressor.safetensors")
    assert json.loads((out / "regressor.json").read_text()) == {"format": 1, **regressor.about}
    assert regressor.about["split_hash"] == results["splits"][0]["hash"]
    assert regressor.about["encoder_hash"] == trained["encoder_hash"]
    extractor = probe.Extractor(inputs.open_encoder(SMALL, seed=7), crop=32)
    photos = [probe.iqa_sets.find_files(iqa_sets.read_csv(data / "labels.csv").take([i]), data)[0] for i in (0, 4)]
    again = regressor.predict(torch.stack([f for _, f in extractor.stream(photos)]))
    assert_allclose(again, prediction[:2], rtol=1e-4)


def test_random_splits_give_medians(data, tmp_path, capsys):
    assert call(data, tmp_path, "--splits", "3", "--seed", "5", labels="plain.csv") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    (encoder,) = results["encoders"]
    values = [s["srcc"] for s in encoder["splits"]]
    assert len(values) == 3 and len({s["hash"] for s in results["splits"]}) == 3
    assert_allclose(encoder["median"]["srcc"], np.median(values))
    assert_allclose(encoder["median"]["srcc_std"], np.std(values))
    out = capsys.readouterr().out
    assert "medians of 3 splits" in out and "3 splits, the first: random split 0 of seed 5" in out


def test_unreadable_photographs_are_left_out_and_named(data, tmp_path, capsys):
    root = tmp_path / "copy"
    root.mkdir()
    for file in data.glob("*.*"):
        (root / file.name).write_bytes(file.read_bytes())
    (root / "8.png").write_bytes(b"no picture")
    assert call(root, tmp_path / "out") == 0
    assert "1 of 48 images cannot be read and are left out" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [u["file"] for u in results["unreadable"]] == ["8.png"]
    assert results["encoders"][0]["splits"][0]["n"]["test"] == 11


def test_published_splits_and_data_set_by_name(data, tmp_path):
    order = np.random.default_rng(0).permutation(N)
    for part, positions in (("train", order[:30]), ("val", order[30:38]), ("test", order[38:])):
        np.save(tmp_path / f"{part}.npy", np.stack([positions, positions]))
    arguments = [
        "--checkpoint",
        SMALL,
        "--dataset",
        "biq2021",
        "--root",
        str(data),
        "--out",
        str(tmp_path / "o"),
        *FAST,
    ]
    assert probe.main([*arguments, "--split-files", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["labels"] == "BIQ2021" and results["scale"] == {"low": 0, "high": 1, "lower_better": False}
    first, second = results["encoders"][0]["splits"]
    assert first == second and first["n"] == {"train": 30, "val": 8, "test": 10}


@pytest.mark.parametrize("carved", [False, True])
def test_probe_of_a_split_is_the_protocol(carved):
    rng = np.random.default_rng(1)
    X = torch.from_numpy(rng.normal(size=(60, 5, 7)))
    y = X.mean(1).numpy() @ rng.normal(size=7) + 0.1 * rng.normal(size=60)
    labels = Labels("s", [str(i) for i in range(60)], y, -1, 1, False)
    split = Split(np.arange(40), np.arange(40, 48), np.arange(48, 60), "s", carved)
    numbers, model, prediction = probe.probe_split(X, labels, split)
    chosen, values = ridge.select(X[:40], y[:40], X[40:48], y[40:48])
    fitted = ridge.fit_path(X[:48], y[:48], chosen.alpha) if carved else chosen
    assert_allclose(prediction, fitted.predict(X[48:])[:, 0], atol=1e-12)
    assert_allclose(model.coef, fitted.coef, atol=1e-12)
    assert numbers["alpha"] == chosen.alpha.item() and numbers["val_srcc"] == values.max()
    assert numbers["groups"] == {}
    assert {k: numbers[k] for k in metrics.SUMMARY} == metrics.summary(prediction, y[48:])


def test_quality_runs_from_bad_to_good():
    about = {"encoder": "e", "encoder_hash": "h", "crop": 8, "low": 20, "high": 60, "lower_better": False}
    score = torch.tensor([10.0, 20, 30, 60, 70], dtype=torch.float64)
    up = ridge.Regressor(torch.ones(2).double(), torch.zeros(()).double(), about)
    assert_allclose(up.quality(score), [0, 0, 0.25, 1, 1])
    down = ridge.Regressor(up.coef, up.intercept, about | {"lower_better": True})
    assert_allclose(down.quality(score), [1, 1, 0.75, 0, 0])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read the regressor"),
        (b"text", "cannot read the regressor"),
        (({"coef": torch.ones(2)}, None), "must be a regressor written by shamisa.probe, got a file with coef"),
        (
            ({"coef": torch.ones(2), "intercept": torch.ones(1)}, {"shamisa": '{"format": 9}'}),
            "regressor of format 1, got format 9",
        ),
    ],
)
def test_regressors_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "r.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        save_file(content[0], path, content[1])
    with pytest.raises(ValueError, match=message):
        ridge.Regressor.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--labels": None}, "give one of --labels CSV, --dataset NAME and --cross, got none"),
        ({"--dataset": "live"}, "got both"),
        ({"--labels": "none.csv"}, "cannot read labels"),
        ({"--root": "none"}, "root must be a folder"),
        ({"--root": ".."}, r"48 of 48 images of set\d+-labels are missing"),
        ({"--score-column": "quality"}, "must have the score column quality .* found file, mos, split"),
        ({"--scale": ["5", "5"]}, "--scale must be LOW < HIGH, got 5 5"),
        ({"--labels": None, "--dataset": "live", "--score-column": "x"}, "--score-column belongs to --labels"),
        ({"--labels": None, "--dataset": "live", "--root": "empty"}, "must hold LIVE: jp2k/ .* dmos_realigned.mat"),
        ({"--labels": None, "--root": None, "--dataset": "csiq"}, "--dataset csiq needs --root DIR, dst_imgs/AWGN"),
        ({"--full-reference": True}, r"full reference needs labels that name references, set\d+-labels has none"),
        (
            {"--checkpoint": "statistics", "--untrained": True},
            "--untrained needs a checkpoint with weights, got statistics",
        ),
        ({"--compare": ["statistics", "none"]}, "checkpoint must be a run folder"),
        ({"--splits": "3"}, r"set\d+-labels has a split column"),
        ({"--splits": "0"}, "--splits must be at least 1, got 0"),
        ({"--split-files": "none"}, "cannot read the split"),
        ({"--checkpoint": "none"}, "checkpoint must be a run folder"),
        ({"--checkpoint": "untrained:resnet50"}, "encoder must be"),
        ({"--checkpoint": "imagenet:shamisa/small"}, "no ImageNet weights"),
        ({"--device": "cuda:99"}, "device cuda:99 is not there"),
        ({"--device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"--crop": "0"}, "crop must be an integer of at least 1"),
        ({"--crop": "4", "--compare": ["statistics"]}, "statistics fails on blank crops of 4 pixels: x must be"),
        ({"--seed": "-1"}, r"--seed must lie in 0\.\.2\^63-1, got -1"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, dict) else "",
)
def test_bad_input_is_told_before_any_work(data, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.setattr(inputs, "extract", None)  # must not be reached
    (data / "empty").mkdir(exist_ok=True)
    given = {
        "--checkpoint": SMALL,
        "--labels": "labels.csv",
        "--root": ".",
        "--out": str(tmp_path / "out"),
        "--device": "cpu",
    }
    given.update(change)
    for key in ("--labels", "--root", "--split-files"):
        if given.get(key):
            given[key] = str(data / given[key])
    words = [
        w for k, v in given.items() if v for w in ([k, *v] if isinstance(v, list) else [k] if v is True else [k, v])
    ]
    assert probe.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_unknown_flags_are_rejected(capsys):
    with pytest.raises(SystemExit) as exit:
        probe.main(["--checkpoint", "x", "--root", "y", "--label", "z"])
    assert exit.value.code == 2 and "--label" in capsys.readouterr().err


def test_untrained_weights_follow_the_seed():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a, b, c = (inputs.open_encoder(SMALL, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    first = next(iter(a.state_dict()))
    assert isinstance(a, Encoder) and not a.training
    assert torch.equal(a.state_dict()[first], b.state_dict()[first])
    assert not torch.equal(a.state_dict()[first], c.state_dict()[first])
