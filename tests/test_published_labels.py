"""The parsers on the real label files and published splits, where SHAMISA_LABELS names the folder that holds them.

``SHAMISA_LABELS=DIR pytest tests/test_published_labels.py -s`` prints what was found as a table. The folder holds the files
under ``FILES`` and, in splits/SET/splits, train.npy, val.npy and test.npy.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from shamisa.datasets import iqa_sets
from shamisa.datasets.labels import LabelError
from shamisa.datasets.splits import check_split, read_splits

ROOT = Path(os.environ.get("SHAMISA_LABELS", ""))
pytestmark = pytest.mark.skipif(not os.environ.get("SHAMISA_LABELS"), reason="SHAMISA_LABELS names no folder")

# set, file in the folder, its name in the set's own layout, rows, references, distortions, levels
FILES = [
    ("live", "LIVE.txt", "LIVE.txt", 779, 29, 5, 0),
    ("csiq", "CSIQ.txt", "CSIQ.txt", 866, 30, 6, 5),
    ("csiq", "CSIQ_csiq_label.txt", "csiq_label.txt", 866, 30, 6, 5),
    ("tid2013", "TID2013.txt", "TID2013.txt", 3000, 25, 24, 5),
    ("tid2013", "TID2013_mos_with_names.txt", "mos_with_names.txt", 3000, 25, 24, 5),
    ("kadid10k", "KADID-10k.txt", "KADID-10k.txt", 10125, 81, 25, 5),
    ("kadid10k", "KADID10K_names_with_mos.txt", "names_with_mos.txt", 10125, 81, 25, 5),
    ("koniq10k", "KonIQ-10k.txt", "KonIQ-10k.txt", 10073, 0, 0, 0),
    ("spaq", "SPAQ.txt", "SPAQ.txt", 11125, 0, 0, 0),
    ("clive", "LIVE_Challenge.txt", "LIVE_Challenge.txt", 1161, 0, 0, 0),  # of 1162: the list lacks 100.bmp
]
OUTSIDE = {"live": 24}  # scores beyond the ends of the scale: realigned DMOS reach from -2.6 to 111.8
SPLITS = {"live": "LIVE", "csiq": "CSIQ", "tid2013": "TID2013", "kadid10k": "KADID10K", "koniq10k": "KonIQ-10k"}
SPLITS |= {"spaq": "SPAQ", "clive": "CLIVE"}


def read(name, file, called, tmp_path):
    (tmp_path / called).symlink_to(ROOT / file)
    return iqa_sets.read_set(name, tmp_path)


@pytest.mark.parametrize("name, file, called, rows, references, distortions, levels", FILES, ids=[f[1] for f in FILES])
def test_counts_ranges_and_groups(tmp_path, name, file, called, rows, references, distortions, levels):
    found, spec = read(name, file, called, tmp_path), iqa_sets.SETS[name]
    groups = [len(set(g or ())) for g in (found.reference, found.distortion, found.level)]
    low, high = found.score.min(), found.score.max()
    print(
        f"\n{file:28}{len(found):7} rows, scores {low:8.4f} ..{high:9.4f} on {spec.low:g}..{spec.high:g}, "
        f"{groups[0]:3} references, {groups[1]:3} distortions, {groups[2]:2} levels",
        end="",
    )
    assert (len(found), *groups) == (rows, references, distortions, levels)
    assert len(found) == spec.images - (name == "clive") and (spec.references or 0) == references
    assert len(set(found.files)) == rows
    assert int(((found.score < spec.low) | (found.score > spec.high)).sum()) == OUTSIDE.get(name, 0)


@pytest.mark.parametrize("name", ["csiq", "tid2013", "kadid10k"])
def test_two_label_files_of_a_set_agree(tmp_path, name):
    both = []
    for i, (_, file, called, *_) in enumerate(f for f in FILES if f[0] == name):
        (tmp_path / str(i)).mkdir()
        both.append(read(name, file, called, tmp_path / str(i)))
    a, b = both
    assert [f.lower() for f in a.files] == [f.lower() for f in b.files]
    assert (a.reference, a.distortion, a.level) == (b.reference, b.distortion, b.level)
    assert_allclose(a.score, b.score, atol=6e-5)  # the lists are rounded


@pytest.mark.parametrize("name", SPLITS)
def test_published_splits_are_disjoint(tmp_path, name):
    """By images and by references: ``check_split`` raises otherwise. No exceptions in these sets, but for one list."""
    _, file, called, *_ = next(f for f in FILES if f[0] == name)
    found, folder = read(name, file, called, tmp_path), ROOT / "splits" / SPLITS[name] / "splits"
    if name == "clive":  # the splits are of 1162 images, the list has 1161
        with pytest.raises(LabelError, match=r"positions in 0..1160, got .*1161"):
            read_splits(folder, found)
        splits = read_splits(folder, found, check=False)
    else:
        splits = [check_split(found, s) for s in read_splits(folder, found)]
    assert len(splits) == 10
    sizes = [[len(p) for p in (s.train, s.val, s.test)] for s in splits]
    print(f"\n{name:10} 10 splits, train/val/test of the first {sizes[0]}, disjoint by image and reference", end="")
    for s in splits:
        together = np.concatenate([s.train, s.val, s.test])
        assert len(together) == len(np.unique(together)) == iqa_sets.SETS[name].images


def test_flive_splits_without_its_labels():
    tables = [np.atleast_2d(np.load(ROOT / "splits/FLIVE/splits" / f"{p}.npy")) for p in ("train", "val", "test")]
    for i in range(len(tables[0])):
        together = np.concatenate([t[i][t[i] >= 0] for t in tables])
        assert len(together) == len(np.unique(together)) and together.max() < iqa_sets.SETS["flive"].images
    print(f"\nflive      {len(tables[0])} splits of {len(together)} images, disjoint by image", end="")
