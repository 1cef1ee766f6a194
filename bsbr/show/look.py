"""How charts look: lines and bars that can be told apart without colour, what is seen at first, ticks in whole numbers.

All of it works on a chart's description, the JSON that plotly draws.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bsbr.mechanisms import MECHANISMS

MOST = 6  # lines, or kinds of bars, that a chart shows before its reader asks for more
REFERENCES = 2  # of them at most, where something has to give way
ALWAYS = {"standard", "bsbr", "original"}  # what others are compared with is not among those that give way
GREY = "#7F7F7F"  # of what was not measured here: claims, and lines that guide the eye


class Style(NamedTuple):
    """How one line or kind of bar differs from all others, in colour and without."""

    colour: str
    symbol: str
    dash: str
    pattern: str
    solidity: float = 0.2  # of the pattern


# Colours of Okabe and Ito (2008), those too pale for white made darker: each has 3 : 1 against light and dark pages.
STYLES = [
    Style("#0072B2", "circle", "solid", ""),
    Style("#D55E00", "square", "longdash", "/"),
    Style("#009E73", "diamond", "dash", "x"),
    Style("#C4659B", "triangle-up", "dashdot", "-"),
    Style("#2F93B5", "triangle-down", "longdashdot", "."),
    Style("#B87700", "cross", "3px,3px", "\\"),
    Style("#8A63D2", "x", "14px,3px,2px,3px,2px,3px", "|"),
    Style("#A0522D", "star", "8px,3px,8px,3px,2px,3px", "+"),
    Style("#7D8A1E", "pentagon", "18px,4px", "x", 0.6),
    Style("#6F7F95", "hourglass", "5px,2px,1px,2px", "-", 0.6),
]
# As the registry has them, and what they are here: the number of a style.
PALE = {"#CC79A7": 3, "#56B4E9": 4, "#E69F00": 5, GREY: 6, "#F0E442": 7}
CLAIMED = [("circle-open", "dot"), ("square-open", "2px,5px"), ("diamond-open", "1px,3px"), ("x-open", "4px,6px")]


def colour(original: str) -> str:
    """A colour of the registry as charts show it."""
    return STYLES[PALE[original]].colour if original in PALE else original


MECHANISM_STYLES = dict(zip(MECHANISMS, range(len(STYLES)), strict=False))


# -- Lines and bars that can be told apart ----------------------------------------------------------


def is_reference(trace: Mapping[str, Any]) -> bool:
    """Whether a trace only stands beside what was measured: a claim, or a line without points."""
    line = trace.get("line") or {}
    claimed = line.get("dash") in {dash for _, dash in CLAIMED}
    return line.get("color") == GREY and (claimed or "markers" not in trace.get("mode", ""))


def restyle(traces: list[dict[str, Any]]) -> None:
    """Give each trace a style of its own: a mechanism's everywhere, else what its colour asks for, else a free one."""
    claims, measured = [t for t in traces if is_reference(t)], [t for t in traces if not is_reference(t)]
    for i, trace in enumerate(trace for trace in claims if "markers" in trace.get("mode", "")):
        symbol, dash = CLAIMED[i % len(CLAIMED)]
        trace["line"] = {**trace["line"], "dash": dash}
        trace["marker"] = {**(trace.get("marker") or {}), "symbol": symbol, "color": GREY}
    taken: set[int] = set()
    wanted = [_wanted(trace) for trace in measured]
    order = sorted(range(len(measured)), key=lambda i: measured[i].get("name") not in MECHANISM_STYLES)
    for i in order:
        free = [slot for slot in range(len(STYLES)) if slot not in taken]
        asked = wanted[i]
        slot = asked if asked is not None and asked in free else next(iter(free), i)
        taken.add(slot)
        _dress(measured[i], STYLES[slot % len(STYLES)])


def _wanted(trace: Mapping[str, Any]) -> int | None:
    """The style that a trace's name or colour asks for."""
    if trace.get("name") in MECHANISM_STYLES:
        return MECHANISM_STYLES[trace["name"]]
    asked = (trace.get("line") or {}).get("color") or (trace.get("marker") or {}).get("color")
    if not isinstance(asked, str):
        return None
    return next((slot for slot, style in enumerate(STYLES) if style.colour == colour(asked)), None)


def _dress(trace: dict[str, Any], style: Style) -> None:
    marker = {**(trace.get("marker") or {}), "color": style.colour}
    if trace["type"] == "bar":
        marker["pattern"] = {
            "shape": style.pattern, "fillmode": "overlay", "fgcolor": "#FFFFFF", "size": 8, "solidity": style.solidity,
        }  # fmt: skip
    else:
        marker.setdefault("symbol", style.symbol)
        marker["size"] = max(marker.get("size", 8), 8)
        if "lines" in trace.get("mode", ""):
            trace["line"] = {**(trace.get("line") or {}), "color": style.colour, "dash": style.dash}
    trace["marker"] = marker
    for name in ("error_x", "error_y"):
        if name in trace:
            trace[name] = {**trace[name], "color": GREY if trace["type"] == "bar" else style.colour}


# -- What is seen at first --------------------------------------------------------------------------


def visible(traces: list[dict[str, Any]], layout: Mapping[str, Any], first: set[str]) -> list[bool]:
    """Which traces are seen at first: those that the notebook names, or as many as can be told apart.

    First claims beyond `REFERENCES` give way, then the line without which the others are seen best, if one line
    flattens them, then the last. Of bars on top of each other none can.
    """
    if layout.get("barmode") == "stack":
        return [True] * len(traces)
    if first:
        return [trace.get("name") in first or is_reference(trace) for trace in traces]
    seen = [trace.get("visible", True) is True for trace in traces]
    logarithmic = (layout.get("yaxis") or {}).get("type") == "log"
    while sum(seen) > MOST:
        shown = [i for i, is_seen in enumerate(seen) if is_seen]
        claims = [i for i in shown if is_reference(traces[i])]
        others = [i for i in shown if i not in claims and traces[i].get("name") not in ALWAYS]
        if len(claims) > REFERENCES or not others:
            seen[claims[-1] if claims else shown[-1]] = False
            continue
        spread = {i: _spread((traces[j] for j in shown if j not in (i, *claims)), logarithmic) for i in others}
        least = min(others, key=lambda i: spread[i])
        whole = _spread((traces[j] for j in shown if j not in claims), logarithmic)
        seen[least if spread[least] < 0.6 * whole else others[-1]] = False
    return seen


def _spread(traces: Iterable[Mapping[str, Any]], logarithmic: bool) -> float:
    values = [value for trace in traces for value in numbers(trace.get("y")) if value > 0 or not logarithmic]
    values = [math.log(value) for value in values] if logarithmic else values
    return max(values) - min(values) if values else 0.0


# -- Ticks --------------------------------------------------------------------------------------------


def reach(traces: Iterable[Mapping[str, Any]], letter: str) -> list[float]:
    """Where these traces and their intervals are along an axis."""
    found = []
    for trace in traces:
        middle, bars = numbers(trace.get(letter)), trace.get(f"error_{letter}") or {}
        found += middle
        for sign, name in ((1, "array"), (-1, "arrayminus")):
            found += [value + sign * wide for value, wide in zip(middle, numbers(bars.get(name)), strict=False)]
    return found


def set_ticks(axis: dict[str, Any], values: Sequence[float], *, logarithmic: bool) -> None:
    """Whole numbers at an axis that is or can become logarithmic, where plotly writes 2 and 5 for 20 and 500."""
    if axis.get("tickvals") is not None:
        old = list(axis.get("ticktext") or [])
        if all(_is_number(text) for text in old):
            axis["ticktext"] = [tick(value) for value in axis["tickvals"]]
    elif logarithmic and (positive := [value for value in values if value > 0]):
        axis["tickvals"] = log_ticks(min(positive), max(positive))
        axis["ticktext"] = [tick(value) for value in axis["tickvals"]]


def log_ticks(low: float, high: float) -> list[float]:
    """Where a logarithmic axis from `low` to `high` has its numbers: some three to nine, none of them odd.

    >>> log_ticks(3, 4e6), log_ticks(0.02, 0.6), log_ticks(1.01, 1.4)
    ([1.0, 100.0, 10000.0, 1000000.0], [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], [1.0, 1.1, 1.2, 1.3, 1.4])
    """
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if decades < 0.6:
        rough = max((high - low) / 4, low * 1e-6)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
        return [round(i * step, 12) for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)][
            :12
        ]
    if decades <= 2.5:
        return [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in (1, 2, 5)][
            : 3 * (last - first) + 1
        ]
    every = math.ceil((last - first) / 5)
    return [10.0**power for power in range(first, last + 1, every)]


def tick(value: float) -> str:
    """A number as an axis has it.

    >>> tick(16384.0), tick(0.05), tick(2e9), tick(9e-5)
    ('16,384', '0.05', '2 × 10<sup>9</sup>', '9 × 10<sup>−5</sup>')
    """
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        return f"{value:,.10g}".replace("-", "−")
    digits, power = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else f"{value:.2e}".split("e")
    exponent = str(int(power)).replace("-", "−")
    digits = f"{float(digits):g}"
    return f"10<sup>{exponent}</sup>" if digits == "1" else f"{digits} × 10<sup>{exponent}</sup>"


def _is_number(text: Any) -> bool:
    try:
        float(str(text).replace(",", ""))
    except ValueError:
        return False
    return True


# -- Columns --------------------------------------------------------------------------------------


def column(stored: Any) -> list[Any]:
    """A column as plotly writes it: a list, or bytes in base64."""
    if isinstance(stored, Mapping):
        flat = np.frombuffer(base64.b64decode(stored["bdata"]), dtype=np.dtype(stored["dtype"]))
        shape = [int(size) for size in str(stored.get("shape", len(flat))).split(",")]
        return flat.reshape(shape).tolist()
    return list(stored) if stored is not None else []


def numbers(stored: Any) -> list[float]:
    """Those of a column that a position can be."""
    found = column(stored)
    return [value for value in found if isinstance(value, int | float) and math.isfinite(value)]
