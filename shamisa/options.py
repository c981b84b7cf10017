"""Options as fields of frozen dataclasses: default, meaning, unit and allowed values of each are stated once, in ``setting``.

The objective (``relations.RelationOptions``), the engine (``engine.EngineOptions``) and the configuration of a run, which
inherits from both (``training.config.Config``), are made of them; checks, flags, ``--help``, signatures and the
documentation come from there.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass

from . import checks


def setting(
    default: object,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    known: tuple[str, ...] | None = None,
    live: bool = False,
) -> typing.Any:
    """A field: default, meaning with unit, allowed values or range; ``known`` for the words of a tuple.

    ``live`` marks the fields that may change on ``--resume``: they change the results of a step by rounding at most.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "low": low,
        "high": high,
        "above": above,
        "known": known,
        "live": live,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check_value(f: dataclasses.Field, value: object) -> object:
    """The value in the type of the field, or ValueError naming field, expectation and what came."""
    kind, m = type(f.default), f.metadata
    if kind is tuple:
        return _check_words(f.name, value, m["known"])
    if m["choices"]:
        return checks.choice(f.name, value, m["choices"])
    if kind is bool:
        return checks.flag(f.name, value)
    if kind is int:
        return checks.integer(f.name, value, m["low"], m["high"])
    if kind is float:
        return checks.number(f.name, value, m["low"], m["high"], m["above"])
    if not isinstance(value, str):
        raise ValueError(f"{f.name} must be a text, got {value!r}")
    return value


def _check_words(name: str, value: object, known: tuple[str, ...]) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) or not isinstance(value, typing.Iterable) else tuple(value)
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"{name} must name some of {', '.join(known)}, got {', '.join(map(str, unknown))}")
    if len(set(words)) != len(words):
        raise ValueError(f"{name} must not name anything twice, got {', '.join(words)}")
    return words


@dataclass(frozen=True)
class Options:
    """A group of options, each checked when it is made. Raises ValueError, naming the field, where a value does not fit."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, check_value(f, getattr(self, f.name)))

    def part(self, group: type[Options]) -> dict[str, typing.Any]:
        """The options of one of the groups that this one inherits from, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(group)}

    def changed(self) -> dict[str, typing.Any]:
        """Those that differ from their defaults."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}


def takes(group: type[Options]) -> typing.Callable[[type], type]:
    """Class decorator: in what ``help`` and editors show of ``__init__``, the options of a group stand for ``**options``."""

    def shown(cls: type) -> type:
        _, *own = inspect.signature(cls.__init__).parameters.values()  # the first is self
        named = [p for p in own if p.kind is not p.VAR_KEYWORD]
        fields = dataclasses.fields(group)
        keyword = inspect.Parameter.KEYWORD_ONLY
        taken = {p.name for p in named}
        options = [
            inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type)
            for f in fields
            if f.name not in taken
        ]
        cls.__signature__ = inspect.Signature([*named, *options])
        return cls

    return shown


def describe(group: type[Options]) -> str:
    """The meaning of every option of a group, a line each."""
    return "\n".join(f"{f.name}: {f.metadata['help']} [{f.default}]" for f in dataclasses.fields(group))
