"""Scores on Ray from object storage to object storage: the rows of the plain command. A cluster of its own, which inherits
the way to the server."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from fitted import SMALL, fitted
from PIL import Image

from shamisa import remote, score

pytest.importorskip("ray.data")
parquet = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.slow


def test_rows_are_those_of_the_command(server, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "photos/3.png").write_bytes(b"broken")
    for path in (tmp_path / "photos").iterdir():
        remote.write(f"s3://bucket/photos/{path.name}", path.read_bytes())
    model = ["--checkpoint", SMALL, "--regressor", str(fitted(tmp_path)), "--device", "cpu", "--quiet"]
    assert score.main([str(tmp_path / "photos"), *model, "--out", str(tmp_path / "s.csv")]) == 1
    wanted = [(os.path.basename(row[0]), *row[1:]) for row in score.read_rows(tmp_path / "s.csv")]
    words = ["s3://bucket/photos", *model, "--ray", "--part", "4", "--out", "s3://bucket/parts"]
    done = subprocess.run([sys.executable, "-m", "shamisa.score", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "s3://bucket/parts: 5 of 6 photographs scored; 1 could not be read" in done.stdout
    server.invalidate_cache()
    names = remote.find("s3://bucket/parts")
    assert names == ["meta.json", "part-000000.parquet", "part-000001.parquet"]
    tables = [parquet.read_table(io.BytesIO(remote.read(f"s3://bucket/parts/{name}"))) for name in names[1:]]
    rows = [tuple(row[c] for c in score.COLUMNS) for table in tables for row in table.to_pylist()]
    assert [(row[0].removeprefix("s3://bucket/photos/"), *row[1:]) for row in rows] == wanted  # every bit of the scores
    assert sum(row[3] is not None for row in rows) == 1
