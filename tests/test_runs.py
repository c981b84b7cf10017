"""Run folders: atomic checkpoints, exact round trips, damage that is found, metrics that are not doubled."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import tiny_config

from shamisa.networks import checkpoints
from shamisa.training import runs
from shamisa.training.learner import Learner

HEADER = {"config": {"a": 1}, "versions": {}}


def make_optimizer(kind, model):
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def train_a_little(model, optimizer, steps=2):
    for i in range(steps):
        optimizer.zero_grad()
        h = model.encoder(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)))
        model.projector(h).square().mean().backward()
        optimizer.step()


@pytest.fixture
def saved(tmp_path):
    """(run with one checkpoint at step 2, model, optimizer)."""
    model = Learner(tiny_config())
    optimizer = make_optimizer("sgd", model)
    train_a_little(model, optimizer)
    run = runs.Run.create(tmp_path / "run", HEADER)
    run.save(2, model, optimizer, {"scaler": {}}, keep=2)
    return run, model, optimizer


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_checkpoint_round_trip_is_exact(kind, channels_last, tmp_path):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = Learner(tiny_config()).to(memory_format=layout)
    optimizer = make_optimizer(kind, model)
    train_a_little(model, optimizer)
    run = runs.Run.create(tmp_path / "run", HEADER)
    run.save(2, model, optimizer, {"scaler": {"scale": 0.1}}, keep=1)

    checkpoint = checkpoints.find_checkpoint(run.path)
    assert checkpoint.step == 2 and checkpoint.index["scaler"] == {"scale": 0.1}
    other = Learner(tiny_config(seed=9)).to(memory_format=layout)
    optimizer2 = make_optimizer(kind, other)
    checkpoints.load_matching(other, checkpoint.model_tensors(), "test")
    runs.load_optimizer(other, optimizer2, checkpoint.state_tensors())
    for m, o in ((model, optimizer), (other, optimizer2)):
        train_a_little(m, o)  # goes on alike
    for key, expected in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], expected), key
    conv = other.encoder.network.stages[1][0].weight
    assert conv.is_contiguous(memory_format=layout)


def test_nothing_is_pickled(saved):
    files = [p for p in saved[0].path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".jsonl", ".safetensors", ""}
    assert sorted(p.name for p in files if not p.suffix) == [".lock", "latest"]


def test_load_encoder_from_every_kind_of_path(saved):
    run, model, _ = saved
    step = run.checkpoints / "step-00000002"
    for path in (run.path, run.checkpoints, step, step / "model.safetensors", str(run.path)):
        encoder = checkpoints.load_encoder(path, expect="shamisa/small")
        assert encoder.name == "shamisa/small" and not encoder.training
        for key, expected in model.encoder.state_dict().items():
            assert torch.equal(encoder.state_dict()[key], expected)


def test_keep_drops_the_oldest(saved):
    run, model, optimizer = saved
    for step in (4, 6, 8):
        run.save(step, model, optimizer, {}, keep=2)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest", "step-00000006", "step-00000008"]
    assert checkpoints.find_checkpoint(run.path).step == 8


def test_the_best_is_kept_beside_the_newest(saved):
    run, model, optimizer = saved
    for step, score in ((4, 0.1), (6, 0.9), (8, 0.5), (10, None), (12, 0.7)):
        run.save(step, model, optimizer, {}, keep=2, score=score)
        assert run.best() == {4: run.checkpoints / "step-00000004"}.get(step, run.checkpoints / "step-00000006")
    names = sorted(p.name for p in run.checkpoints.iterdir())
    assert names == ["best", "latest", "step-00000006", "step-00000010", "step-00000012"]
    assert (
        checkpoints.find_checkpoint(run.path).step == 12
        and checkpoints.find_checkpoint(run.checkpoints / "latest").step == 12
    )
    assert checkpoints.find_checkpoint(run.checkpoints / "best").step == 6
    assert checkpoints.load_encoder(run.checkpoints / "best").name == "shamisa/small"
    run.save(14, model, optimizer, {}, keep=1, score=0.9)  # of equal ones the later is the best
    assert sorted(p.name for p in run.checkpoints.glob("step-*")) == ["step-00000014"]
    (run.checkpoints / "best").write_text("step-00000099\n")
    with pytest.raises(runs.RunError, match="best names step-00000099, which is not there"):
        checkpoints.load_encoder(run.checkpoints / "best")


@pytest.mark.parametrize("where", ["model", "state", "index", "rename", "pointer"])
def test_a_failure_while_writing_leaves_the_last_checkpoint(where, saved, monkeypatch):
    run, model, optimizer = saved
    calls = {"save_file": 0}
    real = {
        "save_file": runs.save_file,
        "write_json": runs.write_json,
        "write_text": runs.write_text,
        "replace": runs.os.replace,
    }

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def save(tensors, path, **options):
        calls["save_file"] += 1
        if calls["save_file"] == {"model": 1, "state": 2}[where]:
            path.write_bytes(b"half")
            full()
        real["save_file"](tensors, path, **options)

    def rename(a, b):
        if "step-" in str(a) and b.name.startswith("step-"):
            full()
        real["replace"](a, b)

    if where in ("model", "state"):
        monkeypatch.setattr(runs, "save_file", save)
    elif where == "index":
        monkeypatch.setattr(runs, "write_json", full)
    elif where == "pointer":
        monkeypatch.setattr(runs, "write_text", lambda p, t: full() if p.name == "latest" else real["write_text"](p, t))
    else:
        monkeypatch.setattr(runs.os, "replace", rename)
    with pytest.raises(OSError, match="No space left"):
        run.save(4, model, optimizer, {}, keep=2)
    monkeypatch.undo()
    assert checkpoints.find_checkpoint(run.path).step == 2  # intact
    assert not list(run.checkpoints.glob(".step-*"))  # and nothing half-written is left
    run.save(4, model, optimizer, {}, keep=2)
    assert checkpoints.find_checkpoint(run.path).step == 4


def test_leftovers_of_a_killed_process_are_removed(saved):
    run, model, optimizer = saved
    left = run.checkpoints / ".step-00000003.99999"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert checkpoints.find_checkpoint(run.path).step == 2
    run.save(4, model, optimizer, {}, keep=2)
    assert not left.exists()


def damage(kind, run):
    step = run.checkpoints / "step-00000002"
    model = step / "model.safetensors"
    if kind == "truncated":
        model.write_bytes(model.read_bytes()[:-100])
    elif kind == "flipped":
        content = bytearray(model.read_bytes())
        content[-50] ^= 1
        model.write_bytes(content)
    elif kind == "lost":
        (step / "state.safetensors").unlink()
    elif kind == "index":
        (step / "state.json").write_text('{"format": 1, "st')
    elif kind == "format":
        (step / "state.json").write_text('{"format": 99}')
    elif kind == "pointer":
        (run.checkpoints / "latest").write_text("step-00000099\n")
    elif kind == "none":
        (run.checkpoints / "latest").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"model.safetensors is damaged: expected \d+ bytes, got \d+"),
        ("flipped", r"model.safetensors is damaged: expected SHA-256"),
        ("lost", "lacks state.safetensors"),
        ("index", "state.json is not JSON"),
        ("format", "must be a checkpoint of format 1, got format 99"),
        ("pointer", "names step-00000099, which is not there"),
        ("none", "has no checkpoint yet"),
    ],
)
def test_damage_is_found(kind, message, saved):
    damage(kind, saved[0])
    with pytest.raises(runs.RunError, match=message):
        checkpoints.load_encoder(saved[0].path)


def test_other_things_are_not_checkpoints(tmp_path, saved):
    cases = [(tmp_path / "nothing", "no such file or folder"), (tmp_path, "a folder with ")]
    (tmp_path / "text.safetensors").write_text("hello, I am not a checkpoint")
    cases.append((tmp_path / "text.safetensors", "cannot read .*text.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    cases.append((tmp_path / "foreign.safetensors", "must be a checkpoint of shamisa"))
    for path, message in cases:
        with pytest.raises(runs.RunError, match=message):
            checkpoints.load_encoder(path)
    with pytest.raises(runs.RunError, match="must hold the encoder torchvision/resnet50, got shamisa/small"):
        checkpoints.load_encoder(saved[0].path, expect="torchvision/resnet50")


def test_a_checkpoint_of_another_architecture_names_both(tmp_path, saved):
    weights = load_file(saved[0].latest() / "model.safetensors")
    weights = {k: torch.zeros(5, 5) if k.endswith("stages.0.0.weight") else t for k, t in weights.items()}
    save_file(weights, tmp_path / "m.safetensors", metadata={"encoder": "shamisa/small"})
    with pytest.raises(runs.RunError, match=r"stages.0.0.weight expected \[24, 3, .*found \[5, 5\]"):
        checkpoints.load_encoder(tmp_path / "m.safetensors")


def test_metrics_are_cut_to_the_checkpoint(saved):
    run = saved[0]
    with run.metrics.open("a") as log:
        log.writelines(runs.to_line({"step": s}) for s in range(5))
        log.write('{"step": 5, "lo')  # killed in the middle of a line
    run.truncate_metrics(2)
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [HEADER, {"step": 0}, {"step": 1}]
    assert run.records() == [{"step": 0}, {"step": 1}]


def test_json_refuses_what_is_not_json(tmp_path):
    runs.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert runs.read_json(tmp_path / "a.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_new_runs_need_an_empty_place(saved, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").write_text("x")
    saved[0].set_status("finished", 2)
    for path, message in (
        (tmp_path / "file", "got the file"),
        (tmp_path / "full", "holds other files"),
        (saved[0].path, "holds a run that is finished"),
    ):
        with pytest.raises(runs.RunError, match=message):
            runs.Run.create(path, HEADER)
    with pytest.raises(runs.RunError, match="must be a run folder"):
        runs.Run.open(tmp_path / "full")
