"""The pieces of the objective as plain functions, usable without the rest of the package.

Letters: B samples, V views, C compositions, L levels, N nodes, F features, E embedding, K anchors, M edges. Nodes are
the B V references (sample, view), then the distorted images (sample, view, composition, level): N = B V (1 + C L).
`severity` [B, C, L] is the severity, 0..4, of the stage that varies between the levels. All shapes are static and
nothing waits for the device. Half precision is computed in float32, float64 stays float64. Wrong shapes, dtypes,
devices or options raise ValueError before any work, and so do severities outside 0..4 on the CPU. Other values are not
looked at, because on a GPU that would wait for the device: NaN shows in what is computed from it. What is not a tensor
raises TypeError.

Derivatives: first ones, by backward() and torch.autograd.grad. create_graph=True, forward mode (torch.func.jvp,
torch.autograd.forward_ad) and the gradient transforms of torch.func (grad, vjp, jacrev) raise RuntimeError; vmap gives the
right result, one example after another. Severities and codes are constants: no gradient reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from . import checks, ops  # noqa: F401  ops registers torch.ops.shamisa
from .reference.ranges import check_severity
from .reference.relations import view_classes

CLASSES = ("parity", "same_scale", "same_reference")
DECAYS = ("exponential", "reciprocal")


@dataclass
class RelationGraph:
    """A weighted graph as edges: weight [M] and index [2, M] int64 with rows i and j, over `nodes` nodes.

    Edges that merge_graphs left empty are (0, 0) with weight 0, so that the shape does not depend on the data.
    """

    weight: Tensor
    index: Tensor
    nodes: int

    def dense(self) -> Tensor:
        """The adjacency matrix [N, N]; the weights of equal edges are added."""
        matrix = self.weight.new_zeros(self.nodes, self.nodes)
        return matrix.index_put((self.index[0], self.index[1]), self.weight, accumulate=True)


def _check_graph(graph: RelationGraph) -> None:
    weight, index = graph.weight, graph.index
    if not weight.is_floating_point() or index.dtype != torch.int64 or index.shape != (2, *weight.shape):
        raise ValueError(
            "graph must have weight [M] floating point and index [2, M] int64, "
            f"got {list(weight.shape)} {weight.dtype} and {list(index.shape)} {index.dtype}"
        )
    if weight.device != index.device:
        raise ValueError(f"graph must have its weight on {index.device} like its index, got {weight.device}")


def _check_severity(severity: Tensor, views: int) -> int:
    """Returns the number of nodes."""
    checks.floating("severity", severity, "B, C, L")
    checks.integer("views", views, 1)
    check_severity("severity", severity)
    B, C, L = severity.shape
    return B * views * (1 + C * L)


def _check_classes(classes: str, views: int) -> None:
    checks.choice("classes", classes, CLASSES)
    if classes != "parity" and views % 2:
        raise ValueError(f"views must be even for classes={classes!r}, got {views}")


def structural_graph(severity: Tensor, views: int = 6, *, classes: str = "parity") -> RelationGraph:
    """Joins distorted images of one sample, composition and level in different views of one class; weight 1.

    classes: "parity" (v mod 2, as published), "same_scale" (v < V / 2 or not) or "same_reference" (v mod V / 2).
    """
    nodes = _check_severity(severity, views)
    _check_classes(classes, views)
    return RelationGraph(*torch.ops.shamisa.structural_graph(severity.detach(), views, classes), nodes)


def ref_dist_graph(severity: Tensor, views: int = 6, *, decay: str = "exponential") -> RelationGraph:
    """Joins each reference to its distorted images, in that direction; weight s(severity).

    decay: s(g) = exp(-3 g / 4), "exponential", or 1 / (1 + g / 4), "reciprocal".
    """
    nodes = _check_severity(severity, views)
    checks.choice("decay", decay, DECAYS)
    return RelationGraph(*torch.ops.shamisa.ref_dist_graph(severity.detach(), views, decay), nodes)


def ref_ref_graph(severity: Tensor, views: int = 6) -> RelationGraph:
    """Joins every ordered pair of distinct references of the batch; weight 1. Only the shape of severity matters."""
    nodes = _check_severity(severity, views)
    return RelationGraph(*torch.ops.shamisa.ref_ref_graph(severity.detach(), views), nodes)


def dist_dist_graph(
    severity: Tensor, views: int = 6, *, edges: int = 4096, cap: str = "batch", decay: str = "exponential"
) -> RelationGraph:
    """Joins ordered pairs of distorted images of one sample and composition; weight s(|severity gap|).

    Keeps the `edges` largest of the batch, or of each sample with cap="sample"; ties go to smaller i, then smaller j. The
    published code leaves ties to torch.topk, which takes them in no stated order. From B = 2 on hundreds of pairs tie for
    the last place (those of one composition and two levels). In a recorded batch of B = 2, 4 of 5,228 edges differed, which
    changed the invariance by 2e-4 of itself and the total by 1e-5. Over ten batches of an untrained small encoder a median of
    7 of 6,580 edges of the merged graph differ at B = 2 (at most 48), invariance and total by 1e-4 (at most 1.5e-3); at
    B = 1 none (``python -m benchmarks.ties``).
    """
    nodes = _check_severity(severity, views)
    checks.integer("edges", edges, 0)
    checks.choice("cap", cap, ("batch", "sample"))
    checks.choice("decay", decay, DECAYS)
    return RelationGraph(
        *torch.ops.shamisa.dist_dist_graph(severity.detach(), views, edges, cap == "sample", decay), nodes
    )


def nearest_neighbors(h: Tensor, k: int = 31) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest other rows of each row of h [N, F], nearest first, ties to the smaller row.

    Returns three [N, min(k, N - 1)]: Euclidean distance (differentiable in h, with slope 0 at distance 0), neighbor
    (int64) and mutual (bool: the row is also among the k nearest of its neighbour).
    """
    checks.floating("h", h, "N, F")
    checks.integer("k", k, 1)
    checks.within("rows of h", len(h), 2)
    return torch.ops.shamisa.knn_graph(h, min(k, len(h) - 1))


def knn_graph(h: Tensor, k: int = 31) -> RelationGraph:
    """Weight 1 / (1 + |h_i - h_j|) for the k nearest rows of each row, plus the transpose; differentiable in h.

    h [N, F] -> 2 N k edges. A mutual pair appears twice in each direction: its weights add.
    """
    distance, neighbor, _ = nearest_neighbors(h, k)
    i = torch.arange(len(h), device=h.device)[:, None].expand_as(neighbor).flatten()
    j, weight = neighbor.flatten(), 1 / (1 + distance.flatten())
    index = torch.stack([torch.cat([i, j]), torch.cat([j, i])])
    return RelationGraph(torch.cat([weight, weight]), index, len(h))


def transport_logits(h: Tensor, anchors: Tensor) -> Tensor:
    """Cosine-like similarity of rows to anchors: normalised h [N, F] times anchors [K, F] transposed -> [N, K]."""
    checks.floating("h", h, "N, F")
    checks.floating("anchors", anchors, "K, F")
    if h.shape[1] != anchors.shape[1] or h.device != anchors.device:
        raise ValueError(
            f"anchors must be [K, F] with F = {h.shape[1]} on {h.device}, got {list(anchors.shape)} on {anchors.device}"
        )
    return torch.ops.shamisa.transport_logits(h, anchors)[0]


def transport_codes(logits: Tensor, *, temperature: float = 0.05, rounds: int = 6) -> Tensor:
    """Balanced soft assignment of rows to anchors, by Sinkhorn iterations; no gradient.

    logits [N, K] -> [N, K]: exp(logits / temperature) with `rounds` rescalings of columns, then rows, to equal sums;
    each row of the result sums to 1.
    """
    checks.floating("logits", logits, "N, K")
    checks.integer("rounds", rounds, 1)
    checks.number("temperature", temperature, above=0)
    return torch.ops.shamisa.transport_codes(logits.detach(), temperature, rounds)


def transport_graph(
    logits: Tensor, *, temperature: float = 0.1, edges: int = 8, select: str = "global", diagonal: bool = True
) -> RelationGraph:
    """Keeps the largest scores mean_k log p_ik p_jk with p = softmax(logits / temperature), min-max normalised.

    logits [N, K]. select="global" keeps the `edges` N largest of the matrix, "row" `edges` in each row; ties go to
    smaller i, then smaller j. diagonal=False never keeps i = j. Differentiable in logits.
    """
    checks.floating("logits", logits, "N, K")
    checks.choice("select", select, ("global", "row"))
    checks.integer("edges", edges, 0)
    checks.within("rows of logits", len(logits), 2)
    checks.number("temperature", temperature, above=0)
    return graph_of_assignments(log_assignments(logits, temperature), edges, select, diagonal)


def log_assignments(logits: Tensor, temperature: float) -> Tensor:
    """log p [N, K], p = softmax(logits / temperature): what transport_graph and transport_alignment have in common."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (logits.to(dtype) / temperature).log_softmax(1)


def graph_of_assignments(log_p: Tensor, edges: int, select: str, diagonal: bool) -> RelationGraph:
    """transport_graph from log p [N, K]; nothing is checked."""
    weight, index, _ = torch.ops.shamisa.transport_graph(log_p, edges, select == "row", diagonal)
    return RelationGraph(weight, index, len(log_p))


def transport_alignment(
    logits: Tensor,
    codes: Tensor,
    severity: Tensor,
    views: int = 6,
    *,
    classes: str = "parity",
    temperature: float = 0.1,
) -> Tensor:
    """mean(codes log p) plus the mean of codes_i . log p_j / K over the structural edges (i, j); a scalar.

    logits, codes [N, K]; differentiable in logits. Without structural edges the second mean is 0.
    """
    nodes = _check_severity(severity, views)
    _check_classes(classes, views)
    checks.floating("logits", logits, "N, K")
    if len(logits) != nodes or codes.shape != logits.shape:
        raise ValueError(
            f"logits and codes must be [N, K] with N = B V (1 + C L) = {nodes}, "
            f"got {list(logits.shape)} and {list(codes.shape)}"
        )
    if codes.device != logits.device:
        raise ValueError(f"codes must be on {logits.device} like logits, got {codes.device}")
    checks.number("temperature", temperature, above=0)
    return alignment_of_assignments(log_assignments(logits, temperature), codes, severity.shape, views, classes)


def alignment_of_assignments(
    log_p: Tensor, codes: Tensor, sizes: tuple[int, int, int], views: int, classes: str
) -> Tensor:
    """transport_alignment from log p [N, K], with sizes = (B, C, L); nothing is checked."""
    B, C, L = sizes
    of = view_classes(views, classes)
    members = [[v for v in range(views) if of[v] == c] for c in sorted(set(of))]
    count = B * C * L * sum(len(g) * (len(g) - 1) for g in members)
    # a class is every step-th view from its first: a list of views would be copied to a GPU, which waits for it
    groups = [slice(g[0], g[-1] + 1, g[1] - g[0] if len(g) > 1 else 1) for g in members]
    codes = codes.detach().to(log_p.dtype).contiguous()
    slope = codes / codes.numel()  # the alignment is linear in log p
    if count:  # the sum over ordered pairs of a class is (sum of codes) . (sum of log p) less the diagonal
        q, to = (x[B * views :].view(B, views, C * L, -1) for x in (codes, slope))
        for g in groups:
            to[:, g].add_(q[:, g].sum(1, keepdim=True) - q[:, g], alpha=1 / (count * codes.shape[1]))
    return (slope * log_p).sum()


def merge_graphs(graphs: Sequence[RelationGraph], scales: Sequence[Tensor | float] | None = None) -> RelationGraph:
    """The sum of the graphs, each times its scale, restricted to i < j: each pair once, sorted by (i, j).

    The result has as many edges as the inputs together; those not needed are (0, 0) with weight 0.
    """
    if not graphs or len({g.nodes for g in graphs}) != 1:
        raise ValueError(f"graphs must be of one number of nodes, got {[g.nodes for g in graphs]}")
    for graph in graphs:
        _check_graph(graph)
    if len({g.weight.device for g in graphs}) != 1:
        raise ValueError(f"graphs must be on one device, got {[str(g.weight.device) for g in graphs]}")
    if scales is not None and len(scales) != len(graphs):
        raise ValueError(f"scales must be {len(graphs)} numbers, one per graph, got {len(scales)}")
    weights = [g.weight * s for g, s in zip(graphs, scales or [1.0] * len(graphs), strict=True)]
    dtype = torch.float64 if any(w.dtype == torch.float64 for w in weights) else torch.float32
    index = torch.cat([g.index for g in graphs], 1)
    weight = torch.cat([w.to(dtype) for w in weights])
    weight, index, _ = torch.ops.shamisa.merge_edges(weight, index, graphs[0].nodes)
    return RelationGraph(weight, index, graphs[0].nodes)


def pair_cost(z: Tensor, graph: RelationGraph) -> Tensor:
    """sum over edges of weight |z_i - z_j|^2, divided by N E. z [N, E]; differentiable in z and the weights."""
    checks.floating("z", z, "N, E")
    _check_graph(graph)
    if len(z) != graph.nodes or z.device != graph.index.device:
        raise ValueError(
            f"z must be [N, E] with N = {graph.nodes} on {graph.index.device}, got {list(z.shape)} on {z.device}"
        )
    return torch.ops.shamisa.pair_cost(z, graph.weight, graph.index)[0]


def variance(x: Tensor) -> Tensor:
    """VICReg variance: mean over dimensions of relu(1 - sqrt(var + 1e-4)), unbiased var over rows. x [n, E]."""
    checks.floating("x", x, "n, E")
    checks.within("rows of x", len(x), 2)
    return torch.ops.shamisa.variance(x)


def covariance(x: Tensor) -> Tensor:
    """VICReg covariance: (sum of squared off-diagonal entries of the covariance matrix) / E. x [n, E]."""
    checks.floating("x", x, "n, E")
    checks.within("rows of x", len(x), 2)
    return torch.ops.shamisa.covariance(x)[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.ranks, ctx.first, ctx.rows = dist.get_world_size(), dist.get_rank() * len(x), len(x)
        out = x.new_empty(ctx.ranks * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous())
        # torch 2.11 compiles an output that was written in place to one without a gradient, and says nothing
        return out.clone() if torch.compiler.is_compiling() else out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad[ctx.first : ctx.first + ctx.rows] * ctx.ranks


def check_ranks(axes: str, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises ValueError on every rank of torch.distributed, naming what each has, unless `shape` is the same on all.

    axes: names of the sizes, as "B, V". A collective of a few integers; on a GPU it waits for the device. Every rank
    must call it, with as many sizes.
    """
    own = torch.tensor(shape, dtype=torch.int64, device=device)
    everyone = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(everyone, own)
    for name, sizes in zip(axes.split(", "), everyone.view(-1, len(own)).T.tolist(), strict=True):
        if len(set(sizes)) > 1:
            found = ", ".join(f"{size} on rank {rank}" for rank, size in enumerate(sizes))
            raise ValueError(f"{name} must be the same on every rank, got {found}")


def gather(x: Tensor) -> Tensor:
    """The rows of all W ranks of torch.distributed, in the order of the ranks: x [n, ...] -> [W n, ...].

    For a loss that every rank computes in full from gathered rows. x must have the same shape and dtype everywhere
    (nothing checks it here: see check_ranks).

    Gradient: the loss T is the same function of the same rows on every rank, so the gradient that reaches the own rows
    is dT/dx already, and nothing is sent backwards; it is multiplied by W. DistributedDataParallel averages over ranks,
    which divides by W, so that the parameters get the sum over ranks of dT/dx dx/dparameter: exactly what one process
    computes from the concatenated rows. Parameters inside the loss get dT/dparameter on every rank, and so does their
    average. Every rank must call backward with the same factor on T (as a common GradScaler has).

    Raises:
        RuntimeError: without an initialised process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("gather needs a process group: call torch.distributed.init_process_group first")
    return _Gather.apply(x)
