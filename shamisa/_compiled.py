"""Where the compiled libraries are when this package is a checkout and they were installed elsewhere."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

from ._version import __version__


def installed_folder(path: list[str]) -> list[str]:
    """Folders to add to the package's search path: none where the libraries stand in ``path`` or were not installed.

    After ``pip install .`` in a checkout, ``python -m shamisa.train`` there imports the checkout, not what was installed.
    Only an installation of the same version is used.
    """
    if any(found for p in path for found in Path(p).glob("_C.*")):
        return []
    for found in distributions(name="shamisa"):
        folder = Path(str(found.locate_file("shamisa")))
        if found.version == __version__ and str(folder) not in path and any(folder.glob("_C.*")):
            return [str(folder)]
    return []
