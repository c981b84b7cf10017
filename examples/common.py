"""What the examples share: photographs, distorted views, a tiny network, the training loop, the command line, the picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import shamisa
import shamisa.functional as SF
from shamisa.data.embedded import EmbeddedPhotos

ROWS, SIDE = 32, 64  # photographs of a step, pixels of a crop


class Crops:
    """Crops of packaged photographs: step -> [n, 3, SIDE, SIDE] uint8."""

    def __init__(self, rows: int = ROWS) -> None:
        self.rows, self.photos = rows, EmbeddedPhotos("train", leaves=4)

    def __call__(self, step: int) -> Tensor:
        g, crops = torch.Generator().manual_seed(step), []
        for i in torch.randint(len(self.photos), (self.rows,), generator=g).tolist():
            photo = self.photos[i]
            top, left = (int(torch.randint(side - SIDE + 1, (), generator=g)) for side in photo.shape[1:])
            crops.append(photo[:, top : top + SIDE, left : left + SIDE])
        return torch.stack(crops)


class Views:
    """Two distorted versions of each of n crops: step -> a, b, both [n, 3, SIDE, SIDE], normalised."""

    def __init__(self, dtype: torch.dtype, backend: str = "auto") -> None:
        self.crops, self.dtype, self.backend = Crops(), dtype, backend
        self.engine = shamisa.DistortionEngine(compositions=2, levels=1, max_distortions=3)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        x = self.engine(self.crops(step)[:, None], self.engine.sample(ROWS, step=step), backend=self.backend)
        x = x.to(self.dtype)
        return x[:, 0, 0, 0], x[:, 0, 1, 0]  # of [B = n, V = 1, C = 2, L = 1, 3, SIDE, SIDE]


def network(dtype: torch.dtype) -> nn.Sequential:
    """[n, 3, H, W] -> [n, 64], the same initial weights at every call; the first 11 layers end in features [n, 64].

    Without the biases that no loss sees: their gradients are rounding, which Adam would blow up to whole steps.
    """
    torch.manual_seed(0)
    stages = [
        layer
        for i, o in ((3, 16), (16, 32), (32, 64))
        for layer in (nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64, bias=False))
    return nn.Sequential(*stages, *head).to(dtype)


def train(
    loss: Callable[[Tensor, Tensor], Tensor], steps: int, dtype: torch.dtype, backend: str = "auto"
) -> list[float]:
    """Train the network with a loss of two views' embeddings [n, E] -> the loss of every step."""
    views, net, curve = Views(dtype, backend), network(dtype), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for step in range(steps):
        a, b = net(torch.cat(views(step))).chunk(2)
        value = loss(a, b)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(value.item())
    print(f"{matched(a.detach(), b.detach()):.0%} of the last rows lie nearest to their other view")
    return curve


def matched(a: Tensor, b: Tensor) -> float:
    """Share of the rows whose nearest other row is the other view of the same photograph."""
    n = len(a)
    _, neighbor, _ = SF.nearest_neighbors(torch.cat([a, b]), k=1)  # argmin of torch.cdist without its diagonal
    return (neighbor[:, 0] == torch.arange(2 * n).roll(n)).float().mean().item()


def main(doc: str, name: str, ours: Callable[..., list[float]], usual: Callable[..., list[float]]) -> None:
    """Train either way, (steps, dtype) -> curve, draw the curves, print how far apart they are.

    Training amplifies rounding: in float32 the curves start equal and drift apart as any two implementations do.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps of each training [%(default)s]")
    parser.add_argument("--out", default=f"{name}.png", help="picture of the curves [%(default)s]")
    parser.add_argument("--reference", action="store_true", help="train with the usual lines of PyTorch only")
    parser.add_argument("--double", action="store_true", help="train in float64, where the curves stay together")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    dtype = torch.float64 if args.double else torch.float32
    trainings = {"PyTorch": usual} if args.reference else {"shamisa": ours, "PyTorch": usual}
    curves = {label: run(args.steps, dtype) for label, run in trainings.items()}
    for label, curve in curves.items():
        print(f"{label}: loss {curve[0]:.4f} at the first step, {curve[-1]:.4f} at the last of {len(curve)}")
    if len(curves) == 2:
        difference = max(abs(x - y) for x, y in zip(*curves.values(), strict=True))
        print(f"largest difference of the curves: {difference:.1e}")
    draw(curves, name, args.out)


def draw(curves: dict[str, list[float]], name: str, path: str) -> None:
    """Loss against step, and the relative difference of two curves -> PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4) if len(curves) == 2 else (4.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, *rest = figure.subplots(1, len(curves), squeeze=False)[0]
    for (label, curve), style, width in zip(curves.items(), ("-", "--"), (3.5, 1.2), strict=False):
        left.plot(curve, style, linewidth=width, label=label)
    left.set(title=name, xlabel="step", ylabel="loss")
    left.legend()
    for right in rest:
        x, y = curves.values()
        right.semilogy([max(abs(p - q) / abs(q), 1e-17) for p, q in zip(x, y, strict=True)], linewidth=1)
        right.set(title="relative difference", xlabel="step")
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")
