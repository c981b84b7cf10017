"""benchmarks/rows.py: what a benchmark run that was cut short leaves is a result."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
MACHINE = {"name": "m", "versions": {"shamisa": "0.1.0"}}


@pytest.fixture
def rows(monkeypatch):
    """The module, beside which report.py lies."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "report", raising=False)
    spec = importlib.util.spec_from_file_location("bench_rows", FOLDER / "rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name: str, median: float) -> dict:
    return {"name": name, "group": "g", "stats": {"median": median}, "info": {}, "load": 1.5}


def test_the_last_of_a_name_counts_and_a_cut_line_is_left_out(rows, tmp_path):
    lines = [
        {"machine": MACHINE},
        row("a", 1.0),
        {"ceilings": {"cpu": {"copy_gb_s": 2.0}}},
        row("b", 2.0),
        row("a", 3.0),
    ]
    source, target = tmp_path / "rows.jsonl", tmp_path / "result.json"
    source.write_text("\n".join(map(json.dumps, lines)) + '\n{"name": "c", "gro')
    assert rows.main([str(source), str(target)]) == 0
    found = json.loads(target.read_text())
    assert [(b["name"], b["stats"]["median"]) for b in found["benchmarks"]] == [("a", 3.0), ("b", 2.0)]
    assert found["machine"] == MACHINE and found["ceilings"] == {"cpu": {"copy_gb_s": 2.0}}
    assert found["load_at_end"] == 1.5 and found["format"] == 1


@pytest.mark.parametrize(
    "text, message",
    [("nonsense\n{}\n", "line 1 must be JSON, got 'nonsense'"), ("", "a line must name the machine, got none")],
)
def test_what_is_no_result(rows, tmp_path, capsys, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    assert rows.main([str(tmp_path / "rows.jsonl"), str(tmp_path / "result.json")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "result.json").exists()
