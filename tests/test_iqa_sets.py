"""Label formats on short excerpts of their form, splits, and every error."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import savemat

from shamisa import iqa_sets
from shamisa.iqa_sets import LabelError, Labels, Split


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def labels(n=40, references=None, split=None):
    reference = [f"r{i % references}" for i in range(n)] if references else None
    return Labels(
        "some", [f"{i}.png" for i in range(n)], np.arange(n, dtype=float), 0, n, False, reference, None, split
    )


# set, label file, its text, then what the rows must become: files, scores, references, distortions
FORMATS = [
    (
        "live", "LIVE.txt",
        "dis_img_path,dis_type,ref_img_path,score\nLIVE/jp2k/img2.bmp,jp2k,LIVE/refimgs/studentsculpture.bmp,15.5\n",
        ["jp2k/img2.bmp"], [15.5], ["LIVE/refimgs/studentsculpture.bmp"], ["jp2k"],
    ),
    (
        "csiq", "csiq_label.txt", "1600.AWGN.1.png 0.061989\nwoman.jpeg2000.4.png 0.5\n",
        ["dst_imgs/AWGN/1600.AWGN.1.png", "dst_imgs/jpeg2000/woman.jpeg2000.4.png"], [0.061989, 0.5],
        ["1600", "woman"], ["AWGN", "jpeg2000"],
    ),
    (
        "csiq", "CSIQ.txt",
        "dis_img_path,dis_type,ref_img_path,score\nCSIQ/dst_imgs/contrast/woman.contrast.4.png,Contrast Dist.,CSIQ/src_imgs/woman.png,0.46\n",
        ["dst_imgs/contrast/woman.contrast.4.png"], [0.46], ["CSIQ/src_imgs/woman.png"], ["Contrast Dist."],
    ),
    (
        "tid2013", "mos_with_names.txt", "5.51429 I01_01_1.bmp\r\n4.02778 i25_24_4.bmp\r\n",
        ["distorted_images/I01_01_1.bmp", "distorted_images/i25_24_4.bmp"], [5.51429, 4.02778], ["i01", "i25"], ["01", "24"],
    ),
    (
        "kadid10k", "names_with_mos.txt", "I01_01_01.png\t4.57\nI81_25_05.png\t3.27\n",
        ["images/I01_01_01.png", "images/I81_25_05.png"], [4.57, 3.27], ["i01", "i81"], ["01", "25"],
    ),
    (
        "kadid10k", "dmos.csv", "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\n",
        ["images/I01_01_01.png"], [4.57], ["I01.png"], None,
    ),
    (
        "koniq10k", "koniq10k_scores_and_distributions.csv",
        '"image_name","c1","c_total","MOS","SD","MOS_zscore"\n"10004473376.jpg",0,105,3.828,0.527,75.7\n',
        ["1024x768/10004473376.jpg"], [3.828], None, None,
    ),
    (
        "koniq10k", "KonIQ-10k.txt", "dis_img_path,dis_type,score\nKonIQ-10k/1024x768/1.jpg,Authentic,3.8\n",
        ["1024x768/1.jpg"], [3.8], None, ["Authentic"],
    ),
    (
        "spaq", "Annotations/MOS and Image attribute scores.csv", "Image name,MOS,Brightness\n00001.jpg,48.86,50\n",
        ["TestImage/00001.jpg"], [48.86], None, None,
    ),
    ("flive", "labels_image.csv", "name,mos,is_valid\nvoc_emotic_ava/a.jpg,71.5,False\n", ["database/voc_emotic_ava/a.jpg"], [71.5], None, None),
    ("biq2021", "labels.csv", "file,mos,split,subset\r\nimages/a.jpg,0.2352,train,ss01\r\n", ["images/a.jpg"], [0.2352], None, None),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, file, text, files, scores, references, distortions", FORMATS, ids=[f"{f[0]}-{f[1]}" for f in FORMATS]
)
def test_label_formats(tmp_path, name, file, text, files, scores, references, distortions):
    write(tmp_path, file, text)
    found, spec = iqa_sets.read_set(name, tmp_path), iqa_sets.SETS[name]
    assert found.files == files and found.reference == references and found.distortion == distortions
    assert_allclose(found.score, scores)
    assert (found.low, found.high, found.lower_better) == (spec.low, spec.high, spec.lower_better)


def test_live_and_clive_from_matlab(tmp_path):
    def names(items):
        cell = np.empty((1, len(items)), dtype=object)
        cell[0] = items
        return cell

    n = 982
    orgs = np.arange(n) % 5 == 0
    savemat(
        tmp_path / "dmos_realigned.mat",
        {"dmos_new": np.arange(n, dtype=float)[None], "orgs": orgs[None].astype(np.uint8)},
    )
    savemat(tmp_path / "refnames_all.mat", {"refnames_all": names([f"r{i}.bmp" for i in range(n)])})
    live = iqa_sets.read_set("live", tmp_path)
    assert len(live) == int((~orgs).sum())
    assert live.files[0] == "jp2k/img2.bmp" and live.reference[0] == "r1.bmp" and live.distortion[0] == "jp2k"
    assert live.files[-1] == "fastfading/img174.bmp" and live.score[-1] == 981
    where = live.files.index("wn/img2.bmp")
    assert live.score[where] == 227 + 233 + 1

    (tmp_path / "Data").mkdir()
    images = ["t1.bmp", "t2.bmp", "3.bmp", "4.JPG"]
    savemat(tmp_path / "Data" / "AllImages_release.mat", {"AllImages_release": names(images).T})
    savemat(tmp_path / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.array([[1.0, 2, 3, 4]])})
    clive = iqa_sets.read_set("clive", tmp_path)
    assert clive.files == ["Images/3.bmp", "Images/4.JPG"]
    assert_array_equal(clive.score, [3, 4])


def test_csv_columns(tmp_path):
    text = "image,quality,dmos,split,reference,distortion\na.png,1,5,training,r1,jpeg\nsub\\b.png,2,6,validation,r2,blur\nc.png,3,7,test,r3,jpeg\n"
    path = write(tmp_path, "x.csv", "\ufeff" + text)
    by_dmos = iqa_sets.read_csv(path)
    assert by_dmos.files == ["a.png", "sub/b.png", "c.png"] and by_dmos.lower_better
    assert (by_dmos.low, by_dmos.high) == (5, 7)
    assert by_dmos.split == ["train", "val", "test"] and by_dmos.reference == ["r1", "r2", "r3"]
    assert by_dmos.distortion == ["jpeg", "blur", "jpeg"]
    by_quality = iqa_sets.read_csv(path, "quality", scale=(0, 10))
    assert_array_equal(by_quality.score, [1, 2, 3])
    assert not by_quality.lower_better and (by_quality.low, by_quality.high) == (0, 10)
    assert iqa_sets.read_csv(path, "dmos", lower_better=False).lower_better is False
    some = by_dmos.take([2, 0])
    assert some.files == ["c.png", "a.png"] and some.split == ["test", "train"]
    assert_array_equal(some.score, [7, 5])


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("", {}, "found an empty file"),
        ("file,score\n", {}, "at least one row"),
        ("image_id,score\na,1\n", {}, r"one file column \(file, .*found image_id, score"),
        (
            "file,quality\na,1\n",
            {},
            r"one score column \(score, mos, dmos, or name it with --score-column\).*found file, quality",
        ),
        ("file,mos,dmos\na,1,2\n", {}, "2 such columns"),
        ("file,score\na,1\n", {"score_column": "mos"}, r"score column mos \(--score-column\), found file, score"),
        ("file,score\na,1\n", {"file_column": "f"}, r"file column f \(--file-column\)"),
        ("file,score\na,1\nb,good\n", {}, "line 3: score must be a number, got 'good'"),
        ("file,score\na,1\nb\n", {}, "line 3: score must be a number, got None"),
        ("file,score\na,nan\n", {}, "must be finite"),
        ("file,score\na,1\na,2\n", {}, r"line 3 names a again \(first in line 2\)"),
        ("file,score\n,1\n", {}, "line 2 must name a file"),
        ("file,score,split\na,1,dev\n", {}, "split must be one of train, val, test, got 'dev'"),
    ],
)
def test_csv_errors(tmp_path, text, options, message):
    with pytest.raises(LabelError, match=message):
        iqa_sets.read_csv(write(tmp_path, "x.csv", text), **options)


def test_unreadable_labels(tmp_path):
    with pytest.raises(LabelError, match="cannot read labels"):
        iqa_sets.read_csv(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"file,score\n\xff\xfe,1\n")
    with pytest.raises(LabelError, match="UTF-8"):
        iqa_sets.read_csv(tmp_path / "bytes.csv")


@pytest.mark.parametrize(
    "name, file, text, message",
    [
        ("imagenet", None, "", "dataset must be one of live, csiq"),
        (
            "tid2013",
            None,
            "",
            "must hold TID2013: distorted_images/ .*none of mos_with_names.txt, TID2013.txt, labels.csv found",
        ),
        ("tid2013", "mos_with_names.txt", "5.5 a b\n", "line 1 must be a file name and a score"),
        ("tid2013", "mos_with_names.txt", "5.5 photo.bmp\n", "must name files like"),
        ("kadid10k", "names_with_mos.txt", "I01_01_01.png good\n", "score must be a number"),
        ("live", "dmos_realigned.mat", "no matlab", "cannot read"),
    ],
)
def test_set_errors(tmp_path, name, file, text, message):
    if file:
        write(tmp_path, file, text)
    with pytest.raises(LabelError, match=message):
        iqa_sets.read_set(name, tmp_path)
    with pytest.raises(LabelError, match="not a folder|dataset must be"):
        iqa_sets.read_set(name, tmp_path / "none")


def test_files_are_found_whatever_the_case(tmp_path):
    for name in ("a/I01.BMP", "a/i02.bmp"):
        write(tmp_path, name, "x")
    found = iqa_sets.find_files(Labels("s", ["a/i01.bmp", "a/i02.bmp"], np.zeros(2), 0, 1, False), tmp_path)
    assert [p.name.lower() for p in found] == ["i01.bmp", "i02.bmp"] and all(p.is_file() for p in found)
    with pytest.raises(LabelError, match="2 of 3 images of s are missing .* first is a/x.bmp"):
        iqa_sets.find_files(Labels("s", ["a/i02.bmp", "a/x.bmp", "b/y.bmp"], np.zeros(3), 0, 1, False), tmp_path)
    with pytest.raises(LabelError, match="root must be a folder"):
        iqa_sets.find_files(labels(), tmp_path / "none")


@pytest.mark.parametrize("references", [None, 10])
def test_random_splits(references):
    some = labels(200, references)
    splits = iqa_sets.make_splits(some, 3, seed=1)
    for s in splits:
        together = np.concatenate([s.train, s.val, s.test])
        assert_array_equal(np.sort(together), np.arange(200))
        assert (len(s.train), len(s.val), len(s.test)) == (140, 20, 40) and not s.carved
        assert not iqa_sets.shared_references(some, s)
    again = iqa_sets.make_splits(some, 2, seed=1)
    assert [s.hash(some) for s in again] == [s.hash(some) for s in splits[:2]]
    assert len({s.hash(some) for s in splits + iqa_sets.make_splits(some, 1, seed=2)}) == 4


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
    (split,) = iqa_sets.make_splits(some, 10, seed=3)
    assert split.carved and len(split.test) == 40 and len(split.train) + len(split.val) == 120
    assert 10 <= len(split.val) <= 20
    given = labels(90, None, ["train"] * 50 + ["val"] * 20 + ["test"] * 20)
    (split,) = iqa_sets.make_splits(given, 10)
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
        iqa_sets.make_splits(some, 1)


def test_published_splits(tmp_path):
    some = labels(10, 5)
    tables = {"train": [[0, 5, 1, 6], [2, 7, -1, -1]], "val": [[2, 7], [1, 6]], "test": [[3, 8, 4, 9], [3, 8, -1, -1]]}
    for part, rows in tables.items():
        np.save(tmp_path / f"{part}.npy", np.array(rows))
    first, second = iqa_sets.read_splits(tmp_path, some)
    assert_array_equal(first.train, [0, 1, 5, 6])
    assert_array_equal(second.test, [3, 8])
    with pytest.raises(LabelError, match="positions in 0..6, got"):
        iqa_sets.read_splits(tmp_path, labels(7))
    np.save(tmp_path / "val.npy", np.array([[2, 3], [1, 6]]))
    with pytest.raises(LabelError, match="split 0 has 1 images in more than one part, the first is 3.png"):
        iqa_sets.read_splits(tmp_path, some)
    assert len(iqa_sets.read_splits(tmp_path, some, check=False)) == 2
    np.save(tmp_path / "val.npy", np.array([2, 7]))
    with pytest.raises(LabelError, match="equally many splits"):
        iqa_sets.read_splits(tmp_path, some)
    np.save(tmp_path / "val.npy", np.array([0.5]))
    with pytest.raises(LabelError, match="must hold integers"):
        iqa_sets.read_splits(tmp_path, some)
    (tmp_path / "val.npy").unlink()
    with pytest.raises(LabelError, match="cannot read the split"):
        iqa_sets.read_splits(tmp_path, some)
