"""Print the book: one PDF, and one HTML file that needs nothing beside it.

Called by `nox -s pdf`, which says where they are. The book is built as a single page from the published results, as
`nox -s book` builds its pages, and a browser prints it.
"""

from __future__ import annotations

import base64
import mimetypes
import re
import subprocess
import sys
from pathlib import Path

from browser import FLAGS, chromium

from bsbr.store import provenance

FOLDER = provenance.ROOT / "_build" / "singlehtml"
PAGE, ARCHIVE, PDF = FOLDER / "index.html", FOLDER / "bsbr.html", FOLDER / "bsbr.pdf"
BUILD = ["jupyter-book", "build", ".", "--all", "--builder", "singlehtml", "--warningiserror", "--keep-going"]
LONGEST = 300_000  # milliseconds that a browser may take over the page


def main() -> int:
    command = [str(Path(sys.executable).parent / BUILD[0]), *BUILD[1:]]
    if code := subprocess.run(command, cwd=provenance.ROOT).returncode:
        return code
    to_the_top(FOLDER / "book" / "index.html")
    ARCHIVE.write_text(whole(PAGE), encoding="utf-8")
    print(f"The book in one file: {ARCHIVE}", flush=True)
    path = chromium()
    if path is None:
        print("No PDF: install Chromium, or set BSBR_CHROMIUM to its path.", file=sys.stderr)
        return 1
    to_pdf(PAGE, PDF, path)
    print(f"The book as a PDF: {PDF}", flush=True)
    return 0


def to_the_top(page: Path) -> None:
    """Put the page where its own addresses take it to be, which is not in the folder of its first chapter."""
    PAGE.write_text(page.read_text(encoding="utf-8").replace('href="book/index.html#', 'href="#'), encoding="utf-8")
    page.unlink()


def to_pdf(page: Path, pdf: Path, path: str) -> None:
    """Print a page, all that is folded opened and all charts drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        tab = browser.new_page(viewport={"width": 900, "height": 1200}, color_scheme="light")
        tab.set_default_timeout(LONGEST)
        tab.goto(page.as_uri(), wait_until="load")
        tab.emulate_media(media="print", color_scheme="light")
        tab.evaluate("document.querySelectorAll('main details:not(.hide)').forEach((one) => (one.open = true))")
        tab.evaluate("document.fonts.ready.then(() => dispatchEvent(new Event('beforeprint')))")
        tab.wait_for_timeout(3000)
        foot = (
            '<div style="font-size:7px;width:100%;text-align:center"><span class="pageNumber"></span> / '
            '<span class="totalPages"></span></div>'
        )
        tab.pdf(
            path=str(pdf),
            format="A4",
            margin={"top": "14mm", "bottom": "16mm", "left": "12mm", "right": "12mm"},
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=foot,
            outline=True,
            tagged=True,
        )
        browser.close()


def whole(page: Path) -> str:
    """A page with every script, style sheet, font and picture in it."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<link\b[^>]*>", lambda found: link(page.parent, found[0]), text)
    text = re.sub(r'<script([^>]*?) src="([^"]+)"([^>]*)></script>', lambda found: script(page.parent, found), text)
    return re.sub(r'(<img[^>]*? src=")([^":]+)"', lambda found: f'{found[1]}{data(page.parent / found[2])}"', text)


def link(folder: Path, tag: str) -> str:
    """A style sheet or an icon as part of the page; nothing of what only hastens them or names another page."""
    found = dict(re.findall(r'(\w+)="([^"]*)"', tag))
    path = local(folder, found.get("href", ""))
    if path is None or found.get("rel") not in ("stylesheet", "icon"):
        return ""
    return style(path) if found["rel"] == "stylesheet" else f'<link rel="icon" href="{data(path)}"/>'


def style(sheet: Path) -> str:
    text = re.sub(
        r"url\(([\"']?)(?!data:)([^)\"']+)\1\)",
        lambda url: f"url({data(local(sheet.parent, url[2]))})",
        sheet.read_text(encoding="utf-8"),
    )
    return f"<style>{text}</style>"


def script(folder: Path, found: re.Match[str]) -> str:
    source = local(folder, found[2])
    if source is None:
        return found[0]
    text = source.read_text(encoding="utf-8").replace("</script", "<\\/script")
    # What was deferred runs when the page has been read, as a module does.
    kind = ' type="module"' if "defer" in found[1] + found[3] else ""
    return f"<script{kind}>{text}</script>"


def local(folder: Path, address: str) -> Path | None:
    """The file that a page names, without the mark that a changed one is told by."""
    path = folder / address.partition("?")[0].partition("#")[0]
    return path if path.is_file() else None


def data(path: Path | None) -> str:
    """A file as an address that holds it."""
    if path is None or not path.is_file():
        return "data:,"
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


if __name__ == "__main__":
    sys.exit(main())
