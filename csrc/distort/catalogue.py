"""Writes catalogue_rows.h, what the kernels must know of the table in shamisa/distortions.py: ``catalogue.py FOLDER``.

setup.py and CMakeLists.txt run it when they build. The table is read as text, because neither torch nor this package can be
imported there.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "shamisa/distortions.py"


def read_rows(path: Path = TABLE) -> list[tuple]:
    """The literal ``ROWS``, in the order of the op codes."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "ROWS" for t in statement.targets
        ):
            return list(ast.literal_eval(statement.value))
    raise ValueError(f"{path} must assign the table to ROWS, as a literal")


def macro(name: str, rows: list[str]) -> str:
    return " \\\n".join([f"#define {name}(ROW)", *(f"  ROW({row})" for row in rows)])


def header(rows: list[tuple]) -> str:
    facts, kinds = [], {"pixel": [], "random_pixel": [], "image": []}
    for name, kind, _, levels, flags, low, high, size in rows:
        facts.append(f"{name}, {float(low)!r}, {float(high)!r}, {int('d' in flags)}, {size}, {float(levels[2])!r}")
        kinds["random_pixel" if kind == "pixel" and "r" in flags else kind].append(name)
    return "\n\n".join(
        [
            "// Made by csrc/distort/catalogue.py from the table in shamisa/distortions.py.\n#pragma once",
            "// name, low, high, discrete, min_size, middle of the five levels; in the order of the op codes\n"
            + macro("SHAMISA_DISTORTIONS", facts),
            "// names by kind\n" + macro("SHAMISA_PIXEL_DISTORTIONS", kinds["pixel"]),
            macro("SHAMISA_RANDOM_PIXEL_DISTORTIONS", kinds["random_pixel"]),
            macro("SHAMISA_IMAGE_DISTORTIONS", kinds["image"]) + "\n",
        ]
    )


def write(folder: Path) -> Path:
    """Leaves a file that is the same alone, so that nothing is compiled again."""
    path, text = folder / "catalogue_rows.h", header(read_rows())
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    write(Path(sys.argv[1]))
