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
    return assemble(tags, b"mntr", b"GRAY" if space == "grey" else b"RGB ", b"XYZ ", 0x04200000)


def assemble(tags: dict[bytes, bytes], kind: bytes, model: bytes, connection: bytes, version: int) -> bytes:
    """The file of a profile: header, table of tags, tags."""
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, at + len(body), len(data))
        body += data
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), version, kind, model, connection, bytes(12), b"acsp")
    head += bytes(28) + b"".join(map(_fixed, D50)) + bytes(48)
    return head[:128].ljust(128, b"\0") + table + body


# ---- a press ---------------------------------------------------------------------------------------------------------
INKS = np.array(
    [[0.10, 0.62, 0.88], [0.90, 0.12, 0.55], [1.0, 0.93, 0.20], [0.16, 0.15, 0.14]]
)  # full C, M, Y, K in sRGB
STEPS = 6  # of the table: its nodes are multiples of 51 in 8 bits


def press(inks: np.ndarray) -> np.ndarray:
    """C, M, Y, K [..., 4] in 0..1 -> sRGB [..., 3] in 0..1: each ink lets its own colour through."""
    return np.prod(1 - inks[..., None] * (1 - INKS), -2)


def press_profile() -> bytes:
    """A version 2 printer profile of ``press``: a table from CMYK to Lab, exact at its nodes."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, STEPS)] * 4, indexing="ij"), -1).reshape(-1, 4)
    cone = BRADFORD @ np.stack([D50, D65], 1)
    adapt = np.linalg.inv(BRADFORD) @ np.diag(cone[:, 0] / cone[:, 1]) @ BRADFORD
    xyz = decode("sRGB", press(grid)) @ (adapt @ to_xyz("sRGB")).T / D50
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), -1)
    table = np.rint(np.stack((lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256), -1))
    line = struct.pack(">HH", 0, 65535)
    matrix = b"".join(map(_fixed, np.eye(3).flatten()))
    lut = b"mft2" + bytes(4) + bytes([4, 3, STEPS, 0]) + matrix + struct.pack(">HH", 2, 2)
    lut += line * 4 + table.clip(0, 65535).astype(">u2").tobytes() + line * 3
    text = b"desc" + bytes(4) + struct.pack(">I", 6) + b"press\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"A2B0": lut}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + b"".join(map(_fixed, D50))
    return assemble(tags, b"prtr", b"CMYK", b"Lab ", 0x02400000)
