# %% [markdown]
# # The original and other implementations
#
# A package called `bsbr` exists already: the implementation that the documents under test describe. How does it compare
# with this one, and with the fused kernels that a user might reach for instead?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## Method
#
# The original is the Python package `bsbr` in version `0.1.1`, unaltered. It has one model, BSBR, and no standard
# attention to be compared with; so it is held against standard attention in the backbone of this project, with a fused
# kernel and without one (`standard_unfused`), which stores its matrix of scores. All models have the same sizes, data
# type and threads, and run in the same process. The documents name two sizes, $512 \times 4 \times 8$ with feed-forward
# layers of $2048$ in version `0.1.1` and $256 \times 2 \times 4$ in version `0.1.2`, so there are both. Measured are:
#
# - **parameters**: the trainable numbers of each model;
# - **time**: reading $n$ tokens (*prefill*), and continuing a prompt (*generate*), all models in turn on one timer. The
#   C library is told to keep freed memory, as on the page [](inference_time);
# - **memory of tensors**: the most bytes that tensors hold at any one moment of reading (*inference*) and of a pass
#   with gradients (*training*); [](memory) has what is meant by both;
# - **resident memory**: what a fresh process adds to its resident memory while it reads $n$ tokens;
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
import functools
import importlib.util
from collections.abc import Callable

import pandas as pd
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bsbr import sources, stats
from bsbr.attention import bsbr as block_retrieval
from bsbr.attention import sliding_window, standard
from bsbr.measure import machine, memory, speed
from bsbr.store import Sweep, row
from bsbr.studies import original, passes, scaling, tasks

MAIN, LARGE = "256x2x4", "512x4x8"
SIZES = {
    MAIN: {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512, "chunk_size": 128},
    LARGE: {
        "vocab_size": 10_000,
        "hidden_dim": 512,
        "num_layers": 4,
        "num_heads": 8,
        "ff_dim": 2048,
        "chunk_size": 128,
    },
}
ORIGINAL, UNFUSED = passes.ORIGINAL, passes.UNFUSED
MODELS = [ORIGINAL, "bsbr", "standard", UNFUSED]
PROFILES = {
    "tiny": {
        "lengths": {MAIN: [64, 128, 256], LARGE: [64]}, "prompts": {MAIN: [64]}, "new_tokens": 4,
        "read": {MAIN: [64, 128, 256]}, "trained": {MAIN: [64, 128, 256]}, "resident": {MAIN: [256]}, "influence": [(256, 200)], "kernels": [256],
        "seconds": 0.1, "min_rounds": 7, "longest_call": 5, "longest_compile": 0, "ranges": [(64, 256)],
    },
    "quick": {
        "lengths": {MAIN: [256, 512, 1024], LARGE: []}, "prompts": {MAIN: [256]}, "new_tokens": 16,
        "read": {MAIN: [256, 512, 1024]}, "trained": {MAIN: [256, 512, 1024]}, "resident": {MAIN: [1024]},
        "influence": [(512, 200), (512, 384)], "kernels": [1024], "seconds": 1,
        "min_rounds": stats.METHODS["order statistics"].least, "longest_call": 5, "longest_compile": 0,
        "ranges": [(256, 1024)],
    },
    "full": {
        "lengths": {size: [64 * 2**i for i in range(7)] for size in SIZES},
        "prompts": {MAIN: [256, 1024], LARGE: [1024]}, "new_tokens": 16,
        "read": {size: [64 * 2**i for i in range(7)] for size in SIZES},
        "trained": {size: [64 * 2**i for i in range(6)] for size in SIZES},
        "resident": {MAIN: [1024, 2048, 4096], LARGE: [1024, 4096]},
        "influence": [(512, 100), (512, 200), (512, 384), (512, 500)], "kernels": [1024, 4096, 8192], "seconds": 4,
        "min_rounds": 7, "longest_call": 30, "longest_compile": 60, "ranges": [(64, 1024), (64, 2048), (1024, 4096)],
    },
}  # fmt: skip
settings = PROFILES[profile]
device = machine.device(target)
threads = torch.get_num_threads()
machine.keep_freed_memory()
MB = 1e6

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
@functools.lru_cache(maxsize=5)
def model_of(size: str, name: str) -> torch.nn.Module:
    return passes.model_of(name, **SIZES[size]).to(device).eval()


def random_ids(n: int) -> torch.Tensor:
    return torch.randint(SIZES[MAIN]["vocab_size"], (1, n), generator=torch.Generator().manual_seed(n)).to(device)


def timed(todo: dict[str, speed.Task | Callable[[], object]]) -> list[dict]:
    """Times, how many times as fast as standard attention each is, and how many times as long as bsbr it takes."""
    samples = speed.interleave(todo, seconds=settings["seconds"], min_rounds=settings["min_rounds"])
    return tasks.timed_rows(samples, "implementation", baseline="standard", control="bsbr")


def prefill(size: str, phase: str, n: int) -> list[dict]:
    """A pass over n tokens by each model in turn; linear attention too, as the documents speak of it."""
    rows, todo = [], {}
    for name in [*MODELS, "linear"]:

        def make(length: int, name: str = name) -> speed.Task:
            return tasks.prefill_task(model_of(size, name), random_ids(n)[:, :length], fused=name != UNFUSED)

        found = tasks.ready(make, n, settings["longest_call"])
        if isinstance(found, tasks.Refused):
            rows.append(found.row("time", implementation=name))
        else:
            todo[name] = found
    return rows + timed(todo)


def generate(size: str, phase: str, n: int) -> list[dict]:
    """A prompt of n tokens and its continuation by each model in turn."""
    models = {name: model_of(size, name) for name in (ORIGINAL, "bsbr", "standard")}
    return timed(
        {
            name: functools.partial(model.generate, random_ids(n), settings["new_tokens"])
            for name, model in models.items()
        }
    )


def parameters(size: str) -> list[dict]:
    found = {name: sum(p.numel() for p in model_of(size, name).parameters()) for name in (ORIGINAL, "bsbr", "standard")}
    rows = []
    for name, count in found.items():
        rows.append(row("parameters", count, implementation=name))
        if name != "standard":
            rows.append(row("parameters_relative", count / found["standard"], implementation=name))
    return rows


def held(size: str, phase: str, n: int) -> list[dict]:
    """The peak of one pass, what it is made of, and standard attention's peak over it."""
    rows, peaks = [], {}
    for name in MODELS:
        given = passes.make(phase, name, n, device=device, **SIZES[size])
        if phase != "inference":
            passes.with_gradients(given.model)
        peaks[name] = memory.tensors(given.run, given.model, given.ids)
        rows.append(row("peak_memory", peaks[name].total / MB, implementation=name))
        for part in ("gradients", "activations") if phase != "inference" else ("activations",):
            rows.append(row("memory_part", peaks[name].parts[part] / MB, implementation=name, part=part))
    for name in (ORIGINAL, "bsbr", UNFUSED):
        rows.append(row("memory_relative", peaks["standard"].total / peaks[name].total, implementation=name))
    return rows


def resident(size: str, phase: str, n: int) -> list[dict]:
    """What reading n tokens adds to a process: a new one for each."""
    options = SIZES[size]
    peaks = {name: memory.peak(passes.fresh, "inference", name, n, threads, "kept", options) for name in MODELS}
    return [row("resident_peak", peak.added / MB, samples=1, implementation=name) for name, peak in peaks.items()]


def influence(phase: str, n: int, change_from: int) -> list[dict]:
    """The largest change before the first replaced token, over all positions and over each block of them."""
    rows, block = [], 8
    for name in (ORIGINAL, "bsbr", "standard"):
        encode = functools.partial(encoded, model_of(MAIN, name))
        found = original.future_influence(encode, SIZES[MAIN]["vocab_size"], n, change_from)
        rows.append(row("future_influence", max(found[:change_from]), implementation=name))
        for start in range(0, change_from, block):
            most = max(found[start : min(start + block, change_from)])
            rows.append(row("future_influence", most, implementation=name, position=start))
    return rows


@torch.inference_mode()
def encoded(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.encode(ids.to(device))


# %% [markdown]
# Attention alone has the shape that it has in the smaller of the two models.


# %% tags=["hide-input"]
def kernels(phase: str, n: int) -> list[dict]:
    sizes = SIZES[MAIN]
    heads, chunk = sizes["num_heads"], sizes["chunk_size"]
    draw = torch.Generator().manual_seed(n)
    q, k, v = torch.randn(3, 1, heads, n, sizes["hidden_dim"] // heads, generator=draw).to(device)
    meta = torch.randn(2, 1, heads, -(-n // chunk), q.shape[-1], generator=draw).to(device)
    calls = {
        "standard": lambda: standard.attend(q, k, v),
        "bsbr": lambda: block_retrieval.attend(q, k, v, *meta, chunk),
        "sliding_window": lambda: sliding_window.attend(q, k, v, chunk),
    }
    todo = {name: torch.inference_mode()(call) for name, call in calls.items()}
    rows = []
    for name, mask in FLEX_MASKS.items():
        try:
            todo[name], seconds = compile_flex(mask, q, k, v)
        except speed.TooLongError as error:
            rows.append(row("time", None, status="too_long", reason=str(error), implementation=name))
        except speed.CompileError as error:
            rows.append(row("time", None, status="not_available", reason=str(error), implementation=name))
        else:
            rows.append(row("time", seconds, samples=1, implementation=name, phase="compile"))
    return rows + timed(todo)


def within_window(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query >= key) & (query - key < WINDOW)


def within_chunk(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (query >= key) & (query // WINDOW == key // WINDOW)


WINDOW = SIZES[MAIN]["chunk_size"]
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
def cells_of(phase: str, lengths: dict[str, list[int]]) -> list[dict]:
    return [{"size": size, "phase": phase, "n": n} for size, all_n in lengths.items() for n in all_n]


sweep = Sweep(
    "benchmarks/peers",
    target=target,
    profile=profile,
    parameters={"dtype": "float32", "batch": 1, "original": sources.read_pin("bsbr").version},
    sources=[sources.pin_path("bsbr")],
)
influenced = [{"phase": "influence", "n": n, "change_from": at} for n, at in settings["influence"]]
tables = [
    sweep.measure([{"size": size} for size in SIZES], parameters, machine_bound=False),
    sweep.measure(influenced, influence, machine_bound=False),
    sweep.measure(
        [*cells_of("inference", settings["read"]), *cells_of("training", settings["trained"])],
        held,
        machine_bound=False,
    ),
    sweep.measure(cells_of("prefill", settings["lengths"]), prefill, machine_bound=True),
    sweep.measure(cells_of("generate", settings["prompts"]), generate, machine_bound=True),
    sweep.measure(cells_of("prefill", settings["resident"]), resident, machine_bound=True),
    sweep.measure([{"phase": "attention", "n": n} for n in settings["kernels"]], kernels, machine_bound=True),
]
measured = pd.concat(tables, ignore_index=True)

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


derived = [absent(name, module) for name, module in GPU_ONLY.items()]
for size in SIZES:
    for name in [*MODELS, "linear"]:
        for cost, phase in [
            ("time", "prefill"),
            ("resident_peak", "prefill"),
            ("peak_memory", "inference"),
            ("peak_memory", "training"),
        ]:
            where = {"size": size, "phase": phase, "implementation": name}
            derived += scaling.exponents(measured, cost, where, settings["ranges"])
            if cost == "time":
                derived += scaling.slopes(measured, cost, where)
result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
lengths, prompt = settings["lengths"][MAIN], settings["prompts"][MAIN][-1]
longest = lengths[-1]
influenced_n, changed_from = settings["influence"][len(settings["influence"]) // 2]
LABELS = {ORIGINAL: "original", "bsbr": "ours", "standard": "standard", UNFUSED: "standard, unfused"}
ONE = {"size": MAIN, "phase": "prefill"}


def shown(metric: str, digits: int = 2, **factors: object) -> str:
    found = result.select(metric, **factors).iloc[0]
    if found["status"] != "ok":
        return "–"
    return figures.interval(found["value"], found["low"], found["high"], digits)


def growth(
    name: str, span: tuple[int, int] = settings["ranges"][-1], metric: str = "exponent", size: str = MAIN
) -> str:
    found = result.select(metric, implementation=name, size=size, n_from=span[0], n_to=span[1])
    return f"$n^{{{found['value'].iloc[0]:.2f}}}$" if len(found) else "–"


def influence_of(name: str) -> pd.DataFrame:
    return result.select("future_influence", implementation=name, position=None)


def most(name: str) -> str:
    return figures.number(influence_of(name)["value"].max())


def labelled(metric: str, **factors: object) -> pd.DataFrame:
    rows = result.select(metric, **factors)
    return rows.assign(model=rows["implementation"].map(lambda name: LABELS.get(name, name)))


fit_from, fit_to = settings["ranges"][-1]
times = labelled("time", **ONE)
figures.say(
    f"**The original sees the future: replacing later tokens moved its earlier outputs by up to {most(ORIGINAL)}, those "
    f"of this implementation by {most('bsbr')}. Reading {longest:,} tokens takes it "
    f"{shown('relative_time', **ONE, n=longest, implementation=ORIGINAL)} times as long as ours.** From {fit_from:,} to "
    f"{fit_to:,} tokens its time grows as {growth(ORIGINAL)}, that of ours as {growth('bsbr')}. It is "
    f"{shown('speedup', **ONE, n=longest, implementation=ORIGINAL)} times as fast as standard attention with a fused "
    f"kernel; standard attention without one is {shown('speedup', **ONE, n=longest, implementation=UNFUSED)} times as fast "
    f"as with it. "
    f"(Size {MAIN}.)",
    answer,
)
figures.say(claims.line(result), claimed)
chart = figures.lines(
    times, "n", group="model", title=f"Time to read n tokens, size {MAIN}", x_title="n (tokens)", log_x=True, log_y=True
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
curves = labelled("future_influence", change_from=changed_from, n=influenced_n)
curves = curves[curves["position"].notna()]
chart = figures.lines(
    curves, "position", group="model", title="Influence of later tokens on earlier outputs",
    x_title="position of the output (tokens)", y_title="largest change of the output",
)  # fmt: skip
chart.add_vline(x=changed_from, line={"color": "#7F7F7F", "dash": "dot"})
chart.update_xaxes(range=[0, influenced_n])
figures.show(chart, "influence")
table = labelled("future_influence", position=None)
table = table.assign(place=[f"from {a} of {n}" for a, n in zip(table["change_from"], table["n"], strict=True)])
figures.table(
    figures.pivot(table, "place", "model").rename(columns={"place": "tokens replaced"}),
    caption="Largest change of any output before the first replaced token",
)
figures.show_provenance(result)

# %% [markdown]
# ## The original is quadratic in time
#
# Inside its chunks the original masks a full matrix of scores, all tokens against all, and keeps one entry in a chunk's
# width. So it does the work of full attention without a fused kernel. It also has no decoding state: for each new token
# it reads the whole text again.

# %% tags=["hide-input"]
CAPTIONS = {
    "prefill": "Seconds to read n tokens",
    "generate": f"Seconds to read a prompt of n and to continue it by {settings['new_tokens']} tokens",
}
for size in SIZES:
    for phase, caption in CAPTIONS.items():
        if len(rows := labelled("time", size=size, phase=phase)):
            figures.table(
                figures.pivot(rows, "n", "model"), caption=f"{caption}, size {size}, median and 95 % interval"
            )
            figures.table(
                figures.pivot(labelled("speedup", size=size, phase=phase), "n", "model", digits=2),
                caption=f"Times as fast as standard attention with a fused kernel, same round, size {size}",
            )
figures.table(
    figures.pivot(labelled("relative_time", **ONE), "n", "model", digits=2),
    caption=f"Times as long as ours takes to read n tokens, same round, size {MAIN}",
)
fits = labelled("exponent")
fits = fits.assign(
    range=[
        f"{fit.size_}, n = {fit.n_from:,} … {fit.n_to:,}" for fit in fits.rename(columns={"size": "size_"}).itertuples()
    ]
)
figures.table(
    figures.pivot(fits, "model", "range", digits=3), caption="Exponent of the time to read, with 95 % interval"
)
figures.show_provenance(result)

# %% [markdown]
# ## And in memory
#
# The matrix of scores shows in the bytes that tensors hold, counted, and in what a process adds to its resident memory,
# observed.

# %% tags=["hide-input"]
chart = figures.lines(
    labelled("peak_memory", size=MAIN, phase="inference"), "n", group="model",
    title=f"Memory that tensors hold to read n tokens, size {MAIN}", x_title="n (tokens)", log_x=True, log_y=True,
)  # fmt: skip
figures.show(figures.axis_toggle(chart), "memory")
for size in SIZES:
    for phase in ("inference", "training"):
        if len(rows := labelled("peak_memory", size=size, phase=phase)):
            figures.table(
                figures.pivot(rows, "n", "model"), caption=f"Peak memory of tensors, {phase}, size {size}, MB"
            )
    if len(rows := labelled("resident_peak", size=size)):
        figures.table(
            figures.pivot(rows, "n", "model"), caption=f"Resident memory added at the peak of reading, size {size}, MB"
        )
fits = labelled("memory_exponent")
fits = fits.assign(
    range=[
        f"{fit.size_}, {fit.phase}, n = {fit.n_from:,} … {fit.n_to:,}"
        for fit in fits.rename(columns={"size": "size_"}).itertuples()
    ]
)
figures.table(figures.pivot(fits, "model", "range", digits=3), caption="Exponent of the peak memory of tensors")
figures.show_provenance(result)

# %% [markdown]
# ## Parameters

# %% tags=["hide-input"]
figures.table(figures.pivot(labelled("parameters"), "model", "size"), caption="Trainable numbers, by size")
figures.table(
    figures.pivot(labelled("parameters_relative"), "model", "size", digits=4), caption="Relative to standard attention"
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
figures.table(
    figures.pivot(result.select("speedup", phase="attention"), "implementation", "n", digits=2),
    caption="Times as fast as standard attention",
)
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
most_read, most_trained = settings["read"][MAIN][-1], settings["trained"][MAIN][-1]
peak = {
    (phase, name): result.value("peak_memory", size=MAIN, phase=phase, n=n, implementation=name)
    for phase, n in (("inference", most_read), ("training", most_trained))
    for name in MODELS
}
resident_n = settings["resident"][MAIN][-1]
added = {name: result.value("resident_peak", size=MAIN, n=resident_n, implementation=name) for name in MODELS}
least = result.select("future_influence", implementation=ORIGINAL)
least = least[least["position"].notna()]["value"].min()
sentences = [
    f"To continue a prompt of {prompt:,} tokens by {settings['new_tokens']} takes the original "
    f"{shown('relative_time', size=MAIN, phase='generate', n=prompt, implementation=ORIGINAL)} times as long as ours: it "
    f"reads the text once per token, ours once.",
    f"To read {most_read:,} tokens the original's tensors hold {figures.number(peak['inference', ORIGINAL])} MB at "
    f"their peak, ours {figures.number(peak['inference', 'bsbr'])}, standard attention "
    f"{figures.number(peak['inference', 'standard'])} with a fused kernel and "
    f"{figures.number(peak['inference', UNFUSED])} without; to train on {most_trained:,} it is "
    f"{figures.number(peak['training', ORIGINAL])}, {figures.number(peak['training', 'bsbr'])}, "
    f"{figures.number(peak['training', 'standard'])} and {figures.number(peak['training', UNFUSED])} MB. Reading "
    f"{resident_n:,} tokens adds {figures.number(added[ORIGINAL])} MB to the original's process and "
    f"{figures.number(added['bsbr'])} MB to ours.",
    f"The influence of the future is {most('bsbr')} for ours and {most('standard')} for standard attention wherever it "
    f"was tried, to the last bit, since no later token takes part in a token's arithmetic. In the original no earlier "
    f"output stays as it was: the block of positions that moved least moved by {figures.number(least)}. Within the chunk "
    f"of the change its mask shows a token the later ones, and the chunks before it retrieve the changed ones.",
    "Speed and memory do not make up for that: the two do not compute the same thing, and no number here says how well "
    "the original would predict if it could not look ahead.",
]
if settings["lengths"][LARGE][2:]:
    large_n = settings["lengths"][LARGE][-1]
    where = {"size": LARGE, "phase": "prefill", "n": large_n, "implementation": ORIGINAL}
    sentences.insert(
        0,
        f"At size {LARGE} the original is {shown('speedup', **where)} times as fast as standard attention for "
        f"{large_n:,} tokens, and from {fit_from:,} to {fit_to:,} its time grows as {growth(ORIGINAL, size=LARGE)}.",
    )
figures.say("\n\n".join(sentences))

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - The weights are random. That there is an influence is a matter of the arithmetic; how large it is would be another
#   number with trained weights.
# - Resident memory holds what the memory allocator keeps for later, so small lengths say little.
# - The original has a table of positions that ends, so no longer text can be read with it.
# - Read the original's mask in its source, `_create_masks`: which one word would have to change for a token to see the past
#   of its chunk?
