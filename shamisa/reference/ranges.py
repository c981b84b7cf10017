"""Whether floating images are in 0..1. Those in 0..255, or normalised ones, would be clamped to white or black without a word.

Looks at 16 samples of each image (the centres of a grid of 4 x 4, the channels in turn), so that it costs next to nothing. An
image is refused where more than 3 of them lie outside -1..2 (and inside -65535..65535): what is clamped on purpose, such as the
overshoot of a filter or a few wild samples, passes, and so does an image in 0..255 that is black nearly everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLACES, MOST_OUTSIDE = 16, 3  # csrc/host/range.h has the same numbers
LOW, HIGH, END = -1.0, 2.0, 65535.0
FAULT = "floating images must lie in 0..1"  # how the message begins, here and in the kernels


def samples(images: Tensor) -> Tensor:
    """[..., 3, H, W] of any strides -> [..., 16] float32, without waiting for the device."""
    p = torch.arange(PLACES, device="cpu")
    row, column = ((2 * q + 1) * n // 8 for q, n in ((p // 4, images.shape[-2]), (p % 4, images.shape[-1])))
    place = torch.stack([p % 3, row, column])
    if images.is_cuda:
        place = place.pin_memory().to(images.device, non_blocking=True)
    return images.detach()[(..., *place.unbind())].float()


def outside(images: Tensor) -> Tensor:
    """[..., 3, H, W] floating -> [2] float32 on their device: how many samples lie outside in the worst image, and one of them."""
    x = samples(images)
    wrong = ((x > HIGH) & (x <= END)) | ((x < LOW) & (x >= -END))
    worst = torch.where(wrong, x, 0).flatten()
    return torch.stack([wrong.sum(-1).max().float(), worst[worst.abs().argmax()]])


def describe(value: float) -> str:
    """What is said of images outside."""
    return f"{FAULT}, got {value:g} among others: divide what is in 0..255 by 255, or pass uint8; undo a normalisation"


def check_range(images: Tensor) -> None:
    """ValueError where an image of [..., 3, H, W] on the CPU is floating and not in 0..1."""
    if images.dtype == torch.uint8 or images.numel() == 0:
        return
    count, worst = outside(images).tolist()
    if count > MOST_OUTSIDE:
        raise ValueError(describe(worst))


def can_look(x: Tensor) -> bool:
    """Whether values can be looked at now: a GPU would have to be waited for, and torch.compile, vmap and fake tensors have
    none yet."""
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def check_severity(name: str, severity: Tensor) -> None:
    """ValueError where a severity lies outside 0..4 or is NaN, if it can be looked at."""
    if not severity.numel() or not can_look(severity):
        return
    low, high = (x.item() for x in severity.detach().aminmax())
    if not (low >= 0 and high <= 4):  # NaN fails too
        raise ValueError(f"{name} must lie in [0, 4], got {low:g}..{high:g}")
