"""The stopwatch, profiler recordings, NVTX ranges, and the dry run."""

from __future__ import annotations

import json
import time

import pytest
import torch
from test_train import TINY, flags

from shamisa import train
from shamisa.measuring.profiling import PARTS, Recording, Stopwatch
from shamisa.training import dryrun
from shamisa.training.config import Config

CPU = torch.device("cpu")
WORDS = flags(**(TINY | {"demo": False, "tensorboard": False})) + ["--quiet"]


def test_stopwatch_adds_parts_of_one_name():
    watch = Stopwatch(CPU)
    watch.start()
    for name in ("a", "b", "a"):
        watch.begin(name)
        time.sleep(0.01)
    split = watch.read()
    assert list(split) == ["a", "b"] and split["a"] > 0.019 and 0.009 < split["b"]
    watch.start()
    watch.begin("c")
    assert list(watch.read()) == ["c"]  # a new step


def test_nvtx_ranges_are_balanced_and_only_on_demand(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: calls.append(name))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: calls.append("pop"))
    for nvtx in (False, True):
        watch = Stopwatch(CPU, nvtx=nvtx)
        for _ in range(2):
            watch.start()
            watch.begin("data")
            watch.begin("loss")
            watch.read()
    assert calls == ["data", "pop", "loss", "pop"] * 2
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="nvtx needs a torch built with CUDA"):
        Stopwatch(CPU, nvtx=True)


def test_profile_of_a_run(tmp_path, capsys):
    assert train.main([*WORDS, "--profile", "2", "--out", str(tmp_path / "run")]) == 0
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    names = {e.get("name") for e in trace["traceEvents"]}
    assert set(PARTS) <= names and "shamisa::distort" in names
    table = (tmp_path / "run" / "profile" / "ops.txt").read_text()
    assert "Self CPU" in table and "convolution" in table
    assert f"profile: {tmp_path / 'run' / 'profile'}" in capsys.readouterr().err


def test_profile_of_a_run_that_is_too_short_says_so(tmp_path, capsys, caplog):
    with Recording(tmp_path / "profile", 3, CPU) as recording:
        recording.step()
    assert "nothing recorded" in caplog.text and not (tmp_path / "profile").exists()
    assert train.main([*WORDS, "--profile", "-1"]) == 2
    assert "profile must be a number of steps" in capsys.readouterr().err


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main([*WORDS, "--dry-run", "--accumulate", "2", "--steps", "1000"]) == 0
    out = capsys.readouterr().out
    rows = dict(
        line.split(maxsplit=1) if " of " not in line[:18] else (line[:18].strip(), line[19:])
        for line in out.splitlines()
    )
    assert rows["samples of a step"] == "2 = batch 1 x accumulate 2 x processes 1"
    assert rows["images of a step"] == "60, of 32 x 32 pixels" and rows["images in all"[:6]].endswith("60,000")
    assert "of 16 in an epoch" in rows["steps"] and "median of 20 timed steps" in rows["step"]
    assert all(part in rows["split"] for part in PARTS)
    assert not list(tmp_path.iterdir())
    assert train.main(["--dry-run", "--resume", str(tmp_path)]) == 2


def test_interrupted_dry_run_says_so(monkeypatch, capsys):
    def interrupt(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(dryrun, "run", interrupt)
    assert train.main([*WORDS, "--dry-run"]) == 130
    assert capsys.readouterr().err == "shamisa train: interrupted; nothing was written\n"


def test_dry_run_of_slow_steps_times_fewer(monkeypatch, capsys):
    monkeypatch.setattr(dryrun, "SECONDS", 0.0)
    assert train.main([*WORDS, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "median of 1 timed steps" in captured.out and "only 1 of 20 steps" in captured.err


def test_counted_memory():
    trainer = train.Trainer(Config(**TINY), quiet=True)
    rows = dryrun.memory(trainer, 0)
    weights = sum(p.numel() for p in trainer.model.parameters()) * 4 / 1e6
    shares = f"weights {weights:,.1f}, gradients {weights:,.1f}, optimizer {weights:,.1f}"  # the momentum
    assert shares in rows["memory, counted"]
    assert f"images {6 * 5 * 3 * 32 * 32 * 4 / 1e6:,.1f}" in rows["memory, counted"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (3600, "1 h 0 min"), (200000, "2 d 7 h 33 min")])
def test_clock(seconds, text):
    assert dryrun.clock(seconds) == text
