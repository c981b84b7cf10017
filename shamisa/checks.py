"""Checks of arguments, each in one place: an error names the argument, what was expected, and what came.

``name`` is what the caller knows the argument as, with its dashes where that is a flag. Each returns what it was given, in
its plain type. None waits for a device. Wrong values are ValueError; what should be a tensor and is none is TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class MissingPackage(ImportError, RuntimeError):
    """An optional package is not installed; the message says who needs it and how to install it.

    It is a RuntimeError too: that is what 0.1.0 raised, and what its callers may catch.
    """


def need(modules: str | Iterable[str], needed_by: str, install: str) -> ModuleType:
    """Import ``modules`` (one name or several) -> the first one, whose top package that is.

    Raises:
        MissingPackage: one cannot be imported. "NEEDED_BY: pip install 'INSTALL' (reason)".
    """
    names = [modules] if isinstance(modules, str) else list(modules)
    try:
        return [__import__(name) for name in names][0]
    except ImportError as error:
        quoted = f"'{install}'" if "[" in install else install
        raise MissingPackage(f"{needed_by}: pip install {quoted} ({error})") from None


# ---- numbers ---------------------------------------------------------------------------------------------------------
def _text(bound: float) -> str:
    """A bound in words: 2^32-1 instead of ten digits."""
    if isinstance(bound, int) and bound >= 2**30:
        for more, sign in ((0, ""), (1, "-1")):
            if (bound + more) & (bound + more - 1) == 0:
                return f"2^{(bound + more).bit_length() - 1}{sign}"
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _span(low: float | None, high: float | None, of: str = "of ") -> str:
    if low is None:
        return "" if high is None else f"{of}at most {_text(high)}"
    return f"{of}at least {_text(low)}" if high is None else f"in {_text(low)}..{_text(high)}"


def integer(name: str, given: Any, low: int | None = None, high: int | None = None) -> int:
    """An integer in low..high, both inside; True and 2.0 are none. numpy's become Python's; symbolic ones stay."""
    symbolic = isinstance(given, torch.SymInt)
    fits = symbolic or (isinstance(given, Integral) and not isinstance(given, bool))
    if not fits or (low is not None and given < low) or (high is not None and given > high):
        raise ValueError(f"{name} must be an integer {_span(low, high)}".rstrip() + f", got {given!r}")
    return given if symbolic else int(given)


def seed(name: str, given: Any) -> int:
    """An integer of 64 bits with a sign."""
    if not isinstance(given, Integral) or isinstance(given, bool) or not -(2**63) <= given < 2**63:
        raise ValueError(f"{name} must be a 64-bit integer, got {given!r}")
    return int(given)


def number(
    name: str, given: Any, low: float | None = None, high: float | None = None, above: float | None = None
) -> float:
    """A finite number in low..high, both inside, and more than ``above``."""
    fits = isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given)
    fits = fits and (low is None or given >= low) and (high is None or given <= high)
    if not fits or (above is not None and given <= above):
        span = f"above {_text(above)}" if above is not None else _span(low, high)
        kind = "a finite number" if isinstance(given, Real) and not math.isfinite(given) else "a number"
        raise ValueError(f"{name} must be {kind} {span}".rstrip() + f", got {given!r}")
    return float(given)


def within(name: str, given: Any, low: float | None = None, high: float | None = None) -> Any:
    """What is known to be a number, in low..high, both inside; NaN lies nowhere."""
    if not ((low is None or given >= low) and (high is None or given <= high)):
        raise ValueError(f"{name} must be {_span(low, high, '')}, got {given!r}")
    return given


# ---- words -----------------------------------------------------------------------------------------------------------
def choice(name: str, given: Any, known: Iterable[str]) -> Any:
    """One of some words."""
    known = tuple(known)
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {given!r}")
    return given


def flag(name: str, given: Any) -> bool:
    """True or False; 1 and "yes" are neither."""
    if not isinstance(given, bool):
        raise ValueError(f"{name} must be True or False, got {given!r}")
    return given


# ---- tensors ---------------------------------------------------------------------------------------------------------
def tensor(name: str, given: Any) -> Tensor:
    """A tensor; TypeError for anything else."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(given).__name__}")
    return given


def floating(name: str, given: Any, axes: str) -> Tensor:
    """A floating tensor with as many axes as ``axes`` ("N, F") names, none of size 0."""
    tensor(name, given)
    if given.ndim != len(axes.split(", ")) or not given.is_floating_point():
        raise ValueError(f"{name} must be [{axes}] floating point, got {list(given.shape)} {given.dtype}")
    if 0 in given.shape:
        raise ValueError(f"{name} must be [{axes}], none of them 0, got {list(given.shape)}")
    return given
