"""What agreement.py compares: every op of the package on resident tensors, as a call that two devices can make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from memory import inputs
from torch import Tensor

from shamisa import DISTORTIONS, DistortionEngine, RelationLoss, ops
from shamisa import functional as SF
from shamisa.engine import Plan
from shamisa.randomness import derive_key
from shamisa.reference.philox import DOMAIN_IMAGE

SIZES = ((224, 224), (131, 97), (64, 48))
# a share of the largest value. CPU and GPU kernels share their source; the reference rounds elsewhere, and an 8-bit step
# makes a whole grey level of that
DISTORTION_TOLERANCE = {"cuda": 1e-6, "cpu": 1.01 / 255}
RELATION_TOLERANCE = 1e-4
CHAIN_SHARE = {"cuda": 0.0, "cpu": 1e-3}  # of the samples of chains, beyond it: later stages enlarge a grey level

Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """``make(device)`` puts the inputs there and gives the call, which touches nothing else."""

    name: str
    make: Callable[[str], Call]
    tolerance: float
    share: float = 0.0  # of samples that may differ by more
    in_step: bool = False  # part of a training step: it waits for nothing and a CUDA graph replays it


def resident(function: Callable[..., list[Tensor]], *x: Tensor) -> Callable[[str], Call]:
    def make(device: str) -> Call:
        moved = [t.to(device) for t in x]
        return lambda: function(*moved)

    return make


def with_gradients(function: Callable[..., list[Tensor]], *x: Tensor) -> Callable[[str], Call]:
    """The results and, of the sum of their differentiable parts times fixed numbers, the gradients."""

    def make(device: str) -> Call:
        moved, factors = [t.to(device) for t in x], {}

        def factor(t: Tensor, i: int) -> Tensor:
            if i not in factors:
                g = torch.Generator().manual_seed(2 + i)
                factors[i] = torch.randn(t.shape, generator=g).to(t)
            return factors[i]

        def call() -> list[Tensor]:
            leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in moved]
            out = function(*leaves)
            total = sum((t * factor(t, i)).sum() for i, t in enumerate(out) if t.requires_grad)
            wanted = [t for t in leaves if t.requires_grad]
            return [*(t.detach() for t in out), *torch.autograd.grad(total, wanted)]

        return call

    return make


def randomness(device: str) -> list[Case]:
    """Random words, where they have a kernel for the device: plans are drawn on the CPU."""
    if not ops.has_kernel("philox", device):
        return []
    g = torch.Generator().manual_seed(0)
    address = [torch.randint(-(2**63), 2**63 - 1, (1000,), generator=g) for _ in range(4)]
    return [Case("philox", resident(lambda *a: [torch.ops.shamisa.philox(*a, 4)], *address), 0.0)]


def photographs(device: str) -> list[Case]:
    """Resizing, where it has a kernel for the device."""
    if not ops.has_kernel("resize_bicubic", device):
        return []
    photo = torch.randint(0, 256, (3, 90, 131), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def resize(photo: Tensor) -> list[Tensor]:
        sizes = ((40, 57), (90, 64), (120, 200))
        return [torch.ops.shamisa.resize_bicubic(photo, 3.5, 88.0, 0.0, 120.25, *size) for size in sizes]

    return [Case("resize_bicubic", resident(resize, photo), 0.0)]


def distort_all(*tensors: Tensor) -> list[Tensor]:
    """Groups of (source, index, opcode, value, key)."""
    return [ops.run_distort(*tensors[i : i + 5], backend="native") for i in range(0, len(tensors), 5)]


def distortions(device: str) -> list[Case]:
    """Images like photographs, all five levels, three sizes; then whole chains of the engine."""
    g, cases = torch.Generator().manual_seed(0), []
    images = []
    for H, W in SIZES:
        coarse = torch.rand(5, 3, H // 8 + 2, W // 8 + 2, generator=g)
        x = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear")
        images.append((x + 0.05 * torch.randn(x.shape, generator=g)).clamp(0, 1))
    key = derive_key(torch.tensor(3), torch.arange(5), domain=DOMAIN_IMAGE)
    for name, row in DISTORTIONS.items():
        stage = [torch.full((5,), row.opcode), torch.tensor(row.levels, dtype=torch.float32), key]
        arguments = [t for x in images for t in (x, torch.arange(5), *(s[:, None] for s in stage))]
        cases.append(Case(name, resident(distort_all, *arguments), DISTORTION_TOLERANCE[device], in_step=True))
    references = torch.randint(0, 256, (2, 2, 3, 96, 96), dtype=torch.uint8, generator=g)
    engine, plan = DistortionEngine(), DistortionEngine().sample(2, seed=5)
    fields = [getattr(plan, f.name) for f in dataclasses.fields(Plan)]

    def whole(references: Tensor, *fields: Tensor) -> list[Tensor]:
        return [engine(references, Plan(*fields), dtype=torch.uint8, normalize=False)]

    run, limit = resident(whole, references, *fields), DISTORTION_TOLERANCE[device]
    return [*cases, Case("engine (uint8)", run, limit, CHAIN_SHARE[device], in_step=True)]


def relations(device: str) -> list[Case]:
    """Every op with its gradients, N = 126, and kNN where rows are hard to tell apart; the objective with its gradients."""
    leaves, plan = inputs(1, 256, 96)
    leaves = [x.detach() for x in leaves]
    severity = plan.varying_severity
    h = torch.cat([leaves[2].flatten(0, 1), leaves[3].flatten(0, 3)])
    z = torch.cat([leaves[0].flatten(0, 1), leaves[1].flatten(0, 3)])
    g = torch.Generator().manual_seed(1)
    anchors, logits = torch.randn(32, 256, generator=g), h[:, :32]
    near = SF.knn_graph(h)  # edges whose weights take part in gradients
    # tight groups far from each other, and rows that share nearly all: products cannot tell the rows
    clusters = torch.randn(6, 256, generator=g)[torch.arange(1000) % 6] + 1e-3 * torch.randn(1000, 256, generator=g)
    collapsed = 1 + 1e-3 * torch.randn(1000, 256, generator=g)

    def edges(graph: SF.RelationGraph) -> list[Tensor]:
        return [graph.weight, graph.index]

    def graph(weight: Tensor, index: Tensor) -> SF.RelationGraph:
        return SF.RelationGraph(weight, index, len(h))

    def by_row(x: Tensor) -> list[Tensor]:
        return edges(SF.transport_graph(x, select="row", diagonal=False))

    makes = {
        "structural_graph": resident(lambda s: edges(SF.structural_graph(s)), severity),
        "ref_dist_graph": resident(lambda s: edges(SF.ref_dist_graph(s)), severity),
        "ref_ref_graph": resident(lambda s: edges(SF.ref_ref_graph(s)), severity),
        "dist_dist_graph": resident(lambda s: edges(SF.dist_dist_graph(s)), severity),
        "dist_dist_graph (sample)": resident(lambda s: edges(SF.dist_dist_graph(s, edges=900, cap="sample")), severity),
        "knn_graph": with_gradients(SF.nearest_neighbors, h),
        "knn_graph (clusters)": with_gradients(SF.nearest_neighbors, clusters),
        "knn_graph (collapsed)": with_gradients(SF.nearest_neighbors, collapsed),
        "transport_logits": with_gradients(lambda h, a: [SF.transport_logits(h, a)], h, anchors),
        "transport_codes": resident(lambda x: [SF.transport_codes(x)], logits),
        "transport_graph": with_gradients(lambda x: edges(SF.transport_graph(x)), logits),
        "transport_graph (row)": with_gradients(by_row, logits),
        "merge_edges": with_gradients(lambda w, i: edges(SF.merge_graphs([graph(w, i)])), near.weight, near.index),
        "pair_cost": with_gradients(lambda z, w, i: [SF.pair_cost(z, graph(w, i))], z, near.weight, near.index),
        "variance": with_gradients(lambda x: [SF.variance(x)], z),
        "covariance": with_gradients(lambda x: [SF.covariance(x)], z),
    }
    cases = [Case(name, make, RELATION_TOLERANCE) for name, make in makes.items()]

    def objective(device: str) -> Call:
        torch.manual_seed(0)
        loss, there = RelationLoss(feature_dim=256).to(device), plan.to(device)
        moved = [x.to(device) for x in leaves]

        def call() -> list[Tensor]:
            fresh = [x.detach().requires_grad_() for x in moved]
            total = loss(*fresh, there).total
            return [total.detach(), *torch.autograd.grad(total, fresh)]

        return call

    return [*cases, Case("objective and gradients", objective, RELATION_TOLERANCE, in_step=True)]


def cases(device: str) -> list[Case]:
    """All of a device, the cheapest to explain first."""
    return [*randomness(device), *photographs(device), *distortions(device), *relations(device)]
