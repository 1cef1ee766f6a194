"""Weigh the built book: how soon each page is seen on a slow phone, and how large the whole site is.

Called by `nox -s bench`, or `nox -s bench -- pages` for this part alone, after `nox -s book`. A page is served with
gzip and opened once, by a browser with nothing kept from before, on 1.6 Mbit/s with 150 ms to the server and a quarter
of this machine's speed; a page that misses its aim is opened twice more, and the median counts. Ends with an error if
an aim is missed.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import statistics
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from browser import FLAGS, chromium

from bsbr.store import provenance

BOOK = provenance.ROOT / "_build" / "html"
FIRST_PAINT, SIZE = 3.5, 15  # aims: seconds until something is seen, on every page; megabytes of the whole site
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LINE = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 0.75e6 / 8}
SLOWDOWN = 4
PAINTED = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"


class Zipped(SimpleHTTPRequestHandler):
    """Files of a folder, with gzip, over connections that stay open, as a host of static sites serves them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        content = compressed(file)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(file))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """One whose connections a browser may close as it likes."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@functools.cache
def compressed(file: Path) -> bytes:
    return gzip.compress(file.read_bytes(), 6)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which this machine serves a folder."""
    server = Server(("127.0.0.1", 0), functools.partial(Zipped, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def first_paint(browser: Any, address: str) -> float:
    """Seconds from asking for a page until something of it is seen."""
    context = browser.new_context(**PHONE)
    try:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.send("Network.emulateNetworkConditions", LINE)
        session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWDOWN})
        page.goto(address, wait_until="commit", timeout=60_000)
        page.wait_for_function(f"{PAINTED} !== undefined", timeout=60_000)
        return float(page.evaluate(PAINTED)) / 1000
    finally:
        context.close()


def size(site: Path) -> float:
    """Megabytes of all files."""
    return sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) / 1e6


def pages(site: Path) -> list[str]:
    """Every page that is read; an entry that only leads to another is none."""
    found = (file.relative_to(site).as_posix() for file in site.rglob("*.html") if "_static" not in file.parts)
    return sorted(page for page in found if page != "index.html")


def main(site: Path = BOOK) -> int:
    print("\npages: " + (__doc__ or "").split("\n")[0])
    if not (site / "index.html").exists():
        print(f"skipped: there is no book at {site}; build it with `nox -s book`")
        return 0
    megabytes = size(site)
    kept = [megabytes <= SIZE]
    print(f"{verdict(kept[-1])}  the whole site in MB: {megabytes:.2f}, aim ≤ {SIZE}", flush=True)
    path = chromium()
    if path is None:
        print("skipped: no Chromium to open pages with; install one (apt-get install chromium) or set BSBR_CHROMIUM")
        return int(not all(kept))
    from playwright.sync_api import sync_playwright

    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        for page in pages(site):
            found = [first_paint(browser, f"{address}/{page}")]
            if found[0] > FIRST_PAINT:  # something else may have kept this machine busy
                found += [first_paint(browser, f"{address}/{page}") for _ in range(2)]
            seconds, times = statistics.median(found), ", median of 3" if len(found) > 1 else ""
            kept.append(seconds <= FIRST_PAINT)
            print(f"{verdict(kept[-1])}  {page}: seen after {seconds:.2f} s{times}, aim ≤ {FIRST_PAINT}", flush=True)
        browser.close()
    print(f"\n{sum(kept)} of {len(kept)} aims kept")
    return int(not all(kept))


def verdict(is_kept: bool) -> str:
    return "kept  " if is_kept else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
