"""The CUDA ops of transport, merging, metadata and the terms against the reference, and the whole objective on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from test_relation_cuda import TOLERANCE, Case, emulated, generator, run, wide  # noqa: F401
from torch import Tensor
from torch.testing import assert_close

from shamisa.reference import relations as reference


def transport_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    u = torch.randn(N, D, generator=g, dtype=torch.float64)
    u[2::3] = u[1::3][: len(u[2::3])]  # rows that tie
    u[::9] = u[:1].clone()
    for scale in (3.0, 0.0) if dtype != torch.float64 else (3.0,):  # 0: every score ties, up to rounding in float64
        log_p = (scale * u).log_softmax(1).to(dtype)
        for per_row in (False, True):
            for diagonal in (False, True):
                yield "transport_graph", (log_p, 5, per_row, diagonal)
                weight, index, extreme = reference.transport_graph(log_p, 5, per_row, diagonal)
                grad = torch.randn(len(weight), generator=g, dtype=torch.float64).to(weight.dtype)
                yield "transport_graph_backward", (grad, log_p, weight, index, extreme)
    yield "transport_graph", (log_p, 0, False, True)


def merge_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    for M in (0, 1, 3 * N + 1, 40 * N):
        index = torch.randint(N, (2, M), generator=g)  # loops, both directions, many equal
        weight = torch.randn(M, generator=g, dtype=torch.float64).to(dtype)
        for nodes in (N, 50_000):  # keys of 32 and of 64 bits
            yield "merge_edges", (weight, index, nodes)
        position = reference.merge_edges(weight, index, N)[2]
        grad = torch.randn(M, generator=g, dtype=torch.float64).to(wide(dtype))
        yield "merge_edges_backward", (grad, position)


def metadata_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    (B, C, L), views = {2: ((1, 1, 1), 2), 7: ((1, 2, 3), 4), 65: ((2, 4, 5), 6), 130: ((3, 2, 2), 5)}[N]
    severity = (2.5 * torch.randn(B, C, L, generator=generator(N, D))).abs().clamp(max=4).to(dtype)  # ties at 4
    for classes in ("parity", "same_scale", "same_reference"):
        yield "structural_graph", (severity, views, classes)
    yield "ref_ref_graph", (severity, views)
    for decay in ("exponential", "reciprocal"):
        yield "ref_dist_graph", (severity, views, decay)
        for values in (severity, torch.ones_like(severity)):
            for edges in (0, 1, 37, 400, 100_000):
                for per_sample in (False, True):
                    yield "dist_dist_graph", (values, views, edges, per_sample, decay)


def assignment_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    for F, K in ((D, 3), (4 * D + 70, 33)):  # pieces of 64 or 128 columns, 32 anchors at a time
        h = torch.randn(N, F, generator=g, dtype=torch.float64).to(dtype)
        h[N // 2] = 0
        anchors = torch.randn(K, F, generator=g, dtype=torch.float64).to(dtype)
        yield "transport_logits", (h, anchors)
        logits, norm = reference.transport_logits(h, anchors)
        grad = torch.randn(N, K, generator=g, dtype=torch.float64).to(wide(dtype))
        yield "transport_logits_backward", (grad, h, anchors, logits, norm)
        for rounds in (1, 6):
            yield "transport_codes", (0.2 * logits.to(dtype), 0.05, rounds)


def term_cases(N: int, D: int, dtype: torch.dtype) -> Iterator[Case]:
    g = generator(N, D)
    for E in (D, 70, 2 * N + 3):  # fewer and more than the rows; more than a tile
        x = (3 + torch.randn(E, generator=g).abs() * torch.randn(N, E, generator=g, dtype=torch.float64)).to(dtype)
        grad = torch.tensor(1.5, dtype=wide(dtype))
        yield "variance", (x,)
        yield "variance_backward", (grad, x)
        yield "covariance", (x,)
        yield "covariance_backward", (grad, x, reference.covariance(x)[1])


CASES: dict[str, Callable[[int, int, torch.dtype], Iterator[Case]]] = {
    "assignment": assignment_cases,
    "merge": merge_cases,
    "metadata": metadata_cases,
    "terms": term_cases,
    "transport": transport_cases,
}
SIZES = [(2, 1), (7, 3), (65, 33), (130, 9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("N, D", SIZES)
@pytest.mark.parametrize("family", CASES)
def test_cuda_equals_reference(run, family, N, D, dtype):  # noqa: F811
    for name, arguments in CASES[family](N, D, dtype):
        before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        compare(name, run(name, *arguments), getattr(reference, name)(*arguments))
        for a, b in zip(arguments, before, strict=True):
            assert not isinstance(a, Tensor) or torch.equal(a, b), f"{name} changes its input"


def compare(name: str, actual, expected) -> None:
    actual, expected = (x if isinstance(x, tuple | list) else (x,) for x in (actual, expected))
    for a, e in zip(actual, expected, strict=True):
        if not e.is_floating_point():
            assert_close(a, e, msg=lambda m: f"{name}: {m}")
        else:
            rtol = TOLERANCE[e.dtype]
            # where every score ties, weights are rounding: shares of a range of 1e-6
            atol = rtol * max(e.abs().max().item(), 1e-3) if e.numel() else 0
            assert_close(a, e, rtol=rtol, atol=atol, msg=lambda m: f"{name}: {m}")
