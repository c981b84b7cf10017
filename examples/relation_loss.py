"""The whole objective, RelationLoss, in a training loop of one's own, without the engine: the loss only.

The loss asks of a plan just two tensors: how severe each distorted image is, and which stage of its chain varies. Here
they come with blur and noise made in plain PyTorch. The loop runs under torch.compile and under torchrun:

    python examples/relation_loss.py
    python examples/relation_loss.py --compile                        # network and loss, one graph each
    torchrun --nproc-per-node 2 examples/relation_loss.py --samples 2   # DistributedDataParallel, the same training
"""

from __future__ import annotations

import argparse
import os
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import Crops, draw
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import shamisa

V, C, L = 2, 2, 4  # views (crops) of a sample, chains (blur; noise), severities


class Network(nn.Module):
    """Images [N, 3, H, W] -> h [N, 64], L2-normalised, and z [N, 32]."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 16), (16, 32), (32, 64))
        stages = [(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.ReLU()) for i, o in sizes]
        self.encoder = nn.Sequential(*(layer for s in stages for layer in s), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projector = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return F.normalize(h, dim=1), self.projector(h)


def make_batch(crops: Tensor, step: int, first: int) -> tuple[Tensor, Tensor, SimpleNamespace]:
    """crops [B V, 3, H, W] uint8 of the samples from number `first` on -> clean [B, V, 3, H, W], distorted
    [B, V, C, L, 3, H, W], plan; the same for a sample however the batch is split."""
    clean = (crops.float() / 127.5 - 1).unflatten(0, (-1, V))
    rows = []
    for sample in range(first, first + len(clean)):
        g = torch.Generator().manual_seed(1000 * step + sample)
        rows.append((4 * torch.rand(C, L, generator=g), torch.randn(V, L, *clean.shape[2:], generator=g)))
    severity, noise = (torch.stack(part) for part in zip(*rows, strict=True))  # [B, C, L], [B, V, L, 3, H, W]
    blurred = F.avg_pool2d(clean.flatten(0, 1), 9, 1, 4).view_as(clean)
    amount = severity[:, None, :, :, None, None, None] / 4  # [B, 1, C, L, 1, 1, 1]
    base = clean[:, :, None]  # [B, V, 1, 3, H, W]
    distorted = torch.stack([base + amount[:, :, 0] * (blurred[:, :, None] - base), base + amount[:, :, 1] * noise], 2)
    plan = SimpleNamespace(severity=severity[..., None], varying=torch.zeros(len(clean), C, dtype=torch.long))
    return clean, distorted, plan  # severity [B, C, L, D]: chains of one stage, D = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps of the training [%(default)s]")
    parser.add_argument("--samples", type=int, default=4, help="B, samples of a process in a step [%(default)s]")
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="use torch.compile")
    parser.add_argument("--out", default="relation_loss.png", help="picture of the curve [%(default)s]")
    args = parser.parse_args()

    parallel = "RANK" in os.environ  # started by torchrun
    if parallel:
        dist.init_process_group("gloo")  # nccl on GPUs
    rank, world = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)

    torch.manual_seed(0)  # equal weights everywhere
    net, curve = Network(), []
    # gather: one objective over the samples of all processes, which gives its parameters the same gradient on each
    loss = shamisa.RelationLoss(feature_dim=64, gather=parallel, regularizer="off")  # a total of 0 or more
    optimizer = torch.optim.AdamW([*net.parameters(), *loss.anchors.parameters()], lr=1e-3)
    if args.compile:
        net.compile(backend=args.compile, fullgraph=True)
        loss.compile(backend=args.compile, fullgraph=True)
    model = DistributedDataParallel(net) if parallel else net

    B = args.samples
    own, crops = slice(rank * B * V, (rank + 1) * B * V), Crops(world * B * V)
    for step in range(args.steps):
        clean, distorted, plan = make_batch(crops(step)[own], step, rank * B)
        h, z = model(torch.cat([clean.flatten(0, 1), distorted.flatten(0, 3)]))  # references first
        split = [B * V, B * V * C * L]
        (h_ref, h_dist), (z_ref, z_dist) = h.split(split), z.split(split)
        out = loss(
            z_ref.view(B, V, -1), z_dist.view(B, V, C, L, -1), h_ref.view(B, V, -1), h_dist.view(B, V, C, L, -1), plan
        )
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
        curve.append(out.total.item())
    if rank == 0:
        print(f"loss {curve[0]:.4f} at the first step, {curve[-1]:.4f} at the last of {len(curve)}")
        print(f"variance {out.variance:.4f}, invariance {out.invariance:.4f}, covariance {out.covariance:.4f}")
        draw({"RelationLoss": curve}, "relation_loss", args.out)
    if parallel:
        dist.barrier()  # the threads of gloo have let go of the last reduction before an interpreter ends
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
