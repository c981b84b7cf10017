"""TensorBoard and Weights & Biases see what metrics.jsonl says."""

from __future__ import annotations

import builtins

import pytest
import torch
from test_train import TINY, flags

from shamisa import train
from shamisa.training import loggers, runs
from shamisa.training.config import Config


def test_scalars_are_flat():
    record = {"step": 3, "lr": 0.5, "loss": {"total": 1.0}, "timing": {"split": {"data": 2.0}}, "grad_norm": None}
    assert loggers.scalars(record) == {"lr": 0.5, "loss/total": 1.0, "timing/split/data": 2.0}


def run_of(tmp_path, **fields):
    trainer, run = train.prepare(Config(**(TINY | fields)), tmp_path / "run", quiet=True)
    return trainer, run


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer, run = run_of(tmp_path, steps=4)
    trainer.fit(run, stop=lambda: trainer.step == 3)
    latest = run.checkpoints / "latest"
    latest.write_text("step-00000002\n")  # as if it had been killed before the last checkpoint
    trainer, run = train.prepare(trainer.config, resume=run.path, quiet=True)
    assert trainer.step == 2
    trainer.fit(run)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss/total")]
    expected = [(r["step"], r["loss"]["total"]) for r in run.records()]
    assert [s for s, _ in found] == [s for s, _ in expected] == [0, 1, 2, 3]
    torch.testing.assert_close([v for _, v in found], [v for _, v in expected])


def test_without_tensorboard_there_is_a_note(tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def absent(name, *rest):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *rest)

    run = runs.Run.create(tmp_path / "run", {})
    monkeypatch.setattr(builtins, "__import__", absent)
    found = loggers.open_loggers(run, Config(), 0)
    found[0].close()
    assert len(found) == 1 and "pip install tensorboard" in caplog.text
    caplog.clear()
    found = loggers.open_loggers(run, Config(tensorboard=False), 0)
    found[0].close()
    assert len(found) == 1 and not caplog.text


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer, run = run_of(tmp_path, steps=2, wandb="shamisa-test", tensorboard=False)
    assert trainer.fit(run) == "finished"
    identity = runs.read_json(run.path / "wandb.json")
    assert identity["project"] == "shamisa-test"
    written = list((run.path / "wandb").glob(f"offline-run-*-{identity['id']}/*.wandb"))
    assert written and written[0].stat().st_size > 100


def test_wandb_is_asked_for_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    assert train.main(["--wandb", "project", "--out", str(tmp_path / "run")]) == 2
    assert "pip install wandb" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_wandb_that_refuses_leaves_nothing(tmp_path, monkeypatch, capsys):
    """No key, no network, no right: told before any work; a new folder is gone, an old run is as it was."""
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.CommError("error 401:\n  not logged in.")

    words = [*flags(**(TINY | {"tensorboard": False, "demo": False})), "--quiet"]
    stopped = tmp_path / "stopped"
    assert train.main([*words, "--steps", "2", "--out", str(stopped)]) == 0
    monkeypatch.setattr(wandb, "init", refuse)
    expected = "wandb = 'p' must be a project that can be written to, got: error 401: not logged in; WANDB_MODE=offline"
    assert train.main([*words, "--wandb", "p", "--out", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    assert train.main([*words, "--wandb", "p", "--out", str(tmp_path / "empty")]) == 2
    assert not list((tmp_path / "empty").iterdir())
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and p.name != runs.LOCK}
    assert train.main(["--resume", str(stopped), "--steps", "3", "--wandb", "p", "--quiet"]) == 2
    assert expected in capsys.readouterr().err
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file() and p.name != runs.LOCK} == before
