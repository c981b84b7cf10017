"""Hooks of MkDocs. ``<!-- generated: NAME -->`` in a page is replaced by what ``pages.PAGES[NAME]`` returns; the tutorial is
executed, its outputs and pictures are added; equations become MathML, which browsers show without a script."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout's benchmarks and this folder

from latex2mathml.converter import convert  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402

from docs_build import pages, pictures  # noqa: E402
from docs_build.blocks import with_outputs  # noqa: E402

GENERATED = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
SHIM = re.compile(r"https://unpkg\.com/iframe-worker/shim")  # which the theme would fetch for search from a folder
EXECUTED = "tutorial.md"
_executed: dict[str, str] = {}  # page -> its text with outputs


def on_files(files, config):
    """Adds the pictures that the package draws, and what the tutorial makes."""
    for name, content in pictures.all_pictures():
        files.append(File.generated(config, name, content=content))
    if (
        os.environ.get("SHAMISA_DOCS_FAST") == "1"
    ):  # for a look at other pages: the tutorial without outputs and pictures
        for name in re.findall(r"\]\((tutorial/\S+\.png)\)", (ROOT / "docs" / EXECUTED).read_text()):
            files.append(File.generated(config, name, content=b""))
        return files
    with tempfile.TemporaryDirectory() as folder:
        text = (ROOT / "docs" / EXECUTED).read_text()
        _executed[EXECUTED] = with_outputs(text, Path(folder), EXECUTED)
        for path in sorted(Path(folder).glob("*.png")):
            files.append(File.generated(config, f"tutorial/{path.name}", content=path.read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = _executed.get(page.file.src_uri, markdown)
    return GENERATED.sub(lambda m: pages.PAGES[m[1]](), markdown)


def on_page_content(html, page, config, files):
    return EQUATION.sub(lambda m: _mathml(m[3], block=m[2] == "["), html)


def on_post_build(config):
    """Nothing is fetched from elsewhere: assets/worker.js does what the theme's script would."""
    site = Path(config.site_dir)
    for path in site.rglob("*.html"):
        text = path.read_text()
        up = "../" * (len(path.relative_to(site).parts) - 1)
        path.write_text(SHIM.sub(f"{up}assets/worker.js", text))


def _mathml(latex: str, block: bool) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        latex = latex.replace(entity, character)
    if block:
        return f'<div class="equation">{convert(latex.strip(), display="block")}</div>'
    return convert(latex.strip())
