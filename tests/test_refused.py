"""What the documentation calls wrong is refused, by name: severities, parameters of plans, factors of the objective."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from shamisa import DISTORTIONS, DistortionEngine, RelationLoss, distort, functional
from shamisa.engine import Plan

WRONG = [-0.01, 4.01, math.nan, math.inf]
GRAPHS = ["structural_graph", "ref_dist_graph", "ref_ref_graph", "dist_dist_graph"]


@pytest.fixture
def plan() -> Plan:
    return DistortionEngine(compositions=2, levels=2, distortions=["jpeg", "brighten"]).sample(2, seed=1)


def parts(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 2, 8), (2, 2, 2, 2, 8), (2, 2, 16), (2, 2, 2, 2, 16)]
    return [torch.randn(*s, generator=g, dtype=dtype) for s in shapes]


@pytest.mark.parametrize("wrong", WRONG)
def test_severities_outside_the_table(plan, wrong):
    images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    for given in (wrong, [1.0, wrong], torch.tensor([1.0, wrong])):
        with pytest.raises(ValueError, match=r"^severity must lie in \[0, 4\]"):
            distort(images, "jpeg", severity=given)
    with pytest.raises(ValueError, match=r"^severity must lie in \[0, 4\]"):
        DISTORTIONS["jpeg"].value_at(wrong)
    severity = plan.severity.clone()
    severity[1, 0, 1, plan.varying[1, 0]] = wrong
    bad = dataclasses.replace(plan, severity=severity)
    for name in GRAPHS:
        with pytest.raises(ValueError, match=r"^severity must lie in \[0, 4\], got"):
            getattr(functional, name)(bad.varying_severity, 2)
    with pytest.raises(ValueError, match=r"^severity must lie in"):
        functional.transport_alignment(torch.zeros(20, 3), torch.zeros(20, 3), bad.varying_severity, 2)
    with pytest.raises(ValueError, match=r"^plan.severity must lie in \[0, 4\], got"):
        RelationLoss(16)(*parts(), bad)
    with pytest.raises(ValueError, match=r"^severity must lie in \[0, 4\], got"):
        DistortionEngine()(images.view(2, 1, 3, 48, 48), bad)


def test_the_ends_of_the_table_are_taken(plan):
    for severity in (0, 4, torch.tensor([0.0, 4.0])):
        distort(torch.zeros(2, 3, 8, 8), "brighten", severity=severity)
    severity = torch.tensor([0.0, 4.0]).expand(2, 2, 2)
    for name in GRAPHS:
        getattr(functional, name)(severity, 2)
    assert DISTORTIONS["brighten"].value_at(0) == 0.1 and DISTORTIONS["brighten"].value_at(4) == 1.1


def test_severities_are_looked_at_only_where_there_are_some():
    """Inside vmap and torch.compile, and of fake tensors, there is nothing to look at."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    severity = torch.rand(3, 1, 2, 2)
    got = torch.vmap(lambda s: functional.ref_dist_graph(s, 2).weight)(severity)
    torch.testing.assert_close(got[1], functional.ref_dist_graph(severity[1], 2).weight)
    with FakeTensorMode():
        assert functional.ref_dist_graph(torch.rand(1, 2, 2), 2).weight.shape == (8,)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_parameters_of_a_plan_outside_what_kernels_take(name):
    row = DISTORTIONS[name]
    engine = DistortionEngine(compositions=1, levels=2, distortions=[name])
    plan, images = engine.sample(1, seed=1), torch.zeros(1, 1, 3, 48, 48, dtype=torch.uint8)
    for value in (row.low, row.high):
        dataclasses.replace(plan, value=torch.full_like(plan.value, value)).check()
    for value in (row.low - 1, row.high + 1, math.nan, math.inf):
        bad = dataclasses.replace(plan, value=torch.full_like(plan.value, value))
        with pytest.raises(ValueError, match=rf"^value of {name} must lie in \["):
            engine(images, bad)
        with pytest.raises(ValueError, match=rf"^value of {name} must lie in \["):
            Plan.from_json(bad.to_json())


def test_the_stage_that_varies(plan):
    for wrong in (-1, plan.shape[3]):
        bad = dataclasses.replace(plan, varying=torch.full_like(plan.varying, wrong))
        with pytest.raises(ValueError, match=r"^plan.varying must lie in 0..D-1 = 1, got"):
            RelationLoss(16)(*parts(), bad)


@pytest.mark.parametrize("name", ["alignment", "regularizer", "variance", "invariance", "covariance"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_factors_of_the_objective(name, wrong):
    with pytest.raises(ValueError, match=f"^{name}_weight must be a finite number of at least 0, got {wrong}"):
        RelationLoss(16, **{f"{name}_weight": wrong})


@pytest.mark.parametrize("name", ["temperature", "code_temperature"])
@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
def test_temperatures(name, wrong):
    with pytest.raises(ValueError, match=f"^{name} must be a (finite )?number above 0, got"):
        RelationLoss(16, **{name: wrong})
