"""Features of several stages: one definition for everything that trains, probes, scores and exports."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from shamisa import hub, metric
from shamisa.engine import IMAGENET_MEAN, IMAGENET_STD, normalize
from shamisa.export import export, load_program
from shamisa.networks import checkpoints
from shamisa.networks.models import Encoder
from shamisa.networks.stages import EPS
from shamisa.scorer import Scorer, load_quality_net, load_scorer
from shamisa.scoring import features
from shamisa.scoring.features import Extractor, hash_encoder
from shamisa.scoring.inputs import open_encoder
from shamisa.scoring.quality import QualityNet
from shamisa.scoring.ridge import Regressor
from shamisa.training import runs
from shamisa.training.config import Config
from shamisa.training.learner import Learner
from shamisa.training.trainer import Trainer

SMALL = "shamisa/small"
LITE = "timm/tf_efficientnet_lite0"


def build(name: str, choice: str) -> Encoder:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    encoder = Encoder(name, "none", choice)
    encoder.train()(torch.randn(4, 3, 64, 64))  # so that normalisation is not that of fresh weights
    return encoder.eval()


def stages_of(encoder: Encoder) -> list[nn.Module]:
    """The modules whose outputs the features are, told apart from how the encoder walks."""
    network = encoder.network
    if encoder.name.startswith("torchvision"):
        return [getattr(network, f"layer{i}") for i in range(1, 5)]
    return list(network.stages if encoder.name == SMALL else network.blocks)


def expected(encoder: Encoder, x: torch.Tensor, groups: list[str]) -> torch.Tensor:
    """By forward hooks and float64."""
    maps, hooks = {}, []
    for i, module in enumerate(stages_of(encoder)):
        hooks.append(module.register_forward_hook(lambda m, a, out, i=i: maps.update({f"stage{i + 1}": out.double()})))
    rows = []
    last = encoder.network(x).double()
    for hook in hooks:
        hook.remove()
    for group in groups:
        if group == "last":
            rows.append(last)
            continue
        flat = maps[group].flatten(2)
        rows += [flat.mean(2), (flat.var(2, correction=0) + EPS).sqrt()]
    return torch.cat([r / r.norm(dim=1, keepdim=True) for r in rows], 1)


@pytest.mark.parametrize(
    ("name", "count", "F"),
    [(SMALL, 4, 256 + 2 * (24 + 48 + 96 + 256)), ("torchvision/resnet18", 4, 512 + 2 * 960), (LITE, 7, 2848)],
)
def test_stages_are_mean_and_deviation_of_every_stage(name, count, F):
    encoder = build(name, "stages")
    x = torch.randn(3, 3, 72, 65)
    names = ["last", *(f"stage{i + 1}" for i in range(count))]
    with torch.no_grad():
        h, wanted = encoder(x), expected(encoder, x, names)
    assert h.shape == (3, F) == (3, encoder.feature_dim) and h.dtype == torch.float32
    torch.testing.assert_close(h.double(), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h.norm(dim=1), torch.full((3,), (2 * count + 1) ** 0.5))  # each group has norm 1
    last_format = copy.deepcopy(encoder).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(
            last_format(x.contiguous(memory_format=torch.channels_last)), h, rtol=1e-3, atol=1e-4
        )


def test_some_stages_in_any_order_have_one_spelling():
    encoder = build(SMALL, "stage3, last,stage1")
    assert encoder.features == "last,stage1,stage3" and encoder.feature_dim == 256 + 2 * (24 + 96)
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        wanted = expected(encoder, x, ["last", "stage1", "stage3"])
        torch.testing.assert_close(encoder(x).double(), wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(encoder.select("last")(x), encoder.network(x))  # not normalised: the published features
    assert encoder.select("stage4,stage3,last,stage2,stage1").features == "stages"


def test_features_of_other_networks_of_timm():
    timm = pytest.importorskip("timm")
    encoder = build("timm/resnet18", "stages")
    channels = [about["num_chs"] for about in timm.create_model("resnet18").feature_info]  # the stem and four stages
    assert len(channels) == 5
    assert encoder.feature_dim == 512 + 2 * sum(channels)
    with torch.no_grad():
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(
            encoder(x)[:, :512], nn.functional.normalize(encoder.network(x)), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        (SMALL, "stage5", r"must be stages or some of last, stage1, stage2, stage3, stage4, got 'stage5'"),
        (SMALL, "last,layer1", "got 'layer1'"),
        (SMALL, "", "features must be last, stages, or different ones"),
        (SMALL, "last,last", "different ones of .*got 'last,last'"),
        (SMALL, "stages,last", "features must be last, stages, or"),
        ("torchvision/shufflenet_v2_x0_5", "stages", "need shamisa/small, a ResNet .*choose features last"),
    ],
)
def test_unknown_stages_are_refused(name, choice, message):
    with pytest.raises(ValueError, match=message):
        Encoder(name, "none", choice)


def test_an_unknown_stage_leaves_the_choice_as_it_was():
    encoder, x = build(SMALL, "stages"), torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        before = encoder(x)
        with pytest.raises(ValueError, match="got 'stage5'"):
            encoder.select("stage5")
        assert encoder.features == "stages" and torch.equal(encoder(x), before)


@pytest.mark.parametrize("name", [SMALL, "torchvision/resnet18", LITE])
def test_the_walk_is_one_graph(name):
    encoder, x = build(name, "stages"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), encoder(x), rtol=1e-5, atol=1e-6)
    a, b = (copy.deepcopy(encoder).train() for _ in range(2))
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)


def test_constant_images_have_finite_gradients():
    encoder = build(SMALL, "stages").train()
    x = torch.zeros(3, 3, 48, 48, requires_grad=True)
    encoder(x).square().mul(torch.rand(encoder.feature_dim)).sum().backward()
    assert bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_statistics_are_float32_under_autocast():
    encoder, x = build(SMALL, "stages"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h = encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = encoder(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, h, rtol=0.05, atol=0.02)
    assert not torch.equal(low, h)


# ---- training --------------------------------------------------------------------------------------------------------
def tiny(photos, **fields) -> Config:
    given = {"encoder": SMALL, "init": "none", "crop": 48, "batch": 1, "hidden": 16, "embedding": 8, "anchors": 4}
    return Config(refs=str(photos), steps=2, workers=0, tensorboard=False, **given | fields)


def test_parameters_that_h_does_not_reach_are_left_out():
    learner = Learner(tiny("embedded", features="stage1,stage2"))
    frozen = {n for n, p in learner.encoder.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in learner.encoder.named_parameters() if n.split(".")[2] in "23"} != set()
    assert all(p.requires_grad for p in Learner(tiny("embedded", features="stages")).encoder.parameters())


def train(config, folder, encoder=None):
    trainer = Trainer(config, quiet=True, encoder=encoder)
    trainer.fit(run := runs.Run.create(folder, {"config": {}}))
    run.release()
    return trainer, run


def test_a_run_records_its_features_and_is_loaded_with_them(photos, tmp_path):
    trainer, run = train(tiny(photos, features="stage2,last"), tmp_path / "run")
    index = checkpoints.find_checkpoint(run.path).index
    assert index["features"] == "last,stage2" and index["mean"] == list(IMAGENET_MEAN)
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        h = trainer.model.encoder.eval()(x)
        loaded = checkpoints.load_encoder(run.path)
        assert loaded.features == "last,stage2"
        torch.testing.assert_close(loaded(x), h, rtol=1e-5, atol=1e-6)
        for other in (checkpoints.load_encoder(run.path, features="last"), open_encoder(run.path, features="last")):
            torch.testing.assert_close(other(x), loaded.network(x))
    assert open_encoder("untrained:" + SMALL, features="stages").features == "stages"
    with pytest.raises(runs.RunError, match="some of last, stage1.*got 'stage9'"):
        checkpoints.load_encoder(run.path, features="stage9")
    with pytest.raises(ValueError, match=r"must have the features of the encoder shamisa/small, last, got last,stage2"):
        wrong = Trainer(tiny(photos), quiet=True)
        wrong.load(checkpoints.find_checkpoint(run.path))


# ---- everything that scores ------------------------------------------------------------------------------------------
def test_hashes_differ_with_the_choice_and_old_ones_stay():
    encoder = open_encoder("untrained:" + SMALL)
    old = hash_encoder(encoder)
    # what version 0.1 gave, by its definition
    import hashlib

    digest = hashlib.sha256(SMALL.encode())
    for name, t in sorted(encoder.state_dict().items()):
        digest.update(f"|{name}|{t.dtype}|{list(t.shape)}|".encode())
        digest.update(t.contiguous().flatten().view(torch.uint8).numpy())
    assert old == digest.hexdigest()
    found = {old, hash_encoder(encoder.select("stages")), hash_encoder(encoder.select("last,stage1"))}
    encoder.select("last").set_normalization((0.5,) * 3, (0.5,) * 3)
    found.add(hash_encoder(encoder))
    assert len(found) == 4
    encoder.set_normalization(IMAGENET_MEAN, IMAGENET_STD)
    assert hash_encoder(encoder) == old


def test_the_cache_keeps_choices_apart(photos, tmp_path):
    paths = sorted(photos.iterdir())[:2]
    for choice in ("last", "stages"):
        encoder = open_encoder("untrained:" + SMALL, features=choice)
        found = features.extract(Extractor(encoder, crop=24, cache=tmp_path), paths, progress=False)
        assert found.values.shape == (2, 5, 2 * encoder.feature_dim)
    assert len(list(tmp_path.iterdir())) == 2


def fitted(encoder, path, **about):
    coef = torch.randn(2 * encoder.feature_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    record = {"encoder": encoder.name, "encoder_hash": hash_encoder(encoder), "crop": 24, "low": 1, "high": 5}
    record |= {
        "lower_better": False,
        "features": encoder.features,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    Regressor(coef, torch.tensor(3.0, dtype=torch.float64), record | about).save(path)
    return path


@pytest.fixture
def unusual(tmp_path):
    """A checkpoint of stages and a normalisation of its own, its regressor, and images."""
    encoder = build(SMALL, "last,stage1,stage2")
    encoder.set_normalization((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    learner = Learner(tiny("embedded"), encoder)
    run = runs.Run.create(tmp_path / "run", {"config": {}})
    run.save(1, learner, torch.optim.SGD(learner.parameters()), {}, keep=1)
    run.release()
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 50, 61), generator=generator, dtype=torch.uint8)
    return run.path, fitted(encoder, tmp_path / "regressor.safetensors"), images


def test_all_that_score_agree(unusual, tmp_path):
    run, regressor, images = unusual
    scorer = load_scorer(run, regressor, device="cpu")
    encoder = scorer.extractor.encoder
    assert encoder.features == "last,stage1,stage2" and encoder.mean == (0.4, 0.5, 0.6)
    # by hand: normalised by the encoder's numbers
    crops = torch.stack([features.views(i, 24) for i in images]).flatten(0, 2)
    x = (crops.float() / 255 - torch.tensor(encoder.mean).view(3, 1, 1)) / torch.tensor(encoder.std).view(3, 1, 1)
    torch.testing.assert_close(normalize(crops, mean=encoder.mean, std=encoder.std), x, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        h = features.by_crop(encoder(x))
    wanted = scorer.regressor.quality(scorer.regressor.predict(h)).float()
    assert 0 < float(wanted.min()) and float(wanted.max()) < 1

    def close(found):
        torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-5)

    close(scorer(images))
    net = load_quality_net(run, regressor)
    close(net(images))
    summed = metric.SHAMISA(run, regressor, reduction="none", normalize=True)
    summed.update(images)
    close(summed.compute())
    # tensors said to be normalised are so by ImageNet's, whatever the encoder takes
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    close(net((images / 255 - mean) / std, normalized=True))
    hub.QualityModel.of(run, regressor).save_pretrained(tmp_path / "hub")
    close(hub.QualityModel.from_pretrained(tmp_path / "hub")(images))
    export(net, tmp_path / "program.pt2", hash_encoder(net.encoder))
    close(load_program(tmp_path / "program.pt2")(images)[0])
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(net, tmp_path / "program.onnx", hash_encoder(net.encoder))
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "program.onnx", providers=["CPUExecutionProvider"])
    close(torch.from_numpy(session.run(["score"], {"images": images.numpy()})[0]))
    assert '"features": "last,stage1,stage2"' in session.get_modelmeta().custom_metadata_map["shamisa"]


@pytest.mark.slow
def test_efficientnet_with_all_stages_is_exported(tmp_path):
    pytest.importorskip("timm")
    encoder = build(LITE, "stages")
    regressor = Regressor.load(fitted(encoder, tmp_path / "r.safetensors", crop=64))
    for name in ("p.pt2", "p.onnx"):  # compared with this package's scores before it gets its name
        assert export(QualityNet(encoder, regressor), tmp_path / name, "") <= 1e-4


def test_the_regressor_says_which_features_it_takes(unusual, tmp_path):
    run, _, images = unusual
    encoder = checkpoints.load_encoder(run, features="last")
    scorer = load_scorer(run, fitted(encoder, tmp_path / "last.safetensors"), device="cpu")
    assert scorer.extractor.encoder.features == "last" and scorer(images).shape == (2,)
    path = fitted(encoder, tmp_path / "none.safetensors", features="stage9")
    with pytest.raises(ValueError, match=r"none\.safetensors does not fit the checkpoint: .*got 'stage9'"):
        load_scorer(run, path, device="cpu")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"features": "last"},
            r"the encoder's features last,stage1,stage2 \(shamisa/small\), got one for features last$",
        ),
        (
            {"mean": [0.5, 0.5, 0.5]},
            r"encoder's mean 0\.4 0\.5 0\.6, std 0\.3 0\.2 0\.1 .*got one for mean 0\.5 0\.5 0\.5, std 0\.3 0\.2 0\.1",
        ),
        ({"mean": "x"}, "mean of the regressor must be three finite numbers, got 'x'"),
    ],
)
def test_a_scorer_refuses_a_regressor_of_other_features(unusual, tmp_path, about, message):
    run, _, _ = unusual
    encoder = checkpoints.load_encoder(run)
    regressor = Regressor.load(fitted(encoder, tmp_path / "other.safetensors", **about))
    with pytest.raises(ValueError, match=message):
        Scorer(encoder, regressor)
