"""Every Python block of README.md runs, in order and in one namespace; their own assertions are the test."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run():
    text = README.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python") >= 4
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = "\n" * line + block[1]  # so that a traceback gives the line of the README
        exec(compile(code, str(README), "exec"), names)
    assert names["z"].grad.isfinite().all() and names["h"].grad.any()
