"""The function that examples/spark.py gives to ``mapInPandas``, on frames as Spark passes them: the rows of the command."""

import runpy
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
