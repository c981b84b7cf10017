"""Scores in Spark: the function of examples/spark.py on frames as Spark passes them, and whole programs: the rows of the command."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fitted import SMALL, fitted
from PIL import Image

from shamisa import score

pd = pytest.importorskip("pandas")
EXAMPLE = Path(__file__).parents[1] / "examples" / "spark.py"


def test_function_gives_the_rows_of_the_command(tmp_path):
    regressor, folder = fitted(tmp_path), tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    words = ["--checkpoint", SMALL, "--regressor", str(regressor), "--out", str(tmp_path / "s.csv")]
    assert score.main([str(folder), *words, "--device", "cpu", "--quiet"]) == 1
    wanted = score.read_rows(tmp_path / "s.csv")
    work = runpy.run_path(str(EXAMPLE))["scores"](SMALL, str(regressor))
    paths = [row[0] for row in wanted]
    frames = list(work(iter([pd.DataFrame({"path": paths[:3]}), pd.DataFrame({"path": paths[3:]})])))
    assert [len(frame) for frame in frames] == [3, 4] and all(list(f.columns) == list(score.COLUMNS) for f in frames)
    rows = [tuple(None if pd.isna(v) else v for v in row) for f in frames for row in f.itertuples(index=False)]
    assert rows == wanted


# ---- whole programs --------------------------------------------------------------------------------------------------
@pytest.fixture
def spark(tmp_path, monkeypatch):
    """-> a function that runs a Python file under Spark on this machine, in tmp_path."""
    if (java := shutil.which("java")) is None:
        pytest.skip("needs Java")
    pytest.importorskip("pyspark", reason="needs pyspark")
    conf = "--master local[2] --conf spark.ui.enabled=false --conf spark.driver.host=127.0.0.1 pyspark-shell"
    given = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_SUBMIT_ARGS": conf, "SPARK_LOCAL_IP": "127.0.0.1"}

    def run(program, *words):
        command = [sys.executable, str(program), *map(str, words)]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True, timeout=300
        )
        if done.returncode and "UnsupportedClassVersionError" in done.stderr:
            pytest.skip(f"{java} is too old for this pyspark")
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture
def wanted(tmp_path):
    """Rows of the plain command for tmp_path/PHOTOS, sorted; one photograph is broken."""
    (tmp_path / "PHOTOS").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / f"PHOTOS/{i}.png")
    (tmp_path / "PHOTOS/broken.png").write_bytes(b"no picture")
    words = ["--checkpoint", SMALL, "--regressor", str(fitted(tmp_path)), "--out", str(tmp_path / "s.csv")]
    assert score.main([str(tmp_path / "PHOTOS"), *words, "--device", "cpu", "--quiet"]) == 1
    return sorted((Path(row[0]).name, *row[1:]) for row in score.read_rows(tmp_path / "s.csv"))


def rows_of(frame):
    """Rows of a frame, sorted, with the names of the files alone."""
    rows = [tuple(None if pd.isna(v) else v for v in row) for row in frame[list(score.COLUMNS)].itertuples(index=False)]
    return sorted((Path(row[0]).name, *row[1:]) for row in rows)


@pytest.mark.slow
def test_documented_program(spark, wanted, tmp_path):
    """The one in docs/howto/scale.md, as it stands there but for the checkpoint."""
    pytest.importorskip("pyarrow")
    page = (Path(__file__).parents[1] / "docs" / "howto" / "scale.md").read_text()
    (code,) = re.findall(r"## Spark\n.*?```python\n(.*?)```", page, re.S)
    assert code.count('"runs/paper"') == 1
    (tmp_path / "program.py").write_text(code.replace("runs/paper", SMALL))
    spark(tmp_path / "program.py")
    assert rows_of(pd.read_parquet(tmp_path / "scores")) == wanted


@pytest.mark.slow
def test_example(spark, wanted, tmp_path):
    words = ["PHOTOS", "--checkpoint", SMALL, "--regressor", "regressor.safetensors", "--out", "scores.csv"]
    spark(EXAMPLE, *words)
    assert rows_of(pd.read_csv(tmp_path / "scores.csv")) == wanted
