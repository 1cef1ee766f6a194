"""What the site draws of a plotly figure: legible on light and dark, named, with a caption in words.

Everything is made from a chart's description, the JSON that JupyterLab draws too and that a page keeps. So the site
can make the charts of a published page anew, without measuring: `book/_ext/site_assets.py` does. The drawing itself,
with its buttons, is `book/_static/charts.js`.
"""

from __future__ import annotations

import copy
import html
import json
from collections.abc import Mapping
from typing import Any

from bsbr.show import captions, look

MIME = "application/vnd.plotly.v1+json"


def dressed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A chart as the site draws it: `data` and `layout` for plotly, and what the page says and offers beside it.

    Each line gets a colour, a marker and a dash of its own, each kind of bar a colour and a pattern. Of more than
    `look.MOST`, some are not visible at first. Title, legend and buttons become part of the page: `title`, `finding`,
    `toggle` (whether the vertical axis can be made linear or logarithmic), `panels` (how many maps stand side by side).
    """
    data, layout = copy.deepcopy(description["data"]), copy.deepcopy(description["layout"])
    meta = layout.pop("meta", None) or {}
    title = (layout.pop("title", None) or {}).get("text", "")
    toggle = bool(layout.pop("updatemenus", None))
    for name in ("legend", "template", "width"):
        layout.pop(name, None)
    told = [trace for trace in data if trace.get("type") in ("scatter", "bar")]
    look.restyle(told)
    for trace, visible in zip(told, look.visible(told, layout, set(meta.get("first", ()))), strict=True):
        trace["visible"] = visible
    x, y = (layout.setdefault(f"{letter}axis", {}) for letter in "xy")
    for name in layout:
        if name.startswith(("xaxis", "yaxis")):
            layout[name] |= {"separatethousands": True, "exponentformat": "power"}
    look.set_ticks(x, look.reach(told, "x"), logarithmic=x.get("type") == "log")
    whole = dict(y)  # when a reader has asked for all lines
    for axis, drawn in ((y, [trace for trace in told if trace["visible"]]), (whole, told)):
        look.set_ticks(axis, look.reach(drawn, "y"), logarithmic=toggle or y.get("type") == "log")
    panels = sum("coloraxis" in trace for trace in data)
    parts = {"data": data, "layout": layout, "title": title, "toggle": toggle, "panels": panels}
    if whole.get("tickvals") != y.get("tickvals"):
        parts["whole"] = {name: whole[name] for name in ("tickvals", "ticktext")}
    return parts | {"finding": meta.get("finding") or captions.finding({"data": data, "layout": layout})}


def markup(description: Mapping[str, Any], name: str, inside: str = "") -> str:
    """The HTML of a chart: a figure with a name, a caption in words, and the description for the script that draws it.

    Args:
        name: differs among the charts of a page.
        inside: HTML that goes with the chart, before its caption.
    """
    chart = dressed(description)
    own, title = f"chart-{name}", chart.pop("title") or "Attention maps"
    said = chart.pop("finding")
    height = int(chart["layout"].get("height", 420))
    return (
        f'<figure class="chart"><p class="chart-title" id="{own}-title">{html.escape(title)}</p>'
        f'<div class="plotly-graph-div" id="{own}" role="img" aria-labelledby="{own}-title {own}-said" '
        f'style="height: {height}px"></div>{inside}'
        f'<figcaption id="{own}-said">{html.escape(said)}</figcaption>'
        f'<script type="application/json" class="chart-description">{embedded(chart)}</script></figure>'
    )


def embedded(value: Any) -> str:
    """JSON that cannot end the script element in which it stands."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
