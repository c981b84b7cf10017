"""benchmarks/agreement.py: a case that crashes, hangs or disagrees costs itself alone. Cases and package are stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = """
import os, time
from dataclasses import dataclass
from collections.abc import Callable
import torch

Call = Callable

@dataclass(frozen=True)
class Case:
    name: str
    make: Callable
    tolerance: float = 0.0
    share: float = 0.0
    in_step: bool = False

def gives(*results):
    left = list(results)  # of the device, then of the reference
    return lambda device: lambda: [torch.tensor(left.pop(0))]

def cases(device):
    return [
        Case("good", gives([1.0, 2.0], [1.0, 2.0])),
        Case("crash", lambda device: lambda: os._exit(7)),
        Case("error", lambda device: lambda: torch.zeros(2) @ torch.zeros(3)),
        Case("differs", gives([1.0, 2.0], [1.0, 2.5]), 0.1),
        Case("no number", gives([1.0, float("nan")], [1.0, 2.0]), 0.1),
        Case("hangs", lambda device: lambda: time.sleep(60)),
        Case("close", gives([1.0, 2.0], [1.0, 2.1]), 0.1),
    ]
"""


@pytest.mark.slow
def test_each_case_has_a_row(tmp_path):
    script = (ROOT / "benchmarks/agreement.py").read_text()
    wanted = "FIRST_SECONDS, CASE_SECONDS = 60.0, 20.0"
    assert wanted in script
    (tmp_path / "agreement.py").write_text(script.replace(wanted, "FIRST_SECONDS, CASE_SECONDS = 120.0, 10.0"))
    (tmp_path / "agreement_cases.py").write_text(CASES)
    (tmp_path / "measure.py").write_text("from contextlib import nullcontext as Reference\n")
    (tmp_path / "shamisa.py").write_text(
        "class ops:\n    TABLE = {}\n    has_kernel = staticmethod(lambda op, device: True)\n"
    )
    command = [sys.executable, str(tmp_path / "agreement.py"), "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stderr
    rows = {row["op"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert [name for name, row in rows.items() if row["agrees"]] == ["good", "close"]
    assert "exit status 7" in rows["crash"]["why"] and "10 s" in rows["hangs"]["why"]
    assert "size" in rows["error"]["why"] and rows["differs"]["max_error"] == pytest.approx(0.2)
    assert rows["no number"]["max_error"] == float("inf")
    assert "agreement: 2 of 7; not: crash, error, differs, no number, hangs" in done.stdout
