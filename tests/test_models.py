"""Encoders: shapes, names, first weights from files, and the errors of each."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from shamisa.networks.models import Encoder
from shamisa.training.config import Config
from shamisa.training.learner import Learner, Projector

try:
    import torchvision
except ImportError:
    torchvision = None

NAMES = [
    ("shamisa/small", 256),
    pytest.param(
        "torchvision/resnet18", 512, marks=pytest.mark.skipif(torchvision is None, reason="needs torchvision")
    ),
]


def tiny_config(**fields) -> Config:
    return Config(encoder="shamisa/small", init="none", crop=32, batch=1, hidden=16, embedding=8, anchors=4, **fields)


@pytest.mark.parametrize(("name", "features"), NAMES)
def test_encoder_pools_to_features(name, features):
    torch.manual_seed(0)
    encoder = Encoder(name).eval()
    x = torch.randn(3, 3, 40, 33)
    h = encoder(x)
    assert h.shape == (3, encoder.feature_dim) == (3, features) and h.dtype == torch.float32
    assert bool(h.isfinite().all()) and float(h.detach().std()) > 0
    torch.testing.assert_close(encoder(x[1:2]), h[1:2], rtol=1e-4, atol=1e-5)  # in eval mode images are independent
    torch.testing.assert_close(encoder(x.contiguous(memory_format=torch.channels_last)), h, rtol=1e-4, atol=1e-5)


def test_small_encoder_trains_every_parameter():
    torch.manual_seed(0)
    encoder = Encoder("shamisa/small")
    encoder(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shamisa/large", r"encoder must be torchvision/NAME.*got 'shamisa/large'"),
        ("resnet50", r"encoder must be torchvision/NAME.*got 'resnet50'"),
        ("torchvision/resnet51", r"encoder must name a network of torchvision|needs torchvision"),
        ("torchvision/vgg11", r"linear layer `fc`|needs torchvision"),
    ],
)
def test_unknown_encoders_are_refused(name, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        Encoder(name)


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)  # makes `import timm` fail
    with pytest.raises(RuntimeError, match="timm/resnet18 needs timm: pip install timm"):
        Encoder("timm/resnet18")


@pytest.mark.skipif(torchvision is None, reason="needs torchvision")
def test_failed_download_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(RuntimeError, match=r"cannot be downloaded \(no network\).*--init none"):
        Encoder("torchvision/resnet18", "imagenet")


def write_weights(kind, encoder, path):
    """The network's weights in one of the layouts that `init` reads."""
    weights = {k: t.clone() for k, t in encoder.network.state_dict().items()}
    if kind == "plain":
        save_file(weights, path := path / "w.safetensors")
    elif kind == "checkpoint":
        extra = {"projector.0.weight": torch.zeros(2, 2)}
        save_file({f"encoder.network.{k}": t for k, t in weights.items()} | extra, path := path / "w.safetensors")
    elif kind == "pth":
        torch.save(weights | {"fc.weight": torch.zeros(1)}, path := path / "w.pth")
    else:
        torch.save({"state_dict": {f"module.{k}": t for k, t in weights.items()}, "epoch": 3}, path := path / "w.pt")
    return path


@pytest.mark.parametrize("kind", ["plain", "checkpoint", "pth", "wrapped"])
def test_init_from_a_file(kind, tmp_path):
    torch.manual_seed(1)
    source = Encoder("shamisa/small")
    source.train()(torch.randn(4, 3, 32, 32))  # so that the buffers differ from fresh ones too
    loaded = Encoder("shamisa/small", str(write_weights(kind, source, tmp_path)))
    for key, expected in source.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], expected, rtol=0, atol=0)


def bad_file(kind, path):
    if kind == "missing":
        return path / "nothing.safetensors"
    if kind == "suffix":
        (path / "w.bin").write_bytes(b"x")
        return path / "w.bin"
    if kind == "garbage":
        (path / "w.safetensors").write_bytes(b"not a safetensors file at all")
        return path / "w.safetensors"
    if kind == "pickle":  # a pickle that would run code is refused
        torch.save({"x": Config}, path / "w.pth")
        return path / "w.pth"
    if kind == "other":
        save_file({"conv.weight": torch.zeros(2)}, path / "w.safetensors")
        return path / "w.safetensors"
    weights = Encoder("shamisa/small").network.state_dict()
    key = next(iter(weights))
    save_file(weights | {key: torch.zeros(1, 2)}, path / "w.safetensors")
    return path / "w.safetensors"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("suffix", "init must be a .safetensors, .pth or .pt file"),
        ("garbage", "cannot read weights"),
        ("pickle", "cannot read weights"),
        ("other", r"does not hold weights of shamisa/small: missing stages.*and \d+ more"),
        ("shape", r"expected \[24, 3, .*found \[1, 2\]"),
    ],
)
def test_bad_init_files_are_refused(kind, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Encoder("shamisa/small", str(bad_file(kind, tmp_path)))


def test_projector_is_two_layers():
    projector = Projector(2048, 3072, 768)
    assert [tuple(p.shape) for p in projector.parameters()] == [(3072, 2048), (3072,), (768, 3072), (768,)]


def test_learner_weights_are_a_function_of_the_seed():
    before = torch.random.get_rng_state()
    a, b, other = (Learner(tiny_config(seed=s)).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)  # and the global generator is left alone
    assert all(torch.equal(a[k], b[k]) for k in a)
    for part in ("encoder.", "projector.", "loss."):
        assert any(not torch.equal(a[k], other[k]) for k in a if k.startswith(part)), part


@pytest.mark.parametrize("one_pass", [False, True])
def test_embed_shapes_norms_and_passes(one_pass):
    B, V, C, L = 1, 4, 2, 3
    learner = Learner(tiny_config(one_pass=one_pass)).train()
    calls = []
    learner.encoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    z_ref, z_dist, h_ref, h_dist = learner.embed(torch.randn(B, V, 3, 32, 32), torch.randn(B, V, C, L, 3, 32, 32))
    assert z_ref.shape == (B, V, 8) and z_dist.shape == (B, V, C, L, 8)
    F = learner.encoder.feature_dim
    assert h_ref.shape == (B, V, F) and h_dist.shape == (B, V, C, L, F)
    torch.testing.assert_close(h_dist.norm(dim=-1), torch.ones(B, V, C, L))
    assert calls == ([28] if one_pass else [4, 24])
