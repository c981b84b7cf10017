"""The relation-weighted objective, forward and backward, against the number of nodes N = 126 B."""

import pytest
import torch
from torch.nn.functional import normalize

from shamisa import DistortionEngine, RelationLoss

F, E = 2048, 768


@pytest.mark.parametrize("B", [1, 2, 4])
def test_loss(benchmark, B):
    plan = DistortionEngine().sample(B, seed=0)
    C, L, V = 4, 5, 6
    generator = torch.Generator().manual_seed(0)
    h_ref, h_dist = (
        normalize(torch.rand(*s, F, generator=generator), dim=-1).requires_grad_() for s in ((B, V), (B, V, C, L))
    )
    z_ref, z_dist = (torch.randn(*s, E, generator=generator).requires_grad_() for s in ((B, V), (B, V, C, L)))
    loss = RelationLoss(feature_dim=F)

    def step():
        loss(z_ref, z_dist, h_ref, h_dist, plan).total.backward()

    benchmark.group = f"relation loss forward + backward N={126 * B} F={F} E={E} cpu"
    benchmark.pedantic(step, rounds=3, warmup_rounds=1)
