"""Agreement between predicted and given quality scores, and SSIM.

The correlations are those of the image quality literature: Spearman's rank (SRCC), Pearson's linear (PLCC), Kendall's rank
(KRCC), and the root mean squared error in units of the given scores. PLCC is given raw and after the 4-parameter logistic
of the VQEG reports (ITU-T, "Final report from the Video Quality Experts Group", 2000), which is fitted to the very scores
that it is judged on; the key is therefore called ``plcc_logistic`` and never ``plcc``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MEANING = "SRCC, PLCC and KRCC lie in -1..1, higher is better; RMSE is in units of the scores, lower is better"
SUMMARY = ("srcc", "plcc", "plcc_logistic", "krcc", "rmse")  # keys of ``summary``, in the order of tables

_LOG_WIDTH = (-12.0, 12.0)  # of the logistic, in standard deviations: a step and a straight line to eleven digits


def _pair(prediction: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [n], checked."""
    x, y = (np.asarray(t, dtype=np.float64) for t in (prediction, target))
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"prediction and target must both be [n], got {list(x.shape)} and {list(y.shape)}")
    if x.size < 2:
        raise ValueError(f"prediction and target must hold at least 2 scores, got {x.size}")
    for name, t in (("prediction", x), ("target", y)):
        if not np.isfinite(t).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(t)).sum())} values that are not")
    return x, y


def _constant(x: np.ndarray, y: np.ndarray) -> bool:
    return bool((x == x[0]).all() or (y == y[0]).all())


def srcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Spearman's rank correlation of two [n] arrays, ties by average rank; NaN where one of them is constant."""
    from scipy.stats import spearmanr

    x, y = _pair(prediction, target)
    return float("nan") if _constant(x, y) else float(spearmanr(x, y).statistic)


def srcc_columns(predictions: ArrayLike, target: ArrayLike) -> np.ndarray:
    """``srcc`` of each column of predictions [n, A] with target [n] -> [A]; all columns are ranked at once."""
    from scipy.stats import rankdata

    x = np.asarray(predictions, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"predictions must be [n, A], got {list(x.shape)}")
    for column in x.T:
        _, y = _pair(column, target)
    x, y = rankdata(x, axis=0), rankdata(y)
    x, y = x - x.mean(0), (y - y.mean())[:, None]
    with np.errstate(invalid="ignore"):  # 0 / 0 where one is constant
        return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))


def plcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Pearson's linear correlation of two [n] arrays; NaN where one of them is constant."""
    x, y = _pair(prediction, target)
    return float("nan") if _constant(x, y) else float(np.corrcoef(x, y)[0, 1])


def krcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Kendall's tau-b of two [n] arrays; NaN where one of them is constant."""
    from scipy.stats import kendalltau

    x, y = _pair(prediction, target)
    return float("nan") if _constant(x, y) else float(kendalltau(x, y).statistic)


def rmse(prediction: ArrayLike, target: ArrayLike) -> float:
    """Root mean squared error of two [n] arrays, in units of ``target``."""
    x, y = _pair(prediction, target)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def logistic(x: ArrayLike, parameters: ArrayLike) -> np.ndarray:
    """The 4-parameter logistic ``(a - b) / (1 + exp(-(x - c) / |d|)) + b`` of x [...], parameters (a, b, c, d)."""
    from scipy.special import expit

    a, b, c, d = np.asarray(parameters, dtype=np.float64)
    return (a - b) * expit((np.asarray(x, dtype=np.float64) - c) / abs(d)) + b


def fit_logistic(prediction: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Least-squares parameters (a, b, c, d) [4] of ``logistic`` from prediction [n] to target [n], rising or falling.

    The best of a few starting points. Raises ValueError where the prediction is constant: there is nothing to fit.
    """
    from scipy.optimize import least_squares
    from scipy.special import expit

    x, y = _pair(prediction, target)
    mean, std = x.mean(), x.std()
    if (x == x[0]).all():
        raise ValueError(f"prediction must not be constant, got {x.size} times {x[0]:g}")
    z = (x - mean) / std  # fitted in standard units, so that the step sizes suit every scale of scores
    falling = np.dot(z, y - y.mean()) < 0
    a, b = (y.min(), y.max()) if falling else (y.max(), y.min())

    def residuals(p: np.ndarray) -> np.ndarray:
        return logistic(z, (p[0], p[1], p[2], np.exp(np.clip(p[3], *_LOG_WIDTH)))) - y

    def jacobian(p: np.ndarray) -> np.ndarray:
        d = np.exp(np.clip(p[3], *_LOG_WIDTH))
        rise = expit((z - p[2]) / d)
        slope = (p[1] - p[0]) * rise * (1 - rise) / d
        return np.stack([rise, 1 - rise, slope, slope * (z - p[2])], 1)

    # Levenberg-Marquardt needs as many scores as parameters
    options = {"method": "lm", "max_nfev": 500} if x.size >= 4 else {"max_nfev": 200}
    fits = [
        least_squares(residuals, (a, b, c, np.log(d)), jacobian, **options)
        for c, d in ((0.0, 0.25), (0.0, 1.0), (np.median(z), 0.5))
    ]
    a, b, c, log_d = min(fits, key=lambda fit: fit.cost).x
    return np.array([a, b, mean + c * std, np.exp(np.clip(log_d, *_LOG_WIDTH)) * std])


def summary(prediction: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """All of ``SUMMARY`` for two [n] arrays. SRCC and KRCC of constant predictions are NaN, and so are both PLCC."""
    x, y = _pair(prediction, target)
    fitted = float("nan") if _constant(x, y) else plcc(logistic(x, fit_logistic(x, y)), y)
    return {"srcc": srcc(x, y), "plcc": plcc(x, y), "plcc_logistic": fitted, "krcc": krcc(x, y), "rmse": rmse(x, y)}


def ssim(image: ArrayLike, reference: ArrayLike) -> float:
    """SSIM of two uint8 images [3, H, W], both sides at least 11 pixels; 1 where they are equal.

    Scikit-image's ``structural_similarity`` with the settings of Wang et al. 2004 (11 x 11 Gaussian window, sigma 1.5,
    population covariance, K 0.01 and 0.03), on the BT.601 luma, as the paper and its authors' code have it. Colour
    distortions that keep the luma therefore count for nothing.
    """
    from skimage.metrics import structural_similarity

    a, b = (np.asarray(t) for t in (image, reference))
    for name, t in (("image", a), ("reference", b)):
        if t.ndim != 3 or t.shape[0] != 3 or t.dtype != np.uint8 or min(t.shape[1:]) < 11:
            raise ValueError(f"{name} must be uint8 [3, H >= 11, W >= 11], got {t.dtype} {list(t.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"image must have the shape of reference {list(b.shape)}, got {list(a.shape)}")
    luma = [np.tensordot((0.299, 0.587, 0.114), t.astype(np.float64), 1) for t in (a, b)]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(*luma, **settings))
