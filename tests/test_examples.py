"""The examples run, write their picture, and train alike with our kernels and with plain PyTorch."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
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


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins", "graphs", "simclr"])
@pytest.mark.parametrize("flags, most", [((), 1e-2), (("--double",), 1e-9)])
def test_curves_agree(run, name, flags, most):
    if name == "simclr":
        most = 1e-3  # pixels, float32 either way, differ in their last bits
    out = run(name, *flags)
    first, last = (float(x) for x in re.search(r"shamisa: loss (\S+) at the first step, (\S+) at", out).groups())
    assert first > 1 and last > 1 and first != last
    assert float(re.search(r"largest difference of the curves: (\S+)", out)[1]) < most


def test_reference_only(run):
    out = run("vicreg", "--reference")
    assert "PyTorch: loss" in out and "shamisa" not in out and "difference" not in out


def losses(out: str) -> list[float]:
    return [float(x) for x in re.search(r"loss (\S+) at the first step, (\S+) at", out).groups()]


def test_relation_loss(run):
    """Trains, and gives the same losses in one graph of torch.compile."""
    plain, compiled = losses(run("relation_loss")), losses(run("relation_loss", "--compile", "eager"))
    assert plain[0] > plain[1] > 0
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_relation_loss_on_two_processes(run, tmp_path):
    """Two processes of two samples train like one of four."""
    flags = ["--samples", "2", "--steps", "2", "--out", str(tmp_path / "two.png")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "relation_loss.py"), *flags]
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert losses(done.stdout) == pytest.approx(losses(run("relation_loss")), rel=1e-4)
