"""The viewing size: larger photographs are shrunk to it before the crops, by Pillow's filter; smaller ones stay."""

import numpy as np
import pytest
import torch
from fitted import SMALL, fitted
from PIL import Image
from torch.testing import assert_close

import shamisa
from shamisa import score
from shamisa.export import Program, trace
from shamisa.scorer import load_quality_net
from shamisa.scoring.crops import check_view, fit_view, shrink, viewed_size, views
from shamisa.scoring.features import Extractor
from shamisa.scoring.ridge import Regressor

VIEW = 64


@pytest.fixture(scope="module")
def picture(photo) -> torch.Tensor:
    """[3, 100, 127] uint8: above the viewing size, no side a multiple of it."""
    return photo[0, :, :100, :127].contiguous()


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """Fitted at a viewing size of 64 pixels."""
    path = fitted(tmp_path_factory.mktemp("regressor"))
    known = Regressor.load(path)
    Regressor(known.coef, known.intercept, {**known.about, "view": VIEW}).save(path)
    return path


@pytest.mark.parametrize(
    ("size", "view", "seen"),
    [
        ((100, 127), 64, (50, 64)),
        ((127, 100), 64, (64, 50)),
        ((64, 64), 64, (64, 64)),
        ((30, 64), 64, (30, 64)),
        ((3, 3000), 64, (1, 64)),
        ((3000, 4000), 1024, (768, 1024)),
        ((3000, 4000), None, (3000, 4000)),
    ],
)
def test_seen_size(size, view, seen):
    assert viewed_size(*size, view) == seen


def test_pixels_are_those_of_pillow(picture):
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((64, 50), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(fit_view(picture, VIEW), expected)
    assert torch.equal(views(picture, 24, VIEW), views(expected.contiguous(), 24))
    small = picture[:, :40, :64]
    assert fit_view(small, VIEW) is small


def test_tensor_arithmetic_is_close_to_pillow_and_leaves_small_images_alone(picture):
    found = shrink(picture[None], VIEW)[0]
    assert_close(found.int(), fit_view(picture, VIEW).int(), rtol=0, atol=2)
    small = picture[None, :, :40, :64]
    assert torch.equal(shrink(small, VIEW), small)


def test_regressor_says_at_which_size(picture, regressor):
    fitted_view = shamisa.load_scorer(SMALL, regressor, device="cpu")
    full = shamisa.load_scorer(SMALL, regressor, view="full", device="cpu")
    seen = fit_view(picture, VIEW)
    assert_close(fitted_view(picture), full(seen), rtol=0, atol=0)
    assert not torch.equal(fitted_view(picture), full(picture))
    net = load_quality_net(SMALL, regressor)
    assert_close(net(picture[None]), fitted_view(picture).float(), rtol=0, atol=1e-6)
    net = load_quality_net(SMALL, regressor, view="full")
    assert net.about["view"] == "full"
    assert_close(net(picture[None]), full(picture).float(), rtol=0, atol=1e-6)


def test_cache_knows_the_size(picture, tmp_path):
    from shamisa.scoring.inputs import open_encoder

    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    found = {}
    for view in (VIEW, "full"):
        for _ in range(2):  # computed, then from the cache
            extractor = Extractor(open_encoder(SMALL), crop=24, view=view, cache=tmp_path / "cache")
            ((_, values),) = extractor.stream([tmp_path / "a.png"])
            assert torch.equal(found.setdefault(view, values), values)
    assert not torch.equal(found[VIEW], found["full"])


@pytest.mark.parametrize("view", ["wide", 0, 15, -1, 2.5, True, 1 << 17])
def test_bad_sizes(view, regressor, capsys, tmp_path):
    with pytest.raises(ValueError, match="view must be full or a number of pixels in 16..65536, got"):
        check_view(view)
    with pytest.raises(ValueError, match="view must be"):
        shamisa.load_scorer(SMALL, regressor, view=view)


def test_command(picture, regressor, tmp_path):
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    model = ["--checkpoint", SMALL, "--regressor", str(regressor), "--quiet"]
    for name, options in {"fitted": [], "full": ["--view", "full"], "48": ["--view", "48"]}.items():
        out = tmp_path / f"{name}.csv"
        assert score.main([str(tmp_path / "a.png"), *model, *options, "--out", str(out)]) == 0
    first, second, third = (score.read_rows(tmp_path / f"{n}.csv")[0][1] for n in ("fitted", "full", "48"))
    assert len({first, second, third}) == 3
    assert score.main([str(tmp_path / "a.png"), *model, "--view", "big", "--out", str(tmp_path / "x.csv")]) == 2
    assert not (tmp_path / "x.csv").exists()


def test_exported_program_shrinks_too(picture, regressor):
    net = load_quality_net(SMALL, regressor)
    run = trace(net).module()
    for images in (picture[None], picture[None].repeat(2, 1, 3, 2), picture[None, :, :40, :50]):
        found, _ = run(images)
        assert_close(found, net(images), rtol=0, atol=2e-2)  # the small encoder on 64 pixels: a level or two show
        assert_close(found, Program(net)(images)[0], rtol=0, atol=1e-5)
