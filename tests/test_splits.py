"""Random, official and published splits, their hash, and those that cannot be."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from shamisa.datasets.labels import LabelError, Labels
from shamisa.datasets.splits import Split, make_splits, read_splits, shared_references


def labels(n=40, references=None, split=None):
    reference = [f"r{i % references}" for i in range(n)] if references else None
    files = [f"{i}.png" for i in range(n)]
    return Labels("some", files, np.arange(n, dtype=float), 0, n, False, reference, split=split)


@pytest.mark.parametrize("references", [None, 10])
def test_random_splits(references):
    some = labels(200, references)
    splits = make_splits(some, 3, seed=1)
    for s in splits:
        together = np.concatenate([s.train, s.val, s.test])
        assert_array_equal(np.sort(together), np.arange(200))
        assert (len(s.train), len(s.val), len(s.test)) == (140, 20, 40) and not s.carved
        assert not shared_references(some, s)
    again = make_splits(some, 2, seed=1)
    assert [s.hash(some) for s in again] == [s.hash(some) for s in splits[:2]]
    assert len({s.hash(some) for s in splits + make_splits(some, 1, seed=2)}) == 4


def test_hash_of_a_split_is_about_names_not_rows():
    some, order = labels(20), np.random.default_rng(0).permutation(20)
    split = Split(np.arange(10), np.arange(10, 14), np.arange(14, 20), "a")
    moved = Split(*(np.flatnonzero(np.isin(order, p)) for p in (split.train, split.val, split.test)), "b")
    assert split.hash(some) == moved.hash(some.take(order))
    assert split.hash(some) != Split(split.test, split.val, split.train, "a").hash(some)


@pytest.mark.parametrize("references", [None, 16])
def test_official_split(references):
    def part(i):
        return "test" if i % 16 < 4 else "train"

    some = labels(160, references, [part(i) for i in range(160)])
    (split,) = make_splits(some, 10, seed=3)
    assert split.carved and len(split.test) == 40 and len(split.train) + len(split.val) == 120
    assert 10 <= len(split.val) <= 20
    given = labels(90, None, ["train"] * 50 + ["val"] * 20 + ["test"] * 20)
    (split,) = make_splits(given, 10)
    assert not split.carved and (len(split.train), len(split.val), len(split.test)) == (50, 20, 20)


@pytest.mark.parametrize(
    "some, message",
    [
        (labels(10, None, ["train"] * 10), r"must have rows of test, got \['train'\]"),
        (
            labels(10, 2, ["train"] * 5 + ["test"] * 5),
            "more than 1 images or references|references in more than one part",
        ),
        (
            labels(8, 4, ["train", "val", "test", "train"] + ["val", "val", "test", "train"]),
            "1 references in more than one part, the first is r0",
        ),
        (labels(10, 2), "more than 2 images or references to split, got 2"),
        (labels(3), "must have at least 2 images"),
    ],
)
def test_splits_that_cannot_be(some, message):
    with pytest.raises(LabelError, match=message):
        make_splits(some, 1)


def test_published_splits(tmp_path):
    some = labels(10, 5)
    tables = {"train": [[0, 5, 1, 6], [2, 7, -1, -1]], "val": [[2, 7], [1, 6]], "test": [[3, 8, 4, 9], [3, 8, -1, -1]]}
    for part, rows in tables.items():
        np.save(tmp_path / f"{part}.npy", np.array(rows))
    first, second = read_splits(tmp_path, some)
    assert_array_equal(first.train, [0, 1, 5, 6])
    assert_array_equal(second.test, [3, 8])
    with pytest.raises(LabelError, match="positions in 0..6, got"):
        read_splits(tmp_path, labels(7))
    np.save(tmp_path / "val.npy", np.array([[2, 3], [1, 6]]))
    with pytest.raises(LabelError, match="split 0 has 1 images in more than one part, the first is 3.png"):
        read_splits(tmp_path, some)
    assert len(read_splits(tmp_path, some, check=False)) == 2
    np.save(tmp_path / "val.npy", np.array([2, 7]))
    with pytest.raises(LabelError, match="equally many splits"):
        read_splits(tmp_path, some)
    np.save(tmp_path / "val.npy", np.array([0.5]))
    with pytest.raises(LabelError, match="must hold integers"):
        read_splits(tmp_path, some)
    (tmp_path / "val.npy").unlink()
    with pytest.raises(LabelError, match="cannot read the split"):
        read_splits(tmp_path, some)
