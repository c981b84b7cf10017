"""Exported programs against the scores of files; what they carry; what is refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fitted import CHECKPOINT, SMALL, fitted
from PIL import Image
from torch.testing import assert_close

from shamisa import export
from shamisa.scorer import load_quality_net, load_scorer
from shamisa.scoring.features import hash_encoder
from shamisa.scoring.quality import QualityNet


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("regressor"), lower_better=True)


def exported(folder, regressor, name):
    """A file written by the command."""
    assert export.main(["--checkpoint", SMALL, "--regressor", str(regressor), "--out", str(folder / name)]) == 0
    assert [p.name for p in folder.iterdir()] == [name]
    return folder / name


@pytest.fixture(scope="module")
def onnx(regressor, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return exported(tmp_path_factory.mktemp("onnx"), regressor, "model.onnx")


@pytest.fixture(scope="module")
def pt2(regressor, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("pt2"), regressor, "model.pt2")


@pytest.fixture
def file(photo, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo[0, :, :101, :90].permute(1, 2, 0).numpy()).save(path)
    return path


def test_onnx_needs_no_torch(onnx, regressor, file):
    # --- the documented use ---
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx)
    pixels = np.array(Image.open(file).convert("RGB"))  # [height, width, 3] uint8
    score, raw = session.run(["score", "raw"], {"images": pixels.transpose(2, 0, 1)[None]})
    # ---
    ((_, quality, on_scale),) = load_scorer(SMALL, regressor, device="cpu").stream([file])
    assert 0.01 < quality < 0.99, "a clipped score shows nothing"
    assert_close(score, np.array([quality], np.float32), atol=1e-5, rtol=0)
    assert_close(raw, np.array([on_scale], np.float32), atol=4e-5, rtol=0)
    about = json.loads(session.get_modelmeta().custom_metadata_map["shamisa"])
    assert about["score"] == "[n] in 0..1, higher is better" and about["raw"].endswith("lower is better")
    assert about["crop"] == 24 and about["encoder_hash"] == about["regressor"]["encoder_hash"]


SIZES = [(3, 90), (23, 24), (49, 48), (77, 130)]


def any_size_and_batch(run, regressor):
    scorer = load_scorer(SMALL, regressor, device="cpu")
    for size in SIZES:
        images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for n in (1, 3):
            assert_close(run(images[:n]), scorer(images[:n]).float())


def test_onnx_takes_any_size_and_batch(onnx, regressor):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx)
    any_size_and_batch(lambda i: torch.from_numpy(session.run(["score"], {"images": i.numpy()})[0]), regressor)


def test_pt2_takes_any_size_and_batch(pt2, regressor):
    program = export.load_program(pt2)
    any_size_and_batch(lambda i: program(i)[0], regressor)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_no_path_of_this_machine_is_in_the_file(kind, request):
    content = request.getfixturevalue(kind).read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content and b"site-packages" not in content
    assert CHECKPOINT.encode() not in content


def test_pt2_holds_no_pickle_and_says_what_it_is(pt2):
    extra = {"shamisa.json": ""}
    torch.export.load(pt2, extra_files=extra)
    assert json.loads(extra["shamisa.json"])["input"].startswith("images uint8 [n, 3, height, width]")
    with zipfile.ZipFile(pt2) as archive:
        for name in archive.namelist():
            assert not name.endswith("sample_inputs/model.pt") or archive.getinfo(name).file_size == 0
            assert not archive.read(name).startswith((b"PK", b"\x80\x02", b"\x80\x04")), name


@pytest.mark.parametrize("part", ["sample inputs", "weights", "a constant", "no model"])
def test_pickled_parts_are_refused_before_they_are_loaded(pt2, tmp_path, part):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(pt2) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if part == "sample inputs" and name.endswith("sample_inputs/model.pt"):
                buffer = io.BytesIO()
                torch.save((torch.zeros(1),), buffer)
                content = buffer.getvalue()
            if part == "weights" and name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
                assert b'"use_pickle": true' in content
            if part == "a constant" and name.endswith("constants_config.json"):
                content = content.replace(b'"tensor_0"', b'"opaque_obj_0"', 1)
            if part == "no model" and "/models/" in name:
                continue
            new.writestr(name, content)
    with pytest.raises(ValueError, match="without a model" if part == "no model" else "pickled"):
        export.load_program(path)


def test_a_program_that_differs_is_not_left_behind(regressor, tmp_path, monkeypatch):
    monkeypatch.setattr(export.Program, "forward", lambda self, images: self.net.predict(images_of(self, images)))

    def images_of(self, images):  # an off-by-one in the crops
        return export.ten_crops(images[:, :, 1:], self.net.crop)

    net = load_quality_net(SMALL, regressor)
    with pytest.raises(RuntimeError, match="within 0.0001, got"):
        export.export(net, tmp_path / "m.pt2", hash_encoder(net.encoder))
    assert list(tmp_path.iterdir()) == []


def test_nan_is_a_difference(regressor):
    net = load_quality_net(SMALL, regressor)

    def nan_once(images):
        score, raw = net.predict(net.crops(images))
        return score * float("nan"), raw

    assert np.isnan(export.difference(nan_once, net))
    assert export.difference(lambda images: net.predict(net.crops(images)), net) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--out": "m.bin"}, "out must end in .onnx or .pt2, got"),
        ({"--out": "no/m.onnx"}, "out must lie in an existing folder"),
        ({"--out": "m.bin", "--checkpoint": "none"}, "out must end in"),  # before anything is loaded
        ({"--checkpoint": "none"}, "checkpoint must be a run folder"),
        ({"--regressor": "none"}, "cannot read the regressor"),
    ],
)
def test_bad_input(regressor, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    given = {"--checkpoint": SMALL, "--regressor": str(regressor), "--out": "m.onnx"} | change
    assert export.main([w for pair in given.items() for w in pair]) == 2
    error = capsys.readouterr().err
    assert error.startswith("shamisa export: ") and message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(regressor, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    net = load_quality_net(SMALL, regressor)
    with pytest.raises(RuntimeError, match="needs onnxscript: pip install 'shamisa\\[export\\]'"):
        export.export(net, tmp_path / "m.onnx", "")


def test_quality_net_is_frozen(regressor):
    net = load_quality_net(SMALL, regressor)
    assert isinstance(net.train(), QualityNet) and not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
