"""Names of files in print. (What is written at once: ``test_runs.py``.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from shamisa.files import printable


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"a\xff\xc3\xa9.png", r"a\xffé.png"),
        ("a\udcffé.png", r"a\xffé.png"),  # as Python decodes those bytes
        (Path("a\udc80"), r"a\x80"),
        ("\ud800", r"\ud800"),
        (ValueError("\udce9"), r"\xe9"),
    ],
)
def test_printable(content, expected):
    assert printable(content) == expected
