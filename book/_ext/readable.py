"""Pages that can be read on a phone, by keyboard and on paper: their tables, and what of a results page is folded.

It works on the built HTML, so that it reaches what a notebook kept of its last full run as well as what a page makes
anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from bsbr.show import coverage

LEAKS = {"None", "nan", "NaN", "NaT", "<NA>"}  # what Python says where there is no value
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
BOXES = ["table-box", "pst-scrollable-table-container"]
BEFORE = {"What was claimed", "Method", "Measuring"}  # what stands before the results
FOLDED = {"book/claims": {"The rules", "How many claims each section holds"}}  # by page, beside those of results
OPEN = {"Reading", "Claimed and measured", "Limits and exercises"}  # what stands after them, in words


def improve(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Rewrite a page's body, before the theme puts it into its frame."""
    body = context.get("body", "")
    if app.builder.name == "singlehtml":
        body = context["body"] = on_one_page(body)
    if "<table" not in body and "<summary" not in body and not page.startswith("notebooks/"):
        return
    soup = BeautifulSoup(body, "html.parser")
    tables(soup)
    for summary in soup.find_all("summary"):
        del summary["aria-label"]  # its name is what stands there: "Show the code"
    if app.builder.name == "html":
        for section in sections(soup):
            if title_of(section) in FOLDED.get(page, ()):
                fold_section(soup, section)
        if page.startswith("notebooks/"):
            fold(soup)
    context["body"] = str(soup)


def on_one_page(body: str) -> str:
    """Addresses that a page's own HTML has, as they are where all pages are one."""
    body = re.sub(r'(src|href)="(?:\.\./)+_static/', r'\1="_static/', body)
    body = re.sub(r'href="(?:\.\./)+(notebooks/[^"#]+)\.html(?:#[^"]*)?"', r'href="#document-\1"', body)
    return re.sub(r'href="(\w+)\.html(?:#[^"]*)?"', r'href="#document-book/\1"', body)


# -- Tables ---------------------------------------------------------------------------------------


def tables(soup: BeautifulSoup) -> None:
    """Give each table a caption, named rows and columns, and a box with a name in which it scrolls."""
    taken: set[str] = set()
    for table in soup.find_all("table"):
        box = box_of(soup, table)
        title = caption(soup, table, box)
        for cell in table.select("thead th"):
            cell["scope"] = "col"
            if not cell.get_text(strip=True):
                cell.name = "td"
                del cell["scope"]
        for row in table.select("tbody tr"):
            first = row.find(["td", "th"], recursive=False)
            if first is not None:
                first.name, first["scope"] = "th", "row"
        for cell in table.select("tbody th, tbody td"):
            if cell.get_text(strip=True) in LEAKS:
                cell.string = "–"
        drop_empty_columns(table)
        name, count = title, 2
        while name in taken:
            name, count = f"{title} ({count})", count + 1
        taken.add(name)
        box["class"] = sorted({*box.get("class", []), "table-box"})
        box["role"], box["tabindex"], box["aria-label"] = "region", "0", name


def drop_empty_columns(table: Tag) -> None:
    """Take out what no row says anything in."""
    rows = [row.find_all(["td", "th"], recursive=False) for row in table.find_all("tr")]
    body = [row.find_all(["td", "th"], recursive=False) for row in table.select("tbody tr")]
    if not body or len({len(row) for row in rows}) > 1 or table.find(["td", "th"], colspan=True):
        return
    for column in reversed(range(len(body[0]))):
        if not any(row[column].get_text(strip=True) or row[column].find(True) for row in body):
            for row in rows:
                row[column].decompose()


def box_of(soup: BeautifulSoup, table: Tag) -> Tag:
    """The element that the table scrolls in; one is made where there is none."""
    parent = table.parent
    if parent is not None and set(parent.get("class") or []) & set(BOXES):
        return parent
    return table.wrap(soup.new_tag("div", attrs={"class": "table-box"}))


def caption(soup: BeautifulSoup, table: Tag, box: Tag) -> str:
    """The table's caption, as text: its own, the bold line above it, or else, not seen, its heading."""
    found = table.find("caption", recursive=False)
    if found is None:
        found = soup.new_tag("caption")
        bold = table.find_previous_sibling("p")
        if bold is not None and bold.strong is not None:
            found.append(bold.strong.extract())
            bold.decompose()
        else:
            heading = table.find_previous(HEADINGS)
            found["class"] = "unseen"
            found.string = re.sub(r"#$", "", heading.get_text(strip=True)) if heading else "Table"
        table.insert(0, found)
    if "unseen" not in (found.get("class") or []):
        inner = soup.new_tag("span")  # stays where it is while the table scrolls under it
        inner.extend(list(found.contents))
        found.append(inner)
        for text in list(found.find_all(string=re.compile(r"`[^`]+`"))):
            parts = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(text.output_ready("minimal")))
            text.replace_with(BeautifulSoup(parts, "html.parser"))
    return " ".join(found.get_text(" ", strip=True).split())


# -- What is folded -------------------------------------------------------------------------------


def fold(soup: BeautifulSoup) -> None:
    """Leave open what answers the page's question: its first figure, its first table, and the reading of them."""
    found = sections(soup)
    first = next((one for one in found if title_of(one) not in BEFORE | OPEN and one.find("table")), None)
    for section in found:
        if section is first:
            fold_rest(soup, section)
        elif title_of(section) not in OPEN:
            fold_section(soup, section)


def sections(soup: BeautifulSoup) -> list[Tag]:
    return [section for section in soup.select("section > section") if section.find("h2", recursive=False)]


def title_of(section: Tag) -> str:
    heading = section.find("h2", recursive=False)
    return re.sub(r"#$", "", heading.get_text(strip=True)) if heading else ""


def fold_section(soup: BeautifulSoup, section: Tag) -> None:
    """The whole section behind its heading."""
    heading = section.find("h2", recursive=False)
    assert heading is not None
    rest = [one for one in list(section.contents) if one is not heading and not is_target(one)]
    details = soup.new_tag("details", attrs={"class": "fold"})
    summary = soup.new_tag("summary")
    heading.insert_before(details)
    summary.append(heading.extract())
    if words := in_words(rest):
        note = soup.new_tag("small")
        note.string = words
        summary.append(note)
    details.append(summary)
    details.extend(rest)


def fold_rest(soup: BeautifulSoup, section: Tag) -> None:
    """What follows the first table of a section, if it is much."""
    table = section.find("table")
    assert isinstance(table, Tag)
    at = table
    while at.parent is not section and at.parent is not None:
        at = at.parent
        if set(at.get("class") or []) & {"cell_output", "cell"}:
            inner = next(one for one in [table, *table.parents] if one.parent is at)
            later = [one for one in inner.next_siblings if isinstance(one, Tag)]
            if later and later[-1].find("small"):  # where the numbers come from
                later.pop()
            if tail := move(soup, later):
                inner.insert_after(tail)
    rest = [one for one in at.next_siblings if isinstance(one, Tag)]
    if tail := move(soup, rest):
        at.insert_after(tail)


def move(soup: BeautifulSoup, rest: list[Tag]) -> Tag | None:
    """These elements in one that is folded, or None if it is not worth it."""
    words = in_words(rest)
    if not words:
        return None
    details = soup.new_tag("details", attrs={"class": "fold fold-rest"})
    summary = soup.new_tag("summary")
    summary.string = f"More of this: {words}"
    details.append(summary)
    details.extend([one.extract() for one in rest])
    return details


def is_target(one: Any) -> bool:
    """Whether this is only the address of a section."""
    return isinstance(one, Tag) and one.name == "span" and bool(one.get("id")) and not one.get_text(strip=True)


def in_words(elements: list[Any]) -> str:
    """`2 tables, 1 chart`: what there is to see among them."""
    tags = [one for one in elements if isinstance(one, Tag)]
    found = {
        "table": sum(len(one.select("table")) + (one.name == "table") for one in tags),
        "chart": sum(len(one.select(".plotly-graph-div")) for one in tags),
    }
    return ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in found.items() if count)


# -- The notebook itself --------------------------------------------------------------------------


class BothNotebooks(SphinxTransform):
    """Beside the link to a notebook's .py, which is its source, one to the .ipynb, which has its outputs."""

    default_priority = 870  # before the files to download are collected, which is at 880

    def apply(self, **kwargs: Any) -> None:
        for link in list(self.document.findall(addnodes.download_reference)):
            target = str(link.get("reftarget", ""))
            _, path = self.env.relfn2path(target, self.env.docname)
            named = link.astext() in ("notebook", "code") and target.endswith(".py")
            if not named or "notebooks" not in Path(path).parts:
                continue
            executed = link.deepcopy()
            executed["reftarget"] = target.removesuffix(".py") + ".ipynb"
            link.children = [nodes.inline("", "code (.py)")]
            executed.children = [nodes.inline("", "notebook (.ipynb)")]
            place = link.parent.index(link)
            link.parent[place + 1 : place + 1] = [nodes.Text(" · "), executed]


class NotMeasuredYet(SphinxTransform):
    """A results page that keeps no run says so where its answer would stand, and how to get one.

    So does one whose run is older than a mechanism.
    """

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        path = Path(self.env.doc2path(self.env.docname))
        if not self.env.docname.startswith("notebooks/") or path.suffix != ".ipynb":
            return
        if not has_outputs(path):
            said = nodes.strong("", "Not measured yet.")
            why = nodes.Text(
                " No full run of this page is published, so there is no number here. Below is what it will measure "
                "and how. To run it: "
            )
        elif missing := coverage.note(self.env.docname.removeprefix("notebooks/")):
            said = nodes.strong("", missing)
            why = nodes.Text(
                " What stands below is of the mechanisms that there were when this page was last measured. To measure "
                "it with all: "
            )
        else:
            return
        command = nodes.literal("", f"nox -s reproduce -- --profile full {path.stem}")
        note = nodes.note("", nodes.paragraph("", "", said, why, command))
        for title in self.document.findall(nodes.title):
            question = title.next_node(nodes.paragraph, siblings=True, descend=False) or title
            question.parent.insert(question.parent.index(question) + 1, note)
            return


def has_outputs(notebook: Path) -> bool:
    """Whether a notebook keeps what a run displayed."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return any(cell.get("outputs") for cell in cells)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(BothNotebooks)
    app.add_transform(NotMeasuredYet)
    app.connect("html-page-context", improve, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
