"""The probe: the search for a ridge strength against a loop over scikit-learn, and features of photographs."""

from __future__ import annotations

import numpy as np
import peers
import pytest
import torch
from measure import error

from shamisa import metrics, ridge
from shamisa.features import Extractor
from shamisa.models import Encoder

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

    if who == "scikit-learn loop":
        call, extra = loop, {}
    else:
        call = lambda: ridge.select(train, y[:n], val, y[n:])  # noqa: E731
        few = ridge.ALPHAS[::33]
        extra = error(ridge.fit_path(train, y[:n], few).predict(val), torch.from_numpy(loop(few)[0]))
    row(call, section="probe", subject=f"ridge, {subject}, 100 strengths", row=who, seconds=1.0, most=8, **extra)


@pytest.mark.parametrize("who, batch", [("batches of 8", 8), ("one by one", 1)])
def test_features(row, photos, who, batch):
    """Five crops of 96 px at two scales of a photograph [3, 224, 224] by the small encoder: ten crops each."""
    torch.manual_seed(0)
    extractor = Extractor(Encoder("shamisa/small", "none"), crop=96, batch=batch)
    subject = "features, shamisa/small, 10 crops of 96 px"
    row(lambda: extractor(list(photos)), section="probe", subject=subject, row=who, images=len(photos), seconds=0.5)
