"""Which files are photographs, and what is said of the others."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image, features
from test_decode import RGB, as_photo
from torch.testing import assert_close

from shamisa.data import PhotoFolder, formats, open_photos
from shamisa.data.__main__ import main
from shamisa.data.formats import describe_ignored
from shamisa.score import gather


def has_plugin(kind: str) -> bool:
    return kind in formats.FORMATS


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
def test_train_names_what_it_ignores(mixed, tmp_path, capfd):
    from shamisa.train import main as train

    options = "--steps 2 --batch 2 --crop 48 --compositions 1 --levels 2 --workers 0 --device cpu --encoder shamisa/small --init none"
    status = train(["--refs", str(mixed), "--out", str(tmp_path / "run"), *options.split()])
    said = capfd.readouterr().err
    assert status == 0, said
    assert IGNORED in said


def test_shards_count_other_members(mixed, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(mixed, "mixed")
    assert open_photos(tmp_path / "a.tar").ignored == IGNORED


def test_a_folder_of_nothing_but_phone_pictures_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"x")
    monkeypatch.setattr(formats, "FORMATS", ("JPEG",))
    with pytest.raises(ValueError, match=r"found 1 other files \(1 \.heic\).*install shamisa\[formats\]"):
        PhotoFolder(tmp_path, extensions=formats._KINDS["JPEG"])
