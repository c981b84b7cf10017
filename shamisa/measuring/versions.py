"""What made a result: versions of the libraries, and the commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .._version import __version__


@functools.cache
def versions() -> dict:
    """What made a run: versions of the package and its libraries, the machine, and the git commit if there is one."""
    found = {"shamisa": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "torchvision", "numpy", "pillow", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"commit": git_commit()}


def git_commit() -> str | None:
    """Commit of the checkout this package is imported from, with "+changes" where files differ; None elsewhere."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # an installed copy inside somebody else's repository has no commit
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
