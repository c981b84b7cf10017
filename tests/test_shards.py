from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_decode import HOSTILE, gradient
from test_photos import write_folder
from torch.testing import assert_close

from shamisa.data import PhotoError, PhotoFolder, PhotoList, PhotoShards, References, open_photos, read_photo
from shamisa.data.shards import expand_shards


def png(level: int, side: int = 40) -> bytes:
    """A flat photograph."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members, **options) -> None:
    """members: (name, bytes) or a TarInfo."""
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def level(photo: torch.Tensor) -> int:
    assert photo.shape == (3, 40, 40)
    return int(photo[0, 0, 0])


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def spread_over_tars(folder, root, count: int) -> None:
    """The photographs of a folder, dealt in turn to shards: none is sorted."""
    files = [(folder.name(i), folder.encoded(i)) for i in range(len(folder))]
    for k in range(count):
        write_tar(root / f"shard-{k}.tar", files[k::count][::-1])


# ---- the same as a folder --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers, context", [(0, None), (2, "fork"), (1, "spawn")])
def test_shards_give_the_crops_of_their_folder(tmp_path, workers, context):
    write_folder(tmp_path / "folder", count=8)
    (tmp_path / "folder" / "bad.png").write_text("text")
    folder = PhotoFolder(tmp_path / "folder")
    (tmp_path / "shards").mkdir()
    spread_over_tars(folder, tmp_path / "shards", 3)
    shards = open_photos(tmp_path / "shards")
    assert isinstance(shards, PhotoShards) and names(shards) == names(folder) and shards.skipped == {}
    for rank in (0, 1) if workers == 0 else (1,):
        fields = {"batch_size": 2, "seed": 5, "crop": 32, "rank": rank, "world_size": 2}
        expected, got = References(folder, **fields), References(shards, **fields)
        items = list(got.loader(2, 5, workers=workers, context=context))  # a resumed run
        assert [step for step, *_ in items] == [2, 3, 4]
        for step, crops, _ in items:
            assert_close(crops, expected.batch(step)[0], rtol=0, atol=0)
        assert set(got.skipped) <= {"bad.png"}


def test_hostile_shards_read_through(tmp_path):
    """28 good photographs and 12 faults, 30 %: those seen in the headers, and those met in the pixels."""
    good = [(f"good/{i:02d}.png", png(9 * i)) for i in range(28)]
    pixels = {}
    for name in ("truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "one_pixel.png", "huge.png", "nan.tif"):
        HOSTILE[name][0](tmp_path / name)
        pixels[name] = (tmp_path / name).read_bytes()
    headers = [
        special("fifo.jpg", tarfile.FIFOTYPE),
        special("soft.jpg", tarfile.SYMTYPE, "good/00.png"),
        special("hard.jpg", tarfile.LNKTYPE, "good/00.png"),
        ("good/01.png", png(255)),
    ]
    write_tar(tmp_path / "a.tar", [*good[:14], *headers, *pixels.items()])
    write_tar(tmp_path / "b.tar", [*good[14:], ("last.png", os.urandom(60_000))])
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: whole.index(b"last.png") + 512 + 30_000])
    source = PhotoShards(tmp_path / "{a,b}.tar", max_pixels=5_000_000)
    assert len(source) == 28 + len(pixels)
    reasons = {"a.tar/fifo.jpg": "is not a file", "a.tar/soft.jpg": "is a link", "a.tar/hard.jpg": "is a link"}
    reasons["a.tar/good/01.png"] = "has the name of an earlier member"
    reasons["b.tar/last.png"] = "is cut off: the shard ends after 30000 of its 60000 bytes"
    assert source.skipped == reasons
    refs = References(source, batch_size=4, seed=0, crop=32)
    for _ in refs.loader(0, refs.steps_per_epoch, workers=2):
        pass
    assert set(refs.skipped) == set(reasons) | set(pixels) and len(refs.skipped) == 12


# ---- members ---------------------------------------------------------------------------------------------------------
def test_members_are_grouped_with_others_and_sorted_over_shards(tmp_path):
    long = "folder/" * 20 + "ünï.png"  # needs an extended header
    members = [("./b.PNG", png(2)), ("b.json", b"{}"), ("b.cls", b"7"), ("d/a.b.png", png(3)), ("._b.png", b"mac")]
    write_tar(tmp_path / "1.tar", [special("d", tarfile.DIRTYPE), special("e.png", tarfile.DIRTYPE), *members])
    write_tar(
        tmp_path / "2.tar", [("a.png", png(1)), (".git/x.png", png(0)), (long, png(4))], format=tarfile.PAX_FORMAT
    )
    write_tar(tmp_path / "3.tar", [("c" * 200 + ".png", png(5))], format=tarfile.GNU_FORMAT)
    source = PhotoShards(tmp_path)
    assert names(source) == ["a.png", "b.PNG", "c" * 200 + ".png", "d/a.b.png", long]
    assert [level(source[i]) for i in range(5)] == [1, 2, 5, 3, 4] and source.skipped == {}
    assert source.encoded(0) == png(1)
    assert len(PhotoShards(tmp_path, extensions=["json"])) == 1
    with pytest.raises(IndexError, match="0..4, got 5"):
        source[5]


def test_names_that_two_shards_share(tmp_path):
    for shard, levels in (("x.tar", (10, 20)), ("y.tar", (30, 40))):
        write_tar(tmp_path / shard, [(f"{i}.png", png(v)) for i, v in enumerate(levels)])
    write_tar(tmp_path / "z.tar", [("2.png", png(50)), ("2.png", png(60))])
    source = PhotoShards(tmp_path)
    assert names(source) == ["x.tar/0.png", "y.tar/0.png", "x.tar/1.png", "y.tar/1.png", "2.png"]
    assert [level(source[i]) for i in range(5)] == [10, 30, 20, 40, 50]
    assert source.skipped == {"z.tar/2.png": "has the name of an earlier member"}


def test_errors_name_the_shard(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.png", b"text"), ("b.png", png(1))])
    source = PhotoShards(tmp_path / "x.tar")
    with pytest.raises(PhotoError, match="^x.tar/a.png: is not an image"):
        source[0]
    with pytest.raises(PhotoError, match="x.tar/b.png: has .* bytes, more than max_bytes = 50"):
        PhotoShards(tmp_path / "x.tar", max_bytes=50)[1]
    write_tar(tmp_path / "x.tar", [("b.png", png(1))] * 30)
    with pytest.raises(PhotoError, match="x.tar/b.png: .*x.tar has changed: 40960 bytes, 10240 when indexed"):
        source[1]
    os.unlink(tmp_path / "x.tar")
    with pytest.raises(PhotoError, match="x.tar/b.png: FileNotFoundError"):
        source[1]


# ---- damage ----------------------------------------------------------------------------------------------------------
FIVE = [(f"{i}.png", png(i)) for i in range(5)]


def damaged(tmp_path, change) -> PhotoShards:
    write_tar(tmp_path / "x.tar", FIVE)
    data = bytearray((tmp_path / "x.tar").read_bytes())
    (tmp_path / "x.tar").write_bytes(change(data))
    write_tar(tmp_path / "y.tar", [("good.png", png(99))])
    return PhotoShards(tmp_path / "{x,y}.tar")


def header_of(data: bytes, i: int) -> int:
    return data.index(f"{i}.png".encode())


def overwrite(data: bytearray, start: int, length: int) -> bytearray:
    data[start : start + length] = bytes(7 for _ in range(length))
    return data


DAMAGES = {  # what happens to a shard of five -> (those left, what is said)
    "cut in a body": (lambda d: d[: header_of(d, 3) + 512 + 9], [0, 1, 2], {"x.tar/3.png": "is cut off: .* 9 of its"}),
    "cut in a header": (
        lambda d: d[: header_of(d, 3) + 99],
        [0, 1, 2],
        {"x.tar": "damaged from byte .* what is there"},
    ),
    "cut after a body": (lambda d: d[: header_of(d, 3)], [0, 1, 2], {}),
    "header gone": (lambda d: overwrite(d, header_of(d, 2), 512), [0, 1, 3, 4], {"x.tar": "damaged from byte 2048 to"}),
    "first header gone": (lambda d: overwrite(d, 0, 512), [1, 2, 3, 4], {"x.tar": "damaged from byte 0 to"}),
    "text behind": (lambda d: d + b"text" * 200, [0, 1, 2, 3, 4], {"x.tar": "damaged from byte"}),
    "no tar": (lambda d: b"text" * 5000, [], {"x.tar": "damaged from byte 0 to 20000 of 20000"}),
    "empty": (lambda d: b"", [], {"x.tar": r"is empty \(0 bytes\)"}),
    "an empty tar": (lambda d: bytes(10240), [], {"x.tar": "holds no photographs"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards(tmp_path, damage):
    change, left, said = DAMAGES[damage]
    source = damaged(tmp_path, change)
    assert names(source) == [f"{i}.png" for i in left] + ["good.png"]
    assert [level(source[i]) for i in range(len(source))] == [*left, 99]
    assert set(source.skipped) == set(said)
    for name, reason in said.items():
        assert re.search(reason, source.skipped[name]), source.skipped


def test_headers_for_all_members_are_no_damage(tmp_path):
    write_tar(tmp_path / "x.tar", FIVE, format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by a test"})
    source = PhotoShards(tmp_path / "x.tar")
    assert len(source) == 5 and source.skipped == {}


def test_nothing_to_read(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.txt", b"text")])
    (tmp_path / "y.tar").touch()
    with pytest.raises(ValueError, match=r"found none in .*x.tar: holds no photographs; y.tar: is empty"):
        PhotoShards(tmp_path)
    with gzip.open(tmp_path / "z.tar.gz", "wb") as file:
        file.write((tmp_path / "x.tar").read_bytes())
    with pytest.raises(ValueError, match="plain tars, got one compressed by gzip: z.tar.gz"):
        open_photos(tmp_path / "z.tar.gz")
    (tmp_path / "z.tar.gz").rename(tmp_path / "z.tar")
    with pytest.raises(ValueError, match="compressed by gzip: z.tar"):
        open_photos(tmp_path / "z.tar")


# ---- names of shards -------------------------------------------------------------------------------------------------
def test_patterns(tmp_path):
    for n in (8, 9, 10):
        write_tar(tmp_path / f"s-{n:03d}.tar", [(f"{n}.png", png(n))])
    stem = f"{tmp_path}/s-"
    assert expand_shards(f"{stem}{{008..010}}.tar") == [f"{stem}{n}.tar" for n in ("008", "009", "010")]
    assert expand_shards(f"{stem}0{{08,10}}.tar") == [f"{stem}008.tar", f"{stem}010.tar"]
    assert len(open_photos(f"{stem}{{008..010}}.tar")) == len(open_photos(tmp_path)) == 3
    assert len(open_photos(tmp_path / "s-008.tar")) == 1
    with pytest.raises(ValueError, match=r"shards must exist, 2 of 5 do not, such as .*s-011.tar"):
        open_photos(f"{stem}{{008..012}}.tar")
    with pytest.raises(ValueError, match=r"must exist, 1 of 1 do not, such as .*absent.tar"):
        open_photos(tmp_path / "absent.tar")
    for wrong in ("{9..8}", "{a..c}", "{0..9999999}"):
        with pytest.raises(ValueError, match="numbered as"):
            open_photos(f"{stem}{wrong}.tar")


def test_what_is_a_folder_of_shards(tmp_path):
    write_tar(tmp_path / "a.tar", FIVE)
    (tmp_path / "manifest.json").write_text("{}")
    assert isinstance(open_photos(tmp_path), PhotoShards)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=r"\(1 .json, 1 .tar\).*shards beside subfolders are named by a pattern"):
        open_photos(tmp_path)
    (tmp_path / "sub" / "x.png").write_bytes(png(1))
    assert isinstance(open_photos(tmp_path), PhotoFolder)  # the archive beside its contents
    os.rename(tmp_path / "sub" / "x.png", tmp_path / "x.png")
    (tmp_path / "sub").rmdir()
    assert isinstance(open_photos(tmp_path), PhotoFolder)
    (tmp_path / "list.txt").write_text("x.png\n")
    assert isinstance(open_photos(tmp_path / "list.txt"), PhotoList)


# ---- streams ---------------------------------------------------------------------------------------------------------
def test_streams_are_spooled_and_removed(tmp_path, monkeypatch):
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    write_tar(tmp_path / "x.tar", FIVE)
    write_tar(tmp_path / "y.tar", [("y.png", png(50))])
    joined = open_photos(f"pipe:cat {tmp_path}/x.tar {tmp_path}/y.tar")
    several = open_photos(f"pipe:cat {tmp_path}/{{x,y}}.tar")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(open(tmp_path / "x.tar", "rb")))
    standard = open_photos("-")
    assert [len(s) for s in (joined, several, standard)] == [6, 6, 5]
    assert [level(joined[i]) for i in range(6)] == [0, 1, 2, 3, 4, 50]
    assert len(list(spool.iterdir())) == 4
    monkeypatch.setattr("tempfile.tempdir", None)  # workers put sockets there, whose paths must be short
    refs = References(joined, batch_size=2, seed=0, crop=16)
    expected = [refs.batch(step)[0] for step in range(3)]
    for step, crops, _ in refs.loader(0, 3, workers=1, context="fork"):  # a worker's end does not remove the file
        assert_close(crops, expected[step], rtol=0, atol=0)
    copy = pickle.loads(pickle.dumps(joined))
    assert level(copy[5]) == 50
    del copy
    assert level(joined[5]) == 50
    del joined, several, standard, refs
    assert list(spool.iterdir()) == []


def test_streams_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="command that succeeds, got status 3: exit 3"):
        open_photos("pipe:exit 3")
    with pytest.raises(ValueError, match="found none in pipe:true; pipe:true: is empty"):
        open_photos("pipe:true")
    with pytest.raises(ValueError, match="compressed by gzip"):
        open_photos("pipe:echo text | gzip")
    assert list(tmp_path.iterdir()) == []


def test_reads_the_same_as_files(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg")
    write_tar(tmp_path / "x.tar", [("a.jpg", (tmp_path / "a.jpg").read_bytes())])
    assert_close(PhotoShards(tmp_path / "x.tar")[0], read_photo(tmp_path / "a.jpg"), rtol=0, atol=0)
