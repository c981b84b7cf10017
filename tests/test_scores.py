"""Correlations with human scores: what is committed, the table of the documentation and the figures of the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scores

ROOT = Path(__file__).parents[1]

MEDIAN = {"srcc": 0.5, "plcc": 0.25, "plcc_logistic": 0.5, "krcc": 0.3, "rmse": 0.1}
RESULTS = {
    "labels": "made",
    "images": 30,
    "protocol": {},
    "splits": [{"origin": "the split column", "hash": "ab" * 32}],
    "versions": {"shamisa": "0.1.0", "commit": "0123456789abcdef"},
    "encoders": [
        {
            "checkpoint": "untrained:shamisa/small",
            "encoder": "shamisa/small",
            "feature_dim": 512,
            "median": MEDIAN,
            "splits": [{"n": {"train": 20, "val": 4, "test": 6}, "alpha": 2.0}],
        },
        {
            "checkpoint": "statistics",
            "encoder": "statistics",
            "feature_dim": 54,
            "median": {**MEDIAN, "srcc": 0.75},
            "splits": [{"n": {"train": 20, "val": 4, "test": 6}, "alpha": 2.0}],
        },
    ],
}


def test_committed_scores_name_no_paths_and_are_those_of_the_readme():
    paths = scores.committed()
    assert paths
    assert not any(word in path.read_text() for path in paths for word in ('"/', "hostname", '"node"'))
    rows = json.loads((scores.RESULTS / "0.1.0/scores/biq2021-subset.json").read_text())["rows"]
    best = max(row["srcc"] for row in rows if row["training"])
    (made,) = (row["srcc"] for row in rows if row["features"] == "statistics")
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"SRCC {best:.3f} and {made:.3f}" in readme


def test_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scores, "RESULTS", tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    assert scores.main(["--keep", "made", str(tmp_path / "results.json")]) == 0
    assert json.loads((tmp_path / "0.1.0/scores/made.json").read_text())["n"] == {"train": 20, "val": 4, "test": 6}
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| s")]
    assert rows == [
        "| statistics | by hand | 54 | 0.750 | 0.250 |",
        "| shamisa/small | not trained | 512 | 0.500 | 0.250 |",
    ]
    assert "6 test; hash abababababababab" in printed
    assert scores.main(["--keep", "made", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_trained_encoder_is_described(tmp_path):
    from shamisa import train

    run = tmp_path / "run"
    words = [
        "--steps",
        "1",
        "--crop",
        "48",
        "--compositions",
        "1",
        "--levels",
        "2",
        "--hidden",
        "8",
        "--embedding",
        "8",
    ]
    assert (
        train.main([*words, "--neighbors", "3", "--no-demo", "--refs", str(photographs(tmp_path)), "--out", str(run)])
        == 0
    )
    trained = scores.training(str(run))
    assert trained["photographs"] == 3 and trained["steps"] == 1
    assert trained["images_per_step"] == 6 * 3 and trained["crop"] == 48
    assert scores.training("untrained:shamisa/small") is None


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


def photographs(folder: Path) -> Path:
    import torch
    from PIL import Image

    there = folder / "photographs"
    there.mkdir()
    for i in range(3):
        pixels = torch.randint(0, 256, (80, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(pixels.numpy()).save(there / f"{i}.png")
    return there
