# %% [markdown]
# # Bytes between processes
#
# A text too long for one machine is cut into slices, one for each process (*rank*). How many bytes must the ranks send
# one another in each layer, if they attend by BSBR, and how many if they attend by softmax to everything before?

# %% tags=["remove-input"]
from bsbr.show import figures

answer, main_chart, origin = figures.reserve("answer"), figures.reserve("chart"), figures.reserve("source")

# %% [markdown]
# ## Why they differ
#
# Softmax attention needs every key and value before a token: $2p$ numbers per token and head, wherever that token's rank
# is. BSBR needs, of a chunk of $B$ tokens on another rank, its state and its meta key: $p \, (p + 1)$ numbers, or
# $p \, (p/f + 1)$ if states are compressed by $f$. For a token that is
#
# $$
# \frac{p/f + 1}{2B} \quad\text{of what softmax attention needs.}
# $$
#
# Nothing here depends on $n$: both grow with the number of tokens, and with the number of ranks that want them.
# No document under test has claimed anything about this; the formula invites it.
#
# ## Method
#
# Each cell is one job: so many new processes on this machine, joined by PyTorch's gloo backend over TCP, each with an
# equal slice of random queries, keys and values. They run one layer's attention by each method in turn, forward and
# backward:
#
# - **bsbr** is `bsbr.parallel`: states and meta keys go to later ranks only, since no earlier rank may use them;
#   gradients come back the same way. Also with compressed states, and with two chunks read exactly, for which a rank
#   needs the keys and values of the chunk before its slice;
# - **softmax, all-gather**: every rank collects all keys and values; in the backward pass each rank gets the sum of its
#   gradients from all others;
# - **softmax, ring**: keys and values travel round the ring of ranks, a block at a time
#   (Ring Attention, {cite:t}`liu2023`). This one keeps the blocks that came by for its backward pass.
#   The published one saves that memory by sending them round again, so it sends more;
# - **softmax, to later ranks only**: keys and values sent as sparingly as `bsbr` sends its states. What remains between
#   this and `bsbr` is due to the mechanism alone;
# - **every other mechanism** that `bsbr.parallel` can share out, beside what its formula says.
#
# Tests hold all of them to the result of one process, gradients included. **Bytes** are those that the kernel counts
# for a process's TCP connections (`TCP_INFO`) just before and just after, once the other side has confirmed them. So
# gloo's own headers are in, those of TCP are not, and nothing is worked out from the shapes of tensors. Bytes do not
# depend on where the arithmetic is done: the target `gpu` measures the same processes on the CPU.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import pandas as pd

from bsbr.parallel import SHARED, bytes_sent
from bsbr.store import Sweep, row, select
from bsbr.studies import parallel

COMPARED = {
    "bsbr": {},
    "bsbr_compressed": {"compression_factor": 4},
    "bsbr_two_local": {"local_chunks": 2},
    "all_gather": {},
    "ring": {},
    "later_only": {},
}
MECHANISMS = {"bsbr": {}} | {name: {"mechanism": name} for name in SHARED}  # all that can be shared out
METHODS = COMPARED | MECHANISMS
LABELS = {
    "bsbr": "bsbr",
    "bsbr_compressed": "bsbr, states compressed",
    "bsbr_two_local": "bsbr, two local chunks",
    "all_gather": "softmax, all-gather",
    "ring": "softmax, ring",
    "later_only": "softmax, to later ranks only",
}
SIZES = {"batch": 1, "num_heads": 4, "head_dim": 64}
SEED = 0

RANKS, N, CHUNK_SIZE = 4, 4096, 128  # what is held while the others vary
PROFILES = {
    "tiny": {"ranks": [], "n": [512], "chunk_size": []},
    "quick": {"ranks": [2], "n": [2048, 4096], "chunk_size": []},
    "full": {"ranks": [2, 8], "n": [2048, 4096, 8192], "chunk_size": [64, 256]},
}
TRAINED_N = {"tiny": 512, "quick": 4096, "full": 65_536}
TOLERANCE = 1e-4  # of float32, for a gradient that is summed over so many tokens in another order
settings = PROFILES[profile]

# %% [markdown]
# ## Measuring

# %% tags=["hide-input", "remove-output"]
cells = [
    *({"ranks": RANKS, "n": n, "chunk_size": CHUNK_SIZE} for n in settings["n"]),
    *({"ranks": ranks, "n": N, "chunk_size": CHUNK_SIZE} for ranks in settings["ranks"]),
    *({"ranks": RANKS, "n": N, "chunk_size": chunk_size} for chunk_size in settings["chunk_size"]),
]


def measure(ranks: int, n: int, chunk_size: int) -> list[dict]:
    """One job: every method, every rank, both directions."""
    sizes = parallel.Sizes(chunk_size=chunk_size, **SIZES)
    return [
        row("bytes_sent", sent, method=method, direction=direction, rank=rank)
        for rank, methods in enumerate(parallel.launch(ranks, parallel.bytes_per_layer, n, METHODS, sizes, SEED))
        for method, both in methods.items()
        for direction, sent in zip(("forward", "backward"), both, strict=True)
    ]


sweep = Sweep(
    "benchmarks/sequence_parallel",
    target=target,
    profile=profile,
    parameters={"dtype": "float32", "backend": "gloo"},
    seed=SEED,
)
measured = sweep.measure(cells, measure, machine_bound=False)


def measure_training(method: str, ranks: int, n: int) -> list[dict]:
    """One text's gradient over processes, held against that of one process."""
    return [row("gradient_error", parallel.gradient_error(method, n, ranks, SEED))]


trained = [{"method": name, "ranks": RANKS, "n": TRAINED_N[profile]} for name in SHARED]
gradients = sweep.measure(trained, measure_training, machine_bound=False)

# %% tags=["hide-input"]
FACTORS = ["ranks", "n", "chunk_size"]
totals = select(measured, "bytes_sent").groupby([*FACTORS, "method"], sort=False)["value"].sum()
ratios = [
    row(
        "bytes_ratio",
        total / totals[(*cell, "bsbr")],
        method=method,
        **dict(zip(FACTORS, cell, strict=True)),
    )
    for (*cell, method), total in totals.items()
    if method != "bsbr"
]
result = sweep.publish(pd.concat([measured, pd.DataFrame(ratios), gradients], ignore_index=True))

# %% tags=["remove-input"]
MIB = 2**20
largest = settings["n"][-1]


def mean_mib(**factors: object) -> pd.DataFrame:
    """Mean over the ranks of what one sends for a layer, both directions together."""
    sent = result.select("bytes_sent", **factors)
    mean = sent.groupby([*FACTORS, "method"], sort=False)["value"].sum().reset_index()
    mean = mean[mean["method"].isin(COMPARED)]
    mean["value"] /= mean["ranks"] * MIB
    return mean.assign(
        method=mean["method"].map(LABELS), metric="bytes_sent", unit="MiB", low=None, high=None, status="ok"
    )


def times(method: str, n: int = largest, ranks: int = RANKS, chunk_size: int = CHUNK_SIZE) -> str:
    return figures.number(result.value("bytes_ratio", method=method, n=n, ranks=ranks, chunk_size=chunk_size))


where = {"n": largest, "ranks": RANKS, "chunk_size": CHUNK_SIZE}
sparingly = result.value("bytes_ratio", method="all_gather", **where) / result.value(
    "bytes_ratio", method="later_only", **where
)
compressed = 1 / result.value("bytes_ratio", method="bsbr_compressed", **where)
figures.say(
    f"**On {RANKS} ranks, softmax attention by all-gather sends {times('all_gather')} times as many bytes per layer as BSBR "
    f"with chunks of {CHUNK_SIZE}, and ring attention {times('ring')} times.** A factor of {figures.number(sparingly)} of "
    f"that is sending to later ranks only, which softmax attention could do too: it then sends {times('later_only')} times "
    f"as much as BSBR. If BSBR compresses its states by {COMPARED['bsbr_compressed']['compression_factor']}, it sends "
    f"{figures.number(compressed)} times less again.",
    answer,
)
by_n = mean_mib(ranks=RANKS, chunk_size=CHUNK_SIZE)
chart = figures.bars(
    by_n, "n", group="method", title=f"Sent by a rank for one layer, mean of {RANKS} ranks", x_title="n (tokens)",
    y_title="MiB, forward and backward",
)  # fmt: skip
chart.update_xaxes(type="category")
figures.show(chart, "by-n", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## How much, by length

# %% tags=["remove-input"]
figures.table(
    figures.pivot(by_n, "method", "n").rename(columns=lambda name: name if name == "method" else f"n = {name:,}"),
    caption=f"MiB that a rank sends for one layer, mean of {RANKS} ranks, chunks of {CHUNK_SIZE}",
)
figures.show_provenance(result)

# %% [markdown]
# ## Which rank sends what
#
# Only later ranks need what a rank has, so in the forward pass the first rank sends most and the last one nothing. In
# the backward pass it is the other way round, and over both every rank sends the same.

# %% tags=["remove-input"]
by_rank = result.select("bytes_sent", method="bsbr", ranks=RANKS, n=largest, chunk_size=CHUNK_SIZE)
by_rank = by_rank.assign(value=by_rank["value"] / MIB, unit="MiB")
chart = figures.bars(
    by_rank, "rank", group="direction", title=f"bsbr, n = {largest:,}, {RANKS} ranks", y_title="MiB sent by the rank"
)
chart.update_xaxes(type="category")
figures.show(chart, "by-rank")
figures.show_provenance(result)

# %% [markdown]
# ## More ranks

# %% tags=["remove-input"]
by_ranks = mean_mib(n=N, chunk_size=CHUNK_SIZE).sort_values("ranks", kind="stable") if N in settings["n"] else by_n
figures.table(
    figures.pivot(by_ranks, "method", "ranks").rename(
        columns=lambda name: name if name == "method" else f"{name} ranks"
    ),
    caption=f"MiB that a rank sends for one layer, mean of the ranks, n = {by_ranks['n'].iloc[0]:,}",
)
figures.show_provenance(result)

# %% [markdown]
# ## Smaller and larger chunks
#
# A state has the same size whatever its chunk, so larger chunks mean fewer bytes. The last column is what the formula at
# the top says.

# %% tags=["remove-input"]
later_only = result.select("bytes_ratio", method="later_only", ranks=RANKS, n=by_ranks["n"].iloc[0])
predicted = 2 * later_only["chunk_size"] / (SIZES["head_dim"] + 1)
figures.table(
    pd.DataFrame(
        {
            "chunk_size": later_only["chunk_size"],
            "measured": later_only["value"].map(lambda ratio: f"{ratio:.3f}"),
            "by the formula": predicted.map(lambda ratio: f"{ratio:.3f}"),
        }
    ).sort_values("chunk_size"),
    caption="Bytes of softmax attention to later ranks only, relative to bsbr",
)
figures.show_provenance(result)

# %% [markdown]
# ## Every mechanism
#
# A mechanism that keeps one state sends that state once for its whole slice, whatever the length: the sums of linear
# attention and of the gated attention unit, and what a slice of DeltaNet's does to any state, an affine map of twice the
# size. A sliding window sends the keys and values that it reaches. The formula is `bsbr.parallel.bytes_sent`.

# %% tags=["remove-input"]
each = []
for name, options in MECHANISMS.items():
    sent = result.select("bytes_sent", method=name, **where).groupby("rank")["value"].sum()
    config = parallel.config_of(options, parallel.Sizes(chunk_size=CHUNK_SIZE, **SIZES))
    tensors = [sum(both) for both in bytes_sent(config, [largest // RANKS] * RANKS)]
    each.append(
        {
            "mechanism": name,
            "measured (KiB)": sent.mean() / 1024,
            "by the formula (KiB)": sum(tensors) / len(tensors) / 1024,
        }
    )
figures.table(
    pd.DataFrame(each),
    caption=f"Sent by a rank for one layer, mean of {RANKS} ranks, both directions, n = {largest:,}, chunks and windows of "
    f"{CHUNK_SIZE}",
)
figures.show_provenance(result)

# %% [markdown]
# ## Is it the same training?
#
# The gradient of a small model's mean loss on one text, taken over the processes and in one. Sums are made in
# another order, so in float32 they differ by rounding. `tests/test_parallel.py` holds both to each other in float64.

# %% tags=["remove-input"]
differences = result.select("gradient_error")
figures.table(
    differences[["method", "value"]].assign(value=differences["value"].map(lambda error: f"{error:.1e}")).rename(
        columns={"method": "mechanism", "value": "relative difference"}
    ),
    caption=f"Norm of the difference of the gradients, relative, n = {TRAINED_N[profile]:,} over {RANKS} ranks",
)  # fmt: skip
figures.say(
    f"The largest difference is {'within' if differences['value'].max() <= TOLERANCE else 'beyond'} the "
    f"{TOLERANCE:g} that is asked for in float32."
)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
only_bsbr = result.select("bytes_sent", method="bsbr", ranks=RANKS, n=largest, chunk_size=CHUNK_SIZE)
first, last = (only_bsbr[only_bsbr["rank"] == rank].set_index("direction")["value"] for rank in (0, RANKS - 1))
shortest = settings["n"][0]
off = ((later_only["value"] / predicted - 1).abs() * 100).max()
figures.say(
    f"What is counted is what the formula says, within {figures.number(off, 2)} %. The rest is the meta query that "
    f"a rank sends to the next one, and gloo's headers.\n\n"
    f"For {largest:,} tokens the first of {RANKS} ranks sends {figures.number(first['forward'] / MIB)} MiB per layer in the "
    f"forward pass, and {figures.number(last['forward'])} bytes leave the last one: confirmations of what it got.\n\n"
    f"Reading two chunks exactly costs a fixed amount, a chunk's keys and values from each rank to the next, however long "
    f"the slices: {times('bsbr_two_local', n=shortest)} times the bytes at n = {shortest:,}, "
    f"{times('bsbr_two_local')} times at n = {largest:,}.\n\n"
    f"Sizes: one row of {SIZES['num_heads']} heads of {SIZES['head_dim']}, float32."
)

# %% [markdown]
# ## Limits and exercises
#
# - Bytes, not seconds: all ranks share this machine's cores and memory, so time between them would mean nothing. On
#   a real network, bytes over bandwidth bound the time that a layer waits.
# - Training also sums the gradients of the parameters over the ranks, once per step. That is the same for every method and
#   is not counted.
# - The saving falls with the head dimension: a state grows with its square, keys and values do not. From which head
#   dimension on would BSBR send more than softmax attention?
# - Counting needs Linux.
