"""`shamisa bench`: its rows, that the reference does the same work, its JSON, what it says without kernels, bad input."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from shamisa import DISTORTIONS, bench, ops
from shamisa.measuring import profiling, workloads

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not ops.has_kernel("distort", "cpu"), reason="no compiled kernels")


@pytest.fixture
def tiny(monkeypatch):
    """Small work; the rounds of a row are the fewest."""
    monkeypatch.setattr(workloads, "SIZE", 64)
    monkeypatch.setattr(workloads, "PLANS", 1)
    monkeypatch.setattr(workloads, "F", 32)
    monkeypatch.setattr(workloads, "E", 16)
    return ["--seconds", "0.001", "--samples", "1", "--threads", "1", "--device", "cpu"]


def test_rows_and_json(tiny, tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert bench.main([*tiny, "--out", str(out), "--distortions", "--step"]) == 0
    found = json.loads(out.read_text())
    assert set(found) == {"format", "machine", "device", "rows"} and found["device"] == "cpu"
    assert set(found["machine"]["backends"]) == set(ops.TABLE)
    who = ["native", "reference"] if ops.has_kernel("distort", "cpu") else ["reference"]
    rows = [(r["section"], r["subject"], r["backend"]) for r in found["rows"]]
    wanted = [("engine", ""), ("objective", "N = 126"), *(("distortions", name) for name in DISTORTIONS)]
    assert rows == [*((*w, b) for w in wanted for b in who), ("step", "preset demo, N = 126", who[0])]
    for row in found["rows"]:
        assert row["ms"] > 0 and row["rounds"] >= 1 and row["setting"] == "1 thread" and row["threads"] == 1
        assert (row["images"] is None) == (row["section"] == "objective") == ("images_per_s" not in row)
    engine = {r["backend"]: (r["images"], r["whole"]) for r in found["rows"] if r["section"] == "engine"}
    assert engine["reference"] == (40, 240) and engine.get("native", (240, 240)) == (240, 240)
    step = found["rows"][-1]
    assert set(step["split_ms"]) == set(profiling.PARTS) - {"data"}
    said = capsys.readouterr().out
    assert "on 40 of the 240 images" in said and f"wrote {out}" in said
    assert said.count("\n  ") >= len(found["rows"]) and all(name in said for name in DISTORTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


@needs_kernels
def test_rows_of_a_work_do_the_same(tiny, monkeypatch):
    """The reference's results are those of the kernels, and it is the reference that makes them."""
    calls, reference = [], ops.TABLE["distort"]
    monkeypatch.setitem(ops.TABLE, "distort", lambda *a: calls.append(1) or reference(*a))
    cases = workloads.make_cases(CPU, [1, 2], 1, True)
    assert [c.section for c in cases] == ["engine"] * 2 + ["objective"] * 4
    for native, other in zip(cases[::2], cases[1::2], strict=True):
        assert (native.backend, other.backend) == ("native", "reference")
        assert (native.section, native.subject, native.setting) == (other.section, other.subject, other.setting)
        wanted = native.make()()
        assert not calls
        with ops.backend_context("reference"):
            got = other.make()()
        assert bool(calls) == (native.section == "engine")
        calls.clear()
        if native.section == "engine":
            assert native.images == native.whole == wanted.numel() // (3 * 64 * 64)
            assert other.images == got.numel() // (3 * 64 * 64)
            assert_close(got, wanted[:, :1], atol=0.05, rtol=0)
        else:
            assert_close(got, wanted, atol=1e-4, rtol=1e-3)


def test_settings(tiny, monkeypatch):
    monkeypatch.setattr(workloads, "all_threads", lambda: 3)
    names = lambda *a: list(dict.fromkeys(c.setting for c in workloads.make_cases(CPU, *a)))  # noqa: E731
    assert names([1], None, True) == ["1 thread", "3 threads"] and names([1], 2, True) == ["2 threads"]
    large = [c for c in workloads.make_cases(CPU, [16, 17], 1, True) if c.backend == "reference"]
    assert [c.subject for c in large] == ["", "N = 2016"]  # nothing larger by the reference


def test_rounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(profiling, "timer", lambda device: lambda: now[0])

    def call_of(seconds):
        def call():
            now[0] += seconds
            count.append(1)

        return call

    count: list = []
    taken = profiling.time_rounds(call_of(0.5), "cpu", seconds=2.0, least=1)
    assert taken == [0.5] * 4 and len(count) == 5  # one warms up
    assert len(profiling.time_rounds(call_of(5.0), "cpu", seconds=2.0, least=2)) == 2
    count.clear()
    taken = profiling.time_rounds(call_of(1e-4), "cpu", seconds=9.0, most=7)
    assert_close(torch.tensor(taken), torch.full((7,), 1e-4))
    assert len(count) >= 2 + 7 * 10  # a round takes a millisecond


@pytest.mark.parametrize(
    "words, message",
    [
        ("--samples 1 0", "--samples must lie in 1..4096, got 1 0"),
        ("--threads 0", "--threads must lie in 1..1024, got 0"),
        ("--seconds nan", "--seconds must lie in (0, 600], got nan"),
        ("--preset demo", "give --step too"),
        ("--step --preset nothing", "preset must be one of demo, paper"),
        ("--device gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--device cuda:99", "device cuda:99 is not there"),
        (
            "--out missing/bench.json",
            "--out must lie in a folder that can be written, got missing/bench.json: No such file",
        ),
        ("--out .", "--out must be a file, got the folder ."),
    ],
)
def test_bad_input(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "make_cases", lambda *_: pytest.fail("bad input is told before any work"))
    assert bench.main(words.split()) == 2
    told = capsys.readouterr()
    assert told.err.startswith("shamisa bench: ") and message in told.err and told.err.count("\n") == 1
    assert not told.out and not list(tmp_path.iterdir())


def test_without_kernels(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHAMISA_NATIVE", "0")
    for module in (bench, workloads):
        monkeypatch.setattr(module, "has_kernel", lambda op, device: False)
    assert bench.main(tiny) == 0
    said = capsys.readouterr().out
    assert f"compiled kernels for cpu: 0 of {len(ops.TABLE)} ops, the PyTorch reference runs for all" in said
    assert "unset SHAMISA_NATIVE" in said and "reference, 1 thread" in said and "native, " not in said
    assert bench.main([*tiny, "--no-reference"]) == 2
    assert "--no-reference leaves nothing: no kernels for cpu" in capsys.readouterr().err


@needs_kernels
def test_some_kernels_missing(monkeypatch):
    monkeypatch.setattr(bench, "has_kernel", lambda op, device: op != "variance")
    said = bench.describe(CPU, bench.machine())
    total = len(ops.TABLE)
    assert f"{total - 1} of {total} ops, the PyTorch reference runs for the others" in said and "(variance)" in said
