"""Draw which tokens each token reads, and how: for the pages that explain the mechanisms, and for the README.

    python book/masks.py      writes book/_static/masks.svg

The drawing is made from the mechanisms' records; `tests/test_book.py` holds these against what the library's
functions really read. Plain SVG, so that it follows the page's colours and needs nothing installed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bsbr.mechanisms import MECHANISMS, How, Mechanism

N, CHUNK, WINDOW = 16, 4, 4
STEP, GAP = 11, 1
COLOURS = {"exact": "#0072B2", "chosen": "#56B4E9", "state": "#E69F00", "corrected": "#009E73", "future": "#d1495b"}
LEGEND = {"exact": "read exactly, by softmax", "state": "read through its chunk's state"}


def original(i: int, j: int) -> How:
    """The original implementation (package `bsbr` on PyPI): upper triangles where lower ones are meant."""
    if j > i:
        return "future"
    if i == j:
        return "exact"
    return "state" if i // CHUNK == j // CHUNK else ""  # its own chunk's state, which holds its past again


@dataclass(frozen=True)
class Panel:
    """What one mask shows: its title, which token reads which, and whether chunks are marked."""

    title: str
    rule: Callable[[int, int], How]  # (reading token, token read) → how, "" for not at all
    chunked: bool


def drawn(mechanism: Mechanism) -> Panel:
    size = WINDOW if "window_size" in mechanism.options else CHUNK
    rule = functools.partial(mechanism.reads, size=size)
    return Panel(mechanism.title, rule, "chunk_size" in mechanism.options)


PANELS = {name: drawn(mechanism) for name, mechanism in MECHANISMS.items()}
PANELS["original"] = Panel("The original code", original, True)


def panel(name: str, x: int = 0) -> str:
    """One mask as an SVG group: a row a reading token, a column a token read."""
    shown = PANELS[name]
    squares: dict[How, list[str]] = {}
    for i in range(N):
        for j in range(N):
            side = STEP - GAP
            squares.setdefault(shown.rule(i, j), []).append(f"M{j * STEP} {i * STEP}h{side}v{side}h-{side}z")
    cells = "".join(
        f'<path d="{"".join(paths)}" '
        + (f'fill="{COLOURS[how]}"/>' if how else 'fill="currentColor" fill-opacity="0.07"/>')
        for how, paths in squares.items()
    )
    lines = "".join(
        f'<path d="M{k * STEP - 0.5} 0V{N * STEP}M0 {k * STEP - 0.5}H{N * STEP}" stroke="currentColor" '
        'stroke-opacity="0.45" stroke-width="0.8"/>'
        for k in range(CHUNK, N, CHUNK)
    )
    middle = N * STEP / 2
    heading = f'<text x="{middle}" y="-8" text-anchor="middle" font-size="11" font-weight="600">{shown.title}</text>'
    return f'<g transform="translate({x},20)">{heading}{cells}{lines if shown.chunked else ""}</g>'


def legend(entries: dict[str, str], y: int, step: int = 190) -> str:
    return "".join(
        f'<rect x="{k * step}" y="{y}" width="10" height="10" rx="1.5" fill="{COLOURS[how]}"/>'
        f'<text x="{k * step + 15}" y="{y + 9}" font-size="10">{label}</text>'
        for k, (how, label) in enumerate(entries.items())
    )


def svg(body: str, width: int, height: int, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}" font-family="system-ui, sans-serif" fill="currentColor">{body}</svg>'
    )


def single(name: str) -> str:
    """One mask as a drawing of its own."""
    return svg(panel(name), N * STEP, N * STEP + 22, f"{PANELS[name].title}: which tokens each token reads")


def drawings(notes: dict[str, str], entries: dict[str, str]) -> str:
    """HTML: a mask with a caption for each name of `notes`, and under them what the colours of `entries` mean."""
    figures = "".join(
        f'<figure class="drawing">{single(name)}<figcaption>{note}</figcaption></figure>'
        for name, note in notes.items()
    )
    colours = "".join(
        f'<span><i style="background:{COLOURS[how]}"></i>{label}</span>' for how, label in entries.items()
    )
    return f'<div class="drawings">{figures}</div><div class="drawing-legend">{colours}</div>'


def pair() -> str:
    """The README's picture: standard attention beside BSBR, coloured for light and dark pages."""
    width = 2 * N * STEP + 40
    style = "<style>svg{color:#24292f}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
    body = style + panel("standard") + panel("bsbr", N * STEP + 40) + legend(LEGEND, N * STEP + 30)
    return svg(body, width, N * STEP + 44, "Which tokens each token reads, in standard attention and in BSBR")


if __name__ == "__main__":
    target = Path(__file__).parent / "_static" / "masks.svg"
    target.write_text(pair() + "\n", encoding="utf-8")
    print(f"wrote {target}")
