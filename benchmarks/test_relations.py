"""The relation graphs op by op, and the whole objective forward and backward against the number of nodes N = 126 B."""

from __future__ import annotations

import contextlib
import os

import measure
import pytest
import torch
from measure import DEVICES, backend_context, error
from memory import inputs

from shamisa import RelationLoss, ops
from shamisa import functional as SF

F, E, K, B, V = 2048, 768, 32, 2, 6
N = 126 * B


def cases(device: str) -> dict:
    """op -> (call that returns tensors, the compiled ops it can use, floating-point operations or None)."""
    (z_ref, z_dist, h_ref, h_dist), plan = inputs(B, F, E, device)
    z, h = (
        torch.cat([a.flatten(0, 1), b.flatten(0, 3)]).detach() for a, b in ((z_ref, z_dist), (h_ref, h_dist))
    )  # [N, E], [N, F]
    severity = plan.varying_severity
    g = torch.Generator().manual_seed(1)
    anchors = torch.randn(K, F, generator=g).to(device)
    logits = SF.transport_logits(h, anchors)
    graphs = [
        SF.structural_graph(severity, V),
        SF.ref_dist_graph(severity, V),
        SF.ref_ref_graph(severity, V),
        SF.dist_dist_graph(severity, V),
        SF.knn_graph(h),
        SF.transport_graph(logits),
    ]
    merged = SF.merge_graphs(graphs)

    def gradient(function, *leaves):
        """Value and gradients of the sum of a function."""

        def call():
            fresh = [x.detach().requires_grad_() for x in leaves]
            value = function(*fresh)
            return value.detach(), *torch.autograd.grad(value.sum(), fresh)

        return call

    return {
        "structural graph": (lambda: [SF.structural_graph(severity, V).weight], "structural_graph", None),
        "ref-dist graph": (lambda: [SF.ref_dist_graph(severity, V).weight], "ref_dist_graph", None),
        "ref-ref graph": (lambda: [SF.ref_ref_graph(severity, V).weight], "ref_ref_graph", None),
        "dist-dist graph": (lambda: [SF.dist_dist_graph(severity, V).weight], "dist_dist_graph", None),
        "kNN graph + backward": (gradient(lambda x: SF.knn_graph(x).weight, h), "knn_graph", 2 * N * N * F),
        "transport logits + backward": (gradient(SF.transport_logits, h, anchors), "transport_logits", 6 * N * F * K),
        "transport codes": (lambda: [SF.transport_codes(logits)], "transport_codes", None),
        "transport graph + backward": (
            gradient(lambda x: SF.transport_graph(x).weight, logits),
            "transport_graph",
            2 * N * N * K,
        ),
        "merge": (lambda: [SF.merge_graphs(graphs).weight], "merge_edges", None),
        "pair cost + backward": (gradient(lambda x: SF.pair_cost(x, merged), z), "pair_cost", None),
        "variance + backward": (gradient(SF.variance, z), "variance", None),
        "covariance + backward": (gradient(SF.covariance, z), "covariance", 4 * N * N * E),
    }


OPS = (
    *("structural graph", "ref-dist graph", "ref-ref graph", "dist-dist graph", "kNN graph + backward"),
    *("transport logits + backward", "transport codes", "transport graph + backward", "merge"),
    *("pair cost + backward", "variance + backward", "covariance + backward"),
)


@pytest.mark.parametrize("who", ["native", "reference"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("device", DEVICES)
def test_op(row, device, name, who):
    """N = 252, F = 2048, E = 768, 32 anchors."""
    found = cases(device)
    assert tuple(found) == OPS
    function, op, flops = found[name]
    if who == "native" and not ops.has_kernel(op, device):
        pytest.skip(f"{op} has no compiled kernel for {device}: the reference runs")

    def call():
        with backend_context(who):
            return function()

    extra = {}
    if who == "native":
        with backend_context("reference"):
            wanted = function()
        errors = [error(a, b) for a, b in zip(function(), wanted, strict=True)]
        extra = {k: max(e[k] for e in errors) for k in errors[0]}
    row(call, section="relations", subject=name, row=who, device=device, flops=flops, **extra)


LARGE = os.environ.get("SHAMISA_BENCHMARK_LARGE") == "1"  # N = 16128 too: minutes
LOSSES = [
    *(("cpu", who, B) for B in (1, 2, 4, 16) for who in ("native", "reference")),
    ("cpu", "native", 64),
    *([("cpu", "native", 128), ("cpu", "reference", 64)] if LARGE else []),
    *(("cuda", who, B) for B in (1, 2, 4, 16, 64, 128) for who in ("native", "reference") if B < 64 or who == "native"),
]


@pytest.mark.parametrize("device, who, B", [c for c in LOSSES if c[0] in DEVICES])
def test_loss(row, benchmark, device, who, B):
    """Forward and backward of the published objective with F = 2048, E = 768."""
    if not benchmark.enabled and B > 4:
        pytest.skip("large: timed runs only")
    if who == "native" and not ops.has_kernel("knn_graph", device):
        pytest.skip(f"no compiled kernels of the relations for {device}")
    leaves, plan = inputs(B, F, E, device)
    torch.manual_seed(0)
    loss = RelationLoss(feature_dim=F).to(device)

    def step(context=None):
        for x in leaves:
            x.grad = None
        with context or backend_context(who):
            total = loss(*leaves, plan).total
            total.backward()
        return total.detach()

    extra = {}
    if who == "native" and B <= 16:
        got = [step(contextlib.nullcontext()).clone(), *(x.grad.clone() for x in leaves)]
        wanted = [step(backend_context("reference")).clone(), *(x.grad.clone() for x in leaves)]
        errors = [error(a, b) for a, b in zip(got, wanted, strict=True)]
        extra = {k: max(e[k] for e in errors) for k in errors[0]}
    if benchmark.enabled or B == 1:
        extra |= measure.peak_extra("loss", B=B, row=who, device=device)
    row(
        step,
        section="loss",
        subject=f"N = {126 * B}",
        row=who,
        device=device,
        nodes=126 * B,
        seconds=1.0,
        least=2 if B < 64 else 1,
        most=10,
        **extra,
    )
