"""Scoring of folders, lists and patterns: rows, failures, exit status, and resuming what was killed."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fitted import SMALL, fitted
from PIL import Image
from torch.testing import assert_close

from shamisa import score
from shamisa.data.photos import read_photo
from shamisa.scoring.features import Extractor
from shamisa.scoring.ridge import Regressor

ROOT = Path(score.__file__).parents[1]


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("regressor"))


@pytest.fixture
def folder(tmp_path):
    """Seven photographs of several sizes, one of them in a folder below, and two broken files."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["a.png", "b.jpg", "below/c.png", 'd, "e".png', "f.png", "g.png", "h.png"]
    for i, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (20 + 9 * i, 70 - 6 * i, 3), dtype=np.uint8)).save(root / name)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "below" / "torn.png").write_bytes((root / "a.png").read_bytes()[:300])
    (root / "notes.md").write_text("not listed")
    return root


def call(regressor, out, *paths, extra=()):
    words = [
        *map(str, paths),
        "--checkpoint",
        SMALL,
        "--regressor",
        str(regressor),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    return score.main([*words, "--quiet", "--batch", "2", *extra])


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_folder(folder, regressor, tmp_path, capsys, ending):
    out = tmp_path / f"scores{ending}"
    assert call(regressor, out, folder) == 1
    rows = score.read_rows(out)
    assert [r[0] for r in rows] == sorted(str(p) for p in folder.rglob("*.*") if p.suffix != ".md")
    failed = {os.path.basename(r[0]): r for r in rows if r[3]}
    assert sorted(failed) == ["broken.png", "torn.png"] and all(r[1] is None and r[2] is None for r in failed.values())
    told = capsys.readouterr()
    assert "2 could not be read" in told.out
    assert "broken.png: is not an image" in told.err and "torn.png" in told.err
    scorer = score.load_scorer(SMALL, regressor, device="cpu")
    for file, quality, raw, _ in (r for r in rows if not r[3]):
        assert_close(scorer(read_photo(file)).item(), quality, atol=2e-6, rtol=0)
        assert_close(min(1.0, max(0.0, (raw - 1) / 4)), quality, atol=2e-6, rtol=0)
    meta = json.loads((tmp_path / f"scores{ending}.meta.json").read_text())
    assert "higher is better" in meta["score"] and meta["raw"] == "1..5, higher is better"


def test_csv_is_for_everybody(folder, regressor, tmp_path):
    out = tmp_path / "s.csv"
    call(regressor, out, folder)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("file", "score", "raw", "error")
    assert any(r["file"].endswith('d, "e".png') for r in rows)
    assert all(0 <= float(r["score"]) <= 1 for r in rows if r["score"])


def test_files_patterns_and_lists_each_once(folder, regressor, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text(f"# chosen\n{folder / 'a.png'}\n{folder / 'g.png'}\n")
    out = tmp_path / "s.csv"
    assert call(regressor, out, folder / "f.png", listing, folder / "[ab].*", f"{folder}/**/c.png") == 0
    assert [os.path.basename(r[0]) for r in score.read_rows(out)] == ["f.png", "a.png", "g.png", "b.jpg", "c.png"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize("torn", ["", "cut"])
def test_resume_scores_nothing_twice(folder, regressor, tmp_path, monkeypatch, ending, torn):
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"scores{ending}"
    call(regressor, whole, folder)
    lines = whole.read_text().splitlines(keepends=True)
    keep = 5
    out.write_text("".join(lines[:keep]) + (lines[keep][: len(lines[keep]) // 2] if torn else ""))
    out.with_name(out.name + ".meta.json").write_text(whole.with_name(whole.name + ".meta.json").read_text())
    scored = []
    real = Extractor._load
    monkeypatch.setattr(Extractor, "_load", lambda self, path: (scored.append(path), real(self, path))[1])
    assert call(regressor, out, folder, extra=["--resume"]) == 1
    assert out.read_text() == whole.read_text()
    rows = [r[0] for r in score.read_rows(whole)]
    assert sorted(scored) == sorted(rows[keep - (ending == ".csv") :])
    assert call(regressor, out, folder, extra=["--resume"]) == 1 and out.read_text() == whole.read_text()


def test_torn_inside_a_name_with_a_line_break(tmp_path):
    out = tmp_path / "s.csv"
    out.write_text('file,score,raw,error\na.png,0.5,3.0,\n"two\nlines.png",0.25,2.0,\n"torn\n')
    assert score.read_rows(out) == [("a.png", 0.5, 3.0, None), ("two\nlines.png", 0.25, 2.0, None)]


def test_interruption_leaves_rows_and_says_how_to_go_on(folder, regressor, tmp_path, monkeypatch, capsys):
    real = score.Scorer.stream

    def stream(self, paths):
        for i, result in enumerate(real(self, paths)):
            if i == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(score.Scorer, "stream", stream)
    out = tmp_path / "s.csv"
    assert call(regressor, out, folder) == 130
    assert "--resume" in capsys.readouterr().err and len(score.read_rows(out)) == 3


def test_scorer_takes_tensors(regressor):
    scorer = score.load_scorer(Path(SMALL), regressor, device="cpu")
    photos = [torch.randint(0, 256, (3, 30 + i, 50), dtype=torch.uint8) for i in range(3)]
    before = [p.clone() for p in photos]
    quality = scorer(photos)
    assert quality.shape == (3,) and quality.dtype == torch.float64
    assert_close(scorer(photos[1]), quality[1:2], atol=1e-6, rtol=0)
    assert_close(scorer(torch.stack([photos[0]] * 2).float() / 255), quality[:1].expand(2), atol=1e-6, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(photos, before, strict=True))


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "at least one image"),
        (torch.zeros(2, 1, 8, 8), r"each image must be a tensor \[3, H, W\] with H, W >= 1, got \[1, 8, 8\]"),
        (torch.full((3, 8, 8), 2.0), "must lie in 0..1, got 2..2"),
        (torch.full((3, 8, 8), float("nan")), "must lie in 0..1"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "uint8 or floating, got torch.int32"),
        (["a.png"], "got str"),
    ],
)
def test_scorer_errors(regressor, images, message):
    with pytest.raises(ValueError, match=message):
        score.load_scorer(SMALL, regressor, device="cpu")(images)


@pytest.mark.parametrize(
    "paths, out, change, message",
    [
        (["none"], "s.csv", {}, "'.*none': no such file or folder"),
        (["*.xyz"], "s.csv", {}, "a pattern that matches nothing"),
        (["below/empty"], "s.csv", {}, "folder must hold photographs"),
        (["a.png"], "s.txt", {}, "--out must end in .csv or .jsonl"),
        (["a.png"], "no/s.csv", {}, "--out must lie in an existing folder"),
        (["a.png"], "begun.csv", {}, "begun.csv exists: continue with --resume"),
        (["a.png"], "begun.csv", {"--resume": None}, "was started with another encoder_hash"),
        (["a.png"], "s.csv", {"--regressor": "none"}, "cannot read the regressor"),
        (["a.png"], "s.csv", {"--checkpoint": "none"}, "checkpoint must be a run folder"),
        (
            ["a.png"],
            "s.csv",
            {"--regressor": "other"},
            "must be fitted on features of .* shamisa/small .*got one for torchvision/resnet50",
        ),
        (["a.png"], "s.csv", {"--batch": "0"}, "batch must be"),
        (
            ["a.png"],
            "s.csv",
            {"--device": "abacus", "--checkpoint": "none"},
            "device must be",
        ),  # the quicker check first
    ],
)
def test_bad_input(folder, regressor, tmp_path, capsys, paths, out, change, message):
    (folder / "below" / "empty").mkdir()
    (tmp_path / "begun.csv").write_text("file,score,raw,error\n")
    (tmp_path / "begun.csv.meta.json").write_text(json.dumps({"encoder_hash": "other"}))
    fitted = Regressor.load(regressor)
    Regressor(
        fitted.coef, fitted.intercept, fitted.about | {"encoder": "torchvision/resnet50", "encoder_hash": "0"}
    ).save(tmp_path / "other.safetensors")
    if change.get("--regressor") == "other":
        change = {"--regressor": str(tmp_path / "other.safetensors")}
    before = sorted(p.name for p in tmp_path.iterdir())
    given = {
        "--checkpoint": SMALL,
        "--regressor": str(regressor),
        "--out": str(tmp_path / out),
        "--device": "cpu",
    } | change
    words = [w for k, v in given.items() for w in ([k] if v is None else [k, v])]
    assert score.main([*(str(folder / p) for p in paths), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_start_imports_only_what_scoring_needs(folder, regressor, tmp_path):
    """Heavy libraries of the other commands stay out: they would cost every call seconds."""
    code = f"""
import sys
from shamisa import score
assert score.main({[str(folder / "a.png"), "--checkpoint", SMALL, "--regressor", str(regressor), "--quiet"]!r}) == 0
print(*(sys.modules.keys() & {{"scipy", "sklearn", "skimage", "matplotlib", "torchvision", "torch._dynamo", "onnx"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
