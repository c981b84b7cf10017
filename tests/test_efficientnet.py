"""EfficientNet-Lite0 without timm: the network of timm, bit for bit."""

import pytest
import torch
from torch.testing import assert_close

from shamisa.networks.efficientnet import EfficientNetLite0
from shamisa.networks.models import EFFICIENTNET, EFFICIENTNET_OF_TIMM, Encoder
from shamisa.networks.weights import PACKAGES, find_package


@pytest.fixture(scope="module")
def both():
    """timm's network with random weights, and ours with the same."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(EFFICIENTNET_OF_TIMM, num_classes=0)
    with torch.no_grad():
        for name, t in theirs.named_buffers():  # as after training: neither 0 nor 1
            if t.is_floating_point():
                t.add_(torch.rand_like(t)) if "var" in name else t.copy_(torch.randn_like(t))
    ours = EfficientNetLite0()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("size", [(224, 224), (97, 131), (33, 64)])
def test_features_are_those_of_timm(both, size):
    theirs, ours = (n.eval() for n in both)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_stages_are_those_of_timm(both):
    theirs, ours = Encoder(f"timm/{EFFICIENTNET_OF_TIMM}", features="stages"), Encoder(EFFICIENTNET, features="stages")
    ours.network.load_state_dict(both[0].state_dict())
    theirs.network.load_state_dict(both[0].state_dict())
    assert (ours.mean, ours.std, ours.feature_dim) == (theirs.mean, theirs.std, theirs.feature_dim)
    x = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)


def test_gradients_are_those_of_timm(both):
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    for network in both:
        network.train().zero_grad()
        network(x).square().sum().backward()
    for (name, a), b in zip(both[1].named_parameters(), both[0].parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_random_weights_keep_the_scale_of_their_input():
    torch.manual_seed(0)
    x = EfficientNetLite0()(torch.randn(4, 3, 64, 64))
    assert x.shape == (4, 1280) and 0.01 < x.std().item() < 6


@pytest.mark.skipif(find_package(EFFICIENTNET_OF_TIMM) is None, reason=f"needs {PACKAGES[EFFICIENTNET_OF_TIMM]}")
def test_imagenet_weights_come_from_the_package():
    encoder = Encoder(EFFICIENTNET, "imagenet")
    assert encoder.source.startswith(PACKAGES[EFFICIENTNET_OF_TIMM])
    stored = torch.load(find_package(EFFICIENTNET_OF_TIMM).file, weights_only=True)
    assert torch.equal(encoder.network.conv_head.weight, stored["_conv_head.weight"])


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shamisa.networks.models.find_package", lambda model: None)
    with pytest.raises(RuntimeError, match=f"pip install {PACKAGES[EFFICIENTNET_OF_TIMM]}.*--init none"):
        Encoder(EFFICIENTNET, "imagenet")
