"""What the machine can do at all, copy bandwidth and matrix rates: ``python3 benchmarks/ceilings.py [--out FILE]``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    given = parser.parse_args()
    found: dict = {"machine": measure.machine()["name"]}
    for device in measure.DEVICES:
        with measure.threads(1):
            found[device] = measure.measure_ceilings(device)
        for name, value in found[device].items():
            print(f"{device:5} {name:28} {value:12,.1f}", flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
