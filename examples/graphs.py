"""Relation graphs in a loss of one's own, with distortions of one's own: the graphs only.

Each crop gets four strengths of noise, made here. VICReg's invariance is then weighted by a graph: images of one crop
attract each other by how near their severities are, and each image its nearest neighbours. `merge_graphs` and
`pair_cost` work on edges; the usual lines build N x N matrices of weights and distances.

    python examples/graphs.py               # trains twice, with either loss; draws both curves
    python examples/graphs.py --reference   # trains with the usual lines only
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from common import Crops, main, network
from torch import Tensor

import shamisa.functional as SF

LEVELS, NEIGHBORS = 4, 5


def ours(z: Tensor, h: Tensor, severity: Tensor) -> Tensor:
    """Embeddings z [N, E], features h [N, F], severity [B, C = 1, L] in 0..4; N = B (1 + L): first the B clean crops."""
    graph = SF.merge_graphs(  # i < j, equal edges added
        [
            SF.ref_dist_graph(severity, views=1),  # clean to distorted, exp(-3 s / 4)
            SF.dist_dist_graph(severity, views=1),  # distorted to distorted of one crop, exp(-3 |s - s'| / 4)
            SF.knn_graph(h, NEIGHBORS),  # 1 / (1 + distance), differentiable in h
        ]
    )
    return 25 * SF.pair_cost(z, graph) + 25 * SF.variance(z) + SF.covariance(z)


def usual(z: Tensor, h: Tensor, severity: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    B, _, L = severity.shape
    s = torch.cat([severity.new_zeros(B), severity.flatten()])  # [N], a clean crop has 0
    crop = torch.cat([torch.arange(B), torch.arange(B).repeat_interleave(L)])  # [N]
    weight = torch.exp(-0.75 * (s[:, None] - s).abs()) * (crop[:, None] == crop)
    distance = torch.cdist(h, h, compute_mode="donot_use_mm_for_euclid_dist")
    near, j = (distance + torch.eye(len(h), dtype=h.dtype) * 1e9).topk(NEIGHBORS, largest=False)
    neighbors = torch.zeros_like(distance).scatter(1, j, 1 / (1 + near))
    weight = (weight + neighbors + neighbors.T).triu(1)
    cost = (weight * (z[:, None] - z).square().sum(2)).sum() / z.numel()
    variance = F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
    cov = z.T.cov()
    return 25 * cost + 25 * variance + (cov - cov.diagonal().diag()).square().sum() / z.shape[1]


def noisy(crops: Tensor, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """crops [B, 3, H, W] uint8 -> clean and noisy images [B (1 + L), 3, H, W] in -1..1, severity [B, 1, L]."""
    g = torch.Generator().manual_seed(step)
    clean = crops.to(dtype) / 127.5 - 1
    severity = 4 * torch.rand(len(crops), LEVELS, generator=g, dtype=dtype)
    noise = torch.randn(*severity.shape, *crops.shape[1:], generator=g, dtype=dtype)
    dirty = clean[:, None] + 0.2 * severity[:, :, None, None, None] * noise
    return torch.cat([clean, dirty.flatten(0, 1).clamp(-1, 1)]), severity[:, None]


def train(loss: Callable[..., Tensor], steps: int, dtype: torch.dtype) -> list[float]:
    """The loss of every step."""
    crops, net, curve = Crops(), network(dtype), []
    encoder, head = net[:-3], net[-3:]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for step in range(steps):
        x, severity = noisy(crops(step), step, dtype)
        h = encoder(x)
        value = loss(head(h), F.normalize(h, dim=1), severity)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return curve


if __name__ == "__main__":
    main(__doc__, "graphs", partial(train, ours), partial(train, usual))
