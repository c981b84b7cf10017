from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from test_decode import HOSTILE, KINDS, gradient
from test_photos import write_folder
from torch.testing import assert_close

from shamisa.checks import MissingPackage
from shamisa.data import EmbeddedPhotos, PhotoFolder, PhotoShards, References, make_references
from shamisa.data.pack import pack

pytest.importorskip("nvidia.dali")
from shamisa.data import dali as data_dali
from shamisa.data.dali import DaliReferences, read_ahead

FIELDS = {"batch_size": 3, "seed": 11, "crop": 40, "scales": (1.0, 0.5, 0.3)}


def textured(i: int, height: int = 150, width: int = 170) -> Image.Image:
    """Smooth colour with noise on it, of a size of its own."""
    pixels = gradient(height + 3 * i, width - 2 * i).astype(np.int64)
    noise = np.random.default_rng(i).integers(-25, 26, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def thumbnail() -> bytes:
    """EXIF with a JPEG inside, as cameras write it."""
    small = encoded(textured(0).resize((40, 30)), "JPEG")
    tags = struct.pack("<2sHIH", b"II", 42, 8, 0) + struct.pack(
        "<I", 14
    )  # an empty directory, then that of the thumbnail
    entries = [(0x0103, 3, 1, 6), (0x0201, 4, 1, 14 + 2 + 36 + 4), (0x0202, 4, 1, len(small))]
    tags += struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *e) for e in entries) + struct.pack("<I", 0)
    return b"Exif\0\0" + tags + small


JPEG, PNG = "JPEG", "PNG"
BY_DALI = {
    **{
        f"{s}_{p}.jpg".replace(":", ""): encoded(textured(i), JPEG, quality=80, subsampling=s, progressive=p)
        for i, s in enumerate(("4:4:4", "4:2:2", "4:2:0", "4:1:1"))
        for p in (False, True)
    },
    **{f"turned_{o}.jpg": encoded(textured(o), JPEG, quality=90, exif=exif(o)) for o in range(1, 9)},
    "grey.jpg": encoded(textured(1).convert("L"), JPEG),
    "restarts.jpg": encoded(textured(2), JPEG, restart_marker_blocks=3),
    "rgb_inside.jpg": encoded(textured(3), JPEG, keep_rgb=True),
    "trailer.jpg": encoded(textured(4), JPEG) + b"what some cameras add \xff\xd8\xff",
    "thumbnail.jpg": encoded(textured(5), JPEG, exif=thumbnail()),
    "rgb.png": encoded(textured(6), PNG),
    "grey.png": encoded(textured(7).convert("L"), PNG),
    "turned.png": encoded(textured(8), PNG, exif=exif(6)),
    "gamma.png": with_chunk(encoded(textured(9), PNG), b"gAMA", struct.pack(">I", 100000)),
}
BY_PILLOW = {
    "cmyk.jpg": encoded(textured(1).convert("CMYK"), JPEG),
    "alpha.png": encoded(textured(2).convert("RGBA"), PNG),
    "palette.png": encoded(textured(3).quantize(64), PNG),
    "grey16.png": encoded(Image.fromarray(np.asarray(textured(4).convert("L")).astype(np.uint16) * 257), PNG),
    "colour_key.png": encoded(textured(5), PNG, transparency=(1, 2, 3)),
    "frames.png": encoded(textured(6), PNG, save_all=True, append_images=[textured(6).rotate(180)]),
    "rgb.webp": encoded(textured(7), "WEBP", quality=80),
    "rgb.bmp": encoded(textured(8), "BMP"),
    "turned.tif": encoded(textured(9), "TIFF", exif=exif(8)),
    "multi.jpg": encoded(textured(10), "MPO", save_all=True, append_images=[textured(10)]),
}


def write(root, files: dict[str, bytes]) -> PhotoFolder:
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return PhotoFolder(root)


def both(source, steps: range, **changes) -> tuple[References, DaliReferences]:
    """Both readers, after they gave the same crops and the same skips."""
    readers = [make_references(source, reader=r, **{**FIELDS, **changes}) for r in ("pillow", "dali")]
    for a, b in zip(*(r.loader(steps.start, steps.stop) for r in readers), strict=True):
        assert a[0] == b[0] and a[2] == b[2]
        assert_close(a[1], b[1], rtol=0, atol=0)
    assert readers[0].skipped == readers[1].skipped
    return readers


# ---- the same pixels -------------------------------------------------------------------------------------------------
def test_every_kind_of_file_gives_the_same_crops(tmp_path):
    source = write(tmp_path / "photos", BY_DALI | BY_PILLOW)
    pillow, dali = both(source, range(0, 14), references=2)
    assert pillow.decoded == {} and dali.skipped == {}
    expected = {
        "pillow: JPEG, CMYK", "pillow: PNG, not 8 bits of grey or colour", "pillow: PNG, animated", "pillow: WEBP",
        "pillow: BMP", "pillow: TIFF", "pillow: MPO", "dali",
    }  # fmt: skip
    assert set(dali.decoded) == expected


@pytest.mark.parametrize("name", BY_DALI)
def test_dali_itself_decodes(tmp_path, name):
    source = write(tmp_path / "photos", {name: BY_DALI[name]})
    opened = DaliReferences(source, **FIELDS)._open(0)
    assert opened.obstacle is None and opened.whole is None
    assert (opened.height, opened.width) == tuple(source[0].shape[1:])


def test_large_photographs_in_small_regions(tmp_path):
    files = {f"{i}.jpg": encoded(textured(i, 500, 700), JPEG, exif=exif(i)) for i in range(1, 9)}
    _, dali = both(write(tmp_path / "photos", files), range(4), crop=48, scales=(1.0, 0.7))
    assert set(dali.decoded) == {"dali"}
    opened = [dali._open(i) for i in range(8)]
    whole = sum(h.height * h.width for h in opened)
    step = list(dali._samples(0, lambda i: opened[i], [], {}))
    read = sum((b - t) * (r - l) for photos, places in step for t, l, b, r in dali._regions(photos, places).values())
    assert read < 0.6 * whole  # of nine photographs


def test_folder_shards_workers_and_ranks(tmp_path):
    source = write(tmp_path / "photos", dict(list(BY_DALI.items())[::3]))
    pack(source, tmp_path / "shards", shard_count=2)
    shards = PhotoShards(tmp_path / "shards")
    for rank in (0, 1):
        fields = {**FIELDS, "rank": rank, "world_size": 2}
        expected = References(source, **fields)
        for s, workers in ((shards, 0), (source, 2)):
            got = DaliReferences(s, **fields)
            for step, crops, _ in got.loader(3, 6, workers=workers, context="fork" if workers else None):
                assert_close(crops, expected.batch(step)[0], rtol=0, atol=0)
            assert got.decoded["dali"] > 0 and set(got.decoded) == {"dali"}


# ---- faults ----------------------------------------------------------------------------------------------------------
def hostile(root) -> PhotoFolder:
    """28 good files and 12 bad ones: 30 %."""
    write_folder(root, count=18)
    write(root, dict(list(BY_DALI.items())[:6]))
    for name in ("grey16.png", "animated.gif", "rgb_alpha.png"):
        KINDS[name][0](root / name)
    Image.new("RGB", (20000, 40)).save(root / "wide.png")
    for name in HOSTILE:
        HOSTILE[name][0](root / name)
    return PhotoFolder(root, max_pixels=5_000_000)


BAD = set(HOSTILE) - {"folder.jpg"} | {"other_loop.jpg"}


def test_hostile_folder_reads_through(tmp_path):
    source = hostile(tmp_path)
    assert len(BAD) == 12 and len(source) == 40
    pillow, dali = both(source, range(14), references=2, max_skipped=0.9)
    assert set(dali.skipped) == BAD
    assert dali.decoded["dali"] > 0


@pytest.mark.parametrize("cut", [0.5, 0.98])
def test_a_file_that_breaks_the_pipeline(tmp_path, monkeypatch, cut):
    """Files that the header check lets through: DALI fails on a whole batch, Pillow decodes it and finds the one."""
    monkeypatch.setattr(data_dali, "_is_whole_jpeg", lambda data: True)
    files = {f"{i}.jpg": encoded(textured(i), JPEG) for i in range(6)}
    files["bad.jpg"] = files["3.jpg"][: int(cut * len(files["3.jpg"]))]
    _, dali = both(write(tmp_path / "photos", files), range(6), references=2)
    assert set(dali.skipped) == {"bad.jpg"} and "truncated" in dali.skipped["bad.jpg"]
    assert dali.decoded["pillow: in a batch that DALI gave up"] > 0 and dali.decoded["dali"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_give_the_same(tmp_path, seed):
    """Bytes changed anywhere behind the header: the readers agree on pixels or on the fault."""
    rng = np.random.default_rng(seed)
    files = {}
    for i in range(12):
        data = bytearray(encoded(textured(i), JPEG, quality=85, progressive=bool(i % 2)))
        for _ in range(3):
            data[int(rng.integers(650, len(data)))] = int(rng.integers(0, 256))
        files[f"{i:02d}.jpg"] = bytes(data)
    both(write(tmp_path / "photos", files), range(4), references=2, max_skipped=1.0)


def test_whole_jpegs():
    good = encoded(textured(0), JPEG)
    for data in (good, encoded(textured(0), JPEG, progressive=True), good + b"\0trailer", BY_DALI["thumbnail.jpg"]):
        assert data_dali._is_whole_jpeg(data)
    scan = good.index(b"\xff\xda") + 40
    for inside in (b"\xff\x76\0\4\0\0", b"\xff\xd8", b"\xff\xc0\0\4\0\0"):
        assert not data_dali._is_whole_jpeg(good[:scan] + inside + good[scan:])
    for data in (good[:-2], good[: len(good) // 2], good[:100], b"\xff\xd8", b"\xff\xd8\xff\xd9"):
        assert not data_dali._is_whole_jpeg(data)


# ---- arguments, threads ----------------------------------------------------------------------------------------------
def test_wrong_arguments(tmp_path, monkeypatch):
    source = write(tmp_path / "photos", {"rgb.png": BY_DALI["rgb.png"]})
    with pytest.raises(ValueError, match=r"reader must be one of pillow, dali, got 'cv2'"):
        make_references(source, reader="cv2", **FIELDS)
    with pytest.raises(ValueError, match="must hold encoded images .* got EmbeddedPhotos"):
        make_references(EmbeddedPhotos(leaves=0), reader="dali", **FIELDS)
    with pytest.raises(ValueError, match="device must be cpu or cuda"):
        make_references(source, reader="dali", device="meta", **FIELDS)
    with pytest.raises(ValueError, match="batch_size must be"):
        make_references(source, reader="dali", **{**FIELDS, "batch_size": 0})
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(MissingPackage, match=r"reader dali needs NVIDIA DALI: pip install 'shamisa\[dali\]'"):
        make_references(source, reader="dali", **FIELDS)


def test_loader_for_a_gpu(tmp_path, monkeypatch):
    """Its thread, order and counts, on a CPU pipeline."""
    source = write(tmp_path / "photos", dict(list(BY_DALI.items())[:5]))
    expected = References(source, **FIELDS)
    build, threads = data_dali.build_pipeline, []

    def on_cpu(batch_size, count, device):
        assert device == torch.device("cuda:0")
        threads.append(count)
        return build(batch_size, count, torch.device("cpu"))

    monkeypatch.setattr(data_dali, "build_pipeline", on_cpu)
    dali = DaliReferences(source, device="cuda:0", **FIELDS)
    items = list(dali.loader(2, 6, workers=2))
    assert [step for step, *_ in items] == [2, 3, 4, 5] and threads == [2]
    for step, crops, _ in items:
        assert_close(crops, expected.batch(step)[0], rtol=0, atol=0)
    assert sum(dali.decoded.values()) >= 4
    with pytest.raises(ValueError, match="workers must be an integer"):
        dali.loader(0, 1, workers=-1)


def test_reading_ahead():
    made = []

    def make(step: int) -> int:
        made.append(step)
        if step == 7:
            raise RuntimeError("seven")
        return step * step

    items = read_ahead(make, range(9), 2)
    assert next(items) == 0
    assert next(items) == 1
    items.close()
    assert made[:2] == [0, 1] and len(made) <= 4
    assert list(read_ahead(make, range(3), 5)) == [0, 1, 4]
    with pytest.raises(RuntimeError, match="seven"):
        list(read_ahead(make, range(5, 9), 1))
    assert Counter(made)[8] <= 1


FORK = """
import gc, os, signal, torch
from shamisa.data.dali import build_pipeline
gc.disable()
kept = build_pipeline(2, 1, torch.device("cpu"))
build_pipeline(2, 1, torch.device("cpu"))  # garbage at once, in a cycle
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that waits
    kept = None
    gc.collect()
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_collects_no_pipeline():
    """Its threads stayed in the parent: the fork would wait for them for ever."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=120).returncode == 7
