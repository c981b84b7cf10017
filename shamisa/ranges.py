"""Floating images on a GPU that are not in 0..1: found without waiting for the GPU, told when the host next looks.

On the CPU the op refuses them (``reference/ranges.py`` says which). A GPU would have to be waited for, so its answer is copied
to the host in its own time, and the next call that distorts images on a GPU, or ``look``, warns of what has arrived by then.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .reference.ranges import MOST_OUTSIDE, describe, outside

_waiting: list[tuple[Tensor, torch.cuda.Event]] = []  # at most one answer, [2] in page-locked memory, and its event


def note(images: Tensor) -> None:
    """Ask the GPU of images [..., 3, H, W] whether they are in 0..1, where no earlier question is open. Waits for nothing."""
    if torch.cuda.is_current_stream_capturing():  # a graph is replayed without Python
        return
    look()
    if not _waiting:
        answer = torch.empty(2, device="cpu", pin_memory=True)
        answer.copy_(outside(images), non_blocking=True)
        _waiting.append((answer, _recorded(images.device)))


def look() -> None:
    """Warn (``RuntimeWarning``) if images of an earlier call were outside 0..1 and the GPU has said so by now."""
    while _waiting and _waiting[0][1].query():
        count, worst = _waiting.pop(0)[0].tolist()
        if count > MOST_OUTSIDE:
            warnings.warn(
                f"an earlier call clamped its images to 0..1: {describe(worst)}", RuntimeWarning, stacklevel=2
            )


def _recorded(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
