"""Rows of several runs as one result: ``python benchmarks/rows.py ROWS.jsonl RESULT.json``.

``pytest benchmarks --benchmark-only --rows ROWS.jsonl`` appends a line per row as soon as it is measured, so that a run that
is cut short leaves what it had. RESULT.json is what ``--benchmark-json`` would have written. Of rows of one name the last
counts. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from report import FORMAT


def collect(lines: list[str]) -> dict:
    """The result of the lines; a last line that was cut off is left out.

    Raises:
        ValueError: another line that is not JSON, or none that says which machine measured.
    """
    rows, ceilings, machine, load = {}, {}, None, 0.0
    for i, line in enumerate(lines):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            if i + 1 < len(lines):
                raise ValueError(f"line {i + 1} must be JSON, got {line[:80]!r}") from None
            break
        if "machine" in content:
            machine = content["machine"]
        elif "ceilings" in content:
            ceilings |= content["ceilings"]
        else:
            load = content.pop("load")
            rows[content["name"]] = content
    if machine is None:
        raise ValueError("a line must name the machine, got none")
    head = {"format": FORMAT, "machine": machine, "load_at_end": load, "ceilings": ceilings}
    return head | {"benchmarks": list(rows.values())}


def main(argv: list[str]) -> int:
    """The command -> 0, 1 where there is no row yet or the lines are no rows."""
    try:
        found = collect(Path(argv[0]).read_text().splitlines())
    except (OSError, ValueError) as error:
        print(f"rows: {error}", file=sys.stderr)
        return 1
    Path(argv[1]).write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["benchmarks"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
