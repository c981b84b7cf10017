"""The packaged model: one pinned score everywhere, and clear errors where its files are missing or damaged."""

import json
import shutil

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.testing import assert_close

import shamisa
from shamisa import packaged, pyiqa_plugin, score
from shamisa.packaged import CARD, ENCODER, FOLDER, MODEL, REGRESSOR, load_packaged, read_model
from shamisa.scorer import load_quality_net

ASTRONAUT = 0.7469  # its score by the packaged regressor
TOLERANCE = 0.002


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    """[3, 512, 512] uint8."""
    return torch.from_numpy(np.ascontiguousarray(skimage.data.astronaut().transpose(2, 0, 1)))


@pytest.fixture(scope="module")
def photo_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return str(path)


def near(found: torch.Tensor, expected: float = ASTRONAUT) -> None:
    assert_close(found.double(), torch.full_like(found.double(), expected), rtol=0, atol=TOLERANCE)


def test_scorer_of_tensors(astronaut):
    near(shamisa.load_scorer()(astronaut))


def test_command_prints_lines(photo_file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no photograph")
    assert score.main([photo_file, str(tmp_path / "broken.png")]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    name, _, value = line.rpartition(" ")
    assert name == photo_file and "broken.png" in err
    near(torch.tensor(float(value)))
    assert not (tmp_path / "scores.csv").exists()


def test_command_writes_a_table(photo_file, tmp_path):
    out = tmp_path / "scores.csv"
    assert score.main([photo_file, "--out", str(out), "--quiet"]) == 0
    near(torch.tensor(score.read_rows(out)[0][1]))
    assert json.loads((tmp_path / "scores.csv.meta.json").read_text())["view"] == 1024


def test_adapters(astronaut):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("huggingface_hub")
    from shamisa.hub import QualityModel
    from shamisa.metric import SHAMISA

    images = torch.stack([astronaut, astronaut.flip(2)])
    expected = shamisa.load_scorer(device="cpu")(images).float()
    near(expected[:1])
    metric = SHAMISA(reduction="none")
    metric.update(images)
    for found in (metric.compute(), QualityModel.packaged()(images), load_quality_net()(images)):
        assert_close(found, expected, rtol=0, atol=1e-5)
    net = pyiqa_plugin.SHAMISA()
    assert_close(net(images / 255), expected.unsqueeze(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("files", [{"checkpoint": "run"}, {"regressor": "regressor.safetensors"}])
def test_one_file_alone_is_refused(files):
    with pytest.raises(ValueError, match="give both a checkpoint and its regressor, or neither"):
        shamisa.load_scorer(**files)


def test_checkpoint_and_regressor_are_ordinary_files(astronaut):
    """Whoever wants to go on from them needs no other format."""
    scorer = shamisa.load_scorer(FOLDER / ENCODER, FOLDER / REGRESSOR, device="cpu")
    near(scorer(astronaut))


def test_the_record_is_true():
    about = read_model()
    encoder, regressor = load_packaged()
    assert about["encoder"] == regressor.about["encoder"] == encoder.name
    assert about["view"] == regressor.view == 1024
    assert sum(p.stat().st_size for p in FOLDER.iterdir() if p.is_file()) < 20e6
    assert f"{about['fit']['srcc']:.3f}" in (FOLDER / CARD).read_text()
    assert about["moved_by_float16"] < 1e-3
    assert about["command"].startswith("python -m shamisa.packaged --checkpoint")


# ---- damage ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def copy(tmp_path):
    for name in (ENCODER, REGRESSOR, MODEL):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [ENCODER, REGRESSOR])
def test_a_damaged_file_is_told(copy, name):
    expected = read_model()["sha256"][name]
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(
        RuntimeError, match=f"{name} of the packaged model must have the SHA-256 {expected}, got [0-9a-f]"
    ):
        load_packaged(copy)
    (copy / name).unlink()
    with pytest.raises(RuntimeError, match=rf"{expected}, got none \(No such file.*install shamisa again"):
        load_packaged(copy)


@pytest.mark.parametrize("text", [None, "{"])
def test_a_damaged_record_is_told(copy, text):
    (copy / MODEL).unlink() if text is None else (copy / MODEL).write_text(text)
    with pytest.raises(RuntimeError, match=f"{MODEL}.*install shamisa again"):
        load_packaged(copy)


def test_the_command_tells_damage_in_one_line(copy, photo_file, capsys, monkeypatch):
    (copy / ENCODER).write_bytes(b"")
    monkeypatch.setattr(packaged, "load_packaged", lambda: load_packaged(copy))
    assert score.main([photo_file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("shamisa score: ") and "SHA-256" in line
