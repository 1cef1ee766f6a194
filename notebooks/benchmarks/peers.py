# %% [markdown]
# # The original and other implementations
#
# A package called `bsbr` exists already: the implementation that the documents under test describe. How does it compare
# with this one, and with the fused kernels that a user might reach for instead?

# %% tags=["remove-input"]
from bsbr import figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## Method
#
# The original is the Python package `bsbr` in version `0.1.1`, unaltered, in a process of its own. It gets the sizes,
# the data type and the threads that ours gets. Measured are:
#
# - **time**: reading $n$ tokens (*prefill*), and continuing a prompt (*generate*), in turn with ours on one timer;
# - **memory**: what a fresh process adds to its resident memory while it reads $n$ tokens;
# - **influence of the future**: all tokens from some position on are replaced by others. In a model that predicts the
#   next token, no output before that position may change. What is stated is the largest change of any number of an
#   output, with random weights.
#
# Fused kernels compute attention alone, without a model around them. So they are timed against the attention of ours
# on the same queries, keys and values, compiled where they ask for it. [](../../book/method.md) has the rest.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict

import pandas as pd
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import bsbr.measure.bench
from bsbr import ModelConfig, TransformerLM, claims
from bsbr.attention import bsbr as block_retrieval
from bsbr.attention import sliding_window, standard
from bsbr.measure import machine, memory, original, scaling, speed
from bsbr.results import Sweep, row, select
from bsbr.tasks import sources

SIZES = {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512, "chunk_size": 128}
PRECISION = 0.05
PROFILES = {
    "tiny": {
        "lengths": [64, 128, 256], "prompts": [64], "new_tokens": 4, "memory": [256], "influence": [(256, 200)],
        "kernels": [256], "seconds": 0.1, "block": 0.01, "min_rounds": 3, "longest_compile": 0, "ranges": [(64, 256)],
    },
    "quick": {
        "lengths": [256, 512, 1024], "prompts": [256], "new_tokens": 50, "memory": [1024],
        "influence": [(512, 200), (512, 384)], "kernels": [1024], "seconds": 3, "block": 0.2, "min_rounds": 7,
        "longest_compile": 60, "ranges": [(256, 1024)],
    },
    "full": {
        "lengths": [256, 512, 1024, 2048, 4096], "prompts": [256, 1024], "new_tokens": 50,
        "memory": [256, 512, 1024, 2048, 4096], "influence": [(512, 100), (512, 200), (512, 384), (512, 500)],
        "kernels": [1024, 4096, 8192], "seconds": 8, "block": 0.2, "min_rounds": 9, "longest_compile": 60,
        "ranges": [(256, 1024), (1024, 4096)],
    },
}  # fmt: skip
settings = PROFILES[profile]
device = machine.device(target)
threads = torch.get_num_threads()

# %% [markdown]
# ## Measuring

# %% tags=["hide-input"]
torch.manual_seed(0)
ours = {name: TransformerLM(ModelConfig(name, **SIZES)).to(device).eval() for name in ("bsbr", "standard")}


def random_ids(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(SIZES["vocab_size"], (1, n), generator=generator).to(device)


def measure(phase: str, n: int, change_from: int | None = None) -> list[dict]:
    measures = {"memory": measure_memory, "attention": measure_kernels}
    if phase == "influence":
        return measure_influence(n, change_from)
    return measures[phase](n) if phase in measures else measure_models(phase, n)


def measure_models(phase: str, n: int) -> list[dict]:
    """The original in turn with ours: a whole pass, or a prompt and its continuation."""
    ids = random_ids(n)

    def task(model: TransformerLM) -> Callable[[], object]:
        if phase == "generate":
            return lambda: model.generate(ids, settings["new_tokens"])
        return torch.inference_mode()(lambda: model.encode(ids))

    tasks = {name: task(model) for name, model in ours.items()}
    if device.type == "cpu":
        tasks["original"] = lambda: theirs.run(
            "encode" if phase == "prefill" else "generate", n, settings["new_tokens"]
        )
    return timed(tasks, settings["block"])  # long enough for what the other process did to the caches to have passed


def timed(tasks: dict[str, Callable[[], object]], block: float = 0.01) -> list[dict]:
    """Times, how many times as fast as standard attention each is, and how many times as long as bsbr it takes."""
    samples = speed.interleave(
        tasks, seconds=settings["seconds"], min_rounds=settings["min_rounds"], precision=PRECISION, block=block
    )
    rows = []
    for name, taken in samples.items():
        rows.append(row("time", **asdict(speed.median(taken)), implementation=name))
        if name != "standard":
            rows.append(row("speedup", **asdict(speed.ratio(samples["standard"], taken)), implementation=name))
        if name != "bsbr":
            rows.append(row("relative_time", **asdict(speed.ratio(taken, samples["bsbr"])), implementation=name))
    return rows


def measure_memory(n: int) -> list[dict]:
    """What reading n tokens adds to a process: a new one for each."""
    peaks = {name: memory.peak(bsbr.measure.bench.reading, name, n, threads) for name in ours}
    with original.Original(json.dumps(SIZES), threads) as fresh:
        peaks["original"] = fresh.resident_peak(n)
    return [
        row("resident_peak", peak.added / 1e6, samples=1, implementation=name, phase="prefill")
        for name, peak in peaks.items()
    ]


def measure_influence(n: int, change_from: int) -> list[dict]:
    """The largest change before the first replaced token, over all positions and over each block of them."""
    changes = {"original": theirs.future_influence(n, change_from)}
    for name, model in ours.items():
        encode = torch.inference_mode()(lambda ids, model=model: model.encode(ids.to(device)))
        changes[name] = original.future_influence(encode, SIZES["vocab_size"], n, change_from)
    rows, block = [], 8
    for name, found in changes.items():
        where = {"implementation": name, "phase": "prefill"}
        rows.append(row("future_influence", max(found[:change_from]), samples=1, **where))
        for start in range(0, change_from, block):
            most = max(found[start : min(start + block, change_from)])
            rows.append(row("future_influence", most, samples=1, position=start, **where))
    return rows


def measure_kernels(n: int) -> list[dict]:
    """Attention alone: 4 heads of 64, as in the models above."""
    heads, chunk = SIZES["num_heads"], SIZES["chunk_size"]
    draw = torch.Generator().manual_seed(n)
    q, k, v = torch.randn(3, 1, heads, n, SIZES["hidden_dim"] // heads, generator=draw).to(device)
    meta = torch.randn(2, 1, heads, -(-n // chunk), q.shape[-1], generator=draw).to(device)
    calls = {
        "standard": lambda: standard.attend(q, k, v),
        "bsbr": lambda: block_retrieval.attend(q, k, v, *meta, chunk),
        "sliding_window": lambda: sliding_window.attend(q, k, v, chunk),
    }
    tasks = {name: torch.inference_mode()(call) for name, call in calls.items()}
    rows = []
    for name, mask in FLEX_MASKS.items():
        try:
            tasks[name], seconds = compile_flex(mask, q, k, v)
        except (speed.CompileError, speed.TooLongError) as error:
            rows.append(row("time", None, status="not_available", reason=str(error), implementation=name))
            continue
        rows.append(row("time", seconds, samples=1, implementation=name, phase="compile"))
    return rows + timed(tasks)


def within_window(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query >= key) & (query - key < WINDOW)


def within_chunk(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query >= key) & (query // WINDOW == key // WINDOW)


WINDOW = SIZES["chunk_size"]
FLEX_MASKS = {"flex_attention, sliding window": within_window, "flex_attention, chunks": within_chunk}


@torch.inference_mode()
def compile_flex(mask: Callable, *qkv: torch.Tensor) -> tuple[Callable[[], object], float]:
    n = qkv[0].shape[2]
    blocks = create_block_mask(mask, None, None, n, n, device=device.type)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flex_attention(q, k, v, block_mask=blocks)

    fast, seconds = speed.compiled(attend, qkv, settings["longest_compile"], dynamic=False)
    return torch.inference_mode()(lambda: fast(*qkv)), seconds


# %% tags=["hide-input", "remove-output"]
cells = [{"phase": "influence", "n": n, "change_from": at} for n, at in settings["influence"]]
cells += [{"phase": "prefill", "n": n} for n in settings["lengths"]]
cells += [{"phase": "generate", "n": n} for n in settings["prompts"]]
cells += [{"phase": "memory", "n": n} for n in settings["memory"]]
cells += [{"phase": "attention", "n": n} for n in settings["kernels"]]

sweep = Sweep(
    "benchmarks/peers",
    target=target,
    profile=profile,
    parameters={**SIZES, **settings, "dtype": "float32", "batch": 1, "original": sources.read_pin("bsbr").version},
    code=[bsbr.measure.bench, original, measure_models, measure_memory, measure_influence, measure_kernels, timed],
    sources=[sources.pin_path("bsbr")],
)
with original.Original(json.dumps(SIZES), threads) as theirs:  # on the CPU, whatever the target
    measured = sweep.measure(cells, measure)

# %% [markdown]
# Kernels that run on a GPU only get a row that says so, where there is none. No time of another machine stands in for
# theirs.

# %% tags=["hide-input"]
GPU_ONLY = {
    "flash-attn": "flash_attn", "xformers": "xformers", "mamba-ssm": "mamba_ssm", "flash-linear-attention": "fla",
}  # fmt: skip


def absent(name: str, module: str) -> dict:
    reason = "its kernels run on a GPU only" if target == "cpu" else "timed by no cell yet"
    if importlib.util.find_spec(module) is None:
        reason += "; not installed"
    return row("time", None, status="not_available", reason=reason, implementation=name, phase="attention")


def exponents(name: str, start: int, end: int) -> list[dict]:
    found = []
    for metric in ("time", "resident_peak"):
        rows = select(measured, metric, implementation=name, phase="prefill").dropna(subset="value")
        rows = rows[rows["n"].between(start, end) & (rows["value"] > 0)]
        if len(rows) >= 3:
            fit = scaling.fit_power_law(list(rows["n"]), list(rows["value"]))
            where = {"implementation": name, "phase": "prefill", "n_from": start, "n_to": end}
            kind = "exponent" if metric == "time" else "memory_exponent"
            found.append(row(kind, fit.exponent, low=fit.low, high=fit.high, samples=fit.points, **where))
    return found


IMPLEMENTATIONS = ("original", "bsbr", "standard")
derived = [absent(name, module) for name, module in GPU_ONLY.items()]
derived += [
    found for name in IMPLEMENTATIONS for start, end in settings["ranges"] for found in exponents(name, start, end)
]
result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
longest, prompt = settings["lengths"][-1], settings["prompts"][-1]
influenced_n, changed_from = settings["influence"][len(settings["influence"]) // 2]
fit_from, fit_to = settings["ranges"][-1]


def shown(metric: str, digits: int = 2, **factors: object) -> str:
    found = result.select(metric, **factors).iloc[0]
    return figures.interval(found["value"], found["low"], found["high"], digits) if found["status"] == "ok" else "–"


def growth(name: str, metric: str = "exponent") -> str:
    where = {"implementation": name, "phase": "prefill", "n_from": fit_from, "n_to": fit_to}
    found = result.select(metric, **where)
    return f"$n^{{{found['value'].iloc[0]:.2f}}}$" if len(found) else "–"


def influence(name: str) -> pd.DataFrame:
    return result.select("future_influence", implementation=name, position=None)


def most(name: str) -> str:
    return figures.number(influence(name)["value"].max())


timed_rows = result.select("time", phase="prefill")
has_original = "original" in set(timed_rows["implementation"])
if has_original:
    longer = shown("relative_time", phase="prefill", n=longest, implementation="original")
    figures.say(
        f"**The original sees the future: replacing later tokens moved its earlier outputs by up to {most('original')}, those "
        f"of this implementation by {most('bsbr')}. Reading {longest:,} tokens takes it {longer} times as long.** From "
        f"{fit_from:,} to {fit_to:,} tokens its time grows as {growth('original')}, that of ours as {growth('bsbr')}.",
        answer,
    )
else:
    figures.say(
        f"**The original sees the future: replacing later tokens moved its earlier outputs by up to {most('original')}, and "
        f"those of ours by {most('bsbr')}.** It was measured on the CPU only.",
        answer,
    )
figures.say(claims.line(result), claimed)
chart = figures.lines(
    timed_rows, "n", group="implementation", title="Time to read n tokens", x_title="n (tokens)", log_x=True, log_y=True
)
figures.show(figures.axis_toggle(chart), "prefill", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## The original sees the future
#
# Each curve gives, by position, how much an output moved when all tokens from the dotted line on were replaced. To the
# left of the line nothing may move: what a model predicts there has to hold whatever comes next. A model that sees the
# future is told in training what it is asked for, and is without that help when it writes.

# %% tags=["hide-input"]
curves = result.select("future_influence", change_from=changed_from, n=influenced_n)
curves = curves[curves["position"].notna()]
chart = figures.lines(
    curves, "position", group="implementation", title="Influence of later tokens on earlier outputs",
    x_title="position of the output (tokens)", y_title="largest change of the output",
)  # fmt: skip
chart.add_vline(x=changed_from, line={"color": "#7F7F7F", "dash": "dot"})
chart.update_xaxes(range=[0, influenced_n])
figures.show(chart, "influence")
table = pd.concat([influence(name) for name in IMPLEMENTATIONS])
table = table.assign(place=[f"from {a} of {n}" for a, n in zip(table["change_from"], table["n"], strict=True)])
figures.table(
    figures.pivot(table, "place", "implementation").rename(columns={"place": "tokens replaced"}),
    caption="Largest change of any output before the first replaced token",
)
figures.show_provenance(result)

# %% [markdown]
# ## The original is quadratic
#
# Inside its chunks the original masks a full matrix of scores, all tokens against all, and keeps one entry in a chunk's
# width. So the time and the memory are those of full attention without a fused kernel. It also has no decoding state: for
# each new token it reads the whole text again.

# %% tags=["hide-input"]
for phase, caption in (
    ("prefill", "Seconds to read n tokens"),
    ("generate", "Seconds to read and to continue a prompt of n"),
):
    figures.table(
        figures.pivot(result.select("time", phase=phase), "n", "implementation"),
        caption=f"{caption}, median and 95 % interval",
    )
    figures.table(
        figures.pivot(result.select("relative_time", phase=phase), "n", "implementation", digits=2),
        caption="Times as long as bsbr of this project, same round",
    )
peaks = result.select("resident_peak")
chart = figures.lines(
    peaks[peaks["value"] > 0], "n", group="implementation", title="Memory that reading n tokens adds", x_title="n (tokens)",
    log_x=True, log_y=True,
)  # fmt: skip
figures.show(figures.axis_toggle(chart), "memory")
figures.table(figures.pivot(peaks, "n", "implementation"), caption="Resident memory added at the peak, MB")
fits = pd.concat(
    [result.select(metric) for metric in ("exponent", "memory_exponent") if metric in set(result.table["metric"])]
)
if len(fits):
    names = {"exponent": "time", "memory_exponent": "memory"}
    fits = fits.assign(what=[f"{names[r.metric]}, n = {r.n_from:,} … {r.n_to:,}" for r in fits.itertuples()])
    figures.table(
        figures.pivot(fits, "implementation", "what", digits=2), caption="Exponents of reading, with 95 % interval"
    )
figures.show_provenance(result)

# %% [markdown]
# ## Fused kernels
#
# PyTorch's `flex_attention` compiles a kernel for a mask that the user writes as a function, and skips blocks of which the
# mask keeps nothing. With a sliding window or with chunks it does the part of the work that `sliding_window` and the inside
# of the chunks of `bsbr` do; there is no retrieval in it. `standard` is PyTorch's fused kernel for full causal attention.

# %% tags=["hide-input"]
kernels = result.select("time", phase="attention")
figures.table(
    figures.pivot(kernels[kernels["n"].notna()], "implementation", "n"),
    caption="Seconds for the attention of one layer over n tokens",
)
if len(gains := result.select("speedup", phase="attention")):
    figures.table(figures.pivot(gains, "implementation", "n", digits=2), caption="Times as fast as standard attention")
if "compile" in set(result.table["phase"]):
    figures.table(
        figures.pivot(result.select("time", phase="compile"), "implementation", "n"),
        caption="Seconds to compile, once for each length",
    )
missing = kernels[kernels["status"] != "ok"]
figures.table(
    missing.assign(n=missing["n"].astype("object"))[["implementation", "n", "reason"]].fillna("any"),
    caption="Not available here",
)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
sentences = []
if has_original:
    sentences.append(
        f"To continue a prompt of {prompt:,} tokens by {settings['new_tokens']} takes the original "
        f"{shown('relative_time', phase='generate', n=prompt, implementation='original')} times as long as ours: it reads the "
        f"text once a token, ours once."
    )
most_memory = settings["memory"][-1]
added = {name: result.value("resident_peak", n=most_memory, implementation=name) for name in IMPLEMENTATIONS}
sentences.append(
    f"Reading {most_memory:,} tokens adds {figures.number(added['original'])} MB to the original's process and "
    f"{figures.number(added['bsbr'])} MB to ours."
)
least = result.select("future_influence", implementation="original")
least = least[least["position"].notna()]["value"].min()
sentences.append(
    f"The influence of the future is {most('bsbr')} for ours and {most('standard')} for standard attention wherever it was "
    f"tried, to the last bit, since no later token takes part in a token's arithmetic. In the original no earlier output "
    f"stays as it was: the block of positions that moved least moved by {figures.number(least)}. Within the chunk of the "
    f"change its mask shows a token the later ones, and the chunks before it retrieve the changed ones."
)
sentences.append(
    "Speed and memory do not make up for that: the two do not compute the same thing, and no number here says how well "
    "the original would predict if it could not look ahead."
)
figures.say("\n\n".join(sentences))

# %% [markdown]
# ## Limits and exercises
#
# - The weights are random. That there is an influence is a matter of the arithmetic; how large it is would be another
#   number with trained weights.
# - Resident memory holds what the memory allocator keeps for later, so small lengths say little.
# - Read the original's mask in its source, `_create_masks`: which one word would have to change for a token to see the past
#   of its chunk?
