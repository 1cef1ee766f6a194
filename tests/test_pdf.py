"""The book in one file holds all that its page names; what a browser prints is `tools/pdf.py` run whole."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import pdf

PAGE = """<!doctype html><html><head><link rel="stylesheet" type="text/css" href="_static/a.css?v=1" />
<script src="_static/a.js?v=2"></script><script defer="defer" src="_static/b.js"></script></head>
<body><p id="seen"></p><img alt="" src="_static/a.svg"><a href="elsewhere.html">kept</a></body></html>"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "_static").mkdir()
    files = {
        "a.css": "p { color: rgb(1, 2, 3) } @font-face { font-family: f; src: url(f.woff2) }",
        "f.woff2": "not a font",
        "a.js": "var early = document.getElementById('seen'); var text = '</script>';",
        "b.js": "document.getElementById('seen').textContent = early === null ? text : 'too late';",
        "a.svg": '<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"/>',
    }
    for name, text in files.items():
        (tmp_path / "_static" / name).write_text(text, encoding="utf-8")
    (tmp_path / "index.html").write_text(PAGE, encoding="utf-8")
    return tmp_path / "index.html"


def test_a_page_made_whole_names_no_other_file(page: Path) -> None:
    text = pdf.whole(page)
    assert not re.findall(r'(?:src|href)="(?!data:|elsewhere)[^"]+"|url\((?!data:)', text)


def test_a_page_made_whole_does_what_it_did(browser: Any, page: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "book.html"
    alone.parent.mkdir()
    alone.write_text(pdf.whole(page), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(alone.as_uri())
    assert tab.locator("#seen").inner_text() == "</script>"
    assert tab.locator("#seen").evaluate("one => getComputedStyle(one).color") == "rgb(1, 2, 3)"
    assert tab.locator("img").evaluate("one => one.naturalWidth") == 7
    tab.close()
