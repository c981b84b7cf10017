"""Floating images that are not in 0..1: refused on the CPU, told later on a GPU."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import shamisa
from shamisa import engine, ranges
from shamisa import functional as SF
from shamisa.data import References
from shamisa.ops import has_kernel, run_distort
from shamisa.reference import ranges as rule

BACKENDS = ["reference", *(["native"] if has_kernel("distort", "cpu") else [])]
backends = pytest.mark.parametrize("backend", BACKENDS)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def entries(x: Tensor, backend: str) -> dict:
    """Every public call that takes images [N, 3, H, W], by name."""
    plan = shamisa.DistortionEngine(compositions=1, levels=2).sample(len(x))
    n = len(x)
    empty = torch.empty(n, 0, dtype=torch.int64)
    return {
        "distort": lambda: shamisa.distort(x, "mean_shift_up", severity=1, backend=backend),
        "one image": lambda: shamisa.distort(x[-1], "mean_shift_up", severity=1, backend=backend),
        "engine": lambda: shamisa.DistortionEngine()(x.unsqueeze(1), plan, backend=backend),
        "engine, whole chains": lambda: shamisa.DistortionEngine(reuse_prefix=False)(
            x.unsqueeze(1), plan, backend=backend
        ),
        "normalize": lambda: engine.normalize(x, backend=backend),
        "op": lambda: run_distort(x, torch.arange(n), empty, empty.float(), empty, backend=backend),
    }


@backends
@pytest.mark.parametrize("dtype", FLOATS)
def test_images_in_0_to_255_are_refused_everywhere(photo, backend, dtype):
    """A good image first: each is judged by itself. Any strides."""
    bad = torch.cat([photo.to(dtype) / 255, photo.to(dtype)])
    for x in (bad, bad.contiguous(memory_format=torch.channels_last), bad.flip(-1), bad[..., 3:97, 5::2]):
        for name, call in entries(x, backend).items():
            with pytest.raises(ValueError, match=r"floating images must lie in 0\.\.1, got \d+.* by 255"):
                call()
                pytest.fail(name)


@backends
def test_normalised_images_are_refused(photo, backend):
    """Of ImageNet's mean and deviation: dark images go below -1, bright ones above 2."""
    for level in (0.0, 1.0):
        x = engine.normalize(torch.full((1, 3, 50, 60), level))
        with pytest.raises(ValueError, match="undo a normalisation"):
            shamisa.distort(x, "jpeg", severity=1, backend=backend)


@backends
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_clamped_on_purpose_passes(photo, backend, dtype):
    """The overshoot of filters, noise, a few wild samples, NaN and infinity; uint8 is always in range."""
    x = photo.to(dtype) / 255
    wild = x.clone()
    wild[..., ::40, ::40] = 200.0
    nothing = torch.full_like(x, float("nan"))
    for good in (x * 1.5 - 0.25, wild, nothing, torch.full_like(x, float("inf")), photo):
        for call in entries(good, backend).values():
            call()


def test_both_languages_look_at_the_same_samples():
    """One image for each number of samples outside, of which 3 pass and 4 do not."""
    for H, W in ((1, 1), (3, 5), (8, 8), (50, 61)):
        for backend in BACKENDS:
            for count in range(17):
                x = torch.zeros(1, 3, H, W)
                p = torch.arange(16)[:count]
                x[0, p % 3, (2 * (p // 4) + 1) * H // 8, (2 * (p % 4) + 1) * W // 8] = 255.0
                refused = int((rule.samples(x) > 2).sum()) > rule.MOST_OUTSIDE
                try:
                    shamisa.distort(x, "darken", severity=1, backend=backend)
                    assert not refused, (H, W, backend, count)
                except ValueError:
                    assert refused, (H, W, backend, count)


@pytest.mark.skipif("native" not in BACKENDS, reason="needs the compiled kernels")
def test_numpy_images_in_0_to_255_are_refused(photo):
    from shamisa import _host

    x = photo[0].float().numpy()
    with pytest.raises(ValueError, match="must lie in 0..1"):
        _host.distort(x, 14, 0.1)
    assert np.isfinite(_host.distort(x / 255, 14, 0.1)).all()


@pytest.mark.parametrize(
    "photo",
    [torch.rand(3, 80, 80), torch.zeros(1, 80, 80, dtype=torch.uint8), torch.zeros(3, 80, 80, dtype=torch.int32)],
)
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_a_source_of_anything_but_uint8_is_refused(photo, scales):
    """Floats in 0..1 would be cut to 0, and the crops black."""

    class Source:
        def __len__(self) -> int:
            return 3

        def name(self, i: int) -> str:
            return str(i)

        def __getitem__(self, i: int) -> Tensor:
            return photo

    references = References(Source(), batch_size=1, seed=0, crop=32, scales=scales)
    with pytest.raises(ValueError, match=r"source\[\d\] must be uint8 \[3, H, W\], got torch"):
        references.batch(0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_that_are_none_are_refused(temperature):
    """Zero and NaN gave NaN, a negative one an assignment to the farthest anchor."""
    logits, severity = torch.rand(22, 3), torch.rand(1, 2, 5)
    for call in (
        lambda: SF.transport_codes(logits, temperature=temperature),
        lambda: SF.transport_graph(logits, temperature=temperature),
        lambda: SF.transport_alignment(logits, logits, severity, 2, temperature=temperature),
    ):
        with pytest.raises(ValueError, match="temperature must be a (finite )?number above 0"):
            call()


# ---- the path of GPUs, with a device that answers when the test says so -------------------------------------------------
class Event:
    done = False

    def query(self) -> bool:
        return self.done


@pytest.fixture
def answers(monkeypatch):
    """The CPU in place of a GPU; -> the events, in order."""
    made: list[Event] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "empty", lambda *a, _empty=torch.empty, pin_memory=False, **k: _empty(*a, **k))
    monkeypatch.setattr(ranges, "_recorded", lambda device: made.append(Event()) or made[-1])
    monkeypatch.setattr(ranges, "_waiting", [])
    return made


def test_a_gpu_answers_when_it_has_and_is_never_waited_for(answers, photo):
    x = photo.float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranges.note(x)
        ranges.note(x / 255)  # the first answer is not there: no second question
        ranges.look()
    assert len(answers) == 1
    answers[0].done = True
    with pytest.warns(RuntimeWarning, match=r"an earlier call clamped .* must lie in 0\.\.1, got \d+"):
        ranges.note(x / 255)
    assert len(answers) == 2
    answers[1].done = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranges.look()
    assert not ranges._waiting


def test_nothing_is_asked_while_a_graph_is_captured(answers, photo, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    ranges.note(photo.float())
    assert not answers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_of_images_in_0_to_255(photo):
    x = photo.float().cuda()
    shamisa.distort(x, "mean_shift_up", severity=1)
    torch.cuda.synchronize()
    with pytest.warns(RuntimeWarning, match="an earlier call clamped"):
        shamisa.distort(x / 255, "mean_shift_up", severity=1)
