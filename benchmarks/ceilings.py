"""What the machine can do at all: copy bandwidth, matrix rates, and a ResNet-50 bf16 step at N = 252, 1008, 2016 on a GPU.

``python3 benchmarks/ceilings.py [--out FILE]``; the step is forward, backward and SGD on random images, channels_last, as
the trainer runs it, without distortions and loss: what remains when the rest costs nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import measure
import torch


def resnet_step(N: int, device: str, size: int = 224) -> float:
    """Seconds of a ResNet-50 training step on N images, bf16 autocast."""
    from torchvision.models import resnet50

    model = resnet50(weights=None).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(N, 3, size, size, device=device).to(torch.bfloat16, memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            out = model(images)
        out.float().square().mean().backward()
        optimizer.step()

    for _ in range(2):  # cuDNN chooses its algorithms
        step()
    return measure.seconds_of(step, device, rounds=10 if device == "cuda" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    given = parser.parse_args()
    found: dict = {"machine": measure.machine()["name"]}
    for device in measure.DEVICES:
        with measure.threads(1):
            found[device] = measure.measure_ceilings(device)
        for name, value in found[device].items():
            print(f"{device:5} {name:28} {value:12,.1f}", flush=True)
    device, sizes, side = ("cuda", (252, 1008, 2016), 224) if "cuda" in measure.DEVICES else ("cpu", (2,), 64)
    torch.backends.cudnn.benchmark = True
    for N in sizes:
        try:
            seconds = resnet_step(N, device, side)
        except torch.cuda.OutOfMemoryError:
            print(f"{device:5} ResNet-50 bf16 step, N = {N}: out of memory")
            continue
        found[device][f"resnet50_bf16_{side}px_step_n{N}_s"] = seconds
        print(
            f"{device:5} ResNet-50 bf16 step, N = {N}, {side} px: {1e3 * seconds:.1f} ms, {N / seconds:,.0f} images/s",
            flush=True,
        )
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
