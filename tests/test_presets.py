"""Presets: every ablation differs from the published configuration in what its name says, and trains."""

from __future__ import annotations

import dataclasses

import pytest
from test_train import TINY

from shamisa import train
from shamisa.measuring.profiling import Stopwatch
from shamisa.training import config as configuration
from shamisa.training import presets
from shamisa.training.config import PAPER, PRESETS


def test_letters_and_names_mean_the_same():
    assert list(presets.ABLATIONS)[0] == "A1" and list(presets.ABLATIONS)[-1] == "F1"
    configs = []
    for letter, (name, fields) in presets.ABLATIONS.items():
        assert PRESETS[letter] == PRESETS[name] != PAPER
        assert PRESETS[letter] == dataclasses.replace(PAPER, **fields)
        configs.append(PRESETS[letter])
    assert len(set(configs)) == len(configs)
    help_ = train.make_parser().format_help()
    assert all(f"{letter}  {name} " in help_ for letter, (name, _) in presets.ABLATIONS.items())


@pytest.mark.parametrize("letter", presets.ABLATIONS)
def test_ablations_train(letter):
    fields = {k: v for k, v in TINY.items() if k not in presets.ABLATIONS[letter][1]}
    config = configuration.resolve(letter, fields | {"refs": "embedded"})
    trainer = train.Trainer(config, quiet=True)
    watch = Stopwatch(trainer.device)
    watch.start()
    record = trainer.train_step(trainer.references.batch(0)[0], watch)
    assert (record["loss"]["regularizer"] == 0) == (letter == "F1")
    assert (record["loss"]["transport"] == 0) == (letter == "E3")
    assert record["grad_norm"] > 0
