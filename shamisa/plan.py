"""A plan: which chain of distortions makes which image, as plain tensors.

The engine draws plans (``DistortionEngine.sample``) and carries them out. A saved plan regenerates the same pixels anywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .distortions import DISTORTIONS, NAMES
from .reference.ranges import check_severity

_FORMAT = 1  # of the JSON of a plan
# what kernels accept, by op code; as float32, like the values of a plan
_LOW, _HIGH = (torch.tensor([getattr(r, n) for r in DISTORTIONS.values()], device="cpu") for n in ("low", "high"))


@dataclass(frozen=True)
class Plan:
    """What the engine will do to a batch of B samples: C compositions, L levels, chains of up to D stages.

    Only the stage ``varying`` differs in severity between the levels of a composition. Stages with equal keys at all levels
    have one realisation.

    Attributes:
        opcode: [B, C, D] int64, position in the distortion table; -1 pads.
        severity: [B, C, L, D] float32 in 0..4.
        value: [B, C, L, D] float32, the raw parameter.
        length: [B, C] int64, number of stages, 1..D.
        varying: [B, C] int64, which stage varies.
        key: [B, C, L, D] int64, where the random numbers of a stage come from.
    """

    opcode: Tensor
    severity: Tensor
    value: Tensor
    length: Tensor
    varying: Tensor
    key: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, L, D)."""
        return tuple(self.severity.shape)

    @property
    def varying_severity(self) -> Tensor:
        """Severity of the varying stage, [B, C, L] float32: the lambda of the relation graphs."""
        B, C, L, _ = self.shape
        return self.severity.gather(3, self.varying.view(B, C, 1, 1).expand(B, C, L, 1)).squeeze(3)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Plan:
        """The same plan on another device."""
        return Plan(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def recipe(self, sample: int, composition: int, level: int) -> list[tuple[str, float, float]]:
        """One chain in words: [(name, severity, value), ...] in the order of application."""
        codes = self.opcode[sample, composition].tolist()
        severity, value = (t[sample, composition, level].tolist() for t in (self.severity, self.value))
        return [(NAMES[c], s, v) for c, s, v in zip(codes, severity, value, strict=True) if c >= 0]

    def to_json(self) -> str:
        """The plan as JSON text; ``from_json`` gives it back bit for bit."""
        content = {f.name: getattr(self, f.name).cpu().tolist() for f in fields(self)}
        return json.dumps({"format": _FORMAT, "distortions": list(NAMES), **content})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan written by ``to_json``.

        Raises:
            ValueError: not such JSON, another format, another distortion table, or tensors that do not fit together.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"plan must be JSON written by Plan.to_json, got text that is not JSON: {error}") from None
        names = [f.name for f in fields(cls)]
        if not isinstance(content, dict) or any(n not in content for n in ("format", "distortions", *names)):
            got = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"plan must be a JSON object with format, distortions, {', '.join(names)}, got {got}")
        if content["format"] != _FORMAT:
            raise ValueError(f"plan format must be {_FORMAT}, got {content['format']!r}")
        if content["distortions"] != list(NAMES):
            raise ValueError("plan was made with another table of distortions")
        try:
            tensors = {
                n: torch.tensor(
                    content[n], dtype=torch.float32 if n in ("severity", "value") else torch.int64, device="cpu"
                )
                for n in names
            }
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"plan must hold rectangular lists of numbers: {error}") from None
        return cls(**tensors).check()

    def check(self) -> Plan:
        """Raise ValueError where shapes, types or (on the CPU) contents do not fit together; return self."""
        if self.severity.dim() != 4:
            raise ValueError(f"severity must be [B, C, L, D], got {list(self.severity.shape)}")
        B, C, L, D = self.shape
        floating, integer = torch.float32, torch.int64
        for name, shape, dtype in (
            ("opcode", (B, C, D), integer),
            ("severity", (B, C, L, D), floating),
            ("value", (B, C, L, D), floating),
            ("length", (B, C), integer),
            ("varying", (B, C), integer),
            ("key", (B, C, L, D), integer),
        ):
            t = getattr(self, name)
            if tuple(t.shape) != shape or t.dtype != dtype:
                raise ValueError(f"{name} must be {dtype} {list(shape)}, got {t.dtype} {list(t.shape)}")
        if self.opcode.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_contents()
        return self

    def _check_contents(self) -> None:
        D = self.shape[3]
        if not bool(((self.opcode >= -1) & (self.opcode < len(NAMES))).all()):
            raise ValueError(f"opcode must lie in -1..{len(NAMES) - 1}, got {self.opcode.min()}..{self.opcode.max()}")
        if not bool(((self.length >= 1) & (self.length <= D)).all()):
            raise ValueError(f"length must lie in 1..D = {D}, got {self.length.min()}..{self.length.max()}")
        if not bool(((self.varying >= 0) & (self.varying < self.length)).all()):
            raise ValueError("varying must lie in 0..length-1")
        if not bool(((torch.arange(D, device="cpu") < self.length.unsqueeze(-1)) == (self.opcode >= 0)).all()):
            raise ValueError("opcode must be >= 0 in the first `length` stages and -1 after them")
        check_severity("severity", self.severity)
        code = self.opcode.unsqueeze(2).expand_as(self.value)
        fits = (self.value >= _LOW[code]) & (self.value <= _HIGH[code])  # NaN fails too
        if not bool((fits | (code < 0)).all()):
            at = tuple(torch.nonzero(~fits & (code >= 0))[0].tolist())
            row = DISTORTIONS[NAMES[code[at]]]
            raise ValueError(
                f"value of {row.name} must lie in [{row.low:g}, {row.high:g}], got {self.value[at]:g} at {list(at)}"
            )
        if not bool(self.value.isfinite().all()):
            raise ValueError("value must be finite, also in stages that are not used")
