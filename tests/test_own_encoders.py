"""A module of one's own as encoder: trained, saved, loaded, resumed, probed and scored from Python."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from shamisa import probe, train
from shamisa.engine import IMAGENET_MEAN
from shamisa.networks import checkpoints
from shamisa.networks.models import Encoder
from shamisa.scorer import Scorer
from shamisa.scoring import features
from shamisa.scoring.ridge import Regressor
from shamisa.training import runs
from shamisa.training.config import Config
from shamisa.training.learner import Learner
from shamisa.training.trainer import Trainer


class Net(nn.Module):
    """[N, 3, H, W] -> [N, 12]; takes images in -1..1. ``features`` is a layer, as in many networks."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4), nn.BatchNorm2d(12), nn.ReLU())
        self.mean, self.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        self.seen = None

    def forward(self, x):
        self.seen = (float(x.min()), float(x.max()))
        return self.features(x).mean((2, 3))


def tiny(photos, **fields) -> Config:
    given = {"crop": 32, "batch": 1, "compositions": 2, "levels": 2, "hidden": 16, "embedding": 8, "anchors": 4}
    given |= {"neighbors": 5, "max_distortions": 2, "distortions": ("brighten", "white_noise"), "workers": 0}
    given |= {"steps": 4, "checkpoint_every": 2, "threads": 1, "device": "cpu", "tensorboard": False}
    return Config(refs=str(photos), **given | fields)


def make(seed=0) -> Net:
    torch.manual_seed(seed)
    return Net()


def run_of(photos, folder, encoder, **fields):
    trainer, run = train.prepare(tiny(photos, **fields), folder, quiet=True, encoder=encoder)
    assert train.execute(trainer, run) == "finished"
    run.release()
    return trainer, run


def test_a_module_is_trained_saved_and_loaded(photos, tmp_path):
    encoder = make()
    before = {k: t.clone() for k, t in encoder.state_dict().items()}
    trainer, run = run_of(photos, tmp_path / "run", encoder)
    assert trainer.model.encoder is encoder and trainer.model.feature_dim == 12
    assert encoder.seen[0] >= -1 and encoder.seen[1] <= 1  # by its own mean and std; by ImageNet's, beyond 2
    assert not torch.equal(before["features.0.weight"], encoder.features[0].weight)
    index = checkpoints.find_checkpoint(run.path).index
    assert (index["encoder"], index["features"], index["mean"]) == ("Net", "last", [0.5, 0.5, 0.5])
    with pytest.raises(runs.RunError, match=r"holds the encoder Net, a module of somebody's own.*encoder=MODULE"):
        checkpoints.load_encoder(run.path)
    loaded = checkpoints.load_encoder(run.path, encoder=make(9))
    assert not loaded.training
    for key, t in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], t), key


class Other(Net):
    pass


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        (Other(), {}, "must hold the encoder Other that was given, got Net"),
        (Net(), {"features": "stages"}, "features must be left out for a module that has no choice, Net, got 'stages'"),
        (Net(), {"mean": (0.4, 0.5, 0.5)}, r"must have the mean of the encoder Net, \(0\.4.*, got \(0\.5"),
        (Net(), {"layer": nn.Linear(2, 2)}, r"does not fit the encoder Net: missing layer\.weight \[2, 2\]"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(photos, tmp_path, encoder, options, message):
    learner = Learner(tiny(photos), make())
    run = runs.Run.create(tmp_path / "run", {"config": {}})
    run.save(1, learner, torch.optim.SGD(learner.parameters()), {}, keep=1)
    run.release()
    for name in ("mean", "layer"):
        if name in options:
            setattr(encoder, name, options.pop(name))
    with pytest.raises(runs.RunError, match=message):
        checkpoints.load_encoder(run.path, encoder=encoder, **options)


class Noise:
    """Photographs of one's own making: what ``data.photos.Photos`` asks for and no more."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)

    def name(self, i):
        return f"noise {i}"


def test_photographs_are_passed_in_as_an_object(tmp_path):
    source = Noise()
    config = tiny("no such folder")  # its refs are not looked at
    trainer, run = train.prepare(config, tmp_path / "run", quiet=True, encoder=make(), photos=source)
    assert trainer.references.source is source
    assert train.execute(trainer, run) == "finished" and len(run.records()) == 4
    with pytest.raises(ValueError, match="refs must be a folder"):
        Trainer(config, quiet=True, encoder=make())


def test_a_run_is_resumed_with_the_module(photos, tmp_path):
    _, whole = run_of(photos, tmp_path / "whole", make())
    trainer, run = run_of(photos, tmp_path / "parts", make(), steps=2, schedule="constant")
    with pytest.raises(ValueError, match=r"must hold the encoder torchvision/resnet18, got Net: .*encoder=MODULE"):
        Trainer(tiny(photos, encoder="torchvision/resnet18", init="none"), True).load(
            checkpoints.find_checkpoint(run.path)
        )
    options = {"steps": 4, "schedule": "constant"}
    trainer, run = train.prepare(tiny(photos, **options), None, run.path, quiet=True, encoder=make(5))
    assert trainer.step == 2
    assert train.execute(trainer, run) == "finished"
    run.release()
    _, same = run_of(photos, tmp_path / "same", make(), schedule="constant")
    a, b = (checkpoints.find_checkpoint(r.path).model_tensors() for r in (run, same))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Conv2d(3, 4, 3), r"encoder Conv2d must map images \[2, 3, 32, 32\] to \[2, F\], got \[2, 4, 30, 30\]"),
        (nn.Linear(5, 4), r"encoder Linear must map images \[N, 3, 32, 32\] to \[N, F\], got RuntimeError"),
    ],
)
def test_what_is_no_encoder_is_refused(photos, encoder, message):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny(photos), quiet=True, encoder=encoder)


def test_the_blank_image_leaves_the_module_as_it_was(photos):
    encoder = make().train()
    encoder.features[1].eval()  # frozen by its owner
    before = {k: t.clone() for k, t in encoder.state_dict().items()}
    learner = Learner(tiny(photos), encoder)
    assert encoder.training and not encoder.features[1].training
    assert all(torch.equal(t, before[k]) for k, t in learner.encoder.state_dict().items())


@pytest.mark.slow
def test_the_demonstration_compares_with_the_module_before_training(photos, tmp_path, capsys):
    run_of(photos, tmp_path / "run", make(), demo=True, lr=0.1)
    found = json.loads((tmp_path / "run" / "demo.json").read_text())
    assert found["trained"]["srcc"] != found["untrained"]["srcc"]
    torch.manual_seed(0)
    from shamisa.scoring import demo

    expected = demo.evaluate(Net(), crop=48, compositions=60)
    assert found["untrained"]["srcc"] == pytest.approx(expected["srcc"], abs=1e-6)


# ---- probe and score -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """labels.csv of 40 noisy ramps and their scores."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, 40)[None, :, None] * np.ones((36, 1, 3))
    with (root / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "mos", "split"))
        for i in range(40):
            amount = rng.uniform(0, 40)
            pixels = np.clip(ramp + rng.normal(size=ramp.shape) * amount, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{i}.png")
            rows.writerow((f"{i}.png", round(100 - amount, 3), "test" if i % 4 == 0 else "train"))
    return root / "labels.csv"


def test_a_module_is_probed_and_scores(labels, tmp_path):
    encoder = make()
    arguments = ["--labels", labels, "--out", tmp_path / "out", "--crop", 32, "--device", "cpu", "--quiet"]
    results = probe.probe_encoder(encoder, arguments)
    (found,) = results["encoders"]
    assert (found["encoder"], found["checkpoint"], found["feature_dim"]) == ("Net", "Net", 24)
    assert (found["features"], found["mean"]) == ("last", [0.5, 0.5, 0.5])
    assert found["median"]["srcc"] > 0.7  # noise is easy to see
    regressor = Regressor.load(tmp_path / "out" / "regressor.safetensors")
    images = [
        torch.from_numpy(np.array(Image.open(labels.parent / f"{i}.png")).transpose(2, 0, 1).copy()) for i in (0, 4)
    ]
    prediction = [float(r["prediction"]) for r in csv.DictReader((tmp_path / "out" / "predictions.csv").open())]
    low, high = (regressor.about[k] for k in ("low", "high"))
    expected = [(p - low) / (high - low) for p in prediction[:2]]
    assert Scorer(encoder, regressor)(images).tolist() == pytest.approx(expected, abs=1e-5)
    other = make()
    other.mean = IMAGENET_MEAN
    with pytest.raises(ValueError, match=r"encoder's mean 0\.485 .*\(Net\), got one for mean 0\.5"):
        Scorer(other, regressor)
    with pytest.raises(ValueError, match="--features are for encoders of this package, got 'stages' for Net"):
        probe.probe_encoder(encoder, [*arguments, "--features", "stages"])


def test_the_probe_takes_the_features_asked_for(labels, tmp_path, capsys):
    arguments = ["--labels", str(labels), "--crop", "32", "--device", "cpu", "--quiet", "--out", str(tmp_path)]
    arguments += ["--checkpoint", "untrained:shamisa/small", "--untrained"]
    F = Encoder("shamisa/small", features="stages").feature_dim
    assert probe.main([*arguments, "--features", "stages", "--compare", "statistics"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(e["features"], e["feature_dim"]) for e in results["encoders"]] == [("stages", 2 * F)] * 2 + [("last", 54)]
    about = Regressor.load(tmp_path / "regressor.safetensors").about
    assert about["features"] == "stages" and about["mean"] == list(IMAGENET_MEAN)
    capsys.readouterr()
    assert probe.main([*arguments, "--features", "stage7"]) == 2
    assert "some of last, stage1, stage2, stage3, stage4, got 'stage7'" in capsys.readouterr().err


def test_extractor_normalises_by_the_module(photos):
    encoder = make()
    extractor = features.Extractor(encoder, crop=32)
    extractor([torch.full((3, 40, 40), 255, dtype=torch.uint8)])
    assert encoder.seen == pytest.approx((1.0, 1.0), abs=1e-5)
    extractor([torch.zeros(3, 40, 40, dtype=torch.uint8)])
    assert encoder.seen == pytest.approx((-1.0, -1.0), abs=1e-5)
