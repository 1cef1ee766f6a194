# %% [markdown]
# # Parameters and FLOPs
#
# How many numbers does each mechanism learn, how many floating-point operations does it spend on a text of $n$ tokens,
# and how does that grow with $n$?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document gives a count of parameters for seven mechanisms. Another gives FLOPs for three of them by length,
# and calls the growth linear for two and quadratic for standard attention. None of it depends on a machine: a count is
# a count, so here the documents can be held to their numbers as they stand.
#
# ## Method
#
# **What counts.** The floating-point operations of all matrix products in `model.encode`, one row of $n$ tokens up to
# the last hidden state; a multiplication and an addition are two. Under a causal mask the pairs of tokens that the mask
# lets through count, which is the work to be done, whatever a kernel spends on pairs that it then hides. Looking up
# embeddings, normalising and activating are left out, as is usual; so is the product with the vocabulary, which no
# document's model has.
#
# **Two passes.** Forward is the reading. Backward is the gradients of all weights from the sum of the outputs. Since
# the gradients of a product are two products of its size, backward is about twice forward; where a fused kernel makes
# the scores a second time it is more.
#
# **Counted and calculated.** The counter (`bsbr.measure.flops`) runs the real model on tensors that have shapes and no
# numbers, so sizes are no limit, and records every product. Layers are alike, so it counts one and multiplies. Beside it
# stands a formula in the sizes alone. Both have to say the same number in every counted cell; beyond the counted lengths
# the formula goes on alone.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
from collections import Counter

import pandas as pd
import torch

from bsbr import MECHANISMS, ModelConfig, TransformerLM, sources, stats
from bsbr.measure import flops
from bsbr.store import Sweep, row, select
from bsbr.studies import operations, passes, scaling

SIZES = {
    "512x4x8": {"vocab_size": 10_000, "hidden_dim": 512, "num_layers": 4, "num_heads": 8, "ff_dim": 2048},
    "256x2x4": {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
    "gpt2": {"vocab_size": 50_257, "hidden_dim": 768, "num_layers": 12, "num_heads": 12, "ff_dim": 3072},
}
COMMON = {"chunk_size": 128, "window_size": 128}
PROFILES = {
    "tiny": {"sizes": ["512x4x8", "256x2x4"], "counted": [64, 256]},
    "quick": {"sizes": list(SIZES), "counted": [64, 256, 2048]},
    "full": {"sizes": list(SIZES), "counted": [64 * 2**i for i in range(9)]},
}
settings = PROFILES[profile]
mechanisms, sizes = list(MECHANISMS), settings["sizes"]
lengths = [64 * 2**i for i in range(15)]
counted_lengths = settings["counted"]
RANGES = [(64, 2048), (2048, 16384), (16384, lengths[-1])]
figures.table(pd.DataFrame(SIZES).T.rename_axis("size").reset_index(), caption="The three sizes")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def config(size: str, mechanism: str) -> ModelConfig:
    return ModelConfig(mechanism, **SIZES[size], **COMMON)


PARTS = {"embedding": "embedding", "mixer": "mixer", "ff": "feed-forward"}


def parts(model: TransformerLM) -> Counter:
    """Parameters by the part of the model whose name is in theirs; the rest are norms."""
    found: Counter = Counter()
    for name, parameter in model.named_parameters():
        found[next((part for word, part in PARTS.items() if word in name.split(".")), "norms")] += parameter.numel()
    return found


def count_parameters(size: str) -> list[dict]:
    with torch.device("meta"):
        by_part = {name: parts(TransformerLM(config(size, name))) for name in mechanisms}
    rows = []
    for name, found in by_part.items():
        rows.append(row("parameters", found.total(), mechanism=name))
        if name != "standard":
            relative = found.total() / by_part["standard"].total()
            rows.append(row("parameters_relative", relative, mechanism=name))
        rows += [row("parameters_part", value, mechanism=name, part=part) for part, value in found.items()]
    return rows


def count_compressed(size: str, compression_factor: int, implementation: str) -> list[dict]:
    """BSBR of this project or of the original package, with a compression factor; 1 is without compression."""
    options = {**SIZES[size], **COMMON, "compression_factor": compression_factor if compression_factor > 1 else None}
    with torch.device("meta"):
        model = passes.model_of(passes.ORIGINAL if implementation == "original" else "bsbr", **options)
    return [row("parameters", sum(parameter.numel() for parameter in model.parameters()), mechanism="bsbr")]


def both(found: flops.Passes) -> dict[str, int]:
    return {"forward": found.forward, "backward": found.backward, "both": sum(found)}


def calculated(size: str, mechanism: str, n: int) -> flops.Passes:
    return operations.expected(config(size, mechanism), n)


def count_flops(size: str, n: int) -> list[dict]:
    found = {name: both(operations.count_passes(config(size, name), n)) for name in mechanisms}
    return flops_rows(found, counts=1)


def flops_rows(found: dict[str, dict[str, int]], counts: int, **factors: object) -> list[dict]:
    """FLOPs of each mechanism and direction, and relative to those of standard; they rest on a count or on none."""
    rows = []
    for name, by_direction in found.items():
        for direction, value in by_direction.items():
            where = {"mechanism": name, "direction": direction, **factors}
            rows.append(row("flops", value, samples=counts, **where))
            if name != "standard":
                rows.append(row("flops_relative", value / found["standard"][direction], samples=counts, **where))
    return rows


# %% tags=["hide-input", "remove-output"]
sweep = Sweep(
    "benchmarks/parameters_and_flops",
    target=target,
    profile=profile,
    parameters={"original": sources.read_pin("bsbr").version},
    sources=[sources.pin_path("bsbr")],
)
FACTORS, CLAIMED_SIZE = (1, 2, 4, 8), "256x2x4"
compressions = [
    {"size": CLAIMED_SIZE, "compression_factor": factor, "implementation": implementation}
    for implementation in ("original", "ours")
    for factor in FACTORS
]
parameters = sweep.measure([{"size": size} for size in sizes], count_parameters, machine_bound=False)
compressed = sweep.measure(compressions, count_compressed, machine_bound=False)
counts = [{"size": size, "n": n} for size in sizes for n in counted_lengths]
counted = sweep.measure(counts, count_flops, machine_bound=False)


# %% [markdown]
# The formula follows: its agreement with every count, what it says where nothing was counted, and what it says about
# growth. For long
# texts FLOPs are a polynomial in $n$ of degree two or less, $a\,n + b\,n^2 + c$, so that a token costs $a + b\,n$; three
# lengths give $a$ and $b$ exactly.


# %% tags=["hide-input"]
def agreement(direction: str) -> dict:
    rows = select(counted, "flops", direction=direction)
    same = [
        both(calculated(cell.size_, cell.mechanism, int(cell.n)))[direction] == cell.value
        for cell in rows.rename(columns={"size": "size_"}).itertuples()
    ]
    return row("formula_agreement", 100 * sum(same) / len(same), samples=len(same), direction=direction)


def uncounted(size: str, n: int) -> list[dict]:
    found = {name: both(calculated(size, name, n)) for name in mechanisms}
    return flops_rows(found, counts=0, size=size, n=n)


def growing_part(size: str, mechanism: str, direction: str) -> list[dict]:
    """The coefficients of a long text's cost, from three lengths that are whole numbers of all chunks and pieces."""
    step = 2**16
    cost = [both(calculated(size, mechanism, i * step))[direction] for i in (1, 2, 3)]
    fixed, growing = stats.quadratic(*cost, step)
    where = {"size": size, "mechanism": mechanism, "direction": direction}
    return [row("flops_fixed", fixed, **where), row("flops_growing", growing, **where)]


directions = ["forward", "backward", "both"]
derived = [agreement(direction) for direction in directions]
for size in sizes:
    for n in sorted(set(lengths) - set(counted_lengths)):
        derived += uncounted(size, n)
costs = pd.concat([counted, pd.DataFrame(derived)], ignore_index=True)
for size in sizes:
    for mechanism in mechanisms:
        for direction in directions:
            where = {"size": size, "mechanism": mechanism, "direction": direction}
            derived += scaling.exponents(costs, "flops", where, RANGES) + scaling.slopes(costs, "flops", where)
            derived += growing_part(size, mechanism, direction)

result = sweep.publish(pd.concat([parameters, compressed, counted, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
shown_size, claimed_size = "512x4x8", CLAIMED_SIZE
long, longest = RANGES[-1]
forward = {"size": shown_size, "direction": "forward"}


def value(metric: str, mechanism: str, **factors: object) -> float:
    return result.value(metric, mechanism=mechanism, **factors)


def power(mechanism: str, span: tuple[int, int]) -> str:
    return f"$n^{{{value('flops_exponent', mechanism, n_from=span[0], n_to=span[1], **forward):.2f}}}$"


def share(mechanism: str, n: int) -> str:
    return figures.number(100 * value("flops_relative", mechanism, n=n, **forward))


def more(mechanism: str) -> str:
    return figures.number(100 * (value("parameters_relative", mechanism, size=claimed_size) - 1))


figures.say(
    f"**To read {long:,} tokens BSBR takes {share('bsbr', long)} % of the floating-point operations of standard "
    f"attention, and it has {more('bsbr')} % more parameters.** Over the documents' lengths, {RANGES[0][0]} to "
    f"{RANGES[0][1]:,} tokens, neither is far from linear: standard attention grows as {power('standard', RANGES[0])} "
    f"and BSBR as {power('bsbr', RANGES[0])}, since projections and feed-forward layers outweigh attention there. From "
    f"{long:,} to {longest:,} tokens it is {power('standard', RANGES[-1])} against {power('bsbr', RANGES[-1])}. "
    f"(Operations at size {shown_size}, parameters at {claimed_size}.)",
    answer,
)
figures.say(claims.line(result), stated)


def per_token(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(value=rows["value"] / rows["n"], low=None, high=None)


chart = figures.lines(
    per_token(result.select("flops", **forward)), "n", title="Operations per token, forward", x_title="n (tokens)",
    y_title="FLOPs per token", log_x=True, log_y=True,
)  # fmt: skip
chart.update_xaxes(tickvals=lengths[::2], ticktext=[f"{n:,}" for n in lengths[::2]])
said = claims.load("flops")
for symbol, mechanism in zip(("circle", "square"), ("bsbr", "standard"), strict=True):
    rows = said[said["mechanism"] == mechanism]
    figures.add_claim(chart, rows["n"], list(rows["value"] / rows["n"]), f"{mechanism}, claimed", symbol)
chart.update_yaxes(exponentformat="power")
figures.show(figures.axis_toggle(chart), "per-token", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Parameters

# %% tags=["hide-input"]
names = ["embedding", "mixer", "feed-forward", "norms"]
by_part = result.select("parameters_part", size=claimed_size)
by_part = by_part.pivot(index="mechanism", columns="part", values="value").loc[mechanisms, names]
by_part = by_part.rename_axis(columns=None)
by_part["total"] = by_part.sum(axis=1)
relative = result.select("parameters_relative", size=claimed_size).set_index("mechanism")["value"]
by_part["relative to standard"] = relative.reindex(by_part.index)
said = claims.load("parameters", "parameters_relative").pivot(index="mechanism", columns="quantity", values="value")
by_part["claimed total"], by_part["claimed relative"] = said["parameters"], said["parameters_relative"]
figures.table(
    by_part.reset_index(), digits=4, caption=f"Trainable numbers by part, size {claimed_size}, and what was claimed"
)
millions = result.select("parameters", implementation=None)
millions = figures.pivot(millions.assign(value=millions["value"] / 1e6), "mechanism", "size", digits=4)
figures.table(millions, caption="Millions of parameters at each size")
figures.show_provenance(result)


# %% [markdown]
# The embedding stands once: the same matrix turns tokens into vectors and, in a language model, hidden states into
# scores. That it stands once in the documents' totals too shows in the one for standard attention.
#
# The original BSBR has larger parts: biases, two meta projections per layer, and with compression a dense map of a whole
# head's state, `head_dim` by `head_dim`, to `hidden_dim` over the compression factor, and one back. Here its own model
# (the package `bsbr`, version `0.1.1`) is counted.

# %% tags=["hide-input"]
by_factor = result.select("parameters", mechanism="bsbr", size=claimed_size).dropna(subset="compression_factor")
totals = {
    name: dict(zip(rows["compression_factor"], rows["value"], strict=True))
    for name, rows in by_factor.groupby("implementation", sort=False)
}
names = ["without" if factor == 1 else str(factor) for factor in FACTORS]
figures.table(
    pd.DataFrame(
        {"compression": names, **{name: [int(found[factor]) for factor in FACTORS] for name, found in totals.items()}}
    ),
    digits=4,
    caption=f"Parameters of BSBR at size {claimed_size}, by compression factor",
)
figures.show_provenance(result)

# %% tags=["remove-input"]
claim = float(said.loc["bsbr", "parameters"])
nearest = min(FACTORS, key=lambda factor: abs(totals["original"][factor] - claim))
ours, theirs = totals["ours"], totals["original"]
figures.say(
    f"So the claimed {figures.number(claim / 1e6)} million fit the original with compression factor {nearest} "
    f"({figures.number(theirs[nearest] / 1e6, 4)} million), although the page names no compression. "
    f"{figures.number(100 * (theirs[nearest] - theirs[1]) / theirs[nearest], 2)} % of them are those maps, not attention: "
    f"without compression the original has {figures.number(theirs[1] / 1e6, 4)} million, and ours "
    f"{figures.number(ours[1] / 1e6, 4)} million. Ours compresses the values of a state by two small maps per head, and "
    f"factor {nearest} adds {figures.number((ours[nearest] - ours[1]) / 1e6, 2)} million numbers. The meta projections are "
    f"all that sets our BSBR apart from standard attention; most of either is the embedding, which is "
    f"{figures.number(100 * by_part.loc['standard', 'embedding'] / by_part.loc['standard', 'total'])} % of the total "
    f"for standard attention."
)

# %% [markdown]
# ## FLOPs

# %% tags=["hide-input"]
for size in sizes:
    rows = result.select("flops", size=size, direction="forward")
    rows = rows[rows["n"] <= RANGES[1][1]].sort_values("n", kind="stable")
    figures.table(
        figures.pivot(rows.assign(value=rows["value"] / 1e9), "n", "mechanism"),
        caption=f"GFLOPs (thousand millions of operations) of one forward pass over n tokens, size {size}",
    )
figures.show_provenance(result)

# %% tags=["hide-input"]
rows = result.select("flops_relative", **forward)
chart = figures.lines(
    rows, "n", title="Operations relative to standard attention", x_title="n (tokens)", log_x=True, log_y=True
)
chart.add_hline(y=1, line={"color": "#7F7F7F", "width": 1})
chart.update_xaxes(tickvals=lengths[::2], ticktext=[f"{n:,}" for n in lengths[::2]])
figures.show(figures.axis_toggle(chart), "relative")
figures.show_provenance(result)

# %% [markdown]
# ## Growth
#
# An exponent of FLOPs belongs to a range of lengths, as one of time does. On any range where one term of the cost
# outweighs the others, it is that term's; between, it moves from one to the other.

# %% tags=["hide-input"]
fits = result.select("flops_exponent", **forward)
ranges = [f"n = {start:,} … {end:,}" for start, end in zip(fits["n_from"], fits["n_to"], strict=True)]
exponents = figures.pivot(fits.assign(range=ranges), "mechanism", "range").set_index("mechanism")
said = claims.load("flops_exponent").set_index("mechanism")["value"].map(figures.number)
exponents["claimed"] = exponents.index.map(said).fillna("–")
figures.table(exponents.reset_index(), caption=f"Exponent of FLOPs, forward, size {shown_size}")

slopes = result.select("flops_local_exponent", **forward)
chart = figures.lines(
    slopes,
    "n",
    title="Local exponent: growth from half of n to n",
    x_title="n (tokens)",
    y_title="exponent",
    log_x=True,
)
chart.update_xaxes(tickvals=lengths[::2], ticktext=[f"{n:,}" for n in lengths[::2]])
figures.show(chart, "local-exponent")
figures.show_provenance(result)

# %% [markdown]
# ## The asymptote
#
# For long texts a token costs $a + b\,n$. Where $b$ is not zero, the cost becomes quadratic in the end, and at
# $n = a/b$ the growing part has caught up with the fixed one.

# %% tags=["hide-input"]
coefficients = pd.DataFrame(
    {
        "mechanism": mechanisms,
        "a: FLOPs per token": [value("flops_fixed", name, **forward) for name in mechanisms],
        "b: more for each token of text": [value("flops_growing", name, **forward) for name in mechanisms],
    }
)
fixed, growing = (coefficients[column] for column in coefficients.columns[1:])
coefficients["a / b: where both are equal (tokens)"] = (fixed / growing).where(growing > 0)
figures.table(coefficients, digits=4, caption=f"Cost of a token in a long text, forward, size {shown_size}")
figures.show_provenance(result)

# %% [markdown]
# ## Backward

# %% tags=["hide-input"]
backward = result.select("flops", direction="backward", size=shown_size)
ahead = result.select("flops", direction="forward", size=shown_size)
ratio = backward.assign(value=backward["value"].to_numpy() / ahead["value"].to_numpy()).sort_values("n", kind="stable")
figures.table(
    figures.pivot(ratio[ratio["n"].isin(lengths[::4])], "n", "mechanism"),
    caption=f"Operations of the backward pass over those of the forward pass, size {shown_size}",
)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
claimed_flops = claims.load("flops").set_index(["mechanism", "n"])["value"]
documents_longest = RANGES[0][1]
inflated = claimed_flops[("standard", documents_longest)] / value("flops", "standard", n=documents_longest, **forward)
catches_up = coefficients.set_index("mechanism")["a / b: where both are equal (tokens)"]
linear_ones = list(coefficients.loc[growing == 0, "mechanism"])
quadratic_ones = [name for name in mechanisms if name not in linear_ones]
checks = result.select("formula_agreement")
far = value("flops", "standard", n=longest, **forward) / value("flops", "bsbr", n=longest, **forward)
roughly = {name: figures.number(float(f"{catches_up[name]:.2g}")) for name in ("standard", "bsbr")}
low_by = claimed_flops[("bsbr", documents_longest)] / value("flops", "bsbr", n=documents_longest, **forward)
grows = growing.set_axis(mechanisms)
figures.say(
    f"**The stated FLOPs are no counts.** Those of standard attention multiply by four with every doubling from the "
    f"shortest length on, as if there were nothing but attention; at n = {documents_longest:,} they are "
    f"{figures.number(inflated)} times what the model takes. In the model, attention outweighs the rest only from about "
    f"n = {roughly['standard']} on (size {shown_size}). Those of BSBR are linear, which is right over the documents' "
    f"lengths, at {figures.number(100 * low_by)} % of what the model takes.\n\n"
    f"**BSBR is not linear for ever.** Every chunk mixes the states of all chunks before it, so the cost of a token has "
    f"a part that grows with the text. It is small, {figures.number(grows['standard'] / grows['bsbr'])} times smaller "
    f"than that of standard attention: it catches up with the rest of the model at about n = {roughly['bsbr']}, and at "
    f"{longest:,} tokens standard attention takes {figures.number(far)} times as many operations. By the formula a token "
    f"costs the same however long the text with {', '.join(linear_ones) or 'none'}, and not with "
    f"{', '.join(quadratic_ones)}.\n\n"
    f"**Standard and hopfield cost the same** here, as one update of a Hopfield network is one softmax attention. Up to "
    f"one chunk BSBR does the same work as well.\n\n"
    f"The counter and the formula agree in {figures.number(checks['value'].min())} % of "
    f"{figures.number(checks['samples'].sum())} counts: {len(sizes)} sizes, {len(mechanisms)} mechanisms, "
    f"{len(counted_lengths)} lengths up to {counted_lengths[-1]:,}; forward, backward and both. Other lengths are the "
    f"formula's alone, with no `samples` in the table. Counts do not depend on the machine; operations per second do, and *Inference time* has those."
)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - Operations are not time: a fused product and a sum over a few numbers are far apart in operations per second, and
#   nothing here counts bytes moved.
# - Another kernel may spend more than is counted here, on pairs of tokens behind the mask or on padding of its own.
# - Halve `chunk_size` in `COMMON`. What does it do to $a$, and what to $b$?
# - Set `top_k` in the config of `bsbr`: which part of the cost goes away, and is the formula still for you?
