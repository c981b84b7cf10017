"""The trainer: bad input, determinism, exact resume (also after kill -9), NaN, signals, outputs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from shamisa import train
from shamisa.networks import checkpoints
from shamisa.networks.models import Encoder
from shamisa.relations import TERMS
from shamisa.training import config as configuration
from shamisa.training import embeddings, runs
from shamisa.training.config import Config

TINY = {
    "crop": 32,
    "batch": 1,
    "compositions": 2,
    "levels": 2,
    "hidden": 16,
    "embedding": 8,
    "anchors": 4,
    "neighbors": 5,
    "max_distortions": 2,
    "distortions": ("brighten", "white_noise", "linear_contrast_down"),
    "encoder": "shamisa/small",
    "init": "none",
    "workers": 0,
    "steps": 6,
    "rank_every": 2,
    "check_every": 0,
    "checkpoint_every": 2,
    "threads": 1,
    "device": "cpu",
}


def tiny(photos, **fields) -> Config:
    return Config(refs=str(photos), **(TINY | fields))


def flags(**fields) -> list[str]:
    """Fields as a command line."""
    words = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def run_once(config, out, resume=None):
    trainer, run = train.prepare(config, out, resume, quiet=True)
    return train.execute(trainer, run), run, trainer


def metrics(run) -> list[dict]:
    """Records of the steps without the times."""
    return [{k: v for k, v in r.items() if k != "timing"} for r in run.records()]


# ---- bad input, before any work --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"refs": "/no/such/folder"},
            "refs must be a folder, a list file, shards or 'embedded', got '/no/such/folder'",
        ),
        ({"refs": ""}, "refs must be a folder, a list file, shards or 'embedded', got nothing"),
        ({"refs": "EMPTY"}, "must hold photographs"),
        ({"device": "cuda:99"}, "device cuda:99 is not there"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (
            {"distortions": ("color_block", "non_eccentricity_patch")},
            "crop must be at least 48 pixels for non_eccentricity_patch, got 32",
        ),
        ({"init": "/no/weights.safetensors"}, "init must be imagenet, none or a file"),
        ({"init": "imagenet"}, "there are no ImageNet weights of it"),
        ({"encoder": "torchvision/resnet51"}, "torchvision"),
        ({"preset": "paper"}, "crop"),
    ],
)
def test_bad_input_makes_no_folder(fields, message, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    fields = {k: str(tmp_path / "empty") if v == "EMPTY" else v for k, v in fields.items()}
    if "preset" in fields:  # a crop too small for all distortions, whatever the preset
        words = ["--preset", "paper", *flags(refs=str(photos), init="none", crop=40)]
    else:
        words = flags(**({"refs": str(photos)} | TINY | fields))
    assert train.main([*words, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_bad_input(photos, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("RANK", "3")  # alone, without WORLD_SIZE, it means nothing
    words = flags(**({"refs": str(photos)} | TINY))
    assert train.main([*words, "--out", str(tmp_path / "file" / "run"), "--quiet"]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_native_backend_is_asked_for_before_any_work(photos, tmp_path, capsys):
    if "cpu" in __import__("shamisa").backends()["distort"]:
        pytest.skip("the native kernels are there")
    words = flags(**({"refs": str(photos), "backend": "native"} | TINY))
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "backend='native' needs the compiled kernels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- a run -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    """(run, trainer) of six uninterrupted steps."""
    status, run, trainer = run_once(tiny(photos), tmp_path_factory.mktemp("runs") / "unbroken")
    assert status == "finished"
    return run, trainer


def test_run_folder_is_complete(unbroken, photos):
    run, trainer = unbroken
    assert run.status() == {"status": "finished", "step": 6, "message": ""}
    first = json.loads(run.metrics.read_text().splitlines()[0])
    assert first == runs.read_json(run.path / "config.json")
    assert (
        configuration.from_record(first["config"]) == tiny(photos)
        and first["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert checkpoints.find_checkpoint(run.path).index["header"] == first
    records = run.records()
    assert [r["step"] for r in records] == list(range(6))
    for r in records:
        assert set(r["loss"]) == set(TERMS) and r["grad_norm"] > 0
        assert set(r["timing"]["split"]) == {"data", "distortions", "encoder", "loss", "backward", "optimizer"}
        for key in ("rank_z", "rank_h", "spread_z", "spread_h"):
            assert (key in r) == (r["step"] % 2 == 0)
    for name in ("curves.png", "contact_sheet.png", "embeddings.png", "times.png"):
        with Image.open(run.path / name) as picture:
            assert min(picture.size) > 100
    weights = [Encoder("shamisa/small").state_dict(), checkpoints.load_encoder(run.path).state_dict()]
    assert weights[0].keys() == weights[1].keys()
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step-00000004", "step-00000006"]


def test_training_changes_all_parts_but_the_detached_aggregator(unbroken):
    _, trainer = unbroken
    fresh = train.Learner(trainer.config).state_dict()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, fresh[key]) == ("aggregator" in key), key


def test_equal_seeds_give_equal_metrics(unbroken, photos, tmp_path):
    _, again, _ = run_once(tiny(photos), tmp_path / "again")
    assert metrics(again) == metrics(unbroken[0])
    _, other, _ = run_once(tiny(photos, seed=1, steps=1), tmp_path / "other")
    assert metrics(other)[0] != metrics(unbroken[0])[0]


def test_a_command_of_a_run_folder_is_not_run_unasked():
    saved = Config(refs="pipe:cat x.tar")
    with pytest.raises(
        ValueError, match="refs of this run is a command: name it again to run it, --refs 'pipe:cat x.tar'"
    ):
        configuration.resume(saved, {})
    assert configuration.resume(saved, {"refs": "pipe:cat x.tar"}) == saved


def test_out_of_memory_is_told_with_what_to_do(photos, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(train.Trainer, "_eager_step", full)
    assert train.main([*map(str, ("--refs", photos, "--out", tmp_path / "run", "--steps", 2, "--quiet"))]) == 1
    words = capsys.readouterr().err
    assert "step 0: CUDA out of memory; a smaller --batch with --accumulate" in words and "Tried" not in words


def test_resume_in_process_equals_unbroken(unbroken, photos, tmp_path):
    config = tiny(photos)
    trainer, run = train.prepare(config, tmp_path / "run", quiet=True)
    assert trainer.fit(run, stop=lambda: trainer.step == 3) == "interrupted"  # a checkpoint outside the regular ones
    status, run, resumed = run_once(config, None, resume=run.path)
    assert status == "finished" and metrics(run) == metrics(unbroken[0])
    for key, value in unbroken[1].model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


@pytest.mark.parametrize(
    "fields", [{"optimizer": "adamw", "lr": 1e-3}, {"precision": "bfloat16", "one_pass": True, "clip": 1.0}]
)
def test_other_options_train_and_resume_exactly(fields, photos, tmp_path):
    config = tiny(photos, steps=4, **fields)
    _, whole, _ = run_once(config, tmp_path / "whole")
    trainer, run = train.prepare(config, tmp_path / "run", quiet=True)
    trainer.fit(run, stop=lambda: trainer.step == 2)
    _, run, _ = run_once(config, None, resume=run.path)
    assert metrics(run) == metrics(whole) and len(metrics(run)) == 4


def test_the_best_checkpoint_is_that_of_the_checks(photos, tmp_path):
    config = tiny(photos, check_every=2, best_window=3, checkpoint_every=2, keep=9)
    trainer, run = train.prepare(config, tmp_path / "run", quiet=True)
    trainer.fit(run, stop=lambda: trainer.step == 4)
    _, run, _ = run_once(config, None, resume=run.path)  # a resumed run knows the checks before
    checks = {c["step"]: c["srcc"] for c in run.checks()}
    assert list(checks) == [0, 2, 4, 6]
    scores = {}
    for step in (2, 4, 6):
        scores[step] = runs.read_json(run.checkpoints / f"step-{step:08d}" / "state.json")["score"]
        assert scores[step] == pytest.approx((checks[step] + checks[step - 2]) / 2)
    assert run.best().name == f"step-{max(scores, key=scores.get):08d}"


def start(config, out, photos):
    fields = configuration.to_record(tiny(photos, **config)) | {"distortions": TINY["distortions"]}
    fields["graphs"] = tuple(fields["graphs"])
    words = [sys.executable, "-m", "shamisa.train", *flags(**fields), *out, "--quiet"]
    path = os.pathsep.join([str(Path(train.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_steps(run: Path, steps: int, process) -> None:
    limit = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or (run / "metrics.jsonl").read_text().count('"step"') < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_kill_and_resume_equals_unbroken(photos, tmp_path):
    fields = {"steps": 24, "checkpoint_every": 5}
    _, whole, _ = run_once(tiny(photos, **fields), tmp_path / "whole")
    process = start(fields, ["--out", str(tmp_path / "run")], photos)
    wait_for_steps(tmp_path / "run", 12, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    broken = runs.Run.open(tmp_path / "run")
    assert broken.status()["status"] == "running"  # and not "finished"
    assert checkpoints.find_checkpoint(broken.path).step >= 5
    status, run, _ = run_once(tiny(photos, **fields), None, resume=broken.path)
    assert status == "finished" and len(metrics(run)) == 24
    assert metrics(run) == metrics(whole)


def test_sigterm_saves_and_ends(photos, tmp_path):
    process = start({"steps": 100000, "checkpoint_every": 0}, ["--out", str(tmp_path / "run")], photos)
    wait_for_steps(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    run = runs.Run.open(tmp_path / "run")
    status = run.status()
    assert status["status"] == "interrupted" and "SIGTERM" in status["message"]
    assert checkpoints.find_checkpoint(run.path).step == status["step"] == len(run.records()) >= 3


def test_nan_stops_with_step_term_and_good_checkpoint(photos, tmp_path, capsys):
    words = flags(
        **({"refs": str(photos)} | TINY | {"lr": 1e30, "schedule": "constant", "steps": 20, "checkpoint_every": 0})
    )
    assert train.main([*words, "--out", str(tmp_path / "run"), "--quiet"]) == 1
    message = capsys.readouterr().err
    run = runs.Run.open(tmp_path / "run")
    step = run.status()["step"]
    assert run.status()["status"] == "failed"
    assert f"step {step}: " in message and " is " in message and "step-" in message
    assert [r["step"] for r in run.records()] == list(range(step))
    checkpoint = checkpoints.find_checkpoint(run.path)
    assert checkpoint.step == step
    for key, value in checkpoint.model_tensors().items():
        assert bool(value.isfinite().all()), key
    assert not (run.path / "curves.png").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_values_that_are_looked_at_later_say_the_same(optimizer, photos, tmp_path):
    """As on a GPU, where a look waits for it: the same records, and the state before a bad step although steps followed."""
    config = tiny(photos, optimizer=optimizer, steps=6, checkpoint_every=4)
    found = []
    for every in (1, 3):
        trainer, run = train.prepare(config, tmp_path / f"run-{every}", quiet=True)
        trainer.fetch_every = every
        assert trainer.fit(run) == "finished"
        found.append((metrics(run), trainer.model.state_dict()))
    assert found[0][0] == found[1][0] and len(found[0][0]) == 6
    for key, value in found[0][1].items():
        assert torch.equal(value, found[1][1][key]), key

    states = []
    for every in (1, 3):
        trainer, run = train.prepare(config, tmp_path / f"bad-{every}", quiet=True)
        trainer.fetch_every, forward, begun = every, trainer.forward, []

        def spoiled(*words, forward=forward, begun=begun):
            begun.append(1)
            out, z, h = forward(*words)
            return dataclasses.replace(out, total=out.total * torch.nan) if len(begun) == 3 else out, z, h

        trainer.forward = spoiled
        with pytest.raises(train.TrainingError, match="step 2: total is nan.*the state before this step is in .*0002"):
            trainer.fit(run)
        assert len(begun) == (3 if every == 1 else 4) and trainer.step == 2 and len(run.records()) == 2
        states.append(checkpoints.find_checkpoint(run.path))
    for a, b in ((s.model_tensors(), s.state_tensors()) for s in states[:1]):
        for key, value in {**a, **b}.items():
            assert torch.equal({**states[1].model_tensors(), **states[1].state_tensors()}[key], value), key


def test_a_run_that_is_being_trained_is_left_alone(unbroken, photos, tmp_path):
    """Another process holds its lock; what was killed holds none, and run.json alone cannot tell them apart."""
    run = runs.Run.create(tmp_path / "run", {})
    run.release()
    holder = "import sys, time; from pathlib import Path; from shamisa.training import runs; run = runs.Run(Path(sys.argv[1])); "
    holder += "run.claim(); print('held', flush=True); time.sleep(60)"
    path = os.pathsep.join([str(Path(train.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", holder, str(run.path)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert run.claimed()
        with pytest.raises(runs.RunError, match=f"is being trained by process {process.pid} on "):
            run.claim()
        with pytest.raises(runs.RunError, match="holds a run that is being trained"):
            runs.Run.check_new(run.path)
        process.kill()
    assert not run.claimed()
    with pytest.raises(runs.RunError, match="holds a run that was killed"):
        runs.Run.check_new(run.path)
    run.claim()


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
)
def test_full_disk_keeps_the_last_checkpoint(error, photos, tmp_path, monkeypatch):
    trainer, run = train.prepare(tiny(photos), tmp_path / "run", quiet=True)
    real = runs.save_file

    def full_at_4(tensors, path, **options):
        if trainer.step >= 4:
            raise error
        real(tensors, path, **options)

    monkeypatch.setattr(runs, "save_file", full_at_4)
    with pytest.raises(train.TrainingError, match=r"step 4: .*No space left.*last good checkpoint: .*step-00000002"):
        train.execute(trainer, run)
    assert run.status()["status"] == "failed"
    monkeypatch.undo()
    status, _, _ = run_once(tiny(photos), None, resume=run.path)
    assert status == "finished"


def test_unreadable_photographs_are_named(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in photos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.png").write_bytes(b"not a photograph")
    _, run, _ = run_once(tiny(folder), tmp_path / "run")
    skipped = [json.loads(line) for line in (run.path / "skipped.jsonl").read_text().splitlines()]
    assert [s["name"] for s in skipped] == ["broken.png"] and skipped[0]["reason"]
    assert f"photographs that could not be used: 1, see {run.path / 'skipped.jsonl'}" in capsys.readouterr().err


def test_too_many_unreadable_photographs_fail_the_run(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(b"not a photograph")
    trainer, run = train.prepare(tiny(folder), tmp_path / "run", quiet=True)
    with pytest.raises(train.TrainingError, match="step 0: no .*photograph.*last good checkpoint: none yet"):
        train.execute(trainer, run)
    assert run.status()["status"] == "failed"


def test_resume_refuses_what_does_not_fit(unbroken, photos, tmp_path, capsys):
    run = unbroken[0]
    with pytest.raises(ValueError, match="seed of a resumed run must stay 0, got 5"):
        train.prepare(tiny(photos, seed=5), resume=run.path)
    for words, message in (
        (["--resume", str(run.path), "--lr", "1"], "lr of a resumed run must stay"),
        (["--resume", str(run.path), "--steps", "2"], "steps must be at least the 6"),
        (["--resume", str(run.path)], "which finished all 6"),
        (["--resume", str(run.path), "--preset", "demo"], "cannot be combined with --preset, --out"),
        (["--resume", str(tmp_path)], "must be a run folder"),
        (["--out", str(run.path), *flags(refs=str(photos), **TINY)], "holds a run that is finished"),
    ):
        before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
        assert train.main([*words, "--quiet"]) == 2
        assert message in capsys.readouterr().err
        assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_init_from_the_checkpoint_of_a_run(unbroken, photos):
    file = unbroken[0].latest() / "model.safetensors"
    encoder = train.Learner(tiny(photos, init=str(file))).encoder
    for key, value in unbroken[1].model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[key], value)


def test_effective_rank_of_known_spectra():
    assert embeddings.effective_rank(
        torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, 8)
    ) == pytest.approx(1, abs=1e-3)
    q = torch.linalg.qr(torch.randn(64, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    q = torch.linalg.qr(q - q.mean(0))[0][:, :8]
    assert embeddings.effective_rank(q) == pytest.approx(8, rel=1e-3)
