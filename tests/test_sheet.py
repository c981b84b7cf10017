"""`shamisa distort`: the sheet, compositions, a replayed plan, bad input."""

import pytest
import torch
from PIL import Image

from shamisa import sheet
from shamisa.distortions import DISTORTIONS


@pytest.fixture
def photo(tmp_path):
    pixels = torch.randint(0, 256, (70, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "photo.png"
    Image.fromarray(pixels.numpy()).save(path)
    return path


def test_sheet_of_all_distortions(photo, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert sheet.main([str(photo), "--out", str(out), "--size", "48"]) == 0
    with Image.open(out) as picture:
        assert picture.height > len(DISTORTIONS) * 48 and picture.width >= 6 * 48
        assert f"{picture.width} x {picture.height}" in capsys.readouterr().out


def test_a_saved_plan_replays_the_same_picture(photo, tmp_path):
    a, b, plan = (str(tmp_path / n) for n in ("a.png", "b.png", "plan.json"))
    assert (
        sheet.main([str(photo), "--out", a, "--size", "64", "--compose", "2", "--seed", "3", "--save-plan", plan]) == 0
    )
    assert sheet.main([str(photo), "--out", b, "--size", "64", "--plan", plan]) == 0
    assert Image.open(a).tobytes() == Image.open(b).tobytes()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--size", "0"], "--size must be at least 1"),
        (["--compose", "1", "--plan", "x"], "cannot be combined"),
        (["--plan", "missing.json"], "missing.json"),
        (["--compose", "0"], "compositions must be"),
        (["--size", "20"], "at least 48 x 48"),
    ],
)
def test_bad_input(photo, tmp_path, capsys, words, message):
    assert sheet.main([str(photo), "--out", str(tmp_path / "x.png"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x.png").exists()
    assert sheet.main([str(tmp_path / "none.jpg"), "--out", str(tmp_path / "x.png")]) == 2
