"""Every op on a GPU against the same op on the CPU: ``python3 benchmarks/agreement.py [--out FILE]``.

Without a GPU: the compiled CPU kernels against the reference. Prints a line per op: largest difference as a share of the
largest value, samples that differ, and the verdict against the tolerance that the tests state. Exits with 1 on disagreement,
or if an op with kernels on both sides was not compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import Reference
from memory import inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shamisa import DISTORTIONS, DistortionEngine, RelationLoss, ops
from shamisa import functional as SF
from shamisa.engine import distort

SIZES = ((224, 224), (131, 97), (64, 48))
GPU = torch.cuda.is_available()
# a share of the largest value. CPU and GPU kernels share their source; the reference rounds elsewhere, and an 8-bit step
# makes a whole grey level of that
DISTORTION_TOLERANCE = {"gpu": 1e-6, "reference": 1.01 / 255}
RELATION_TOLERANCE = 1e-4
# of the samples of chains that may differ from the reference by more: later stages enlarge a grey level
CHAIN_SHARE = 0.0 if GPU else 1e-3


class Compared(TorchDispatchMode):
    """Inside, the names of the package's ops that run are noted, the backwards too."""

    names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, _, name = function._schema.name.partition("::")
        if space == "shamisa":
            Compared.names.add(name)
        return function(*args, **(kwargs or {}))


def move(x, device: str):
    """Tensors of a list on a device, leaves that require gradients."""
    return [t.detach().to(device).requires_grad_(t.requires_grad) for t in x]


def pair(call) -> tuple[list[Tensor], list[Tensor]]:
    """(tested, wanted) results of call(device)."""
    if GPU:
        got = call("cuda")
        with Compared():
            return got, call("cpu")
    with Reference():
        wanted = call("cpu")
    with Compared():
        return call("cpu"), wanted


def with_gradients(call, *x: Tensor):
    """device -> what call(*x) returns there and, of the sum of its differentiable parts times fixed numbers, the gradients."""

    def run(device: str) -> list[Tensor]:
        leaves = [t.detach().to(device).requires_grad_(t.is_floating_point()) for t in x]
        out = call(*leaves)
        g = torch.Generator().manual_seed(2)
        total = sum((t * torch.randn(t.shape, generator=g).to(t)).sum() for t in out if t.requires_grad)
        total.backward()
        return [*(t.detach() for t in out), *(t.grad for t in leaves if t.requires_grad)]

    return run


def randomness() -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Random words, where they have a kernel for the device: plans are drawn on the CPU."""
    if not ops.has_kernel("philox", "cuda" if GPU else "cpu"):
        return
    g = torch.Generator().manual_seed(0)
    address = [torch.randint(-(2**63), 2**63 - 1, (1000,), generator=g) for _ in range(4)]
    got, wanted = pair(lambda d: [torch.ops.shamisa.philox(*(t.to(d) for t in address), 4)])
    yield "philox", [t.cpu() for t in got], wanted


def photographs() -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Resizing, where it has a kernel for the device."""
    if not ops.has_kernel("resize_bicubic", "cuda" if GPU else "cpu"):
        return
    photo = torch.randint(0, 256, (3, 90, 131), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = ((40, 57), (90, 64), (120, 200))
    got, wanted = pair(
        lambda d: [torch.ops.shamisa.resize_bicubic(photo.to(d), 3.5, 88.0, 0.0, 120.25, *size) for size in sizes]
    )
    yield "resize_bicubic", [t.cpu() for t in got], wanted


def distortions() -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Photographs-like uint8 images, all five levels, three sizes."""
    g = torch.Generator().manual_seed(0)
    for name in DISTORTIONS:
        got, wanted = [], []
        for H, W in SIZES:
            coarse = torch.rand(5, 3, H // 8 + 2, W // 8 + 2, generator=g)
            x = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear")
            x = (x + 0.05 * torch.randn(x.shape, generator=g)).clamp(0, 1)
            severity = torch.arange(5.0)
            with Compared():
                a = distort(x.cuda() if GPU else x, name, severity=severity, seed=3, backend="native")
            got.append(a.cpu())
            wanted.append(distort(x, name, severity=severity, seed=3, backend="native" if GPU else "reference"))
        yield name, got, wanted
    engine = DistortionEngine()
    references = torch.randint(0, 256, (2, 2, 3, 96, 96), dtype=torch.uint8, generator=g)
    plan = engine.sample(2, seed=5)
    a = engine(references.cuda() if GPU else references, plan, dtype=torch.uint8, normalize=False)
    b = engine(references, plan, dtype=torch.uint8, normalize=False, backend="native" if GPU else "reference")
    yield "engine (uint8)", [a.cpu()], [b]


def relations() -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Every op with its gradients, N = 126, and kNN where rows are hard to tell apart; the objective with its gradients."""
    leaves, plan = inputs(1, 256, 96)
    severity = plan.varying_severity
    h = torch.cat([leaves[2].flatten(0, 1), leaves[3].flatten(0, 3)]).detach()
    z = torch.cat([leaves[0].flatten(0, 1), leaves[1].flatten(0, 3)]).detach()
    g = torch.Generator().manual_seed(1)
    anchors, logits = torch.randn(32, 256, generator=g), h[:, :32]
    near = SF.knn_graph(h)  # edges whose weights take part in gradients
    # tight groups far from each other, and rows that share nearly all: products cannot tell the rows
    clusters = torch.randn(6, 256, generator=g)[torch.arange(1000) % 6] + 1e-3 * torch.randn(1000, 256, generator=g)
    collapsed = 1 + 1e-3 * torch.randn(1000, 256, generator=g)

    def edges(graph):
        return [graph.weight, graph.index]

    def merged(weight, index):
        return edges(SF.merge_graphs([SF.RelationGraph(weight, index, len(h))]))

    cases = {
        "structural_graph": lambda d: edges(SF.structural_graph(severity.to(d))),
        "ref_dist_graph": lambda d: edges(SF.ref_dist_graph(severity.to(d))),
        "ref_ref_graph": lambda d: edges(SF.ref_ref_graph(severity.to(d))),
        "dist_dist_graph": lambda d: edges(SF.dist_dist_graph(severity.to(d))),
        "dist_dist_graph (sample)": lambda d: edges(SF.dist_dist_graph(severity.to(d), edges=900, cap="sample")),
        "knn_graph": with_gradients(SF.nearest_neighbors, h),
        "knn_graph (clusters)": with_gradients(SF.nearest_neighbors, clusters),
        "knn_graph (collapsed)": with_gradients(SF.nearest_neighbors, collapsed),
        "transport_logits": with_gradients(lambda h, a: [SF.transport_logits(h, a)], h, anchors),
        "transport_codes": lambda d: [SF.transport_codes(logits.to(d))],
        "transport_graph": with_gradients(lambda x: edges(SF.transport_graph(x)), logits),
        "transport_graph (row)": with_gradients(
            lambda x: edges(SF.transport_graph(x, select="row", diagonal=False)), logits
        ),
        "merge_edges": with_gradients(merged, near.weight, near.index),
        "pair_cost": with_gradients(
            lambda z, weight, index: [SF.pair_cost(z, SF.RelationGraph(weight, index, len(z)))],
            z,
            near.weight,
            near.index,
        ),
        "variance": with_gradients(lambda x: [SF.variance(x)], z),
        "covariance": with_gradients(lambda x: [SF.covariance(x)], z),
    }

    def objective(d):
        torch.manual_seed(0)
        loss = RelationLoss(feature_dim=256).to(d)
        x = move(leaves, d)
        total = loss(*x, plan.to(d)).total
        total.backward()
        return [total.detach(), *(t.grad for t in x)]

    for name, call in (*cases.items(), ("objective and gradients", objective)):
        got, wanted = pair(call)
        yield name, [t.cpu() for t in got], wanted


def judge(name: str, got: list[Tensor], wanted: list[Tensor], tolerance: float, share: float = 0.0) -> dict:
    """Largest difference, share of samples that differ, verdict; NaN and different shapes never agree."""
    worst, differ, count = 0.0, 0, 0
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            worst = float("inf")
            continue
        scale = b.double().abs().max().clamp(min=1e-30) if b.numel() else 1.0
        error = ((a.double() - b.double()).abs() / scale).nan_to_num(nan=float("inf"))
        worst = max(worst, float(error.max()) if error.numel() else 0.0)
        differ, count = differ + int((a != b).sum()), count + a.numel()
    differing = differ / max(1, count)
    agrees = worst <= tolerance or 0 < differing <= share
    return {"op": name, "max_error": worst, "share_differing": differing, "agrees": agrees}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the table as JSON here too")
    given = parser.parse_args()
    device = "cuda" if GPU else "cpu"
    print(f"{'CUDA against CPU' if GPU else 'CPU kernels against the reference'}; backends of {device}:", end=" ")
    print(", ".join(op for op in ops.TABLE if ops.has_kernel(op, device)) or "none")
    rows = []
    if not ops.has_kernel("distort", device):
        print(f"distort has no compiled kernel for {device}", file=sys.stderr)
        return 1
    limit = DISTORTION_TOLERANCE["gpu" if GPU else "reference"]
    for tolerance, source in (
        (0.0, randomness()),
        (0.0, photographs()),
        (limit, distortions()),
        (RELATION_TOLERANCE, relations()),
    ):
        for name, got, wanted in source:
            rows.append(judge(name, got, wanted, tolerance, CHAIN_SHARE if name.startswith("engine") else 0.0))
            r = rows[-1]
            verdict = "agrees" if r["agrees"] else "DISAGREES"
            print(
                f"{name:28} max error {r['max_error']:.2e}  differing {r['share_differing']:.3%}  {verdict}", flush=True
            )
    bad = [r["op"] for r in rows if not r["agrees"]]
    print(f"agreement: {len(rows) - len(bad)} of {len(rows)}" + (f"; not: {', '.join(bad)}" if bad else ""))
    missed = [op for op in ops.TABLE if ops.has_kernel(op, device) and op not in Compared.names]
    if missed:
        print(f"not compared: {', '.join(missed)}")
    if given.out:
        given.out.write_text(json.dumps({"device": device, "rows": rows, "missed": missed}, indent=1) + "\n")
    return 1 if bad or missed else 0


if __name__ == "__main__":
    sys.exit(main())
