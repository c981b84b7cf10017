"""Files by URL: the same rows, labels, crops and errors as from the disk; what fails for a moment is tried again."""

import json
import shutil
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fitted import SMALL, fitted
from PIL import Image

from shamisa import remote, score
from shamisa.data.opening import open_photos
from shamisa.data.photos import PhotoError, read_photo
from shamisa.data.verify import check_manifests, survey
from shamisa.datasets.labels import LabelError, find_files, read_csv
from shamisa.files import hash_file
from shamisa.networks.checkpoints import RunError, load_encoder
from shamisa.training.config import Config
from shamisa.training.runs import Run
from shamisa.training.trainer import Trainer

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("regressor"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five photographs, one of them in a folder below; a broken and an empty file; two that are no photographs."""
    root = tmp_path_factory.mktemp("photos")
    (root / "below" / ".hidden").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(["a.png", "b.jpg", "below/c.png", 'd, "e".png', "f.png"]):
        Image.fromarray(rng.integers(0, 256, (40 + 9 * i, 70 - 6 * i, 3), dtype=np.uint8)).save(root / name)
    (root / "broken.png").write_bytes(b"no picture")
    (root / "empty.png").write_bytes(b"")
    (root / "below" / ".hidden" / "a.png").write_bytes(b"left out")
    (root / "notes.md").write_text("not listed")
    return root


@pytest.fixture(autouse=True)
def memory():
    """The memory file system, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def put(folder, url):
    """A copy of a folder under a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            remote.write(remote.join(url, path.relative_to(folder).as_posix()), path.read_bytes())
    return url


def zipped(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"photos/{path.relative_to(folder).as_posix()}")
    return f"zip://photos::{file}"


def call(regressor, out, *paths, extra=(), checkpoint=SMALL):
    words = [*map(str, paths), "--checkpoint", str(checkpoint), "--regressor", str(regressor), "--out", str(out)]
    return score.main([*words, "--device", "cpu", "--quiet", *extra])


def rows_of(out, root):
    """Rows of a table with names relative to the root."""
    return [
        (name.partition("::")[0].removeprefix(str(root).partition("::")[0]).lstrip("/"), *rest)
        for name, *rest in score.read_rows(out)
    ]


# ---- what is a URL ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "path, yes",
    [("s3://b/k", True), ("zip://a::s3://b", True), ("simplecache::s3://b", True), ("memory://a", True)]
    + [("/a/b", False), ("a:b", False), ("C://a", False), ("-", False), ("pipe:cat a", False), ("", False)],
)
def test_is_url(path, yes):
    assert remote.is_url(path) is yes


@pytest.mark.parametrize(
    "url, joined, above, base",
    [
        ("s3://b/k", "s3://b/k/x.png", "s3://b", "k"),
        ("s3://b/k/", "s3://b/k/x.png", "s3://b", "k"),
        ("zip://k::s3://b/z.zip", "zip://k/x.png::s3://b/z.zip", "zip://::s3://b/z.zip", "k"),
        ("zip://::z.zip", "zip://x.png::z.zip", "zip://::z.zip", ""),
    ],
)
def test_parts_of_a_url(url, joined, above, base):
    assert (remote.join(url, "x.png"), remote.parent(url), remote.base_name(url)) == (joined, above, base)


# ---- scoring ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["memory", "zip", "file"])
def test_rows_are_those_of_the_disk(folder, regressor, tmp_path, kind):
    url = {"memory": lambda: put(folder, "memory://all/photos"), "zip": lambda: zipped(folder, tmp_path / "p.zip")}
    url = url[kind]() if kind in url else f"file://{folder}"
    assert call(regressor, tmp_path / "disk.csv", folder) == 1
    assert call(regressor, tmp_path / "url.csv", url) == 1
    wanted = rows_of(tmp_path / "disk.csv", folder)
    assert rows_of(tmp_path / "url.csv", url) == wanted and len(wanted) == 7
    assert [r[3] is None for r in wanted].count(False) == 2
    assert {r[0] for r in wanted if r[3] and "is empty (0 bytes)" in r[3]} == {"empty.png"}


def test_files_patterns_and_lists(folder, regressor, tmp_path):
    url = put(folder, "memory://all/photos")
    remote.write("memory://all/list.txt", b"# chosen\nphotos/a.png\nmemory://all/photos/f.png\nphotos/none.png\n")
    (tmp_path / "local.txt").write_text(f"{folder / 'b.jpg'}\n{url}/below/c.png\n")
    given = [f"{url}/[ab].*", "memory://all/list.txt", tmp_path / "local.txt", f"{url}/**/c.png"]
    assert call(regressor, tmp_path / "s.csv", *given) == 1
    rows = score.read_rows(tmp_path / "s.csv")
    assert [r[0].removeprefix(url).removeprefix(str(folder)) for r in rows] == [
        *("/a.png", "/b.jpg", "/f.png"),
        *("/none.png", "/b.jpg", "/below/c.png"),
    ]
    assert rows[3][3] == "no such file, folder or bucket" and rows[1][1:] == rows[4][1:]


def test_checkpoint_regressor_and_table_by_url(folder, regressor, tmp_path, monkeypatch, capsys):
    remote.write("memory://model/regressor.safetensors", regressor.read_bytes())
    out, url = "memory://out/scores.csv", put(folder, "memory://photos")
    assert call("memory://model/regressor.safetensors", out, url) == 1
    local = tmp_path / "scores.csv"
    assert call(regressor, local, url) == 1
    assert remote.read(out) == local.read_bytes()
    assert json.loads(remote.read(out + score.META)) == json.loads((tmp_path / f"scores.csv{score.META}").read_text())
    # continued: the rows that the last copy has are not scored again
    lines = local.read_bytes().splitlines(keepends=True)
    remote.write(out, b"".join(lines[:4]) + lines[4][:5])
    seen = []
    real = score.Scorer.stream
    monkeypatch.setattr(score.Scorer, "stream", lambda self, paths: (seen.extend(paths), real(self, paths))[1])
    assert call(regressor, out, url, extra=["--resume"]) == 1
    assert remote.read(out) == local.read_bytes() and len(seen) == 4
    capsys.readouterr()
    assert call("memory://model/regressor.safetensors", out, url, extra=["--resume", "--view", "50"]) == 2
    assert f"shamisa score: {out} was started with another view: it cannot be resumed" in capsys.readouterr().err


def test_table_is_copied_while_it_grows(folder, regressor, monkeypatch):
    monkeypatch.setattr(score.Table, "UPLOAD", 0.0)
    sizes = []
    real = remote.write
    monkeypatch.setattr(remote, "write", lambda url, content: (sizes.append(len(content)), real(url, content))[1])
    call(regressor, "memory://out/s.csv", folder)
    assert len(set(sizes)) >= 4 and remote.read("memory://out/s.csv").count(b"\n") == 8


@pytest.mark.parametrize(
    "change, message",
    [
        ({"paths": "memory://none"}, "'memory://none': no such file, folder or bucket"),
        ({"paths": "memory://all/*.xyz"}, "a pattern that matches nothing"),
        ({"paths": "nothing://a/b"}, "Protocol not known: nothing"),
        (
            {"regressor": "memory://none.safetensors"},
            "cannot read the regressor memory://none.safetensors: no such file",
        ),
        ({"checkpoint": "memory://none"}, "checkpoint must be a run folder"),
        ({"out": "memory://begun.csv"}, "memory://begun.csv exists: continue with --resume"),
        ({"out": "memory://s.txt"}, "--out must end in .csv or .jsonl"),
        ({"out": "zip://s.csv::none.zip"}, "--out must be a URL that can be written to"),
    ],
)
def test_bad_input(folder, regressor, capsys, change, message):
    remote.write("memory://begun.csv", b"file,score,raw,error\n")
    given = {"paths": folder, "regressor": regressor, "checkpoint": SMALL, "out": "memory://s.csv"} | change
    assert call(given["regressor"], given["out"], given["paths"], checkpoint=given["checkpoint"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.splitlines()[-1].startswith("shamisa score: "), told
    assert not remote.exists("memory://s.csv")


def test_places_that_must_be_local(tmp_path):
    for path in ("s3://bucket/run", "s3:/bucket/run"):
        with pytest.raises(ValueError, match="out must be a local path, got 's3:"):
            remote.check_local("out", path)
    remote.check_local("out", "runs/a:b")


# ---- other readers ---------------------------------------------------------------------------------------------------
def test_shards_and_lists_give_the_photographs_of_the_disk(folder, tmp_path):
    import tarfile

    for shard, names in enumerate((["a.png", "b.jpg"], ["below/c.png", "f.png"])):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name in names:
                tar.add(folder / name, name)
        remote.write(f"memory://shards/{shard}.tar", (tmp_path / f"{shard}.tar").read_bytes())
    local = open_photos(f"{tmp_path}/{{0..1}}.tar")
    for url in ("memory://shards", "memory://shards/{0..1}.tar"):
        far = open_photos(url)
        assert [far.name(i) for i in range(len(far))] == [local.name(i) for i in range(len(local))]
        assert all(torch.equal(far[i], local[i]) for i in range(len(local)))
        assert all(record.fault is None for record in survey(far, 0, True))
    assert len(open_photos("memory://shards/1.tar")) == 2
    # what a manifest beside them says is checked, as on the disk
    listed = [{"name": n, "bytes": 10240, "sha256": "0"} for n in ("0.tar", "9.tar")]
    remote.write("memory://shards/manifest.json", json.dumps({"shards": listed}).encode())
    faults = check_manifests(far)
    assert faults.pop("0.tar").startswith(f"has {remote.size('memory://shards/0.tar')} bytes with SHA-256 ")
    assert faults == {"1.tar": "is not in the manifest", "9.tar": "is missing"}
    remote.write("memory://shards/1.tar", b"shorter")
    with pytest.raises(PhotoError, match="has changed: 7 bytes"):
        far[2]
    with pytest.raises(ValueError, match="1 of 3 do not, such as 'memory://shards/2.tar'"):
        open_photos("memory://shards/{0..2}.tar")


def test_labels_by_url(folder):
    url = put(folder, "memory://set")
    remote.write("memory://set/labels.csv", "\ufefffile,score\nA.PNG,1\nbelow/c.png,2\n".encode())
    labels = read_csv("memory://set/labels.csv")
    assert labels.name == "set-labels"
    assert find_files(labels, url) == ["memory://set/a.png", "memory://set/below/c.png"]
    remote.write("memory://set/more.csv", b"file,score\na.png,1\nnone.png,2\n")
    with pytest.raises(LabelError, match="1 of 2 images of set-more are missing in memory://set"):
        find_files(read_csv("memory://set/more.csv"), url)
    with pytest.raises(LabelError, match="cannot read labels memory://no.csv: no such file"):
        read_csv("memory://no.csv")


def test_hash_of_a_url(folder):
    remote.write("memory://a.png", (folder / "a.png").read_bytes())
    assert hash_file("memory://a.png") == hash_file(folder / "a.png")


def test_checkpoint_of_a_run_by_url(photos, tmp_path):
    fields = {"crop": 32, "batch": 1, "workers": 0, "steps": 1, "check_every": 0, "threads": 1, "device": "cpu"}
    fields |= {"encoder": "shamisa/small", "init": "none", "distortions": ("brighten",), "max_distortions": 1}
    trainer = Trainer(Config(refs=str(photos), hidden=16, embedding=8, **fields), quiet=True)
    run = Run.create(tmp_path / "run", {})
    trainer.save(run)
    run.release()
    put(tmp_path / "run", "memory://runs/one")
    wanted = load_encoder(tmp_path / "run").state_dict()
    for url in ("", "/checkpoint", "/checkpoint/latest", "/checkpoint/step-00000000"):
        found = load_encoder(f"memory://runs/one{url}")
        assert all(torch.equal(t, found.state_dict()[k]) for k, t in wanted.items())
    assert load_encoder("memory://runs/one/checkpoint/step-00000000/model.safetensors").source.startswith("memory://")
    remote.write("memory://runs/one/checkpoint/step-00000000/model.safetensors", b"torn")
    with pytest.raises(RunError, match="is damaged"):
        load_encoder("memory://runs/one")


# ---- failures that pass, and that do not -----------------------------------------------------------------------------
def test_attempts(folder, memory, monkeypatch):
    """Read at the fourth attempt; given up after it; what is absent is asked for once."""
    monkeypatch.setattr(remote, "WAIT", 0.0)
    remote.write("memory://a.png", (folder / "a.png").read_bytes())
    real, calls = type(memory).cat_file, []

    def cat_file(self, path, **span):
        calls.append(path)
        if len(calls) < failing:
            raise ConnectionResetError("gone\nfor a moment")
        return real(self, path, **span)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    failing = remote.ATTEMPTS
    assert torch.equal(read_photo("memory://a.png"), read_photo(folder / "a.png")) and len(calls) == remote.ATTEMPTS
    calls.clear()
    failing = 99
    with pytest.raises(PhotoError, match="failed 4 times, the last time by ConnectionResetError: gone for a moment"):
        read_photo("memory://a.png")
    assert len(calls) == remote.ATTEMPTS
    with pytest.raises(PhotoError, match="no such file"):
        read_photo("memory://none.png")
    assert len(calls) == remote.ATTEMPTS


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(remote.RemoteError, match=r"pip install 'shamisa\[remote\]'"):
        remote.read("memory://a")


# ---- object storage --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_s3(server, folder, regressor, tmp_path, capsys):
    url = put(folder, "s3://bucket/photos")
    assert call(regressor, tmp_path / "disk.csv", folder) == 1
    assert call(regressor, "s3://bucket/out/scores.csv", url) == 1
    (tmp_path / "s3.csv").write_bytes(remote.read("s3://bucket/out/scores.csv"))
    assert rows_of(tmp_path / "s3.csv", url) == rows_of(tmp_path / "disk.csv", folder)
    archive = zipped(folder, tmp_path / "p.zip").rpartition("::")[2]
    remote.write("s3://bucket/p.zip", open(archive, "rb").read())
    assert call(regressor, tmp_path / "zip.csv", "zip://photos::s3://bucket/p.zip") == 1
    assert rows_of(tmp_path / "zip.csv", "zip://photos") == rows_of(tmp_path / "disk.csv", folder)
    capsys.readouterr()
    for absent in ("s3://bucket/none", "s3://nobody/photos"):
        assert call(regressor, tmp_path / "no.csv", absent) == 2
        assert f"got {absent!r}: no such file, folder or bucket" in capsys.readouterr().err
    assert call(regressor, "s3://nobody/s.csv", folder) == 2
    assert "--out must be a URL that can be written to, got s3://nobody/s.csv" in capsys.readouterr().err
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("key", [True, False], ids=["credentials", "none"])
def test_s3_refused(server, folder, regressor, tmp_path, monkeypatch, capsys, key):
    """One line, status 2, and nothing written: places that are absent, or that no credentials open."""
    wanted = "no such file, folder or bucket" if key else "NoCredentialsError: Unable to locate credentials"
    if not key:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        given = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    extra = [[], ["--ray"]] if find_spec("ray") else [[]]
    for words in extra:
        out = tmp_path / ("parts" if words else "s.csv")
        for place in ("s3://bucket/none.jpg", "s3://nobody/photos"):
            assert call(regressor, out, place, extra=words) == 2
            line = f"shamisa score: paths must be photographs, folders, patterns or .txt lists, got {place!r}: {wanted}"
            assert capsys.readouterr().err.splitlines() == [line]
        place = f"s3://nobody/{out.name}"
        assert call(regressor, place, folder, extra=words) == 2
        line = f"shamisa score: --out must be a URL that can be written to, got {place}: {wanted}"
        assert capsys.readouterr().err.splitlines()[-1] == line
        assert call("s3://bucket/none.safetensors", out, folder, extra=words) == 2
        line = f"shamisa score: cannot read the regressor s3://bucket/none.safetensors: {wanted}"
        assert capsys.readouterr().err.splitlines()[-1] == line
        assert not out.exists()
    assert not server.find("bucket")
