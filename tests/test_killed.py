"""kill -9 at random moments and inside checkpoint writes: nothing is lost but the steps since the last checkpoint.

SHAMISA_KILLS says how often (default 4).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_train import TINY, metrics

from shamisa import train
from shamisa.networks import checkpoints
from shamisa.training import runs
from shamisa.training.config import Config

KILLS = int(os.environ.get("SHAMISA_KILLS", "4"))
EVERY = 3  # steps between checkpoints


def go_on(config: Config, out: str, quick: bool) -> None:
    """What `python -m shamisa.train` does, without the pictures at the end."""
    if quick:
        train.finish = lambda trainer, run: None
    resume = Path(out) if (Path(out) / "config.json").is_file() else None
    trainer, run = train.prepare(config, None if resume else Path(out), resume, quiet=True)
    os._exit(0 if train.execute(trainer, run) == "finished" else 1)


def launch(config: Config, out: Path) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shamisa.train"])
    process = context.Process(target=go_on, args=(config, str(out), True))
    process.start()
    return process


def steps_written(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count('"step"') if file.is_file() else 0


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    steps = EVERY * (KILLS + 3)
    config = Config(**(TINY | {"steps": steps, "checkpoint_every": EVERY, "keep": 1, "tensorboard": False}))
    trainer, whole = train.prepare(config, tmp_path / "whole", quiet=True)
    assert trainer.fit(whole) == "finished"

    out, rng = tmp_path / "run", random.Random(0)
    before, killed, writing = 0, 0, 0
    while killed < KILLS:
        process = launch(config, out)
        limit = time.monotonic() + 120
        wanted = before + rng.randint(1, 2 * EVERY)
        inside = killed % 2 == 1  # every second one in the middle of a checkpoint
        while process.is_alive() and time.monotonic() < limit:
            if inside and list(out.glob("checkpoint/.step-*")):
                break
            if not inside and steps_written(out) >= min(wanted, steps - 1):
                time.sleep(rng.random() * 0.02)
                break
            time.sleep(0.0002)
        alive = process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if not alive:  # it was done before the moment came
            assert process.exitcode == 0
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
        writing += bool(list(out.glob("checkpoint/.step-*")))
        done = steps_written(out)  # counts a torn line
        latest = runs.Run.open(out).latest()
        before = checkpoints.find_checkpoint(out).step if latest else 0  # verified: sizes and hashes
        assert done - before <= EVERY + 1, (done, before)
        assert runs.Run.open(out).status()["status"] == "running"
    assert killed >= min(KILLS, 3) and writing >= 1
    process = launch(config, out)
    process.join(120)
    assert process.exitcode == 0
    run = runs.Run.open(out)
    assert run.status()["status"] == "finished" and metrics(run) == metrics(whole)
    assert not list(run.checkpoints.glob(".step-*")) and checkpoints.find_checkpoint(out).step == steps
