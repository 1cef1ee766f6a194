"""What the page *Choose a setting* shows: every converter setting that was measured, with its numbers.

They are embedded in the page as JSON, and `_static/choose.js` picks among them.
"""

import html
import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from bsbr.show import figures
from bsbr.store import MEASURED, NUMBERS, Result, ResultError, load
from bsbr.store.metrics import metric

Config = dict[Any, Any]

# Where two tables have the same number, the first one's is shown: it has measured all settings alike.
EXPERIMENTS = ("conversion/hyperparameters", "conversion/speed_and_memory", "conversion/similarity")
QUANTITIES: dict[tuple[str, str | None], str] = {  # (metric, phase): as the page calls it
    ("speedup", "prefill"): "Speed of reading the prompt, relative to the original",
    ("speedup", "decode"): "Speed of decoding a token, relative to the original",
    ("relative_memory", "prefill"): "Peak memory of reading the prompt, relative to the original",
    ("peak_memory", "prefill"): "Peak memory of reading the prompt",
    ("perplexity_ratio", None): "Perplexity, relative to the original",
    ("top_1_agreement", None): "First choices for the next token that stay the same",
}
RETRIEVALS = {  # what becomes of far text, in words
    "none": "none: far text is not read",
    "states": "states: each far chunk through its state",
    "top_k": "top_k: the best far blocks, read exactly",
    "top_k_per_token": "top_k_per_token: the same, chosen by each token",
    "both": "both: the best far chunks exactly, the others through their states",
}
DEFAULT: Config = {  # that of ConversionConfig, told here without importing torch; compression 0 is none
    "chunk_size": 128, "retrieval": "top_k", "local_chunks": 2, "sink_tokens": 32, "top_k": 16, "block_size": 32,
    "compression_factor": 0,
}  # fmt: skip
READ_BY = {  # the other settings mean something everywhere
    "top_k": ("top_k", "top_k_per_token", "both"),
    "block_size": ("top_k", "top_k_per_token"),
    "compression_factor": ("states", "both"),
}
# A row with a factor that is none of these, or another value of one of PLAIN, is about something else. Of several rows
# the one whose value stands first is shown: texts of all kinds before speeches, all texts before some of them.
FACTORS = {*DEFAULT, "setting", "n", "phase"}
PLAIN = {
    "dtype": ("float32",), "control": ("original",), "model": ("SmolLM2",), "kind": ("all", "speech"),
    "documents": ("all", "shared"),
}  # fmt: skip


def fields(config: Config) -> Config:
    """The settings that mean something together, as plain values."""
    found = {name: config.get(name) for name in DEFAULT if config["retrieval"] in READ_BY.get(name, RETRIEVALS)}
    plain = {name: 0 if pd.isna(value) else int(value) for name, value in found.items() if name != "retrieval"}
    return {name: plain.get(name, config["retrieval"]) for name in found}


def call(config: Config) -> str:
    """The Python that makes this setting."""
    given = {name: value for name, value in config.items() if value or name != "compression_factor"}
    return "ConversionConfig(" + ", ".join(f"{name}={json.dumps(value)}" for name, value in given.items()) + ")"


def label(config: Config) -> str:
    """The settings that retrieval leaves open, in words, and whether it is the converter's default."""
    words = [f"{name.replace('_', ' ')} {value}" for name, value in config.items() if name != "retrieval"]
    usual = config == {name: value for name, value in DEFAULT.items() if name in config}
    return ", ".join(words).replace("compression factor 0", "no compression") + (" (the default)" if usual else "")


def rows_of(result: Result) -> list[tuple[Config, Config]]:
    """Each row about one setting, with the setting: that of its columns, or by its name from the record."""
    table, known, found = result.table, own_settings(result.provenance["parameters"].get("settings", {})), []
    for factor in sorted(set(table.columns) - FACTORS - set(MEASURED)):
        wanted = PLAIN.get(factor, ())
        table = table[table[factor].isna() | table[factor].isin(wanted)]
        table = table.sort_values(factor, key=lambda column, order=wanted: column.map(place(order)), kind="stable")
    for line in table.to_dict("records"):
        config = line if "chunk_size" in table else known.get(str(line["setting"]), {})
        whole = not config.get("layers") and not config.get("original_below")  # in all layers, at all lengths
        if str(config.get("retrieval")) in RETRIEVALS and whole and not pd.isna(line["n"]):
            found.append((fields(config), line))
    return found


def own_settings(settings: Config) -> Config:
    """Those that a config alone asks for: of equals the first, as a calibrated one equals a plain one."""
    return {name: one for i, (name, one) in enumerate(settings.items()) if one not in list(settings.values())[:i]}


def place(order: Sequence[str]) -> Callable[[Any], int]:
    return lambda value: 0 if pd.isna(value) else order.index(value)


def number(line: Config) -> dict[str, Any]:
    """One number as the table has it and as the page writes it; what it is over; its status where there is none."""
    numbers = {name: None if pd.isna(line[name]) else float(line[name]) for name in NUMBERS}
    shown = figures.interval(**numbers) if line["status"] == "ok" else str(line["status"]).replace("_", " ")
    return {**numbers, "shown": shown, "over": line["over"].rpartition(" ")[0]}


def data(results: Sequence[Result]) -> dict[str, Any]:
    """What the page embeds: settings, the default's nearest first, and for each its numbers by length.

    A length has one number for each of QUANTITIES, None where that was not measured.
    """
    settings: dict[str, dict[str, Any]] = {}
    for source, result in enumerate(results):
        for config, line in rows_of(result):
            phase = None if pd.isna(line.get("phase")) else line["phase"]
            for place, (name, when) in enumerate(QUANTITIES):
                if phase == when and line["metric"] in (name, "cell"):  # a cell's status stands for all its numbers
                    new = {"fields": config, "label": label(config), "call": call(config), "numbers": {}}
                    lengths = settings.setdefault(call(config), new)["numbers"]
                    at = lengths.setdefault(int(line["n"]), [None] * len(QUANTITIES))
                    at[place] = at[place] or {**number(line), "source": source}
    ordered = sorted(
        settings.values(),
        key=lambda one: (sum(v != DEFAULT[k] for k, v in one["fields"].items()), *one["fields"].values()),
    )
    first = ordered[0]["numbers"] if ordered else {0: []}
    return {
        "quantities": [{"title": title, "unit": metric(name).unit} for (name, _), title in QUANTITIES.items()],
        "pages": [f"../notebooks/{result.experiment}.html" for result in results],
        "lengths": sorted({n for one in ordered for n in one["numbers"]}),
        "length": max(first, key=lambda n: (sum(map(bool, first[n])), n)),  # where most was measured
        "retrievals": {
            name: words
            for name, words in RETRIEVALS.items()
            if any(one["fields"]["retrieval"] == name for one in ordered)
        },
        "settings": ordered,
    }


def in_words(cell: Config) -> str:
    return f"{cell['shown']}, over {cell['over']}" if cell["over"] else str(cell["shown"])


def markup(found: dict[str, Any]) -> str:
    """Choices and their outcome, which the script fills; the data; all of it as a table where no script runs."""
    titles = [f"{one['title']}, {one['unit']}" for one in found["quantities"]]
    everything = pd.DataFrame(
        [one["call"], f"{n:,}", *(in_words(cell) if cell else "not measured" for cell in cells)]
        for one in found["settings"]
        for n, cells in sorted(one["numbers"].items())
    ).set_axis(["setting", "tokens", *titles], axis=1)
    embedded = json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<div class="chooser"><form class="map-controls" hidden>'
        '<label>measured lengths <input type="range" name="stop" min="0" step="1"></label>'
        '<label>length in tokens <input type="text" inputmode="numeric" name="n" size="8" autocomplete="off"></label>'
        '<label>setting <select name="setting"></select></label></form><p class="map-note" role="status"></p>'
        '<div class="table-box"><table class="table" hidden><caption class="unseen">What was measured with this setting'
        "</caption><thead></thead><tbody></tbody></table></div>"
        '<div class="highlight" hidden><pre></pre></div>'
        f'<script type="application/json">{embedded}</script><noscript><div class="table-box">'
        f"{everything.to_html(index=False, border=0, classes='table', justify='left')}</div></noscript></div>"
    )


def again(experiment: str) -> str:
    return f"nox -s reproduce -- --target cpu --profile full {experiment}"


def parts() -> list[HTML | Markdown]:
    """The page's content: the chooser, where its numbers come from, and how to measure what is missing."""
    results, absent = [], []
    for experiment in EXPERIMENTS:
        try:
            result = load(experiment)
            if "setting" not in result.table:
                raise ResultError(
                    f"{experiment} was measured before settings had one name in all tables; run: {again(experiment)}"
                )
            results.append(result)
        except ResultError as error:
            what, _, command = html.escape(str(error)).partition("run: ")
            absent.append(HTML(f"<p><strong>Not measured yet</strong>: {what}run <code>{command}</code></p>"))
    found = data(results)
    shown = [HTML(markup(found) + '<script src="../_static/choose.js"></script>')] if found["settings"] else []
    origins = [f"<small>{one.experiment}:</small> {figures.provenance_line(one, 'book')}" for one in results]
    return [*shown, *map(Markdown, origins), *absent]
