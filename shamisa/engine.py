"""The distortion engine: one distortion, or plans that say which chain makes which image and the call that makes them.

Source: SHAMISA (arXiv 2603.13669), section on the compositional distortion engine. A plan is a pure function of (seed,
step, position in the batch), so it never has to be stored, and a saved one regenerates the same pixels anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import checks, ops, ranges
from .distortions import DISTORTIONS, GROUPS, NAMES, severity_at, value_at
from .options import Options, setting, takes
from .plan import Plan
from .randomness import derive_key, words
from .reference.distort import SOURCE_TYPES, check_size, check_sizes
from .reference.philox import DOMAIN_IMAGE, DOMAIN_PLAN, DOMAIN_VIEW, index, normal_pair, uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SEVERITY_SIGMA = 2.5  # severities are clip(|N(0, 2.5)|, 0, 4)


def normalize(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    backend: str = "auto",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Network input without any distortion: images [..., 3, H, W] uint8 or floating in 0..1 -> (x - mean) / std, same shape.

    The same op as the engine's, with empty chains; images in another range as in ``distort``. mean and std belong to the
    encoder: ``encoders.normalization``.
    """
    if images.dim() < 4 or images.shape[-3] != 3:
        raise ValueError(f"images must be [..., 3, H, W], got {list(images.shape)}")
    if images.numel():
        _check_images("images", images)
    flat = images.reshape(-1, *images.shape[-3:])
    n, device = flat.shape[0], images.device
    empty = torch.empty((n, 0), dtype=torch.int64, device=device)
    out = ops.run_distort(
        flat,
        torch.arange(n, device=device),
        empty,
        empty.to(torch.float32),
        empty,
        mean=list(mean),
        std=list(std),
        dtype=dtype,
        channels_last=memory_format == torch.channels_last,
        backend=backend,
    )
    return out.unflatten(0, images.shape[:-3])


def distort(
    images: Tensor,
    name: str,
    *,
    severity: float | Sequence[float] | Tensor | None = None,
    value: float | Sequence[float] | Tensor | None = None,
    seed: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Apply one distortion to a batch of images.

    Args:
        images: ``[N, 3, H, W]`` or ``[3, H, W]``, RGB, uint8 in 0..255 or floating in 0..1 (clamped; NaN counts as 0), any
            strides, CPU or CUDA. Never modified. Floating images in 0..255 or normalised ones are refused, judged by 16
            samples of each (``reference/ranges.py``); on a GPU, which is not waited for, a later call warns of them.
        name: a key of ``shamisa.DISTORTIONS``.
        severity: position in the level table, 0 (mildest) to 4, one number or N of them; linear between levels, the parameter
            rounded where the row says integer. Exactly one of ``severity`` and ``value``.
        value: the raw parameter, one number or N of them, within the row's ``low`` and ``high``.
        seed: random distortions are a pure function of (seed, position in the batch, image).
        backend: ``"auto"`` the compiled kernel for the device if there is one, else the reference; ``"native"`` the compiled
            kernel or a RuntimeError; ``"reference"`` pure PyTorch.

    Returns:
        The distorted images in the shape, dtype and on the device of ``images``; uint8 is rounded to nearest.
        No gradient flows through it.

    Raises:
        TypeError, ValueError: a bad argument, named, with what was expected and what came.
        RuntimeError: ``backend="native"`` without a compiled kernel.
    """
    if not isinstance(name, str) or name not in DISTORTIONS:
        raise ValueError(f"name must be one of shamisa.DISTORTIONS {list(NAMES)}, got {name!r}")
    row = DISTORTIONS[name]
    checks.tensor("images", images)
    if images.dim() not in (3, 4) or images.shape[-3] != 3 or images.numel() == 0:
        raise ValueError(f"images must be [N, 3, H, W] or [3, H, W] with N, H, W >= 1, got {list(images.shape)}")
    _check_images("images", images)
    seed = checks.seed("seed", seed)
    check_size(row, *images.shape[-2:])  # here, because the op does not read op codes on a GPU
    batch = images.detach() if images.dim() == 4 else images.detach().unsqueeze(0)
    n = batch.shape[0]
    if (severity is None) == (value is None):
        raise ValueError(
            "exactly one of severity and value must be given, got " + ("none" if value is None else "both")
        )
    if severity is not None:
        v = _per_image("severity", severity, n, 0.0, 4.0)
        if isinstance(v, Tensor):
            v = value_at(v, torch.full((n,), row.opcode, device="cpu"))
            v = v.round() if row.integer else v
        else:
            v = row.value_at(v)
            v = float(round(v)) if row.integer else v
    else:
        v = _per_image("value", value, n, row.low, row.high)
    device = batch.device
    if isinstance(v, Tensor):
        v = v.to(device, torch.float32).reshape(n, 1)
    else:
        v = torch.full((n, 1), v, dtype=torch.float32, device=device)
    position = torch.arange(n, device="cpu")
    key = derive_key(torch.tensor(seed, device="cpu"), position, domain=DOMAIN_IMAGE) if row.random else position
    opcode = torch.full((n, 1), row.opcode, dtype=torch.int64, device=device)
    # nothing in these can be wrong any more
    out = ops.call_distort(
        batch, position.to(device), opcode, v, key.to(device).view(n, 1), dtype=batch.dtype, backend=backend
    )
    return out if images.dim() == 4 else out[0]


def _check_images(name: str, images: Tensor) -> None:
    if images.dtype not in SOURCE_TYPES:
        raise TypeError(f"{name} must be uint8, float16, bfloat16, float32 or float64, got {images.dtype}")
    if images.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {images.layout}")
    # the CPU's are looked at by the op
    if images.is_cuda and images.dtype.is_floating_point and not torch.compiler.is_compiling():
        ranges.note(images)


def _per_image(name: str, given: float | Sequence[float] | Tensor, n: int, low: float, high: float) -> float | Tensor:
    """A number -> itself, or [N] -> float64 [N] on the CPU; checked to lie in low..high."""
    if isinstance(given, Real):  # compared as a number, so that torch.compile can see through
        if not low <= given <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {given}")
        return float(given)
    try:
        t = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or [N] numbers, got {given!r}") from None
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != n):
        raise ValueError(f"{name} must be a number or [N] = [{n}], got {list(t.shape)}")
    t = t.expand(n)
    # `not all inside` also catches NaN
    if not bool(((t >= low) & (t <= high)).all()):
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}], got {t.tolist() if n < 9 else f'{t.min()}..{t.max()}'}"
        )
    return t


@dataclass(frozen=True)
class EngineOptions(Options):
    """Everything that can be chosen about the chains that are drawn; the defaults are the published choices.

    What each option means is its ``help``: ``print(shamisa.options.describe(EngineOptions))``. Random distortions get a new
    realisation per level from the varying stage on; with rounding "minimal" only what is an integer by nature is rounded
    (jpeg quality, numbers of patches, blocks and buckets).
    """

    compositions: int = setting(4, "C, chains of distortions drawn per sample", low=1, high=256)
    levels: int = setting(5, "L, severity levels of the stage that varies in each chain", low=1, high=192)
    max_distortions: int = setting(7, "largest number of distortions in a chain", low=1, high=7)
    severity: str = setting("gaussian", "how severities in 0..4 are drawn", choices=("gaussian", "uniform"))
    continuous: bool = setting(True, "draw severities from the whole range 0..4 instead of the five discrete levels")
    order: str = setting("random", "order of the distortions in a chain", choices=("random", "fixed"))
    noise: str = setting(
        "per_level",
        "random distortions: a new realisation per level, or one shared by all levels",
        choices=("per_level", "shared"),
    )
    rounding: str = setting(
        "published",
        "which distortion parameters are rounded to integers: as published, or only where the distortion needs it",
        choices=("published", "minimal"),
    )
    distortions: tuple[str, ...] = setting((), "distortions to draw from, separated by commas", known=NAMES)


@takes(EngineOptions)
class DistortionEngine:
    """Draws compositions of distortions and applies them.

    Args:
        options: compositions C, levels L, the longest chain D and the rest, see ``EngineOptions``. A chain has at most one
            distortion of a group. Wrong values raise ValueError.
        distortions: names to draw from; None: all.
        reuse_prefix: compute the stages before the varying one once for all levels; changes nothing but the time.
    """

    def __init__(self, *, distortions: Iterable[str] | None = None, reuse_prefix: bool = True, **options: Any) -> None:
        self.options = o = EngineOptions(distortions=NAMES if distortions is None else distortions, **options)
        if not o.distortions:
            raise ValueError(f"distortions must name some of {', '.join(NAMES)}, got none")
        self.groups = [[DISTORTIONS[n].opcode for n in row if n in o.distortions] for row in GROUPS.values()]
        self.groups = [g for g in self.groups if g]
        self.compositions, self.levels = o.compositions, o.levels
        self.max_distortions = min(o.max_distortions, len(self.groups))
        self.reuse_prefix = reuse_prefix

    def __repr__(self) -> str:
        names = [NAMES[code] for group in self.groups for code in group]
        shown = vars(self.options) | {"max_distortions": self.max_distortions, "reuse_prefix": self.reuse_prefix}
        shown["distortions"] = "all" if len(names) == len(NAMES) else names
        words = (f"{k}={v}" if k == "distortions" else f"{k}={v!r}" for k, v in shown.items())
        return f"DistortionEngine({', '.join(words)})"

    def sample(self, batch_size: int, seed: int = 0, step: int = 0, first_sample: int = 0) -> Plan:
        """Draw the plan of one step: a pure function of its arguments, on the CPU.

        Args:
            batch_size: B, at least 1.
            seed: any 64-bit integer.
            step: 0..2^32-1.
            first_sample: position of the first sample in the global batch (for several processes).
        """
        for name, given, low in (("batch_size", batch_size, 1), ("step", step, 0), ("first_sample", first_sample, 0)):
            checks.integer(name, given, low, 2**32 - 1)
        with torch.device("cpu"):  # whatever the caller's default device
            return self._sample(int(batch_size), checks.seed("seed", seed), int(step), int(first_sample))

    def _sample(self, batch_size: int, seed: int, step: int, first_sample: int) -> Plan:
        B, C, L, D = batch_size, self.compositions, self.levels, self.max_distortions
        key = torch.tensor(seed)
        sample = torch.arange(first_sample, first_sample + B).view(B, 1)
        composition = torch.arange(C).view(1, C)

        # Address of a draw: element = sample, draw = composition * 4096 + block * 512 + i, extra = step
        def at(block: int, i: Tensor | int = 0) -> tuple[Tensor, Tensor, Tensor]:
            s, c = (
                (sample, composition) if not isinstance(i, Tensor) else (sample.unsqueeze(2), composition.unsqueeze(2))
            )
            return s, c * 4096 + block * 512 + i, torch.tensor(step)

        stage, level = torch.arange(D), torch.arange(L)
        w = words(key, *at(0), domain=DOMAIN_PLAN)
        length = 1 + index(w[0], D)  # [B, C]
        varying = index(w[1], length)
        opcode = self._opcodes(words(key, *at(1, stage), domain=DOMAIN_PLAN), length)  # [B, C, D]
        active = (opcode >= 0).unsqueeze(2)  # [B, C, 1, D]
        varies = (stage == varying.unsqueeze(2)).unsqueeze(2)  # [B, C, 1, D]

        fixed = self._severities(words(key, *at(2, stage), domain=DOMAIN_PLAN))  # [B, C, D]
        drawn = self._severities(words(key, *at(3, level), domain=DOMAIN_PLAN))  # [B, C, L]
        severity = torch.where(varies, drawn.unsqueeze(3), fixed.unsqueeze(2))  # [B, C, L, D]
        code = opcode.clamp(min=0).unsqueeze(2).expand(B, C, L, D)
        value = value_at(severity, code)
        flags = [r.discrete if self.options.rounding == "minimal" else r.integer for r in DISTORTIONS.values()]
        rounds = torch.tensor(flags)[code]
        value = torch.where(rounds, value.round(), value)
        severity = torch.where(rounds, severity_at(value, code), severity)

        # one realisation for the levels before the varying stage; from there on one per level, or still one ("shared")
        shared = derive_key(key, *at(4, stage), domain=DOMAIN_PLAN).unsqueeze(2).expand(B, C, L, D)
        per_level = derive_key(key, *at(5, (level.unsqueeze(1) * 8 + stage).flatten()), domain=DOMAIN_PLAN)
        one = (stage < varying.unsqueeze(2)).unsqueeze(2) | (self.options.noise == "shared")
        keys = torch.where(one, shared, per_level.view(B, C, L, D))
        return Plan(
            opcode=opcode,
            severity=torch.where(active, severity, 0).to(torch.float32),
            value=torch.where(active, value, 0).to(torch.float32),
            length=length,
            varying=varying,
            key=torch.where(active, keys, 0),
        )

    def _opcodes(self, w: tuple[Tensor, ...], length: Tensor) -> Tensor:
        """Words of D calls and the lengths [B, C] -> op codes [B, C, D]: groups without replacement, one op of each."""
        B, C, D = w[0].shape
        remaining = torch.arange(len(self.groups)).expand(B, C, -1)
        chosen = []
        for d in range(D):
            pick = index(w[0][..., d], remaining.shape[2]).unsqueeze(2)
            chosen.append(remaining.gather(2, pick).squeeze(2))
            keep = torch.arange(remaining.shape[2]) != pick
            remaining = remaining[keep].view(B, C, -1)
        group = torch.stack(chosen, 2)
        active = torch.arange(D) < length.unsqueeze(2)
        w1 = w[1]
        if self.options.order == "fixed":  # sort the drawn groups; the padding stays behind
            by = torch.where(active, group, len(self.groups)).argsort(dim=2, stable=True)
            group, w1 = group.gather(2, by), w1.gather(2, by)
        sizes = torch.tensor([len(g) for g in self.groups])
        longest = int(sizes.max())
        table = torch.tensor([g + [-1] * (longest - len(g)) for g in self.groups])
        return torch.where(active, table[group, index(w1, sizes[group])], -1)

    def _severities(self, w: tuple[Tensor, ...]) -> Tensor:
        """Words -> severities in [0, 4], float64."""
        if self.options.severity == "uniform":
            s = 4 * uniform(w[0], torch.float64)
        else:
            s = (SEVERITY_SIGMA * normal_pair(w[0], w[1], torch.float64)[0]).abs().clamp(max=4)
        return s if self.options.continuous else s.round()

    def __call__(
        self,
        references: Tensor,
        plan: Plan,
        normalize: bool = True,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        backend: str = "auto",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Tensor:
        """Apply a plan: references [B, V, 3, H, W] -> x [B, V, C, L, 3, H, W].

        Args:
            references: uint8 in 0..255 or floating in 0..1 (clamped, NaN counts as 0; another range as in
                ``shamisa.distort``), CPU or CUDA; never modified.
            plan: of the same B; moved to the device of the references.
            normalize: subtract ``mean`` and divide by ``std``; False leaves values in 0..1.
            dtype: float32, bfloat16, float16 or, without normalize, uint8 (rounded to nearest).
            memory_format: contiguous or channels_last, of the last four dimensions.
            backend: as in ``shamisa.distort``.
            mean, std: three numbers each, of RGB in 0..1; ImageNet's, or those of the encoder (``encoders.normalization``).

        Raises:
            ValueError, TypeError: a bad argument, or an image smaller than a distortion of the plan allows.
        """
        checks.tensor("references", references)
        if references.dim() != 5 or references.shape[2] != 3 or references.numel() == 0:
            raise ValueError(f"references must be [B, V, 3, H, W] with no size 0, got {list(references.shape)}")
        _check_images("references", references)
        if not isinstance(plan, Plan):
            raise TypeError(f"plan must be a shamisa.Plan, got {type(plan).__name__}")
        plan.check()
        B, C, L, D = plan.shape
        if references.shape[0] != B:
            raise ValueError(f"references must have the plan's batch size {B}, got {references.shape[0]}")
        if memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}")
        if normalize and not dtype.is_floating_point:
            raise ValueError(f"dtype must be floating when normalize is True, got {dtype}")
        # Here, because the op does not read op codes on a GPU. Inside torch.compile nothing can look at them; the CPU
        # kernels still do.
        if plan.opcode.device.type == "cpu" and not torch.compiler.is_compiling():
            check_sizes(plan.opcode, *references.shape[-2:])
        V, device = references.shape[1], references.device
        plan = plan.to(device, non_blocking=True)
        view = torch.arange(V, device=device).view(1, V, 1, 1, 1)
        key = derive_key(plan.key.unsqueeze(1), view, domain=DOMAIN_VIEW)  # [B, V, C, L, D]
        value = plan.value.unsqueeze(1).expand(B, V, C, L, D)
        opcode = plan.opcode.view(B, 1, C, 1, D).expand(B, V, C, L, D)
        source = references.detach().reshape(B * V, *references.shape[2:])
        index = torch.arange(B * V, device=device).view(B, V, 1, 1).expand(B, V, C, L)
        if self.reuse_prefix and L > 1:
            before = torch.arange(D, device=device) < plan.varying.view(B, 1, C, 1, 1)
            first = (t[:, :, :, 0].reshape(B * V * C, D) for t in (torch.where(before, opcode, -1), value, key))
            source = ops.run_distort(
                source, index[..., 0].reshape(-1), *first, dtype=torch.float32, backend=backend
            )  # [B*V*C, 3, H, W] in 0..1
            index = torch.arange(B * V * C, device=device).view(B, V, C, 1).expand(B, V, C, L)
            opcode = torch.where(before, -1, opcode)
        out = ops.run_distort(
            source,
            index.reshape(-1),
            *(t.reshape(-1, D) for t in (opcode, value, key)),
            mean=list(mean) if normalize else None,
            std=list(std) if normalize else None,
            dtype=dtype,
            channels_last=memory_format == torch.channels_last,
            backend=backend,
        )
        return out.unflatten(0, (B, V, C, L))
