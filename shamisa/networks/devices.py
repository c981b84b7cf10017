"""The device that an encoder runs on."""

from __future__ import annotations

import torch


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The rule of every --device: auto (a GPU if there is one), cpu, cuda or cuda:N -> a device that works.

    Args:
        local_rank: of several processes, the number of this one on its machine: it takes the GPU of that number.

    Raises:
        ValueError: another name, a device that is not there or cannot be used, or a number where several processes
            share the machine.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = ("cuda" if count else "cpu").partition(":") if name == "auto" else name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())) or name.endswith(":"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    if local_rank is not None:
        if number:
            raise ValueError(f"device of several processes must be auto, cpu or cuda, got {name!r}")
        number = str(local_rank)
    found = f"cuda:{int(number)}" if number else "cuda"
    if int(number or 0) >= count:
        raise ValueError(f"device {found} is not there: torch {torch.__version__} finds {count} CUDA devices")
    try:
        torch.empty(1, device=found)
    except RuntimeError as error:  # a driver or a GPU that refuses
        raise ValueError(f"device {found} cannot be used: {str(error).splitlines()[0]}") from None
    return torch.device(found)
