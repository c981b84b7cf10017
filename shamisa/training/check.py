"""What training does to the encoder, judged at intervals without waiting for human scores, and when to warn.

The total of the objective is no measure of this: it falls while features collapse. Three figures are: the rank correlation of
a ridge regressor from h with SSIM on held-out packaged photographs that the engine distorted (``demo.evaluate``), the
effective rank of h on the same images and, where there are labels, SRCC on their val part.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import remote
from ..datasets.labels import Labels, find_files, read_csv
from ..datasets.splits import make_splits
from ..distortions import DISTORTIONS
from ..scoring import demo, ridge
from . import embeddings

FALL = (
    0.02  # of the check below its start from which training counts as harmful: differences between seeds are half of it
)
SHRINK = 4.0  # so many times fewer effective dimensions of h than at the start count as a collapse
FOLDS = 6  # of the label-free check
LABEL_IMAGES = 240  # of labelled images, two thirds of them to fit: more would cost more than they tell
LABEL_CROP = 224  # of the probe
ADVICE = (
    "try --regularizer off, --variance-weight 25 --invariance-weight 10 --covariance-weight 20, or a smaller --lr or "
    "--encoder-lr"
)


@dataclass(frozen=True)
class Check:
    """The figures after ``step`` steps."""

    step: int
    srcc: float  # label-free
    rank_h: float
    label_srcc: float | None = None

    def record(self) -> dict:
        """As a line of metrics.jsonl holds it."""
        return {k: v for k, v in vars(self).items() if v is not None}

    @property
    def score(self) -> float:
        """What decides which checkpoint is best, higher is better: labels where there are some."""
        return self.srcc if self.label_srcc is None else self.label_srcc


@dataclass
class History:
    """The checks of a run, the first at its start."""

    checks: list[Check] = field(default_factory=list)

    def score(self, step: int, window: int) -> float | None:
        """Mean score of the checks of the last ``window`` steps; None where there is none of ``step`` itself."""
        if not self.checks or self.checks[-1].step != step:
            return None
        return float(np.mean([c.score for c in self.checks if step - window < c.step]))

    def fault(self) -> str | None:
        """In words, what the last check says about the run; None where it is sound."""
        if len(self.checks) < 2:
            return None
        start, now = self.checks[0], self.checks[-1]
        found = []
        if now.srcc < start.srcc - FALL:
            found.append(f"the label-free check fell to {now.srcc:.3f} from {start.srcc:.3f} at the start")
        if now.rank_h < start.rank_h / SHRINK:
            found.append(f"the effective rank of h fell to {now.rank_h:.1f} from {start.rank_h:.1f}")
        if now.label_srcc is not None and now.label_srcc < start.label_srcc - FALL:
            found.append(f"SRCC with the labels fell to {now.label_srcc:.3f} from {start.label_srcc:.3f}")
        return f"{'; '.join(found)}; {ADVICE}" if found else None

    def words(self) -> str:
        """The last check for a progress bar."""
        if not self.checks:
            return ""
        start, now = self.checks[0], self.checks[-1]
        text = f"check {now.srcc:.3f} (start {start.srcc:.3f}) rank {now.rank_h:.0f}"
        return text if now.label_srcc is None else f"{text} labels {now.label_srcc:.3f} ({start.label_srcc:.3f})"


@dataclass(frozen=True)
class LabelledPart:
    """The images of a label file that checks look at: positions of train and val, never of test."""

    labels: Labels
    paths: list[Path]
    train: np.ndarray
    val: np.ndarray
    truncated: str = "skip"  # or "read", see ``data.decode.Limits``

    @classmethod
    def open(
        cls, csv: str | os.PathLike, root: str | os.PathLike = "", seed: int = 0, truncated: str = "skip"
    ) -> LabelledPart:
        """Read labels and find their images; of a large set ``LABEL_IMAGES`` of train and val are drawn by ``seed``.

        Raises LabelError (a ValueError) for labels or images that cannot be used.
        """
        labels = read_csv(csv)
        paths = find_files(labels, root or (remote.parent(csv) if remote.is_url(csv) else Path(csv).parent))
        split = make_splits(labels, 1, seed)[0]
        rng = np.random.default_rng([seed, 1])
        few = [
            np.sort(rng.permutation(part)[: round(LABEL_IMAGES * share)])
            for part, share in ((split.train, 2 / 3), (split.val, 1 / 3))
        ]
        return cls(labels, paths, *few, truncated)

    def srcc(self, encoder: nn.Module, device: torch.device) -> float:
        """SRCC on val of the ridge regressor fitted on train, its strength chosen on val; by the probe's crops."""
        from ..scoring.features import Extractor, extract

        chosen = np.concatenate([self.train, self.val])
        extractor = Extractor(encoder, crop=LABEL_CROP, device=device, truncated=self.truncated)
        found = extract(extractor, [self.paths[i] for i in chosen], progress=False)
        kept = chosen[found.kept]
        train = np.isin(kept, self.train)
        y = self.labels.score[kept]
        _, values = ridge.select(found.values[train], y[train], found.values[~train], y[~train])
        return float(np.nanmax(values))


def judge(
    encoder: nn.Module, step: int, *, crop: int, backend: str = "auto", labelled: LabelledPart | None = None
) -> Check:
    """The figures of an encoder; its mode and weights stay as they are.

    Args:
        crop: side of the training crops; the check takes the nearest that its photographs and all distortions allow.
    """
    crop = min(max(crop, max(row.min_size for row in DISTORTIONS.values())), 224)
    training = encoder.training
    try:
        data = demo.make_set(crop=crop, backend=backend)
        h = demo.features(encoder, data.images)
        srcc = demo.within_folds(demo.cross_validate(h, data.target, data.photo, FOLDS), data, FOLDS)["srcc"]
        rank = embeddings.effective_rank(nn.functional.normalize(h, dim=1))
        device = next(encoder.parameters()).device
        return Check(step, srcc, rank, labelled.srcc(encoder, device) if labelled else None)
    finally:
        encoder.train(training)
