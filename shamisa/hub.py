"""Save and load encoder and regressor together in the layout of the Hugging Face Hub: config.json, model.safetensors.

QualityModel.of("runs/paper", "regressor.safetensors").save_pretrained("FOLDER")  # or QualityModel.packaged()
QualityModel.from_pretrained("FOLDER")(images)  # [N, 3, H, W] -> [N] in 0..1
"""

from __future__ import annotations

import os

import torch
from torch import nn

from . import checks
from .networks.encoders import recorded
from .networks.models import Encoder
from .networks.weights import load_matching
from .scorer import load_quality_net
from .scoring.features import hash_encoder
from .scoring.quality import QualityNet
from .scoring.ridge import Regressor

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    raise checks.MissingPackage(f"shamisa.hub needs huggingface_hub: pip install 'shamisa[hub]' ({error})") from None


class QualityModel(
    QualityNet,
    PyTorchModelHubMixin,
    library_name="shamisa",
    license="apache-2.0",
    tags=["image-quality-assessment", "no-reference"],
):
    """A ``QualityNet`` with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``. Only safetensors are read.

    Args:
        encoder: its name, such as ``torchvision/resnet50``; the weights come from ``of`` or ``from_pretrained``.
        about: of the regressor, see ``ridge.Regressor``; says which features it takes, and mean and std of their images.
        batch, autocast: see ``QualityNet``.
    """

    def __init__(self, encoder: str, about: dict, batch: int | None = None, autocast: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced
            record = recorded(about, "the regressor")
            network = Encoder(encoder, features=record["features"])
            network.adopt(record)
        zeros = torch.zeros(2 * network.feature_dim + 1, dtype=torch.float64)
        super().__init__(network, Regressor(zeros[:-1], zeros[-1], about), batch=batch, autocast=autocast)

    @classmethod
    def packaged(cls, **options) -> QualityModel:
        """The model that comes with the package."""
        return cls.of(None, None, **options)

    @classmethod
    def of(cls, checkpoint: str | os.PathLike | None, regressor: str | os.PathLike | None, **options) -> QualityModel:
        """From a run (or checkpoint) and a regressor's file, or both None; ValueError or RuntimeError where they do not fit."""
        net = load_quality_net(checkpoint, regressor)
        model = cls(encoder=net.encoder.name, about=net.about, **options)
        model.load_state_dict(net.state_dict())
        return model

    @classmethod
    def _load_as_safetensor(cls, model: nn.Module, model_file: str, map_location: str, strict: bool) -> nn.Module:
        from safetensors.torch import load_file

        # always strict, and the weights must be the ones that the regressor was fitted with
        load_matching(model, load_file(model_file), f"{model_file} does not fit its config.json")
        if (found := hash_encoder(model.encoder)) != model.about["encoder_hash"]:
            raise ValueError(
                f"{model_file} must hold the encoder of the regressor, hash {model.about['encoder_hash'][:16]}, "
                f"got {found[:16]}"
            )
        return model.to(map_location)

    @classmethod
    def _load_as_pickle(cls, model: nn.Module, model_file: str, map_location: str, strict: bool) -> nn.Module:
        raise ValueError(f"the model must be stored as model.safetensors, got {model_file}: nothing is unpickled")
