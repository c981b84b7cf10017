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


CASES: dict[str, Callable[[int, int, torch.dtype], Iterator[Case]]] = {
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
