"""README.md: short, with the two commands that others look for. Its blocks run in test_docs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_length():
    assert README.count("\n") <= 150


@pytest.mark.parametrize("name, last", [("demo", "python -m shamisa.train"), ("test", "pytest")])
def test_commands_are_marked(name, last):
    assert README.count(f"<!-- command: {name} -->\n```bash\n") == 1
    block = README.partition(f"<!-- command: {name} -->\n```bash\n")[2].partition("```")[0].splitlines()
    assert block[0] == "python3 -m venv .venv && . .venv/bin/activate" and block[-1] == last
