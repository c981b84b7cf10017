"""Errors of public functions: the argument by name, what was expected, what came; and packages that are missing."""

from __future__ import annotations

import pytest
import torch

import shamisa
import shamisa.functional as SF
from shamisa import checks
from shamisa.cli import guard
from shamisa.data import make_references
from shamisa.data.decode import Limits
from shamisa.data.embedded import EmbeddedPhotos, dead_leaves
from shamisa.engine import DistortionEngine, normalize
from shamisa.relations import RelationLoss
from shamisa.scoring.crops import check_view
from shamisa.training import config as configuration
from shamisa.training.config import Config

IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
SEVERITY = torch.zeros(1, 1, 2)
ROWS = torch.zeros(4, 3)
GRAPH = SF.RelationGraph(torch.ones(1), torch.tensor([[0], [1]]), 4)
ENGINE = DistortionEngine(compositions=1, levels=2)


def photos(**options):
    return EmbeddedPhotos(**options)


def references(**fields):
    return make_references(EmbeddedPhotos(leaves=1), **({"batch_size": 1, "seed": 0} | fields))


def distort(images=IMAGES, name="jpeg", **options):
    return shamisa.distort(images, name, **({} if "value" in options else {"severity": 1.0}) | options)


def merge(graphs):
    return SF.merge_graphs(graphs)


TABLE = (  # function, bad argument, the error's words
    (distort, {"images": [1]}, "images must be a torch.Tensor, got list"),
    (distort, {"images": IMAGES[:, :2]}, r"images must be \[N, 3, H, W\] .* got \[2, 2, 32, 32\]"),
    (distort, {"images": IMAGES.int()}, "images must be uint8, float16, .* got torch.int32"),
    (distort, {"name": "blur"}, "name must be one of .* got 'blur'"),
    (distort, {"severity": 5.0}, r"severity must lie in \[0, 4\], got 5.0"),
    (distort, {"severity": "1"}, "severity must be a number .* got '1'"),
    (distort, {"value": float("nan")}, "value must lie in .* got nan"),
    (distort, {"seed": 1.5}, "seed must be a 64-bit integer, got 1.5"),
    (distort, {"seed": 2**63}, "seed must be a 64-bit integer, got 9223372036854775808"),
    (distort, {"backend": "gpu"}, "backend must be one of auto, native, reference, got 'gpu'"),
    (normalize, {"images": IMAGES[0, 0]}, r"images must be \[..., 3, H, W\], got \[32, 32\]"),
    (DistortionEngine, {"compositions": 0}, "compositions must be an integer in 1..256, got 0"),
    (DistortionEngine, {"compositions": True}, "compositions must be an integer in 1..256, got True"),
    (DistortionEngine, {"levels": 2.0}, "levels must be an integer in 1..192, got 2.0"),
    (DistortionEngine, {"max_distortions": 8}, "max_distortions must be an integer in 1..7, got 8"),
    (DistortionEngine, {"severity": "normal"}, "severity must be one of gaussian, uniform, got 'normal'"),
    (DistortionEngine, {"order": None}, "order must be one of random, fixed, got None"),
    (DistortionEngine, {"noise": "new"}, "noise must be one of per_level, shared, got 'new'"),
    (DistortionEngine, {"rounding": "up"}, "rounding must be one of published, minimal, got 'up'"),
    (DistortionEngine, {"distortions": []}, "distortions must name some of .* got none"),
    (DistortionEngine, {"distortions": ["fog"]}, "distortions must name some of .* got fog"),
    (ENGINE.sample, {"batch_size": 0}, r"batch_size must be an integer in 1..2\^32-1, got 0"),
    (ENGINE.sample, {"batch_size": 1, "step": -1}, r"step must be an integer in 0..2\^32-1, got -1"),
    (ENGINE.sample, {"batch_size": 1, "first_sample": 2**32}, r"first_sample must be an integer in 0..2\^32-1, got"),
    (ENGINE.sample, {"batch_size": 1, "seed": "0"}, "seed must be a 64-bit integer, got '0'"),
    (ENGINE, {"references": 0, "plan": None}, "references must be a torch.Tensor, got int"),
    (ENGINE, {"references": IMAGES[None], "plan": None}, "plan must be a shamisa.Plan, got NoneType"),
    (shamisa.Plan.from_json, {"text": "{}"}, r"plan must be a JSON object .* got \[\]"),
    (RelationLoss, {"feature_dim": 0}, "feature_dim must be an integer of at least 1, got 0"),
    (RelationLoss, {"graphs": ("knn", "fog")}, "graphs must name some of .* got fog"),
    (RelationLoss, {"anchors": 1}, "anchors must be an integer in 2..65536, got 1"),
    (RelationLoss, {"halves": "none"}, "halves must be one of published, scale, got 'none'"),
    (RelationLoss, {"temperature": 0}, "temperature must be a number above 0, got 0"),
    (RelationLoss, {"variance_weight": float("inf")}, "variance_weight must be a finite number of at least 0, got inf"),
    (
        SF.structural_graph,
        {"severity": ROWS},
        r"severity must be \[B, C, L\] floating point, got \[4, 3\] torch.float32",
    ),
    (SF.structural_graph, {"severity": SEVERITY, "views": 0}, "views must be an integer of at least 1, got 0"),
    (SF.structural_graph, {"severity": SEVERITY, "classes": "odd"}, "classes must be one of parity, .* got 'odd'"),
    (SF.ref_dist_graph, {"severity": SEVERITY + 5}, r"severity must lie in \[0, 4\], got 5..5"),
    (SF.ref_ref_graph, {"severity": None}, "severity must be a torch.Tensor, got NoneType"),
    (SF.dist_dist_graph, {"severity": SEVERITY, "edges": -1}, "edges must be an integer of at least 0, got -1"),
    (SF.dist_dist_graph, {"severity": SEVERITY, "cap": "all"}, "cap must be one of batch, sample, got 'all'"),
    (
        SF.dist_dist_graph,
        {"severity": SEVERITY, "decay": "no"},
        "decay must be one of exponential, reciprocal, got 'no'",
    ),
    (SF.knn_graph, {"h": ROWS, "k": 2.5}, "k must be an integer of at least 1, got 2.5"),
    (SF.knn_graph, {"h": ROWS[:1]}, "rows of h must be at least 2, got 1"),
    (SF.transport_logits, {"h": ROWS, "anchors": ROWS.int()}, r"anchors must be \[K, F\] floating point, got"),
    (SF.transport_codes, {"logits": ROWS, "rounds": 0}, "rounds must be an integer of at least 1, got 0"),
    (
        SF.transport_codes,
        {"logits": ROWS, "temperature": float("nan")},
        "temperature must be a finite number above 0, got nan",
    ),
    (SF.transport_graph, {"logits": ROWS, "select": "none"}, "select must be one of global, row, got 'none'"),
    (merge, {"graphs": []}, r"graphs must be of one number of nodes, got \[\]"),
    (SF.pair_cost, {"z": ROWS[:2], "graph": GRAPH}, r"z must be \[N, E\] with N = 4 on cpu, got \[2, 3\] on cpu"),
    (SF.variance, {"x": ROWS[:1]}, "rows of x must be at least 2, got 1"),
    (SF.covariance, {"x": torch.zeros(0, 3)}, r"x must be \[n, E\], none of them 0, got \[0, 3\]"),
    (photos, {"split": "dev"}, "split must be one of .* got 'dev'"),
    (photos, {"leaves": -1}, r"leaves must be an integer in 0..2\^30, got -1"),
    (photos, {"size": 31}, "size must be an integer in 32..4096, got 31"),
    (dead_leaves, {"index": 2**32}, r"index must be an integer in 0..2\^32-1, got 4294967296"),
    (dead_leaves, {"index": 0, "seed": None}, "seed must be a 64-bit integer, got None"),
    (references, {"reader": "cv2"}, "reader must be one of pillow, dali, got 'cv2'"),
    (references, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    (references, {"seed": 0.5}, "seed must be a 64-bit integer, got 0.5"),
    (references, {"pad": "wrap"}, "pad must be one of zero, reflect, got 'wrap'"),
    (references, {"max_skipped": 2}, "max_skipped must be a number in 0..1, got 2"),
    (Limits, {"max_pixels": 0}, "max_pixels must be an integer of at least 1, got 0"),
    (Limits, {"max_seconds": None}, "max_seconds must be a number in 0..999999, got None"),
    (Limits, {"truncated": "mend"}, "truncated must be one of skip, read, got 'mend'"),
    (check_view, {"view": 15}, "view must be full or a number of pixels in 16..65536, got 15"),
    (Config, {"batch": 0}, "batch must be an integer in 1..4096, got 0"),
    (Config, {"batch": "2"}, "batch must be an integer in 1..4096, got '2'"),
    (Config, {"order": "sorted"}, "order must be one of random, fixed, got 'sorted'"),
    (Config, {"encoder": "resnet"}, "encoder must be torchvision/NAME, .* got 'resnet'"),
    (configuration.resolve, {"preset": "none", "given": {}}, "preset must be one of demo, paper, .* got 'none'"),
)


@pytest.mark.parametrize(
    "function, given, words",
    TABLE,
    ids=[f"{getattr(f, '__name__', 'engine')}-{list(g)[-1]}-{i}" for i, (f, g, _) in enumerate(TABLE)],
)
def test_an_error_names_argument_expectation_and_value(function, given, words):
    with pytest.raises((ValueError, TypeError), match=f"^{words}"):
        function(**given)


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    assert type(checks.integer("n", np.int64(3), 1)) is int
    assert type(checks.number("x", np.float32(0.5), 0, 1)) is float


def test_a_missing_package_is_told_in_one_line(capsys):
    """For those who caught what 0.1.0 raised, it is a RuntimeError too."""
    with pytest.raises(
        checks.MissingPackage, match=r"^fog needs its package: pip install 'shamisa\[fog\]' \(No module"
    ):
        checks.need("no_such_package", "fog needs its package", "shamisa[fog]")
    assert issubclass(checks.MissingPackage, ImportError) and issubclass(checks.MissingPackage, RuntimeError)
    work = lambda: checks.need(("no_such_package", "math"), "fog needs it", "fog")  # noqa: E731
    assert guard("fog", work, "nothing") == 2
    assert capsys.readouterr().err.startswith("shamisa fog: fog needs it: pip install fog (")
