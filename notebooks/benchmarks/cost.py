# %% [markdown]
# # What it would cost
#
# A large model, a long text, several devices that share it: how much would each of them compute, send and hold?
#
# **Predicted, not measured.** No GPU was measured in this project, and no number about one on this page is more than a
# prediction. It comes of counts and formulas that first had to find what this book measured in small; where they do not,
# the page says so below.

# %% tags=["remove-input"]
from bsbr.show import figures

answer, main_chart, origin = figures.reserve("answer"), figures.reserve("chart"), figures.reserve("source")

# %% [markdown]
# ## Method
#
# **One device's slice** of the text runs through the real model on tensors that have shapes and no numbers. That gives each
# operation PyTorch would start, with its floating-point operations and the bytes it reads and writes, and the most that
# tensors hold at any moment. **What a slice has to do with the slices before it**, and what it is sent of them, comes from sizes:
# `standard` is shared out by Ring Attention {cite:p}`liu2023`, `bsbr` as [](../../book/parallel.md) does it, and a delta rule
# sends what a slice does to any state before it, two matrices a head. **Time** follows the roofline {cite:p}`williams2009`: an
# operation takes as long as its arithmetic or as its bytes, whichever is more, and the network as long as its busiest link.
#
# The large case has the sizes of a published model {cite:p}`biderman2023`, in this project's backbone. `gated_deltanet`
# {cite:p}`yang2025` differs from `deltanet` by a decay, which adds no matrix to what is sent.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import pandas as pd

from bsbr import MECHANISMS, ModelConfig
from bsbr.show.figures import number
from bsbr.store import ResultError, Sweep, load, row
from bsbr.store.table import published_folder
from bsbr.studies import cost, cost_checks
from bsbr.studies.cost import DEVICES, LINKS, SIZES_1_4B

RANKS, DEVICE = 8, DEVICES["H100"]
VARIANTS = {
    "standard, in a ring": ("standard", {}),
    "bsbr, chunks of 128": ("bsbr", {"chunk_size": 128}),
    "bsbr, chunks of 512": ("bsbr", {"chunk_size": 512}),
    "deltanet": ("deltanet", {}),
    "gated_deltanet": ("gated_deltanet", {}),
}
CHECKS = {  # what is predicted again: the page that measured it
    "bytes sent": "benchmarks/sequence_parallel",
    "operations": "benchmarks/parameters_and_flops",
    "memory": "benchmarks/memory",
    "seconds": "benchmarks/inference_time",
}
WORK = {"training": "training step", "prefill": "reading of the text"}
PROFILES = {
    "tiny": {"n": 2**12, "lengths": [2**12], "sizes": {"num_layers": 2, "hidden_dim": 128}, "checked": [512],
             "mechanisms": ["standard", "bsbr"], "checks": ["bytes sent", "operations"]},
    "quick": {"n": 2**17, "lengths": [2**13, 2**17], "sizes": {}, "checked": [512, 4096],
              "mechanisms": ["standard", "bsbr", "deltanet"], "checks": list(CHECKS)},
    "full": {"n": 2**17, "lengths": [2**power for power in range(13, 21)], "sizes": {}, "checked": [512, 4096],
             "mechanisms": list(MECHANISMS), "checks": list(CHECKS)},
}  # fmt: skip
settings = PROFILES[profile]
sizes = SIZES_1_4B | settings["sizes"]
N, lengths = settings["n"], settings["lengths"]
inputs = [
    ("peak of matrix products, bfloat16", f"{number(DEVICE.flops / 1e12)} TFLOP/s", "maker"),
    ("share of it that matrix products attain", f"{number(100 * DEVICE.attained, 2)} %", "assumed"),
    ("share of it that attention attains", f"{number(100 * DEVICE.attention, 2)} %", "assumed"),
    ("memory", f"{number(DEVICE.memory / 1e9, 2)} GB", "maker"),
    ("bandwidth of memory", f"{number(DEVICE.bandwidth / 1e12)} TB/s", "maker"),
    *((f"link, {name}", f"{number(link.bandwidth / 1e9)} GB/s each way", "maker") for name, link in LINKS.items()),
    *((f"latency, {name}", f"{number(link.latency * 1e6, 2)} µs", "assumed") for name, link in LINKS.items()),
    *((name, f"{value:,}", "Pythia-1.4B") for name, value in sizes.items()),
]
figures.table(
    pd.DataFrame(inputs, columns=["", "value", "from"]), caption=f"What goes in: {DEVICE.name}, {RANKS} of them"
)

# %% [markdown]
# ## Measuring
#
# Nothing is timed in these cells and nothing runs on a GPU: they count.


# %% tags=["hide-input"]
def predict(variant: str, work: str, recompute: str, n: int) -> list[dict]:
    """What one step costs the busiest device, with each link."""
    mechanism, options = VARIANTS[variant]
    if mechanism not in MECHANISMS:
        reason = f"this version has no mechanism {mechanism}"
        return [row("predicted_flops", None, status="not_available", reason=reason)]
    config = ModelConfig(mechanism, **sizes, **options)
    how = {"ranks": RANKS, "work": work, "recompute": recompute == "on"}
    found = {name: cost.predict(config, n, DEVICE, link, **how) for name, link in LINKS.items()}
    one = next(iter(found.values()))
    rows = [row("predicted_flops", one.flops), row("predicted_bytes", one.link_bytes / 1e9)]
    rows.append(row("predicted_time", one.arithmetic, part="arithmetic"))
    rows += [row("predicted_time", each.communication, part=name) for name, each in found.items()]
    return rows + [row("predicted_memory", size / 1e9, part=part) for part, size in one.memory.items()]


def check(what: str) -> list[dict]:
    """The error of each prediction of what was measured."""
    try:
        table = load(CHECKS[what]).table
    except ResultError as error:
        return [row("prediction_error", None, status="not_available", reason=str(error), what=what)]
    names, checked = settings["mechanisms"], settings["checked"]
    if what == "bytes sent":
        frame = cost_checks.sent(table)
    elif what == "operations":
        frame = cost_checks.counted(table, names, checked)
    elif what == "memory":
        frame = cost_checks.held(table, names, checked)
    else:
        frame = cost_checks.timed(table, names)
    columns = [name for name in ("case", "mechanism", "size", "n", "inside") if name in frame]
    return [
        row("prediction_error", error, **about)
        for error, about in zip(frame["error"], frame[columns].to_dict("records"), strict=True)
    ]


# %% tags=["hide-input", "remove-output"]
tables = [published_folder("cpu", "full") / f"{CHECKS[what]}.csv" for what in settings["checks"]]
sweep = Sweep(
    "benchmarks/cost",
    target=target,
    profile=profile,
    parameters={"dtype": "bfloat16", "ranks": RANKS, "device": repr(DEVICE), "links": repr(LINKS), "sizes": sizes},
    sources=[path for path in tables if path.exists()],
)
cells = [
    *({"variant": v, "work": "training", "recompute": "on", "n": n} for v in VARIANTS for n in lengths),
    *({"variant": v, "work": work, "recompute": "off", "n": N} for v in VARIANTS for work in WORK),
]
predicted = sweep.measure(cells, predict, machine_bound=False)
compared = sweep.measure([{"what": what} for what in settings["checks"]], check, machine_bound=False)
result = sweep.publish(pd.concat([predicted, compared], ignore_index=True))

# %% tags=["remove-input"]
there = [v for v in VARIANTS if len(result.select("predicted_bytes", variant=v))]
absent = [v for v in VARIANTS if v not in there]
SLOW = LINKS["NDR"].name
TRAINING = {"work": "training", "recompute": "on"}
READING = {"work": "prefill", "recompute": "off"}


def value(metric: str, variant: str, n: int, how: dict, **part: str) -> float:
    return result.value(f"predicted_{metric}", variant=variant, n=n, **how, **part)


def memory_of(variant: str, n: int, how: dict) -> float:
    return result.select("predicted_memory", variant=variant, n=n, **how)["value"].sum()


def balance(variant: str, n: int, how: dict, link: str) -> float:
    """Seconds of the network over seconds of arithmetic."""
    return value("time", variant, n, how, part=link) / value("time", variant, n, how, part="arithmetic")


def limit(variant: str, n: int, how: dict, link: str = "NDR") -> str:
    return "network" if balance(variant, n, how, link) > 1 else "arithmetic"


def length(n: int) -> str:
    return f"{n // 2**20}M" if n >= 2**20 else f"{n // 2**10}k"


def where_network(variant: str) -> str:
    found = [length(n) for n in lengths if limit(variant, n, TRAINING) == "network"]
    return "nowhere" if not found else "everywhere" if len(found) == len(lengths) else f"at {', '.join(found)} tokens"


def in_words(variant: str) -> str:
    spent, sent = value("time", variant, N, TRAINING, part="arithmetic"), value("bytes", variant, N, TRAINING)
    return f"{variant}: {number(spent, 2)} s of arithmetic, {number(sent, 2)} GB over the busiest link"


parameters = result.value("predicted_memory", variant=there[0], n=N, part="parameters", **TRAINING) / 2
limits = "; ".join(f"{variant}, {where_network(variant)}" for variant in there)
each = "\n".join(f"- {in_words(variant)}" for variant in there)
span = f"from {length(lengths[0])} to {length(lengths[-1])} tokens"
figures.say(
    f"**Predicted for one training step of {number(parameters)} billion parameters on {N:,} tokens, shared by {RANKS} of "
    f"{DEVICE.name}**, each:\n\n{each}\n\nOver {SLOW}, the network is the limit ({span}): {limits}.",
    answer,
)
chart = figures.figure(
    f"Network against arithmetic in training, {SLOW}", "n (tokens)", "seconds of network / of arithmetic", log_x=True,
    log_y=True,
)  # fmt: skip
paint = figures.colours([VARIANTS[variant][0] for variant in there])
for variant in there:
    mechanism = VARIANTS[variant][0]
    colour = figures.PALETTE[-1] if variant == "bsbr, chunks of 512" else paint[mechanism]
    ratios = [float(f"{balance(variant, n, TRAINING, 'NDR'):.3g}") for n in lengths]
    chart.add_scatter(x=lengths, y=ratios, name=variant, mode="lines+markers", line={"color": colour})
chart.update_xaxes(tickvals=lengths, ticktext=[length(n) for n in lengths])
chart.add_hline(y=1, line={"color": "#7F7F7F", "width": 1})
at_n = ", ".join(f"{variant} {number(balance(variant, N, TRAINING, 'NDR'), 2)}" for variant in there)
figures.show(
    chart,
    "balance",
    main_chart,
    finding=f"Predicted. Above the grey line the network is the limit. At {length(N)} tokens: {at_n}.",
    first=there,
)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## One step, one device
#
# All numbers are the busiest device's: of standard attention and of `bsbr` that is the last one, whose tokens have most before
# them. If everything that can overlap does, the step takes as long as the larger of arithmetic and network; if nothing
# does, as long as both together. What is kept for the backward pass is each layer's input; the rest is computed again.


# %% tags=["remove-input"]
def lines(how: dict) -> pd.DataFrame:
    found = {}
    for variant in VARIANTS:
        if variant in absent:
            found[variant] = {"operations (TFLOP)": "not there"}
            continue
        held = memory_of(variant, N, how)
        network = {f"{name} (s)": number(value("time", variant, N, how, part=name), 2) for name in LINKS}
        found[variant] = {
            "operations (TFLOP)": number(value("flops", variant, N, how) / 1e12),
            "arithmetic (s)": number(value("time", variant, N, how, part="arithmetic"), 2),
            "busiest link (GB)": number(value("bytes", variant, N, how)),
            **network,
            **{f"limit, {name}": limit(variant, N, how, name) for name in LINKS},
            "memory (GB)": number(held) + ("" if held <= DEVICE.memory / 1e9 else ", too much"),
        }
    return pd.DataFrame(found).T.fillna("–").rename_axis("variant").reset_index()


figures.table(lines(TRAINING), caption=f"Predicted: one training step on {N:,} tokens")
figures.table(lines(READING), caption=f"Predicted: one reading of {N:,} tokens")
if absent:
    figures.say(f"Not there: this version has no mechanism {', '.join(VARIANTS[variant][0] for variant in absent)}.")
figures.show_provenance(result)

# %% [markdown]
# ## What memory holds


# %% tags=["remove-input"]
def parts(how: dict) -> pd.DataFrame:
    rows = result.select("predicted_memory", n=N, **how)
    wide = rows.pivot(index="part", columns="variant", values="value").reindex(index=rows["part"].unique())[there]
    wide = wide.drop(index="inputs")  # token ids: kilobytes
    return pd.concat([wide, wide.sum().rename("together").to_frame().T]).rename_axis("part").reset_index()


KEPT = {"work": "training", "recompute": "off"}
figures.table(parts(TRAINING), caption="Predicted: GB of a device in training, layers computed again")
figures.table(parts(KEPT), caption="Predicted: GB of a device in training, everything kept")
figures.table(parts(READING), caption="Predicted: GB of a device in reading")
figures.show_provenance(result)

# %% [markdown]
# *received* is what a device holds of other slices: of standard attention some blocks of keys and values, of `bsbr` the states of all chunks
# before, which is why everything kept is so much. *optimizer* is a copy of the weights and two moments, in float32.
#
# ## By length


# %% tags=["remove-input"]
def at(variant: str, n: int) -> str:
    times = [number(value("time", variant, n, TRAINING, part=part), 2) for part in ("arithmetic", "NDR")]
    room = "" if memory_of(variant, n, TRAINING) <= DEVICE.memory / 1e9 else ", does not fit"
    return f"{times[0]} / {times[1]}: {limit(variant, n, TRAINING)}{room}"


by_length = pd.DataFrame({length(n): {variant: at(variant, n) for variant in there} for n in lengths}).T
figures.table(
    by_length.rename_axis("n").reset_index(),
    caption=f"Predicted: a training step, seconds of arithmetic / of {SLOW}, and the limit of both",
)
figures.show_provenance(result)

# %% [markdown]
# (cost-checks)=
#
# ## Does it find what was measured?
#
# The same code is asked for what this book measured on one small machine without a GPU. Bytes, operations and memory come from sizes alone.
# Seconds need four rates of that machine: operations a second of matrix products and of the attention kernel, bytes a second, and
# seconds to start an operation. They are fitted to the times of short texts, apart for each of the two sizes of model. The table has only
# what was *not* fitted: longer texts.

# %% tags=["remove-input"]
CLOSE = 20
errors = result.select("prediction_error").dropna(subset="value")
off = errors["value"].abs()
summary = pd.DataFrame(
    {
        "predicted": what,
        "cases": len(found),
        f"within {CLOSE} %": int((found["value"].abs() <= CLOSE).sum()),
        "to 9 digits": int((found["value"].abs() < 1e-7).sum()),
        "median error (%)": number(found["value"].abs().median(), 2),
        "worst (%)": number(found.loc[found["value"].abs().idxmax(), "value"], 2),
        "worst case": found.loc[found["value"].abs().idxmax(), "case"] if found["value"].abs().max() > 1e-7 else "–",
    }
    for what, found in errors.groupby("what", sort=False)
)
figures.table(summary, caption="Predictions beside what was measured")
seconds = errors[errors["what"] == "seconds"]
if len(seconds):
    for size, found in seconds.groupby("size", sort=False):
        wide = found.astype({"n": int}).pivot(index="mechanism", columns="n", values="value")
        wide = wide.reindex(found["mechanism"].unique()).map(lambda error: number(error, 2))
        figures.table(
            wide.rename(columns=lambda n: f"n = {n:,}").rename_axis(columns=None).reset_index(),
            caption=f"Seconds to read n tokens, size {size}: error of the prediction in %; fitted up to n = "
            f"{cost_checks.FITTED[str(size)]:,}",
        )
    missed = seconds[seconds["value"].abs() > CLOSE]
    noise = load("benchmarks/inference_time").select("noise")["value"].max()
    short = int((missed["value"] < 0).sum())
    named = "; ".join(f"{r.case} ({number(r.value, 2)} %)" for r in missed.itertuples())
    figures.say(
        f"**{len(missed)} of {len(seconds)} predicted times are not within {CLOSE} %**: {named}. {short} of them are too short. "
        f"What a short text needs stays in the processor's cache, what a long one needs does not, and one rate of bytes, fitted to short texts, "
        f"cannot know that. Of all {len(seconds)}, {int(seconds['inside'].astype(bool).sum())} are inside the 95 % interval of what was measured. "
        f"The run itself was not steady: its control cell, timed three times, differed by up to {number(noise, 2)} %."
        if len(missed)
        else f"All {len(seconds)} predicted times are within {CLOSE} %."
    )
figures.show_provenance(result)

# %% [markdown]
# ## Your own case
#
# Other sizes, devices and networks are arguments; `Device` and `Link` are described in the [API reference](../../book/api.md#what-it-would-cost).

# %%
from bsbr.studies.cost import Link

mine = ModelConfig("bsbr", hidden_dim=1024, num_layers=12, num_heads=16, ff_dim=4096, chunk_size=256)
ethernet = Link("100 Gb/s Ethernet", bandwidth=12.5e9, latency=50e-6)
found = cost.predict(mine, 65_536, DEVICES["H100"], ethernet, ranks=4, work="training")
print(f"limit: {found.limit}; {found.overlapped:.2g} s if all overlaps, {found.in_turn:.2g} s if nothing does")
print(f"{found.link_bytes / 1e9:.2g} GB over the busiest link, {found.total_memory / 1e9:.2g} GB on a device")

# %% [markdown]
# ## What is assumed
#
# - **Rates.** Peak rates, memory and link are the maker's {cite:p}`nvidia2022`: matrix products without sparsity, which is half of what the
#   maker states with it, and half of the link, whose figure counts both directions. Between machines each device has a port of its own
#   {cite:p}`nvidia2024`. The share of the peak that is attained is an assumption, between what is reported for two
#   generations of attention kernels on this GPU {cite:p}`shah2024`. With a smaller share arithmetic takes longer, and the network is less of a limit.
# - **Numbers.** Weights, activations and gradients in bfloat16; AdamW keeps a copy of the weights and two moments in float32. Every device has
#   all weights, and all of this.
# - **Kernels.** Operations are those that PyTorch starts one by one. `bsbr` and the delta rule have many small ones, and would be faster
#   with kernels of their own; standard attention has its fused kernel.
# - **Slices** are of one length and in the order of the text, so the last device has most to read and the others wait for it. Striped
#   slices {cite:p}`brandon2023` share standard attention's work evenly; that is not counted here.
# - **Network.** All devices send at once, each over one link to a switch, at its full rate; each wait costs the latency. Ring Attention sends
#   keys and values again for the gradients, which then go home. What the forward pass sends is sent twice if layers are computed again. Gradients of weights are summed once a step, by a ring.
#
# ## What it does not model
#
# - Weights that are shared out too, pipelines, tensors cut over devices, several texts at once, dropout.
# - Networks of several levels, the traffic of others, collectives that do better than their busiest link.
# - Time between kernels, clocks that fall under load, memory lost in pieces.
# - Quality: which mechanism learns more from the same text is [another question](../../book/should.md).
