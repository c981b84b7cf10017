"""Figures of embeddings: do they spread, does distance grow with severity, do equal distortions lie together?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..distortions import NAMES
from ..engine import distort, normalize
from ..networks.encoders import evaluating

BINS = 8  # of severity gaps in 0..4


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the centred rows, 1..min(n, E); z [..., E]."""
    x = z.detach().flatten(0, -2).double()
    x = x - x.mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-300)
    return float(torch.special.entr(p).sum().exp())


def spread(z: Tensor) -> float:
    """Root mean square distance of the rows from their mean; z [..., E]. At most 1 for rows of norm 1."""
    x = z.detach().flatten(0, -2).double()
    return float((x - x.mean(0)).square().sum(1).mean().sqrt())


def summary(z: Tensor, h: Tensor) -> dict[str, float]:
    """rank_z, rank_h, spread_z, spread_h of z [..., E] and h [..., F]."""
    return {
        f"{what}_{name}": f(x)
        for what, f in (("rank", effective_rank), ("spread", spread))
        for name, x in (("z", z), ("h", h))
    }


def distance_by_gap(z: Tensor, severity: Tensor) -> dict[str, list]:
    """Distances between the levels of one chain and view, by the gap of their severities.

    Args:
        z: [B, V, C, L, E].
        severity: [B, C, L] of the varying stage, in 0..4.

    Returns:
        ``gap`` (centre of each of the BINS bins of 0..4), ``distance`` (mean, as a share of the mean distance of all pairs
        of images; None for an empty bin), ``pairs``.
    """
    B, V, C, L, E = z.shape
    x = z.detach().double()
    rows = x.reshape(-1, E)
    everywhere = torch.pdist(rows).mean().clamp(min=1e-300)
    i, j = torch.triu_indices(L, L, 1)
    distance = (x[:, :, :, i] - x[:, :, :, j]).norm(dim=-1) / everywhere  # [B, V, C, pairs]
    gap = (severity[:, :, i] - severity[:, :, j]).abs()[:, None].expand_as(distance)
    place = (gap * (BINS / 4)).long().clamp(max=BINS - 1)
    found: dict[str, list] = {"gap": [], "distance": [], "pairs": []}
    for b in range(BINS):
        inside = distance[place == b]
        found["gap"].append((b + 0.5) * 4 / BINS)
        found["distance"].append(float(inside.mean()) if len(inside) else None)
        found["pairs"].append(len(inside))
    return found


def purity(h: Tensor, label: Tensor, group: Tensor, k: int = 5) -> dict[str, list | float]:
    """Share of the k nearest rows of other groups that have the same label, by label.

    Args:
        h: [n, F]; Euclidean distance.
        label, group: [n] int64. Rows of the same group (the same photograph) are never neighbours.

    Returns:
        ``labels``, ``share`` of each, ``chance`` (what random neighbours would give, mean over the rows), ``mean``.
    """
    distance = torch.cdist(h.double(), h.double())
    other = group[:, None] != group
    same = label[:, None] == label
    distance = distance.masked_fill(~other, torch.inf)
    k = min(k, int(other.sum(1).min()))
    if k < 1:
        raise ValueError("purity needs rows of at least two groups")
    nearest = distance.topk(k, largest=False).indices
    hits = same.gather(1, nearest).double().mean(1)  # [n]
    labels = label.unique()
    return {
        "labels": labels.tolist(),
        "share": [float(hits[label == v].mean()) for v in labels],
        "chance": float(((same & other).sum(1) / other.sum(1)).mean()),
        "mean": float(hits.mean()),
    }


# ---- of a trained encoder --------------------------------------------------------------------------------------------
SAMPLES = 8  # whose chains are looked at
PHOTOGRAPHS, SEVERITIES = 8, (2.0, 4.0)  # of the images whose kinds of distortion are to be found again


@torch.inference_mode()
def evaluate(trainer) -> dict:
    """Figures of the trained encoder, in eval mode, on the last batches of the run: SAMPLES samples, or a few more where
    a batch is smaller and does not divide them. The number is bounded because all pairs of images are compared.

    Returns:
        ``distance_by_gap`` of z and of h; ``composition``: purity of the distorted images by chain (a sample's chain in any
        view; neighbours in the same view do not count, so that the same picture is no help); ``kind``: purity by kind of
        distortion of single distortions at two severities of up to 8 photographs, among other photographs.
    """
    encoder, config = trainer.model.encoder, trainer.config
    with evaluating(encoder):
        last = max(1, trainer.steps)
        steps = range(max(0, last - -(-SAMPLES // config.batch)), last)
        zs, hs, severities = [], [], []
        count = min(config.batch, SAMPLES)
        for step in steps:
            crops = trainer.references.batch(step * config.accumulate)[0][:count]
            plan = trainer.engine.sample(count, seed=config.seed, step=step)
            options = {"backend": config.backend, **trainer.normalization}
            x = trainer.engine(crops.to(trainer.device), plan.to(trainer.device), **options)
            h = _features(encoder, x.flatten(0, 3))
            zs.append(trainer.model.projector(h.to(trainer.device)).float().cpu().unflatten(0, x.shape[:4]))
            hs.append(torch.nn.functional.normalize(h, dim=1).unflatten(0, x.shape[:4]))
            severities.append(plan.varying_severity)
        z, h, severity = torch.cat(zs), torch.cat(hs), torch.cat(severities)  # [S, V, C, L, ...], [S, C, L]
        S, V, C, L = h.shape[:4]
        chain = torch.arange(S * C).view(S, 1, C, 1).expand(S, V, C, L).flatten()
        view = torch.arange(V).view(1, V, 1, 1).expand(S, V, C, L).flatten()
        composition = purity(h.flatten(0, 3), chain, view)
        composition["labels"] = [f"sample {i // C}, chain {i % C}" for i in range(S * C)]
        gaps = {"z": distance_by_gap(z, severity), "h": distance_by_gap(h, severity)}
        return {"distance_by_gap": gaps, "composition": composition, "kind": _kinds(trainer, encoder)}


def _features(encoder: torch.nn.Module, x: Tensor, batch: int = 64) -> Tensor:
    return torch.cat([encoder(part).float().cpu() for part in x.split(batch)])


def _kinds(trainer, encoder: torch.nn.Module) -> dict | None:
    """Purity by kind of distortion; None where there is one photograph or one kind only."""
    references, config = trainer.references, trainer.config
    names = config.distortions or NAMES
    count = min(PHOTOGRAPHS, len(references.source))
    if count < 2 or len(names) < 2:
        return None
    steps = range(-(-count // config.batch))
    photos = torch.cat([references.batch(s)[0][:, 0] for s in steps])[:count].to(
        trainer.device
    )  # of one epoch: distinct
    rows = []
    for name in names:
        for severity in SEVERITIES:
            images = distort(photos, name, severity=severity, seed=config.seed, backend=config.backend)
            x = normalize(images, backend=config.backend, **trainer.normalization)
            rows.append(_features(encoder, x))
    h = torch.nn.functional.normalize(torch.cat(rows), dim=1)
    label = torch.arange(len(names)).repeat_interleave(len(SEVERITIES) * count)
    photo = torch.arange(count).repeat(len(names) * len(SEVERITIES))
    return purity(h, label, photo) | {"labels": list(names)}
