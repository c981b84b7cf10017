"""Code blocks of a Markdown page: found, and executed. The site's build and its test share this.

A Python block runs in the namespace of the page's earlier ones, a bash block in a shell of its own, all in one folder.
``<!-- not run: REASON -->`` on the line before a block leaves it out; so does ``<!-- command: NAME -->``, which marks what .ci/run
looks for.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^(?P<note><!-- (?:not run|command): (?P<reason>[^\n]+) -->\n)?(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: what it is written in, its text, the line where the text starts, why it is not run if it is not,
    and the position in the page where the block ends."""

    language: str
    code: str
    line: int
    reason: str | None
    end: int


def blocks(text: str) -> list[Block]:
    """All fenced blocks that name a language, in order."""
    found = []
    for m in BLOCK.finditer(text):
        code = re.sub(rf"^{m['indent']}", "", m["code"], flags=re.MULTILINE)
        found.append(Block(m["language"], code, text.count("\n", 0, m.start("code")) + 1, m["reason"], m.end()))
    return found


def execute(block: Block, names: dict, folder: Path, page: str, environment: dict | None = None) -> str:
    """Run one block in ``folder`` -> what it printed; RuntimeError, with page and line, where it fails."""
    where = f"{page}, line {block.line}"
    if block.language == "python":
        code = "\n" * (block.line - 1) + block.code  # so that a traceback gives the line of the page
        out = io.StringIO()
        before = os.getcwd()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(code, page, "exec"), names)
        except Exception as error:
            raise RuntimeError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            os.chdir(before)
        return out.getvalue()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{where}: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def with_outputs(text: str, folder: Path, page: str) -> str:
    """The page with what each of its Python and bash blocks prints set below it."""
    names: dict = {"__name__": "__main__"}
    parts, last = [], 0
    for block in blocks(text):
        if block.reason or block.language not in ("python", "bash"):
            continue
        printed = execute(block, names, folder, page).rstrip()
        parts.append(text[last : block.end])
        last = block.end
        if printed:
            parts.append(f'\n\n```{{.text .output title="prints"}}\n{printed}\n```')
    return "".join([*parts, text[last:]])
