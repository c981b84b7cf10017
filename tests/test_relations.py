"""The objective against a dense float64 oracle; what it does with few nodes, ties, NaN and wrong input."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import layer_norm, linear, prelu
from torch.testing import assert_close

import shamisa.functional as SF
from shamisa.relations import GRAPHS, RelationLoss, RelationOptions

V, C, L, D = 6, 4, 5, 3


def batch(B=1, V=V, C=C, L=L, F=16, E=12, dtype=torch.float64, seed=0, severity=None):
    """z_ref, z_dist, h_ref, h_dist (leaves) and a plan with severities clipped at 4, so that many are equal."""
    g = torch.Generator().manual_seed(seed)
    z_ref, z_dist, h_ref, h_dist = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        for shape in ((B, V, E), (B, V, C, L, E), (B, V, F), (B, V, C, L, F))
    )
    leaves = [x.to(dtype) for x in (z_ref, 0.5 * z_dist, *(x / x.norm(dim=-1, keepdim=True) for x in (h_ref, h_dist)))]
    levels = (2.5 * torch.randn(B, C, L, D, generator=g)).abs().clamp(max=4) if severity is None else severity
    varying = torch.randint(D, (B, C), generator=g)
    plan = SimpleNamespace(severity=levels.expand(B, C, L, D).to(torch.float32), varying=varying)
    return [x.requires_grad_() for x in leaves], plan


def small_loss(F=16, dtype=torch.float64, seed=1, **options):
    torch.manual_seed(seed)
    loss = RelationLoss(F, **{"anchors": 8, **options})
    with torch.no_grad():  # spread the anchors, so that transport has something to choose
        loss.anchors.parametrizations.weight.original0.mul_(2)
    return loss.to(dtype)


# ------------------------------------------------------------------------------------- the oracle: N x N, float64, slow
def keep_largest(matrix, count):
    """Zero all but the `count` largest entries; order: value descending, then row, then column. NaN marks no entry."""
    flat = matrix.flatten()
    order = torch.nan_to_num(flat.detach(), nan=-math.inf).argsort(descending=True, stable=True)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[order[: min(count, int((~flat.isnan()).sum()))]] = True
    return torch.where(kept, torch.nan_to_num(flat), 0).view_as(matrix), kept.view_as(matrix)


def oracle(leaves, plan, loss):
    o = loss.options
    z_ref, z_dist, h_ref, h_dist = (x.double() for x in leaves)
    p = {k: v.detach().double().requires_grad_() for k, v in loss.named_parameters()}
    B, V, C, L, E = z_dist.shape
    z = torch.cat([z_ref.reshape(-1, E), z_dist.reshape(-1, E)])
    h = torch.cat([h_ref.flatten(0, 1), h_dist.flatten(0, 3)])
    R, N = B * V, B * V * (1 + C * L)
    # Who is who: kind, sample, view, composition, level, severity of every node.
    who = [(b, v, -1, -1) for b in range(B) for v in range(V)]
    who += list(itertools.product(range(B), range(V), range(C), range(L)))
    b, v, c, level = (torch.tensor(x) for x in zip(*who, strict=True))
    lam = torch.zeros(N)
    for n in range(R, N):
        lam[n] = plan.severity[b[n], c[n], level[n], plan.varying[b[n], c[n]]]

    def same(x):
        return x[:, None] == x

    other, ref, dist = ~torch.eye(N, dtype=torch.bool), torch.arange(N) < R, torch.arange(N) >= R
    both = dist[:, None] & dist
    s = (lambda g: torch.exp(-3 * g / 4)) if o.decay == "exponential" else (lambda g: 1 / (1 + g / 4))
    kind = {"parity": v % 2, "same_scale": v // (V // 2), "same_reference": v % (V // 2)}[o.structural]
    structural = (both & same(b) & same(c) & same(level) & same(kind) & other).double()
    ref_dist = (ref[:, None] & dist & same(b) & same(v)) * s(lam.double())[None]
    ref_ref = (ref[:, None] & ref & other).double()
    gap = (lam[:, None] - lam).abs().double()
    pairs = torch.where(both & same(b) & same(c) & other, s(gap), math.nan)
    if o.dist_dist_cap == "batch":
        dist_dist, _ = keep_largest(pairs, o.dist_dist_edges)
    else:
        per_sample = [torch.where(b[:, None] == x, pairs, math.nan) for x in range(B)]
        dist_dist = sum(keep_largest(x, o.dist_dist_edges)[0] for x in per_sample)

    difference = h[:, None] - h[None]
    square = difference.square().sum(-1)
    distance = torch.where(square > 0, square, 1).sqrt() * (square > 0)  # slope 0 at distance 0
    a = torch.where(other, 1 / (1 + distance), math.nan)
    T = torch.cat([keep_largest(row[None], min(o.neighbors, N - 1))[0] for row in a])
    knn = T + T.T

    g, direction = p["anchors.parametrizations.weight.original0"], p["anchors.parametrizations.weight.original1"]
    W = g * direction / direction.norm(dim=1, keepdim=True)
    K = len(W)
    u = h / h.norm(dim=1, keepdim=True) @ W.T
    Q = torch.exp(u.detach() / o.code_temperature)
    Q = Q / Q.sum()
    for _ in range(o.rounds):
        Q = Q / Q.sum(0, keepdim=True) / K
        Q = Q / Q.sum(1, keepdim=True) / N
    Q = Q * N
    log_p = torch.log_softmax(u / o.temperature, 1)
    score = (log_p[:, None] * log_p.exp()[None]).mean(-1)
    flat = score.flatten()
    low, high = flat[flat.argmin()], flat[flat.argmax()]
    score = (score - low) / (high - low)
    if not o.transport_diagonal:
        score = torch.where(other, score, math.nan)
    if o.transport_select == "global":
        transport, transport_kept = keep_largest(score, o.transport_edges * N)
    else:
        rows = [keep_largest(row[None], o.transport_edges) for row in score]
        transport, transport_kept = (torch.cat([r[i] for r in rows]) for i in (0, 1))

    matrices = dict(zip(GRAPHS, (structural, ref_dist, ref_ref, dist_dist, knn, transport), strict=True))
    kept = {name: m > 0 for name, m in matrices.items()} | {"transport": transport_kept}
    if o.binary:
        matrices = {name: k.double() for name, k in kept.items()}
    coefficient = dict(
        structural=0.6010794863656556, ref_dist=0.8038735892351129, ref_ref=0.5765695739376243,
        dist_dist=0.1789641360878255, knn=0.20874201442160423, transport=0.3670314792148166,
    )  # fmt: skip
    stats, zero = [], torch.zeros((), dtype=torch.float64)
    for name, m in matrices.items():
        on = name in o.graphs
        stats += [kept[name].sum().double() if on else zero, coefficient[name] * m.sum() if on else zero]
    x = layer_norm(torch.stack(stats), (12,), p["aggregator.0.weight"], p["aggregator.0.bias"])
    x = linear(x, p["aggregator.1.weight"], p["aggregator.1.bias"])
    x = prelu(layer_norm(x, (24,), p["aggregator.2.weight"], p["aggregator.2.bias"]), p["aggregator.3.weight"])
    x = linear(x, p["aggregator.4.weight"], p["aggregator.4.bias"])
    x = torch.zeros_like(x) if o.aggregation == "equal" else x
    x = torch.where(torch.tensor([name in o.graphs for name in GRAPHS]), x, -math.inf)
    alpha = x.softmax(0) if o.aggregation == "trained" else x.softmax(0).detach()
    G = sum(a * coefficient[name] * m for a, (name, m) in zip(alpha, matrices.items(), strict=True)).triu(1)

    pair = (G * (z[:, None] - z[None]).square().sum(-1)).sum() / (N * E)
    swap = (structural * (Q @ log_p.T)).sum() / structural.sum() / K if structural.any() else 0.0
    alignment = -0.5 * 0.49057801093072007 * ((Q * log_p).mean() + swap) * o.alignment
    scale = {"published": 1.0, "normalized": 126 / N, "off": 0.0}[o.regularizer]
    regular = -0.03419084992354765 * G.square().sum() * scale
    invariance = 2 * (pair + alignment + regular)
    first = torch.arange(N) < R // 2
    first |= (torch.arange(N) >= R) & (torch.arange(N) < R + (N - R) // 2)
    if o.halves == "scale":
        first = v < V // 2
    halves = [z[first], z[~first]]
    variance = sum(torch.relu(1 - (x.var(0) + 1e-4).sqrt()).mean() / 2 for x in halves)
    covariance = sum((x.T.cov().square().sum() - x.T.cov().diagonal().square().sum()) / E for x in halves)
    total = 11.975680785304435 * variance + 88.36882206311276 * invariance + 57.21249573027589 * covariance
    terms = dict(
        total=total, invariance=invariance, variance=variance, covariance=covariance, pair=pair,
        transport=torch.as_tensor(alignment, dtype=torch.float64), regularizer=regular, mixture=alpha,
    )  # fmt: skip
    return terms, G, p


def compare(leaves, plan, loss, rtol, atol):
    """Values, merged graph, and gradients in z, h, anchors and aggregator, against the oracle."""
    out = loss(*leaves, plan)
    terms, G, p = oracle(leaves, plan, loss)
    for name, value in terms.items():
        assert_close(getattr(out, name).double(), value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(out.graph.dense().double(), G.detach(), rtol=rtol, atol=atol)
    parameters = dict(loss.named_parameters())
    ours = torch.autograd.grad(out.total, [*leaves, *parameters.values()], allow_unused=True)
    theirs = torch.autograd.grad(terms["total"], [*leaves, *p.values()], allow_unused=True)
    for name, a, b in zip(["z_ref", "z_dist", "h_ref", "h_dist", *parameters], ours, theirs, strict=True):
        a, b = (torch.zeros(()) if x is None else x.double() for x in (a, b))
        size = b.abs().max().clamp(min=1e-3).item()
        assert_close(a.expand_as(b), b, rtol=rtol, atol=rtol * size, msg=lambda m, n=name: f"gradient of {n}: {m}")
    return out


OPTIONS = {
    "published": {},
    "binary": {"binary": True},
    "no_regularizer": {"regularizer": "off"},
    "normalized_regularizer": {"regularizer": "normalized"},
    "equal_weights": {"aggregation": "equal"},
    "trained_weights": {"aggregation": "trained"},
    **{f"without_{g}": {"graphs": tuple(x for x in GRAPHS if x != g)} for g in GRAPHS},
    "knn_only": {"graphs": ("knn",)},
    "metadata_only": {"graphs": GRAPHS[:4]},
    "structure_only": {"graphs": GRAPHS[4:]},
    "transport_row": {"transport_select": "row"},
    "transport_off_diagonal": {"transport_diagonal": False},
    "transport_row_off_diagonal": {"transport_select": "row", "transport_diagonal": False},
    "no_alignment": {"alignment": False},
    "reciprocal": {"decay": "reciprocal"},
    "same_scale": {"structural": "same_scale"},
    "same_reference": {"structural": "same_reference"},
    "cap_per_sample": {"dist_dist_cap": "sample", "dist_dist_edges": 1000},
    "cap_per_batch": {"dist_dist_edges": 1000},
    "halves_by_scale": {"halves": "scale"},
}


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("name", OPTIONS)
def test_matches_oracle(name, B):
    leaves, plan = batch(B)
    compare(leaves, plan, small_loss(**OPTIONS[name]), 1e-7, 1e-10)


def test_matches_oracle_in_float32():
    leaves, plan = batch(2, dtype=torch.float32)
    compare(leaves, plan, small_loss(dtype=torch.float32), 2e-4, 1e-5)


@pytest.mark.parametrize("severity", [0.0, 4.0, "levels"])
def test_equal_severities(severity):
    """Every dist_dist weight ties, or all levels 0..4 repeat: the order (i, j) decides at the cap."""
    levels = torch.arange(5.0).view(1, 1, 5, 1) if severity == "levels" else torch.full((1, 1, 1, 1), severity)
    leaves, plan = batch(2, severity=levels)
    compare(leaves, plan, small_loss(dist_dist_edges=1111), 1e-7, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_of_h(dtype):
    """Distance 0: weight exactly 1, finite gradients, and ties by index, also at the last neighbour kept."""
    (z_ref, z_dist, h_ref, h_dist), plan = batch(1, dtype=dtype)
    h_dist = h_dist.detach().clone()
    h_dist[:, 1:] = h_dist[:, :1]  # each distorted row six times
    h_dist[:, :, 1:] = h_dist[:, :, :1]  # and 24 times
    h_dist[:, :, :, :2] = h_ref.detach()[:, :1, None, None]  # and 48 times, equal to a reference: more than 31
    leaves = [z_ref, z_dist, h_ref, h_dist.requires_grad_()]
    loss = small_loss(dtype=dtype, graphs=("structural", "knn"), transport_edges=1)
    out = compare(leaves, plan, loss, 2e-4 if dtype == torch.float32 else 1e-7, 1e-5)
    gradients = torch.autograd.grad(loss(*leaves, plan).total, leaves)
    assert all(g.isfinite().all() for g in gradients) and out.total.isfinite()
    distance, neighbor, mutual = SF.nearest_neighbors(torch.ones(5, 3, dtype=dtype), 2)
    assert neighbor.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert not distance.any() and mutual.tolist() == [[True, True]] * 3 + [[False, False]] * 2


def test_all_rows_equal():
    """No information in h at all: everything stays finite."""
    (z_ref, z_dist, h_ref, h_dist), plan = batch(1)
    h_ref, h_dist = (torch.ones_like(x, requires_grad=True) / 4 for x in (h_ref, h_dist))
    loss = small_loss()
    out = loss(z_ref, z_dist, h_ref, h_dist, plan)
    gradients = torch.autograd.grad(out.total, [z_ref, z_dist, h_ref, h_dist, *loss.anchors.parameters()])
    assert out.total.isfinite() and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("which", range(4), ids=["z_ref", "z_dist", "h_ref", "h_dist"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_nan_shows(which, everywhere):
    """NaN neither crashes nor disappears: it reaches the total. (Nothing checks for it: that would wait for the device.)"""
    leaves, plan = batch(1)
    with torch.no_grad():
        leaves[which][(slice(None),) if everywhere else (0, 1)] = torch.nan
    out = small_loss()(*leaves, plan)
    assert out.total.isnan()
    assert out.graph.index.min() >= 0 and out.graph.index.max() < out.graph.nodes
    torch.autograd.grad(out.total, leaves)


@pytest.mark.parametrize("options", [{"graphs": ("knn",)}, {"graphs": ("transport",)}])
def test_nan_shows_through_one_graph(options):
    leaves, plan = batch(1)
    with torch.no_grad():
        leaves[3][0, 1, 2, 3] = torch.nan
    out = small_loss(alignment=False, **options)(*leaves, plan)
    assert out.total.isnan() and torch.autograd.grad(out.total, leaves[3])[0][0, 1, 2, 3].isnan().any()


@pytest.mark.parametrize(
    "name, value", [("z_ref", math.nan), ("z_dist", -math.inf), ("h_ref", math.inf), ("h_dist", math.nan)]
)
def test_check_finite(name, value):
    leaves, plan = batch()
    loss = small_loss(check_finite=True)
    assert loss(*leaves, plan).total.isfinite()
    with torch.no_grad():
        dict(zip(("z_ref", "z_dist", "h_ref", "h_dist"), leaves, strict=True))[name][0, 1, ..., 3] = value
    with pytest.raises(ValueError, match=rf"{name} must be finite, got NaN or infinity in (1|20) of"):
        loss(*leaves, plan)


@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), (1, 2, 2, 2), (3, 2, 1, 2), (1, 3, 1, 2), (3, 3, 1, 1), (1, 4, 3, 1)])
def test_few_nodes(sizes):
    """Fewer than 31 neighbours, graphs without any edge, more transport places than pairs, odd numbers of rows."""
    leaves, plan = batch(*sizes, F=4, E=3)
    compare(leaves, plan, small_loss(4), 1e-7, 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    leaves, plan = batch(1, dtype=dtype)
    loss = small_loss(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = loss(*leaves, plan)
    assert out.total.dtype == torch.float32
    full = [x.detach().float().requires_grad_() for x in leaves]
    expected = loss(*full, plan)
    assert_close(out.total, expected.total)
    for a, b in zip(torch.autograd.grad(out.total, leaves), torch.autograd.grad(expected.total, full), strict=True):
        assert a.dtype == dtype
        assert_close(a.float(), b, rtol=2e-2, atol=2e-2 * b.abs().max().item())


def test_gradcheck(monkeypatch):
    leaves, plan = batch(1, 2, 2, 2, F=8, E=6)
    loss = small_loss(8, anchors=4, neighbors=3, transport_edges=3, aggregation="trained")
    codes = SF.transport_codes(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).double())
    monkeypatch.setattr(SF, "transport_codes", lambda *_, **__: codes)  # constant: no gradient goes through the codes
    names, parameters = zip(*loss.named_parameters(), strict=True)

    def objective(*inputs):
        state = dict(zip(names, inputs[4:], strict=True))
        return torch.func.functional_call(loss, state, (*inputs[:4], plan)).total

    assert torch.autograd.gradcheck(objective, (*leaves, *(p.detach().requires_grad_() for p in parameters)))


def test_does_not_modify_its_input():
    leaves, plan = batch(1)
    before = [x.clone() for x in (*leaves, plan.severity, plan.varying)]
    small_loss()(*leaves, plan).total.backward()
    for a, b in zip((*leaves, plan.severity, plan.varying), before, strict=True):
        assert_close(a, b, rtol=0, atol=0)


WRONG = [
    ("z_dist", lambda x: x[:, :, 1:], r"z_dist must be \[B, V, C, L, E\] = \[1, 6, 4, 5, 12\], got \[1, 6, 3, 5, 12\]"),
    ("z_ref", lambda x: x[0], r"z_ref must be \[B, V, E\]"),
    ("h_ref", lambda x: x[..., 1:], r"h_ref must be \[B, V, F\] = \[1, 6, 16\], got \[1, 6, 15\]"),
    ("h_dist", lambda x: x.long(), r"h_dist must be floating point, got torch.int64"),
    ("h_dist", lambda x: x.to("meta"), r"h_dist must be on cpu like z_ref, got meta"),
    ("severity", lambda x: x[:, :, 0], r"plan.severity must be \[B, C, L, D\], got \[1, 4, 3\]"),
    ("severity", lambda x: x.expand(2, -1, -1, -1), r"z_ref must be \[B, V, E\] = \[2, 6, 12\], got \[1, 6, 12\]"),
    ("severity", lambda x: x[:, :3], r"z_dist must be \[B, V, C, L, E\] = \[1, 6, 3, 5, 12\], got \[1, 6, 4, 5, 12\]"),
    ("severity", lambda x: x.to("meta"), r"plan.severity must be on cpu like z_ref, got meta"),
    ("varying", lambda x: x.to("meta"), r"plan.varying must be on cpu like z_ref, got meta"),
    ("varying", lambda x: x[:, 1:], r"plan.varying must be \[B, C\] = \[1, 4\], got \[1, 3\]"),
]


@pytest.mark.parametrize("name, change, message", WRONG)
def test_wrong_input(name, change, message):
    leaves, plan = batch(1)
    names = ["z_ref", "z_dist", "h_ref", "h_dist"]
    arguments = dict(zip(names, leaves, strict=True))
    if name in arguments:
        arguments[name] = change(arguments[name].detach())
    else:
        setattr(plan, name, change(getattr(plan, name)))
    with pytest.raises(ValueError, match=message):
        small_loss()(*arguments.values(), plan)


def test_no_tensor_or_plan():
    leaves, plan = batch(1)
    with pytest.raises(TypeError, match="h_ref must be a torch.Tensor, got ndarray"):
        small_loss()(*leaves[:2], leaves[2].detach().numpy(), leaves[3], plan)
    with pytest.raises(TypeError, match="plan must have severity and varying, as a shamisa.Plan, got dict"):
        small_loss()(*leaves, {})


def test_zero_rows():
    leaves, plan = batch(1)
    plan = SimpleNamespace(severity=plan.severity[:0], varying=plan.varying[:0])
    with pytest.raises(ValueError, match="B V must be at least 2, got B = 0, V = 6"):
        small_loss()(*(x.detach()[:0] for x in leaves), plan)


def test_parameters_on_another_device():
    leaves, plan = batch(1)
    with pytest.raises(ValueError, match="the parameters must be on cpu like z_ref, got meta"):
        small_loss().to("meta")(*leaves, plan)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: RelationLoss(8, decay="linear"), "decay must be one of exponential, reciprocal, got 'linear'"),
        (lambda: RelationLoss(8, graphs=("knn", "other")), "graphs must name some of .*, got other"),
        (lambda: RelationLoss(8, neighbors=0), "neighbors must be an integer in 1..65536, got 0"),
        (lambda: RelationLoss(8, anchors=2.5), "anchors must be an integer in 2..65536, got 2.5"),
        (lambda: RelationLoss(0), "feature_dim must be an integer of at least 1, got 0"),
        (lambda: RelationLoss(8, temperature=0.0), "temperature must be a number above 0, got 0.0"),
    ],
)
def test_wrong_option(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_option():
    with pytest.raises(TypeError, match="colour"):
        RelationLoss(8, colour="red")


def test_first_derivatives_only():
    x = torch.randn(6, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="shamisa::variance has first derivatives only"):
        torch.autograd.grad(SF.variance(x**2), x, create_graph=True)


def saved(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_copied_and_pickled(again):
    """Inside a model, with an optimizer over the same parameters: everything comes back, and goes on alike."""
    leaves, plan = batch()
    model = torch.nn.ModuleDict({"loss": small_loss()}).eval()
    model["loss"].aggregator.requires_grad_(False)
    optimizer = torch.optim.SGD(model["loss"].anchors.parameters(), lr=0.1)
    random = torch.get_rng_state()
    other, steps = again((model, optimizer))
    assert torch.equal(torch.get_rng_state(), random)
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert list(other.state_dict()) == list(model.state_dict()) and repr(other) == repr(model)
    assert [x.requires_grad for x in other.parameters()] == [x.requires_grad for x in model.parameters()]
    before = [x["loss"](*leaves, plan).total for x in (model, other)]
    for total, o in zip(before, (optimizer, steps), strict=True):
        total.backward()
        o.step()
    after = [x["loss"](*leaves, plan).total for x in (model, other)]
    assert torch.equal(*before) and torch.equal(*after) and not torch.equal(before[0], after[0])


def test_defaults_are_published():
    o = RelationOptions()
    assert (o.anchors, o.neighbors, o.dist_dist_edges, o.transport_edges, o.rounds) == (32, 31, 4096, 8, 6)
    assert RelationLoss().anchors.weight.shape == (32, 2048)
    assert "neighbors=5" in repr(RelationLoss(8, neighbors=5))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph_once(backend):
    torch._dynamo.reset()
    loss = small_loss(dtype=torch.float32)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for step in range(3):
        leaves, plan = batch(1, dtype=torch.float32, seed=step)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            out = compiled(*leaves, plan)
        expected = loss(*leaves, plan)
        assert_close(out.total, expected.total)
        assert_close(out.graph.dense(), expected.graph.dense())
        inputs = [*leaves, *loss.anchors.parameters()]
        for a, b in zip(*(torch.autograd.grad(x.total, inputs) for x in (out, expected)), strict=True):
            assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
