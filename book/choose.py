"""What the page *Choose a setting* shows: every converter setting that was measured, with its numbers.

They are embedded in the page as JSON, and `_static/choose.js` picks among them.
"""

import html
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from bsbr import figures
from bsbr.metrics import metric
from bsbr.results import MEASURED, NUMBERS, Result, ResultError, load

Config = dict[Any, Any]

# Where two tables have the same number, the first one's is shown: it has measured all settings alike.
EXPERIMENTS = ("conversion/hyperparameters", "conversion/speed_and_memory")
QUANTITIES: dict[tuple[str, str | None], str] = {  # (metric, phase): as the page calls it
    ("speedup", "prefill"): "Speed of reading the prompt, relative to the original",
    ("speedup", "decode"): "Speed of decoding a token, relative to the original",
    ("relative_memory", "prefill"): "Peak memory of reading the prompt, relative to the original",
    ("peak_memory", "prefill"): "Peak memory of reading the prompt",
    ("perplexity_ratio", None): "Perplexity, relative to the original",
    ("top_1_agreement", None): "First choices for the next token that stay the same",
}
RETRIEVALS = ("none", "states", "top_k", "top_k_per_token", "both")
DEFAULT: Config = {  # that of ConversionConfig, told here without importing torch; compression 0 is none
    "chunk_size": 128, "retrieval": "top_k", "local_chunks": 2, "sink_tokens": 32, "top_k": 16, "block_size": 32,
    "compression_factor": 0,
}  # fmt: skip
READ_BY = {  # the other settings mean something everywhere
    "top_k": ("top_k", "top_k_per_token", "both"),
    "block_size": ("top_k", "top_k_per_token"),
    "compression_factor": ("states", "both"),
}
# A row with a factor that is none of these, or another value of one of PLAIN, is about something else.
FACTORS, PLAIN = {*DEFAULT, "setting", "rung", "n", "phase"}, {"dtype": "float32", "control": "original"}


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
    """The settings that chunk size and retrieval leave open, in words."""
    words = [f"{name.replace('_', ' ')} {config[name]}" for name in list(DEFAULT)[2:] if name in config]
    return ", ".join(words).replace("compression factor 0", "no compression")


def rows_of(result: Result) -> list[tuple[Config, Config]]:
    """Each row about one setting, with the setting: that of its columns, or by its rung from the record."""
    table, rungs, found = result.table, result.provenance["parameters"].get("rungs", {}), []
    for factor in set(table.columns) - FACTORS - set(MEASURED):
        table = table[table[factor].isna() | (table[factor] == PLAIN.get(factor)).fillna(False)]
    for line in table.to_dict("records"):
        config = line if "chunk_size" in table else rungs.get(line["rung"], {})
        whole = not config.get("layers") and not config.get("original_below")  # in all layers, at all lengths
        if str(config.get("retrieval")) in RETRIEVALS and whole and not pd.isna(line["n"]):
            found.append((fields(config), line))
    return found


def number(line: Config) -> dict[str, Any]:
    """One number as the table has it and as the page writes it; its status where it could not be measured."""
    numbers = {name: None if pd.isna(line[name]) else float(line[name]) for name in NUMBERS}
    shown = figures.interval(**numbers) if line["status"] == "ok" else str(line["status"]).replace("_", " ")
    return {**numbers, "shown": shown}


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
        "chunk_size": sorted({one["fields"]["chunk_size"] for one in ordered}),
        "retrieval": sorted({one["fields"]["retrieval"] for one in ordered}, key=RETRIEVALS.index),
        "settings": ordered,
    }


def markup(found: dict[str, Any]) -> str:
    """Choices and their outcome, which the script fills; the data; all of it as a table where no script runs."""
    lists = {"chunk_size": "chunk size", "retrieval": "retrieval", "rest": "other settings"}
    choices = "".join(f'<label>{words} <select name="{name}"></select></label>' for name, words in lists.items())
    titles = [f"{one['title']}, {one['unit']}" for one in found["quantities"]]
    everything = pd.DataFrame(
        [one["call"], f"{n:,}", *(cell["shown"] if cell else "not measured" for cell in cells)]
        for one in found["settings"]
        for n, cells in sorted(one["numbers"].items())
    ).set_axis(["setting", "tokens", *titles], axis=1)
    embedded = json.dumps(found, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        '<div class="chooser"><form class="map-controls" hidden>'
        '<label>length <input type="range" name="stop" min="0" step="1" aria-label="measured lengths"></label>'
        '<label><input type="number" name="n" min="1" step="1" aria-label="length in tokens"> tokens</label>'
        f'{choices}</form><p class="map-note" role="status"></p>'
        '<div class="table-box"><table class="table" hidden><thead></thead><tbody></tbody></table></div>'
        '<div class="highlight" hidden><pre></pre></div>'
        f'<script type="application/json">{embedded}</script><noscript><div class="table-box">'
        f"{everything.to_html(index=False, border=0, classes='table', justify='left')}</div></noscript></div>"
    )


def parts() -> list[HTML | Markdown]:
    """The page's content: the chooser, where its numbers come from, and how to measure what is missing."""
    results, absent = [], []
    for experiment in EXPERIMENTS:
        try:
            results.append(load(experiment))
        except ResultError as error:
            what, _, command = html.escape(str(error)).partition("run: ")
            absent.append(HTML(f"<p><strong>Not measured yet</strong>: {what}run <code>{command}</code></p>"))
    found = data(results)
    shown = [HTML(markup(found) + '<script src="../_static/choose.js"></script>')] if found["settings"] else []
    origins = [f"<small>{one.experiment}:</small> {figures.provenance_line(one, 'book')}" for one in results]
    return [*shown, *map(Markdown, origins), *absent]
