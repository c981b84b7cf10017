"""The report of the benchmarks: tables, the README between its markers, comparison of two results."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

FILE = Path(__file__).parents[1] / "benchmarks" / "report.py"
spec = importlib.util.spec_from_file_location("benchmarks_report", FILE)
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)


def row(section, subject, who, median, iqr=0.0, device="cpu", **info):
    info = {"section": section, "subject": subject, "row": who, "device": device, "threads": 1, **info}
    stats = dict.fromkeys(("min", "max", "mean", "median"), median) | {"iqr": iqr, "rounds": 5, "iterations": 1}
    name = f"test[{device}-{subject}-{who}]"
    return {"name": name, "group": f"{section}: {subject}, {device}", "stats": stats, "info": info}


@pytest.fixture
def result():
    rows = [
        row(
            *("distortions", "jpeg", "native", 0.004, 0.0001),
            **{"ms_per_image": 1.0, "max_error": 0.0, "images": 4, "extra_mb": 2.4, "share_of_copy": 0.25},
        ),
        row("distortions", "jpeg", "reference", 0.04, 0.001, ms_per_image=10.0),
        row("distortions", "jpeg", "Pillow", 0.002, 0.0001, ms_per_image=0.5, max_error=0.0123),
        row(
            "distortions",
            "jpeg",
            "kornia",
            0.002,
            0.0001,
            ms_per_image=0.25,
            kin=True,
            max_error=0.3,
            error_of="moments",
        ),
        row("loss", "N = 252", "native, all threads", 0.3, threads=2, nodes=252),
        row("relations", "merge", "reference", 0.25),
        row("loss", "N = 252", "native", 0.5, nodes=252, extra_mb=12.0, max_error=1e-6),
        row("loss", "N = 252", "reference", 0.25, nodes=252, extra_mb=400.0),
        row("loss", "N = 252", "compiled", 1.0, nodes=252, max_error=0.02),
    ]
    rows[6]["stats"]["iterations"] = 2
    machine = {
        "name": "cpu-made-up-2core",
        "cpu": "Made Up",
        "cores": 2,
        "memory_gb": 4.0,
        "gpu": None,
        "cuda": None,
        "instructions": "AVX2",
        "versions": {"shamisa": "0.1.0", "torch": "2.13.0", "commit": "abc1234"},
    }
    ceilings = {"cpu": {"copy_gb_s": 20.0, "matmul_float32_gflop_s": 80.0}}
    return {"format": 1, "machine": machine, "load_at_end": 0.5, "ceilings": ceilings, "benchmarks": rows}


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [c.strip() for c in line.strip("|").split("|")]


def test_tables_hold_every_row(result):
    text = report.render(result)
    assert cells(text, "jpeg") == [
        *(
            "jpeg",
            "1",
            "10",
            "10x",
            "0",
            "25.0%",
            "0.6 / -",
            "5",
            "Pillow 0.5 (**0.5x**; 0.0123), ~kornia 0.25 (**0.25x**; ≈0.3)",
        )
    ]
    assert cells(text, "merge")[1:3] == ["not compiled", "250"]
    assert cells(text, "N = 252") == [
        *("N = 252", "500", "250", "**0.5x**", "1,000", "2x", "300", "1.0e-06 / 0.02 / -", "", "12 / 400 / -", "5 x 2")
    ]
    for fact in ("Made Up, 2 cores", "torch 2.13.0", "commit abc1234", "copy 20 GB/s", "Load average at the end: 0.5"):
        assert fact in text


def test_growth_is_drawn(result, tmp_path):
    result["benchmarks"].append(row("loss", "N = 126", "native", 0.2, nodes=126, extra_mb=6.0))
    file = tmp_path / "made-up.json"
    file.write_text(json.dumps(result))
    assert report.main([str(file), "--growth"]) == 0
    with Image.open(tmp_path / "made-up-cpu-growth.png") as picture:
        assert picture.width > picture.height > 100


def test_losses_are_named(result):
    lines = report.losses(result)
    assert lines == [
        "jpeg: Pillow takes 0.5 ms, ours 1 ms on cpu",
        "jpeg: kornia (another definition) takes 0.25 ms, ours 1 ms on cpu",
        "N = 252: reference takes 250 ms, ours 500 ms on cpu",
    ]
    assert all(f"- {line}" in report.render(result) for line in lines)
    result["benchmarks"] = result["benchmarks"][:2]
    assert report.losses(result) == []
    assert "slower than" not in report.render(result)


def test_headline(result):
    text = report.headline(result)
    assert cells(text, "one JPEG round trip of a 224 px image")[1:] == ["1", "Pillow", "0.5", "**0.5x**"]
    assert cells(text, "objective of 252 images, with gradients")[1:] == [
        "500",
        "its PyTorch reference",
        "250",
        "**0.5x**",
    ]
    assert "slower one in 3 of 5 comparisons" in text


def test_readme_is_changed_between_the_markers_only(result, tmp_path):
    readme, path = tmp_path / "README.md", tmp_path / "result.json"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    path.write_text(json.dumps(result))
    assert report.main([str(path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text == f"before\n{report.START}\n{report.headline(result)}\n{report.END}\nafter\n"
    assert report.main([str(path), "--readme", str(readme)]) == 0
    assert readme.read_text() == text


@pytest.mark.parametrize(
    "text", ["nothing", f"{report.START}", f"{report.END}{report.START}", f"{report.START * 2}{report.END}"]
)
def test_readme_without_markers_is_left_alone(result, tmp_path, text, capsys):
    readme, path = tmp_path / "README.md", tmp_path / "result.json"
    readme.write_text(text)
    path.write_text(json.dumps(result))
    assert report.main([str(path), "--readme", str(readme)]) == 2
    assert readme.read_text() == text
    assert "once each" in capsys.readouterr().err


def test_keep_writes_the_same_content(result, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    path = report.keep(result)
    assert path == tmp_path / "0.1.0" / "cpu-made-up-2core.json"
    assert report.load(path) == result
    (tmp_path / "0.0.9").mkdir()
    assert report.committed() == [path]


def test_compare_lists_what_is_slower_beyond_noise(result):
    new = copy.deepcopy(result)
    rows = new["benchmarks"]
    rows[0]["stats"]["median"] *= 1.5  # beyond 5 % and beyond its noise of 5 %
    rows[1]["stats"]["median"] *= 1.04  # below 5 %
    rows[2]["stats"].update(median=0.0025, iqr=0.0009)  # 25 %, but noise is 50 %
    rows[5]["stats"]["median"] *= 3  # the worst
    rows[6]["stats"]["median"] /= 2  # faster
    slower, remarks = report.compare(result, new)
    assert [line.split()[0] for line in slower] == ["3.00x", "1.50x"]
    assert "test[cpu-jpeg-native]" in slower[1] and "noise 5.0%" in slower[1]
    assert remarks == []
    assert report.compare(result, result) == ([], [])


def test_compare_remarks_on_what_cannot_be_compared(result, tmp_path, capsys):
    new = copy.deepcopy(result)
    new["machine"]["name"] = "gpu-other"
    new["benchmarks"][0]["name"] = "renamed"
    slower, remarks = report.compare(result, new)
    assert slower == []
    assert remarks == [
        "different machines: cpu-made-up-2core and gpu-other",
        "only in the new result: renamed",
        "only in the old result: test[cpu-jpeg-native]",
    ]
    for name, content in (("old.json", result), ("new.json", new)):
        (tmp_path / name).write_text(json.dumps(content))
    paths = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    assert report.main(["--compare", *paths]) == 0
    assert "no row became slower" in capsys.readouterr().out
    new["benchmarks"][1]["stats"]["median"] = 9.0
    (tmp_path / "new.json").write_text(json.dumps(new))
    assert report.main(["--compare", *paths]) == 1


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"format": 2}', '{"benchmarks": []}'])
def test_other_files_are_refused(tmp_path, text, capsys):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert report.main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_committed_results_name_no_paths_and_fill_the_readme():
    """The README's table is that of the committed results, to the letter; the file runs as a script."""
    paths = report.committed()
    if not paths:
        pytest.skip("no committed results")
    for path in paths:
        assert path.stat().st_size < 300_000
        text = path.read_text()
        assert not any(word in text for word in ('"/', "hostname", '"node"'))
        for b in report.load(path)["benchmarks"]:
            info = b["info"]
            assert "max_error" in info or info["no_error"], b["name"]
            assert "share_of_copy" in info or "share_of_matmul" in info, b["name"]
    readme = (FILE.parents[1] / "README.md").read_text()
    headline = "\n\n".join(report.headline(report.load(path)) for path in paths)
    assert readme.partition(report.START)[2].partition(report.END)[0].strip() == headline
    done = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "\n\n".join(report.render(report.load(path)) for path in paths)
