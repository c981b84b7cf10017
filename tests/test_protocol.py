"""Groups of images and their medians, against the metrics of the very images."""

import math

import numpy as np
from numpy.testing import assert_allclose

from shamisa.datasets.labels import Labels
from shamisa.scoring import metrics, protocol, ridge

RNG = np.random.default_rng(0)
SCORE, PREDICTION = RNG.normal(size=(2, 12))
KINDS = ["blur"] * 5 + ["jpeg"] * 5 + ["rare"] * 2
LEVELS = ["10", "2", "1"] * 4


def labels(**more):
    return Labels("s", [str(i) for i in range(12)], SCORE, -3, 3, False, **more)


def test_groups_are_those_of_the_labels():
    assert protocol.by_group(PREDICTION, labels()) == {}
    found = protocol.by_group(PREDICTION, labels(distortion=KINDS, level=LEVELS))
    assert list(found) == ["distortion", "level"] and list(found["level"]) == ["1", "2", "10"]
    blur = found["distortion"]["blur"]
    assert blur["n"] == 5
    for key in protocol.GROUP_METRICS:
        assert_allclose(blur[key], getattr(metrics, key)(PREDICTION[:5], SCORE[:5]))
    assert_allclose(found["level"]["10"]["srcc"], metrics.srcc(PREDICTION[::3], SCORE[::3]))
    rare = found["distortion"]["rare"]
    assert rare["n"] == 2 and math.isnan(rare["srcc"])  # two images always correlate


def test_medians_are_over_the_splits_that_have_the_group():
    one = protocol.by_group(PREDICTION, labels(distortion=KINDS))
    two = protocol.by_group(-PREDICTION, labels(distortion=KINDS[:5] + ["other"] * 7))
    found = protocol.median_groups([{"groups": one}, {"groups": two}])["distortion"]
    assert list(found) == ["blur", "jpeg", "other", "rare"]
    assert_allclose(found["blur"]["srcc"], 0, atol=1e-12)
    assert found["blur"]["splits"] == 2 and found["jpeg"]["splits"] == 1
    assert found["jpeg"]["srcc"] == one["distortion"]["jpeg"]["srcc"]
    assert found["rare"]["splits"] == 0 and math.isnan(found["rare"]["srcc"])


def test_printed_groups_name_every_encoder():
    numbers = [{"groups": protocol.by_group(PREDICTION, labels(distortion=KINDS))}]
    text = protocol.group_table([("one", numbers)])
    blur = next(line for line in text.splitlines() if line.startswith("blur"))
    assert blur.split() == [
        "blur",
        "5",
        *(f"{getattr(metrics, k)(PREDICTION[:5], SCORE[:5]):.4f}" for k in ("srcc", "plcc")),
    ]
    both = protocol.group_table([("one", numbers), ("two", numbers)])
    assert "encoders: 1 one, 2 two" in both and len(next(x for x in both.splitlines() if "jpeg" in x).split()) == 6
    assert protocol.group_table([("one", [{"groups": {}}])]) == ""


def test_a_strength_at_the_end_of_the_range_is_told():
    def split(alpha):
        return {"n": {"test": 12}, "alpha": alpha, **metrics.summary(PREDICTION, SCORE)}

    inside, end = ("middle", [split(1.0)]), ("end", [split(ridge.ALPHAS[-1])])
    assert "may lie beyond" not in protocol.table([inside])
    assert "end: the chosen strength is at an end of the range 0.001 to 1000; a" in protocol.table([inside, end])
    several = protocol.table([("x", [split(1.0), split(ridge.ALPHAS[0])])])
    assert "x: the chosen strength is at an end of the range 0.001 to 1000 in 1 of 2 splits" in several


def test_nan_is_null_in_json():
    assert protocol.finite({"a": [math.nan, 1.5, {"b": math.inf}], "c": "x"}) == {
        "a": [None, 1.5, {"b": None}],
        "c": "x",
    }
