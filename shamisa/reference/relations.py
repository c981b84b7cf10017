"""Relation graphs and the terms of the objective, in plain PyTorch: the specification of every relation op.

Letters: B samples, V views, C compositions, L levels, N = B V (1 + C L) nodes, F features, E embedding, K anchors,
M edges. Nodes are the B V references (sample, view), then the distorted images (sample, view, composition, level).

Every output shape follows from the input shapes, nothing waits for the device, and results are deterministic. Where a
graph keeps the largest entries, ties go to the smaller i, then to the smaller j. Half precision is computed in
float32, float64 stays float64; products that decide *which* edges exist run in float64 and are compared in float32, so
that another backend reaches the same decision and equal rows tie. These functions may use N x N temporaries, the native
kernels do not.

Agreement: native kernels give the same edges and values within 1e-5 relative in float32. The exception is rows of h that
almost coincide: distances below 1e-5 of the norm are partly rounding here (float64 products), below 3e-7 they count as 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

PAIR_CHUNK = 8192  # edges gathered at a time
ROW_CHUNK = 512  # rows of an N x N matrix held at a time
SAME_POINT = 1e-13  # squared distances below this share of |a|^2 + |b|^2 are float64 rounding, hence 0
FLAT_SCORE = 1e-6  # a smaller range of transport scores is rounding, not information
LEAST_NORM = 1e-12  # of a row of h, against division by zero
VARIANCE_EPS = 1e-4


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays float64, every other floating type is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def outside_autocast(reference: Callable) -> Callable:
    """Autocast reaches into the kernel of an op: without this, its products would run in half precision."""

    @functools.wraps(reference)
    def run(x: Tensor, *rest):
        with torch.autocast(x.device.type, enabled=False):
            return reference(x, *rest)

    return run


def select_largest(score: Tensor, k: int) -> Tensor:
    """Positions of the k largest of the last dimension, ascending; ties go to the smaller position.

    score [..., M] -> [..., k] int64. Static shapes: the mask of the chosen is turned into positions by a search.
    """
    if k == 0:
        return torch.empty(*score.shape[:-1], 0, dtype=torch.int64, device=score.device)
    bound = score.topk(k).values[..., -1:]
    above, level = score > bound, score == bound
    missing = k - above.sum(-1, keepdim=True)
    count = (above | (level & (level.cumsum(-1) <= missing))).cumsum(-1)  # [..., M]
    rank = torch.arange(1, k + 1, device=score.device).expand(*score.shape[:-1], k).contiguous()
    return torch.searchsorted(count, rank).clamp_(max=score.shape[-1] - 1)  # the clamp matters for NaN only


# ---------------------------------------------------------------------------------------------------- metadata graphs
def view_classes(views: int, classes: str) -> list[int]:
    """The class of each view: structural edges join different views of one class."""
    half = max(views // 2, 1)
    return [{"parity": v % 2, "same_scale": v // half, "same_reference": v % half}[classes] for v in range(views)]


def structural_pairs(views: int, classes: str) -> list[tuple[int, int]]:
    """Ordered pairs of different views of one class."""
    of = view_classes(views, classes)
    return [(a, b) for a in range(views) for b in range(views) if a != b and of[a] == of[b]]


def decayed(gap: Tensor, decay: str) -> Tensor:
    """Weight of a severity gap in [0, 4]: exp(-3 gap / 4), or 1 / (1 + gap / 4)."""
    return torch.exp(-0.75 * gap) if decay == "exponential" else 1 / (1 + gap / 4)


def _distorted_nodes(severity: Tensor, views: int) -> Tensor:
    """Node numbers of the distorted images, [B, V, C, L] int64."""
    B, C, L = severity.shape
    first = B * views
    return torch.arange(first, first + B * views * C * L, device=severity.device).view(B, views, C, L)


def structural_graph(severity: Tensor, views: int, classes: str) -> tuple[Tensor, Tensor]:
    """Distorted pairs of one sample, composition and level in different views of one class; weight 1.

    severity [B, C, L] -> weight [M], index [2, M] int64; M = B C L pairs, both directions, ordered by view pair.
    """
    node = _distorted_nodes(severity, views)
    pairs = structural_pairs(views, classes)
    index = torch.stack([node[:, [a for a, _ in pairs]].flatten(), node[:, [b for _, b in pairs]].flatten()])
    return torch.ones(index.shape[1], dtype=compute_dtype(severity), device=severity.device), index


def ref_dist_graph(severity: Tensor, views: int, decay: str) -> tuple[Tensor, Tensor]:
    """Reference (b, v) -> distorted (b, v, c, l), one direction; weight s(severity). M = B V C L."""
    node = _distorted_nodes(severity, views)
    reference = torch.arange(len(severity) * views, device=severity.device).view(-1, views, 1, 1).expand_as(node)
    weight = decayed(severity.to(compute_dtype(severity)), decay)[:, None].expand_as(node)
    return weight.reshape(-1).clone(), torch.stack([reference.flatten(), node.flatten()])


def ref_ref_graph(severity: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Every ordered pair of distinct references of the batch; weight 1. M = R (R - 1) with R = B V."""
    R = severity.shape[0] * views
    edge = torch.arange(R * (R - 1), device=severity.device)
    i, j = edge // max(R - 1, 1), edge % max(R - 1, 1)
    return torch.ones(R * (R - 1), dtype=compute_dtype(severity), device=edge.device), torch.stack([i, j + (j >= i)])


def dist_dist_count(B: int, C: int, L: int, views: int, edges: int, per_sample: bool) -> int:
    """Number of edges that dist_dist_graph keeps."""
    per = C * views * L * (views * L - 1)
    return B * min(edges, per) if per_sample else min(edges, B * per)


def dist_dist_graph(severity: Tensor, views: int, edges: int, per_sample: bool, decay: str) -> tuple[Tensor, Tensor]:
    """Ordered pairs of distinct distorted nodes of one sample and composition; weight s(|severity_i - severity_j|).

    Only the `edges` largest of the batch (or of each sample) are kept, listed in the order (i, j).
    """
    B, C, L = severity.shape
    severity = severity.to(compute_dtype(severity))
    gap = (severity[:, :, :, None] - severity[:, :, None, :]).abs()  # [B, C, L, L']
    gap = gap[:, None, :, :, None].expand(B, views, C, L, views, L)  # row-major order here is the order (i, j)
    same = torch.eye(views * L, dtype=torch.bool, device=gap.device).view(views, 1, L, views, L)
    node = _distorted_nodes(severity, views)
    source = node[..., None, None].expand_as(gap)
    target = node.permute(0, 2, 1, 3)[:, None, :, None].expand_as(gap)
    groups = (B, -1) if per_sample else (1, -1)
    kept = dist_dist_count(B, C, L, views, edges, per_sample) // groups[0]
    # Ranking the gaps, not the weights, keeps the choice free of anybody's exp. NaN comes first, so that it shows.
    rank = torch.where(gap.isnan(), -1, gap).masked_fill(same, torch.inf)
    chosen = select_largest(-rank.reshape(groups), kept)
    index = torch.stack([x.reshape(groups).gather(1, chosen).flatten() for x in (source, target)])
    return decayed(gap.reshape(groups).gather(1, chosen).flatten(), decay), index


# ---------------------------------------------------------------------------------------------------------- neighbours
def knn_graph(h: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest other rows of each row, nearest first, ties to the smaller j.

    h [N, F] -> distance [N, k] (Euclidean, exactly 0 for equal rows), neighbor [N, k] int64, mutual [N, k] bool (row i
    is also among the k nearest of its neighbour). Differentiable: distance -> h.
    """
    N, dtype = h.shape[0], compute_dtype(h)
    x = h.double()
    norm = x.square().sum(1)
    neighbors, distances = [], []
    for rows in torch.arange(N, device=h.device).split(ROW_CHUNK):
        scale = norm[rows, None] + norm
        squared = torch.addmm(scale, x[rows], x.T, alpha=-2)
        squared = squared.masked_fill(squared < SAME_POINT * scale, 0)
        key = squared.float().scatter(1, rows[:, None], torch.inf)  # float32: equal rows tie exactly
        neighbor = select_largest(-key, k)
        order = key.gather(1, neighbor).sort(dim=1, stable=True).indices
        neighbors.append(neighbor.gather(1, order))
        distances.append(squared.gather(1, neighbors[-1]).sqrt().to(dtype))
    neighbor = torch.cat(neighbors)
    mutual = (neighbor[neighbor] == torch.arange(N, device=h.device)[:, None, None]).any(-1)
    return torch.cat(distances), neighbor, mutual


def knn_graph_backward(grad: Tensor, h: Tensor, distance: Tensor, neighbor: Tensor) -> Tensor:
    """grad [N, k] of distance -> [N, F] of h: a graph Laplacian of grad / distance. The slope at distance 0 is 0."""
    slope = torch.where(distance > 0, grad / distance, 0).double()
    S = torch.zeros(len(h), len(h), dtype=torch.float64, device=h.device).scatter_(1, neighbor, slope)
    S = S + S.T
    x = h.double()  # float64, because (h_i - h_j) / distance cancels for close rows
    return (S.sum(1, keepdim=True) * x - S @ x).to(h.dtype).contiguous()


# ----------------------------------------------------------------------------------------------------------- transport
@outside_autocast
def transport_logits(h: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised rows times anchors, and the norms [N] that the backward needs. Differentiable: logits -> h, anchors.

    h [N, F], anchors [K, F] -> logits [N, K]. In float64, rounded once, because the transport graph is decided by them.
    """
    dtype, x = compute_dtype(h), h.double()
    norm = torch.linalg.vector_norm(x, dim=1).clamp(min=LEAST_NORM)
    return (x @ anchors.double().T / norm[:, None]).to(dtype), norm.to(dtype)


@outside_autocast
def transport_logits_backward(
    grad: Tensor, h: Tensor, anchors: Tensor, logits: Tensor, norm: Tensor
) -> tuple[Tensor, Tensor]:
    """grad [N, K] of logits -> [N, F] of h, without its part along h, and [K, F] of anchors."""
    x, w = h.to(norm.dtype), anchors.to(norm.dtype)
    grad = grad / norm[:, None]
    along = torch.where(norm > LEAST_NORM, (grad * logits).sum(1) / norm, 0)
    dh = (grad @ w).addcmul_(x, along[:, None], value=-1)
    return dh.to(h.dtype), (grad.T @ x).to(anchors.dtype)


def transport_codes(u: Tensor, temperature: float, rounds: int) -> Tensor:
    """Balanced soft assignment of rows to anchors (Sinkhorn in the log domain: cannot overflow); no gradient.

    u [N, K] -> [N, K]: exp(u / temperature), `rounds` times (columns to sum 1 / K, rows to sum 1 / N), times N.
    """
    log_q = u.to(compute_dtype(u)) / temperature
    for _ in range(rounds):
        log_q = log_q - log_q.logsumexp(0, keepdim=True)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    # The marginals 1 / K and 1 / N only shift the logarithms: after the last row step each row sums to 1 = N / N.
    return log_q.exp()


def transport_count(N: int, edges: int, per_row: bool, diagonal: bool) -> int:
    """Number of edges that transport_graph keeps, with `edges` of them per node."""
    per = N if diagonal else N - 1
    return N * min(edges, per) if per_row else min(edges * N, N * per)


def transport_graph(log_p: Tensor, edges: int, per_row: bool, diagonal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The largest scores c_ij = mean_k log p_ik p_jk, min-max normalised over all N^2.

    log_p [N, K] -> weight [M], index [2, M] int64 in the order (i, j), extreme [2, 2] int64: columns (i, j) of the
    first minimum and the first maximum. M = edges N of the whole matrix, or `edges` per row; without `diagonal`, i = j
    is never kept. A range of scores below FLAT_SCORE counts as FLAT_SCORE. Differentiable: weight -> log_p.
    """
    N, K = log_p.shape
    x = log_p.double()
    c = x @ x.exp().T / K
    key = c.float()  # equal rows tie exactly
    flat = c.to(compute_dtype(log_p)).flatten()
    extreme = torch.stack([flat.argmin(), flat.argmax()])
    low, high = c.flatten()[extreme]
    if not diagonal:
        key = key.masked_fill(torch.eye(N, dtype=torch.bool, device=key.device), -torch.inf)
    M = transport_count(N, edges, per_row, diagonal)
    if per_row:
        j = select_largest(key, M // N)
        i = torch.arange(N, device=key.device)[:, None].expand_as(j)
    else:
        chosen = select_largest(key.flatten(), M)
        i, j = chosen // N, chosen % N
    index = torch.stack([i.flatten(), j.flatten()])
    weight = (c[index[0], index[1]] - low) / (high - low).clamp(min=FLAT_SCORE)
    return weight.to(flat.dtype), index, torch.stack([extreme // N, extreme % N])


def transport_graph_backward(grad: Tensor, log_p: Tensor, weight: Tensor, index: Tensor, extreme: Tensor) -> Tensor:
    """grad [M] of weight -> [N, K] of log_p, through the scores and through their minimum and maximum."""
    N, K = log_p.shape
    x, grad, weight = log_p.double(), grad.double(), weight.double()
    p = x.exp()
    low, high = (x[extreme[0]] * p[extreme[1]]).mean(1)
    span = (high - low).clamp(min=FLAT_SCORE)
    live = (high - low >= FLAT_SCORE).double()  # where the range is clamped, the maximum has no part in it
    to_high = -(grad * weight).sum() * live
    edge = torch.cat([index, extreme], 1)
    value = torch.cat([grad, torch.stack([-grad.sum() - to_high, to_high])]) / (span * K)
    S = torch.zeros(N, N, dtype=torch.float64, device=x.device).index_put_((edge[0], edge[1]), value, accumulate=True)
    return (S @ p + (S.T @ x) * p).to(log_p.dtype).contiguous()


# --------------------------------------------------------------------------------------------------- merging and terms
def merge_edges(weight: Tensor, index: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps the edges with i < j, sorts them by (i, j) and adds the weights of equal ones, in the order of the input.

    weight [M], index [2, M] int64 -> weight [M], index [2, M], position [M] int64. The distinct edges come first;
    padding after them is (0, 0) with weight 0. position: where an input edge went, -1 for the dropped.
    Differentiable: weight -> weight.
    """
    i, j = index
    M = weight.numel()
    dtype = compute_dtype(weight)
    if M == 0:
        return weight.to(dtype, copy=True), index.clone(), torch.empty_like(i)
    used = i < j
    key, order = torch.where(used, i * nodes + j, nodes * nodes).sort(stable=True)
    fresh = torch.cat([key.new_ones(1), (key[1:] != key[:-1]).long()])
    slot = fresh.cumsum(0) - 1
    kept = used[order]
    merged = torch.zeros(M, dtype=dtype, device=weight.device)
    merged.index_put_((slot,), torch.where(kept, weight[order].to(dtype), 0), accumulate=True)
    packed = torch.zeros_like(key).scatter_(0, slot, torch.where(kept, key, 0))
    position = torch.empty_like(key).scatter_(0, order, torch.where(kept, slot, -1))
    return merged, torch.stack([packed // nodes, packed % nodes]), position


def merge_edges_backward(grad: Tensor, position: Tensor) -> Tensor:
    """grad [M] of the merged weights -> [M] of the input weights; 0 for dropped edges."""
    return torch.where(position >= 0, grad[position.clamp(min=0)], 0) if grad.numel() else grad.clone()


def pair_cost(z: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """sum over edges of weight |z_i - z_j|^2 / (N E); also the squared distances [M], which the backward needs.

    z [N, E], weight [M], index [2, M] int64 -> scalar, [M]. Differentiable: scalar -> z, weight.
    """
    dtype = compute_dtype(z)
    x = z.to(dtype)
    chunks = index.split(PAIR_CHUNK, 1)
    squared = torch.cat([(x[i] - x[j]).square().sum(1) for i, j in chunks]) if index.numel() else x.new_zeros(0)
    return (weight.to(dtype) * squared).sum() / z.numel(), squared


@outside_autocast
def pair_cost_backward(
    grad: Tensor, z: Tensor, weight: Tensor, index: Tensor, squared: Tensor
) -> tuple[Tensor, Tensor]:
    """grad (scalar) -> [N, E] of z, a graph Laplacian, and [M] of weight."""
    dtype = compute_dtype(z)
    x = z.to(dtype)
    grad = grad.to(dtype) / z.numel()
    S = x.new_zeros(len(z), len(z)).index_put_((index[0], index[1]), weight.to(dtype), accumulate=True)
    S = S + S.T
    dz = (2 * grad) * (S.sum(1, keepdim=True) * x - S @ x)
    return dz.to(z.dtype).contiguous(), (grad * squared).to(weight.dtype)


def variance(x: Tensor) -> Tensor:
    """mean over dimensions of relu(1 - sqrt(var + 1e-4)), unbiased variance over the rows. x [n, E] -> scalar."""
    x = x.to(compute_dtype(x))
    return torch.relu(1 - (x.var(0) + VARIANCE_EPS).sqrt()).mean()


def variance_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad (scalar) -> [n, E]."""
    n, E = x.shape
    y = x.to(compute_dtype(x))
    centred = y - y.mean(0)
    std = (centred.square().sum(0) / (n - 1) + VARIANCE_EPS).sqrt()
    slope = torch.where(std < 1, -grad.to(y.dtype) / ((n - 1) * E * std), 0)
    return (slope * centred).to(x.dtype).contiguous()


@outside_autocast
def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of squared off-diagonal entries of cov(x)) / E; also the smaller of the two moment matrices.

    x [n, E] -> scalar, moment [m, m] with m = min(n, E): cov(x) for n >= E, else the Gram matrix of the centred rows
    over n - 1, whose squared sum is the same.
    """
    n, E = x.shape
    x = x.to(compute_dtype(x))
    x = x - x.mean(0)
    moment = (x.T @ x if n >= E else x @ x.T) / (n - 1)
    diagonal = x.square().sum(0) / (n - 1)
    return (moment.square().sum() - diagonal.square().sum()) / E, moment


@outside_autocast
def covariance_backward(grad: Tensor, x: Tensor, moment: Tensor) -> Tensor:
    """grad (scalar) -> [n, E]: 4 grad / (E (n - 1)) times centred x times the off-diagonal part of cov(x)."""
    n, E = x.shape
    y = x.to(compute_dtype(x))
    y = y - y.mean(0)
    product = y @ moment if n >= E else moment @ y
    diagonal = y.square().sum(0) / (n - 1)
    return ((4 / (E * (n - 1))) * grad.to(y.dtype) * (product - y * diagonal)).to(x.dtype).contiguous()
