"""One file: every kind of photograph, and hostile ones."""

from __future__ import annotations

import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from shamisa.data import PhotoError, read_photo

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
