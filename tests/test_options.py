"""Options: each stated once, checked everywhere in the same words, and shown by help."""

import dataclasses
import inspect

import pytest

from shamisa import DistortionEngine, RelationLoss
from shamisa.engine import EngineOptions
from shamisa.options import Options, describe, setting
from shamisa.relations import RelationOptions
from shamisa.training.config import Config


@dataclasses.dataclass(frozen=True)
class Few(Options):
    count: int = setting(3, "how many there are", low=1, high=9)
    share: float = setting(0.5, "part of the whole", above=0)
    kind: str = setting("red", "its colour", choices=("red", "blue"))
    words: tuple[str, ...] = setting(("a",), "some letters", known=("a", "b"))
    on: bool = setting(False, "whether it is on")
    name: str = setting("", "what it is called")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "count must be an integer in 1..9, got 0"),
        ({"count": 2.0}, "count must be an integer in 1..9, got 2.0"),
        ({"count": True}, "count must be an integer in 1..9, got True"),
        ({"share": 0}, "share must be a number above 0, got 0"),
        ({"share": float("nan")}, "share must be a finite number above 0, got nan"),
        ({"kind": "green"}, "kind must be one of red, blue, got 'green'"),
        ({"words": ("a", "c")}, "words must name some of a, b, got c"),
        ({"words": "ab"}, "words must name some of a, b, got ab"),
        ({"words": 3}, "words must name some of a, b, got 3"),
        ({"words": ("a", "a")}, "words must not name anything twice, got a, a"),
        ({"on": 1}, "on must be True or False, got 1"),
        ({"name": 3}, "name must be a text, got 3"),
    ],
)
def test_errors_name_option_expectation_and_value(given, message):
    with pytest.raises(ValueError) as error:
        Few(**given)
    assert str(error.value) == message


def test_values_become_the_type_of_the_field():
    few = Few(share=1, words=["b", "a"])
    assert isinstance(few.share, float) and few.words == ("b", "a")
    assert few.changed() == {"share": 1.0, "words": ("b", "a")}


@pytest.mark.parametrize(("group", "taken_by"), [(EngineOptions, DistortionEngine), (RelationOptions, RelationLoss)])
def test_the_configuration_inherits_and_help_shows_every_option(group, taken_by):
    shown, config = inspect.signature(taken_by).parameters, Config()
    for f in dataclasses.fields(group):
        assert f.name in shown and f"{f.name}: {f.metadata['help']}" in describe(group)
        assert getattr(config, f.name) == f.default
    assert config.part(group) == {f.name: f.default for f in dataclasses.fields(group)}
    assert "self" not in shown and "options" not in shown
    with pytest.raises(TypeError, match="unknown"):
        taken_by(unknown=1)
