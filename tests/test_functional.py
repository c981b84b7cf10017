"""The plain functions of relation graphs and terms: the matrices of their definitions, ties, NaN, and their errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_relations import keep_largest
from torch.testing import assert_close

import shamisa.functional as SF
from shamisa.reference import relations as reference


def test_functions_give_the_matrices_of_the_definition():
    h = torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = 1 / (1 + torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist"))
    T, _ = keep_largest(a[:1].fill_diagonal_(math.nan), 5)
    T = torch.stack([keep_largest(torch.where(torch.arange(40) == i, math.nan, a[i]), 5)[0] for i in range(40)])
    assert_close(SF.knn_graph(h, 5).dense(), T + T.T)
    severity = 4 * torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    graphs = [SF.structural_graph(severity, 4), SF.ref_ref_graph(severity, 4), SF.dist_dist_graph(severity, 4)]
    for graph in graphs:
        assert_close(graph.dense(), graph.dense().T)
        assert not graph.dense().diagonal().any()
    merged = SF.merge_graphs([*graphs, SF.ref_dist_graph(severity, 4)], [1.0, 2.0, 3.0, 4.0])
    expected = sum(s * g.dense() for s, g in zip((1, 2, 3), graphs, strict=True))
    assert_close(merged.dense(), (expected + 4 * SF.ref_dist_graph(severity, 4).dense()).triu(1))
    used = merged.weight > 0
    key = merged.index[0] * merged.nodes + merged.index[1]
    assert (key[used].diff() > 0).all() and not used[int(used.sum()) :].any() and not key[~used].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, k", [((1, 5), 0), ((1, 5), 5), ((4, 6), 3), ((3, 100), 17)])
def test_select_largest_breaks_ties_by_position(shape, k, dtype):
    score = torch.randint(4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = score.argsort(dim=1, descending=True, stable=True)[:, :k].sort(dim=1).values
    assert_close(reference.select_largest(score, k), expected)


def test_codes_cannot_overflow():
    """Logits at which exp overflows: the codes stay finite, and rows still sum to 1."""
    logits = 50 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    codes = SF.transport_codes(logits)
    assert torch.exp(logits / 0.05).isinf().any()
    assert_close(codes.sum(1), torch.ones(40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_shows_in_every_function(dtype):
    """One NaN in row 7 of 40: it shows in every result that depends on that row, and no index leaves its range."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[7, 2] = torch.nan
    i = torch.arange(39)
    edges = SF.RelationGraph(torch.ones(39, dtype=dtype), torch.stack([i, i + 1]), 40)
    graphs = SF.knn_graph(x, 3), SF.transport_graph(SF.transport_logits(x, x[:4]))
    for graph in graphs:
        assert graph.index.min() >= 0 and graph.index.max() < 40
    results = [SF.variance(x), SF.covariance(x), SF.pair_cost(x, edges), *(g.weight.sum() for g in graphs)]
    results.append(SF.transport_codes(x)[7].sum())
    assert all(r.isnan() for r in results), results


def test_severities_and_codes_are_constants():
    """No gradient of zero with a warning of torch, but none."""
    severity, views = torch.rand(2, 2, 3).requires_grad_(), 4
    for make in (SF.structural_graph, SF.ref_dist_graph, SF.ref_ref_graph, SF.dist_dist_graph):
        assert not make(severity, views).weight.requires_grad
    codes = torch.rand(2 * 4 * 7, 5).requires_grad_()
    assert not SF.transport_alignment(torch.randn(56, 5), codes, severity, views).requires_grad


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: SF.variance(np.zeros((4, 3))), TypeError, "x must be a torch.Tensor, got ndarray"),
        (lambda: SF.knn_graph(None), TypeError, "h must be a torch.Tensor, got NoneType"),
        (lambda: SF.knn_graph(torch.zeros(4, 3), 2.5), ValueError, "k must be an integer of at least 1, got 2.5"),
        (lambda: SF.ref_ref_graph(torch.zeros(1, 2, 3), 6.0), ValueError, "views must be an integer .* got 6.0"),
    ],
)
def test_wrong_type(call, error, message):
    with pytest.raises(error, match=message):
        call()


def graph_of(weight, index):
    return SF.RelationGraph(weight, index, 4)


EDGES = torch.tensor([[0, 1], [2, 3]])  # two edges over four nodes
ON_META = SF.RelationGraph(torch.ones(2, device="meta"), EDGES.to("meta"), 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: SF.pair_cost(torch.zeros(0, 2), graph_of(torch.ones(2), EDGES)),
            r"z must be \[N, E\], none of them 0",
        ),
        (lambda: SF.transport_logits(torch.zeros(0, 2), torch.zeros(4, 2)), r"h must be \[N, F\], .* got \[0, 2\]"),
        (lambda: SF.transport_codes(torch.zeros(3, 0)), r"logits must be \[N, K\], none of them 0, got \[3, 0\]"),
        (lambda: SF.covariance(torch.zeros(0, 3)), r"x must be \[n, E\], none of them 0, got \[0, 3\]"),
        (lambda: SF.ref_ref_graph(torch.zeros(0, 4, 5)), r"severity must be \[B, C, L\], none of them 0"),
        (lambda: SF.pair_cost(torch.zeros(4, 2), graph_of(torch.ones(3), EDGES)), r"weight \[M\] .* got \[3\]"),
        (lambda: SF.pair_cost(torch.zeros(4, 2), graph_of(torch.ones(2), EDGES.int())), r"\[2, 2\] torch.int32"),
        (lambda: SF.pair_cost(torch.zeros(4, 2), ON_META), r"z must be \[N, E\] with N = 4 on meta, got .* on cpu"),
        (lambda: SF.pair_cost(torch.zeros(4, 2), graph_of(ON_META.weight, EDGES)), "weight on cpu .* got meta"),
        (lambda: SF.merge_graphs([graph_of(torch.ones(2), EDGES), ON_META]), "graphs must be on one device"),
        (lambda: SF.transport_logits(torch.ones(3, 2), torch.ones(4, 2, device="meta")), "on cpu, got .* on meta"),
        (
            lambda: SF.transport_alignment(torch.ones(3, 2), torch.ones(3, 2).to("meta"), torch.ones(1, 1, 2), 1),
            "codes must be on cpu like logits, got meta",
        ),
        (lambda: SF.knn_graph(torch.zeros(1, 3)), "rows of h must be at least 2, got 1"),
        (lambda: SF.knn_graph(torch.zeros(3)), r"h must be \[N, F\] floating point, got \[3\]"),
        (lambda: SF.variance(torch.zeros(1, 3)), "rows of x must be at least 2, got 1"),
        (lambda: SF.structural_graph(torch.zeros(1, 1, 1), 3, classes="same_scale"), "views must be even"),
        (lambda: SF.dist_dist_graph(torch.zeros(1, 1)), r"severity must be \[B, C, L\]"),
        (lambda: SF.pair_cost(torch.zeros(3, 2), SF.knn_graph(torch.rand(4, 2))), r"z must be \[N, E\] with N = 4"),
        (lambda: SF.merge_graphs([SF.knn_graph(torch.rand(n, 2)) for n in (4, 5)]), "graphs must be of one number"),
        (lambda: SF.transport_logits(torch.zeros(3, 2), torch.zeros(4, 3)), r"anchors must be \[K, F\] with F = 2"),
    ],
)
def test_wrong_option(call, message):
    with pytest.raises(ValueError, match=message):
        call()
