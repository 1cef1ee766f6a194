"""One look for every chart and table. Importing this module does not import torch."""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import PurePosixPath
from typing import Any, cast

import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, DisplayHandle, Markdown, display

from bsbr.mechanisms import MECHANISMS
from bsbr.show import charts, look
from bsbr.store import NUMBERS, Result
from bsbr.store.metrics import metric

PALETTE = [style.colour for style in look.STYLES]
MECHANISM_COLOURS = {name: look.colour(mechanism.colour) for name, mechanism in MECHANISMS.items()}
# For JupyterLab: no button there sends a chart to another host.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtonsToRemove": ["sendChartToCloud"],
    "plotlyServerURL": "",
}
GRID = "rgba(128, 128, 128, 0.25)"


def colours(names: Sequence[Hashable]) -> dict[Hashable, str]:
    """A colour for each name: a mechanism's own everywhere, the palette in turn for anything else."""
    others = [name for name in dict.fromkeys(names) if name not in MECHANISM_COLOURS]
    taken = {MECHANISM_COLOURS.get(str(name)) for name in names}
    free = [colour for colour in PALETTE if colour not in taken] or PALETTE
    own = {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: MECHANISM_COLOURS.get(str(name), own.get(name, "")) for name in names}


# -- Charts ---------------------------------------------------------------------------------------


def figure(
    title: str = "", x: str = "", y: str = "", *, log_x: bool = False, log_y: bool = False, height: int = 420
) -> go.Figure:
    """An empty chart in the project's look, with titles for its axes.

    Args:
        title: what stands above the chart.
        x: the title of the horizontal axis.
        y: the title of the vertical one.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the vertical one is.
        height: in pixels.

    Examples:
        >>> from bsbr.show import figures
        >>> fig = figures.figure("Growth", "n (tokens)", "Time (s)", log_x=True)
        >>> _ = fig.add_scatter(x=[1024, 2048], y=[0.1, 0.2], name="bsbr")
        >>> fig.layout.xaxis.type
        'log'
    """
    fig = go.Figure()
    fig.update_layout(
        title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 15}},
        height=height,
        margin={"l": 60, "r": 20, "t": 60 if title else 30, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13, "color": "#777777"},
        legend={"orientation": "v"},
        hovermode="closest",
        template="none",
    )
    axis = {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "automargin": True}
    fig.update_xaxes(title_text=x, type="log" if log_x else "-", **axis)
    fig.update_yaxes(title_text=y, type="log" if log_y else "-", **axis)
    return fig


def lines(
    rows: pd.DataFrame,
    x: str,
    *,
    group: str = "mechanism",
    title: str = "",
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """One line a group, with 95 % intervals as bars, from rows of one metric.

    Args:
        rows: rows of a result's table, all of one metric.
        x: the factor along the horizontal axis.
        group: the factor that tells lines apart.
        x_title: what stands under the axis, else the factor's name.
        y_title: what stands beside it, else the metric's title and unit.
        title: what stands above the chart.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the vertical one is.

    Examples:
        >>> import pandas as pd
        >>> from bsbr.show import figures
        >>> from bsbr.store import row
        >>> times = {"standard": (0.1, 0.4), "bsbr": (0.1, 0.2)}
        >>> rows = pd.DataFrame(
        ...     row("time", seconds, mechanism=name, n=n)
        ...     for name, both in times.items() for n, seconds in zip((1024, 2048), both)
        ... )
        >>> fig = figures.lines(rows, "n", log_x=True)
        >>> [line.name for line in fig.data], fig.layout.yaxis.title.text
        (['standard', 'bsbr'], 'Time (s)')
    """
    fig = figure(title, x_title or x, y_title or axis_title(rows), log_x=log_x, log_y=log_y)
    paint = colours(list(rows[group].unique()))
    for name, part in rows[rows["status"] == "ok"].groupby(group, sort=False):
        part = part.sort_values(x)
        style = {"color": paint[name], "width": 2}
        fig.add_scatter(
            x=list(part[x]), y=list(part["value"]), error_y=_bars(part, paint[name]), name=str(name), line=style,
            mode="lines+markers", marker={"size": 7}, customdata=_hover(part), hovertemplate=_HOVER,
        )  # fmt: skip
    ticks = sorted(rows[x].dropna().unique())
    if log_x and len(ticks) <= 12:
        fig.update_xaxes(tickvals=[float(tick) for tick in ticks], ticktext=[f"{tick:g}" for tick in ticks])
    return fig


def bars(
    rows: pd.DataFrame,
    x: str,
    *,
    group: str,
    title: str = "",
    x_title: str | None = None,
    y_title: str | None = None,
    log_y: bool = False,
) -> go.Figure:
    """Bars side by side, one colour a group, with 95 % intervals, from rows of one metric.

    Args:
        rows: rows of a result's table, all of one metric.
        x: the factor along the horizontal axis.
        group: the factor that tells bars apart.
        title: what stands above the chart.
        x_title: what stands under the axis, else the factor's name.
        y_title: what stands beside it, else the metric's title and unit.
        log_y: whether the vertical axis is logarithmic.

    Examples:
        >>> import pandas as pd
        >>> from bsbr.show import figures
        >>> from bsbr.store import row
        >>> times = {"standard": (0.1, 0.4), "bsbr": (0.1, 0.2)}
        >>> rows = pd.DataFrame(
        ...     row("time", seconds, mechanism=name, n=n)
        ...     for name, both in times.items() for n, seconds in zip((1024, 2048), both)
        ... )
        >>> fig = figures.bars(rows, "n", group="mechanism")
        >>> [(bar.name, list(bar.y)) for bar in fig.data]
        [('standard', [0.1, 0.4]), ('bsbr', [0.1, 0.2])]
    """
    fig = figure(title, x_title or x, y_title or axis_title(rows), log_y=log_y)
    paint = colours(list(rows[group].unique()))
    for name, part in rows[rows["status"] == "ok"].groupby(group, sort=False):
        fig.add_bar(
            x=[str(value) for value in part[x]], y=list(part["value"]), error_y=_bars(part, GRID), name=str(name),
            marker={"color": paint[name]}, customdata=_hover(part), hovertemplate=_HOVER,
        )  # fmt: skip
    return fig.update_layout(barmode="group")


def add_claim(fig: go.Figure, x: Sequence[Any], y: Sequence[float], name: str, symbol: str = "circle") -> go.Figure:
    """What a document stated, grey, dotted and hollow so that nobody takes it for a measurement."""
    return fig.add_scatter(
        x=list(x), y=list(y), name=name, mode="lines+markers", line={"color": "#7F7F7F", "dash": "dot", "width": 1},
        marker={"symbol": f"{symbol}-open", "size": 8},
    )  # fmt: skip


def axis_toggle(fig: go.Figure) -> go.Figure:
    """Two buttons that switch the vertical axis between logarithmic and linear."""
    buttons = [
        {"label": name, "method": "relayout", "args": [{"yaxis.type": kind}]}
        for name, kind in (("log", "log"), ("linear", "linear"))
    ]
    place = {"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom", "direction": "right", "type": "buttons"}
    active = 0 if fig.layout.yaxis.type == "log" else 1
    return fig.update_layout(updatemenus=[{"buttons": buttons, "active": active, "pad": {"t": 0, "b": 2}, **place}])


def show(
    fig: go.Figure,
    name: str = "chart",
    place: DisplayHandle | None = None,
    *,
    finding: str = "",
    first: Sequence[str] = (),
) -> None:
    """Display a chart so that both JupyterLab (as JSON) and the built site (as HTML, plotly.js apart) draw it.

    `name` becomes part of the element's id; it must differ among the charts of a page. With a `place` that was
    reserved further up, the chart appears there.

    Args:
        finding: the chart's caption, a sentence of what is to be seen, its numbers from the table. Without one the
            site writes down the ends of what the chart shows.
        first: which lines the site shows at first, by name, claims aside; without them `look.MOST` at most.
        fig: a chart.
        name: of the chart on its page.
        place: from `reserve`; None for here.

    Examples:
        >>> from bsbr.show import figures
        >>> fig = figures.figure("Growth", "n", "Time (s)")
        >>> _ = fig.add_scatter(x=[1024, 2048], y=[0.1, 0.2], name="bsbr")
        >>> figures.show(fig, "growth", finding="Time doubles with the length.")
        {'application/vnd.plotly.v1+json': ...
    """
    description = {**json.loads(fig.to_json()), "config": CONFIG}
    description["layout"]["meta"] = {"finding": finding, "first": list(first)}
    bundle = {charts.MIME: description, "text/html": charts.markup(description, name)}
    if place is None:
        display(bundle, raw=True)
    else:
        place.update(bundle, raw=True)


def reserve(what: str) -> DisplayHandle:
    """Keep a place on the page for an answer or a chart that comes of cells further down.

    So a notebook opens with its answer and is still measured from top to bottom. Fill it with `say` or `show`.
    """
    return cast(
        DisplayHandle, display(Markdown(f"*The {what} appears here when the cells below have run.*"), display_id=True)
    )


def axis_title(rows: pd.DataFrame) -> str:
    """The title and unit of the one metric in these rows.

    Raises:
        ValueError: there is not exactly one.
    """
    names = list(rows["metric"].unique())
    if len(names) != 1:
        raise ValueError(f"rows of one metric were expected, these have {names}")
    found = metric(names[0])
    return f"{found.title} ({found.unit})" if found.unit else found.title


_HOVER = "%{fullData.name}, %{x}: %{customdata}<extra></extra>"


def _hover(rows: pd.DataFrame) -> list[str]:
    return [f"{interval(r.value, r.low, r.high)} {r.unit}".strip() for r in rows.itertuples()]


def _bars(rows: pd.DataFrame, colour: str) -> dict[str, Any]:
    up, down = (rows["high"] - rows["value"]).fillna(0), (rows["value"] - rows["low"]).fillna(0)
    return {
        "type": "data",
        "symmetric": False,
        "array": list(up),
        "arrayminus": list(down),
        "color": colour,
        "thickness": 1.5,
    }


# -- Numbers, tables, words -----------------------------------------------------------------------


def number(value: Any, digits: int = 3) -> str:
    """A number with that many significant digits, thousands set apart; a dash where there is none.

    Args:
        value: a number, or None or NaN.
        digits: significant digits.

    Examples:
        >>> from bsbr.show.figures import number
        >>> number(0.012345), number(16384), number(2073936.4), number(0.0), number(None)
        ('0.0123', '16,384', '2,073,936', '0', '–')
    """
    if value is None or pd.isna(value):
        return "–"
    if isinstance(value, Integral) or (float(value).is_integer() and abs(value) >= 100):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    places = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:,.{max(places, 0)}f}".replace("-", "−")


def interval(value: Any, low: Any = None, high: Any = None, digits: int = 3) -> str:
    """`4.19 (4.11–4.25)`: a value with its 95 % interval, or the value alone where there is no interval.

    Args:
        value: a number, or None or NaN.
        low: the lower end of its interval, or None or NaN.
        high: the upper end.
        digits: significant digits.

    Examples:
        >>> from bsbr.show.figures import interval
        >>> interval(4.187, 4.11, 4.25), interval(4.187), interval(0.5, -1.0, 2.0)
        ('4.19 (4.11–4.25)', '4.19', '0.500 (−1.00 to 2.00)')
    """
    if pd.isna(low) or pd.isna(high):
        return number(value, digits)
    to = " to " if low < 0 else "–"
    return f"{number(value, digits)} ({number(low, digits)}{to}{number(high, digits)})"


def pivot(
    rows: pd.DataFrame, index: str, columns: str, *, digits: int = 3, intervals: bool = True, scale: float = 1
) -> pd.DataFrame:
    """Rows of one metric as a table to read: one line an `index`, one column a `columns`, in the order they come.

    A number that could not be measured shows its status instead.

    Args:
        scale: by which numbers are multiplied, such as 1000 for milliseconds in place of seconds.
        rows: rows of a result's table, all of one metric.
        index: the factor that tells lines apart.
        columns: the factor that tells columns apart.
        digits: significant digits.
        intervals: whether a number has its interval behind it.

    Examples:
        >>> import pandas as pd
        >>> from bsbr.show import figures
        >>> from bsbr.store import row
        >>> times = {"standard": (0.1, 0.4), "bsbr": (0.1, 0.2)}
        >>> rows = pd.DataFrame(
        ...     row("time", seconds, mechanism=name, n=n)
        ...     for name, both in times.items() for n, seconds in zip((1024, 2048), both)
        ... )
        >>> figures.pivot(rows, "mechanism", "n", scale=1000)
          mechanism 1024 2048
        0  standard  100  400
        1      bsbr  100  200
    """
    rows = rows.assign(**{name: rows[name] * scale for name in NUMBERS})
    shown = [
        (interval(r.value, r.low, r.high, digits) if intervals else number(r.value, digits))
        if r.status == "ok"
        else str(r.status).replace("_", " ")
        for r in rows.itertuples()
    ]
    wide = rows.assign(shown=shown).pivot(index=index, columns=columns, values="shown")
    wide = wide.reindex(index=rows[index].unique(), columns=rows[columns].unique()).fillna("–")
    return wide.rename_axis(columns=None).reset_index()


def table(frame: pd.DataFrame, caption: str = "", digits: int = 3) -> None:
    """Display a frame as a table that scrolls in its own box; numbers get `digits` significant digits.

    Args:
        frame: rows and columns as they are to stand.
        caption: of the table.
        digits: significant digits of its numbers.

    Examples:
        >>> import pandas as pd
        >>> from bsbr.show import figures
        >>> figures.table(pd.DataFrame({"n": [1024, 2048], "time (s)": [0.10012, 0.2]}), "Time by length")
        <IPython.core.display.HTML object>
    """
    body = frame.map(lambda value: number(value, digits) if _is_number(value) else str(value))
    markup = body.to_html(index=False, border=0, classes="table", justify="left")
    title = f"<p><strong>{html.escape(caption)}</strong></p>" if caption else ""
    display(HTML(f'<div class="table-box">{title}{markup}</div>'))


def missing(result: Result) -> str:
    """A Markdown list of the metrics for which a table only keeps the place, with the reason."""
    rows = result.table[
        (result.table["status"] == "not_available") & result.table["reason"].str.startswith("not measured yet")
    ]
    return "\n".join(
        f"- {metric(str(name)).title}: {reason}."
        for name, reason in rows.groupby("metric", sort=False)["reason"].first().items()
    )


def _is_number(value: Any) -> bool:
    return value is pd.NA or value is None or (isinstance(value, Real) and not isinstance(value, bool))


def say(text: str, place: DisplayHandle | None = None) -> None:
    """Display Markdown, in a reserved place if one is given: how prose gets its numbers from a table.

    It holds no HTML but `<small>`: what prose takes from a table, such as a reason, is shown as it is.
    """
    text = re.sub(r"<(?!/?small>)(?=[A-Za-z/!?])", "&lt;", text)
    if place is None:
        display(Markdown(text))
    else:
        place.update(Markdown(text))


def show_provenance(result: Result, page_folder: str | None = None) -> None:
    """Display where a table comes from: commit, date, machine, profile, links to its notebook, CSV and record.

    Args:
        page_folder: the folder of the page that shows it, from the project's root; else the notebook's own.
        result: whose table is shown.

    Examples:
        >>> from bsbr.show import figures
        >>> from bsbr.store import load
        >>> figures.show_provenance(load("benchmarks/inference_time"))
        <IPython.core.display.Markdown object>
        >>> figures.provenance_line(load("benchmarks/inference_time"))
        '<small>Measured ... profile full, cpu ...</small>'
    """
    display(Markdown(provenance_line(result, page_folder)))


def provenance_line(result: Result, page_folder: str | None = None) -> str:
    """The Markdown that `show_provenance` displays."""
    notebook = PurePosixPath("notebooks", f"{result.experiment}.py")
    csv = PurePosixPath("data", "results", result.target, result.profile, f"{result.experiment}.csv")
    start = page_folder if page_folder is not None else str(notebook.parent)
    links = " · ".join(
        f"[{text}]({PurePosixPath(os.path.relpath(path, start or '.'))})"
        for text, path in (("notebook", notebook), ("table", csv), ("record", csv.with_suffix(".json")))
    )
    return f"<small>{_origin(result)} · {links}</small>"


def _origin(result: Result) -> str:
    came = result.provenance
    groups = came.get("measured") or [came]
    processors = dict.fromkeys(_processor(result.target, group["machine"]) for group in groups)
    commits = dict.fromkeys(_commit(group) for group in groups)
    versions = " with different packages" if len({str(group["packages"]) for group in groups}) > 1 else ""
    where = f"{' and '.join(commits)}{versions} on {' and '.join(processors)}"
    return f"Measured {literal(came['ended'][:10])} at {where}; profile {result.profile}, {result.target}"


def _commit(group: Mapping[str, Any]) -> str:
    commit = f"commit {literal(group['commit'][:10])}" if group["commit"] else "no commit"
    return commit if group["clean"] else f"{commit} with uncommitted changes"


def _processor(target: str, machine: Mapping[str, Any]) -> str:
    if target == "gpu" and machine["gpu"]:
        return literal(machine["gpu"])
    return literal(f"{machine['cpu']}, {machine['cores']} cores, {machine['threads'] or 1} threads")


def literal(text: Any) -> str:
    """Text from data as Markdown and HTML that show it as it is: none of its signs means anything."""
    return re.sub(r"([\\`*_{}\[\]()|~$])", r"\\\1", html.escape(str(text)))
