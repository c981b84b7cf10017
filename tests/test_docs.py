"""The documentation: the site builds, its links and anchors lead somewhere, nothing is fetched from elsewhere, and every
code block of README.md and docs/ runs or says why it does not."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from shamisa import DISTORTIONS, ops

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from docs_folder import environment, furnish  # noqa: E402

from docs_build import pages  # noqa: E402
from docs_build.blocks import blocks, execute  # noqa: E402

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
TUTORIAL = "docs/tutorial.md"  # its blocks run when the site is built
RUNNING = {name: [b for b in blocks(path.read_text()) if not b.reason] for name, path in zip(NAMES, PAGES, strict=True)}


# ---- pages -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_blocks_name_a_language_and_options_exist(name):
    """Also those that are not run: every option on a line of a command is one that its parser knows."""
    text = (ROOT / name).read_text()
    assert text.count("```") == 2 * len(blocks(text)), "a block without a language"
    known: dict[str, set[str]] = {}
    for block in blocks(text):
        for line in re.sub(r"\\\n\s*", " ", block.code).splitlines():
            m = re.search(r"(?:^|[ \"])(?:shamisa|(?:python|torchrun [^#]*?) ?-m shamisa\.)\s*(\w+)(.*)", line)
            if block.language == "bash" and m and m[1] in pages.cli.COMMANDS:
                words = re.findall(r"(?<![\w-])--[a-z][a-z-]+", m[2].partition(" #")[0])
                unknown = set(words) - known.setdefault(m[1], pages.flags(m[1]))
                assert not unknown, f"line {block.line}: shamisa {m[1]} has no {', '.join(unknown)}"


def test_no_sentence_stands_twice():
    """Neither within the README nor in it and a page."""
    seen: dict[str, str] = {}
    for name in NAMES:
        if name == "CONTRIBUTING.md":
            continue
        text = re.sub(r"<!--.*?-->|```.*?```|^\|.*$|^!.*$", "\n\n", (ROOT / name).read_text(), flags=re.M | re.S)
        for paragraph in re.split(r"\n\s*\n|\n(?=[-*#\d])", text):
            for sentence in re.split(r"(?<=[.:;])\s+", " ".join(paragraph.split())):
                if len(sentence) > 50:
                    assert sentence not in seen, f"{name} repeats {seen[sentence]}: {sentence}"
                    seen[sentence] = name


def test_count_of_distortions():
    """Where a page says how many there are."""
    said = {name: re.findall(r"\b(\d\d) distortions", (ROOT / name).read_text()) for name in NAMES}
    assert {"README.md", "docs/index.md"} <= {name for name, found in said.items() if found}
    assert {n for found in said.values() for n in found} == {str(len(DISTORTIONS))}


@pytest.fixture(scope="session")
def furnished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.fixture
def folder(furnished, tmp_path) -> Path:
    """One of its own for each page."""
    return shutil.copytree(furnished, tmp_path / "folder")


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n != TUTORIAL and any(b.language == "python" for b in RUNNING[n])]
)
def test_python_blocks_run(name, folder):
    """In order and in one namespace; their own assertions are the test."""
    if name == "docs/howto/install.md" and not ops.has_kernel("distort", "cpu"):
        pytest.skip("its block asserts that the kernels are there")
    torch.manual_seed(0)
    names: dict = {"__name__": "__main__"}
    for block in RUNNING[name]:
        if block.language == "python":
            execute(block, names, folder, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NAMES if n != TUTORIAL and any(b.language == "bash" for b in RUNNING[n])])
def test_bash_blocks_run(name, folder):
    """As they stand, in a folder that has what they name; training is shortened by ``docs_folder.environment``."""
    for block in RUNNING[name]:
        if block.language == "bash":
            execute(block, {}, folder, name, environment(folder))


def test_files_of_a_run_are_described(tmp_path):
    from shamisa import train

    words = "--steps 2 --check-every 0 --crop 48 --hidden 8 --embedding 8 --neighbors 3 --quiet --no-demo".split()
    assert train.main([*words, "--out", str(tmp_path / "run")]) == 0
    page = (ROOT / "docs/reference/run-files.md").read_text()
    for path in (tmp_path / "run").iterdir():
        assert f"`{path.name}" in page, path.name


def test_environment_variables_are_described():
    page = (ROOT / "docs/reference/environment.md").read_text()
    used = set()
    for path in [ROOT / "setup.py", *ROOT.glob("shamisa/**/*.py")]:
        used |= set(re.findall(r"""environ(?:\.get\(|\[)["']([A-Z_]+)""", path.read_text()))
    assert {"SHAMISA_NATIVE"} <= used
    missing = {name for name in used if f"`{name}`" not in page and name.startswith(("SHAMISA", "CUDA_HOME", "MAX"))}
    assert not missing


# ---- the site --------------------------------------------------------------------------------------------------------
class _Page(HTMLParser):
    """What a page links to, fetches, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.fetched, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[k] for k in ("id", "name") if given.get(k)}
        if tag == "a" and given.get("href") is not None:
            self.links.append(given["href"])
        for key in ("src", "href"):
            if given.get(key) and (key == "src" or (tag == "link" and given.get("rel") not in ("next", "prev"))):
                self.fetched.append(given[key])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if os.environ.get("SHAMISA_SITE"):  # built already, as .ci/run does
        return Path(os.environ["SHAMISA_SITE"])
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere(site):
    read = {path: _Page(path) for path in site.rglob("*.html")}
    assert len(read) > len(DOCS)
    for path, page in read.items():
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if path.name == "404.html" and parts.path.startswith("/"):
                target = site / parts.path.lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target.suffix == ".html" and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in read[target].anchors, f"{path.name}: {link}"


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        elsewhere = [link for link in _Page(path).fetched if urlsplit(link).netloc]
        assert not elsewhere, f"{path.name}: {elsewhere}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", path.read_text()), path


@pytest.mark.slow
def test_equations_and_pictures_are_made(site):
    assert (site / "explanation/method.html").read_text().count("<math") > 10
    assert not [p for p in site.rglob("*.html") if 'class="arithmatex"' in p.read_text()]
    assert len(list((site / "gallery").glob("*.webp"))) == 1 + len(DISTORTIONS) * 5 + 6 * 5
    shown = {path: path.read_text() for path in site.rglob("*.html")}
    assert not [path for path, text in shown.items() if "generated:" in text]
    said = {"kernels": "nt_xent", "extend": "csrc/distort/", "probe": "koniq10k_scores_and_distributions.csv"}
    for name, words in said.items():  # what comes from the source is there
        assert words in shown[site / f"howto/{name}.html"], name
