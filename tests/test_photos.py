"""Sources of photographs: folders, lists, and the cache of decoded ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_decode import RGB, as_photo, gradient, needs_permissions
from torch.testing import assert_close

from shamisa.data import PhotoError, PhotoFolder, PhotoList, open_photos, read_photo


def write_folder(root, count: int = 7, side: int = 64) -> None:
    """count PNG photographs of different content and size, half of them in a subfolder."""
    (root / "sub").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        place = root / ("sub" if i % 2 else ".") / f"photo_{i}.png"
        Image.fromarray(np.roll(gradient(side + i, side + 3 * i), 11 * i, 1)).save(place)


def test_folder_is_recursive_sorted_and_case_blind(tmp_path):
    for name in ("b.PNG", "a/z.png", "a/y.png", "c.txt", ".hidden.png", ".git/x.png", "B.png", "a.d/q.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RGB).save(tmp_path / name, format="PNG")
    (tmp_path / "a" / "back").symlink_to(tmp_path)  # a circle of folders
    folder = PhotoFolder(tmp_path)
    assert [folder.name(i) for i in range(len(folder))] == ["B.png", "a.d/q.png", "a/y.png", "a/z.png", "b.PNG"]
    assert_close(folder[3], as_photo(RGB), rtol=0, atol=0)
    assert len(PhotoFolder(tmp_path, extensions=["txt"])) == 1
    with pytest.raises(IndexError):
        folder[5]


def test_folder_errors(tmp_path):
    (tmp_path / "notes.txt").write_text("no photographs here")
    (tmp_path / "README").write_text("nor here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder must exist, got .*absent"):
        PhotoFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match="got the file .*notes.txt"):
        PhotoFolder(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"\.jpg .*found 2 other files \(1 without ending, 1 \.txt\)"):
        PhotoFolder(tmp_path)
    with pytest.raises(ValueError, match="found no files"):
        PhotoFolder(tmp_path / "empty")
    for field in ("cache_bytes", "min_side", "max_pixels"):
        with pytest.raises(ValueError, match=f"{field} must be an integer"):
            PhotoFolder(tmp_path, extensions=["txt"], **{field: -1})


@needs_permissions
def test_folder_that_cannot_be_listed_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "sub").chmod(0)
    folder = PhotoFolder(tmp_path)
    (tmp_path / "sub").chmod(0o755)
    assert list(folder.skipped) == ["sub"] and "Permission" in folder.skipped["sub"]


def test_list_file(tmp_path):
    write_folder(tmp_path / "photos")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two photographs\n\nphotos/sub/photo_1.png\n{tmp_path}/photos/photo_0.png\nabsent.png\n")
    source = open_photos(listed)
    assert isinstance(source, PhotoList) and len(source) == 3
    assert_close(source[0], read_photo(tmp_path / "photos/sub/photo_1.png"), rtol=0, atol=0)
    assert_close(source[1], read_photo(tmp_path / "photos/photo_0.png"), rtol=0, atol=0)
    with pytest.raises(PhotoError, match="absent.png: FileNotFoundError"):
        source[2]
    assert isinstance(open_photos(tmp_path / "photos"), PhotoFolder)
    listed.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="list must name at least one photograph"):
        PhotoList(listed)
    with pytest.raises(ValueError, match="list must be a text file"):
        PhotoList(tmp_path / "absent.txt")
    with pytest.raises(ValueError, match="list must be a text file"):
        PhotoList(tmp_path / "photos/photo_0.png")


def test_cache_is_bounded_and_changes_nothing(tmp_path):
    write_folder(tmp_path)
    plain, cached = PhotoFolder(tmp_path), PhotoFolder(tmp_path, cache_bytes=40_000)
    for i in (0, 1, 2, 3, 0, 1, 6, 6):
        assert_close(cached[i], plain[i], rtol=0, atol=0)
        assert sum(t.numel() for t in cached._cache.values()) == cached._cached <= 40_000
    assert cached[6] is cached[6] and plain[6] is not plain[6]
