"""Training in two processes (gloo): equal to one process, exact resume, other numbers of processes, nobody left hanging."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train import TINY, flags, metrics
from torch import nn
from torch.testing import assert_close

from shamisa import train
from shamisa.networks import checkpoints
from shamisa.networks.devices import choose_device
from shamisa.relations import RelationOptions
from shamisa.training import config as configuration
from shamisa.training import runs
from shamisa.training.config import Config
from shamisa.training.learner import Learner
from shamisa.training.parallel import Processes, SharedBatchNorm

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
ONE_BATCH = {"gather": True, "sync_bn": True}  # the processes are to be as one
# With ten times this rate, rounding that flips one edge of a graph grows to 1e-2 within six steps: between one process and two
# just as between two memory layouts of one process.
LR = 1e-3
LIMIT = 120  # seconds that a test waits for the processes


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_rank(rank: int, world: int, port: int, words: list[str], log: str) -> None:
    """A process that torchrun would have started."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(log, "w", buffering=1) as file:
        sys.stderr = sys.stdout = file
        code = run_alone(words)
    os._exit(code)  # without a farewell to processes that are gone


def run_alone(words: list[str]) -> int:
    """The command without the pictures at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finish", lambda trainer, run: None)
        return train.main(words)


def start(words: list[str], folder: Path, world: int = 2) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shamisa.train"])  # imported once for all processes of this file
    port = free_port()
    folder.mkdir(exist_ok=True)
    made = [
        context.Process(target=run_rank, args=(r, world, port, words, str(folder / f"log-{r}"))) for r in range(world)
    ]
    for process in made:
        process.start()
    return made


def finish(made: list[multiprocessing.Process], limit: float = LIMIT) -> list[int | None]:
    """Exit codes; processes that do not end are killed, and have None."""
    end = time.monotonic() + limit
    for process in made:
        process.join(max(0.0, end - time.monotonic()))
    codes = [p.exitcode for p in made]
    for process in made:
        process.kill()
    return codes


def words(photos, **fields) -> list[str]:
    return flags(
        **(
            {"refs": str(photos), "optimizer": "sgd", "schedule": "constant", "tensorboard": False, "demo": False}
            | TINY
            | fields
        )
    ) + ["--quiet"]


def logs(folder: Path) -> str:
    return "\n".join(p.read_text() for p in sorted(folder.glob("log-*")))


def run_two(arguments: list[str], folder: Path) -> None:
    assert finish(start(arguments, folder)) == [0, 0], logs(folder)


@pytest.fixture(scope="module")
def one(photos, tmp_path_factory):
    """The run folder of one process with batch 2."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert run_alone([*words(photos, batch=2, lr=LR), "--out", str(out)]) == 0
    return runs.Run.open(out)


@pytest.fixture(scope="module")
def two(photos, tmp_path_factory):
    """The run folder of two processes with batch 1 each, on the same global batch."""
    folder = tmp_path_factory.mktemp("two")
    run_two([*words(photos, lr=LR, **ONE_BATCH), "--out", str(folder / "run")], folder)
    return runs.Run.open(folder / "run")


def assert_runs_close(a: runs.Run, b: runs.Run) -> None:
    """Metrics and final weights to float32 tolerance."""
    for x, y in zip(metrics(a), metrics(b), strict=True):
        assert_close(x["loss"], y["loss"], rtol=1e-4, atol=1e-5)
        assert_close(x["grad_norm"], y["grad_norm"], rtol=1e-4, atol=1e-5)
        assert (x["step"], x["epoch"], x["lr"]) == (y["step"], y["epoch"], y["lr"])
    weights = [checkpoints.find_checkpoint(r.path).model_tensors() for r in (a, b)]
    for key, value in weights[0].items():
        assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


# ---- the same as one process -----------------------------------------------------------------------------------------
def test_two_processes_equal_one(one, two):
    assert_runs_close(one, two)
    assert two.status() == {"status": "finished", "step": 6, "message": ""}
    assert runs.read_json(two.path / "config.json")["processes"] == 2
    last = checkpoints.find_checkpoint(one.path).model_tensors()
    fresh = dict(Learner(Config(**(TINY | {"batch": 2}))).named_parameters())
    moved = [float((last[k] - fresh[k].detach()).abs().max()) for k in fresh]
    assert max(moved) > 0.002  # much further than the tolerance


def test_the_comparison_can_fail(photos, one, tmp_path):
    """Without gather and shared batch normalisation two processes train otherwise."""
    run_two([*words(photos, lr=LR, steps=2), "--out", str(tmp_path / "run")], tmp_path)
    other = runs.Run.open(tmp_path / "run")
    with pytest.raises(AssertionError):
        assert_close(metrics(other)[0]["loss"]["total"], metrics(one)[0]["loss"]["total"], rtol=1e-4, atol=1e-5)


def test_two_processes_accumulate_as_one(photos, tmp_path):
    fields = {"accumulate": 2, "steps": 3, "lr": LR}
    assert run_alone([*words(photos, batch=2, **fields), "--out", str(tmp_path / "one")]) == 0
    run_two([*words(photos, **fields, **ONE_BATCH), "--out", str(tmp_path / "two")], tmp_path)
    assert_runs_close(runs.Run.open(tmp_path / "one"), runs.Run.open(tmp_path / "two"))


# ---- resume ----------------------------------------------------------------------------------------------------------
def test_resumed_run_equals_unbroken_and_may_change_processes(photos, one, two, tmp_path):
    out = tmp_path / "run"
    run_two([*words(photos, lr=LR, steps=3, **ONE_BATCH), "--out", str(out)], tmp_path)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", out, copy], check=True)
    run_two(["--resume", str(out), "--steps", "6", "--quiet"], tmp_path)
    resumed = runs.Run.open(out)
    assert metrics(resumed) == metrics(two)  # bit for bit
    for key, value in checkpoints.find_checkpoint(two.path).model_tensors().items():
        assert torch.equal(checkpoints.find_checkpoint(out).model_tensors()[key], value), key
    # one process goes on where two stopped: the same samples, so the same training
    assert run_alone(["--resume", str(copy), "--steps", "6", "--quiet"]) == 0
    assert_runs_close(runs.Run.open(copy), one)
    assert checkpoints.find_checkpoint(copy).index["header"]["config"]["batch"] == 2


@pytest.mark.parametrize(
    ("given", "world", "batch"),
    [({}, 2, 4), ({}, 4, 2), ({}, 1, 8), ({"accumulate": 2}, 2, 2), ({"batch": 1, "accumulate": 4}, 2, 1)],
)
def test_batch_follows_the_number_of_processes(given, world, batch):
    saved = Config(batch=4, seed=3)
    found = configuration.resume(saved, given, world, saved_world=2)
    assert (found.batch, found.seed) == (batch, 3)


@pytest.mark.parametrize(("given", "world"), [({"batch": 4}, 1), ({}, 3), ({"accumulate": 3}, 2), ({"batch": 5}, 2)])
def test_another_global_batch_is_refused(given, world):
    with pytest.raises(ValueError, match="processes of a resumed run must stay 4 x 1 x 2 = 8 samples per step, got"):
        configuration.resume(Config(batch=4), given, world, saved_world=2)


def test_samples_do_not_depend_on_how_a_batch_is_split(photos):
    """Crops and plans of 1 x 4 samples = 2 processes x 1 batch x 2 parts, in this order: part, process, sample."""

    def trainer(rank, world, **fields):
        processes = Processes()
        processes.rank, processes.world_size = rank, world
        made = train.Trainer(Config(refs=str(photos), **(TINY | fields)), True, processes)
        made.step = 5
        return made

    whole = trainer(0, 1, batch=4)
    plan, crops = whole.plan(), next(whole.loader(6))[1]
    ranks = [trainer(r, 2, batch=1, accumulate=2) for r in range(2)]
    loaders = [t.loader(6) for t in ranks]
    for part in range(2):
        for rank in range(2):
            sample = slice(part * 2 + rank, part * 2 + rank + 1)
            found = ranks[rank].plan(part)
            assert torch.equal(found.severity, plan.severity[sample]) and torch.equal(found.key, plan.key[sample])
            assert torch.equal(next(loaders[rank])[1], crops[sample])
    assert whole.steps_per_epoch == ranks[0].steps_per_epoch == 2 and whole.images() == ranks[0].images()


# ---- nobody hangs ----------------------------------------------------------------------------------------------------
def test_skipped_photographs_of_all_processes_are_noted(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in photos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for i in range(3):
        (folder / f"broken-{i}.png").write_bytes(b"not a photograph")
    run_two([*words(folder, steps=4), "--out", str(tmp_path / "run")], tmp_path)
    skipped = [json.loads(line)["name"] for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(set(skipped)) == [f"broken-{i}.png" for i in range(3)]


def test_what_stops_one_process_stops_both(photos, tmp_path):
    """A signal to the second process only: both end after the same step, with a checkpoint."""
    out = tmp_path / "run"
    made = start([*words(photos, steps=10**6, checkpoint_every=0), "--out", str(out)], tmp_path)
    wait_for(out, 3, made)
    os.kill(made[1].pid, signal.SIGTERM)
    assert finish(made) == [128 + signal.SIGTERM] * 2, logs(tmp_path)
    run = runs.Run.open(out)
    assert run.status()["status"] == "interrupted"
    assert checkpoints.find_checkpoint(out).step == run.status()["step"] == len(run.records()) >= 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_other(how, photos, tmp_path):
    out = tmp_path / "run"
    made = start([*words(photos, steps=10**6, checkpoint_every=1, timeout=5), "--out", str(out)], tmp_path)
    wait_for(out, 3, made)
    os.kill(made[1].pid, how)
    made[0].join(60)
    code = made[0].exitcode
    finish(made, 0)
    assert code == 1, logs(tmp_path)
    assert "another process ended or did not answer within 5 s" in (tmp_path / "log-0").read_text()
    run = runs.Run.open(out)
    assert run.status()["status"] == "failed" and checkpoints.find_checkpoint(out).step >= 2


def test_nan_stops_both(photos, tmp_path):
    arguments = words(photos, lr=1e30, schedule="constant", steps=20, checkpoint_every=0)
    assert finish(start([*arguments, "--out", str(tmp_path / "run")], tmp_path)) == [1, 1], logs(tmp_path)
    run = runs.Run.open(tmp_path / "run")
    assert run.status()["status"] == "failed" and " is " in (tmp_path / "log-0").read_text()
    assert checkpoints.find_checkpoint(run.path).step == run.status()["step"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"refs": "/no/such/folder"}, "/no/such/folder"), ({"refs": "EMPTY"}, "photograph"), ({"out": "taken"}, "holds")],
)
def test_bad_input_ends_both_before_any_work(fields, message, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    refs = {"EMPTY": str(tmp_path / "empty")}.get(fields.get("refs"), fields.get("refs", str(photos)))
    out = tmp_path / fields.get("out", "run")
    assert finish(start([*words(refs), "--out", str(out)], tmp_path)) == [2, 2], logs(tmp_path)
    assert message in (tmp_path / "log-0").read_text() and not (tmp_path / "log-1").read_text()
    assert not (tmp_path / "run").exists()


def wait_for(out: Path, steps: int, made: list) -> None:
    limit = time.monotonic() + LIMIT
    while not (out / "metrics.jsonl").is_file() or (out / "metrics.jsonl").read_text().count('"step"') < steps:
        assert all(p.is_alive() for p in made) and time.monotonic() < limit, logs(out.parent)
        time.sleep(0.01)


def torchrun_environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(train.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_torchrun(photos, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = words(photos, steps=2, **ONE_BATCH)
    done = subprocess.run(
        [*command, "shamisa.train", *arguments, "--out", str(tmp_path / "run")],
        env=torchrun_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: ") == 1  # one process speaks
    assert len(metrics(runs.Run.open(tmp_path / "run"))) == 2


def test_sigterm_to_torchrun_saves(photos, tmp_path):
    """torchrun passes the signal on to whole process groups, the loader processes included."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = words(photos, steps=10**6, workers=1, checkpoint_every=0)
    process = subprocess.Popen(
        [*command, "shamisa.train", *arguments, "--out", str(tmp_path / "run")],
        env=torchrun_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + LIMIT
    metrics_file = tmp_path / "run" / "metrics.jsonl"
    while not metrics_file.is_file() or metrics_file.read_text().count('"step"') < 5:
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=LIMIT)[1]
    run = runs.Run.open(tmp_path / "run")
    assert run.status()["status"] == "interrupted", err
    assert checkpoints.find_checkpoint(run.path).step == run.status()["step"] == len(run.records()) >= 5


THREADS_AFTER_CLOSE = """
import os, time
from shamisa.training.parallel import Processes

def wait_for_gloo(there):
    # a new thread has its name, and an ended one is gone, only after a while
    limit = time.monotonic() + 60
    while True:
        try:
            names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
        except OSError:  # one ended meanwhile
            continue
        if any("gloo" in name for name in names) == there:
            return
        assert time.monotonic() < limit, names
        time.sleep(0.01)

processes = Processes.connect("cpu", 60)
wait_for_gloo(True)
processes.close()
wait_for_gloo(False)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
def test_no_thread_outlives_the_group():
    """One that did would end the process with SIGABRT whenever it met the interpreter's end."""
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    subprocess.run([sys.executable, "-c", THREADS_AFTER_CLOSE], env=torchrun_environment() | environment, check=True)


# ---- pieces ----------------------------------------------------------------------------------------------------------
def test_one_process_needs_no_torchrun(photos, tmp_path):
    """--gather and --sync-bn with one process are the identity."""
    assert run_alone([*words(photos, steps=2, **ONE_BATCH), "--out", str(tmp_path / "a")]) == 0
    assert run_alone([*words(photos, steps=2), "--out", str(tmp_path / "b")]) == 0
    assert metrics(runs.Run.open(tmp_path / "a")) == metrics(runs.Run.open(tmp_path / "b"))


def test_shared_batch_norm_is_batch_norm(tmp_path):
    """In one process: output, gradients and running statistics of torch's."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        usual, shared = nn.BatchNorm2d(3, momentum=0.3), SharedBatchNorm(3, momentum=0.3)
        for norm in (usual, shared):
            nn.init.constant_(norm.weight, 1.7)
            nn.init.constant_(norm.bias, 0.4)
        x = 5 + 2 * torch.randn(4, 3, 6, 5)
        found = []
        for norm in (usual, shared):
            leaf = x.clone().requires_grad_()
            (norm(leaf) * torch.arange(5)).square().sum().backward()
            found.append([leaf.grad, norm.weight.grad, norm.bias.grad, *norm.buffers(), norm.eval()(x)])
        for a, b in zip(*found, strict=True):
            assert_close(b, a, rtol=1e-4, atol=1e-3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"aggregation": "trained"},
        {"alignment": False},
        {"alignment": False, "graphs": ("knn", "ref_ref")},
        {"alignment": False, "binary": True},
        {"aggregation": "trained", "graphs": ("knn",), "regularizer": "off"},
    ],
)
def test_exactly_what_can_learn_takes_part(fields, photos):
    """Parameters that get no gradient are those that are left out of averaging: otherwise the processes would wait."""
    trainer = train.Trainer(Config(refs=str(photos), **(TINY | fields)), True)
    plan = trainer.plan()
    trainer.forward(trainer.references.batch(0)[0], plan)[0].total.backward()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_every_choice_of_the_objective_is_a_field():
    names = {f.name for f in dataclasses.fields(RelationOptions)}
    assert names - {"check_finite"} == set(Config().loss_options())  # the trainer stops at NaN without waiting for it


def test_names_of_photographs_are_no_lost_process(photos, tmp_path, monkeypatch):
    trainer, run = train.prepare(
        Config(refs=str(photos), **(TINY | {"tensorboard": False})), tmp_path / "run", quiet=True
    )
    trainer.processes.world_size = 2
    monkeypatch.setattr(trainer, "read", lambda loader, stop: ([], {}, "igloo.png: is empty"))
    with pytest.raises(train.TrainingError, match="step 0: igloo.png: is empty; last good"):
        trainer.fit(run)


def test_devices_of_several_processes():
    assert choose_device("cpu", 99).type == "cpu"
    with pytest.raises(ValueError, match="of several processes must be auto, cpu or cuda, got 'cuda:1'"):
        choose_device("cuda:1", 99)
    with pytest.raises(ValueError, match="device cuda:99 is not there"):
        choose_device("cuda", 99)
    for name in ("gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", ""):
        with pytest.raises(ValueError, match=f"device must be auto, cpu, cuda or cuda:N, got '{name}'"):
            choose_device(name)


def test_one_process_of_torchrun_is_as_one_without(photos, tmp_path):
    """No wrapper, no reductions: equal bits, and a step that a CUDA graph could hold."""
    arguments = words(photos, steps=3)
    assert finish(start([*arguments, "--out", str(tmp_path / "a")], tmp_path, world=1)) == [0], logs(tmp_path)
    assert run_alone([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert metrics(runs.Run.open(tmp_path / "a")) == metrics(runs.Run.open(tmp_path / "b"))
