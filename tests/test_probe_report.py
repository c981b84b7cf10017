"""The page of a probe, groups, full reference and the cross-dataset matrix, on a made set with awkward names."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from shamisa import probe
from shamisa.datasets import iqa_sets
from shamisa.reports import cross, report
from shamisa.scorer import Scorer
from shamisa.scoring import inputs, metrics, ridge
from shamisa.scoring.features import Extractor

SMALL = "untrained:shamisa/small"
FAST = ["--crop", "32", "--device", "cpu", "--quiet", "--splits", "2"]
CHROMIUM = next((c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None)
KINDS = ("<noise> & 'grain'", "blocks $x_$")


def make_set(root, lower_better=False, seed=0):
    """12 photographs x 2 distortions x 3 levels of 48 x 40, their references, labels.csv; noise tells the score."""
    rng = np.random.default_rng(seed)
    (root / "ref").mkdir(parents=True)
    rows = []
    for r in range(12):
        clean = np.clip(rng.uniform(60, 180) + np.linspace(-40, 40, 48)[None, :, None] * np.ones((40, 1, 3)), 0, 255)
        Image.fromarray(clean.astype(np.uint8)).save(root / f"ref/{r}.png")
        for k, kind in enumerate(KINDS):
            for level in (1, 2, 3):
                amount = 8 * level + rng.uniform(0, 4)
                noise = rng.normal(size=(40, 48, 3)) * amount
                if k:
                    noise = np.kron(noise[::4, ::4], np.ones((4, 4, 1)))
                name = f"{r} <b>&\"{k}' {level}.png"
                Image.fromarray(np.clip(clean + noise, 0, 255).astype(np.uint8)).save(root / name)
                score = amount if lower_better else 40 - amount
                rows.append((name, round(score, 3), f"ref/{r}.png", kind, level))
    with (root / "labels.csv").open("w", newline="") as file:
        columns = ("file", "dmos" if lower_better else "mos", "reference", "distortion", "level")
        csv.writer(file).writerows([columns, *rows])
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("made") / os.fsdecode(b"set\xff & <i>"))  # not UTF-8


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    """(folder of the page, results.json) of a probe of two encoders."""
    out = tmp_path_factory.mktemp("out")
    words = ["--checkpoint", SMALL, "--compare", "statistics", "--labels", str(data / "labels.csv")]
    assert probe.main([*words, *FAST, "--out", str(out), "--report", str(out / "page")]) == 0
    return out / "page", json.loads((out / "results.json").read_text())


class Reader(HTMLParser):
    """Text, tags and addresses of a page; fails on a tag that is never closed."""

    def __init__(self, content):
        super().__init__()
        self.words, self.tags, self.open, self.addresses = [], [], [], []
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page_holds_what_it_must_and_needs_nothing(page):
    folder, results = page
    content = (folder / "index.html").read_text()
    found = Reader(content)
    words = re.sub(r"\s+", " ", "".join(found.words))
    assert all(a.startswith("data:image/") for a in found.addresses) and "script" not in found.tags
    assert "http" not in content and "@import" not in content
    best = results["encoders"][0]["median"]
    assert f"SRCC{best['srcc']:.3f}" in words and "median of 2 splits" in words
    assert results["splits"][0]["hash"] in words and "--compare statistics" in words and "\\xff" in words
    assert "<noise> & 'grain'" in words and '0 <b>&"' in words  # escaped, not swallowed
    assert {"b", "i"} & set(found.tags) <= {"b"} and found.tags.count("b") == 2  # only those of the headline
    assert found.tags.count("figure") == sum(
        2 * min(report.THUMBNAILS, n // 2) for n in [results["encoders"][0]["splits"][0]["n"]["test"]]
    )
    assert {p.name for p in folder.iterdir()} == {"index.html", "scatter.png", "distortion.png", "level.png"}
    for image in folder.glob("*.png"):
        assert Image.open(image).size[0] == 640


def test_groups_of_the_results_are_on_the_page(page):
    folder, results = page
    words = "".join(Reader((folder / "index.html").read_text()).words)
    for encoder in results["encoders"]:
        assert set(encoder["groups"]["distortion"]) == set(KINDS)
        assert list(encoder["groups"]["level"]) == ["1", "2", "3"]
        for group in encoder["groups"].values():
            assert all(f"{m['srcc']:.3f}" in words for m in group.values())
    for split in results["encoders"][1]["splits"]:
        assert sum(g["n"] for g in split["groups"]["level"].values()) == split["n"]["test"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
@pytest.mark.parametrize("width", [1280, 400])
def test_page_does_not_scroll_sideways(page, tmp_path, width):
    """In a frame of that width; media queries see the frame."""
    content = html.escape((page[0] / "index.html").read_text())
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><body><iframe style="width:{width}px;height:900px;border:0" srcdoc="{content}"></iframe><script>'
        "onload = () => { const d = document.querySelector('iframe').contentDocument, e = d.documentElement;"
        "const inner = [...d.querySelectorAll('.wide')].map(w => w.scrollWidth - w.clientWidth);"
        "document.body.dataset.found = [e.scrollWidth, e.clientWidth, Math.max(...inner)]; }</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags = [*flags.split(), "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [
        CHROMIUM,
        *flags,
        "--window-size=1400,1000",
        "--virtual-time-budget=5000",
        "--dump-dom",
        wrapper.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="(\d+),(\d+),(-?\d+)"', done.stdout)
    assert found, done.stderr[-2000:]
    scroll, client, tables = map(int, found.groups())
    assert width - 20 <= client <= width  # the scroll bar
    assert scroll <= client and tables <= 0


def test_a_page_that_cannot_be_written_is_told_before_any_work(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inputs, "extract", None)  # must not be reached
    (tmp_path / "file").touch()
    words = ["--checkpoint", SMALL, "--labels", str(data / "labels.csv"), "--out", str(tmp_path / "out")]
    assert probe.main([*words, *FAST, "--report", str(tmp_path / "file")]) == 2
    assert "File exists" in capsys.readouterr().err


def test_thumbnails_are_small_and_lost_ones_empty(tmp_path, photo):
    Image.fromarray(photo[0].permute(1, 2, 0).numpy()).resize((900, 300)).save(tmp_path / "a.png")
    assert len(report.thumbnail(tmp_path / "a.png")) < 30_000
    assert report.thumbnail(tmp_path / "none.png") == ""


# ---- full reference --------------------------------------------------------------------------------------------------
def test_full_reference(data, tmp_path, capsys):
    words = ["--checkpoint", SMALL, "--labels", str(data / "labels.csv"), "--full-reference", "--out", str(tmp_path)]
    assert probe.main([*words, *FAST]) == 0
    assert "full reference" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["full_reference"] and results["encoders"][0]["median"]["srcc"] > 0.8
    fitted = ridge.Regressor.load(tmp_path / "regressor.safetensors")
    with pytest.raises(ValueError, match="full-reference:"):  # it must not score single images
        Scorer(inputs.open_encoder(SMALL), fitted)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("no column", "needs labels that name references, made-labels has none"),
        ("no file", r"1 of 12 references of .* are missing .* ref/3.png: the reference column must name files"),
        ("size", r"must have the size of its reference .*3.png, \(48, 40\), got \(30, 30\)"),
    ],
)
def test_full_reference_needs_references(tmp_path, capsys, monkeypatch, fault, message):
    root = make_set(tmp_path / "made")
    if fault == "no column":
        labels = (root / "labels.csv").read_text()
        (root / "labels.csv").write_text(labels.replace("reference", "of"))
    elif fault == "no file":
        (root / "ref/3.png").unlink()
    else:
        Image.new("RGB", (30, 30)).save(root / "3 <b>&\"1' 2.png")
    monkeypatch.setattr(inputs, "extract_difference", None)  # must not be reached
    words = ["--checkpoint", SMALL, "--labels", str(root / "labels.csv"), "--full-reference"]
    assert probe.main([*words, *FAST, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


# ---- cross-dataset ---------------------------------------------------------------------------------------------------
def test_cross_matrix(data, tmp_path, capsys):
    other = make_set(tmp_path / "other", lower_better=True, seed=1)
    sources = [str(data / "labels.csv"), f"{other / 'labels.csv'}={other}"]
    words = [
        "--checkpoint",
        SMALL,
        "--cross",
        *sources,
        "--out",
        str(tmp_path / "out"),
        "--report",
        str(tmp_path / "page"),
    ]
    assert probe.main([*words, *FAST]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/cross.json").read_text())
    a, b = results["sets"]
    assert b == "other-labels" and results["sets"][b]["scale"]["lower_better"]
    matrix = results["encoders"][0]["matrix"]
    assert {m["n"] for m in (matrix[a][b], matrix[b][a])} == {72} and matrix[a][a]["n"] < 72
    for row in (a, b):  # directions agree although one set is upside down
        assert all(matrix[row][column]["srcc"] > 0.6 for column in (a, b))
        assert f"{matrix[row][row]['srcc']:.4f}*" in printed
    assert f"{matrix[a][b]['plcc']:.4f}" in printed and results["sets"][a]["splits"][0]["hash"][:16] in printed

    extractor = Extractor(inputs.open_encoder(SMALL), crop=32)
    sets = [iqa_sets.read_csv(root / "labels.csv") for root in (data, other)]
    X = [
        inputs.open_source(s, root).extract(extractor, progress=False).values
        for s, root in zip(sets, (data, other), strict=True)
    ]
    model = ridge.fit_path(X[0], sets[0].quality(), [matrix[a][b]["alpha"]])
    expected = metrics.summary(model.predict(X[1])[:, 0], sets[1].quality())
    for key in ("srcc", "plcc", "rmse"):
        assert_allclose(matrix[a][b][key], expected[key], rtol=1e-3)

    found = Reader((tmp_path / "page/index.html").read_text())
    assert f"{matrix[a][b]['srcc']:.3f}" in found.words and found.addresses == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cross", "CSV"], "at least two data sets, got 1"),
        (["--cross", "CSV", "CSV"], "every data set once, got .* twice"),
        (["--cross", "kadid", "CSV"], r"--cross must be SET=DIR with SET one of live, .* got 'kadid'"),
        (["--cross", "live", "CSV"], "live needs its folder, live=DIR: jp2k/"),
        (["--cross", "live=none", "CSV"], "root of LIVE must be a folder holding"),
        (["--cross", "CSV", "CSV", "--root", "x"], "has labels of its own: leave out --root"),
        (["--cross", "CSV", "CSV", "--score-column", "x"], "--score-column belongs to --labels"),
    ],
)
def test_cross_errors(data, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr(inputs, "extract", None)  # must not be reached
    words = [str(data / "labels.csv") if w == "CSV" else w for w in words]
    assert probe.main(["--checkpoint", SMALL, *words, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_printed_matrix_marks_what_is_undefined():
    cell = {"srcc": None, "plcc": 0.5}
    text = cross.matrix_table("e", {"a": {"a": cell, "b": cell}, "b": {"a": cell, "b": cell}})
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["SRCC", "a", "b"], ["a", "-*", "-"], ["b", "-", "-*"],
        ["PLCC", "a", "b"], ["a", "0.5000*", "0.5000"], ["b", "0.5000", "0.5000*"],
    ]  # fmt: skip
