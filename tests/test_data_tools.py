from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from test_decode import HOSTILE, gradient
from test_photos import write_folder
from torch.testing import assert_close

import shamisa
from shamisa import cli
from shamisa.data import PhotoError, PhotoFolder, PhotoList, PhotoShards, References, open_photos, read_photo
from shamisa.data import decode as data_decode
from shamisa.data.__main__ import main
from shamisa.data.pack import PackError, pack
from shamisa.data.verify import summarize, survey

# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch):
    """Reads of files whose content begins with HANG wait until the test ends, as those of a dead network mount."""
    end, pread = threading.Event(), os.pread

    def slow(file, count, offset):
        data = pread(file, count, offset)
        if data.startswith(b"HANG"):
            end.wait(30)
        return data

    monkeypatch.setattr(data_decode.os, "pread", slow)
    yield
    end.set()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_read_that_hangs_is_given_up(tmp_path, hanging, workers):
    write_folder(tmp_path, count=5)
    (tmp_path / "hangs.png").write_bytes(b"HANG" * 99)
    source = PhotoFolder(tmp_path, max_seconds=0.5)
    start = time.perf_counter()
    refs = References(source, batch_size=2, seed=0, crop=16)
    steps = [step for step, *_ in refs.loader(0, 4, workers=workers, context="fork" if workers else None)]
    assert steps == [0, 1, 2, 3] and refs.skipped == {"hangs.png": "took longer than max_seconds = 0.5"}
    assert time.perf_counter() - start < 20
    with pytest.raises(PhotoError, match="hangs.png: took longer than max_seconds = 0.5"):
        source.encoded([source.name(i) for i in range(6)].index("hangs.png"))


def test_a_helper_answers_as_the_function_does():
    within = data_decode.within
    assert [within(5, "x", lambda i=i: i * i) for i in range(3)] == [0, 1, 4]
    with pytest.raises(KeyError, match="missing"):
        within(5, "x", lambda: {}["missing"])
    assert within(0, "x", threading.get_ident) == threading.get_ident()  # no limit, no thread
    first = within(5, "x", threading.get_ident)
    assert first != threading.get_ident() and within(5, "x", threading.get_ident) == first  # one thread for all
    with pytest.raises(PhotoError, match="x: took longer than max_seconds = 0.05"):
        within(0.05, "x", lambda: time.sleep(0.4))
    assert within(5, "x", lambda: 7) == 7  # the late answer belongs to nobody
    others = {within(5, "x", threading.get_ident)}
    thread = threading.Thread(target=lambda: others.add(within(5, "x", threading.get_ident)))
    thread.start()
    thread.join()
    assert len(others) == 2
    before = threading.active_count()
    for _ in range(5):  # a thread that ends takes its helper with it
        thread = threading.Thread(target=lambda: within(5, "x", lambda: None))
        thread.start()
        thread.join()
    deadline = time.perf_counter() + 5
    while threading.active_count() > before and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_size_and_kind_are_checked_before_reading(tmp_path, monkeypatch):
    (tmp_path / "large.jpg").touch()
    os.truncate(tmp_path / "large.jpg", 1 << 40)  # a terabyte of nothing
    with pytest.raises(PhotoError, match=r"has 1099511627776 bytes, more than max_bytes = 1073741824"):
        read_photo(tmp_path / "large.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        server.bind("s.jpg")
        os.mkfifo("p.jpg")
        for name in ("s.jpg", "p.jpg"):
            with pytest.raises(PhotoError, match=f"{name}: is not a file"):
                read_photo(tmp_path / name)


@pytest.mark.parametrize("field", ["max_pixels", "min_side", "max_bytes", "max_seconds"])
def test_wrong_limits(tmp_path, field):
    write_folder(tmp_path, count=1)
    with pytest.raises(ValueError, match=f"{field} must be"):
        PhotoFolder(tmp_path, **{field: -1})


# ---- verify ----------------------------------------------------------------------------------------------------------
def hostile(root) -> set[str]:
    """A folder with 28 good photographs, one of them twice, and 12 bad files; -> names of these."""
    write_folder(root, count=27)
    shutil.copy(root / "photo_0.png", root / "copy.png")
    for name in HOSTILE:
        HOSTILE[name][0](root / name)
    (root / "notes.txt").write_text("text")
    return set(HOSTILE) - {"folder.jpg"} | {"other_loop.jpg"}


def test_place_of_the_report_is_looked_at_first(tmp_path, capsys):
    command = ["data", "verify", str(tmp_path / "nothing"), "--json", str(tmp_path / "none" / "report.json")]
    assert cli.main(command) == 2
    assert "--json must be a file in an existing folder, got" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_verify_finds_what_is_bad(tmp_path, capsys, workers):
    bad = hostile(tmp_path / "photos")
    command = ["verify", str(tmp_path / "photos"), "--json", str(tmp_path / "report.json"), "--workers", str(workers)]
    assert cli.main(["data", *command, "--max-pixels", "5000000", "--quiet"]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["unreadable"]) == bad and len(bad) == 12
    assert report["photographs"] == 40 and report["formats"] == {"PNG": 28} and report["modes"] == {"RGB": 28}
    assert report["duplicates"] == [["copy.png", "photo_0.png"]] and report["others"] == {".txt": 1}
    assert report["shorter_side"] == {"least": 64, "median": 76.5, "most": 90}
    text = capsys.readouterr().out
    assert "unreadable: 12\n" in text and "text.jpg: is not an image" in text and "copy.png = photo_0.png" in text
    for name in bad:
        (tmp_path / "photos" / name).unlink()
    assert main(["verify", str(tmp_path / "photos"), "--quiet"]) == 0  # duplicates are no fault


def test_verify_bad_input(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "absent")]) == 2
    assert "folder must exist" in capsys.readouterr().err
    write_folder(tmp_path / "photos", count=1)
    assert main(["verify", str(tmp_path / "photos"), "--workers", "-1"]) == 2
    assert main(["verify", str(tmp_path / "photos"), "--max-seconds", "-1"]) == 2
    assert "max_seconds must be a number" in capsys.readouterr().err


# ---- pack ------------------------------------------------------------------------------------------------------------
def contents(out) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def test_pack_keeps_bytes_names_and_order(tmp_path, capsys):
    write_folder(tmp_path / "photos", count=9)
    Image.fromarray(gradient()).save(tmp_path / "photos" / "sub" / ("ü" * 60 + ".jpg"))
    source = PhotoFolder(tmp_path / "photos")
    for out in ("one", "two"):
        assert (
            main(["pack", str(tmp_path / "photos"), "--out", str(tmp_path / out), "--shard-count", "3", "--quiet"]) == 0
        )
        time.sleep(0.01)
        os.utime(tmp_path / "photos" / "photo_0.png")  # times do not count
    assert "10 photographs in 3 shards" in capsys.readouterr().out
    files = contents(tmp_path / "one")
    assert files == contents(tmp_path / "two")
    assert list(files) == ["manifest.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    manifest = json.loads(files["manifest.json"])
    assert [s["photographs"] for s in manifest["shards"]] == [3, 3, 4] and manifest["skipped"] == {}
    assert [s["bytes"] for s in manifest["shards"]] == [len(files[s["name"]]) for s in manifest["shards"]]
    with tarfile.open(fileobj=io.BytesIO(files["shard-000000.tar"])) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
    shards = open_photos(tmp_path / "one")
    assert isinstance(shards, PhotoShards) and len(shards) == 10
    for i in range(10):
        assert shards.name(i) == source.name(i) and shards.encoded(i) == source.encoded(i)
    expected, got = (References(s, batch_size=3, seed=1, crop=32) for s in (source, shards))
    for step in (0, 5):
        assert_close(got.batch(step)[0], expected.batch(step)[0], rtol=0, atol=0)


def test_shards_are_no_larger_than_asked(tmp_path):
    write_folder(tmp_path / "photos", count=12)
    source = PhotoFolder(tmp_path / "photos")
    for limit in (1, 20480, 30720, 65536, 1 << 20):
        out = tmp_path / f"out{limit}"
        shards = pack(source, out, shard_size=limit)["shards"]
        assert sum(s["photographs"] for s in shards) == 12
        assert all(s["bytes"] <= limit or s["photographs"] == 1 for s in shards)
        assert len(PhotoShards(out)) == 12
    assert len(shards) == 1  # all fit into the last


def test_pack_and_bad_photographs(tmp_path, capsys):
    bad = hostile(tmp_path / "photos")
    command = ["pack", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--max-pixels", "5000000", "--quiet"]
    assert main(command) == 1
    text = capsys.readouterr().err
    assert "12 photographs cannot be packed" in text and "text.jpg: is not an image" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]  # nothing was left
    assert main([*command, "--skip-bad"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["skipped"]) == bad and manifest["photographs"] == 28 == len(open_photos(tmp_path / "out"))
    assert main([*command, "--skip-bad"]) == 2
    assert "out must be a new or empty folder" in capsys.readouterr().err
    for name in os.listdir(tmp_path / "photos"):
        if name.startswith(("photo_", "copy", "sub")):
            path = tmp_path / "photos" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PackError, match="none of the 12 photographs can be read"):
        pack(PhotoFolder(tmp_path / "photos", max_pixels=5_000_000), tmp_path / "none", skip_bad=True)


def test_pack_starts_again_after_a_crash(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", count=6)
    source = PhotoFolder(tmp_path / "photos")
    expected = pack(source, tmp_path / "good", shard_count=3)
    read, calls = PhotoFolder.encoded, []

    def crash(self, i):
        calls.append(i)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, i)

    monkeypatch.setattr(PhotoFolder, "encoded", crash)
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", shard_count=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "photos"]  # nothing was left
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out.partial").mkdir()  # as a killed process leaves it
    for name in ("shard-000000.tar", "shard-000001.tar", ".manifest.json.123"):
        (tmp_path / "out.partial" / name).write_bytes(b"half")
    assert pack(source, tmp_path / "out", shard_count=3) == expected
    assert contents(tmp_path / "out") == contents(tmp_path / "good") and not (tmp_path / "out.partial").exists()
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").touch()
    with pytest.raises(ValueError, match="nothing but shards of an unfinished run, found 'mine.txt'"):
        pack(source, tmp_path / "new")
    assert (tmp_path / "new.partial" / "mine.txt").exists()


def test_pack_notices_changes(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", count=3)
    monkeypatch.setattr(PhotoFolder, "encoded", lambda self, i: b"other bytes")
    with pytest.raises(PackError, match="photo_0.png changed while it was packed"):
        pack(PhotoFolder(tmp_path / "photos"), tmp_path / "out")


def test_pack_wrong_arguments(tmp_path):
    write_folder(tmp_path / "photos", count=3)
    source = PhotoFolder(tmp_path / "photos")
    for options, message in (
        ({"shard_size": 5, "shard_count": 2}, "cannot be combined"),
        ({"shard_size": 0}, "shard_size must be an integer of at least 1, got 0"),
        ({"shard_count": 4}, "shard_count must be at most the 3 photographs, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(source, tmp_path / "out", **options)
    with pytest.raises(SystemExit):
        main(["pack", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--shard-size", "1X"])
    assert not (tmp_path / "out").exists()


def test_what_can_be_known_is_told_before_photographs_are_read(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", count=3)
    source = PhotoFolder(tmp_path / "photos")
    monkeypatch.setattr(PhotoFolder, "_read", None)  # must not be reached
    with pytest.raises(ValueError, match="shard_count must be at most the 3 photographs, got 4"):
        pack(source, tmp_path / "out", shard_count=4)
    with pytest.raises(ValueError, match="out must be a folder that can be made, got '.*photo_0.png/out': Not a dir"):
        pack(source, tmp_path / "photos" / "photo_0.png" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_pack_a_list(tmp_path):
    write_folder(tmp_path / "a" / "photos", count=3)
    (tmp_path / "b").mkdir()
    listed = tmp_path / "b" / "list.txt"
    listed.write_text(f"../a/photos/photo_2.png\n{tmp_path}/a/photos/sub/photo_1.png\n")
    pack(PhotoList(listed), tmp_path / "out")
    assert [open_photos(tmp_path / "out").name(i) for i in range(2)] == ["photo_2.png", "sub/photo_1.png"]
    listed.write_text("../a/photos/photo_2.png\n" * 2)
    with pytest.raises(ValueError, match="names must differ, got 'photo_2.png' twice"):
        pack(PhotoList(listed), tmp_path / "twice")


def test_shards_are_compared_with_their_manifest(tmp_path):
    write_folder(tmp_path / "photos", count=8)
    pack(PhotoFolder(tmp_path / "photos"), tmp_path / "out", shard_count=4)
    first, second, third, _ = sorted((tmp_path / "out").glob("*.tar"))

    def faults() -> dict[str, str]:
        source = PhotoShards(tmp_path / "out")
        return summarize(source, list(survey(source)))["manifest"]

    assert faults() == {}
    data = bytearray(first.read_bytes())
    data[700] ^= 1
    first.write_bytes(data)
    second.unlink()
    third.rename(tmp_path / "out" / "new.tar")
    found = faults()
    assert list(found) == [first.name, second.name, third.name, "new.tar"]
    assert "SHA-256" in found[first.name] and found[second.name] == "is missing"
    assert found["new.tar"] == "is not in the manifest"
    (tmp_path / "out" / "manifest.json").write_text("{}")
    assert "is not a manifest" in next(iter(faults().values()))
    assert main(["verify", str(tmp_path / "out"), "--quiet"]) == 1


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_folder(tmp_path / "photos", count=7)
    source = PhotoFolder(tmp_path / "photos")
    pack(source, tmp_path / "out", shard_count=2)
    pattern = f"{tmp_path}/out/shard-{{000000..000001}}.tar"
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [f"{s['__key__']}.png" for s in samples] == [source.name(i) for i in range(7)]
    assert [s["png"] for s in samples] == [source.encoded(i) for i in range(7)]
    assert len(open_photos(pattern)) == 7


def test_the_module_is_a_command(tmp_path):
    write_folder(tmp_path / "photos", count=1)
    command = [sys.executable, "-m", "shamisa.data", "verify", str(tmp_path / "photos")]
    path = os.pathsep.join([str(Path(shamisa.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stdout.startswith("1 photographs, "), done.stderr
