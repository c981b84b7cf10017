"""What ``shamisa bench`` measures: the engine on packaged photographs, the objective on random features, each distortion.

The rows of one work, by compiled kernels and by the reference, in several settings, are ``Case``s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.embedded import EmbeddedPhotos
from ..distortions import DISTORTIONS
from ..engine import DistortionEngine, Plan, distort
from ..ops import has_kernel
from ..relations import RelationLoss
from .profiling import all_threads

SIZE, B, V, PLANS = 224, 2, 6, 2  # of the engine's rows: crops in pixels, samples and views of a published step, steps
F, E = 2048, 768  # features and embedding of the objective's rows, as published
REFERENCE_NODES = 2016  # the most of a reference row: it holds N x N matrices of doubles


@dataclass(frozen=True)
class Case:
    """A row to measure. Rows of one section, subject and setting do the same work, or a share of it."""

    section: str
    subject: str  # what is done
    setting: str  # with how many threads, or in which format
    backend: str  # "native" or "reference"
    threads: int  # of torch on the CPU
    make: Callable[[], Callable[[], object]]  # -> the call that is timed
    images: int | None = None  # distorted in a call; None where the call is the unit
    whole: int | None = None  # images of all the work


def make_crops(count: int) -> Tensor:
    """Crops of the packaged photographs, uint8 [count, 3, SIZE, SIZE]."""
    photos, crops = EmbeddedPhotos("train", leaves=0), []
    for i in range(count):
        photo = photos[i % len(photos)]
        top, left = (37 * i % (n - SIZE + 1) for n in photo.shape[1:])
        crops.append(photo[:, top : top + SIZE, left : left + SIZE])
    return torch.stack(crops)


def inputs(B: int, F: int, E: int, device: str = "cpu") -> tuple[list[Tensor], Plan]:
    """z_ref, z_dist, h_ref, h_dist that require gradients, and the plan: V = 6, C = 4, L = 5, so N = 126 B."""
    plan = DistortionEngine().sample(B, seed=0)
    g = torch.Generator().manual_seed(0)
    shapes = ((B, 6), (B, 6, 4, 5))
    z = [torch.randn(*s, E, generator=g) for s in shapes]
    h = [normalize(torch.rand(*s, F, generator=g), dim=-1) for s in shapes]
    return [x.to(device).requires_grad_() for x in (*z, *h)], plan.to(device)


def objective(B: int, F: int, E: int, device: str = "cpu") -> tuple[Callable, list[Tensor]]:
    """(step, leaves): step(z_ref, z_dist, h_ref, h_dist) gives the objective and its gradients, those of the anchors last."""
    leaves, plan = inputs(B, F, E, device)
    torch.manual_seed(0)
    loss = RelationLoss(feature_dim=F).to(device)
    anchors = list(loss.anchors.parameters())

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            fresh = [x.detach().requires_grad_() for x in tensors]
            total = loss(*fresh, plan).total
            return total.detach(), *torch.autograd.grad(total, [*fresh, *anchors])

    return step, [x.detach() for x in leaves]


def engine_call(references: Tensor, plans: list[Plan], options: dict) -> Callable[[], Tensor]:
    """Plans one after the other; gives the images of the last."""
    engine = DistortionEngine()
    return lambda: [engine(references, plan, **options) for plan in plans][-1]


def objective_call(samples: int, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """Objective and gradients of ``samples`` samples."""
    step, leaves = objective(samples, F, E, device)
    return lambda: step(*leaves)


def distortion_call(images: Tensor, name: str) -> Callable[[], Tensor]:
    """One distortion at level 3."""
    return lambda: distort(images, name, severity=2)


def make_cases(
    device: torch.device, samples: list[int], count: int | None, reference: bool, each: bool = False
) -> list[Case]:
    """The rows of a device.

    Args:
        samples: B of the objective's rows.
        count: CPU threads; None measures one and all of them.
        reference: rows of the reference too.
        each: rows of each distortion too.
    """
    kind, cases = device.type, []
    counts = [count] if count else sorted({1, all_threads()})
    settings = [(f"{n} thread{'s' * (n > 1)}", n, {}) for n in counts]
    if kind == "cuda":
        options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
        settings = [("float32", counts[-1], {}), ("bfloat16 channels_last", counts[-1], options)]
    plain = [s for s in settings if not s[2]]

    def rows_of(op: str) -> list[str]:
        return ["native"] * has_kernel(op, kind) + ["reference"] * reference

    crops, engine = make_crops(B * V).to(device), DistortionEngine()
    references = crops.view(B, V, *crops.shape[1:])
    plans = [engine.sample(B, seed=1, step=s).to(device) for s in range(PLANS)]
    whole = PLANS * B * V * engine.compositions * engine.levels
    for setting, n, options in settings:
        for backend in rows_of("distort"):
            views = V if backend == "native" else 1
            make = partial(engine_call, references[:, :views], plans, options)
            cases.append(Case("engine", "", setting, backend, n, make, whole * views // V, whole))
    for size in samples:
        for setting, n, _ in plain:
            for backend in rows_of("knn_graph"):
                if backend == "native" or 126 * size <= REFERENCE_NODES:
                    make = partial(objective_call, size, str(device))
                    cases.append(Case("objective", f"N = {126 * size}", setting, backend, n, make))
    if each:  # four images, on a GPU enough to fill it, fewer where Python would take seconds
        whole = 4 if kind == "cpu" else 256
        floats = {n: (crops[:4].float() / 255).repeat(n // 4, 1, 1, 1) for n in (4, 32, whole)}
        for name in DISTORTIONS:
            for backend in rows_of("distort"):
                images = whole if kind == "cpu" or backend == "native" else 32
                make = partial(distortion_call, floats[images], name)
                cases.append(Case("distortions", name, plain[0][0], backend, plain[0][1], make, images, whole))
    return cases
