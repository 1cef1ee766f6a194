# %% [markdown]
# # Inference time
#
# How long does each mechanism take to read a text of $n$ tokens and to continue it, and how does that grow with $n$?

# %% tags=["remove-input"]
from bsbr import figures

answer, main_chart, origin = figures.reserve("answer"), figures.reserve("chart"), figures.reserve("source")

# %% [markdown]
# ## What was claimed
#
# The documents under test give times in seconds on other machines, and one states speedups. Seconds do not travel
# from one processor to another, but ratios between two mechanisms on one machine nearly do. So each document's
# time of standard attention is divided here by its time of BSBR at the same length. The documents disagree with
# one another by more than any machine could explain.

# %% tags=["hide-input"]
from bsbr import claims

TIME_TABLES = ["Inference Time", "Inference Time (seconds)", "Inference Speed Comparison"]

stated = claims.load("time")
stated = stated[stated["section"].isin(TIME_TABLES)]
stated_times = stated.pivot(index=["document", "n"], columns="mechanism", values="value")
stated_speedups = stated_times.rdiv(stated_times["standard"], axis=0)["bsbr"].dropna()
by_document = stated_speedups.unstack("document").sort_index().rename(columns=claims.short).rename_axis(columns=None)
figures.table(
    by_document.reset_index(), caption="Claimed: how many times as fast as standard attention BSBR reads n tokens"
)

# %% [markdown]
# ## Method
#
# Every mechanism sits in the same backbone with the same sizes, weights drawn from one seed, and reads the same
# random tokens; no arithmetic here takes a shorter way for particular values. Two phases are timed:
#
# - **prefill**: one pass over $n$ tokens up to the last hidden state, as a classifier or an encoder runs it;
# - **decode**: new tokens one by one, after a prompt of $n$ tokens that was read off the clock.
#
# In each cell the mechanisms take turns, round after round in rotated order, so that whatever slows the machine slows
# all alike, and a speedup is the median of the ratios within a round. Times are medians. Intervals are 95 % ones from
# order statistics, which assume nothing about the distribution. A control cell is repeated at the start, in the middle
# and at the end: how far its times differ is the noise of this run.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
from dataclasses import asdict

import pandas as pd
import torch

import bsbr.model
from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.measure import machine, scaling, speed
from bsbr.results import Sweep, is_out_of_memory, row, select

SIZES = {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512}
SIZES |= {"chunk_size": 128, "window_size": 128}
PROFILES = {
    "tiny": {"longest": 256, "control_n": 64, "new_tokens": 4, "seconds": 0.1, "split": None},
    "quick": {"longest": 4096, "control_n": 1024, "new_tokens": 50, "seconds": 4, "split": 1024},
    "full": {"longest": 16384, "control_n": 1024, "new_tokens": 50, "seconds": 8, "split": 1024},
}
settings = PROFILES[profile]
mechanisms = list(MECHANISMS)
lengths = [64 * 2**i for i in range(20) if 64 * 2**i <= settings["longest"]]
device = machine.device(target)

# %% [markdown]
# ## Measuring

# %% tags=["hide-input"]
torch.manual_seed(0)
models = {name: TransformerLM(ModelConfig(mechanism=name, **SIZES)).to(device).eval() for name in mechanisms}


def prefill_task(model: TransformerLM, ids: torch.Tensor) -> speed.Task:
    def run(_: None) -> None:
        with torch.inference_mode():
            model.encode(ids)

    return speed.Task(run)


def decode_task(model: TransformerLM, ids: torch.Tensor) -> speed.Task:
    with torch.inference_mode():
        logits, state = model.prefill(ids)

    def run(start: bsbr.model.ModelState) -> None:
        with torch.inference_mode():
            token, now = logits.argmax(-1), start
            for _ in range(settings["new_tokens"]):
                scores, now = model.step(token, now)
                token = scores.argmax(-1)

    return speed.Task(run, prepare=lambda: speed.clone(state))


def measure(phase: str, n: int, repeat: int | None = None) -> list[dict]:
    """Time every mechanism in turn; one that does not fit into memory gets a row that says so."""
    ids = torch.randint(SIZES["vocab_size"], (1, n), generator=torch.Generator().manual_seed(n)).to(device)
    make = decode_task if phase == "decode" else prefill_task
    tasks, rows = {}, []
    for name, model in models.items():
        try:
            tasks[name] = make(model, ids)
            tasks[name].run(tasks[name].prepare())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            del tasks[name]
            rows.append(row("time", None, mechanism=name, status="out_of_memory", reason=str(error)[:200]))
    samples = speed.interleave(tasks, seconds=settings["seconds"])
    for name, taken in samples.items():
        rows.append(row("time", **asdict(speed.median(taken)), mechanism=name))
        if phase == "decode":
            per_token = speed.median(taken / settings["new_tokens"] * 1000)
            rows.append(row("time_per_token", **asdict(per_token), mechanism=name))
        if "standard" in samples and name != "standard":
            rows.append(row("speedup", **asdict(speed.ratio(samples["standard"], taken)), mechanism=name))
    return rows


# %% tags=["hide-input", "remove-output"]
control = [{"phase": "control", "n": settings["control_n"], "repeat": repeat} for repeat in (1, 2, 3)]
prefill = [{"phase": "prefill", "n": n} for n in lengths]
decode = [{"phase": "decode", "n": n} for n in lengths]
cells = [control[0], *prefill, control[1], *decode, control[2]]

sweep = Sweep(
    "benchmarks/inference_time",
    target=target,
    profile=profile,
    parameters={**SIZES, **settings, "batch": 1, "dtype": "float32", "mechanisms": mechanisms},
    code=[bsbr.model, speed],
)
measured = sweep.measure(cells, measure)


# %% [markdown]
# From the times follow, for each mechanism and phase, the exponent of a power law on each range of lengths and the
# length from which it stays faster than standard attention.


# %% tags=["hide-input"]
def exponents(phase: str, name: str, start: int, end: int) -> list[dict]:
    times = select(measured, "time", phase=phase, mechanism=name).dropna(subset="value")
    times = times[times["n"].between(start, end)]
    if len(times) < 3:
        return []
    fit = scaling.fit_power_law(list(times["n"]), list(times["value"]))
    where = {"phase": phase, "mechanism": name, "n_from": start, "n_to": end}
    return [
        row("exponent", fit.exponent, low=fit.low, high=fit.high, samples=fit.points, **where),
        row("r_squared", fit.r_squared, samples=fit.points, **where),
    ]


def crossover(phase: str, name: str) -> dict:
    gains = select(measured, "speedup", phase=phase, mechanism=name)
    n, where = list(gains["n"]), {"phase": phase, "mechanism": name}
    at, earliest, latest = (scaling.crossover(n, list(gains[column])) for column in ("value", "high", "low"))
    if at is None:
        return row("crossover_n", None, status="not_available", reason="slower at the longest length", **where)
    return row("crossover_n", at, low=earliest, high=latest, **where)


def noise(name: str) -> dict:
    times = select(measured, "time", phase="control", mechanism=name)["value"]
    return row("noise", (times.max() / times.min() - 1) * 100, samples=len(times), mechanism=name, phase="control")


split = settings["split"]
ranges = [(lengths[0], split), (split, lengths[-1])] if split else [(lengths[0], lengths[-1])]
derived = [noise(name) for name in mechanisms]
for phase in ("prefill", "decode"):
    derived += [crossover(phase, name) for name in mechanisms if name != "standard"]
    for name in mechanisms:
        for start, end in ranges:
            derived += exponents(phase, name, start, end)

result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
last_from, last_to = ranges[-1]


def shown(metric: str, digits: int = 2, **factors: object) -> str:
    found = result.select(metric, **factors).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], digits)


def growth(name: str, phase: str = "prefill") -> str:
    where = {"phase": phase, "mechanism": name, "n_from": last_from, "n_to": last_to}
    return f"$n^{{{result.value('exponent', **where):.2f}}}$"


def from_where(name: str) -> str:
    at = result.select("crossover_n", phase="prefill", mechanism=name).iloc[0]
    if at["status"] != "ok":
        return "standard attention is the faster at every length up to there"
    if at["value"] <= lengths[0]:
        return f"it is the faster from the shortest measured length on, n = {lengths[0]}"
    roughly = float(f"{at['value']:.2g}")
    return f"it is the faster from about n = {figures.number(roughly)} on"


def per_token(name: str, n: int) -> str:
    return figures.number(result.value("time_per_token", phase="decode", mechanism=name, n=n))


def token_ratio(name: str) -> str:
    costs = [result.value("time_per_token", phase="decode", mechanism=name, n=n) for n in (lengths[0], lengths[-1])]
    return figures.number(costs[1] / costs[0])


figures.say(
    f"**BSBR reads {lengths[-1]:,} tokens {shown('speedup', phase='prefill', mechanism='bsbr', n=lengths[-1])} times as "
    f"fast as standard attention; {from_where('bsbr')}.** From {last_from:,} to {last_to:,} tokens its time grows as "
    f"{growth('bsbr')}, that of standard attention as {growth('standard')}. A decoded token costs "
    f"{per_token('bsbr', lengths[0])} ms after {lengths[0]} tokens and {per_token('bsbr', lengths[-1])} ms after "
    f"{lengths[-1]:,}, against {per_token('standard', lengths[0])} and {per_token('standard', lengths[-1])} ms.",
    answer,
)
prefill_times = result.select("time", phase="prefill")
chart = figures.lines(prefill_times, "n", title="Time to read n tokens", x_title="n (tokens)", log_x=True, log_y=True)
figures.show(figures.axis_toggle(chart), "prefill", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Prefill

# %% tags=["remove-input"]
figures.table(
    figures.pivot(prefill_times, "n", "mechanism"), caption="Seconds to read n tokens, median and 95 % interval"
)
figures.show_provenance(result)

# %% tags=["hide-input"]
gains = result.select("speedup", phase="prefill")
chart = figures.lines(
    gains, "n", title="Measured and claimed speedup over standard attention", x_title="n (tokens)",
    y_title="times as fast", log_x=True, log_y=True,
)  # fmt: skip
for symbol, document in zip(["circle", "square", "diamond"], by_document, strict=True):
    claimed = by_document[document].dropna()
    figures.add_claim(chart, claimed.index, claimed, f"bsbr, claimed: {document}", symbol)
chart.add_hline(y=1, line={"color": "#7F7F7F", "width": 1})
chart.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"}, height=480)
figures.show(chart, "speedup")
figures.show_provenance(result)

# %% [markdown]
# ## Decode

# %% tags=["hide-input"]
tokens = result.select("time_per_token", phase="decode")
chart = figures.lines(tokens, "n", title="One decoded token after n tokens", x_title="n (tokens)", log_x=True)
chart.update_yaxes(rangemode="tozero")
figures.show(figures.axis_toggle(chart), "decode")
figures.table(
    figures.pivot(tokens, "n", "mechanism"), caption="Milliseconds a token after n tokens, median and 95 % interval"
)
figures.show_provenance(result)


# %% [markdown]
# ## Growth
#
# An exponent holds for the range it was fitted on: at short lengths a fixed cost of each call hides the growth, which
# is how a fit over short lengths can make standard attention look linear, as it did in one of the documents.


# %% tags=["remove-input"]
def span(rows: pd.DataFrame) -> list[str]:
    return [f"n = {start:,} … {end:,}" for start, end in zip(rows["n_from"], rows["n_to"], strict=True)]


fits = result.select("exponent", phase="prefill")
growth_table = figures.pivot(fits.assign(range=span(fits)), "mechanism", "range").set_index("mechanism")
for document, claimed in claims.load("exponent").groupby("document", sort=False):
    values = claimed.set_index("mechanism")["value"].map(figures.number)
    growth_table[f"claimed: {claims.short(document)}"] = growth_table.index.map(values).fillna("–")
figures.table(growth_table.reset_index(), caption="Exponent of the time to read n tokens, with 95 % interval")

r_squared = result.select("r_squared", phase="prefill")
table = figures.pivot(
    r_squared.assign(range=["R², " + name for name in span(r_squared)]), "mechanism", "range", digits=4
)
crossings = result.select("crossover_n").assign(value=lambda rows: rows["value"].round())
crossings = figures.pivot(crossings, "mechanism", "phase", intervals=False).rename(
    columns={phase: f"{phase}: faster than standard from n" for phase in ("prefill", "decode")}
)
table = table.merge(crossings, how="left").fillna("–").replace("not available", f"not up to {lengths[-1]:,}")
figures.table(table, caption="How well the power law fits, and the crossover")
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
chunk = SIZES["chunk_size"]
shortest = result.select("speedup", phase="prefill", n=lengths[0], mechanism="bsbr").iloc[0]
noisiest = result.select("noise").sort_values("value").iloc[-1]
figures.say(
    f"Up to one chunk of {chunk} tokens BSBR has nothing to retrieve, so it does what standard attention does and its "
    f"own projections besides: at n = {lengths[0]} it is {figures.number(shortest['value'])} times as fast. Beyond that "
    f"it reads a number of tokens that does not grow, plus one state a chunk, and the gap widens with every doubling. "
    f"The mixing of chunk states is quadratic in the number of chunks, which is n over {chunk}; it is part of what lifts "
    f"the growth to {growth('bsbr')} from {last_from:,} tokens on.\n\n"
    f"A step of BSBR reads at most one chunk and one state, however long the text: a token costs "
    f"{token_ratio('bsbr')} times as much after {lengths[-1]:,} tokens as after {lengths[0]}. Standard attention reads "
    f"all earlier keys and values again, and its ratio is {token_ratio('standard')}.\n\n"
    f"The noise of this run: the control cell, timed three times over the run, differed by at most "
    f"{figures.number(noisiest['value'])} % ({noisiest['mechanism']}). A difference between mechanisms smaller than that "
    f"means nothing here. "
    f"Sizes: {', '.join(f'{name} {value:,}' for name, value in SIZES.items())}; float32, batch of one, eager mode; "
    f"{settings['new_tokens']} decoded tokens a sample."
)

# %% [markdown]
# ## Limits and exercises
#
# - One batch size, one precision, eager mode. On a GPU the fused kernel of standard attention is stronger than here, so
#   the crossover lies elsewhere: run this notebook with the target `gpu`.
# - Change `chunk_size` in `SIZES`: where does the crossover go when chunks get smaller, and what happens to the
#   exponent?
# - Give the model more heads of the same size. Which part of the time grows, and which does not?
