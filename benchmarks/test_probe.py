"""The probe: the search for a ridge strength against a loop over scikit-learn, and features of photographs.

``SHAMISA_LARGE=1 pytest benchmarks/test_probe.py -k large -s`` searches 100 strengths x 10 splits of 10,000 x 4,096.
"""

from __future__ import annotations

import os
import time

import numpy as np
import peers
import pytest
import torch
from measure import IS_REFERENCE, error, errors, operations, size_of

from shamisa.networks.models import Encoder
from shamisa.scoring import metrics, ridge
from shamisa.scoring.features import Extractor

CASES = {"600 rows x 1024": (480, 120, 1024), "1500 rows x 512": (1200, 300, 512)}


@pytest.mark.parametrize("who", ["shamisa.ridge", "scikit-learn loop"])
@pytest.mark.parametrize("subject", CASES)
def test_ridge(row, benchmark, subject, who):
    """100 strengths fitted on train, judged by SRCC on val; the error is that of the 100 predictions."""
    n, m, F = CASES[subject]
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n + m, F, generator=g)
    y = (X[:, :20].sum(1) + 3 * torch.randn(n + m, generator=g)).numpy().astype(np.float64)
    train, val = X[:n], X[n:]
    try:
        Ridge = peers.need("sklearn.linear_model").Ridge
    except peers.Missing as missing:
        pytest.skip(str(missing))

    def loop(alphas=ridge.ALPHAS):
        found = [Ridge(alpha=a).fit(train.double().numpy(), y[:n]).predict(val.double().numpy()) for a in alphas]
        return np.stack(found, 1), int(np.argmax([metrics.srcc(p, y[n:]) for p in found]))

    call, found = loop, IS_REFERENCE
    if who != "scikit-learn loop":
        call = lambda: ridge.select(train, y[:n], val, y[n:])  # noqa: E731
        few = ridge.ALPHAS[::33]
        found = error(ridge.fit_path(train, y[:n], few).predict(val), torch.from_numpy(loop(few)[0]))
    kind = {"section": "probe", "subject": f"ridge, {subject}, 100 strengths", "row": who}
    row(call, **kind, error=found, moved=size_of(X), seconds=1.0, most=8)


def problem(n, F, splits):
    """X float32 [n, F], y [n], and random (train, val) positions, 70 and 10 of a hundred, for each split."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, F, generator=g)
    # a spectrum that falls, as that of features does, and noise: the best strength lies inside the range
    X = X / torch.arange(1, F + 1).sqrt()
    y = (X[:, : F // 4].sum(1) + 4 * torch.randn(n, generator=g)).numpy().astype(np.float64)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(n) for _ in range(splits)]
    return X, y, [(np.sort(o[: n * 7 // 10]), np.sort(o[n * 7 // 10 : n * 8 // 10])) for o in orders]


def loop_over_sklearn(X, y, train, val, alphas):
    """Fit each strength anew; returns the SRCC on val of each and the predictions [val, A]."""
    Ridge = peers.need("sklearn.linear_model").Ridge
    a, b = X[train].double().numpy(), X[val].double().numpy()
    found = [Ridge(alpha=alpha).fit(a, y[train]).predict(b) for alpha in alphas]
    return np.array([metrics.srcc(p, y[val]) for p in found]), np.stack(found, 1)


@pytest.mark.parametrize("who", ["shamisa.ridge", "scikit-learn loop"])
def test_ridge_search(row, benchmark, who):
    """The whole search: 100 strengths x 10 splits; the same choice in every split."""
    X, y, splits = problem(400, 128, 10)

    def ours():  # -> per split the strength that was chosen and the SRCC of all
        found = [ridge.select(X[t], y[t], X[v], y[v]) for t, v in splits]
        return [(model.alpha.item(), torch.as_tensor(srcc)) for model, srcc in found]

    def loop():
        found = [loop_over_sklearn(X, y, t, v, ridge.ALPHAS)[0] for t, v in splits]
        return [(ridge.ALPHAS[np.argmax(srcc)], torch.from_numpy(srcc)) for srcc in found]

    wrong = IS_REFERENCE
    try:
        if who == "shamisa.ridge":
            (strengths, srcc), (wanted, wanted_srcc) = zip(*ours(), strict=True), zip(*loop(), strict=True)
            assert strengths == wanted
            wrong = errors(srcc, wanted_srcc)
    except peers.Missing as missing:
        pytest.skip(str(missing))
    subject = "ridge search, 400 x 128, 100 strengths x 10 splits"
    row(
        ours if who == "shamisa.ridge" else loop,
        section="probe",
        subject=subject,
        row=who,
        error=wrong,
        moved=size_of(X),
        seconds=1.0,
        least=1,
        most=5,
    )


@pytest.mark.skipif("SHAMISA_LARGE" not in os.environ, reason="SHAMISA_LARGE is not set: minutes")
def test_large_ridge_search():
    """Ours whole, scikit-learn by a sample of five strengths of the first split, CPU seconds of one thread."""
    X, y, splits = problem(10_000, 4096, 10)
    seconds, choices, sampled = [], [], None
    for i, (train, val) in enumerate(splits):
        start = time.process_time()
        model, values = ridge.select(X[train], y[train], X[val], y[val])
        seconds.append(time.process_time() - start)
        best = int(np.nanargmax(values))
        choices.append(best)
        print(
            f"split {i}: {seconds[-1]:.1f} s, strength {model.alpha.item():.4g} (number {best}), SRCC {values[best]:.4f}"
        )
        if i:
            continue
        positions = sorted({0, max(best - 1, 0), best, min(best + 1, 99), 99})
        start = time.process_time()
        srcc, predictions = loop_over_sklearn(X, y, train, val, ridge.ALPHAS[positions])
        sampled = (time.process_time() - start) / len(positions)
        path = ridge.fit_path(X[train], y[train], ridge.ALPHAS[positions])
        np.testing.assert_allclose(path.predict(X[val]), predictions, rtol=0, atol=1e-8)
        np.testing.assert_allclose(srcc, values[positions], rtol=0, atol=1e-12)
        print(f"scikit-learn: {sampled:.2f} s a fit ({len(positions)} fits), same predictions (1e-8) and the same SRCC")
    ours, theirs = sum(seconds), sampled * 1000
    print(f"ours {ours:.0f} s for 100 x 10, scikit-learn {theirs:.0f} s by extrapolation: {theirs / ours:.1f} times")
    assert theirs > 20 * ours


@pytest.mark.parametrize("who, batch", [("one by one", None), ("batches of 8", 8)])
def test_features(row, photos, who, batch):
    """Five crops of 96 px at two scales of a photograph [3, 224, 224] by the small encoder: ten crops each."""
    torch.manual_seed(0)
    extractor = Extractor(Encoder("shamisa/small", "none"), crop=96, batch=batch)
    subject = "features, shamisa/small, 10 crops of 96 px"
    call = lambda: extractor(list(photos))  # noqa: E731
    found = IS_REFERENCE  # of the two
    if batch:
        found = error(call(), Extractor(extractor.encoder, crop=96)(list(photos)))
    work = {"flops": operations(call), "images": len(photos)}
    row(call, section="probe", subject=subject, row=who, error=found, seconds=0.5, **work)
