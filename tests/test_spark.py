"""The pandas function of the documentation, under Spark on this machine: the scores of ``shamisa score``."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fitted import SMALL, fitted
from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "spark.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_gives_the_rows_of_the_command(tmp_path):
    for package in ("pyspark", "pandas", "pyarrow"):
        pytest.importorskip(package)
    from shamisa import score

    regressor, folder = fitted(tmp_path), tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    words = ["--checkpoint", SMALL, "--regressor", str(regressor), "--out"]
    assert score.main([str(folder), *words, str(tmp_path / "s.csv"), "--device", "cpu", "--quiet"]) == 1
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(folder), *words, str(tmp_path / "spark.csv")],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(score.read_rows(tmp_path / "spark.csv")) == sorted(score.read_rows(tmp_path / "s.csv"))
