"""The distortion kernels of the CPU without torch (NumPy in and out), and how they were built.

The library ``_kernels`` is plain C behind ctypes, so that one file serves every Python. Importing this module raises
ImportError where nothing was compiled.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p

import numpy as np


class _Row(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("low", c_float),
        ("high", c_float),
        ("discrete", c_int32),
        ("min_size", c_int32),
    ]


_FUNCTIONS = {  # of csrc/host/bind.cpp: what they return and take
    "distortions": (c_int32, []),
    "catalogue_row": (c_char_p, [c_int64, POINTER(_Row)]),
    "build_facts": (POINTER(c_char_p), []),
    "level": (c_char_p, [c_int32]),
    "chosen_level": (c_char_p, [POINTER(c_char_p)]),
    "scratch_bytes": (c_char_p, [c_int64, c_int64, c_void_p, c_int64, POINTER(c_int64)]),
    "distort": (c_char_p, [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_float, c_int64, c_char_p]),
    "philox": (c_char_p, [c_int64, POINTER(c_uint32), POINTER(c_uint32), c_char_p]),
}


def _load() -> dict:
    found = importlib.util.find_spec(f"{__package__}._kernels")
    if found is None:
        raise ImportError("shamisa._kernels was not built: pip install --no-build-isolation . in the source folder")
    library, functions = ctypes.CDLL(found.origin), {}
    for name, (result, arguments) in _FUNCTIONS.items():
        functions[name] = library[f"shamisa_{name}"]
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


_LIBRARY = _load()


def _call(name: str, *arguments) -> None:
    fault = _LIBRARY[name](*arguments)
    if fault is not None:
        raise ValueError(fault.decode())


def distort(image: np.ndarray, opcode: int, value: float, key: int = 0, level: str = "") -> np.ndarray:
    """One distortion of ``image`` [3, H, W] float32 in 0..1 -> a new array; ``level``: one of ``levels()``.

    Raises:
        ValueError: another shape, size, op code or level, or an image that is not in 0..1.
    """
    image = np.ascontiguousarray(image, dtype=np.float32)
    if image.ndim != 3 or image.shape[0] != 3 or image.size == 0:
        raise ValueError(f"image must be [3, H, W] with H, W >= 1, got {list(image.shape)}")
    out = np.empty_like(image)
    _call("distort", image.ctypes.data, out.ctypes.data, *image.shape[1:], opcode, value, key, level.encode())
    return out


def scratch_bytes(height: int, width: int, opcodes: Sequence[int]) -> int:
    """Bytes of memory that each thread of a call of the distort op works in, given the op codes that occur.

    Two float32 images and what the hungriest of the distortions needs. A call takes that times the threads, and its output.
    """
    codes, found = np.asarray(opcodes, dtype=np.int64), c_int64()
    _call("scratch_bytes", height, width, codes.ctypes.data, len(codes), byref(found))
    return found.value


def philox(key: int, counter: Sequence[int], level: str = "") -> list[int]:
    """The four random words at counter (element, draw, extra, domain)."""
    if len(counter) != 4:
        raise ValueError(f"counter must be 4 words, got {len(counter)}")
    words = (c_uint32 * 4)()
    _call("philox", key, (c_uint32 * 4)(*counter), words, level.encode())
    return list(words)


def catalogue() -> list[dict]:
    """What the kernels know of every distortion, by op code: name, low, high, discrete, min_size."""
    rows = []
    for opcode in range(_LIBRARY["distortions"]()):
        row = _Row()
        _call("catalogue_row", opcode, byref(row))
        facts = {"low": row.low, "high": row.high, "discrete": bool(row.discrete), "min_size": row.min_size}
        rows.append({"name": row.name.decode(), **facts})
    return rows


def levels() -> list[str]:
    """The x86-64 levels that were built and run on this machine, lowest first."""
    found = []
    while (name := _LIBRARY["level"](len(found))) is not None:
        found.append(name.decode())
    return found


def build_info() -> dict:
    """Version, commit, compiler, flags, torch and CUDA that the libraries were built with; levels, and the one in use."""
    facts = []
    for word in _LIBRARY["build_facts"]():
        if word is None:
            break
        facts.append(word.decode())
    chosen = c_char_p()
    _call("chosen_level", byref(chosen))
    info = dict(zip(facts[::2], facts[1::2], strict=True))
    return {**info, "levels": levels(), "level": chosen.value.decode()}
