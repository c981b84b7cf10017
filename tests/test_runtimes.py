"""What runs the encoder on a CPU: equal scores, its own cache, refusals before any work."""

from __future__ import annotations

import builtins

import pytest
import torch
from fitted import SMALL, fitted
from torch import nn
from torch.testing import assert_close

from shamisa import score
from shamisa.networks.models import Encoder
from shamisa.scoring.features import Extractor
from shamisa.scoring.runtimes import check_runtime, compile_encoder

CPU = torch.device("cpu")


def test_openvino_gives_the_same_scores(tmp_path):
    pytest.importorskip("openvino")
    run, regressor = SMALL, fitted(tmp_path)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((40, 50), (64, 33), (90, 90))]
    plain = score.load_scorer(run, regressor, device="cpu")(images)
    other = score.load_scorer(run, regressor, device="cpu", runtime="openvino")(images)
    assert plain.std() > 0
    assert_close(other, plain, rtol=0, atol=1e-4)


def test_stages_any_number_of_images_and_a_cache_of_its_own(tmp_path):
    pytest.importorskip("openvino")
    encoder = Encoder("shamisa/small", features="stages").eval()
    run = compile_encoder(encoder, 32, "openvino")
    with torch.no_grad():
        for n in (1, 7):
            x = torch.randn(n, 3, 32, 32)
            assert_close(run(x), encoder(x), rtol=1e-4, atol=1e-5)
    places = [Extractor(encoder, crop=32, cache=tmp_path, runtime=r).cache for r in ("torch", "openvino")]
    assert places[0] != places[1]


class Varies(nn.Module):
    """Gives something else each time."""

    feature_dim = 2

    def forward(self, x):
        return torch.rand(len(x), 2) + x.mean()


class Unseen(nn.Module):
    """Computes outside what can be traced: its features become constants."""

    feature_dim = 2

    def forward(self, x):
        return torch.from_numpy(x.numpy().mean((2, 3)))


@pytest.mark.parametrize("encoder", [Varies(), Unseen()], ids=["other features", "constants"])
def test_a_program_that_is_not_the_encoder_is_refused(encoder):
    pytest.importorskip("openvino")
    with pytest.raises(RuntimeError, match="features by openvino must be|cannot be compiled by openvino"):
        compile_encoder(encoder, 32, "openvino")


def test_refused_before_any_work(monkeypatch):
    with pytest.raises(ValueError, match="runtime must be one of torch, openvino, got 'fast'"):
        Extractor(Encoder("shamisa/small"), runtime="fast")
    with pytest.raises(ValueError, match="runs on a CPU, got device cuda:0"):
        check_runtime("openvino", torch.device("cuda:0"))
    plain = builtins.__import__

    def without(name, *rest):
        if name == "openvino":
            raise ImportError("no module")
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match=r"pip install 'shamisa\[openvino\]'"):
        check_runtime("openvino", CPU)
