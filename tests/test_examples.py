"""The examples run, write their picture, and train alike with our kernels and with plain PyTorch."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """(name, *flags) -> what `python examples/NAME.py --steps 2 FLAGS` prints; the picture is checked."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name: str, *flags: str) -> str:
        picture = tmp_path / "curves.png"
        monkeypatch.setattr(sys, "argv", [name, "--steps", "2", "--out", str(picture), *flags])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
        return capsys.readouterr().out

    yield run
    sys.modules.pop("common", None)


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins"])
@pytest.mark.parametrize("flags, most", [((), 1e-2), (("--double",), 1e-9)])
def test_curves_agree(run, name, flags, most):
    out = run(name, *flags)
    first, last = (float(x) for x in re.search(r"shamisa: loss (\S+) at the first step, (\S+) at", out).groups())
    assert first > 1 and last > 1 and first != last
    assert float(re.search(r"largest difference of the curves: (\S+)", out)[1]) < most


def test_reference_only(run):
    out = run("vicreg", "--reference")
    assert "PyTorch: loss" in out and "shamisa" not in out and "difference" not in out
