"""The search: the text of each section, and of each name of the reference, packed in a script, which a book opened from
the disk can load too.

Sphinx's own search fetches pages to show a line of them, which a browser refuses to a page from the disk, and has each
page load its index. `_static/search.js` does the searching.
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

BEGIN, END = 'const PACKED = "', '";\n'
LONGEST = 4000  # characters kept of a section's text
MARKUP = 20_000  # characters of HTML beyond which an output is a chart or a long table, not words


def prepare(app: Sphinx) -> None:
    app.bsbr_sections = []  # type: ignore[attr-defined]
    if app.builder.name == "html":
        app.builder.search = False  # type: ignore[attr-defined]


def gather(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    if doctree is None or app.builder.name != "html":
        return
    title = app.env.titles[page].astext() if page in app.env.titles else page
    for position, section in enumerate(doctree.findall(nodes.section)):
        heading = section.next_node(nodes.title)
        name = heading.astext() if heading else title
        text = " ".join(" ".join(words(section)).split())[:LONGEST]
        address = f"{page}.html" + (f"#{section['ids'][0]}" if position and section["ids"] else "")
        app.bsbr_sections.append([address, title, name, text])  # type: ignore[attr-defined]
    for documented in doctree.findall(addnodes.desc):
        signature, content = documented.children
        text = " ".join(" ".join(words(content)).split())[:LONGEST]
        address = signature["ids"][0]
        app.bsbr_sections.append([f"{page}.html#{address}", title, address.partition(".")[2], text])  # type: ignore[attr-defined]


def words(section: nodes.Element) -> Iterator[str]:
    """What a section or a name says, without its title and what stands below it with an address of its own."""
    for child in section.children:
        if isinstance(child, nodes.section | nodes.title | addnodes.desc | addnodes.index):
            continue
        for leaf in child.findall(lambda node: isinstance(node, nodes.raw) or not node.children):
            if not isinstance(leaf, nodes.raw):
                yield leaf.astext()
            elif leaf.get("format") == "html" and len(leaf.rawsource or leaf.astext()) < MARKUP:
                shown = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", leaf.astext(), flags=re.DOTALL)
                yield html.unescape(re.sub(r"<[^>]*>", " ", shown))


def page(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    if app.builder.name == "html":
        yield "search", {"title": "Search"}, "search.html"


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    file, found = Path(app.outdir, "_static", "search_data.js"), app.bsbr_sections  # type: ignore[attr-defined]
    written = {page_of(section) for section in found}
    pages = {f"{name}.html" for name in app.env.found_docs} - written  # left as an earlier build made them
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    before = unpacked(text) if text.startswith(BEGIN) else []  # else it is of a version that kept them otherwise
    sections = [*found, *(section for section in before if page_of(section) in pages)]
    data = json.dumps(sections, ensure_ascii=False, separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(data.encode(), 9)).decode()
    file.write_text(f"{BEGIN}{packed}{END}", encoding="utf-8")


def unpacked(script: str) -> list[list[str]]:
    """The sections in such a script: address, page, title and text of each."""
    return json.loads(zlib.decompress(base64.b64decode(script.removeprefix(BEGIN).removesuffix(END))))


def page_of(section: list[str]) -> str:
    return section[0].partition("#")[0]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", prepare)
    app.connect("html-page-context", gather)
    app.connect("html-collect-pages", page)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
