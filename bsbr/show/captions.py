"""What a chart shows, in words: the ends of its lines, bars, points or maps, from the numbers that it draws."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bsbr.show.look import ALWAYS, column, is_reference, numbers

MANY = 12  # points of a line, from which on its last one is not what it shows


def finding(description: Mapping[str, Any]) -> str:
    """The ends of what a chart shows, as a sentence: a caption where the notebook gives none of its own."""
    data, layout = description["data"], description["layout"]
    kinds = {trace.get("type", "scatter") for trace in data}
    seen = [trace for trace in data if trace.get("visible", True) is True and not is_reference(trace)]
    if kinds == {"heatmap"}:
        return _of_maps(data) if any("coloraxis" in trace for trace in data) else _of_heatmap(data[0], layout)
    if not seen:
        return ""
    if "bar" in kinds:
        return _of_bars([trace for trace in seen if trace["type"] == "bar"], layout)
    lines = [trace for trace in seen if "lines" in trace.get("mode", "lines")]
    claims = [trace for trace in data if is_reference(trace) and trace.get("visible", True) is True]
    return _of_lines(lines, claims, layout) if len(lines) == len(seen) else _of_points(seen, layout)


def _of_lines(
    traces: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]
) -> str:
    """Where the lines end; of lines with many points that have no direction, such as one a layer, the extremes."""
    places = [_places(trace) for trace in traces]
    every = dict.fromkeys(x for found in places for x in found)
    if len(every) > MANY and (layout.get("xaxis") or {}).get("type") != "log":
        ends = [(column(trace["y"])[i], f"{_named(trace, traces)}{_said(trace, i)} ({_at(layout, x)})")
                for trace, found in zip(traces, places, strict=True) for x, i in found.items()]  # fmt: skip
        ends.sort(key=lambda pair: pair[0])
        return f"Least, {ends[0][1]}; most, {ends[-1][1]}."
    if len(traces) == 1:
        low, high = (f"{_at(layout, x)}: {_ranked(traces, claims, x, layout)}" for x in (min(every), max(every)))
        return f"{_capital(low)}; {high}."
    needed = [found for trace, found in zip(traces, places, strict=True) if trace.get("name") in ALWAYS]
    shared = [x for x in every if sum(x in found for found in places) > 1]
    x = max([x for x in shared if all(x in found for found in needed)] or shared or every)
    return f"{_capital(_at(layout, x))}: {_ranked(traces, claims, x, layout)}."


def _ranked(
    traces: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]], x: Any, layout: Mapping[str, Any]
) -> str:
    """Of the lines that have a point there the lowest and the highest, what others are compared with, and claims."""
    there = [(trace, found[x]) for trace in traces if x in (found := _places(trace))]
    there.sort(key=lambda pair: column(pair[0]["y"])[pair[1]])
    said = [f"{_named(trace, traces)}{_said(trace, i)}" for trace, i in there]
    ends = said if len(said) == 1 else [f"least, {said[0]}", f"most, {said[-1]}"]
    middle = zip(there[1:-1], said[1:-1], strict=True)
    own = [text for (trace, _), text in middle if trace.get("name") in ALWAYS]
    unit = _title(layout, "y")[1]
    stated = [
        f"{claim.get('name')} {_said(claim, found[x])} {unit}".strip()
        for claim in claims
        if x in (found := _places(claim))
    ]
    return "; ".join([*ends, *own, *stated])


def _places(trace: Mapping[str, Any]) -> dict[Any, int]:
    """Where along the horizontal axis a line has a point, and which of its points that is."""
    heights = column(trace["y"])
    return {x: i for i, x in enumerate(column(trace["x"])) if heights[i] is not None}


def _named(trace: Mapping[str, Any], traces: Sequence[Mapping[str, Any]]) -> str:
    return f"{trace.get('name')} " if len(traces) > 1 else ""


def _of_bars(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> str:
    if layout.get("barmode") == "stack":
        sums: dict[Any, float] = {}
        for trace in traces:
            for x, y in zip(column(trace["x"]), column(trace["y"]), strict=True):
                sums[x] = sums.get(x, 0.0) + (y or 0.0)
        found = [(total, f"{x} {short(total)}") for x, total in sums.items()]
        what = f"Sum of {listed(str(trace.get('name')) for trace in traces)}"
    else:
        found = [
            (y, f"{trace.get('name')} ({x}) {_said(trace, i)}" if len(traces) > 1 else f"{x} {_said(trace, i)}")
            for trace in traces
            for i, (x, y) in enumerate(zip(column(trace["x"]), column(trace["y"]), strict=True))
            if y is not None
        ]
        what = _title(layout, "y")[0]
    found.sort(key=lambda pair: pair[0])
    return f"{_capital(what)}: least, {found[0][1]}; most, {found[-1][1]}."


def _of_points(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> str:
    parts = []
    for letter in "xy":
        values = [value for trace in traces for value in numbers(trace.get(letter))]
        title, unit = _title(layout, letter)
        parts.append(f"{title} from {short(min(values))} to {short(max(values))} {unit}".strip())
    count = sum(len(column(trace["x"])) for trace in traces)
    return f"{count} points: {'; '.join(parts)}."


def _of_heatmap(trace: Mapping[str, Any], layout: Mapping[str, Any]) -> str:
    z = np.array(
        [column(row) for row in trace["z"]] if isinstance(trace["z"], list) else column(trace["z"]), dtype=float
    )
    unit = ((trace.get("colorbar") or {}).get("title") or {}).get("text", "")
    said = []
    for place in (np.nanargmin(z), np.nanargmax(z)):
        i, j = (int(at) for at in np.unravel_index(place, z.shape))
        where = f"{_at(layout, column(trace['y'])[i], 'y')}, {_at(layout, column(trace['x'])[j])}"
        own = trace.get("customdata")
        said.append(f"{own[i][j] if own else short(z[i, j])} {unit}".strip() + f" ({where})")
    return f"Least, {said[0]}; most, {said[1]}."


def _of_maps(traces: Sequence[Mapping[str, Any]]) -> str:
    """Levels of attention: 0 where nothing is read. Only cells up to the diagonal can be."""
    said = []
    for trace in traces:
        z = np.array(column(trace["z"]))
        share = np.count_nonzero(z[np.tril_indices(len(z))]) / (len(z) * (len(z) + 1) / 2)
        said.append(f"{trace.get('name')} {100 * share:.3g} %")
    return f"Cells that carry any weight, of those up to the diagonal: {listed(said)}."


def _title(layout: Mapping[str, Any], letter: str) -> tuple[str, str]:
    """An axis's title and its unit."""
    text = ((layout.get(f"{letter}axis") or {}).get("title") or {}).get("text") or ""
    found = re.fullmatch(r"(.*?) \(([^():]+)\)", text)
    return (found[1], found[2]) if found else (text, "")


def _at(layout: Mapping[str, Any], value: Any, letter: str = "x") -> str:
    title, unit = _title(layout, letter)
    if isinstance(value, int | float):
        value = f"{int(value):,}" if float(value).is_integer() else short(value)
    return f"{title} = {value} {unit}".strip()


def _said(trace: Mapping[str, Any], i: int) -> str:
    """A point's number, with interval and unit if the chart shows them when it is pointed at."""
    own = trace.get("customdata")
    return str(own[i]) if isinstance(own, list) and isinstance(own[i], str) else short(column(trace["y"])[i])


def short(value: float) -> str:
    """Three digits, without a power of ten where it can be helped."""
    return f"{float(f'{value:.3g}'):,.10g}".replace("-", "−")


def _capital(text: str) -> str:
    """A sentence's beginning; a lone letter, such as n, is a symbol and stays."""
    return text if re.match(r"\w\b", text) else text[:1].upper() + text[1:]


def listed(names: Iterable[str]) -> str:
    """`a, b and c`; nothing of no names."""
    *rest, last = [*names] or [""]
    return f"{', '.join(rest)} and {last}" if rest else last
