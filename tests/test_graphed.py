"""Steps for a CUDA graph, as far as a CPU can tell: the recorded body is the step of the trainer, and what is refused."""

from __future__ import annotations

import pytest
import torch
from test_train import TINY
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shamisa import train
from shamisa.engine import DistortionEngine, Plan, normalize
from shamisa.measuring.profiling import Stopwatch
from shamisa.relations import TERMS
from shamisa.training import graphed
from shamisa.training.config import Config
from shamisa.training.learner import Learner


def make(**fields) -> train.Trainer:
    return train.Trainer(Config(**(TINY | fields)), quiet=True)


@pytest.mark.parametrize(
    ("fields", "atol"),
    # the last bias has no gradient but rounding, which adamw blows up to whole steps of lr = 1.5e-3
    [({"clip": 0.5}, 1e-5), ({"optimizer": "adamw"}, 2 * 3 * 1.5e-3)],
)
def test_body_is_the_step_of_the_trainer(fields, atol):
    usual, other = make(**fields), make(**fields)
    watch = Stopwatch(usual.device)
    step = None
    for _ in range(3):
        crops = usual.references.batch(usual.step)[0]
        plan = other.plan()
        step = step or graphed.GraphedStep(other, crops, plan)
        step.load(crops, plan, other.config.learning_rate(other.step, other.steps, other.steps_per_epoch))
        values, z, _ = step.body()
        other.step += 1
        watch.start()
        record = usual.train_step(crops, watch)
        assert_close(
            values, torch.tensor([*(record["loss"][t] for t in TERMS), record["grad_norm"]]), rtol=1e-3, atol=1e-4
        )
        assert z.shape == (1, 6, 2, 2, 8)
    for (key, a), b in zip(usual.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert_close(b, a, rtol=1e-4, atol=atol, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing(optimizer):
    trainer = make(optimizer=optimizer)
    crops, plan = trainer.references.batch(0)[0], trainer.plan()
    step = graphed.GraphedStep(trainer, crops, plan)
    step.load(crops, plan, 1e-3)
    step.body()

    def state():
        kept = [t.clone() for t in trainer.model.state_dict().values()]
        return kept + [t.clone() for s in trainer.optimizer.state.values() for t in s.values() if torch.is_tensor(t)]

    before = state()
    with torch.no_grad():
        weight = trainer.model.projector[2].weight
        saved = weight[0, 0].item()
        weight[0, 0] = torch.nan
    values, _, _ = step.body()
    assert not values.isfinite().all() and trainer.bad
    with torch.no_grad():
        weight[0, 0] = saved
    values, _, _ = step.body()  # nor does one after it, until somebody has looked
    assert values.isfinite().all()
    for a, b in zip(before, state(), strict=True):
        assert torch.equal(a, b)
    trainer.bad.zero_()
    step.body()
    assert any(not torch.equal(a, b) for a, b in zip(before, state(), strict=True))


@pytest.mark.parametrize(
    ("fields", "device", "precision", "world", "kernels", "message"),
    [
        ({}, "cpu", torch.float32, 1, ("cpu", "cuda"), "a GPU, got device cpu"),
        ({}, "cuda", torch.float32, 2, ("cuda",), "one process, got 2"),
        ({"gather": True}, "cuda", torch.float32, 1, ("cuda",), "--no-gather"),
        ({"accumulate": 2}, "cuda", torch.float32, 1, ("cuda",), "accumulate = 1, got 2"),
        ({}, "cuda", torch.float16, 1, ("cuda",), "bfloat16 or float32"),
        ({"backend": "reference"}, "cuda", torch.float32, 1, ("cuda",), "the compiled CUDA kernels"),
        ({}, "cuda", torch.float32, 1, ("cpu",), "the compiled CUDA kernels"),
    ],
)
def test_refused(fields, device, precision, world, kernels, message):
    with pytest.raises(ValueError, match=f"cuda_graph needs {message}"):
        graphed.check_graphable(Config(**fields), torch.device(device), precision, world, kernels)
    graphed.check_graphable(Config(), torch.device("cuda"), torch.bfloat16, 1, ("cuda",))


def test_refused_before_any_work(tmp_path, capsys):
    assert train.main(["--cuda-graph", "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
    assert "cuda_graph needs a GPU" in capsys.readouterr().err and not (tmp_path / "run").exists()


class FromTheHost(TorchDispatchMode):
    """Notes the ops that see CPU tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "cpu" for t in tensors):
            self.ops.add(str(function))
        return out


OBJECTIVES = [
    {},
    {"structural": "same_scale", "halves": "scale", "aggregation": "trained", "regularizer": "normalized"},
    {"structural": "same_reference", "transport_select": "row", "dist_dist_cap": "sample", "decay": "reciprocal"},
    {"binary": True, "alignment": False, "aggregation": "equal", "regularizer": "off", "graphs": ("knn", "ref_dist")},
]


@pytest.mark.skipif(torch.version.cuda is None, reason="pretending needs a torch built with CUDA")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_takes_nothing_from_the_host(monkeypatch, objective):
    """Shown on tensors that only pretend to be on a GPU: a copy from the host waits, and a CUDA graph refuses it."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    fields = {f: v for f, v in (TINY | objective).items() if f != "device"}
    engine, config = DistortionEngine(), Config(**fields)
    sizes = {f: (t.shape, t.dtype) for f, t in vars(engine.sample(1, seed=0)).items()}
    learner = Learner(config)
    weights = {name: (t.shape, t.dtype) for name, t in learner.state_dict().items()}
    with FakeTensorMode():
        crops = torch.empty(1, 6, 3, 32, 32, dtype=torch.uint8, device="cuda")
        plan = Plan(**{f: torch.empty(shape, dtype=dtype, device="cuda") for f, (shape, dtype) in sizes.items()})
        state = {n: torch.empty(shape, dtype=dtype, device="cuda") for n, (shape, dtype) in weights.items()}
        with FromTheHost() as host:
            images = normalize(crops, dtype=torch.float32), engine(crops, plan)
            out, z, _ = torch.func.functional_call(learner, state, (*images, plan))
            norm = torch.nn.utils.get_total_norm([z, out.total])
            torch.stack([*train.Trainer.terms(out), norm]).isfinite().all()
    assert z.device.type == "cuda" and not host.ops


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_steps_equal_eager_ones():
    totals = []
    # sums of convolutions in one order: a rounding may change which edges a graph keeps, and that shows
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for cuda_graph in (False, True):
            trainer = make(device="cuda", cuda_graph=cuda_graph, precision="float32", steps=8)
            watch = Stopwatch(trainer.device)
            totals.append([])
            for _ in range(8):
                watch.start()
                totals[-1].append(trainer.train_step(trainer.references.batch(trainer.step)[0], watch)["loss"]["total"])
    assert_close(totals[1], totals[0], rtol=1e-3, atol=1e-4)


# ---- torch.compile ---------------------------------------------------------------------------------------------------
def test_compiled_parts_train_as_the_eager_ones(monkeypatch):
    """With a backend that only traces; names of the weights stay."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
    records, keys = [], []
    for choice in (False, True):
        trainer = make(compile=choice)
        watch = Stopwatch(trainer.device)
        watch.start()
        records.append(trainer.train_step(trainer.references.batch(0)[0], watch))
        keys.append(list(trainer.model.state_dict()))
    assert keys[0] == keys[1]
    assert_close(records[1]["loss"], records[0]["loss"], rtol=1e-4, atol=1e-5)
    assert_close(records[1]["grad_norm"], records[0]["grad_norm"], rtol=1e-3, atol=1e-5)
