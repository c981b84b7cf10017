"""Scores on Ray: the rows of ``shamisa score``, whatever is killed meanwhile, and errors before work starts."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fitted import SMALL, fitted
from PIL import Image

from shamisa import ray as on_ray
from shamisa import remote, score

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("regressor"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """57 photographs of several sizes, three broken files, and a name that is not UTF-8."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(60):
        path = root / f"{i:03d}.png"
        if i % 20 == 7:
            path.write_bytes(b"broken")
        else:
            Image.fromarray(rng.integers(0, 256, (40 + i % 7, 50 + i % 5, 3), dtype=np.uint8)).save(path)
    os.rename(root / "005.png", os.path.join(os.fsencode(root), b"005\xff.png"))
    return root


@pytest.fixture(scope="module")
def wanted(folder, regressor, tmp_path_factory):
    """Rows of the plain command, sorted."""
    out = tmp_path_factory.mktemp("plain") / "s.csv"
    assert score.main([str(folder), *options(regressor), "--out", str(out)]) == 1
    rows = score.read_rows(out)
    assert len(rows) == 60 and sum(r[3] is not None for r in rows) == 3
    return sorted(rows)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for all tests in this process."""
    on_ray.start(None)
    yield
    ray.shutdown()


def options(regressor):
    return ["--checkpoint", SMALL, "--regressor", str(regressor), "--device", "cpu", "--quiet"]


def parts_of(out):
    """Rows of all parts."""
    rows = []
    for path in sorted(Path(out).glob("part-*")):
        if path.suffix == ".parquet":
            rows += [tuple(row[c] for c in score.COLUMNS) for row in pa.parquet.read_table(path).to_pylist()]
        else:
            rows += score.read_rows(path)
    return rows


@pytest.mark.parametrize("decode_cpus", [1, 0.5])
def test_rows_are_those_of_the_command(folder, regressor, wanted, decode_cpus):
    """Decoded in the actors (equal numbers of CPUs) and in tasks of their own."""
    table = on_ray.score(folder, SMALL, regressor, device="cpu", decode_cpus=decode_cpus)
    rows = [tuple(row[c] for c in score.COLUMNS) for row in table.take_all()]
    assert sorted(rows) == wanted  # every bit of the scores


def test_a_dataset_keeps_its_columns(folder, regressor, wanted):
    paths = [row[0] for row in wanted[10:14]]
    data = ray.data.from_items([{"path": os.fsencode(p), "user": i} for i, p in enumerate(paths)])
    rows = on_ray.score(data, SMALL, regressor, device="cpu", actors=1).take_all()
    assert [(r["file"], r["score"]) for r in sorted(rows, key=lambda r: r["user"])] == [r[:2] for r in wanted[10:14]]


@pytest.mark.parametrize("kind", on_ray.FORMATS)
def test_parts_and_resume(folder, regressor, wanted, tmp_path, monkeypatch, capsys, kind):
    out = tmp_path / "parts"
    words = [str(folder), *options(regressor), "--out", str(out), "--ray", "--part", "25", "--format", kind]
    assert score.main(words) == 1
    assert "57 of 60 photographs scored; 3 could not be read" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["meta.json", *(f"part-00000{k}.{kind}" for k in range(3))]
    rows = parts_of(out)
    assert sorted(rows) == wanted and [r[0] for r in rows] == [r[0] for r in wanted]
    before = {p.name: p.read_bytes() for p in out.glob("part-*")}
    # what is there stays, what is missing comes back the same
    (out / f"part-000001.{kind}").unlink()
    seen = []
    real = on_ray.Parts.add
    monkeypatch.setattr(on_ray.Parts, "add", lambda self, part, row: (seen.append(part), real(self, part, row))[1])
    assert score.main([*words, "--resume"]) == 1
    assert seen == [1] * 25 and {p.name: p.read_bytes() for p in out.glob("part-*")} == before
    assert "in parts from before; 2 could not be read this time" in capsys.readouterr().out
    assert score.main([*words, "--resume"]) == 0 and len(seen) == 25


def test_parts_by_url(folder, regressor, wanted):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").store.clear()
    words = [str(folder), *options(regressor), "--out", "memory://parts", "--ray", "--part", "40", "--format", "csv"]
    assert score.main(words) == 1
    assert remote.find("memory://parts") == ["meta.json", "part-000000.csv", "part-000001.csv"]
    lines = remote.read_text("memory://parts/part-000000.csv").splitlines()
    assert len(list(csv.reader(lines))) == 41


# ---- killed ----------------------------------------------------------------------------------------------------------
def children(pid):
    """Ids of all processes below one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *children(int(entry.name))]
    return found


def begin(folder, regressor, out, *extra):
    """The command in a process of its own, with a cluster of its own."""
    words = [str(folder), *options(regressor), "--out", str(out), "--ray", "--part", "4", "--format", "jsonl", *extra]
    return subprocess.Popen([sys.executable, "-m", "shamisa.score", *words], start_new_session=True)


def wait_for_parts(process, out, count):
    deadline = time.monotonic() + 300
    while len(list(Path(out).glob("part-*"))) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_killed_worker_and_killed_driver(folder, regressor, wanted, tmp_path):
    many = tmp_path / "many.txt"  # 600 photographs: every file under ten names
    names = [f"{folder}/{'./' * i}{os.path.basename(r[0])}" for i in range(10) for r in wanted if "\\" not in r[0]]
    many.write_text("\n".join(names))
    out = tmp_path / "parts"
    process = begin(many, regressor, out)
    killed, kept = [], {}
    try:
        wait_for_parts(process, out, 2)
        for pid in children(process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::MapWorker"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        assert killed or process.poll() is not None
        for round_ in range(3):
            wait_for_parts(process, out, min(20, 5 + 5 * round_))
            left = children(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for pid in left:  # what Ray leaves when its driver is killed
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            now = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("part-*")}
            assert all(now[name] == content for name, content in kept.items())  # not written again
            kept = now
            process = begin(many, regressor, out, "--resume")
        assert process.wait(timeout=600) == 1
    finally:
        for pid in [process.pid, *children(process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()
    rows = parts_of(out)
    by_name = {os.path.basename(r[0]): r[1:] for r in wanted}
    assert [r[0] for r in rows] == names  # none lost, none twice, in the order of the list
    assert all(r[1:] == by_name[os.path.basename(r[0])] for r in rows)
    assert all((out / n).stat().st_mtime_ns == time_ for n, (time_, _) in kept.items())


# ---- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "extra, message",
    [
        (["--out", "begun", "--ray"], "begun exists: continue with --resume"),
        (["--out", "begun", "--ray", "--resume"], "was started with another encoder_hash"),
        (["--out", "other", "--ray", "--resume"], "must hold parts and their meta.json"),
        (["--out", "file", "--ray"], "must be a folder for the parts, got the file"),
        (["--out", "new", "--ray", "--part", "0"], "--part must be"),
        (["--out", "new", "--ray", "--regressor", "none"], "cannot read the regressor"),
    ],
)
def test_bad_input(folder, regressor, tmp_path, monkeypatch, capsys, extra, message):
    monkeypatch.chdir(tmp_path)
    for name in ("begun", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-000000.parquet").write_bytes(b"")
    (tmp_path / "begun" / "meta.json").write_text(json.dumps({"encoder_hash": "another"}))
    (tmp_path / "file").write_text("")
    assert score.main([str(folder), *options(regressor), *extra]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("new/part-*"))


def test_no_cluster_and_no_room(folder, regressor, monkeypatch, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=f"no Ray cluster answers at {address}: Connection refused"):
        on_ray.start(address)
    with pytest.raises(RuntimeError, match="must be auto or HOST:PORT, got 'nonsense'"):
        on_ray.start("nonsense")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the cluster must have 1 GPUs, it has 0"):
        on_ray.score(folder, SMALL, regressor, num_gpus=1)
    with pytest.raises(ValueError, match="the cluster must have 10001 CPUs|num_cpus must be"):
        on_ray.score(folder, SMALL, regressor, num_cpus=10000)
    with pytest.raises(ValueError, match="data must have the column path, got id"):
        on_ray.score(ray.data.range(3), SMALL, regressor)


def test_missing_package(folder, regressor, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    words = [str(folder), *options(regressor), "--out", str(tmp_path / "parts"), "--ray"]
    assert score.main(words) == 2 and "pip install 'shamisa[ray]'" in capsys.readouterr().err
