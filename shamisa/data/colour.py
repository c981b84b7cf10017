"""Any mode, depth and colour profile of an image -> 8-bit sRGB, as viewers show it.

- Profile: an embedded ICC profile that is not sRGB (Display P3, Adobe RGB, grey and CMYK profiles) is converted to sRGB with
  its perceptual table, or where it has none (matrix profiles) relative to the white point; colours outside sRGB are clipped.
  Without a profile samples are taken for sRGB, and CMYK becomes (255 - ink) (255 - black) / 255, as browsers do; JPEGs of
  CMYK and YCCK are taken for inverted ones, as Adobe writes them. A profile that cannot be used (damaged, or of another
  number of channels) is left out, as viewers do. What is not a profile is not looked at: PNG's gAMA and cHRM, the
  colour space in EXIF, primaries of AVIF and HEIC that stand beside no profile.
- Depth: 16-bit grey is scaled with rounding; 16-bit colour by Pillow's decoder, which keeps the high byte; 32-bit integers are
  read as 16-bit ones where they fit; floats are sRGB in 0..1.
- Alpha, a transparent palette entry or colour: over white, after the conversion, in sRGB.
- HDR is out of scope: of a gain map the picture beneath it is read, samples in PQ or HLG are taken for sRGB. ``hdr`` finds them.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SAME = 1  # levels: a profile that moves no colour farther is sRGB by another name
_CHANNELS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode -> colour space of its profiles


def to_srgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow, with its profile -> RGB of 8 bits; raises ValueError for samples without a defined range."""
    profile = image.info.get("icc_profile")
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return _converted(image, profile)
    if mode.startswith("I"):  # I;16 and its byte orders, and I (32 bits), which older Pillows use for 16-bit files
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 65535:
            raise ValueError(f"integer samples reach from {samples.min()} to {samples.max()}, expected 0..65535")
        return _converted(Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8)), profile)
    if mode == "F":
        samples = np.asarray(image)
        if not (samples.min() >= 0 and samples.max() <= 1):  # NaN fails too
            raise ValueError(f"float samples reach from {samples.min()} to {samples.max()}, expected 0..1")
        return _converted(Image.fromarray((samples * 255 + 0.5).astype(np.uint8)), profile)
    if mode == "La":  # premultiplied; Pillow converts it to RGBA only by way of LA
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("L", "LA")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        colour = _converted(image.getchannel("R") if grey else image.convert("RGB"), profile)
        colour.putalpha(alpha)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colour).convert("RGB")
    return _converted(image if mode in _CHANNELS else image.convert("L" if mode == "1" else "RGB"), profile)


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK -> RGB by its profile, by Pillow where it has none or one of sRGB."""
    transform = _transform(profile, image.mode) if profile else None
    return image.convert("RGB") if transform is None else ImageCms.applyTransform(image, transform)


def has_foreign_profile(image: Image.Image) -> bool:
    """Whether the profile of an L or RGB image changes its colours."""
    profile = image.info.get("icc_profile")
    return bool(profile) and image.mode in _CHANNELS and _transform(profile, image.mode) is not None


@lru_cache(maxsize=64)  # a folder has few profiles, of some kilobytes each
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Profile of a mode -> sRGB; None where nothing is to be done, or nothing can be."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _CHANNELS[mode]:
            return None
        target, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL
        transform = ImageCms.buildTransform(source, target, mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    probe = _probe(mode)
    moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(moved).max() > _SAME else None


def _probe(mode: str) -> Image.Image:
    """Every grey level, and of RGB a grid of colours."""
    grey = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(grey[None])
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(1, -1, 3)
    return Image.fromarray(np.concatenate((np.repeat(grey[None, :, None], 3, -1), grid), 1))


# ---- high dynamic range ----------------------------------------------------------------------------------------------
_GAIN_MAPS = (  # Ultra HDR, ISO 21496-1, Apple's JPEG and HEIC
    b"http://ns.adobe.com/hdr-gain-map/",
    b"urn:iso:std:iso:ts:21496:-1",
    b"HDRGainMap",
    b"urn:com:apple:photo:2020:aux:hdrgainmap",
)
_TONE_MAPPED = b"tmap"  # the item of ISO 21496-1 in AVIF and HEIC
_TRANSFER = {16: "PQ", 18: "HLG"}  # ITU-T H.273
_HEAD = 1 << 16  # bytes in which metadata stand


def hdr(image: Image.Image, data: bytes) -> str | None:
    """What of an image is not read: "a gain map", "samples in PQ", "samples in HLG"; None for pictures of standard range."""
    code = _transfer(image, data)
    if code in _TRANSFER:
        return f"samples in {_TRANSFER[code]}"
    head = data[:_HEAD]
    marks = (*_GAIN_MAPS, _TONE_MAPPED) if image.format in ("AVIF", "HEIF") else _GAIN_MAPS
    return "a gain map" if any(mark in head for mark in marks) else None


def _transfer(image: Image.Image, data: bytes) -> int:
    """The transfer characteristics of PNG, AVIF and HEIC, 0 where none are stated."""
    if image.format == "PNG":
        at = data.find(b"cICP", 0, _HEAD)
        return data[at + 5] if at >= 0 and len(data) > at + 5 else 0
    if image.format in ("AVIF", "HEIF"):
        at = data.find(b"colrnclx", 0, _HEAD)
        return int.from_bytes(data[at + 10 : at + 12], "big") if at >= 0 else 0
    return 0
