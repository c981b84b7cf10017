"""Rank correlations with human scores, from the probe to the documentation: ``python -m benchmarks.scores`` prints the table.

``python -m shamisa.probe ... --untrained --compare statistics --out DIR`` makes DIR/results.json; ``--keep`` copies what a
reader needs of it, without the paths of a machine, to benchmarks/results/<version>/scores/<name>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .report import RESULTS, number, table


def training(checkpoint: str) -> dict | None:
    """How the encoder of a run folder was trained; None for anything else."""
    run = Path(checkpoint)
    if not (run / "config.json").is_file():
        return None
    from shamisa.data import References
    from shamisa.data.photos import PhotoFolder
    from shamisa.scoring.inputs import open_encoder

    config = json.loads((run / "config.json").read_text())["config"]
    encoder = open_encoder(checkpoint)
    references = References(PhotoFolder(config["refs"]), batch_size=config["batch"], seed=config["seed"])
    return {
        "photographs": len(references.source),
        "steps": json.loads((run / "run.json").read_text())["step"],
        "images_per_step": config["batch"] * references.views * (1 + config["compositions"] * config["levels"]),
        "crop": config["crop"],
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "weights": [config[f"{term}_weight"] for term in ("variance", "invariance", "covariance")],
    }


def trim(results: dict) -> dict:
    """A results.json of the probe as it is committed: no path of the machine."""
    rows = []
    for encoder in results["encoders"]:
        trained = training(encoder["checkpoint"])
        rows.append(
            {
                "features": encoder["encoder"] if trained else encoder["checkpoint"],
                "training": trained,
                "dimension": encoder["feature_dim"],
                "strengths": [split["alpha"] for split in encoder["splits"]],
                **encoder["median"],
            }
        )
    kept = {name: results[name] for name in ("labels", "images", "protocol", "splits", "versions")}
    return {**kept, "n": results["encoders"][0]["splits"][0]["n"], "rows": rows}


def keep(results: dict, name: str) -> Path:
    """Write a trimmed result to its place among the committed ones."""
    path = RESULTS / results["versions"]["shamisa"] / "scores" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(trim(results), indent=1) + "\n")
    return path


def committed() -> list[Path]:
    return sorted(RESULTS.glob("*/scores/*.json"))


def render(name: str, result: dict) -> str:
    """A Markdown table with what was compared, on what, how."""
    n = result["n"]
    rows = []
    for row in sorted(result["rows"], key=lambda row: -row["srcc"]):
        t = row["training"]
        how = "not trained" if row["features"].startswith("untrained") else "by hand"
        if t:
            how = f"{t['steps']:,} steps of {t['images_per_step']} images of {t['crop']} px, {t['photographs']:,} photographs"
            how += ", loss weights " + " / ".join(number(w) for w in t["weights"])
        what = row["features"].removeprefix("untrained:") + (f", {t['parameters'] / 1e6:.2f} M parameters" if t else "")
        rows.append((what, how, str(row["dimension"]), f"{row['srcc']:.3f}", f"{row['plcc']:.3f}"))
    head = ("features", "made", "dimension", "SRCC", "PLCC")
    return (
        f"{name}: {result['images']:,} images, one split ({n['train']:,} train, {n['val']:,} val, {n['test']:,} test; hash "
        f"{result['splits'][0]['hash'][:16]}); ridge regression, its strength chosen on val; shamisa "
        f"{result['versions']['shamisa']}, commit {result['versions']['commit'][:10]}.\n\n" + table(head, rows)
    )


def text() -> str:
    return "\n\n".join(render(path.stem, json.loads(path.read_text())) for path in committed())


def main(argv: list[str] | None = None) -> int:
    """The command -> 0, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__.split("\n")[0])
    parser.add_argument("--keep", nargs=2, metavar=("NAME", "JSON"), help="commit a results.json of the probe")
    given = parser.parse_args(argv)
    try:
        if given.keep:
            print(keep(json.loads(Path(given.keep[1]).read_text()), given.keep[0]), file=sys.stderr)
        print(text())
    except (ValueError, KeyError, OSError) as error:
        print(f"benchmarks.scores: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
