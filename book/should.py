"""What the page *Should I use it?* says: ten questions, each answered by a number from the store, or by its absence."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from landing import DEFAULT, load_if_there, longest_kept, plain

from bsbr.show import learning as shown
from bsbr.show.figures import interval as in_numbers
from bsbr.show.figures import number
from bsbr.store import NUMBERS, Result, only, select

MISSING = "**Not measured yet.** The page that will say so has no full run."


class Question(NamedTuple):
    """What a reader asks, the experiment that answers it, and how its answer reads."""

    asked: str
    experiment: str
    answer: Callable[[Result], str]

    @property
    def anchor(self) -> str:
        """Of the answer's heading on the page."""
        return "".join(c if c.isalnum() else "-" for c in self.asked.lower().rstrip("?"))


def answers() -> str:
    """All questions and answers, in Markdown."""
    return "\n\n".join(section(question) for question in QUESTIONS)


def section(question: Question) -> str:
    """One question as a heading, its answer, and the page that measured it."""
    result = load_if_there(question.experiment)
    try:
        said = MISSING if result is None else question.answer(result)
    except LookupError:  # a table that was measured before it had what the answer needs
        said = MISSING
    name = question.experiment.rpartition("/")[2].replace("_", " ")
    link = f"[The page about {name}](../notebooks/{question.experiment}.ipynb) has the rest."
    return f"({question.anchor})=\n\n### {question.asked}\n\n{said} {link}"


def spread(row: pd.Series, digits: int = 3) -> str:
    """A value with its interval, if it has one."""
    return in_numbers(*row[NUMBERS], digits)


def faster(result: Result, n: int) -> str:
    """Reading a prompt of n tokens, beside the other mechanisms."""
    rows = select(plain(result.table), "speedup", phase="prefill", n=n).dropna(subset="value")
    own = only(rows, "speedup", mechanism="bsbr")
    others = rows[~rows["mechanism"].isin(["bsbr", "standard", "standard_unfused"])].sort_values(
        "value", ascending=False
    )
    ahead = [
        f"{shown.name_of(row.mechanism)} {number(row.value, 2)} ×"
        for row in others.itertuples()
        if row.low > own["high"]
    ]
    told = (
        "Faster still, beyond the intervals: " + ", ".join(ahead)
        if ahead
        else "No mechanism is faster beyond the intervals"
    )
    if pd.isna(own["low"]) or own["low"] <= 1 <= own["high"]:
        verdict = "It cannot be told from standard attention"
    else:
        verdict = f"**{'Yes' if own['value'] > 1 else 'No'}**, against standard attention"
    how = f"reading {n:,} tokens at once with a small model of random weights"
    return f"{verdict}: {spread(own)} × as fast, {how}. {told}."


def at_2k(result: Result) -> str:
    return faster(result, 2048)


def at_length(result: Result) -> str:
    rows = select(plain(result.table), "speedup", phase="prefill", mechanism="bsbr").dropna(subset="value")
    return faster(result, int(rows["n"].max()))


def decoding(result: Result) -> str:
    rows = select(plain(result.table), "time_per_token", phase="decode").dropna(subset="value")
    n = int(rows.loc[rows["mechanism"] == "standard", "n"].max())
    own, standard, linear = (
        spread(only(rows, "time_per_token", mechanism=name, n=n)) for name in ("bsbr", "standard", "linear")
    )
    return (
        f"After {n:,} tokens the next one takes {own} ms; with standard attention {standard} ms, with linear "
        f"attention, whose state is one matrix, {linear} ms."
    )


def memory(result: Result) -> str:
    table = plain(result.table)
    rows = select(table, "peak_memory", phase="inference", mechanism="bsbr", checkpointing="off").dropna(subset="value")
    n = int(rows["n"].max())
    own, fused = (
        only(table, "peak_memory", phase="inference", mechanism=name, checkpointing="off", n=n)["value"]
        for name in ("bsbr", "standard")
    )
    unfused = select(table, "peak_memory", phase="inference", mechanism="standard_unfused").dropna(subset="value")
    m = int(unfused["n"].max())
    full = only(unfused, "peak_memory", n=m)["value"]
    there = only(table, "peak_memory", phase="inference", mechanism="bsbr", checkpointing="off", n=m)["value"]
    return (
        f"Reading {n:,} tokens its tensors take {number(own)} MB at the worst moment, standard attention by a fused "
        f"kernel, which never keeps the scores, {number(fused)} MB: {number(own / fused)} times. Against attention "
        f"that does keep them, as the documents count it, BSBR saves memory: {number(there)} MB for {number(full)} MB "
        f"at {m:,} tokens."
    )


def training(result: Result) -> str:
    found = result.select("training_speed", seed=None, learning_rate=None).dropna(subset="value")
    if found.empty:
        raise LookupError("no speed of training")
    own, standard = (spread(only(found, "training_speed", mechanism=name)) for name in ("bsbr", "standard"))
    return f"BSBR trains {own} tokens a second, standard attention {standard}, side by side on the same machine."


def prediction(result: Result) -> str:
    n = int(result.select("perplexity_gain", mechanism="bsbr")["n"].max())
    return shown.differing(result, "perplexity_gain", n=n) + f" Trained alike, on {n:,} tokens at once."


def recall(result: Result) -> str:
    rows = result.select("accuracy", mechanism="bsbr", seed=None, learning_rate=None, distance=None, variant=None)
    hardest = rows.dropna(subset=["value", "pairs"]).sort_values(["pairs", "n"]).iloc[-1]
    where = {name: hardest[name] for name in ("pairs", "n", "hidden_dim", "num_layers")}
    rows = result.select(
        "accuracy", mechanism="standard", seed=None, learning_rate=None, distance=None, variant=None, **where
    )
    return (
        f"Of {int(hardest['pairs'])} pairs in {int(hardest['n'])} tokens it recalls {spread(hardest)} %, standard "
        f"attention {spread(only(rows, 'accuracy'))} %."
    )


def kept(result: Result) -> str:
    loss, same = longest_kept(result)
    return (
        f"With the default setting and no training, perplexity on {int(loss['n']):,} tokens of speeches is "
        f"{spread(loss)} times the original's, and {spread(same)} % of the first choices for the next token stay. "
        f"Other kinds of text may lose more: only speeches and e-mails were read."
    )


def converted_speed(result: Result) -> str:
    rows = result.select("speedup", phase="prefill", dtype="float32", setting=DEFAULT).dropna(subset="value")
    lengths = (1024, 4096, int(rows["n"].max()))
    gains = [f"{spread(only(rows, 'speedup', n=n))} times as fast at {n:,} tokens" for n in lengths]
    cache = result.select("cache_memory", dtype="float32").dropna(subset="value")
    n = int(cache.loc[cache["setting"] == DEFAULT, "n"].max())
    own, original = (only(cache, "cache_memory", setting=name, n=n)["value"] for name in (DEFAULT, "original"))
    return (
        f"A converted model reads a prompt {', '.join(gains)}, by default. What it keeps to decode with is no smaller: "
        f"{number(own / original)} times the original's after {n:,} tokens."
    )


TRIED = {
    "original": "by the original",
    "kept + top-k": "by one setting made for it, which keeps two layers as they are",
    "kept + no retrieval": "by that setting without retrieval",
    DEFAULT: "by the default",
}


def passkey(result: Result) -> str:
    rows = result.select(
        "retrieval_accuracy", phase="trials", dtype="bfloat16", documents="all", statistic=None, trial=None
    )
    far = int(rows["distance"].max())
    rows = rows[rows["distance"] == far].dropna(subset="value").set_index("setting")
    told = [f"{spread(rows.loc[name])} % {how}" for name, how in TRIED.items() if name in rows.index]
    if not told:
        raise LookupError("no trials")
    return f"A number hidden {far:,} tokens back is found in this share of the trials: {', '.join(told)}."


QUESTIONS = (
    Question("Is it faster at 2,000 tokens?", "benchmarks/inference_time", at_2k),
    Question("Is it faster on a long text?", "benchmarks/inference_time", at_length),
    Question("What does a decoded token cost?", "benchmarks/inference_time", decoding),
    Question("What does it cost in memory?", "benchmarks/memory", memory),
    Question("Does it train as fast?", "benchmarks/convergence", training),
    Question("Does it predict text as well?", "benchmarks/language_modeling", prediction),
    Question("Does it forget a name?", "benchmarks/recall", recall),
    Question("What does a converted model keep?", "conversion/similarity", kept),
    Question("What does conversion bring?", "conversion/speed_and_memory", converted_speed),
    Question("Does a converted model still find what was said long ago?", "conversion/passkey", passkey),
)


# -- Which mechanism, by length and by what matters -----------------------------------------------


class Matter(NamedTuple):
    """What may matter, and the numbers that tell mechanisms apart by it: the lowest is best."""

    title: str
    experiment: str
    metric: str
    where: dict[str, str]


MATTERS = (
    Matter("reading a text, s", "benchmarks/inference_time", "time", {"phase": "prefill"}),
    Matter("decoding a token after it, ms", "benchmarks/inference_time", "time_per_token", {"phase": "decode"}),
    Matter("memory to read it, MB", "benchmarks/memory", "peak_memory", {"phase": "inference", "checkpointing": "off"}),
    Matter(
        "memory to train on it, MB", "benchmarks/memory", "peak_memory", {"phase": "training", "checkpointing": "off"}
    ),
)
CHOICE_LENGTHS = (256, 1024, 4096, 16384)


def choices() -> str:
    """A table in Markdown: for each length and each thing that may matter, the best mechanism and those as good."""
    lines = [f"| what matters | {' | '.join(f'{n:,} tokens' for n in CHOICE_LENGTHS)} |", "|---" * 5 + "|"]
    for matter in MATTERS:
        result = load_if_there(matter.experiment)
        cells = [MISSING.split(".")[0] + "**" if result is None else best(result, matter, n) for n in CHOICE_LENGTHS]
        lines.append(f"| [{matter.title}](../notebooks/{matter.experiment}.ipynb) | {' | '.join(cells)} |")
    return "\n".join(lines)


def best(result: Result, matter: Matter, n: int) -> str:
    """The mechanism with the lowest number, those that cannot be told from it, and standard attention's number.

    Two cannot be told apart where their intervals meet, or, of numbers without one, where they differ by under 1 %.
    """
    rows = select(plain(result.table), matter.metric, n=n, **matter.where).dropna(subset="value")
    rows = rows[rows["mechanism"] != "standard_unfused"].sort_values("value", kind="stable")
    if rows.empty:
        return "not measured"
    first = rows.iloc[0]
    end = first["value"] * 1.01 if pd.isna(first["high"]) else first["high"]
    equal = [
        row for row in rows.iloc[1:].to_dict("records") if (row["value"] if pd.isna(row["low"]) else row["low"]) <= end
    ]
    said = f"**{shown.name_of(first['mechanism'])}** {number(first['value'])}"
    if equal:
        said += f", as good: {', '.join(shown.name_of(row['mechanism']) for row in equal)}"
    standard = rows[rows["mechanism"] == "standard"]
    if len(standard) and "standard" not in (first["mechanism"], *(row["mechanism"] for row in equal)):
        said += f"; standard attention {number(standard['value'].iloc[0])}"
    return said
