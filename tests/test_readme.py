"""Every Python block of README.md runs, in order and in one namespace; their own assertions are the test. The one that
needs a run and other libraries runs by itself, with the paths replaced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fitted import SMALL, fitted
from torch.testing import assert_close

from shamisa import export

README = Path(__file__).parents[1] / "README.md"
APART = re.compile(r"<!-- score: start -->\n```python\n(.*?)^```\n<!-- score: end -->", re.MULTILINE | re.DOTALL)


def test_python_blocks_run():
    text = APART.sub(lambda m: "\n" * m[0].count("\n"), README.read_text())
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python") >= 4
    torch.manual_seed(0)
    names: dict = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = "\n" * line + block[1]  # so that a traceback gives the line of the README
        exec(compile(code, str(README), "exec"), names)
    assert names["z"].grad.isfinite().all() and names["h"].grad.any()


def test_block_about_scores_runs(tmp_path, monkeypatch):
    for library in ("torchmetrics", "huggingface_hub"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    # a GPU's convolutions, in TF32 unless told otherwise, would not agree to 1e-6 with the models on the CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fitted(tmp_path)
    assert export.main(["--checkpoint", SMALL, "--regressor", "regressor.safetensors", "--out", "model.pt2"]) == 0
    (code,) = APART.findall(README.read_text())
    names = {"images": torch.randint(0, 256, (2, 3, 60, 50), dtype=torch.uint8)}
    exec(compile(code.replace("runs/paper", SMALL), str(README), "exec"), names)
    assert_close(names["mean"].double(), names["scores"].mean(), atol=1e-6, rtol=0)
    for other in ("again", "score"):
        assert_close(names[other].double(), names["scores"], atol=1e-6, rtol=0)
