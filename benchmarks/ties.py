"""What the order of ties in the dist-dist graph changes: ``python -m benchmarks.ties``.

Our order (weight, then smaller i, then smaller j) beside torch.topk over the dense matrix, as the published code takes it, on
batches of packaged photographs: edges of the merged graph that differ, and how far the terms of the objective move.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shamisa import DistortionEngine, RelationLoss, functional
from shamisa.data import References
from shamisa.data.embedded import EmbeddedPhotos
from shamisa.engine import normalize
from shamisa.functional import RelationGraph
from shamisa.networks.models import Encoder

VIEWS, CROP = 6, 96
OURS = functional.dist_dist_graph


def by_topk(severity: Tensor, views: int = VIEWS, *, edges: int = 4096, **_) -> RelationGraph:
    """The edges that torch.topk keeps of the dense matrix [N, N]; batch-wide cap, exponential decay."""
    B, C, L = severity.shape
    full = OURS(severity, views, edges=B * C * views * L * (views * L - 1))
    weight, place = full.dense().flatten().topk(min(edges, len(full.weight)))
    return RelationGraph(weight, torch.stack([place // full.nodes, place % full.nodes]), full.nodes)


@contextmanager
def order(graph: Callable):
    """Inside, the objective builds its dist-dist graph by ``graph``."""
    functional.dist_dist_graph = graph
    try:
        yield
    finally:
        functional.dist_dist_graph = OURS


def edges(graph: RelationGraph) -> set[tuple[int, int]]:
    """Pairs (i, j) of edges with a weight."""
    return set(map(tuple, graph.index[:, graph.weight != 0].T.tolist()))


def compare(batch: int, seed: int) -> dict[str, float]:
    """One batch: edges of ours that the other order lacks, of how many, and relative differences of terms."""
    torch.manual_seed(seed)
    encoder = Encoder("shamisa/small", "none").eval()
    projector = nn.Sequential(nn.Linear(encoder.feature_dim, 256), nn.ReLU(), nn.Linear(256, 256))
    loss = RelationLoss(encoder.feature_dim)
    crops, _ = References(EmbeddedPhotos("train"), batch_size=batch, seed=seed, crop=CROP).batch(0)
    plan = DistortionEngine().sample(batch, seed=seed)
    with torch.inference_mode():
        images = [normalize(crops), DistortionEngine()(crops, plan)]
        h = [encoder(x.flatten(0, -4)).view(*x.shape[:-3], -1) for x in images]
        z = [projector(x) for x in h]
        h = [nn.functional.normalize(x, dim=-1) for x in h]
        ours = loss(*z, *h, plan)
        with order(by_topk):
            theirs = loss(*z, *h, plan)
    names = ("invariance", "total")
    moved = {n: abs((getattr(ours, n) / getattr(theirs, n)).item() - 1) for n in names}
    return {"edges": len(edges(ours.graph)), "differ": len(edges(ours.graph) - edges(theirs.graph)), **moved}


def main() -> None:
    """Prints medians and the largest over some batches."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ties", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4], help="samples, one row each [1 2 4]")
    parser.add_argument("--seeds", type=int, default=10, help="batches of each size [10]")
    given = parser.parse_args()
    for batch in given.batch:
        found = [compare(batch, seed) for seed in range(given.seeds)]
        words = [
            f"{key} {statistics.median(x[key] for x in found):.3g} (most {max(x[key] for x in found):.3g})"
            for key in ("edges", "differ", "invariance", "total")
        ]
        print(f"B = {batch}, medians of {given.seeds} batches: " + ", ".join(words))


if __name__ == "__main__":
    main()
