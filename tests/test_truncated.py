"""JPEGs without their end: left out or read by every command, counted and named apart from unreadable files."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from fitted import SMALL, fitted
from PIL import Image
from test_decode import gradient
from torch.testing import assert_close

from shamisa import probe, score, sheet
from shamisa.data import PhotoError, PhotoFolder, open_photos, read_photo
from shamisa.data.__main__ import main
from shamisa.scoring.features import Extractor
from shamisa.train import main as train
from shamisa.training.check import LabelledPart


def noisy(side: int = 80, seed: int = 1) -> np.ndarray:
    """A photograph whose JPEG has something on every row."""
    return (gradient(side, side) // 2 + np.random.default_rng(seed).integers(0, 64, (side, side, 3))).astype(np.uint8)


CUTS = {"no end marker": -2, "half an end marker": -1, "no last rows": -400}


@pytest.fixture(params=[False, True], ids=["baseline", "progressive"])
def whole(request, tmp_path):
    place = tmp_path / "whole.jpg"
    Image.fromarray(noisy()).save(place, quality=90, progressive=request.param)
    return place


@pytest.mark.parametrize("cut", CUTS)
def test_truncated_jpegs_are_refused_or_read(whole, tmp_path, cut):
    place = tmp_path / "cut.jpg"
    place.write_bytes(whole.read_bytes()[: CUTS[cut]])
    with pytest.raises(PhotoError, match="is truncated: a JPEG without its end") as caught:
        read_photo(place)
    assert caught.value.truncated
    remarks: list[str] = []
    photo = read_photo(place, truncated="read", note=remarks.append)
    assert len(remarks) == 1 and remarks[0].startswith("is truncated")
    good = read_photo(whole, truncated="read", note=remarks.append)
    assert len(remarks) == 1 and photo.shape == good.shape
    rows = 80 if cut != "no last rows" else 32  # 400 bytes are less than the lower half
    if "progressive" not in whole.name and cut != "no last rows":
        assert_close(photo, good, rtol=0, atol=0)
    elif photo.ne(good).any():
        assert photo[:, :rows].float().sub(good[:, :rows].float()).abs().mean() < 16


def test_reading_truncated_jpegs_leaves_pillow_as_it_is(whole, tmp_path):
    """Pillow's switch for this is global, and would change what other threads read."""
    from PIL import ImageFile

    place = tmp_path / "cut.jpg"
    place.write_bytes(whole.read_bytes()[:-2])
    read_photo(place, truncated="read", note=lambda remark: None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_damage_is_not_truncation(whole, tmp_path):
    place = tmp_path / "header.jpg"
    place.write_bytes(whole.read_bytes()[:100])  # nothing to show
    for truncated in ("skip", "read"):
        with pytest.raises(PhotoError) as caught:
            read_photo(place, truncated=truncated)
        assert not caught.value.truncated
    Image.fromarray(noisy()).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-2000])
    with pytest.raises(PhotoError):
        read_photo(tmp_path / "a.png", truncated="read")
    with pytest.raises(ValueError, match=r"truncated must be one of skip, read, got 'mend'"):
        read_photo(whole, truncated="mend")


def test_verify_and_pack_count_them_apart(whole, tmp_path, capsys):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "good.jpg").write_bytes(whole.read_bytes())
    (root / "cut.jpg").write_bytes(whole.read_bytes()[:-2])
    (root / "text.jpg").write_text("no photograph")
    report = tmp_path / "report.json"
    command = ["verify", str(root), "--quiet", "--json", str(report)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "unreadable: 1\n  text.jpg" in printed
    assert "truncated, left out without --truncated read: 1\n  cut.jpg" in printed
    assert list(json.loads(report.read_text())["truncated"]) == ["cut.jpg"]
    (root / "text.jpg").unlink()
    assert main(command) == 1
    assert main([*command, "--truncated", "read"]) == 0
    assert "truncated, read: 1\n  cut.jpg" in capsys.readouterr().out
    assert main(["pack", str(root), "--out", str(tmp_path / "a"), "--quiet"]) == 1
    assert "cut.jpg: is truncated" in capsys.readouterr().err
    assert main(["pack", str(root), "--out", str(tmp_path / "b"), "--quiet", "--truncated", "read"]) == 0
    packed = open_photos(tmp_path / "b", truncated="read")
    assert_close(packed[0], PhotoFolder(root, truncated="read")[0], rtol=0, atol=0)


def test_features_of_truncated_photographs_are_named_and_not_kept(whole, tmp_path):
    place = tmp_path / "cut.jpg"
    place.write_bytes(whole.read_bytes()[:-2])

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    options = {"crop": 32, "workers": 1, "cache": tmp_path / "cache"}
    reading = Extractor(Mean(), truncated="read", **options)
    (found,) = dict(reading.stream([place])).values()
    assert isinstance(found, torch.Tensor) and list(reading.cut_off) == [str(place)]
    (refused,) = dict(Extractor(Mean(), **options).stream([place])).values()
    assert isinstance(refused, PhotoError) and refused.truncated
    with pytest.raises(ValueError, match="truncated must be"):
        Extractor(Mean(), truncated="maybe")


def test_runs_from_before_the_option_go_on():
    """They left truncated photographs out, as the default does."""
    from shamisa.training import config as configuration

    record = configuration.to_record(configuration.resolve("demo", {}))
    del record["truncated"]
    assert configuration.from_record(record).truncated == "skip"
    del record["lr"]
    with pytest.raises(ValueError, match=r"missing \['lr'\]"):
        configuration.from_record(record)


# ---- every command ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Forty JPEGs with scores, 3.jpg and 5.jpg without their end marker, 7.jpg no JPEG at all."""
    root = tmp_path_factory.mktemp("labelled")
    rows = [("file", "mos", "split")]
    for i in range(40):
        Image.fromarray(noisy(48, i)).save(root / f"{i}.jpg", quality=5 + 2 * i)
        rows.append((f"{i}.jpg", i, "test" if i % 4 == 0 else "val" if i % 4 == 1 else "train"))
    for name in ("3.jpg", "5.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:-2])
    (root / "7.jpg").write_text("no photograph")
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


FAST = ["--crop", "32", "--device", "cpu", "--quiet"]


def test_the_probe_names_them_apart_and_its_cache_keeps_them_apart(labelled, tmp_path, capsys):
    def call(truncated: str) -> tuple[dict, str]:
        out = tmp_path / "out"
        command = ["--checkpoint", SMALL, "--labels", str(labelled / "labels.csv"), "--out", str(out), *FAST]
        command += ["--cache", str(tmp_path / "cache"), "--truncated", truncated, "--report", str(tmp_path / "page")]
        assert probe.main(command) == 0
        return json.loads((out / "results.json").read_text()), capsys.readouterr().out

    for _ in range(2):  # the second time from the cache
        read, said = call("read")
        assert [u["file"] for u in read["unreadable"]] == ["7.jpg"] and read["truncated"] == []
        assert read["truncated_read"] == [str(labelled / "3.jpg"), str(labelled / "5.jpg")]
        assert "1 of 40 images cannot be read" in said and "2 truncated JPEGs read as far as they go: " in said
        assert "2, read as far as they go" in (tmp_path / "page" / "index.html").read_text()
        skipped, said = call("skip")
        assert [u["file"] for u in skipped["unreadable"]] == ["7.jpg"] and skipped["truncated_read"] == []
        assert [u["file"] for u in skipped["truncated"]] == ["3.jpg", "5.jpg"]
        assert "2 truncated JPEGs of 40 images left out (--truncated read reads them): 3.jpg, 5.jpg" in said
        assert "2, left out" in (tmp_path / "page" / "index.html").read_text()
    n = [r["encoders"][0]["splits"][0]["n"] for r in (read, skipped)]
    assert n[0]["train"] == n[1]["train"] + 1 and n[0]["val"] == n[1]["val"] + 1


@pytest.mark.parametrize("truncated", ["skip", "read"])
def test_the_cross_dataset_matrix_names_them_apart(labelled, tmp_path, capsys, truncated):
    other = tmp_path / "other.csv"
    other.write_text((labelled / "labels.csv").read_text())
    command = ["--checkpoint", SMALL, "--cross", f"{labelled}/labels.csv", f"{other}={labelled}", "--splits", "2"]
    assert probe.main([*command, "--out", str(tmp_path / "out"), *FAST, "--truncated", truncated]) == 0
    results = json.loads((tmp_path / "out" / "cross.json").read_text())
    assert [u["file"] for u in results["unreadable"]] == ["7.jpg"] * 2
    names = [(u["set"], u["file"]) for u in results["truncated"]]
    read = [str(labelled / "3.jpg"), str(labelled / "5.jpg")]
    said = capsys.readouterr().out
    if truncated == "read":
        assert names == [] and results["truncated_read"] == read and "2 truncated JPEGs read" in said
    else:
        assert names == [(s, f) for s in results["sets"] for f in ("3.jpg", "5.jpg")]
        assert "4 truncated JPEGs of 80 images left out" in said and results["truncated_read"] == []


def test_score_counts_them_apart_also_when_resumed(labelled, tmp_path, capsys):
    regressor = fitted(tmp_path)
    photos = [str(labelled / f"{i}.jpg") for i in (1, 2, 3, 5, 7)]
    command = ["--checkpoint", SMALL, "--regressor", str(regressor), "--device", "cpu", "--quiet"]
    out = str(tmp_path / "a.csv")
    assert score.main([*photos, *command, "--out", out]) == 1
    skipping = "3 could not be read; 2 truncated JPEGs among them (--truncated read)"
    assert f"2 of 5 photographs scored; {skipping}" in capsys.readouterr().out
    assert score.main([*photos, *command, "--out", out, "--resume"]) == 1
    assert skipping in capsys.readouterr().out
    assert score.main([*photos, *command, "--out", str(tmp_path / "b.csv"), "--truncated", "read"]) == 1
    said = capsys.readouterr().out
    assert "4 of 5 photographs scored; 1 could not be read; 2 truncated JPEGs scored as far as they go: " in said
    assert photos[2] in said and photos[3] in said


def test_the_sheet_refuses_or_draws_them(labelled, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    command = [str(labelled / "3.jpg"), "--out", str(out), "--size", "48", "--compose", "1"]
    assert sheet.main(command) == 2 and not out.exists()
    assert "is truncated" in (said := capsys.readouterr().err) and "--truncated read reads it" in said
    assert sheet.main([*command, "--truncated", "read"]) == 0 and out.exists()


def test_labels_during_training_follow_the_option(labelled, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "shamisa.scoring.features.Extractor.__init__", lambda self, *_, **given: seen.append(given) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        LabelledPart.open(labelled / "labels.csv", truncated="read").srcc(torch.nn.Identity(), torch.device("cpu"))
    assert seen[0]["truncated"] == "read"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("truncated", ["skip", "read"])
def test_the_summary_of_training(labelled, tmp_path, capfd, truncated, workers):
    refs = tmp_path / "refs"
    refs.mkdir()
    for i in (1, 2, 3, 5, 7):
        (refs / f"{i}.jpg").write_bytes((labelled / f"{i}.jpg").read_bytes())
    options = (
        "--steps 3 --batch 2 --crop 48 --compositions 1 --levels 2 --device cpu --encoder shamisa/small --init none"
    )
    command = ["--refs", str(refs), "--out", str(tmp_path / "run"), "--truncated", truncated, *options.split()]
    assert train([*command, "--workers", str(workers), "--max-skipped", "1", "--check-every", "0"]) == 0
    said = capfd.readouterr().err
    assert f"photographs that could not be used: 1, see {tmp_path / 'run' / 'skipped.jsonl'}" in said
    left_out = "truncated JPEGs left out (--truncated read reads them): 2: " in said
    read = "truncated JPEGs read as far as they go: 2: 3.jpg, 5.jpg" in said
    assert (left_out, read) == (truncated == "skip", truncated == "read")
    lines = (tmp_path / "run" / "truncated.jsonl").read_text().splitlines() if truncated == "read" else []
    assert [json.loads(line)["name"] for line in lines] == ["3.jpg", "5.jpg"] * (truncated == "read")
