"""Scores in Spark: a pandas function for ``mapInPandas``; the rows are those of ``shamisa score``.

    spark-submit examples/spark.py PHOTOS --checkpoint RUN --regressor FILE --out scores.csv

Needs pyspark, pandas and pyarrow. PHOTOS, checkpoint and regressor are paths or URLs that all workers can read.
"""

import argparse
from collections.abc import Callable, Iterator

import pandas as pd

from shamisa import load_scorer, score


def scores(checkpoint: str, regressor: str) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """The function: frames with the column path -> frames with file, score, raw, error."""

    def work(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        scorer = load_scorer(checkpoint, regressor, device="cpu")  # once for a partition
        for frame in frames:
            yield pd.DataFrame(list(score.rows(scorer, frame["path"])), columns=list(score.COLUMNS))

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+")
    for name in ("checkpoint", "regressor", "out"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()  # the master is what spark-submit says, else this machine
    paths, _ = score.gather(given.photos)
    frame = spark.createDataFrame([(path,) for path in paths], "path string").repartition(4)
    rows = frame.mapInPandas(
        scores(given.checkpoint, given.regressor), "file string, score double, raw double, error string"
    )
    rows.toPandas().to_csv(given.out, index=False)
    spark.stop()


if __name__ == "__main__":
    main()
