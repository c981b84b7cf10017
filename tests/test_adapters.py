"""torchmetrics, Hugging Face Hub and pyiqa: the same scores as those of files."""

import json
import sys
import types

import pytest
import torch
from fitted import CHECKPOINT, SMALL, fitted
from PIL import Image
from torch import nn
from torch.testing import assert_close

import shamisa
from shamisa import pyiqa_plugin
from shamisa.engine import IMAGENET_MEAN, IMAGENET_STD
from shamisa.scorer import load_quality_net
from shamisa.scoring.quality import SLACK, to_levels


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("regressor"))


@pytest.fixture(scope="module")
def images():
    """[5, 3, 61, 50] uint8."""
    return torch.randint(0, 256, (5, 3, 61, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(images, regressor, tmp_path_factory):
    """Scores of the images as files, [5] float32."""
    folder = tmp_path_factory.mktemp("files")
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    scorer = shamisa.load_scorer(SMALL, regressor, device="cpu")
    return torch.tensor([q for _, q, _ in scorer.stream(sorted(folder.iterdir()))])


# ---- the module that they share --------------------------------------------------------------------------------------
def test_net_scores_tensors_as_files(images, expected, regressor):
    net = load_quality_net(SMALL, regressor, batch=2)
    for given in (images, images / 255, images.double() / 255, images.flip(3).flip(3)):
        assert_close(net(given), expected, atol=1e-6, rtol=0)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    assert_close(net((images / 255 - mean) / std, normalized=True), expected, atol=1e-6, rtol=0)


def test_net_with_autocast_is_close(images, expected, regressor):
    found = load_quality_net(SMALL, regressor, autocast=True)(images)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert_close(found, expected, atol=0.02, rtol=0)
    with torch.autocast("cpu"):  # of a training loop: not asked for
        assert_close(load_quality_net(SMALL, regressor)(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "given, options, message",
    [
        (torch.zeros(3, 40, 40), {}, r"images must be \[N, 3, H, W\], none of them 0, got \[3, 40, 40\]"),
        (torch.zeros(2, 1, 40, 40), {}, r"got \[2, 1, 40, 40\]"),
        (torch.zeros(0, 3, 40, 40), {}, r"got \[0, 3, 40, 40\]"),
        (["a.png"], {}, "got list"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.int64), {}, "uint8 or floating, got torch.int64"),
        (torch.full((1, 3, 40, 40), 2.0), {}, "must lie in 0..1, got 2..2"),
        (torch.full((1, 3, 40, 40), float("nan")), {}, "must lie in 0..1, got nan"),
        (torch.full((1, 3, 40, 40), 9.0), {"normalized": True}, "before the normalisation"),
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), {"normalized": True}, "must be floating"),
    ],
)
def test_net_errors(regressor, given, options, message):
    with pytest.raises(ValueError, match=message):
        load_quality_net(SMALL, regressor)(given, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_levels_by_one_rule(regressor, dtype):
    """Floating images may leave 0..1 by the rounding of what made them, by no more; for tensors and files' scorers alike."""
    images = torch.full((1, 3, 40, 40), 0.5, dtype=dtype)
    images[0, :, 0, :4] = torch.tensor([-0.8 * SLACK, 1 + 0.8 * SLACK, 0.4 / 255, 0.6 / 255], dtype=dtype)
    levels = to_levels(images)
    assert levels.dtype == torch.uint8 and levels[0, 0, 0, :5].tolist() == [0, 255, 0, 1, 128]
    net, scorer = load_quality_net(SMALL, regressor), shamisa.load_scorer(SMALL, regressor, device="cpu")
    assert_close(net(images), scorer(images).float(), atol=1e-6, rtol=0)
    assert_close(net(images), net(levels), atol=0, rtol=0)
    for value in (-2 * SLACK, 1 + 2 * SLACK, float("nan"), float("inf")):
        images[0, 1, 7, 7] = value
        for take in (net, scorer):
            with pytest.raises(ValueError, match="floating images must lie in 0..1, got"):
                take(images)


# ---- torchmetrics ----------------------------------------------------------------------------------------------------
@pytest.fixture
def Metric():
    pytest.importorskip("torchmetrics")
    from shamisa.metric import SHAMISA

    return SHAMISA


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_metric_reduces_over_batches(Metric, images, expected, regressor, reduction):
    metric = Metric(SMALL, regressor, reduction=reduction)
    metric.update(images[:2] / 255)
    metric.update(images[2:])
    wanted = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    assert_close(metric.compute(), wanted, atol=1e-5, rtol=0)
    metric.reset()
    value = metric(images[:3] / 255)  # forward: of this batch
    assert_close(value, {"mean": expected[:3].mean(), "sum": expected[:3].sum(), "none": expected[:3]}[reduction])
    assert metric.higher_is_better and not metric.is_differentiable


def test_metric_of_normalised_images(Metric, images, expected, regressor):
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    metric = Metric(SMALL, regressor, normalize=False)
    assert_close(metric((images / 255 - mean) / std), expected.mean(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_metric_is_synchronised(Metric, images, expected, regressor, reduction):
    """Two ranks that saw the same: torchmetrics gathers every state by ``dist_sync_fn`` and reduces it."""
    twice = {"dist_sync_fn": lambda state, group: [state, state], "distributed_available_fn": lambda: True}
    metric = Metric(SMALL, regressor, reduction=reduction, **twice)
    metric.update(images)
    wanted = {"mean": expected.mean(), "sum": 2 * expected.sum(), "none": expected.repeat(2)}[reduction]
    assert_close(metric.compute(), wanted, atol=1e-5, rtol=0)


def test_metric_in_a_model_adds_no_weights(Metric, images, expected, regressor):
    model = nn.ModuleDict({"metric": Metric(SMALL, regressor), "net": nn.Linear(2, 2)}).half()
    assert list(model.state_dict()) == ["net.weight", "net.bias"]
    copy = model["metric"].clone()
    assert_close(copy(images), expected.mean(), atol=1e-6, rtol=0)
    assert model["metric"].num_scores == 0


@pytest.mark.parametrize("change", [{"reduction": "median"}, {"normalize": 1}, {"autocast": "yes"}, {"batch": 0}])
def test_metric_errors(Metric, regressor, change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be .*got"):
        Metric(SMALL, regressor, **change)


# ---- Hugging Face Hub ------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(regressor, tmp_path):
    pytest.importorskip("huggingface_hub")
    from shamisa.hub import QualityModel

    QualityModel.of(SMALL, regressor).save_pretrained(tmp_path / "model")
    return QualityModel, tmp_path / "model"


def test_hub_folder_gives_the_same_scores(saved, images, expected):
    QualityModel, folder = saved
    assert {"config.json", "model.safetensors"} <= {p.name for p in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert CHECKPOINT not in str(config)
    assert config["encoder"] == "shamisa/small" and config["about"]["low"] == 1
    model = QualityModel.from_pretrained(folder, batch=3)
    assert model.batch == 3
    assert_close(model(images), expected, atol=1e-6, rtol=0)
    model.save_pretrained(folder.with_name("again"))
    assert (folder.with_name("again") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_hub_refuses_other_weights(saved):
    from safetensors.torch import load_file, save_file

    QualityModel, folder = saved
    weights = load_file(folder / "model.safetensors")
    name = "encoder.network.stages.0.0.weight"
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="must hold the encoder of the regressor, hash"):
        QualityModel.from_pretrained(folder)
    save_file({k: v for k, v in weights.items() if k != "coef"}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit its config.json: missing coef \[512\]"):
        QualityModel.from_pretrained(folder)


# ---- pyiqa -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def pyiqa(monkeypatch):
    """The two registries of pyiqa where it is not installed (its architectures are built from metric_opts)."""

    class Registry(dict):
        def register(self, kind):
            assert kind.__name__ not in self
            self[kind.__name__] = kind

    names = ("pyiqa", "pyiqa.default_model_configs", "pyiqa.utils", "pyiqa.utils.registry")
    modules = {name: types.ModuleType(name) for name in names}
    modules["pyiqa.default_model_configs"].DEFAULT_CONFIGS = {"psnr": {"metric_opts": {"type": "PSNR"}}}
    modules["pyiqa.utils.registry"].ARCH_REGISTRY = Registry()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["pyiqa.default_model_configs"].DEFAULT_CONFIGS, modules["pyiqa.utils.registry"].ARCH_REGISTRY


def test_pyiqa_registration(pyiqa, images, expected, regressor):
    configs, architectures = pyiqa
    pyiqa_plugin.register(SMALL, regressor)
    pyiqa_plugin.register(SMALL, regressor, name="shamisa-again")
    assert configs["shamisa"]["metric_mode"] == "NR" and not configs["shamisa"]["lower_better"]
    options = dict(configs["shamisa-again"]["metric_opts"])
    net = architectures[options.pop("type")](**options)
    assert_close(net(images / 255), expected.unsqueeze(1), atol=1e-6, rtol=0)
    assert net(images[:, :1] / 255).shape == (5, 1)
    with pytest.raises(ValueError, match="name must be new to pyiqa, got 'psnr'"):
        pyiqa_plugin.register(SMALL, regressor, name="psnr")


def test_real_pyiqa(images, expected, regressor):
    real = pytest.importorskip("pyiqa")
    pyiqa_plugin.register(SMALL, regressor, name="shamisa-test")
    metric = real.create_metric("shamisa-test", device="cpu")
    assert_close(metric(images / 255), expected.unsqueeze(1), atol=1e-6, rtol=0)


def test_pyiqa_missing(monkeypatch, regressor):
    for name in ("pyiqa", "pyiqa.default_model_configs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match="needs pyiqa: pip install pyiqa"):
        pyiqa_plugin.register(SMALL, regressor)
