"""Opening a scorer: the packaged model, or a trained encoder and its regressor. Neither training nor a command is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .data.photos import PhotoError
from .networks.devices import choose_device
from .networks.encoders import check_fit, name_of, recorded
from .networks.models import Encoder
from .scoring.crops import FULL, check_view
from .scoring.features import Extractor
from .scoring.inputs import open_encoder
from .scoring.quality import QualityNet, to_levels
from .scoring.ridge import Regressor

FITTED = "fitted"  # the viewing size of the regressor


class Scorer:
    """A frozen encoder and a regressor.

    Args:
        encoder: any module, images [N, 3, crop, crop] normalised by its mean and std -> h [N, F].
        regressor: fitted on features of this very encoder.
        view: viewing size of photographs, pixels of the longer side or "full"; "fitted": that of the regressor.
        device, batch, workers, truncated, runtime: see ``features.Extractor``.

    Raises:
        ValueError: the regressor was fitted on features of another encoder, other features of it, or images normalised
            otherwise.
    """

    def __init__(self, encoder: torch.nn.Module, regressor: Regressor, view: int | str = FITTED, **options) -> None:
        check_fit(encoder, regressor.about)
        view = regressor.view if view == FITTED else view
        self.extractor = Extractor(encoder, crop=regressor.about["crop"], view=view, **options)
        if self.extractor.hash != regressor.about["encoder_hash"]:
            raise ValueError(
                f"regressor must be fitted on features of the checkpoint's encoder, {name_of(encoder)} with "
                f"hash {self.extractor.hash[:16]}; got one for {regressor.about['encoder']} with hash "
                f"{regressor.about['encoder_hash'][:16]}"
            )
        self.regressor = regressor

    def __call__(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Quality in 0..1, higher is better: images [N, 3, H, W], one [3, H, W], or a list of [3, H, W] of any sizes ->
        [N] float64. RGB, uint8 or floating in 0..1, see ``quality.to_levels``."""
        if isinstance(images, Tensor) and images.dim() == 3:
            images = [images]
        if not isinstance(images, Tensor | list | tuple):
            raise TypeError(f"images must be a tensor [3, H, W] or [N, 3, H, W] or a list, got {type(images).__name__}")
        if not len(images):
            raise ValueError("images must hold at least one image, got none")
        return self.regressor.quality(self.regressor.predict(self.extractor([_levels(i) for i in images])))

    def stream(self, paths: Sequence[str]) -> Iterator[tuple[str, float, float] | PhotoError]:
        """Files -> (path, quality in 0..1, raw score on the training scale) or the PhotoError, in order, in bounded memory."""
        for path, found in self.extractor.stream(paths):
            if isinstance(found, PhotoError):
                yield found
                continue
            yield path, *self.judge(found)

    def judge(self, features: Tensor) -> tuple[float, float]:
        """Features [5, 2F] of a photograph -> (quality in 0..1, raw score on the training scale)."""
        raw = self.regressor.predict(features.unsqueeze(0))
        return self.regressor.quality(raw).item(), raw.item()


def _levels(image: Tensor) -> Tensor:
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"each image must be a tensor [3, H, W] with H, W >= 1, got {got}")
    return to_levels(image).cpu()


def open_pair(
    checkpoint: str | os.PathLike | None, regressor: str | os.PathLike | None
) -> tuple[torch.nn.Module, Regressor]:
    """Encoder, with the features that the regressor takes, and regressor: of two files, or of the package where both are None.

    Raises ValueError or RuntimeError where one is missing or they do not belong together.
    """
    if (checkpoint is None) != (regressor is None):
        given = "a checkpoint" if regressor is None else "a regressor"
        raise ValueError(f"give both a checkpoint and its regressor, or neither (the packaged model), got only {given}")
    if checkpoint is None:
        from .packaged import load_packaged

        return load_packaged()
    fitted = Regressor.load(regressor)  # before the encoder, which takes longer
    encoder = open_encoder(checkpoint)
    wanted = recorded(fitted.about, str(regressor))["features"]
    if isinstance(encoder, Encoder) and encoder.features != wanted:
        try:
            encoder.select(wanted)
        except ValueError as error:
            raise ValueError(f"{regressor} does not fit the checkpoint: {error}") from None
    return encoder, fitted


def load_scorer(
    checkpoint: str | os.PathLike | None = None,
    regressor: str | os.PathLike | None = None,
    *,
    view: int | str = FITTED,
    device: str = "auto",
    batch: int | None = None,
    workers: int = 2,
    truncated: str = "skip",
    runtime: str = "torch",
) -> Scorer:
    """Open the packaged model or, where both files are given, a trained encoder and its regressor, to score images.

    Args:
        checkpoint: folder of a run, or of one checkpoint, of ``shamisa.train``.
        regressor: ``regressor.safetensors`` written by ``shamisa.probe`` for that encoder. It says which features of the
            encoder it takes, whatever the checkpoint was trained with.
        view: viewing size, to which larger photographs are shrunk first: pixels of the longer side, "full" (no limit), or
            "fitted": that of the regressor.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        batch: images whose crops go through the encoder together [1 on a CPU, 8 on a GPU].
        workers: threads that decode files, for ``Scorer.stream``.
        truncated: what that does with a JPEG without its end: ``"skip"``, or ``"read"`` it as far as it goes.
        runtime: what runs the encoder: ``"torch"``, or ``"openvino"`` on a CPU, faster and equal within rounding.

    Returns:
        A ``Scorer``: called with images ``[N, 3, H, W]``, one ``[3, H, W]`` or a list of any sizes (RGB, uint8 or floating in
        0..1), it gives their quality ``[N]`` float64 in 0..1, higher is better.

    Raises:
        ValueError, RuntimeError: files that cannot be read or do not belong together; a device that is not there.
    """
    chosen = choose_device(device)
    if view != FITTED:
        check_view(view)
    encoder, fitted = open_pair(checkpoint, regressor)
    options = {
        "view": view,
        "device": chosen,
        "batch": batch,
        "workers": workers,
        "truncated": truncated,
        "runtime": runtime,
    }
    return Scorer(encoder, fitted, **options)


def load_quality_net(
    checkpoint: str | os.PathLike | None = None,
    regressor: str | os.PathLike | None = None,
    *,
    view: int | str = FITTED,
    device: str = "cpu",
    batch: int | None = None,
    autocast: bool = False,
) -> QualityNet:
    """The module of the packaged model, or of a run (or checkpoint), with the features that the regressor takes, and a
    regressor's file.

    view: as of ``shamisa.load_scorer``. Raises ValueError or RuntimeError where the files do not fit.
    """
    scorer = load_scorer(checkpoint, regressor, view=view, device=device, batch=batch)
    fitted = scorer.regressor
    if scorer.extractor.view != check_view(fitted.view):  # what is exported or published records what it does
        fitted = Regressor(fitted.coef, fitted.intercept, {**fitted.about, "view": scorer.extractor.view or FULL})
    net = QualityNet(scorer.extractor.encoder, fitted, batch=batch, autocast=autocast)
    return net.to(scorer.extractor.device)
