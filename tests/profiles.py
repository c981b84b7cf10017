"""ICC profiles made here, and the colours of their spaces computed without a colour management system."""

from __future__ import annotations

import struct

import numpy as np

# chromaticities of red, green, blue; the white is D65 (SMPTE EG 432-1, Adobe RGB 1998, IEC 61966-2-1)
SPACES = {
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "Adobe RGB": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)),
    "sRGB": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
}
D65, D50 = np.array([0.95047, 1.0, 1.08883]), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
GAMMA = 563 / 256  # of Adobe RGB


def to_xyz(space: str) -> np.ndarray:
    """Linear RGB of a space -> XYZ, [3, 3]."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in SPACES[space]]).T
    return columns * np.linalg.solve(columns, D65)


def encode(space: str, linear: np.ndarray) -> np.ndarray:
    """Linear light in 0..1 -> samples in 0..1."""
    if space == "Adobe RGB":
        return linear ** (1 / GAMMA)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode(space: str, samples: np.ndarray) -> np.ndarray:
    """The inverse of ``encode``."""
    if space == "Adobe RGB":
        return samples**GAMMA
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def from_srgb(space: str, levels: np.ndarray) -> np.ndarray:
    """8-bit sRGB [..., 3] -> the same colours in a space, 8-bit."""
    linear = decode("sRGB", levels / 255) @ (np.linalg.inv(to_xyz(space)) @ to_xyz("sRGB")).T
    return np.rint(255 * encode(space, linear.clip(0, 1))).astype(np.uint8)


def _fixed(x: float) -> bytes:
    return struct.pack(">i", round(x * 65536))


def _curve(space: str) -> bytes:
    if space in ("Adobe RGB", "grey"):
        return b"para" + bytes(4) + struct.pack(">HH", 0, 0) + _fixed(GAMMA)
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(map(_fixed, numbers))


def profile(space: str, description: str | None = None) -> bytes:
    """A version 4 display profile of a space in ``SPACES``, or "grey" of Adobe RGB's gamma."""
    name = (description or space).encode("utf-16-be")
    text = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(name), 28) + name
    tags = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ " + bytes(4) + b"".join(map(_fixed, D50))}
    if space == "grey":
        tags[b"kTRC"] = _curve(space)
    else:
        cone = BRADFORD @ np.stack([D50, D65], 1)
        adapt = np.linalg.inv(BRADFORD) @ np.diag(cone[:, 0] / cone[:, 1]) @ BRADFORD
        for letter, column in zip(b"rgb", (adapt @ to_xyz(space)).T, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(_fixed, column))
            tags[bytes([letter]) + b"TRC"] = _curve(space)
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, at + len(body), len(data))
        body += data
    model = b"GRAY" if space == "grey" else b"RGB "
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x04200000, b"mntr", model, b"XYZ ", bytes(12), b"acsp")
    head += bytes(28) + b"".join(map(_fixed, D50)) + bytes(48)
    return head[:128].ljust(128, b"\0") + table + body
