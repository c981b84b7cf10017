"""Every relation op against PyTorch's own checks: schema, fake kernel, autograd, gradients, autocast."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

from shamisa import ops
from shamisa.reference import relations as reference

DIFFERENTIABLE = [
    "knn_graph",
    "transport_logits",
    "transport_graph",
    "merge_edges",
    "pair_cost",
    "variance",
    "covariance",
]
OPS = torch.ops.shamisa


def samples():
    """op -> list of arguments; the differentiable inputs require gradients."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape, grad=True):
        return torch.randn(*shape, generator=g).requires_grad_(grad)

    severity = 4 * torch.rand(2, 2, 3, generator=g)
    h, z, x, wide = normal(9, 5), normal(9, 4), normal(7, 4), normal(3, 6)
    log_p = normal(9, 4).log_softmax(1).detach().requires_grad_()
    index = torch.randint(9, (2, 20), generator=g)
    weight = torch.rand(20, generator=g).requires_grad_()
    distance, neighbor, _ = reference.knn_graph(h.detach(), 3)
    scores, edges, extreme = reference.transport_graph(log_p.detach(), 2, False, True)
    squared = reference.pair_cost(z.detach(), weight.detach(), index)[1]
    one, anchors = torch.tensor(1.5), normal(3, 5)
    logits = reference.transport_logits(h.detach(), anchors.detach())
    fixed = {"h": h.detach(), "z": z.detach(), "log_p": log_p.detach(), "weight": weight.detach()}
    return {
        "structural_graph": [(severity, 6, "parity"), (severity, 6, "same_scale"), (severity, 1, "parity")],
        "ref_dist_graph": [(severity, 6, "exponential"), (severity, 1, "reciprocal")],
        "ref_ref_graph": [(severity, 6), (severity[:1], 1)],
        "dist_dist_graph": [
            *((severity, 4, 50, cap, "exponential") for cap in (True, False)),
            (severity, 1, 0, False, "reciprocal"),
        ],
        "knn_graph": [(h, 3), (normal(2, 3), 1), (normal(3, 9).T, 8)],
        "knn_graph_backward": [(normal(9, 3, grad=False), fixed["h"], distance, neighbor)],
        "transport_logits": [(h, anchors), (normal(3, 9).T, normal(2, 3))],
        "transport_logits_backward": [(normal(9, 3, grad=False), fixed["h"], anchors.detach(), *logits)],
        "transport_codes": [(fixed["log_p"], 0.05, 6), (normal(1, 3, grad=False), 0.5, 1)],
        "transport_graph": [(log_p, 2, row, diagonal) for row in (True, False) for diagonal in (True, False)],
        "transport_graph_backward": [(normal(18, grad=False), fixed["log_p"], scores, edges, extreme)],
        "merge_edges": [(weight, index, 9), (weight[:0].detach().requires_grad_(), index[:, :0], 9)],
        "merge_edges_backward": [(normal(4, grad=False), torch.tensor([0, -1, 2, 2])), (one[None][:0], index[0, :0])],
        "pair_cost": [(z, weight, index), (z, weight[:0].detach().requires_grad_(), index[:, :0])],
        "pair_cost_backward": [(one, fixed["z"], fixed["weight"], index, squared)],
        "variance": [(x,), (normal(4, 7).T,)],
        "variance_backward": [(one, x.detach())],
        "covariance": [(x,), (wide,), (normal(4, 7).T,)],
        "covariance_backward": [(one, w.detach(), reference.covariance(w.detach())[1]) for w in (x, wide)],
    }  # fmt: skip


CASES = [(name, i) for name, cases in samples().items() for i in range(len(cases))]


def test_every_relation_op_is_sampled():
    ours = {name for name, f in ops.TABLE.items() if f.__module__ == reference.__name__}
    assert ours == set(samples())


@pytest.mark.parametrize("name, case", CASES)
def test_opcheck(name, case):
    torch.library.opcheck(getattr(OPS, name).default, samples()[name][case])


@pytest.mark.parametrize("name, case", [c for c in CASES if c[0] in DIFFERENTIABLE])
def test_op_gradcheck(name, case):
    def double(x):
        floating = isinstance(x, torch.Tensor) and x.is_floating_point()
        return x.detach().double().requires_grad_(x.requires_grad) if floating else x

    arguments = [double(x) for x in samples()[name][case]]

    def first(*x):  # the differentiable output comes first
        out = getattr(OPS, name)(*x)
        return out if name == "variance" else out[0]

    assert torch.autograd.gradcheck(first, arguments)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_autocast_changes_nothing(name):
    """Neither in the forward nor in a backward that runs under autocast."""

    def run():
        arguments = samples()[name][0]
        out = getattr(OPS, name)(*arguments)
        out = out[0] if isinstance(out, tuple | list) else out
        inputs = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run()
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


def differentiable(name: str):
    """An op and arguments -> (function of its differentiable inputs that returns its differentiable output, inputs)."""
    arguments = samples()[name][0]
    places = [i for i, x in enumerate(arguments) if isinstance(x, torch.Tensor) and x.requires_grad]

    def f(*inputs):
        given = dict(zip(places, inputs, strict=True))
        out = getattr(OPS, name)(*(given.get(i, x) for i, x in enumerate(arguments)))
        return out if name == "variance" else out[0]

    return f, tuple(arguments[i].detach() for i in places)


def dual(f, inputs):
    with forward_ad.dual_level():
        return f(*(forward_ad.make_dual(x, torch.ones_like(x)) for x in inputs))


def dual_gradient(f, inputs):
    """Forward over reverse: only the gradient that comes in has a tangent."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = f(*inputs)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        return torch.autograd.grad(out, inputs, grad)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize(
    "derivative, message",
    [
        (lambda f, x: torch.func.jvp(f, x, tuple(map(torch.ones_like, x))), "no forward-mode derivative"),
        (lambda f, x: torch.func.jacfwd(f)(*x), "no forward-mode derivative"),
        (dual, "no forward-mode derivative"),
        (dual_gradient, "_backward has no forward-mode derivative"),
        (lambda f, x: torch.func.grad(lambda *y: f(*y).sum())(*x), r"torch\.func .* use backward\(\)"),
        (lambda f, x: torch.func.vmap(torch.func.grad(lambda y: f(y, *x[1:]).sum()))(x[0][None]), "by torch.func"),
    ],
    ids=["jvp", "jacfwd", "dual", "dual_gradient", "grad", "vmap_grad"],
)
def test_derivatives_that_are_lacking_are_refused(name, derivative, message):
    """A tangent would otherwise vanish without a word."""
    with pytest.raises(RuntimeError, match=f"shamisa::{name}.*{message}"):
        derivative(*differentiable(name))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_vmap_is_the_loop(name):
    """Forward, and backward through it."""
    f, inputs = differentiable(name)
    batch = [torch.stack([x, x.flip(0)]).requires_grad_() for x in inputs]
    actual, expected = torch.func.vmap(f)(*batch), torch.stack([f(*x) for x in zip(*batch, strict=True)])
    assert_close(actual, expected)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), batch) for y in (actual, expected)), strict=True):
        assert_close(a, b)
