"""What the landing page shows of the results: cards with one number each, and a small drawing of two curves."""

import html
import math
from collections.abc import Callable, Hashable

import pandas as pd

from bsbr.claims import VERDICTS
from bsbr.show.captions import listed
from bsbr.show.claims import filtered
from bsbr.show.figures import MECHANISM_COLOURS, number
from bsbr.store import Result, ResultError, load, only, select

DEFAULT = "top-16"  # what the experiments call the converter's default


def load_if_there(experiment: str) -> Result | None:
    """A published result, or None where it has not been measured yet."""
    try:
        return load(experiment)
    except ResultError:
        return None


def plain(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows that are of one text in eager mode and of the smaller model, where a table tells them apart."""
    for factor, wanted in (("batch", 1), ("mode", "eager"), ("size", "256x2x4")):
        if factor in rows:
            rows = rows[rows[factor] == wanted]
    return rows


def speed_cards(experiment: str, result: Result | None) -> str:
    """How much faster BSBR reads a long text, how its time grows, and what a decoded token costs after such a text."""
    if result is None:
        return missing(experiment, "speed of BSBR against standard attention")
    table = plain(result.table)
    speedup = select(table, "speedup", phase="prefill", mechanism="bsbr").sort_values("n").iloc[-1]
    growth = select(table, "exponent", phase="prefill", mechanism="bsbr").sort_values("n_from").iloc[-1]
    after = {"phase": "decode", "n": int(speedup["n"])}
    token = only(table, "time_per_token", mechanism="bsbr", **after)
    standard = number(only(table, "time_per_token", mechanism="standard", **after)["value"])
    length, start, end = (f"{int(n):,}" for n in (speedup["n"], growth["n_from"], growth["n_to"]))
    return cards(
        experiment,
        (speedup, f"{number(speedup['value'], 2)} ×", f"as fast as standard attention, reading {length} tokens"),
        (growth, f"n<sup>{number(growth['value'])}</sup>", f"growth of its time, from n = {start} to {end}"),
        (token, f"{number(token['value'], 2)} ms", f"a token decoded after {length}; standard attention {standard} ms"),
    )


def longest_kept(result: Result) -> tuple[pd.Series, pd.Series]:
    """Of the default, over the longest speeches: perplexity relative to the original, and equal first choices."""
    where: dict[str, Hashable] = {"model": "SmolLM2", "dtype": "float32", "kind": "speech", "setting": DEFAULT}
    parts = ["document", "statistic", "layer", "rank", "position", "frequency"]
    where |= {"documents": "all", **dict.fromkeys((part for part in parts if part in result.table), None)}
    kept = result.select("perplexity_ratio", **where).sort_values("n").iloc[-1]
    return kept, only(result.table, "top_1_agreement", **where, n=kept["n"])


def quality_cards(experiment: str, result: Result | None) -> str:
    """What conversion keeps of a pretrained model, with the converter's default setting, on long texts."""
    if result is None or "setting" not in result.table:  # or measured before settings had one name in all tables
        return missing(experiment, "what a converted pretrained model keeps")
    kept, same = longest_kept(result)
    length = f"{int(kept['n']):,}"
    return cards(
        experiment,
        (
            kept,
            f"{number(kept['value'])} ×",
            f"the original's perplexity on {length} tokens, by default, without training",
        ),
        (same, f"{number(same['value'], 2)} %", "of its first choices for the next token stay the same"),
    )


def conversion_speed_card(experiment: str, result: Result | None) -> str:
    """What conversion brings a pretrained model in time, on the longest text within its context."""
    if result is None or "setting" not in result.table:
        return missing(experiment, "how much faster a converted model reads")
    gains = result.select("speedup", phase="prefill", dtype="float32", setting=DEFAULT)
    gain = gains.sort_values("n").iloc[-1]
    label = f"as fast as the original, converted by default, reading a prompt of {int(gain['n']):,} tokens"
    return cards(experiment, (gain, f"{number(gain['value'])} ×", label))


def worth(speed: Result | None, gain: Result | None) -> str:
    """Where it pays in time and where it does not, in Markdown: a model of one's own, and a converted one."""
    said = []
    if speed is None:
        said.append("How fast it is has **not been measured yet**.")
    else:
        rows = select(plain(speed.table), "speedup", phase="prefill", mechanism="bsbr").dropna(subset="value")
        said.append(at_lengths("Reading a text, it is", rows, "standard attention", "benchmarks/inference_time"))
    if gain is None or "setting" not in gain.table:
        said.append("What conversion brings a pretrained model has **not been measured yet**.")
    else:
        rows = gain.select("speedup", phase="prefill", dtype="float32", setting=DEFAULT).dropna(subset="value")
        said.append(at_lengths("Converted by default, SmolLM2-135M is", rows, "it was", "conversion/speed_and_memory"))
    return " ".join(said)


def at_lengths(subject: str, rows: pd.DataFrame, other: str, experiment: str) -> str:
    """How many times as fast at a short length, at 2,048 tokens and at the longest, with the page that has all."""
    rows = rows[rows["n"].isin([512, 2048, rows["n"].max()])].sort_values("n")
    first, *others = (f"{number(row.value, 2)} times{{}} at {int(row.n):,}" for row in rows.itertuples())
    times = [first.format(f" as fast as {other}") + " tokens", *(one.format("") for one in others)]
    return f"{subject} {listed(times)} ([all lengths](../notebooks/{experiment}.ipynb))."


def cards(experiment: str, *numbers: tuple[pd.Series, str, str]) -> str:
    return "".join(card(experiment, shown, label, interval(row)) for row, shown, label in numbers)


def missing(experiment: str, label: str) -> str:
    return card(experiment, "not measured yet", label, kind="card-number missing")


def card(experiment: str, value: str, label: str, detail: str = "", kind: str = "card-number") -> str:
    """One number with what it says and its interval, as a link to the page that measured it."""
    small = f'<span class="interval">{detail}</span>' if detail else ""
    return (
        f'<a class="{kind}" href="../notebooks/{experiment}.html"><span class="value">{value}</span>'
        f'<span class="label">{label}</span>{small}</a>'
    )


def interval(row: pd.Series) -> str:
    """A row's 95 % interval in words, or nothing where it has none."""
    return "" if pd.isna(row["low"]) else f"95 %: {number(row['low'])} – {number(row['high'])}"


def verdict_bar(judged: pd.DataFrame) -> str:
    """How many of the documents' claims have which verdict: a bar, and a legend that leads to each in the list."""
    counts = judged["verdict"].value_counts()
    found = [(verdict, verdict.replace(" ", "-"), int(counts[verdict])) for verdict in VERDICTS if verdict in counts]
    bar = "".join(f'<i class="{kind}" style="flex-grow:{count}"></i>' for _, kind, count in found)
    legend = "".join(
        f'<a href="claims.html{html.escape(filtered(said="first", verdict=verdict))}">'
        f'<i class="{kind}"></i><b>{count}</b> {verdict}</a>'
        for verdict, kind, count in found
    )
    return (
        f'<div class="verdicts"><div class="bar" aria-hidden="true">{bar}</div><div class="legend">{legend}</div></div>'
    )


# -- A small chart --------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 500, 290, 62, 42, 14, 78


def curves(rows: pd.DataFrame, x: str, x_title: str, y_title: str) -> str:
    """A line a mechanism on logarithmic axes, as SVG in the page's own colours."""
    rows = rows[rows["status"] == "ok"]
    along, up = scale(rows[x], LEFT, WIDTH - RIGHT), scale(rows["value"], HEIGHT - BOTTOM, TOP)
    lines = "".join(
        curve(str(name), [(along(r[x]), up(r["value"])) for _, r in part.sort_values(x).iterrows()])
        for name, part in rows.groupby("mechanism", sort=False)
    )
    ticks = [n for i, n in enumerate(sorted(rows[x].unique(), reverse=True)) if i % 2 == 0]
    marks = "".join(text(along(n), HEIGHT - BOTTOM + 18, f"{int(n):,}", "middle") for n in ticks)
    powers = range(math.ceil(math.log10(rows["value"].min())), math.floor(math.log10(rows["value"].max())) + 1)
    grid = "".join(
        f'<path d="M{LEFT} {up(10.0**p):.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity="0.15"/>'
        + text(LEFT - 8, up(10.0**p) + 4, f"{10.0**p:g} s", "end")
        for p in powers
    )
    titles = text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_title, "middle")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{y_title}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="currentColor">{grid}{marks}{titles}{lines}</svg>'
    )


def scale(values: pd.Series, start: float, end: float) -> Callable[[float], float]:
    low, high = math.log(values.min()), math.log(values.max())
    return lambda value: start + (end - start) * (math.log(value) - low) / (high - low)


def curve(name: str, points: list[tuple[float, float]]) -> str:
    colour = MECHANISM_COLOURS[name]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in points)
    x, y = points[-1]
    label = f'<text x="{x + 9:.1f}" y="{y + 4:.1f}" font-weight="600">{name}</text>'
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>{dots}{label}'


def text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill-opacity="0.75">{content}</text>'
