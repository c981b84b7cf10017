"""Graphs, terms and metrics against other people's libraries, where they are installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from shamisa import functional as SF
from shamisa.scoring import metrics


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- graphs ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rows", "anchors", "temperature"), [(24, 8, 0.2), (60, 32, 0.1), (10, 20, 0.5)])
def test_balanced_codes_are_the_transport_plan_of_pot(rows, anchors, temperature):
    """Sinkhorn's limit: N times the plan between uniform marginals of cost -logits and regularisation = temperature. Six
    rounds, as published, are on the way there: rows sum to 1, columns not yet to N / K."""
    ot = pytest.importorskip("ot")
    logits = torch.tanh(normal(rows, anchors))
    plan = ot.sinkhorn(
        np.full(rows, 1 / rows),
        np.full(anchors, 1 / anchors),
        -logits.numpy(),
        temperature,
        numItermax=5000,
        stopThr=1e-13,
    )
    codes = SF.transport_codes(logits, temperature=temperature, rounds=2000)
    assert_close(codes, torch.from_numpy(rows * plan), atol=1e-8, rtol=1e-6)
    few = SF.transport_codes(logits, temperature=temperature, rounds=6)
    assert_close(few.sum(1), torch.ones(rows, dtype=torch.float64))
    errors = [(SF.transport_codes(logits, temperature=temperature, rounds=r) - codes).abs().max() for r in (1, 6, 50)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("k", [1, 5, 31])
def test_nearest_neighbors_are_scikit_learns(k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    h = normal(64, 12, seed=k)
    distance, index, mutual = SF.nearest_neighbors(h, k)
    found = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(h.numpy())
    wanted, theirs = found.kneighbors()  # without the row itself
    assert torch.equal(index, torch.from_numpy(theirs))
    assert_close(distance, torch.from_numpy(wanted), atol=1e-9, rtol=0)
    graph = found.kneighbors_graph().toarray() > 0
    assert torch.equal(mutual, torch.from_numpy(graph.T).gather(1, index))


def test_knn_graph_is_scipys_sum_with_its_transpose():
    sparse = pytest.importorskip("scipy.sparse")
    h = normal(40, 6)
    graph = SF.knn_graph(h, 5)
    distance, index, _ = SF.nearest_neighbors(h, 5)
    rows = np.arange(40).repeat(5)
    one = sparse.coo_matrix((1 / (1 + distance.numpy().ravel()), (rows, index.numpy().ravel())), (40, 40))
    ours = sparse.coo_matrix((graph.weight.numpy(), graph.index.numpy()), (40, 40))
    np.testing.assert_allclose(ours.toarray(), (one + one.T).toarray(), atol=1e-12)


def test_merged_graphs_are_scipys_sum_above_the_diagonal():
    sparse = pytest.importorskip("scipy.sparse")
    graphs, dense, g = [], 0.0, torch.Generator().manual_seed(7)
    for scale in (0.5, 2.0, 1.0):
        index, weight = torch.randint(0, 12, (2, 90), generator=g), torch.rand(90, generator=g, dtype=torch.float64)
        graphs.append(SF.RelationGraph(weight, index, 12))
        dense = dense + scale * sparse.coo_matrix((weight.numpy(), index.numpy()), (12, 12)).toarray()
    merged = SF.merge_graphs(graphs, [0.5, 2.0, 1.0])
    ours = sparse.coo_matrix((merged.weight.numpy(), merged.index.numpy()), (12, 12)).toarray()
    np.testing.assert_allclose(ours, np.triu(dense, 1), atol=1e-12)


def test_pair_cost_is_the_quadratic_form_of_scipys_laplacian():
    """sum w_ij |z_i - z_j|^2 over ordered pairs is 2 tr(z' L z) of a symmetric graph."""
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    h, z = normal(30, 5), normal(30, 7, seed=1)
    graph = SF.knn_graph(h, 4)
    dense = np.zeros((30, 30))
    np.add.at(dense, tuple(graph.index.numpy()), graph.weight.numpy())
    wanted = 2 * np.trace(z.numpy().T @ csgraph.laplacian(dense) @ z.numpy()) / z.numel()
    assert_close(SF.pair_cost(z, graph), torch.tensor(wanted), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("n", "E"), [(50, 8), (8, 50)])
def test_variance_and_covariance_are_numpys_and_scikit_learns(n, E):
    covariance = pytest.importorskip("sklearn.covariance")
    x = 0.7 * normal(n, E)
    c = covariance.empirical_covariance(x.numpy()) * n / (n - 1)  # theirs divides by n
    np.testing.assert_allclose(c, np.cov(x.numpy().T), atol=1e-12)
    assert_close(SF.covariance(x), torch.tensor((c**2).sum() / E - (np.diag(c) ** 2).sum() / E), rtol=1e-9, atol=1e-12)
    wanted = np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean()
    assert_close(SF.variance(x), torch.tensor(wanted), rtol=1e-9, atol=0)


# ---- metrics ---------------------------------------------------------------------------------------------------------
SCORES = {
    "no ties": (normal(200, seed=1).numpy(), normal(200, seed=2).numpy()),
    "ties": (normal(200, seed=3).round().numpy(), (normal(200, seed=3) + normal(200, seed=4)).round().numpy()),
    "reversed": (np.arange(50.0), -np.arange(50.0)),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("srcc", "SpearmanCorrCoef"),
        ("plcc", "PearsonCorrCoef"),
        ("krcc", "KendallRankCorrCoef"),
        ("rmse", "MeanSquaredError"),
    ],
)
def test_correlations_are_torchmetrics(name, theirs, kind):
    torchmetrics = pytest.importorskip("torchmetrics")
    x, y = SCORES[kind]
    made = torchmetrics.MeanSquaredError(squared=False) if name == "rmse" else getattr(torchmetrics, theirs)()
    wanted = float(made(torch.from_numpy(x), torch.from_numpy(y)))
    assert getattr(metrics, name)(x, y) == pytest.approx(wanted, abs=2e-5)


def test_srcc_of_columns_is_scikit_learn_and_scipy():
    stats = pytest.importorskip("scipy.stats")
    columns, target = normal(100, 4, seed=5).round().numpy(), normal(100, seed=6).numpy()
    wanted = [stats.pearsonr(stats.rankdata(c), stats.rankdata(target)).statistic for c in columns.T]
    np.testing.assert_allclose(metrics.srcc_columns(columns, target), wanted, atol=1e-12)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """uint8 [3, H, W] twice: a photograph, and what distortions make of it."""
    import shamisa

    skimage = pytest.importorskip("skimage.data")
    x = torch.from_numpy(skimage.astronaut()[20:180, 130:300].transpose(2, 0, 1).copy())
    names = ("gaussian_blur", "white_noise", "jpeg", "quantization", "color_saturation_hsv", "darken")
    return [(shamisa.distort(x, name, severity=3).numpy(), x.numpy()) for name in names]


def luma(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.tensordot((0.299, 0.587, 0.114), x.astype(np.float64), 1))[None, None]


def test_ssim_is_piqs(pairs):
    """With downsample=False: piq halves images whose short side is near 512 first, which 160 pixels are not (factor 1)."""
    piq = pytest.importorskip("piq")
    for image, reference in pairs:
        arguments = {"kernel_size": 11, "kernel_sigma": 1.5, "data_range": 255.0}
        for downsample in (False, True):
            wanted = float(piq.ssim(luma(image), luma(reference), downsample=downsample, **arguments))
            assert metrics.ssim(image, reference) == pytest.approx(wanted, abs=2e-5)


def test_ssim_is_torchmetrics_away_from_the_border(pairs):
    """Theirs averages over windows that reach beyond the border as well, into its reflection; ours, as Wang et al. 2004, over
    those that lie in the image. 0.001 to 0.015 apart on these."""
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    for image, reference in pairs:
        _, windows = torchmetrics.structural_similarity_index_measure(
            luma(image), luma(reference), sigma=1.5, data_range=255.0, return_full_image=True
        )
        ours = metrics.ssim(image, reference)
        assert ours == pytest.approx(float(windows[..., 5:-5, 5:-5].mean()), abs=2e-5)
