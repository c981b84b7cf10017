"""Colour of files: profiles against twins computed by hand, alpha, and what is said of HDR."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from profiles import decode as decode_curve
from profiles import encode, from_srgb, press, press_profile, profile
from test_decode import GREY, RGB, as_photo, png16
from torch.testing import assert_close

from shamisa.data import decode, read_photo
from shamisa.data.colour import has_foreign_profile, hdr

WIDE = ["Display P3", "Adobe RGB"]
KINDS = {"png": {}, "tif": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
PALE = (RGB // 2 + 64).astype(np.uint8)  # inside every space, so that 8 bits are the only loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", WIDE)
def test_wide_spaces_become_their_srgb_twin(tmp_path, space, kind):
    """Every colour of the twin comes back to 2 levels, the rounding of 8 bits on the way; without the profile it would not."""
    stored = from_srgb(space, PALE)
    Image.fromarray(stored).save(tmp_path / f"a.{kind}", icc_profile=profile(space), **KINDS[kind])
    assert np.abs(stored.astype(int) - PALE).max() > 8
    got = read_photo(tmp_path / f"a.{kind}")
    assert_close(got, as_photo(PALE), rtol=0, atol=10 if kind == "jpg" else 2)
    assert (got.float() - as_photo(PALE)).abs().mean() < 1


@pytest.mark.parametrize("space", WIDE)
def test_known_colours(tmp_path, space):
    """Pure sRGB red, green and blue, mid grey, white; what is outside sRGB is clipped to it."""
    twin = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [255, 255, 255]]], np.uint8)
    stored = np.concatenate([from_srgb(space, twin), [[[0, 255, 0]]]], 1).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png", icc_profile=profile(space))
    got = read_photo(tmp_path / "a.png")[:, 0].T
    if space == "Display P3":
        assert stored[0, 0].tolist() == [234, 51, 35]  # the well-known P3 numbers of sRGB red
        assert stored[0, 1].tolist() == [117, 251, 76]  # and green
    assert_close(got[3:5], torch.from_numpy(twin[0, 3:5]), rtol=0, atol=1)
    # 8 bits are coarse where the curve of sRGB is steep, at zero
    assert_close(got[:3].int(), torch.from_numpy(twin[0, :3]).int(), rtol=0, atol=13)
    assert got[5].tolist()[1] == 255 and max(got[5, 0], got[5, 2]) == 0


def test_grey_and_16_bit_and_alpha_take_part(tmp_path):
    """A grey profile of gamma 2.2; alpha is composited after the conversion, in sRGB."""
    stored = np.rint(255 * encode("Adobe RGB", decode_curve("sRGB", GREY / 255))).astype(np.uint8)
    bright = GREY > 40  # below, one level of gamma 2.2 is several of sRGB
    for name, image in {
        "grey.png": Image.fromarray(stored),
        "grey16.png": Image.fromarray(stored.astype(np.uint16) * 257),
        "opaque.png": Image.fromarray(np.stack((stored, np.full_like(stored, 255)), -1), "LA"),
    }.items():
        image.save(tmp_path / name, icc_profile=profile("grey"))
        got = read_photo(tmp_path / name)
        assert_close(got[:, bright], as_photo(GREY)[:, bright], rtol=0, atol=2)
        assert np.abs(stored.astype(int) - GREY)[bright].max() > 3
    alpha = np.full(RGB.shape[:2], 128, np.uint8)
    p3 = np.dstack((from_srgb("Display P3", PALE), alpha))
    Image.fromarray(p3).save(tmp_path / "half.png", icc_profile=profile("Display P3"))
    wanted = np.rint(PALE * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
    assert_close(read_photo(tmp_path / "half.png"), as_photo(wanted), rtol=0, atol=2)


def test_alpha_is_over_white_by_its_share(tmp_path):
    for a in (0, 1, 128, 254, 255):
        image = np.dstack((RGB, np.full(RGB.shape[:2], a, np.uint8)))
        Image.fromarray(image).save(tmp_path / "a.png")
        wanted = np.rint(RGB * (a / 255) + 255 * (1 - a / 255)).astype(np.uint8)
        assert_close(read_photo(tmp_path / "a.png"), as_photo(wanted), rtol=0, atol=1)


@pytest.mark.parametrize("name", ["Pillow's own", "another name", "none"])
def test_srgb_is_left_alone(tmp_path, name):
    """Bit for bit: no profile, one that lcms made, one that calls itself otherwise."""
    data = {
        "Pillow's own": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "another name": profile("sRGB", "camera"),
        "none": None,
    }[name]
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=data)
    assert_close(read_photo(tmp_path / "a.png"), as_photo(RGB), rtol=0, atol=0)
    with Image.open(tmp_path / "a.png") as image:
        assert not has_foreign_profile(image)


@pytest.mark.parametrize("data", [b"no profile", profile("Display P3")[:150], profile("grey")])
def test_a_profile_that_cannot_be_used_is_left_out(tmp_path, data):
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=data)
    assert_close(read_photo(tmp_path / "a.png"), as_photo(RGB), rtol=0, atol=0)


def test_dali_leaves_foreign_profiles_to_pillow(tmp_path):
    from shamisa.data.dali import _obstacle

    for kind, stated in (("jpg", "JPEG, colour profile"), ("png", "PNG, colour profile")):
        for data, wanted in ((profile("Adobe RGB"), stated), (profile("sRGB"), None), (None, None)):
            place = tmp_path / f"a.{kind}"
            Image.fromarray(RGB).save(place, icc_profile=data)
            with Image.open(place) as image:
                assert _obstacle(image, place.read_bytes()) == wanted


def test_palettes_and_depths_without_a_profile(tmp_path):
    """A palette with a P3 profile is looked up, then converted; 16-bit colour keeps its high byte, then is converted."""
    stored = Image.fromarray(from_srgb("Display P3", PALE)).quantize(32)
    stored.save(tmp_path / "p.png", icc_profile=profile("Display P3"))
    Image.fromarray(np.asarray(stored.convert("RGB"))).save(tmp_path / "rgb.png", icc_profile=profile("Display P3"))
    assert_close(read_photo(tmp_path / "p.png"), read_photo(tmp_path / "rgb.png"), rtol=0, atol=0)


# ---- CMYK ------------------------------------------------------------------------------------------------------------
def inks() -> np.ndarray:
    """Flat tiles of 8 pixels, uint8 [80, 96, 4], at the nodes of the press's table."""
    nodes = 51 * np.random.default_rng(0).integers(0, 6, (10, 12, 4))
    return np.kron(nodes, np.ones((8, 8, 1), int)).astype(np.uint8)


CMYK = {"tif": {}, "jpg": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("kind", CMYK)
def test_inks_with_a_profile_become_the_colours_of_the_press(tmp_path, kind):
    """The perceptual way moves the press's black to that of sRGB, hence 4 levels; by naive conversion it would be 17 in the
    mean."""
    Image.fromarray(inks(), "CMYK").save(tmp_path / f"a.{kind}", icc_profile=press_profile(), **CMYK[kind])
    got, wanted = read_photo(tmp_path / f"a.{kind}"), as_photo(np.rint(255 * press(inks() / 255)).astype(np.uint8))
    assert_close(got, wanted, rtol=0, atol=4)
    assert (got.float() - wanted).abs().mean() < 1.5


def naive(inks: np.ndarray) -> torch.Tensor:
    left = 255 - inks.astype(float)
    return as_photo(np.rint(left[..., :3] * left[..., 3:] / 255).astype(np.uint8))


@pytest.mark.parametrize("data", [None, profile("Display P3")])
@pytest.mark.parametrize("kind", CMYK)
def test_inks_without_a_profile_of_theirs_absorb_all(tmp_path, kind, data):
    Image.fromarray(inks(), "CMYK").save(tmp_path / f"a.{kind}", icc_profile=data, **CMYK[kind])
    assert_close(read_photo(tmp_path / f"a.{kind}"), naive(inks()), rtol=0, atol=1)


def test_ycck_as_photoshop_writes_it(tmp_path):
    """Inverted inks as Y, Cb and Cr, told by the Adobe marker: Pillow stores samples as they are, the marker is set here."""
    given = inks()
    y, cb, cr = np.moveaxis(np.asarray(Image.fromarray(given[..., :3]).convert("YCbCr")), -1, 0)
    stored = np.stack((255 - y, 255 - cb, 255 - cr, given[..., 3]), -1)  # Pillow inverts them once more
    Image.fromarray(stored, "CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0
    content[marker + 11] = 2
    (tmp_path / "a.jpg").write_bytes(content)
    assert_close(read_photo(tmp_path / "a.jpg"), naive(given), rtol=0, atol=4)


# ---- HDR -------------------------------------------------------------------------------------------------------------
def with_cicp(data: bytes, transfer: int) -> bytes:
    """A PNG with a cICP chunk behind its header (BT.2020 primaries)."""
    import zlib

    body = b"cICP" + bytes([9, transfer, 0, 1])
    return data[:33] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def test_hdr_is_named_once_and_read_as_it_stands(tmp_path, caplog):
    plain = png16(RGB.astype(np.uint16) * 257, 2)
    Image.fromarray(RGB).save(tmp_path / "sdr.jpg", quality=100, subsampling=0)
    jpeg = (tmp_path / "sdr.jpg").read_bytes()
    gain = b"http://ns.adobe.com/xap/1.0/\0<x xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/'/>"
    gain = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(gain) + 2) + gain + jpeg[2:]
    files = {
        "pq.png": (with_cicp(plain, 16), "PQ"),
        "hlg.png": (with_cicp(plain, 18), "HLG"),
        "gain.jpg": (gain, "gain map"),
    }
    for name, (data, said) in files.items():
        (tmp_path / name).write_bytes(data)
        remarks: list[str] = []
        photo = read_photo(tmp_path / name, note=remarks.append)
        assert len(remarks) == 1 and said in remarks[0] and "HDR is out of scope" in remarks[0]
        sdr = as_photo(RGB) if name.endswith("png") else read_photo(tmp_path / "sdr.jpg")
        assert_close(photo, sdr, rtol=0, atol=0)
    decode._told.clear()
    with caplog.at_level(logging.WARNING, "shamisa"):
        for name in files:
            read_photo(tmp_path / name)
    assert len(caplog.records) == 1
    from shamisa.scoring.features import Extractor

    decode._told.clear()
    with caplog.at_level(logging.WARNING, "shamisa"):  # the way of `shamisa score`
        list(Extractor(torch.nn.AdaptiveAvgPool2d(1), crop=32)._load(str(tmp_path / name)) for name in files)
    assert len(caplog.records) == 2
    for kind in ("AVIF", "HEIF"):
        for said in (b"urn:com:apple:photo:2020:aux:hdrgainmap", b"infe\2\0\0\0\0\1\0\0tmap"):
            with Image.open(tmp_path / "sdr.jpg") as image:
                image.format = kind
                assert hdr(image, jpeg) is None and hdr(image, b"ftyp" + said) == "a gain map"
    remarks = []
    (tmp_path / "bt709.png").write_bytes(with_cicp(plain, 1))
    read_photo(tmp_path / "bt709.png", note=remarks.append)
    assert not remarks
