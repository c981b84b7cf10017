"""Which files are photographs, what is said of the others, and JPEGs that are cut off."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, features
from test_decode import RGB, as_photo, gradient
from torch.testing import assert_close

from shamisa.data import PhotoError, PhotoFolder, formats, open_photos, read_photo
from shamisa.data.__main__ import main
from shamisa.data.formats import describe_ignored
from shamisa.score import gather


def has_plugin(kind: str) -> bool:
    return kind in formats.FORMATS


def noisy(side: int = 80) -> np.ndarray:
    """A photograph whose JPEG has something on every row."""
    return (gradient(side, side) // 2 + np.random.default_rng(1).integers(0, 64, (side, side, 3))).astype(np.uint8)


# ---- formats ---------------------------------------------------------------------------------------------------------
LOSSLESS = {  # ending -> options of Pillow, largest difference
    ".jpe": ({"format": "JPEG", "quality": 100, "subsampling": 0}, 6),
    ".jfif": ({"format": "JPEG", "quality": 100, "subsampling": 0}, 6),
    ".mpo": ({"format": "MPO", "quality": 100, "subsampling": 0, "save_all": True}, 6),
    ".jp2": ({}, 0),
    ".j2k": ({}, 0),
    ".pnm": ({}, 0),
    ".avif": ({"quality": 100, "subsampling": "4:4:4"}, 4),
    ".heic": ({"quality": -1, "chroma": 444}, 4),
    ".heif": ({"quality": -1, "chroma": 444}, 4),
    ".jxl": ({"lossless": True}, 0),
}
NEEDS = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".jxl": "JXL"}


@pytest.mark.parametrize("ending", LOSSLESS)
def test_formats_of_this_installation(tmp_path, ending):
    if not has_plugin(NEEDS.get(ending, "JPEG")):
        pytest.skip(f"needs {NEEDS[ending]}")
    options, atol = LOSSLESS[ending]
    if ending == ".mpo":  # two frames; the first is the photograph
        options = options | {"append_images": [Image.fromarray(255 - RGB)]}
    Image.fromarray(RGB).save(tmp_path / f"a{ending.upper()}", **options)
    folder = PhotoFolder(tmp_path)
    assert len(folder) == 1 and not folder.ignored
    assert_close(folder[0], as_photo(RGB), rtol=0, atol=atol)


@pytest.mark.parametrize("ending", [".avif", ".heic"])
def test_orientation_of_phone_formats(tmp_path, ending):
    """Turned once, whether by EXIF or by the container."""
    if not has_plugin(NEEDS[ending]):
        pytest.skip(f"needs {NEEDS[ending]}")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.ascontiguousarray(RGB[:, ::-1].transpose(1, 0, 2))
    Image.fromarray(turned).save(tmp_path / f"a{ending}", exif=exif.tobytes(), **LOSSLESS[ending][0])
    Image.fromarray(RGB).save(tmp_path / f"b{ending}", **LOSSLESS[ending][0])
    folder = PhotoFolder(tmp_path)
    assert_close(folder[0], folder[1], rtol=0, atol=6)


def test_endings_follow_the_installation():
    assert ("AVIF" in formats.FORMATS) == bool(features.check("avif"))
    assert {".jpg", ".png", ".mpo", ".webp", ".tif"} <= set(formats.EXTENSIONS)
    assert (".heic" in formats.EXTENSIONS) == has_plugin("HEIF")
    assert not {".pdf", ".eps", ".svg", ".mpg", ".txt", ".tar"} & set(formats.EXTENSIONS)


def test_a_plugin_that_is_missing_is_no_error():
    """Without the plugins: shamisa starts, HEIC is ignored, and the advice names the extra."""
    code = """
import sys
sys.modules["pillow_heif"] = sys.modules["pillow_jxl"] = None
from shamisa.data import formats
assert ".heic" not in formats.EXTENSIONS and ".jxl" not in formats.EXTENSIONS and ".jpg" in formats.EXTENSIONS
print(formats.describe_ignored({".heic": 2, ".svg": 1}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3 files with other endings ignored (.heic 2, .svg 1); install shamisa[formats]\n"


# ---- what is ignored -------------------------------------------------------------------------------------------------
def test_words_for_what_is_ignored(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", ("JPEG", "PNG", "HEIF"))
    assert describe_ignored({}) == ""
    assert describe_ignored({".svg": 1}) == "1 file with other endings ignored (.svg 1)"
    assert describe_ignored({".heic": 1, "": 1}).startswith(
        "2 files with other endings ignored (without ending 1, .heic 1)"
    )
    assert describe_ignored({".jxl": 1}).endswith("; install shamisa[formats]")
    assert describe_ignored({".avif": 1}).endswith("; .avif needs Pillow 11.3 or newer")
    assert describe_ignored({f".{i}": 1 for i in range(9)}).endswith(", ...)")


@pytest.fixture
def mixed(tmp_path):
    """A folder of two photographs, a drawing and two notes."""
    root = tmp_path / "mixed"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(RGB).save(root / name)
    (root / "drawing.svg").write_text("<svg/>")
    (root / "note.txt").write_text("one")
    (root / "sub" / "note.TXT").write_text("two")
    return root


IGNORED = "3 files with other endings ignored (.txt 2, .svg 1)"


def test_every_command_names_what_it_ignores(mixed, tmp_path, capsys):
    assert main(["verify", str(mixed), "--quiet"]) == 0
    assert IGNORED in capsys.readouterr().out
    assert main(["pack", str(mixed), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert IGNORED in capsys.readouterr().err
    others: Counter[str] = Counter()
    assert len(gather([str(mixed)], others)[0]) == 2
    assert describe_ignored(others) == IGNORED
    assert open_photos(mixed).ignored == IGNORED


@pytest.mark.slow
@pytest.mark.parametrize("truncated", ["skip", "read"])
def test_train_names_what_it_ignores_and_what_is_truncated(mixed, tmp_path, capfd, truncated):
    from shamisa.train import main as train

    Image.fromarray(noisy()).save(mixed / "cut.jpg")
    (mixed / "cut.jpg").write_bytes((mixed / "cut.jpg").read_bytes()[:-2])

    options = "--steps 2 --batch 2 --crop 48 --compositions 1 --levels 2 --workers 0 --device cpu --encoder shamisa/small --init none"
    status = train(["--refs", str(mixed), "--out", str(tmp_path / "run"), "--truncated", truncated, *options.split()])
    said = capfd.readouterr().err
    assert status == 0, said
    assert IGNORED in said
    skipped = "photographs that could not be used: 1 (1 of them truncated JPEGs, see --truncated)" in said
    assert skipped == (truncated == "skip")


def test_shards_count_other_members(mixed, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(mixed, "mixed")
    assert open_photos(tmp_path / "a.tar").ignored == IGNORED


def test_a_folder_of_nothing_but_phone_pictures_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"x")
    monkeypatch.setattr(formats, "FORMATS", ("JPEG",))
    with pytest.raises(ValueError, match=r"found 1 other files \(1 \.heic\).*install shamisa\[formats\]"):
        PhotoFolder(tmp_path, extensions=formats._KINDS["JPEG"])


# ---- JPEGs that are cut off ------------------------------------------------------------------------------------------
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
    with pytest.raises(ValueError, match=r"truncated must be one of \['skip', 'read'\], got 'mend'"):
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
    from shamisa.scoring.features import Extractor

    place = tmp_path / "cut.jpg"
    place.write_bytes(whole.read_bytes()[:-2])

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    options = {"crop": 32, "workers": 1, "cache": tmp_path / "cache"}
    reading = Extractor(Mean(), truncated="read", **options)
    (found,) = dict(reading.stream([place])).values()
    assert isinstance(found, torch.Tensor) and reading.cut_off == [str(place)]
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
