"""Rows of several runs as one result: ``python benchmarks/rows.py ROWS.jsonl RESULT.json``.

``pytest benchmarks --benchmark-only --rows ROWS.jsonl`` appends a line per row as soon as it is measured, so that a run that
is cut short leaves what it had. RESULT.json is what ``--benchmark-json`` would have written; run this on the machine that
measured. Of rows of one name the last counts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import measure
from report import FORMAT


def collect(lines: list[str]) -> dict:
    """The result of the lines; a last line that was cut off is left out."""
    rows, ceilings = {}, {}
    for i, line in enumerate(lines):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            if i + 1 < len(lines):
                raise ValueError(f"line {i + 1} must be JSON, got {line[:80]!r}") from None
            break
        if "ceilings" in content:
            ceilings |= content["ceilings"]
        else:
            rows[content["name"]] = content
    return {"ceilings": ceilings, "benchmarks": list(rows.values())}


def main(argv: list[str]) -> int:
    source, target = map(Path, argv)
    found = collect(source.read_text().splitlines())
    if not found["benchmarks"]:
        print(f"no rows in {source}", file=sys.stderr)
        return 1
    load = round(os.getloadavg()[0], 2)
    head = {"format": FORMAT, "machine": measure.machine(), "load_at_end": load}
    target.write_text(json.dumps(head | found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
