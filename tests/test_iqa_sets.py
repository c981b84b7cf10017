"""Label formats on short excerpts of their form, and every error."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import savemat

from shamisa.datasets import iqa_sets
from shamisa.datasets.labels import LabelError, Labels


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


# set, label file, its text, then what the rows must become: files, scores, references, distortions, levels
FORMATS = [
    (
        "live", "LIVE.txt",
        "dis_img_path,dis_type,ref_img_path,score\nLIVE/jp2k/img2.bmp,jp2k,LIVE/refimgs/studentsculpture.bmp,15.5\n",
        ["jp2k/img2.bmp"], [15.5], ["refimgs/studentsculpture.bmp"], ["jp2k"], None,
    ),
    (
        "csiq", "csiq_label.txt", "1600.AWGN.1.png 0.061989\nwoman.jpeg2000.4.png 0.5\n",
        ["dst_imgs/AWGN/1600.AWGN.1.png", "dst_imgs/jpeg2000/woman.jpeg2000.4.png"], [0.061989, 0.5],
        ["src_imgs/1600.png", "src_imgs/woman.png"], ["AWGN", "jpeg2000"], ["1", "4"],
    ),
    (
        "csiq", "CSIQ.txt",
        "dis_img_path,dis_type,ref_img_path,score\nCSIQ/dst_imgs/contrast/woman.contrast.4.png,Contrast Dist.,CSIQ/src_imgs/woman.png,0.46\n",
        ["dst_imgs/contrast/woman.contrast.4.png"], [0.46], ["src_imgs/woman.png"], ["contrast"], ["4"],
    ),
    (
        "tid2013", "mos_with_names.txt", "5.51429 I01_01_1.bmp\r\n4.02778 i25_24_4.bmp\r\n",
        ["distorted_images/I01_01_1.bmp", "distorted_images/i25_24_4.bmp"], [5.51429, 4.02778],
        ["reference_images/i01.bmp", "reference_images/i25.bmp"], ["01 Gaussian noise", "24 sparse sampling"], ["1", "4"],
    ),
    (
        "tid2013", "TID2013.txt",
        "dis_img_path,dis_type,ref_img_path,score\nTID2013/distorted_images/i02_18_3.bmp,Multiply_Dist.,TID2013/reference_images/i02.bmp,2.7\n",
        ["distorted_images/i02_18_3.bmp"], [2.7], ["reference_images/i02.bmp"], ["18 colour saturation"], ["3"],
    ),
    (
        "kadid10k", "names_with_mos.txt", "I01_01_01.png\t4.57\nI81_25_05.png\t3.27\n",
        ["images/I01_01_01.png", "images/I81_25_05.png"], [4.57, 3.27],
        ["images/i01.png", "images/i81.png"], ["01 Gaussian blur", "25 contrast change"], ["1", "5"],
    ),
    (
        "kadid10k", "dmos.csv", "dist_img,ref_img,dmos,var\nI01_10_02.png,I01.png,4.57,0.496\n",
        ["images/I01_10_02.png"], [4.57], ["images/i01.png"], ["10 JPEG"], ["2"],
    ),
    (
        "koniq10k", "koniq10k_scores_and_distributions.csv",
        '"image_name","c1","c_total","MOS","SD","MOS_zscore"\n"10004473376.jpg",0,105,3.828,0.527,75.7\n',
        ["1024x768/10004473376.jpg"], [3.828], None, None, None,
    ),
    (
        "koniq10k", "KonIQ-10k.txt", "dis_img_path,dis_type,score\nKonIQ-10k/1024x768/1.jpg,Authentic,3.8\n",
        ["1024x768/1.jpg"], [3.8], None, None, None,
    ),
    (
        "spaq", "Annotations/MOS and Image attribute scores.csv", "Image name,MOS,Brightness\n00001.jpg,48.86,50\n",
        ["TestImage/00001.jpg"], [48.86], None, None, None,
    ),
    (
        "spaq", "SPAQ.txt", "dis_img_path,dis_type,score\nSPAQ/Dataset/TestImage/00001.jpg,Authentic,48.86\n",
        ["TestImage/00001.jpg"], [48.86], None, None, None,
    ),
    (
        "flive", "labels_image.csv", "name,mos,is_valid\nvoc_emotic_ava/a.jpg,71.5,False\n",
        ["database/voc_emotic_ava/a.jpg"], [71.5], None, None, None,
    ),
    (
        "biq2021", "labels.csv", "file,mos,split,subset\r\nimages/a.jpg,0.2352,train,ss01\r\n",
        ["images/a.jpg"], [0.2352], None, None, None,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, file, text, files, scores, references, distortions, levels", FORMATS, ids=[f"{f[0]}-{f[1]}" for f in FORMATS]
)
def test_label_formats(tmp_path, name, file, text, files, scores, references, distortions, levels):
    write(tmp_path, file, text)
    found, spec = iqa_sets.read_set(name, tmp_path), iqa_sets.SETS[name]
    assert found.files == files and found.reference == references
    assert found.distortion == distortions and found.level == levels
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
    assert live.files[0] == "jp2k/img2.bmp" and live.reference[0] == "refimgs/r1.bmp" and live.distortion[0] == "jp2k"
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
    text = "image,quality,dmos,split,reference,distortion,level\na.png,1,5,training,r1,jpeg,1\nsub\\b.png,2,6,validation,r2,blur,2\nc.png,3,7,test,r3,jpeg,1\n"
    path = write(tmp_path, "x.csv", "\ufeff" + text)
    by_dmos = iqa_sets.read_csv(path)
    assert by_dmos.files == ["a.png", "sub/b.png", "c.png"] and by_dmos.lower_better
    assert (by_dmos.low, by_dmos.high) == (5, 7)
    assert by_dmos.split == ["train", "val", "test"] and by_dmos.reference == ["r1", "r2", "r3"]
    assert by_dmos.distortion == ["jpeg", "blur", "jpeg"] and by_dmos.level == ["1", "2", "1"]
    assert_array_equal(by_dmos.quality(), [1, 0.5, 0])
    by_quality = iqa_sets.read_csv(path, "quality", scale=(0, 10))
    assert_array_equal(by_quality.score, [1, 2, 3])
    assert not by_quality.lower_better and (by_quality.low, by_quality.high) == (0, 10)
    assert_allclose(by_quality.quality(), [0.1, 0.2, 0.3])
    assert iqa_sets.read_csv(path, "dmos", lower_better=False).lower_better is False
    some = by_dmos.take([2, 0])
    assert some.files == ["c.png", "a.png"] and some.split == ["test", "train"] and some.level == ["1", "1"]
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
        ("file,score\na,1\nb\n", {}, "line 3: score must be a number, got ''"),
        ("file,score\na,1\nb,0,5\n", {}, "line 3 must have the 2 cells of the header, got 3"),
        ("file;score\na;1\n", {}, "separated by commas or tabs, got semicolons: file;score"),
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
        ("tid2013", "mos_with_names.txt", "5.5 i01_25_1.bmp\n", r"must name distortions 1\.\.24, got 'i01_25_1.bmp'"),
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
    write(tmp_path, "a/e\u0301.png", "x")
    found = iqa_sets.find_files(Labels("s", ["a/\u00e9.png"], np.zeros(1), 0, 1, False), tmp_path)
    assert found[0].is_file()
    with pytest.raises(LabelError, match="every image once, got a/i02.bmp and ./a/I02.bmp, which are one file"):
        iqa_sets.find_files(Labels("s", ["a/i02.bmp", "./a/I02.bmp"], np.zeros(2), 0, 1, False), tmp_path)
    with pytest.raises(LabelError, match="2 of 3 images of s are missing .* first is a/x.bmp"):
        iqa_sets.find_files(Labels("s", ["a/i02.bmp", "a/x.bmp", "b/y.bmp"], np.zeros(3), 0, 1, False), tmp_path)
    with pytest.raises(LabelError, match="root must be a folder"):
        iqa_sets.find_files(Labels("s", ["a"], np.zeros(1), 0, 1, False), tmp_path / "none")


def test_references_are_found_and_told(tmp_path):
    write(tmp_path, "reference_images/I01.BMP", "x")
    some = Labels("TID2013", ["a", "b"], np.zeros(2), 0, 9, False, ["reference_images/i01.bmp"] * 2)
    layout = iqa_sets.SETS["tid2013"].reference_layout
    assert [p.name for p in iqa_sets.find_references(some, tmp_path, layout)] == ["I01.BMP"] * 2
    lost = Labels("TID2013", ["a"], np.zeros(1), 0, 9, False, ["reference_images/i02.bmp"])
    with pytest.raises(LabelError, match="1 of 1 references of TID2013 are missing .* reference_images/ with I01.BMP"):
        iqa_sets.find_references(lost, tmp_path, layout)
    with pytest.raises(LabelError, match="SPAQ has none: its images have no references"):
        nothing = Labels("SPAQ", ["a"], np.zeros(1), 0, 1, False)
        iqa_sets.find_references(nothing, tmp_path, iqa_sets.SETS["spaq"].reference_layout)
