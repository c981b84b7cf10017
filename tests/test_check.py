"""Checks of the encoder during training: the figures, when they warn, where they go, and which checkpoint is best."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image, ImageFilter
from test_train import tiny
from torch import nn

from shamisa import train
from shamisa.networks.models import Encoder
from shamisa.reports import plots
from shamisa.scoring import demo
from shamisa.training import check, runs
from shamisa.training import config as configuration
from shamisa.training.check import Check, History
from shamisa.training.config import Config
from shamisa.training.trainer import TrainingError


def history(*checks: tuple[float, float]) -> History:
    return History([Check(10 * i, *c) for i, c in enumerate(checks)])


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ((0.69, 20.0), None),
        ((0.67, 20.0), "the label-free check fell to 0.670 from 0.700 at the start"),
        ((0.72, 9.0), "the effective rank of h fell to 9.0 from 40.0"),
        ((0.50, 9.0), "check fell to 0.500 .*; the effective rank of h fell to 9.0"),
    ],
)
def test_fault_names_what_fell(last, words):
    found = history((0.7, 40.0), (0.1, 1.0), last).fault()  # the last one counts
    if words is None:
        assert found is None
    else:
        assert re.search(words, found) and "--regularizer off" in found


def test_labels_decide_where_there_are_some():
    found = History([Check(0, 0.7, 9.0, 0.6), Check(5, 0.8, 9.0, 0.5)])
    assert found.checks[-1].score == 0.5 and "SRCC with the labels fell to 0.500 from 0.600" in found.fault()
    assert "labels 0.500 (0.600)" in found.words()


def test_score_is_the_mean_of_the_window_and_needs_a_check_of_that_step():
    found = history((0.2, 1.0), (0.4, 1.0), (0.8, 1.0))
    assert found.score(20, 10) == pytest.approx(0.8) and found.score(20, 11) == pytest.approx(0.6)
    assert found.score(21, 100) is None and History().score(0, 100) is None


class Constant(nn.Module):
    """Tells nothing of an image but its mean."""

    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None].expand(-1, 4) * self.weight


def test_judge_tells_a_collapsed_encoder_and_leaves_the_mode_alone():
    torch.manual_seed(0)
    sound = Encoder("shamisa/small").train()
    good, bad = check.judge(sound, 0, crop=96), check.judge(Constant(), 1, crop=96)
    assert sound.training and bad.rank_h < good.rank_h / check.SHRINK
    assert "effective rank" in History([good, bad]).fault()
    assert good.srcc == pytest.approx(demo.evaluate(sound, crop=96)["srcc"])  # one definition


@pytest.fixture
def falling(monkeypatch):
    """Checks that get worse by .1 each time."""

    def judge(encoder, step, **_):
        return Check(step, 0.9 - 0.05 * step, 50.0)

    monkeypatch.setattr(check, "judge", judge)


def test_a_run_warns_and_goes_on(falling, photos, tmp_path, capsys):
    trainer, run = train.prepare(tiny(photos, check_every=2, steps=4), tmp_path / "run", quiet=True)
    assert trainer.fit(run) == "finished"
    text = capsys.readouterr().err
    assert "warning: step 2: the label-free check fell to 0.800 from 0.900" in text
    assert [c["step"] for c in run.checks()] == [0, 2, 4]
    assert run.best().name == "step-00000002"
    plots.checks(run.checks(), tmp_path / "checks.png")
    assert (tmp_path / "checks.png").stat().st_size > 1000


def test_stop_on_collapse_ends_the_run_with_the_best_checkpoint_kept(falling, photos, tmp_path):
    config = tiny(photos, check_every=2, steps=6, stop_on_collapse=True)
    trainer, run = train.prepare(config, tmp_path / "run", quiet=True)
    with pytest.raises(TrainingError, match="step 2: the label-free check fell to 0.800 .*last good checkpoint: .*02$"):
        train.execute(trainer, run)
    assert run.status()["status"] == "failed" and run.best().name == "step-00000002"


def test_labels_join_the_checks(photos, tmp_path):
    one = next(p for p in sorted(photos.iterdir()) if p.suffix == ".png")
    many = tmp_path / "many"
    many.mkdir()
    rows = ["file,score"]
    for i in range(24):
        blurred = Image.open(one).convert("RGB").filter(ImageFilter.GaussianBlur(i / 8))
        blurred.save(many / f"{i}.png")
        rows.append(f"{i}.png,{i}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    config = tiny(photos, check_every=2, steps=2, labels=str(tmp_path / "labels.csv"), label_root=str(many))
    trainer, run = train.prepare(config, tmp_path / "run", quiet=True)
    assert trainer.fit(run) == "finished"
    assert all(-1 <= c["label_srcc"] <= 1 for c in run.checks()) and len(run.checks()) == 2


def test_label_root_without_labels_is_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="label-root belongs to --labels"):
        train.prepare(tiny(photos, label_root="x"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_score_by_the_total_no_longer_ranks(photos, tmp_path):
    trainer, run = train.prepare(tiny(photos, steps=4, keep=9), tmp_path / "run", quiet=True)
    trainer.fit(run)
    for folder in run.checkpoints.glob("step-*"):  # as 0.1 wrote it
        index = json.loads((folder / runs.INDEX).read_text()) | {"score": -1.0}
        del index["scored"]
        (folder / runs.INDEX).write_text(json.dumps(index))
    assert run.best() is None


def test_checks_are_on_by_default_and_off_in_runs_from_before_them():
    record = configuration.to_record(Config(refs="x"))
    assert record["check_every"] == 250
    del record["check_every"]
    assert configuration.from_record(record).check_every == 0
