from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from shamisa.data import (
    EmbeddedPhotos,
    PhotoError,
    PhotoFolder,
    PhotoList,
    References,
    dead_leaves,
    open_photos,
    read_photo,
)
from shamisa.data import readers as data_readers
from shamisa.data.decode import printable
from shamisa.data.readers import cut

H, W = 40, 52


def gradient(height: int = H, width: int = W) -> np.ndarray:
    """A smooth colour image, uint8 [H, W, 3], that no flip or turn leaves as it is."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 200 // width, y * 250 // height, 255 - (x + y) * 255 // (width + height)), -1).astype(np.uint8)


def as_photo(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [H, W] or [H, W, 3] -> what read_photo should return for it."""
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def png16(samples: np.ndarray, color_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write for colour: samples uint16 [H, W, channels]."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# ---- one file --------------------------------------------------------------------------------------------------------
RGB = gradient()
GREY = RGB[..., 0]
GREY16 = GREY.astype(np.uint16) * 257 + 100  # + 100 / 257 of a level: rounds down
ALPHA = np.where(np.arange(W) < W // 2, 255, 0).astype(np.uint8)[None].repeat(H, 0)
OVER_WHITE = np.where(ALPHA[..., None] > 0, RGB, 255).astype(np.uint8)
GREY_OVER_WHITE = np.where(ALPHA > 0, GREY, 255).astype(np.uint8)
PALETTE = Image.fromarray(RGB).quantize(64)


def _transparent_palette() -> tuple[Image.Image, np.ndarray]:
    index = (np.arange(W) >= W // 2).astype(np.uint8)[None].repeat(H, 0)
    image = Image.frombytes("P", (W, H), index.tobytes())
    image.putpalette([10, 20, 30, 200, 100, 50])
    return image, np.where(index[..., None] == 0, np.array([10, 20, 30]), 255).astype(np.uint8)


def _frames(path) -> None:
    frames = [Image.fromarray(np.full((H, W), level, np.uint8)) for level in (50, 150, 250)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


KINDS = {  # file name -> (how it is written, what must be read)
    "rgb.png": (lambda p: Image.fromarray(RGB).save(p), RGB),
    "rgb.bmp": (lambda p: Image.fromarray(RGB).save(p), RGB),
    "rgb.webp": (lambda p: Image.fromarray(RGB).save(p, lossless=True), RGB),
    "rgb.tif": (lambda p: Image.fromarray(RGB).save(p), RGB),
    "grey.png": (lambda p: Image.fromarray(GREY).save(p), GREY),
    "bilevel.png": (lambda p: Image.fromarray(GREY > 90).save(p), ((GREY > 90) * 255).astype(np.uint8)),
    "palette.png": (lambda p: PALETTE.save(p), np.asarray(PALETTE.convert("RGB"))),
    "palette_transparent.png": (
        lambda p: _transparent_palette()[0].save(p, transparency=1),
        _transparent_palette()[1],
    ),
    "grey_alpha.png": (lambda p: Image.fromarray(np.stack((GREY, ALPHA), -1), "LA").save(p), GREY_OVER_WHITE),
    "rgb_alpha.png": (lambda p: Image.fromarray(np.dstack((RGB, ALPHA))).save(p), OVER_WHITE),
    "colour_key.png": (
        lambda p: Image.fromarray(RGB).save(p, transparency=tuple(RGB[3, 5].tolist())),
        np.where((RGB == RGB[3, 5]).all(-1, keepdims=True), 255, RGB).astype(np.uint8),
    ),
    "grey16.png": (lambda p: Image.fromarray(GREY16).save(p), GREY),
    "grey16.tif": (lambda p: Image.fromarray(GREY16).save(p), GREY),
    "grey16.pgm": (lambda p: Image.fromarray(GREY16).save(p), GREY),
    "rgb16.png": (lambda p: p.write_bytes(png16(RGB.astype(np.uint16) * 257, 2)), RGB),
    "float.tif": (lambda p: Image.fromarray(GREY.astype(np.float32) / 255).save(p), GREY),
    "animated.gif": (_frames, np.full((H, W), 50, np.uint8)),
    "animated.png": (_frames, np.full((H, W), 50, np.uint8)),
    "pages.tif": (_frames, np.full((H, W), 50, np.uint8)),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_files(tmp_path, name):
    write, expected = KINDS[name]
    write(tmp_path / name)
    photo = read_photo(tmp_path / name)
    assert photo.dtype == torch.uint8
    assert_close(photo, as_photo(expected), rtol=0, atol=0)


def test_16_bit_colour_keeps_the_high_byte(tmp_path):
    samples = np.arange(H * W * 3, dtype=np.int64).reshape(H, W, 3) * 65535 // (H * W * 3 - 1)
    (tmp_path / "a.png").write_bytes(png16(samples.astype(np.uint16), 2))
    assert_close(read_photo(tmp_path / "a.png"), as_photo((samples >> 8).astype(np.uint8)), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    image.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    expected = np.asarray(image.convert("RGB"))
    assert_close(read_photo(tmp_path / "a.jpg"), as_photo(expected), rtol=0, atol=6)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, kind):
    # how the stored pixels of a tag come out of upright ones, by the EXIF standard (0th row, 0th column)
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.transpose(1, 0, 2),  # left, top
        6: lambda a: a[:, ::-1].transpose(1, 0, 2),  # right, top
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: lambda a: a[::-1].transpose(1, 0, 2),  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    Image.fromarray(np.ascontiguousarray(turn(RGB))).save(tmp_path / f"a.{kind}", exif=exif, **options)
    atol = 6 if kind == "jpg" else 0
    assert_close(read_photo(tmp_path / f"a.{kind}"), as_photo(RGB), rtol=0, atol=atol)


def test_damaged_exif_is_not_a_damaged_photo(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert_close(read_photo(tmp_path / "a.jpg"), as_photo(RGB), rtol=0, atol=6)


def _truncated(path) -> None:
    Image.fromarray(gradient(80, 80)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _loop(path) -> None:
    path.symlink_to(path.with_name("other_" + path.name))
    path.with_name("other_" + path.name).symlink_to(path)


def _closed(path) -> None:
    Image.fromarray(RGB).save(path)
    path.chmod(0)


HOSTILE = {  # file name -> (how it is written, what the reason must say)
    "truncated.jpg": (_truncated, "truncated"),
    "truncated.png": (_truncated, "truncated|Error"),
    "empty.jpg": (lambda p: p.touch(), r"is empty \(0 bytes\)"),
    "text.jpg": (lambda p: p.write_text("a photograph\n" * 99), "not an image"),
    "folder.jpg": (lambda p: p.mkdir(), "is a directory"),
    "pipe.jpg": (lambda p: os.mkfifo(p), "is not a file"),
    "loop.jpg": (_loop, "Too many levels|loop"),
    "gone.jpg": (lambda p: p.symlink_to("nowhere"), "No such file"),
    "one_pixel.png": (lambda p: Image.fromarray(RGB[:1, :1]).save(p), "1 x 1 pixels.*min_side = 32"),
    "huge.png": (lambda p: Image.new("1", (20000, 300)).save(p), "20000 x 300 pixels.*max_pixels = 5000000"),
    "negative.tif": (lambda p: Image.fromarray(GREY.astype(np.int32) - 9).save(p), "expected 0..65535"),
    "nan.tif": (lambda p: Image.fromarray(np.full((H, W), np.nan, np.float32)).save(p), "expected 0..1"),
}
needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")


@pytest.mark.parametrize("name", [*HOSTILE, pytest.param("closed.jpg", marks=needs_permissions)])
def test_hostile_files(tmp_path, name):
    write, reason = {**HOSTILE, "closed.jpg": (_closed, "Permission")}[name]
    write(tmp_path / name)
    with pytest.raises(PhotoError, match=reason) as caught:
        read_photo(tmp_path / name, max_pixels=5_000_000, min_side=32)
    assert caught.value.path == str(tmp_path / name)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.reason) == (caught.value.path, caught.value.reason)


def test_bomb_beyond_pillows_own_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(PhotoError, match="DecompressionBomb"):
        read_photo(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # below it Pillow only warns
    assert_close(read_photo(tmp_path / "a.png"), as_photo(RGB), rtol=0, atol=0)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"a\xff\xc3\xa9.png", r"a\xffé.png"),
        ("a\udcffé.png", r"a\xffé.png"),  # as Python decodes those bytes
        (Path("a\udc80"), r"a\x80"),
        ("\ud800", r"\ud800"),
        (ValueError("\udce9"), r"\xe9"),
    ],
)
def test_printable(content, expected):
    assert printable(content) == expected


# ---- sources ---------------------------------------------------------------------------------------------------------
def write_folder(root, count: int = 7, side: int = 64) -> None:
    """count PNG photographs of different content and size, half of them in a subfolder."""
    (root / "sub").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        place = root / ("sub" if i % 2 else ".") / f"photo_{i}.png"
        Image.fromarray(np.roll(gradient(side + i, side + 3 * i), 11 * i, 1)).save(place)


def test_folder_is_recursive_sorted_and_case_blind(tmp_path):
    for name in ("b.PNG", "a/z.png", "a/y.png", "c.txt", ".hidden.png", ".git/x.png", "B.png", "a.d/q.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RGB).save(tmp_path / name, format="PNG")
    (tmp_path / "a" / "back").symlink_to(tmp_path)  # a circle of folders
    folder = PhotoFolder(tmp_path)
    assert [folder.name(i) for i in range(len(folder))] == ["B.png", "a.d/q.png", "a/y.png", "a/z.png", "b.PNG"]
    assert_close(folder[3], as_photo(RGB), rtol=0, atol=0)
    assert len(PhotoFolder(tmp_path, extensions=["txt"])) == 1
    with pytest.raises(IndexError):
        folder[5]


def test_folder_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("no photographs here")
    (tmp_path / "README").write_text("nor here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder must exist, got .*absent"):
        PhotoFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match="got the file .*notes.txt"):
        PhotoFolder(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"\.jpg .*found 2 other files \(1 without ending, 1 \.txt\)"):
        PhotoFolder(tmp_path)
    with pytest.raises(ValueError, match="found no files"):
        PhotoFolder(tmp_path / "empty")
    for field in ("cache_bytes", "min_side", "max_pixels"):
        with pytest.raises(ValueError, match=f"{field} must be an integer"):
            PhotoFolder(tmp_path, extensions=["txt"], **{field: -1})


@needs_permissions
def test_folder_that_cannot_be_listed_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "sub").chmod(0)
    folder = PhotoFolder(tmp_path)
    (tmp_path / "sub").chmod(0o755)
    assert list(folder.skipped) == ["sub"] and "Permission" in folder.skipped["sub"]


def test_list_file(tmp_path):
    write_folder(tmp_path / "photos")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two photographs\n\nphotos/sub/photo_1.png\n{tmp_path}/photos/photo_0.png\nabsent.png\n")
    source = open_photos(listed)
    assert isinstance(source, PhotoList) and len(source) == 3
    assert_close(source[0], read_photo(tmp_path / "photos/sub/photo_1.png"), rtol=0, atol=0)
    assert_close(source[1], read_photo(tmp_path / "photos/photo_0.png"), rtol=0, atol=0)
    with pytest.raises(PhotoError, match="absent.png: FileNotFoundError"):
        source[2]
    assert isinstance(open_photos(tmp_path / "photos"), PhotoFolder)
    listed.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="list must name at least one photograph"):
        PhotoList(listed)
    with pytest.raises(ValueError, match="list must be a text file"):
        PhotoList(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="list must be a text file"):
        PhotoList(tmp_path / "photos/photo_0.png")


def test_cache_is_bounded_and_changes_nothing(tmp_path):
    write_folder(tmp_path)
    plain, cached = PhotoFolder(tmp_path), PhotoFolder(tmp_path, cache_bytes=40_000)
    for i in (0, 1, 2, 3, 0, 1, 6, 6):
        assert_close(cached[i], plain[i], rtol=0, atol=0)
        assert sum(t.numel() for t in cached._cache.values()) == cached._cached <= 40_000
    assert cached[6] is cached[6] and plain[6] is not plain[6]


# ---- embedded --------------------------------------------------------------------------------------------------------
def test_embedded_splits_are_disjoint():
    train, test = EmbeddedPhotos("train", leaves=2, size=96), EmbeddedPhotos("test", leaves=2, size=96)
    names = [{s.name(i) for i in range(len(s))} for s in (train, test)]
    assert len(names[0]) == len(train) == 6 and len(names[1]) == len(test) == 5
    assert names[0].isdisjoint(names[1])
    photos = [s[i] for s in (train, test) for i in range(len(s))]
    assert all(p.dtype == torch.uint8 and p.shape[0] == 3 and min(p.shape[1:]) >= 96 for p in photos)
    small = torch.stack([torch.nn.functional.interpolate(p[None].float(), (32, 32)).flatten() for p in photos])
    distance = torch.pdist(small) / small.shape[1] ** 0.5  # r.m.s. grey levels
    assert distance.min() > 20
    assert train[1] is train[1]  # decoded once
    for bad in ({"split": "validation"}, {"leaves": -1}, {"size": 8}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            EmbeddedPhotos(**bad)


def test_embedded_names_the_missing_wheel(monkeypatch):
    monkeypatch.setattr("shamisa.data.embedded.PACKAGED", {"train": (("x", "skimage", "data/absent.png"),)})
    with pytest.raises(ValueError, match="must be installed with scikit-image, got none at .*absent.png"):
        EmbeddedPhotos("train")


def test_dead_leaves_are_pure_and_different():
    first = dead_leaves(5, 96, seed=3)
    assert first.shape == (3, 96, 96) and first.dtype == torch.uint8
    state = torch.random.get_rng_state()
    assert_close(dead_leaves(5, 96, seed=3), first, rtol=0, atol=0)
    assert_close(torch.random.get_rng_state(), state)
    for other in (dead_leaves(6, 96, seed=3), dead_leaves(5, 96, seed=4)):
        assert (other.float() - first.float()).abs().mean() > 10
    for bad in ({"index": -1}, {"size": 31}, {"seed": 2**63}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            dead_leaves(**{"index": 0, **bad})


def spectral_slope(image: torch.Tensor) -> float:
    """Exponent of the radially averaged power spectrum, from 4 cycles an image to half the Nyquist frequency."""
    grey = image.double().mean(0)
    n = grey.shape[0]
    window = torch.hann_window(n, periodic=False, dtype=torch.float64)
    power = torch.fft.fft2((grey - grey.mean()) * window[:, None] * window).abs().square()
    f = torch.fft.fftfreq(n, dtype=torch.float64) * n
    ring = (f[:, None] ** 2 + f**2).sqrt().round().long().flatten()
    mean = (
        torch.zeros(int(ring.max()) + 1, dtype=torch.float64).scatter_add_(0, ring, power.flatten()) / ring.bincount()
    )
    k = np.arange(4, n // 4)
    return float(np.polyfit(np.log(k), np.log(mean[k].numpy()), 1)[0])


def test_dead_leaves_have_natural_statistics():
    images = [dead_leaves(i, 256) for i in range(8)]
    slopes = torch.tensor([spectral_slope(image) for image in images])
    assert -2.8 < slopes.mean() < -2.0, slopes  # natural photographs: about -2.3
    assert slopes.min() > -3.3 and slopes.max() < -1.5, slopes
    x = torch.stack(images).float()
    gradient = (x[..., 1:] - x[..., :-1]).flatten()
    kurtosis = gradient.pow(4).mean() / gradient.square().mean() ** 2
    assert kurtosis > 6, kurtosis  # edges: heavy tails, a Gaussian has 3
    assert (gradient == 0).float().mean() < 0.13  # textured: without its texture 0.20
    assert x.std((1, 2, 3)).min() > 25 and 60 < x.mean() < 160


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
    ({"seed": 2**63}, "seed must be an integer"),
    ({"crop": 0}, "crop must be"),
    ({"references": 0}, "references must be"),
    ({"scales": ()}, r"scales must be numbers in \(0, 1\], got \(\)"),
    ({"scales": (1.0, 2.0)}, "scales must be"),
    ({"pad": "edge"}, "pad must be 'zero' or 'reflect', got 'edge'"),
    ({"rank": 2, "world_size": 2}, "rank must lie in 0..world_size - 1 = 1, got 2"),
    ({"max_skipped": 1.5}, "max_skipped must be a share"),
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
