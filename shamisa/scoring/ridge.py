"""Ridge regression with an intercept for a whole path of strengths, from one symmetric eigendecomposition in float64.

Minimises ``|y - X w - b|^2 + alpha |w|^2`` as scikit-learn's ``Ridge(fit_intercept=True)`` does. With fewer rows than
columns the Gram matrix of the rows is decomposed instead of that of the columns, so the cost is cubic in the smaller of the
two. X may be [n, F] or [n, K, F]: K crops of an image, each fitted with the image's score; predictions are averaged over K.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import remote
from ..datasets.labels import SCALE, to_quality
from ..files import write_bytes, write_json
from .crops import FULL
from .metrics import srcc_columns

ALPHAS = np.logspace(-3, 3, 100)  # strengths tried by ``select``
STRENGTHS = f"of {len(ALPHAS)} from {ALPHAS[0]:g} to {ALPHAS[-1]:g}"  # in words
_CHUNK = 4096  # rows turned to float64 at a time
_BLOCK = 512  # columns of the Gram matrix at a time
_FORMAT = 1  # of a regressor's file


@dataclass(frozen=True)
class Ridge:
    """Regressors for A strengths."""

    alpha: Tensor  # [A] float64
    coef: Tensor  # [A, F] float64
    intercept: Tensor  # [A] float64

    def predict(self, X: Tensor | np.ndarray) -> Tensor:
        """X [n, F] or [n, K, F] -> predictions [n, A] float64, averaged over the K crops."""
        return torch.cat([self.apply(part) for part in _matrix(X, self.coef.shape[1]).split(_CHUNK)])

    def apply(self, X: Tensor) -> Tensor:
        """As ``predict``, of all rows at once and without checks: what an exported program holds."""
        X = X.to(self.coef)
        # averaging the rows first gives the same predictions with a K-th of the products
        return (X if X.dim() == 2 else X.mean(1)) @ self.coef.T + self.intercept

    def at(self, position: int) -> Ridge:
        """The regressor of one strength, A = 1."""
        return Ridge(*(t[position : position + 1] for t in (self.alpha, self.coef, self.intercept)))


def _matrix(X: Tensor | np.ndarray, columns: int | None = None) -> Tensor:
    X = torch.as_tensor(X)
    if X.dim() not in (2, 3) or X.shape[0] == 0 or X.shape[-1] == 0 or not X.dtype.is_floating_point:
        raise ValueError(f"X must be floating [n, F] or [n, K, F], none of them 0, got {X.dtype} {list(X.shape)}")
    if columns is not None and X.shape[-1] != columns:
        raise ValueError(f"X must have F = {columns} columns, got {list(X.shape)}")
    return X


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [p], ascending, and eigenvectors [p, p] of a symmetric matrix, whose lower triangle is read."""
    if gram.is_cuda:
        return torch.linalg.eigh(gram)
    from scipy.linalg import eigh  # the same LAPACK routine as torch's, two thirds of its time at p = 4096

    # LAPACK wants columns: the transpose needs no copy, and its upper triangle is the lower one
    values, vectors = eigh(gram.numpy().T, lower=False, driver="evd", overwrite_a=True, check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def fit_path(
    X: Tensor | np.ndarray,  # [n, F] or [n, K, F]
    y: Tensor | np.ndarray,  # [n]
    alphas: Tensor | np.ndarray | list[float] = ALPHAS,  # [A], positive
    device: torch.device | str | None = None,
) -> Ridge:
    """Regressors for all strengths; computed in float64 on ``device`` (default: where X is).

    Raises:
        ValueError: a shape that does not fit, a value that is not finite, a strength that is not positive.
    """
    X = _matrix(X)
    device = X.device if device is None else torch.device(device)
    y = torch.as_tensor(y, dtype=torch.float64, device=device)
    alphas = torch.as_tensor(alphas, dtype=torch.float64, device=device)
    if y.shape != X.shape[:1]:
        raise ValueError(f"y must be [n] = [{X.shape[0]}], got {list(y.shape)}")
    if alphas.dim() != 1 or not bool(((alphas > 0) & torch.isfinite(alphas)).all()) or not alphas.numel():
        raise ValueError(f"alphas must be [A] positive and finite, got {alphas.tolist()}")
    if X.dim() == 3:
        y = y.repeat_interleave(X.shape[1])
        X = X.flatten(0, 1)
    n, p = X.shape
    chunks = X.split(_CHUNK)
    mean = sum(c.to(device, torch.float64).sum(0) for c in chunks) / n  # [p]
    if not bool(torch.isfinite(mean).all() & torch.isfinite(y).all()):
        raise ValueError("X and y must be finite, got NaN or infinity")
    yc = y - y.mean()
    if n >= p:
        gram = torch.zeros(p, p, dtype=torch.float64, device=device)
        xty = torch.zeros(p, dtype=torch.float64, device=device)
        for c, t in zip(chunks, yc.split(_CHUNK), strict=True):
            c = c.to(device, torch.float64) - mean
            for i in range(0, p, _BLOCK):  # eigh reads the lower triangle only: nearly half of the products
                gram[i:, i : i + _BLOCK].addmm_(c[:, i:].T, c[:, i : i + _BLOCK])
            xty.addmv_(c.T, t)
        values, vectors = _eigh(gram)
        # a Gram matrix has no negative eigenvalues; what rounding makes of a zero must not approach -alpha
        shrunk = (vectors.T @ xty).unsqueeze(1) / (values.clamp(min=0).unsqueeze(1) + alphas)  # [p, A]
        coef = (vectors @ shrunk).T
    else:
        Xc = X.to(device, torch.float64) - mean
        values, vectors = _eigh(Xc @ Xc.T)
        shrunk = (vectors.T @ yc).unsqueeze(1) / (values.clamp(min=0).unsqueeze(1) + alphas)  # [n, A]
        coef = (Xc.T @ (vectors @ shrunk)).T
    return Ridge(alphas, coef.contiguous(), y.mean() - coef @ mean)


def select(
    X_train: Tensor | np.ndarray,
    y_train: Tensor | np.ndarray,
    X_val: Tensor | np.ndarray,
    y_val: Tensor | np.ndarray,
    alphas: Tensor | np.ndarray | list[float] = ALPHAS,
    criterion: Callable[[np.ndarray, np.ndarray], float] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Ridge, np.ndarray]:
    """Fit on the training rows, choose the strength with the best criterion (default SRCC) on the validation rows.

    Returns:
        The chosen regressor (A = 1) and the criterion of every strength [A]; equal values choose the smaller strength.

    Raises:
        ValueError: as ``fit_path``, or a criterion that is NaN for all strengths (constant validation scores).
    """
    path = fit_path(X_train, y_train, alphas, device)
    prediction = path.predict(X_val).cpu().numpy()
    target = np.asarray(y_val, dtype=np.float64)
    if criterion is None:
        values = srcc_columns(prediction, target)
    else:
        values = np.array([criterion(prediction[:, a], target) for a in range(prediction.shape[1])])
    if np.isnan(values).all():
        raise ValueError(f"no strength has a defined criterion on the {target.size} validation rows: constant scores?")
    return path.at(int(np.nanargmax(values))), values


# ---- files -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Regressor:
    """One ridge regressor with what is needed to use it: which features it takes, and what its numbers mean."""

    coef: Tensor  # [F] float64
    intercept: Tensor  # [] float64
    about: dict  # JSON values: at least the keys of ``REQUIRED``; features, mean and std as ``encoders.recorded`` reads them

    REQUIRED = ("encoder", "encoder_hash", "crop", *SCALE)

    def predict(self, X: Tensor) -> Tensor:
        """Features [n, F] or [n, K, F] -> scores [n] float64 on the scale of the training labels, averaged over crops."""
        return self._ridge().predict(X)[:, 0]

    def apply(self, X: Tensor) -> Tensor:
        """As ``predict``, of all rows at once and without checks: what an exported program holds."""
        return self._ridge().apply(X)[:, 0]

    def _ridge(self) -> Ridge:
        return Ridge(self.coef.new_ones(1), self.coef.unsqueeze(0), self.intercept.reshape(1))

    def quality(self, score: Tensor) -> Tensor:
        """Scores on the training scale -> [0, 1], higher is better: linear from the ends of the scale, clipped."""
        return to_quality(score, **self.scale).clamp(0, 1)

    @property
    def view(self) -> int | str:
        """The viewing size that it was fitted at, see ``crops.check_view``; "full" in files from before there was one."""
        return self.about.get("view", FULL)

    @property
    def scale(self) -> dict:
        """low, high and lower_better of the training labels."""
        return {k: self.about[k] for k in SCALE}

    def save(self, path: str | os.PathLike) -> None:
        """Write a .safetensors file (``about`` in its header) and, for readers, the same JSON beside it, each at once."""
        from safetensors.torch import save

        path = Path(path)
        about = {"format": _FORMAT, **self.about}
        content = save(
            {"coef": self.coef.contiguous(), "intercept": self.intercept.reshape(1)}, {"shamisa": json.dumps(about)}
        )
        write_bytes(path, content)
        write_json(path.with_suffix(".json"), about)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Regressor:
        """Read what ``save`` wrote (the JSON beside it is not needed), by path or URL.

        Raises:
            ValueError: missing or unreadable, or not a regressor of this format.
        """
        from safetensors import SafetensorError, safe_open

        try:
            file = remote.fetch(path) if remote.is_url(path) else path
            with safe_open(file, framework="pt") as content:
                text = (content.metadata() or {}).get("shamisa")
                tensors = {k: content.get_tensor(k) for k in content.keys()}  # noqa: SIM118  not a dict
        except (SafetensorError, OSError) as error:
            raise ValueError(f"cannot read the regressor {path}: {remote.why(error)}") from None
        if text is None or set(tensors) != {"coef", "intercept"}:
            raise ValueError(
                f"{path} must be a regressor written by shamisa.probe, got a file with {', '.join(tensors)}"
            )
        about = json.loads(text)
        if about.get("format") != _FORMAT or any(k not in about for k in cls.REQUIRED):
            raise ValueError(f"{path} must be a regressor of format {_FORMAT}, got format {about.get('format')!r}")
        del about["format"]
        return cls(tensors["coef"], tensors["intercept"].reshape(()), about)
