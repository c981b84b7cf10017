"""The configuration of a training run: presets, flags, errors by field, learning rates, what may change on resume."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from test_train import flags

from shamisa import train
from shamisa.training import config as configuration
from shamisa.training.config import DEMO, PAPER, Config


def parse(*words):
    return configuration.given_fields(train.make_parser().parse_args(words))


def test_paper_preset_is_the_published_configuration():
    c = PAPER
    assert (c.batch, c.crop, c.compositions, c.levels, c.max_distortions) == (2, 224, 4, 5, 7)
    assert (c.encoder, c.init, c.hidden, c.embedding) == ("torchvision/resnet50", "imagenet", 3072, 768)
    assert (c.optimizer, c.lr, c.momentum, c.weight_decay, c.epochs) == ("sgd", 1.5e-3, 0.9, 1e-4, 1.0)
    assert (c.schedule, c.eta_min, c.severity, c.continuous, c.noise) == (
        "restarts",
        1e-6,
        "gaussian",
        True,
        "per_level",
    )
    assert c.loss_options()["covariance_weight"] == 57.21249573027589


def test_every_field_has_a_flag_and_an_explanation():
    text = train.make_parser().format_help()
    for f in dataclasses.fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text
        assert len(f.metadata["help"]) > 10, f.name


def test_flags_round_trip_through_json():
    changes = {"lr": 0.25, "steps": 7, "graphs": ("knn", "ref_ref"), "continuous": False, "channels_last": False}
    config = configuration.resolve("demo", parse(*flags(**changes)))
    assert config == dataclasses.replace(DEMO, **changes)
    assert configuration.from_record(json.loads(json.dumps(configuration.to_record(config)))) == config


@pytest.mark.parametrize(
    "words",
    [["--learning-rate", "1"], ["--preset", "huge"], ["--steps", "many"], ["--severity", "cauchy"], ["--ste", "3"]],
)
def test_unknown_flags_and_presets_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as end:
        train.main(words)
    assert end.value.code == 2 and "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be a number of at least 0, got -1.0"),
        ({"lr": float("nan")}, ValueError, "lr must be a finite number of at least 0, got nan"),
        ({"batch": 0}, ValueError, "batch must be an integer in 1..4096, got 0"),
        ({"batch": 1.5}, ValueError, "batch must be an integer in 1..4096, got 1.5"),
        ({"batch": True}, ValueError, "batch must be an integer in 1..4096, got True"),
        ({"momentum": 2}, ValueError, "momentum must be a number in 0..1, got 2"),
        ({"order": "sorted"}, ValueError, "order must be one of random, fixed, got 'sorted'"),
        ({"distortions": ("blur",)}, ValueError, "distortions must name some of gaussian_blur,.*got blur"),
        ({"graphs": ("knn", "knn")}, ValueError, "graphs must not name anything twice"),
        ({"encoder": "resnet50"}, ValueError, "encoder must be torchvision/NAME"),
        ({"epochs": 0.0}, ValueError, "steps or epochs must be positive"),
    ],
)
def test_bad_values_name_the_field(fields, error, message):
    with pytest.raises(error, match=message):
        Config(**fields)


def test_restarts_agree_with_torch():
    config = Config(lr=0.1, eta_min=1e-3)
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7, T_mult=2, eta_min=1e-3)
    expected = []
    for _ in range(60):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    got = [config.learning_rate(s, 60, 7) for s in range(60)]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(expected), rtol=1e-6, atol=1e-9)


def test_cosine_warmup_and_constant():
    config = Config(lr=1.0, eta_min=0.0, schedule="cosine", warmup=3)
    rates = [config.learning_rate(s, 13, 100) for s in range(13)]
    torch.testing.assert_close(torch.tensor(rates[:4]), torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert rates[3:] == sorted(rates[3:], reverse=True) and 0 < rates[-1] < 0.05
    assert Config(lr=1.0, schedule="constant").learning_rate(5, 13, 1) == 1.0


@pytest.mark.parametrize(
    ("given", "allowed"),
    [({"steps": 9}, True), ({"workers": 1, "threads": 2}, True), ({"lr": 0.5}, False), ({"seed": 1}, False)],
)
def test_what_may_change_on_resume(given, allowed):
    saved = Config(steps=6)
    if allowed:
        assert configuration.resume(saved, given) == dataclasses.replace(saved, **given)
    else:
        with pytest.raises(ValueError, match="of a resumed run must stay"):
            configuration.resume(saved, given)
    with pytest.raises(ValueError, match="steps of a resumed run must stay"):  # the cosine depends on it
        configuration.resume(dataclasses.replace(saved, schedule="cosine"), {"steps": 9})
