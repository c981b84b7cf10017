"""gather=True over two gloo processes equals one process on the concatenated batch: terms, graph, gradients."""

from __future__ import annotations

import datetime
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from test_relations import batch, small_loss
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import shamisa.functional as SF

RANKS = 2
NAMES = ("z_ref", "z_dist", "h_ref", "h_dist")
OPTIONS = [{}, {"aggregation": "trained", "regularizer": "normalized", "dist_dist_cap": "sample", "halves": "scale"}]
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


class Learner(nn.Module):
    """A linear projector and the loss, so that one DistributedDataParallel averages the gradients of both."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.projector = nn.Linear(16, 12).double()
        self.loss = loss

    def forward(self, h_ref, h_dist, plan):
        return self.loss(self.projector(h_ref), self.projector(h_dist), h_ref, h_dist, plan).total


def share(x: torch.Tensor, rank: int) -> torch.Tensor:
    return x.detach().chunk(RANKS)[rank].clone().requires_grad_(x.is_floating_point())


def plan_of(plan, rank: int) -> SimpleNamespace:
    return SimpleNamespace(**{k: x.chunk(RANKS)[rank] for k, x in vars(plan).items()})


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        torch.save(measure(rank), os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def measure(rank: int) -> list[dict]:
    """What the rank finds, by row of OPTIONS; the checks that need no single process to compare with are made here."""
    results = []
    leaves, plan = batch(2)
    for options in OPTIONS:
        own = [share(x, rank) for x in leaves]
        loss = small_loss(gather=True, **options)
        out = loss(*own, plan_of(plan, rank))
        named = dict(zip(NAMES, own, strict=True)) | dict(loss.named_parameters())
        grads = torch.autograd.grad(out.total, list(named.values()), allow_unused=True)
        learner = DistributedDataParallel(Learner(loss), find_unused_parameters=True)
        learner(own[2], own[3], plan_of(plan, rank)).backward()
        results.append(
            {
                "terms": {k: x.detach() for k, x in vars(out).items() if k != "graph"},
                "graph": out.graph.dense(),
                "grads": dict(zip(named, grads, strict=True)),
                "averaged": {k: p.grad for k, p in learner.module.named_parameters()},
            }
        )
    two = batch(rank + 1)  # another B on each rank
    with pytest.raises(ValueError, match="B must be the same on every rank, got 1 on rank 0, 2 on rank 1"):
        small_loss(gather=True)(*two[0], two[1])
    compiled = torch.compile(lambda x: SF.gather(x).square().sum(), fullgraph=True, backend="aot_eager")
    x = torch.full((3,), rank + 1.0, requires_grad=True)
    total = compiled(x)
    assert_close((total.item(), torch.autograd.grad(total, x)[0].tolist()), (15.0, [4.0 * (rank + 1)] * 3))
    half = torch.full((3, 2), rank, dtype=torch.bfloat16).T  # not contiguous
    assert_close(SF.gather(half), torch.tensor([0, 0, 1, 1]).bfloat16()[:, None].expand(4, 3))
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[list[dict]]:
    """What each rank found, by rank, then by row of OPTIONS."""
    folder = str(tmp_path_factory.mktemp("gather"))
    context = torch.multiprocessing.spawn(run_rank, (folder,), nprocs=RANKS, join=False)
    end = datetime.datetime.now() + datetime.timedelta(seconds=150)
    while not context.join(timeout=5):
        if datetime.datetime.now() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("the ranks did not end within 150 s")
    return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_two_ranks_equal_one_process(ranks, case):
    leaves, plan = batch(2)
    loss = small_loss(**OPTIONS[case])
    out = loss(*leaves, plan)
    named = dict(zip(NAMES, leaves, strict=True)) | dict(loss.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(out.total, list(named.values()), allow_unused=True), strict=True))
    learner = Learner(loss)
    learner(leaves[2], leaves[3], plan).backward()
    for rank in range(RANKS):
        found = ranks[rank][case]
        for name, value in found["terms"].items():
            assert_close(value, getattr(out, name).detach(), msg=lambda m, n=name: f"{n}: {m}")
        assert_close(found["graph"], out.graph.dense())
        for name, grad in found["grads"].items():
            expected = grads[name]
            if name in NAMES:  # own rows, times the number of ranks that DistributedDataParallel divides by
                expected = RANKS * expected.chunk(RANKS)[rank]
            assert_close(grad, expected, msg=lambda m, n=name: f"gradient of {n}: {m}")
        for name, parameter in learner.named_parameters():
            assert_close(found["averaged"][name], parameter.grad, msg=lambda m, n=name: f"averaged {n}: {m}")


def test_per_rank_objective_is_another(ranks):
    """The test above can fail: without gather, the halves of the batch give other values."""
    leaves, plan = batch(2)
    alone = [small_loss()(*(share(x, r) for x in leaves), plan_of(plan, r)).total.detach() for r in range(RANKS)]
    with pytest.raises(AssertionError):
        assert_close(torch.stack(alone).mean(), ranks[0][0]["terms"]["total"])


def test_needs_a_process_group():
    leaves, plan = batch(1)
    with pytest.raises(RuntimeError, match="gather needs a process group: call torch.distributed.init_process_group"):
        small_loss(gather=True)(*leaves, plan)
