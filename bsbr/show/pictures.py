"""Small pictures on a page, within the page itself, so that it asks for no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from IPython.display import HTML, display

SIDE = 64  # pixels on the page


def gallery(lines: Mapping[str, Sequence[np.ndarray]], heads: Sequence[str], caption: str = "") -> None:
    """Display pictures as a table: a line of them for each name, one beneath each head.

    Args:
        lines: by name pictures, uint8 of shape (height, width, 3), as many as there are heads.
        heads: what stands above the columns of pictures.
        caption: what stands above the table.

    Raises:
        ValueError: a line has another number of pictures.
    """
    display(HTML(markup(lines, heads, caption)))


def markup(lines: Mapping[str, Sequence[np.ndarray]], heads: Sequence[str], caption: str = "") -> str:
    """The HTML that `gallery` displays. Each picture is told in words too, by its line and its head."""
    body = []
    for name, pictures in lines.items():
        if len(pictures) != len(heads):
            raise ValueError(
                f"lines must have a picture for each of {len(heads)} heads, but {name!r} has {len(pictures)}"
            )
        cells = [f"<td>{_img(one, f'{name}, {head}')}</td>" for one, head in zip(pictures, heads, strict=True)]
        body.append(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(one)}</th>" for one in ("", *heads))
    title = f"<p><strong>{html.escape(caption)}</strong></p>" if caption else ""
    table = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<div class="table-box">{title}{table}</div>'


def _img(picture: np.ndarray, words: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    source = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{SIDE}" height="{SIDE}" style="image-rendering: pixelated"'
    return f'<img src="data:image/png;base64,{source}" {size} alt="{html.escape(words)}">'
