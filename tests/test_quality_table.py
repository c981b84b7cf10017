"""The table of the quality model: folds never see test, rows stand for what they say, peers that are missing are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import quality_table
from shamisa.datasets.labels import Labels
from shamisa.datasets.splits import check_split


def labels(n: int = 40) -> Labels:
    rng = np.random.default_rng(0)
    return Labels(
        "set", [f"{i}.png" for i in range(n)], rng.random(n), 0.0, 1.0, False, split=["test"] * 8 + ["train"] * (n - 8)
    )


def test_folds_cover_train_once_and_never_test():
    found = quality_table.fold_splits(labels(), 4)
    tested = np.concatenate([check_split(labels(), s).test for s in found])
    assert sorted(tested) == list(range(8, 40))
    assert all(min(np.concatenate([s.train, s.val])) >= 8 for s in found)


def test_a_feature_that_is_the_score_wins_and_a_score_is_judged_as_it_comes():
    known = labels()
    splits = quality_table.fold_splits(known, 4)
    y = torch.from_numpy(known.score).float()
    noise = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(0))
    best = quality_table.fitted("best", y[:, None, None].expand(-1, 5, 1), known, splits)
    other = quality_table.fitted(
        "beside", lambda s: quality_table.beside(noise, y[:, None, None].expand(-1, 5, 1), s), known, splits
    )
    assert best["srcc"] == pytest.approx(1) and best["dimension"] == 1
    assert other["dimension"] == 4 and other["srcc"] > 0.8
    comes = quality_table.as_it_comes("comes", -known.score, known, splits, lower_better=True)
    assert comes["srcc"] == pytest.approx(1) and comes["dimension"] is None


def test_last_layer_is_the_first_columns_of_each_scale():
    stages = torch.arange(2 * 1500.0).expand(2, 5, -1)
    found = quality_table.last_layer(stages)
    assert found.shape == (2, 5, 2560) and found[0, 0, 1280] == 1500


def test_the_table_names_what_is_missing():
    rows = [
        {"row": "brisque", "missing": "brisque cannot be imported"},
        quality_table.row("ours", 3, [dict.fromkeys(quality_table.METRICS, 0.5)]),
    ]
    text = quality_table.text(rows, "set")
    assert "brisque cannot be imported" in text and "0.500 .. 0.500" in text


def test_only_files_that_are_new_are_computed(tmp_path):
    calls = []

    def make(paths):
        calls.append([p.name for p in paths])
        values = np.array([float(ord(p.stem)) for p in paths])
        return values, np.stack([values, -values], 1)

    for names, values in (("ab", [97, 98]), ("ab", [97, 98]), ("cba", [99, 98, 97])):
        scores, features = quality_table.kept_on_disk("x", tmp_path, [tmp_path / f"{n}.png" for n in names], make)
        assert scores.tolist() == values and features[:, 1].tolist() == [-v for v in values]
    assert calls == [["a.png", "b.png"], ["c.png"]]


def test_bad_arguments_end_before_work(capsys):
    with pytest.raises(SystemExit):
        quality_table.main(["--labels", "x.csv"])
    with pytest.raises(SystemExit):
        quality_table.main(["--labels", "x.csv", "--folds", "1"])
    assert "--folds must be at least 2, got 1" in capsys.readouterr().err
