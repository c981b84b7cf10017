"""Extraction from files, its cache, and files that cannot be read."""

import threading
import time

import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from shamisa.data.photos import PhotoError
from shamisa.engine import IMAGENET_MEAN, IMAGENET_STD
from shamisa.scoring import crops, features


class Means(nn.Module):
    """Mean of every channel, in 0..1 again: what it saw is in its features. F = 3."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, x):
        self.calls += len(x)
        mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
        return self.factor * (x * std + mean).mean((2, 3))


def photo(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def files(tmp_path):
    paths = []
    for i, size in enumerate([(40, 50), (20, 70), (33, 33), (16, 16), (90, 60)]):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(photo(*size, seed=i).permute(1, 2, 0).numpy()).save(paths[-1])
    (tmp_path / "torn.png").write_bytes(paths[0].read_bytes()[:200])
    return [*paths[:2], tmp_path / "torn.png", *paths[2:], tmp_path / "missing.png"]


def test_features_hold_both_scales_crop_by_crop():
    p = photo(40, 50)
    extractor = features.Extractor(Means(), crop=16)
    found = extractor([p])
    assert found.shape == (1, 5, 6) and found.dtype == torch.float32
    full, half = (
        c.float().mean((2, 3)) / 255 for c in (crops.five_crops(p, 16), crops.five_crops(crops.half_size(p), 16))
    )
    assert_close(found[0], torch.cat([full, half], 1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch, workers", [(1, 1), (2, 2), (3, 1), (16, 4)])
def test_stream_keeps_the_order_and_names_bad_files(files, batch, workers):
    extractor = features.Extractor(Means(), crop=16, batch=batch, workers=workers)
    alone = features.Extractor(Means(), crop=16, batch=1, workers=1)
    results = list(extractor.stream(files))
    assert [p for p, _ in results] == [str(f) for f in files]
    for (path, found), file in zip(results, files, strict=True):
        if file.name in ("torn.png", "missing.png"):
            assert isinstance(found, PhotoError) and file.name in str(found)
        else:
            assert_close(found, next(alone.stream([path]))[1])
    kept = features.extract(extractor, files, progress=False)
    assert kept.kept == [0, 1, 3, 4, 5] and sorted(kept.failed) == [2, 6]
    assert torch.equal(kept.values, torch.stack([results[i][1] for i in kept.kept]))


@pytest.mark.parametrize("together", [1, 40 * 50 + 33 * 33, 10**9])
def test_photographs_being_decoded_are_bounded(files, monkeypatch, together):
    monkeypatch.setattr(features, "PIXELS_TOGETHER", together)
    real, inside, seen, lock = features.views, [], [], threading.Lock()

    def views(photo, *sizes):
        pixels = photo.shape[1] * photo.shape[2]
        with lock:
            inside.append(pixels)
            seen.append((len(inside), sum(inside)))
        time.sleep(0.05)
        with lock:
            inside.remove(pixels)
        return real(photo, *sizes)

    monkeypatch.setattr(features, "views", views)
    extractor = features.Extractor(Means(), crop=16, batch=8, workers=4)
    expected = [str(f) for f in [*files, *files]]
    assert [p for p, _ in extractor.stream(expected)] == expected
    assert len(seen) == 10 and all(n == 1 or pixels <= together for n, pixels in seen)
    assert together == 1 or max(n for n, _ in seen) > 1
    assert extractor._room.used == 0


def test_cache_is_by_encoder_and_content(files, tmp_path):
    def run(factor, crop=16):
        encoder = Means(factor)
        extractor = features.Extractor(encoder, crop=crop, cache=tmp_path / "cache")
        return features.extract(extractor, files, progress=False), encoder.calls

    first, calls = run(1.0)
    again, calls_again = run(1.0)
    assert calls == 5 * 10 and calls_again == 0
    assert torch.equal(first.values, again.values) and again.kept == first.kept and sorted(again.failed) == [2, 6]
    assert run(2.0)[1] == 50 and run(1.0, crop=8)[1] == 50
    Image.fromarray(photo(30, 30, seed=9).permute(1, 2, 0).numpy()).save(files[0])
    changed, calls = run(1.0)
    assert calls == 10 and not torch.equal(changed.values[0], first.values[0])
    (entry,) = (tmp_path / "cache").glob(f"*-c8-*/{features.hash_file(files[1])}.safetensors")
    entry.write_bytes(b"torn")
    assert run(1.0, crop=8)[1] == 20  # the changed photograph, and the damaged entry


def test_hash_tells_encoders_apart():
    assert features.hash_encoder(Means(1.0)) == features.hash_encoder(Means(1.0))
    assert features.hash_encoder(Means(1.0)) != features.hash_encoder(Means(1.0000001))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: crops.views(photo(8, 8).float(), 4), ValueError, "photo must be uint8"),
        (lambda: crops.views(photo(8, 8)[:1], 4), ValueError, r"got torch.uint8 \[1, 8, 8\]"),
        (lambda: features.Extractor(Means(), crop=0), ValueError, "crop must be"),
        (lambda: features.Extractor(Means(), batch=1.5), ValueError, "batch must be"),
        (lambda: features.Extractor(Means(float("nan")), crop=8)([photo(9, 9)]), RuntimeError, "finite features"),
        (lambda: features.Extractor(nn.Conv2d(3, 2, 3), crop=8)([photo(9, 9)]), RuntimeError, r"must give \[N, F\]"),
        (lambda: features.extract(features.Extractor(Means()), []), ValueError, "at least one file"),
        (
            lambda: features.extract(features.Extractor(Means()), ["no.png"], progress=False),
            ValueError,
            "none of the 1 .*no.png",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_full_reference_is_the_absolute_difference(files):
    extractor = features.Extractor(Means(), crop=16)
    torn, missing = files[2], files[-1]
    paths, references = [*files[:2], torn, files[3], files[4]], [files[1], files[0], files[0], missing, files[0]]
    found = features.extract_difference(extractor, paths, references, progress=False)
    assert found.kept == [0, 1, 4] and list(found.failed) == [2, 3]
    assert found.failed[2].path == str(torn) and found.failed[3].path == str(missing)
    alone = {p: features.extract(extractor, [p], progress=False).values[0] for p in (files[0], files[1], files[4])}
    expected = [alone[files[0]] - alone[files[1]], alone[files[1]] - alone[files[0]], alone[files[4]] - alone[files[0]]]
    assert_close(found.values, torch.stack(expected).abs())
    with pytest.raises(ValueError, match="one for each of 5 paths, got 2"):
        features.extract_difference(extractor, paths, references[:2])


def test_photographs_per_call_by_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert [features.photographs_per_call(None, d) for d in (cpu, cuda)] == [1, 8]
    assert [features.photographs_per_call(3, d) for d in (cpu, cuda)] == [3, 3]
    assert features.Extractor(Means(), crop=16).batch == 1
    with pytest.raises(ValueError, match="batch must be an integer of at least 1, got 0"):
        features.photographs_per_call(0, cpu)
