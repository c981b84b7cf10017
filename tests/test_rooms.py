"""The order of the rooms: what stands later may import what stands before it, never the reverse, and nothing in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import shamisa

ROOT = Path(__file__).parents[1] / "shamisa"
ORDER = (  # a line is a floor: what stands on it may import its own floor's rooms only where they are named before it
    ("_version", "_compiled", "_host"),
    ("remote", "files", "checks", "options"),
    ("distortions", "reference", "ops", "randomness", "ranges"),
    ("plan", "engine", "functional", "relations"),
    ("data", "datasets", "networks"),
    ("measuring", "scoring"),
    ("packaged", "scorer"),
    ("serving", "training", "reports"),
    ("cli", "ray", "score"),
    ("metric", "hub", "pyiqa_plugin"),
    ("train", "probe", "serve", "export", "sheet", "bench"),
    ("__init__", "__main__"),
)
PLACE = {name: position for position, name in enumerate(name for floor in ORDER for name in floor)}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in the file, but not those that only its annotations need."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING"
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in known:
                    yield whole
                elif base in known and base != "shamisa":
                    yield base


def room_of(module: str) -> str:
    """The room of a module, or the module itself where it stands at the top; a room's own command stands above it."""
    parts = module.split(".")
    return "__main__" if parts[-1] == "__main__" else parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_its_place():
    assert {room_of(name) for name in modules()} == set(PLACE) | {"__init__"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_downwards(name):
    known = modules()
    room = room_of(name)
    for target in imported(name, known[name], known):
        pair = (room, room_of(target))
        if pair[0] != pair[1]:
            assert PLACE[pair[1]] < PLACE[pair[0]], f"{name} imports {target}, which stands above it"


def test_no_circles():
    known = modules()
    graph = {name: {t for t in imported(name, path, known) if t != name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle: " + " -> ".join(error.args[1]))


def test_a_scorer_needs_neither_training_nor_the_command_line():
    """What a service or a notebook loads to score images."""
    script = (
        "import sys, shamisa; shamisa.load_scorer(device='cpu')\n"
        "print(*sorted(name for name in sys.modules if name.startswith('shamisa.')))"
    )
    path = str(Path(shamisa.__file__).parents[1])
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=path)
    assert found.returncode == 0, found.stderr
    loaded = {name.split(".")[1] for name in found.stdout.split()}
    assert "scorer" in loaded and "networks" in loaded
    above = {"training", "reports", "cli", "score", "train", "probe", "export", "bench", "sheet", "serve", "serving"}
    assert not loaded & above
