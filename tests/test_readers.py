"""Crops of photographs, the batches that readers make of them, and photographs that fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from test_decode import HOSTILE, KINDS, as_photo, gradient
from test_photos import write_folder
from torch.testing import assert_close

from shamisa.data import PhotoError, PhotoFolder, References
from shamisa.data import readers as data_readers
from shamisa.data.readers import cut


# ---- crops -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(100, 90), (100, 40), (30, 41), (1, 1), (64, 64)])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("pad", ["zero", "reflect"])
def test_cut_equals_resizing_padding_and_cropping(size, scale, pad):
    height, width = size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    h, w = (max(1, int(side * scale + 0.5)) for side in size)
    bicubic = Image.Resampling.BICUBIC
    small = Image.fromarray(pixels).resize((w, height), bicubic).resize((w, h), bicubic)
    small = np.asarray(small) if scale < 1 else pixels
    crop = 32
    for words in ((0, 0), (2**32 - 1, 2**32 - 1), (2**31, 123456789)):
        out = torch.zeros((3, crop, crop), dtype=torch.uint8)
        cut(as_photo(pixels), scale, words, pad, out=out)
        expected = small
        for axis, (side, word) in enumerate(zip((h, w), words, strict=True)):
            start = (word * (abs(side - crop) + 1)) >> 32
            if side >= crop:
                expected = expected.take(range(start, start + crop), axis)
            else:
                before_after = [(0, 0)] * 3
                before_after[axis] = (start, crop - side - start)
                mode = "constant" if pad == "zero" else "reflect" if side > 1 else "edge"
                expected = np.pad(expected, before_after, mode=mode)
        # a side that does not halve exactly shifts the filter by single-precision rounding: a level at rare pixels
        exact = scale == 1 or (height * scale == h and width * scale == w)
        assert_close(out, as_photo(expected), rtol=0, atol=0 if exact else 1)


class Flat:
    """A source of n flat photographs, photograph i of level i; those in bad fail."""

    def __init__(self, n: int, bad: tuple[int, ...] = (), size: tuple[int, int] = (20, 24)) -> None:
        self.n, self.bad, self.size = n, bad, size

    def __len__(self) -> int:
        return self.n

    def name(self, i: int) -> str:
        return f"flat_{i}"

    def __getitem__(self, i: int) -> torch.Tensor:
        if i in self.bad:
            raise PhotoError(self.name(i), "is bad")
        return torch.full((3, *self.size), i, dtype=torch.uint8)


def levels(crops: torch.Tensor) -> torch.Tensor:
    """The photograph of every view of flat crops, [B, V] int64."""
    assert_close(crops.amax((2, 3, 4)), crops.amin((2, 3, 4)))
    return crops[:, :, 0, 0, 0].long()


def test_choice_of_photographs():
    n, B = 23, 5
    refs = References(Flat(n), batch_size=B, seed=7, crop=8)
    assert refs.views == 6 and refs.steps_per_epoch == 5
    chosen = torch.cat([levels(refs.batch(step)[0]) for step in range(2 * n)])  # 10 epochs, [10 n, 6]
    assert_close(chosen[:, :3], chosen[:, 3:])  # half scale: the same three
    own = chosen[:, 0].view(10, n)
    assert_close(own.sort(1).values, torch.arange(n).expand(10, n))  # every photograph once per epoch
    assert len({tuple(row) for row in own.tolist()}) == 10  # in another order each time
    assert all(len(set(row)) == 3 for row in chosen[:, :3].tolist())
    others = chosen[:, 1:3].flatten().bincount(minlength=n)  # mean 20, uniform
    assert others.min() >= 5 and others.max() <= 42, others


def test_crop_positions_are_independent_and_cover_the_photo():
    height, width, crop = 13, 11, 8
    photo = torch.arange(height * width).view(1, height, width).expand(3, -1, -1).to(torch.uint8)

    class Ramp(Flat):
        def __getitem__(self, i):
            return photo

    refs = References(Ramp(1), batch_size=200, seed=1, crop=crop, references=2, scales=(1.0, 1.0))
    corner = refs.batch(0)[0][:, :, 0, 0, 0].long()
    rows, columns = corner // width, corner % width
    assert set(rows.flatten().tolist()) == set(range(height - crop + 1))
    assert set(columns.flatten().tolist()) == set(range(width - crop + 1))
    table = torch.cat((rows, columns), 1).T.double()  # rows and columns of 4 views, over 200 samples
    assert torch.corrcoef(table).triu(1).abs().max() < 0.3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_sources_repeat_only_when_they_must(n):
    chosen = levels(References(Flat(n), batch_size=30, seed=0, crop=4).batch(0)[0])
    assert {len(set(row)) for row in chosen.tolist()} == {n}


def folder_references(root, **changes) -> References:
    fields = {"batch_size": 2, "seed": 5, "crop": 32, **changes}
    return References(PhotoFolder(root), **fields)


def test_pure_in_seed_and_step(tmp_path):
    write_folder(tmp_path)
    refs = folder_references(tmp_path)
    state = torch.random.get_rng_state()
    forward = [refs.batch(step)[0] for step in range(6)]
    backward = [folder_references(tmp_path).batch(step)[0] for step in reversed(range(6))]
    for step, crops in enumerate(reversed(backward)):
        assert crops.shape == (2, 6, 3, 32, 32) and crops.dtype == torch.uint8 and crops.is_contiguous()
        assert_close(crops, forward[step], rtol=0, atol=0)
    assert not torch.equal(forward[0], forward[1])
    assert not torch.equal(forward[0], folder_references(tmp_path, seed=6).batch(0)[0])
    list(refs.loader(0, 2))
    assert_close(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("workers, context, starts", [(0, None, (0, 3)), (2, "fork", (0, 3)), (1, "spawn", (3,))])
def test_loader_workers_and_resume(tmp_path, workers, context, starts):
    write_folder(tmp_path)
    (tmp_path / "bad.png").write_text("text")
    expected = {step: folder_references(tmp_path).batch(step) for step in range(6)}
    for start in starts:
        refs = folder_references(tmp_path)
        items = list(refs.loader(start, 6, workers=workers, context=context))
        assert [step for step, _, _ in items] == list(range(start, 6))
        for step, crops, _ in items:
            assert_close(crops, expected[step][0], rtol=0, atol=0)
        seen = [name for _, _, skipped in items for name in skipped]
        assert seen == ["bad.png"] and refs.skipped == {"bad.png": "is not an image that Pillow can read"}


def test_world_sizes_share_the_global_batch(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "bad.png").write_text("text")
    for step in (0, 4):
        whole, skipped = folder_references(tmp_path, batch_size=4).batch(step)
        ranks = [folder_references(tmp_path, batch_size=2, rank=r, world_size=2).batch(step) for r in range(2)]
        assert_close(torch.cat([crops for crops, _ in ranks]), whole, rtol=0, atol=0)
        assert {**ranks[0][1], **ranks[1][1]} == skipped
    assert folder_references(tmp_path, batch_size=2, world_size=2).steps_per_epoch == 2


# ---- failures --------------------------------------------------------------------------------------------------------
def test_failed_photographs_are_replaced_by_others():
    bad = (1, 4, 5, 9)
    refs = References(Flat(12, bad), batch_size=6, seed=2, crop=4)
    chosen, named = [], {}
    for step, crops, skipped in refs.loader(0, 12):
        chosen.append(levels(crops)[:, :3])
        assert not named.keys() & skipped.keys()  # each once
        named.update(skipped)
        pure = References(Flat(12, bad), batch_size=6, seed=2, crop=4).batch(step)
        assert_close(crops, pure[0], rtol=0, atol=0)
    chosen = torch.cat(chosen)
    assert named == refs.skipped == {f"flat_{i}": "is bad" for i in bad}
    assert not set(chosen.flatten().tolist()) & set(bad)
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    good = References(Flat(12), batch_size=6, seed=2, crop=4)  # a failure changes only the reference that failed
    untouched = torch.cat([levels(good.batch(step)[0])[:, :3] for step in range(12)])
    own_bad = torch.isin(untouched[:, 0], torch.tensor(bad))
    assert_close(chosen[~own_bad, 0], untouched[~own_bad, 0])
    assert own_bad.any() and len(chosen[own_bad, 0].unique()) > 3


@pytest.mark.parametrize("workers", [0, 1])
def test_all_failed(workers):
    refs = References(Flat(5, tuple(range(5))), batch_size=1, seed=0, crop=4)
    message = r"no readable photograph after 5 attempts, the source has 5; the last: flat_\d: is bad"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        list(refs.loader(0, 1, workers=workers))
    with pytest.raises(RuntimeError, match=message):
        refs.batch(0)


def test_search_ends(monkeypatch):
    monkeypatch.setattr(data_readers, "MAX_ATTEMPTS", 10)
    with pytest.raises(RuntimeError, match="after 10 attempts, the source has 1000"):
        References(Flat(1000, tuple(range(1000))), batch_size=1, seed=0, crop=4).batch(0)


def test_too_many_failed():
    refs = References(Flat(20, (3, 7, 11)), batch_size=4, seed=0, crop=4, max_skipped=0.1)
    with pytest.raises(
        RuntimeError, match=r"3 of the \d+ photographs .* max_skipped = 0.1; the last: flat_\d+: is bad"
    ):
        list(refs.loader(0, 20))
    few = References(Flat(20, (3, 7)), batch_size=4, seed=0, crop=4, max_skipped=0.1)
    assert len(list(few.loader(0, 20))) == 20 and len(few.skipped) == 2


def test_hostile_folder_trains_through(tmp_path):
    write_folder(tmp_path, count=20)
    for name, (write, _) in HOSTILE.items():
        write(tmp_path / name)
    usable = {"cmyk.jpg": "CMYK", "grey.jpg": "L"}
    for name, mode in usable.items():
        Image.fromarray(gradient(70, 70)).convert(mode).save(tmp_path / name)
    for name in ("grey16.png", "rgb16.png", "animated.gif", "rgb_alpha.png"):
        KINDS[name][0](tmp_path / name)
    Image.new("RGB", (20000, 40)).save(tmp_path / "wide.png")
    source = PhotoFolder(tmp_path, max_pixels=5_000_000)
    bad = set(HOSTILE) - {"folder.jpg"} | {"other_loop.jpg"}  # a folder is no file, whatever its name
    assert len(source) == 20 + len(bad) + 7
    refs = References(source, batch_size=4, seed=0, crop=32)
    for _ in refs.loader(0, refs.steps_per_epoch, workers=2):
        pass
    assert set(refs.skipped) == bad
    assert "not an image" in refs.skipped["text.jpg"] and "20000 x 300" in refs.skipped["huge.png"]


WRONG = [
    ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, got 2.0"),
    ({"seed": 2**63}, "seed must be a 64-bit integer"),
    ({"crop": 0}, "crop must be"),
    ({"references": 0}, "references must be"),
    ({"scales": ()}, r"scales must be numbers in \(0, 1\], got \(\)"),
    ({"scales": (1.0, 2.0)}, "scales must be"),
    ({"pad": "edge"}, "pad must be one of zero, reflect, got 'edge'"),
    ({"rank": 2, "world_size": 2}, "rank must lie in 0..world_size - 1 = 1, got 2"),
    ({"max_skipped": 1.5}, "max_skipped must be a number in 0..1"),
    ({"source": Flat(0)}, r"len\(source\) must be"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=lambda x: str(x)[:30])
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        References(**{"source": Flat(4), "batch_size": 1, "seed": 0, **change})


@pytest.mark.parametrize("change", [{"start_step": -1}, {"stop_step": 1}, {"workers": -1}, {"prefetch": 0}])
def test_wrong_loader_arguments(change):
    refs = References(Flat(4), batch_size=1, seed=0, crop=4)
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be an integer of at least"):
        refs.loader(**{"start_step": 2, "stop_step": 4, **change})
    assert list(refs.loader(2, 2)) == []
    with pytest.raises(ValueError, match="step must be at least 0"):
        refs.batch(-1)
