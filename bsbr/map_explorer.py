"""Attention maps to look at: pictures side by side, and on the built site an explorer of layers, heads and lengths.

A page cannot hold every weight. A map is kept in cells, each the largest weight of a square of pairs, as one byte: the
weight's level on a logarithmic scale. The site's script `attention_maps.js` unpacks them; JupyterLab shows the first
view alone.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from IPython.display import DisplayHandle, display
from jaxtyping import Float, UInt8
from matplotlib import pyplot
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from bsbr import figures

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
    """What the script unpacks: one compressed row of bytes, and for each model, length and layer where it begins.

    Only cells on and below the diagonal are kept, and maps that are the same to within a level only once.
    """
    stored: list[UInt8[np.ndarray, " bytes"]] = []
    begins: dict[tuple[int, int], list[tuple[int, UInt8[np.ndarray, " bytes"]]]] = {}
    places, size = [], 0
    for model in maps.models:
        for n in maps.lengths:
            rows, columns = np.tril_indices(maps.cells(n))
            for layer in maps.layers:
                found = maps.levels[model][n][layer][:, rows, columns].ravel()
                known = begins.setdefault((n, layer), [])
                same = next((begin for begin, other in known if _same(found, other)), None)
                if same is None:
                    known.append((size, found))
                    stored.append(found)
                    same, size = size, size + len(found)
                places.append(same)
    packed = base64.b64encode(zlib.compress(np.concatenate(stored).tobytes(), 9)).decode()
    return {
        "models": maps.models,
        "lengths": maps.lengths,
        "cells": [maps.cells(n) for n in maps.lengths],
        "layers": maps.layers,
        "heads": maps.heads,
        "floor": FLOOR,
        "levels": LEVELS,
        "places": places,
        "data": packed,
    }


def _same(a: UInt8[np.ndarray, " bytes"], b: UInt8[np.ndarray, " bytes"]) -> bool:
    return bool(np.abs(a.astype(np.int16) - b).max() <= 1)


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
        "orientation": "h", "thickness": 10, "len": 0.6, "y": -75 / (height - TOP - BOTTOM), "yanchor": "top",
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
    fig = pictures(first, n)
    config = {"responsive": True, "displaylogo": False}
    chart = fig.to_html(full_html=False, include_plotlyjs=False, div_id=f"chart-{name}", config=config)
    data = json.dumps({**pack(maps), "layer": layer, "head": head, "length": n}, separators=(",", ":"))
    markup = (
        f'<div class="map-explorer">{chart}<p class="map-note"></p><script type="application/json">{data}</script>'
        f"<noscript>{_still(first)}</noscript></div>"
    )
    description = {**json.loads(fig.to_json()), "config": config}
    return {"application/vnd.plotly.v1+json": description, "text/html": markup}


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
        images.append(f'<img width="48%" alt="Attention map, {name}" src="data:image/png;base64,{picture}">')
    return "".join(images)
