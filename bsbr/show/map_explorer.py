"""Attention maps to look at: pictures side by side, and on the built site an explorer of layers, heads and lengths.

A page cannot hold every weight. A map is kept in cells, each the largest weight of a square of pairs, as one byte: the
weight's level on a logarithmic scale. The site's script `attention_maps.js` unpacks them; JupyterLab shows the first
view alone. The site has a file a layer, loaded when a reader chooses it: `apart` makes them.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from IPython.display import DisplayHandle, display
from jaxtyping import Float, UInt8
from matplotlib import pyplot
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from bsbr.show import captions, charts, figures
from bsbr.store.provenance import sha256

FLOOR = 1e-4  # weights below it share the lowest colour
LEVELS = 64  # of weights other than zero, from FLOOR to 1
COLOURS = "viridis"
TOP, BOTTOM = 30, 120  # margins in pixels; the script keeps the scale of colours as far below the maps


def quantise(weights: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Levels of weights in [0, 1]: 0 for zero, 1 below FLOOR, then evenly on a logarithmic scale up to LEVELS for 1."""
    share = 1 - np.log10(np.clip(weights, FLOOR, 1)) / np.log10(FLOOR)
    return np.where(weights == 0, 0, 1 + np.rint(share * (LEVELS - 1))).astype(np.uint8)


@dataclass(frozen=True)
class Maps:
    """Levels of several models' maps.

    `levels[model][n][layer]` is (heads, cells, cells), the whole square of n × n pairs in n / cells pairs a cell.
    """

    levels: Mapping[str, Mapping[int, Mapping[int, UInt8[np.ndarray, "heads cells cells"]]]]

    @property
    def models(self) -> list[str]:
        return list(self.levels)

    @property
    def lengths(self) -> list[int]:
        return list(self.levels[self.models[0]])

    @property
    def layers(self) -> list[int]:
        return list(self.levels[self.models[0]][self.lengths[0]])

    @property
    def heads(self) -> int:
        return len(self.levels[self.models[0]][self.lengths[0]][self.layers[0]])

    def cells(self, n: int) -> int:
        return self.levels[self.models[0]][n][self.layers[0]].shape[1]


def pack(maps: Maps) -> dict[str, Any]:
    """What the script unpacks: one compressed row of bytes, and for each length and layer where it begins.

    Only cells on and below the diagonal are kept, and of all models but the first the difference to the first, modulo
    256: where two models read alike it is nearly all zeros.
    """
    rows: dict[str, list[UInt8[np.ndarray, " bytes"]]] = {model: [] for model in maps.models}
    places, size = [], 0
    for n in maps.lengths:
        below = np.tril_indices(maps.cells(n))
        for layer in maps.layers:
            places.append(size)
            for model, found in rows.items():
                found.append(maps.levels[model][n][layer][:, *below].ravel())
            size += len(rows[maps.models[0]][-1])
    first, *others = (np.concatenate(found) for found in rows.values())
    stored = np.concatenate([first, *(other - first for other in others)])
    return {
        "models": maps.models,
        "lengths": maps.lengths,
        "cells": [maps.cells(n) for n in maps.lengths],
        "layers": maps.layers,
        "heads": maps.heads,
        "floor": FLOOR,
        "levels": LEVELS,
        "places": places,
        "data": base64.b64encode(zlib.compress(stored.tobytes(), 9)).decode(),
    }


def pictures(
    levels: Mapping[str, UInt8[np.ndarray, "cells cells"]], n: int, *, columns: int = 2, height: int = 480
) -> go.Figure:
    """Maps side by side on one colour scale, zoomed together; what has no weight stays empty."""
    rows = -(-len(levels) // columns)
    fig = make_subplots(
        rows, columns, subplot_titles=list(levels), shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.04,
        vertical_spacing=0.06 if rows > 1 else 0,
    )  # fmt: skip
    for place, (name, level) in enumerate(levels.items()):
        size = n / len(level)
        fig.add_heatmap(
            z=level, x0=(size - 1) / 2, dx=size, y0=(size - 1) / 2, dy=size, coloraxis="coloraxis", name=name,
            hoverinfo="skip", hoverongaps=False, row=1 + place // columns, col=1 + place % columns,
        )  # fmt: skip
    decades = range(round(np.log10(FLOOR)), 1)
    ticks = [float(quantise(np.array(10.0**decade))) for decade in decades]
    texts = [f"{10.0**decade:g}" for decade in decades]
    bar = {
        "tickvals": ticks, "ticktext": [f"≤ {texts[0]}", *texts[1:]], "title": {"text": "weight", "side": "right"},
        "orientation": "h", "tickangle": 0, "tickfont": {"size": 10}, "thickness": 10, "len": 0.6,
        "y": -75 / (height - TOP - BOTTOM), "yanchor": "top",
    }  # fmt: skip
    look = figures.figure(height=height).layout
    fig.update_layout(
        coloraxis={"cmin": 0, "cmax": LEVELS, "colorscale": _scale(), "colorbar": bar}, height=height,
        paper_bgcolor=look.paper_bgcolor, plot_bgcolor=look.plot_bgcolor, font=look.font, template="none",
        margin={"l": 60, "r": 20, "t": TOP, "b": BOTTOM},
    )  # fmt: skip
    axis = {"gridcolor": figures.GRID, "linecolor": figures.GRID, "zeroline": False, "showgrid": False}
    fig.update_xaxes(range=[-0.5, n - 0.5], **axis)
    fig.update_yaxes(range=[n - 0.5, -0.5], **axis)
    fig.update_xaxes(title_text="token that is read", row=rows)
    fig.update_yaxes(title_text="token that reads", col=1)
    return fig


def _scale() -> list[tuple[float, str]]:
    """Plotly's colours for levels 0 … LEVELS: nothing for 0, the map of colours for the rest."""
    nothing, edge = "rgba(0, 0, 0, 0)", 0.5 / LEVELS
    rest = [(edge + (1 - edge) * i / 16, colour) for i, colour in enumerate(sample_colorscale(COLOURS, 17))]
    return [(0.0, nothing), (edge, nothing), *rest]


def view(maps: Maps, name: str, *, layer: int, head: int, n: int) -> dict[str, Any]:
    """The explorer as what a cell displays, beginning with one layer, head and length. `name` becomes part of an id."""
    first = {model: maps.levels[model][n][layer][head] for model in maps.models}
    description = {**json.loads(pictures(first, n).to_json()), "config": figures.CONFIG}
    data = {**pack(maps), "layer": layer, "head": head, "length": n}
    return {charts.MIME: description, "text/html": markup(description, name, data, _still(first))}


def markup(description: Mapping[str, Any], name: str, data: Mapping[str, Any], still: str) -> str:
    """The explorer's HTML from its parts: what JupyterLab shows, packed maps, and pictures to see without a script."""
    view = f"Layer {data['layer']}, head {data['head']}, {data['length']:,} tokens."
    said = {"finding": f"{view} {captions.finding(description)}"}
    shown = {**description, "layout": {**description["layout"], "meta": said}}
    inside = (
        f'<p class="map-note"></p><script type="application/json" class="map-data">{charts.embedded(data)}</script>'
        f"<noscript>{still}</noscript>"
    )
    return f'<div class="map-explorer">{charts.markup(shown, name, inside)}</div>'


def again(markup_before: str, description: Mapping[str, Any], name: str) -> str:
    """The explorer of a published page as this code draws it, from the HTML and the description that the page keeps."""
    found = re.search(r'<script type="application/json"[^>]*>(\{"models".*?)</script>', markup_before, re.DOTALL)
    still = re.search(r"<noscript>(.*?)</noscript>", markup_before, re.DOTALL)
    if not found or not still:
        raise ValueError(
            f"an explorer's page has its maps as JSON and pictures without a script; chart {name!r} has not"
        )
    return markup(description, name, json.loads(found[1]), still[1])


def apart(page: str, write: Callable[[str, str], str]) -> str:
    """A page with the maps of each explorer put into a script a layer, which the page loads when they are looked at.

    Args:
        page: HTML.
        write: keeps a script under a file's name, and returns its address as seen from the page.
    """

    def split(found: re.Match[str]) -> str:
        data = json.loads(found[1])
        key = sha256(found[1])[:12]
        files = [
            write(f"{key}-{layer}.js", f'Charts.layers["{key}-{layer}"] = "{part}";\n')
            for layer, part in zip(data["layers"], _layers(data), strict=True)
        ]
        header = {part: value for part, value in data.items() if part not in ("data", "places")}
        header |= {"files": files, "keys": [f"{key}-{layer}" for layer in data["layers"]]}
        return f'<script type="application/json" class="map-data">{charts.embedded(header)}</script>'

    return re.sub(r'<script[^>]*class="map-data"[^>]*>(.*?)</script>', split, page, flags=re.DOTALL)


def _layers(data: Mapping[str, Any]) -> list[str]:
    """What `pack` made, a layer apart: all models one after the other, of each all lengths, of those all heads."""
    stored = np.frombuffer(zlib.decompress(base64.b64decode(data["data"])), dtype=np.uint8)
    rows = stored.reshape(len(data["models"]), -1)
    sizes = [data["heads"] * cells * (cells + 1) // 2 for cells in data["cells"]]
    count = len(data["layers"])
    places = [data["places"][i * count : (i + 1) * count] for i in range(len(sizes))]
    parts = [
        np.concatenate([rows[:, at[layer] : at[layer] + size] for at, size in zip(places, sizes, strict=True)], axis=1)
        for layer in range(count)
    ]
    return [base64.b64encode(zlib.compress(part.tobytes(), 9)).decode() for part in parts]


def show(maps: Maps, name: str, *, layer: int, head: int, n: int, place: DisplayHandle | None = None) -> int:
    """Display the explorer, in a reserved place if one is given.

    Returns:
        how many bytes it adds to the page.
    """
    bundle = view(maps, name, layer=layer, head=head, n=n)
    if place is None:
        display(bundle, raw=True)
    else:
        place.update(bundle, raw=True)
    return len(bundle["text/html"].encode())


def _still(levels: Mapping[str, UInt8[np.ndarray, "cells cells"]]) -> str:
    """The same maps as pictures, for a reader without JavaScript."""
    images = []
    for name, level in levels.items():
        colours = pyplot.get_cmap(COLOURS)((level - 1.0) / (LEVELS - 1))
        colours[level == 0] = 0
        buffer = io.BytesIO()
        pyplot.imsave(buffer, colours, format="png")
        picture = base64.b64encode(buffer.getvalue()).decode()
        images.append(
            f'<img width="48%" alt="Attention map, {html.escape(name)}" src="data:image/png;base64,{picture}">'
        )
    return "".join(images)
