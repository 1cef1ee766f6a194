# %% [markdown]
# # Memory
#
# How much memory does each mechanism hold at its peak, when a model reads $n$ tokens and when it trains on them, and
# what is it that it holds?

# %% tags=["remove-input"]
from bsbr.show import figures

answer, tested = figures.reserve("answer"), figures.reserve("claims' line")
main_chart, origin = figures.reserve("chart"), figures.reserve("source")

# %% [markdown]
# ## What was claimed
#
# Two documents give gigabytes for training, by length, and what of them are gradients and activations. A third gives
# megabytes on a CPU, which hardly change with $n$; what these are is shown below. A fourth compares a converted model
# with its original, on its own page.

# %% tags=["hide-input"]
import pandas as pd

from bsbr.show import claims

stated = claims.load("peak_memory").dropna(subset="n")
by_length = stated[stated["section"] == "Memory Usage"].drop_duplicates(["mechanism", "n"])
wide = by_length.pivot(index="n", columns="mechanism", values="value").rename_axis(columns=None).reset_index()
figures.table(wide, caption="Claimed: peak memory of training on n tokens, MB")

# %% [markdown]
# ## Method
#
# Every mechanism sits in the same backbone with the same sizes: those of version `0.1.2` of the documents, and at a few
# lengths those of version `0.1.1`. One row of $n$ random tokens, float32. Three passes:
#
# - **inference**: `encode`, from token ids to the last hidden state, without gradients;
# - **training**: logits of every token, mean cross-entropy of the next ones, and the gradients of all parameters;
# - **training, backbone alone**: the same without logits and loss; the gradients are those of the mean square of the
#   last hidden states. It shows the mechanism, which the logits of a large vocabulary hide.
#
# Training starts with gradients in place, as they are when gradients are accumulated over several passes. An optimizer
# is not part of the pass; AdamW would hold twice the parameters besides. Training is also measured with activation
# checkpointing, which keeps of each layer its input and computes the rest again.
#
# **Peak memory** is the largest number of bytes that tensors hold at any one moment, by PyTorch's own tracking
# (`MemTracker`). It depends on the sizes alone, so it is the same in every run. At that moment the bytes are split into
# parameters, their gradients, activations (whatever else the forward pass made) and temporaries (whatever else the
# backward pass made). In inference everything that is no parameter counts as an activation, although nothing is kept
# for a backward pass.
#
# What an operation keeps to itself, such as the scratch of a fused kernel, is not seen that way. So for some cells a
# fresh process makes the pass as well, and the system says by how much its resident memory grew. The C library keeps
# much of the memory that was freed for the next allocation; for the check it is told to return it at once.
#
# Standard attention is PyTorch's fused kernel, which never stores the matrix of scores. `standard_unfused` is the same
# attention by plain matrix products, which does. It stops at a shorter length.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import torch

from bsbr import MECHANISMS
from bsbr.measure import machine, memory
from bsbr.store import Sweep, row, select
from bsbr.studies import passes, scaling

MAIN, LARGE = "256x2x4", "512x4x8"
SIZES = {
    MAIN: {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
    LARGE: {"vocab_size": 10_000, "hidden_dim": 512, "num_layers": 4, "num_heads": 8, "ff_dim": 2048},
}
COMMON = {"chunk_size": 128, "window_size": 128}
PROFILES = {
    "tiny": {
        "inference": [64, 128, 256], "training": [128], "checkpointed": [128], "unfused": 128,
        "large": {"inference": [128], "training": [128]},
        "ranges": [(64, 256)],
    },
    "quick": {
        "inference": [256, 512, 1024, 2048], "training": [512, 1024, 2048], "checkpointed": [1024], "unfused": 1024,
        "large": {"inference": [1024], "training": [1024]}, "ranges": [(256, 2048), (512, 2048)],
    },
    "full": {
        "inference": [64 * 2**i for i in range(9)], "training": [64 * 2**i for i in range(8)],
        "checkpointed": [64 * 2**i for i in range(8)], "unfused": 4096,
        "large": {"inference": [64 * 2**i for i in range(7)], "training": [64 * 2**i for i in range(6)]},
        "ranges": [(64, 1024), (64, 2048), (1024, 4096), (1024, 8192), (1024, 16384)],
    },
}  # fmt: skip
CHECKS = {  # phase, n, mechanisms, what happens to freed memory
    "tiny": [("inference", 256, ["bsbr"], "returned")],
    "quick": [("inference", 2048, ["standard", "bsbr"], "returned"), ("inference", 2048, ["bsbr"], "kept")],
    "full": [
        *(("inference", n, list(MECHANISMS), "returned") for n in (2048, 16384)),
        ("training", 2048, list(MECHANISMS), "returned"),
        ("inference", 2048, ["standard", "bsbr"], "kept"),
        ("training", 2048, ["standard", "bsbr"], "kept"),
    ],
}
TRAINING = ["training", "training_backbone"]
LABELS = {"inference": "inference", "training": "training", "training_backbone": "training, backbone alone"}
NAMES = [*MECHANISMS, passes.UNFUSED]
settings = PROFILES[profile]
device = machine.device(target)
MB = 1e6

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def peaks(size: str, phase: str, mechanism: str, checkpointing: str, n: int) -> list[dict]:
    """The peak of one pass, and its parts."""
    options = {"checkpointing": checkpointing == "on", "device": device, **SIZES[size], **COMMON}
    if device.type == "cuda":
        passes.make(phase, mechanism, n, **options).run()  # so that libraries have their workspaces
    given = passes.make(phase, mechanism, n, **options)
    if phase != "inference":
        passes.with_gradients(given.model)
    found = memory.tensors(given.run, given.model, given.ids)
    rows = [row("peak_memory", found.total / MB)]
    rows += [row("memory_part", held / MB, part=part) for part, held in found.parts.items() if part in SHOWN]
    if found.allocator is not None:
        before = sum(found.parts[part] for part in ("parameters", "buffers", "inputs"))
        rows.append(row("resident_peak", (found.allocator - before) / MB, freed="gpu allocator"))
    if phase == "inference":
        rows.append(row("parameters_and_ids", (found.parts["parameters"] + found.parts["inputs"]) / MB))
    return rows


SHOWN = ["parameters", "gradients", "activations", "temporaries"]


def resident(size: str, phase: str, mechanism: str, checkpointing: str, n: int, freed: str) -> list[dict]:
    """By how much the resident set of a fresh process grows over the same pass."""
    options = {"checkpointing": checkpointing == "on", **SIZES[size], **COMMON}
    try:
        found = memory.peak(passes.fresh, phase, mechanism, n, torch.get_num_threads(), freed, options)
    except NotImplementedError as error:
        return [row("resident_peak", None, status="not_available", reason=str(error))]
    return [row("resident_peak", found.added / MB, samples=1)]


# %% tags=["hide-input", "remove-output"]
cells = []
for size, phase, checkpointing, lengths in [
    (MAIN, "inference", "off", settings["inference"]),
    *((MAIN, phase, "off", settings["training"]) for phase in TRAINING),
    *((MAIN, phase, "on", settings["checkpointed"]) for phase in TRAINING),
    *((LARGE, phase, "off", lengths) for phase, lengths in settings["large"].items()),
]:
    for mechanism in NAMES:
        for n in lengths:
            if mechanism != passes.UNFUSED or n <= settings["unfused"]:
                cell = {"size": size, "phase": phase, "mechanism": mechanism, "checkpointing": checkpointing, "n": n}
                cells.append(cell)
checks = [
    {"size": MAIN, "phase": phase, "mechanism": mechanism, "checkpointing": "off", "n": n, "freed": freed}
    for phase, n, names, freed in (CHECKS[profile] if target == "cpu" else [])
    for mechanism in names
]

sweep = Sweep(
    "benchmarks/memory", target=target, profile=profile, parameters={"batch": 1, "dtype": "float32"},
)  # fmt: skip
measured = sweep.measure(cells, peaks, machine_bound=target == "gpu")
if checks:
    observed = sweep.measure(checks, resident, machine_bound=True)
    measured = pd.concat([measured, observed], ignore_index=True)

# %% [markdown]
# From the peaks follow how many times the memory of each mechanism standard attention needs, and the exponent of a power
# law on each range of lengths. Bytes are counted, so an exponent of them has no interval.


# %% tags=["hide-input"]
def relative(cell: dict) -> list[dict]:
    """Standard attention's peak over this one's, where both were measured."""
    here, standard = (
        select(measured, "peak_memory", **{**cell, "mechanism": name})["value"].dropna()
        for name in (cell["mechanism"], "standard")
    )
    if cell["mechanism"] == "standard" or here.empty or standard.empty:
        return []
    return [row("memory_relative", standard.iloc[0] / here.iloc[0], **cell)]


derived = [found for cell in cells for found in relative(cell)]
curves = [{key: value for key, value in cell.items() if key != "n"} for cell in cells]
for where in [dict(items) for items in dict.fromkeys(tuple(curve.items()) for curve in curves)]:
    derived += scaling.exponents(measured, "peak_memory", where, settings["ranges"])
result = sweep.publish(pd.concat([measured, pd.DataFrame(derived)], ignore_index=True))

# %% tags=["remove-input"]
longest, longest_trained = settings["inference"][-1], settings["training"][-1]
unfused = settings["unfused"]
PLAIN = {"size": MAIN, "checkpointing": "off"}


def peak(phase: str, mechanism: str, n: int, checkpointing: str = "off") -> float:
    where = {"size": MAIN, "phase": phase, "mechanism": mechanism, "n": n, "checkpointing": checkpointing}
    return result.value("peak_memory", **where)


def part(phase: str, mechanism: str, n: int, name: str, checkpointing: str = "off") -> float:
    where = {
        "size": MAIN, "phase": phase, "mechanism": mechanism, "n": n, "part": name, "checkpointing": checkpointing,
    }  # fmt: skip
    return result.value("memory_part", **where)


def mb(value: float) -> str:
    return f"{figures.number(value)} MB"


def growth(phase: str, mechanism: str) -> str:
    fits = result.select("memory_exponent", phase=phase, mechanism=mechanism, **PLAIN)
    return f"$n^{{{fits.iloc[-1]['value']:.2f}}}$" if len(fits) else "–"


def more_or_less(ratio: float) -> str:
    """Our peak over standard's, in words."""
    if 0.99 < ratio < 1.01:
        return "as much as"
    return f"{figures.number(abs(ratio - 1) * 100, 2)} % {'more' if ratio > 1 else 'less'} than"


def peaks_by_n(phase: str) -> "figures.go.Figure":
    """A line per mechanism; `hopfield` holds what `standard` does, so it is dotted, and both can be seen."""
    rows = result.select("peak_memory", phase=phase, **PLAIN)
    chart = figures.lines(
        rows, "n", title=f"Peak memory: {LABELS[phase]}", x_title="n (tokens)", log_x=True, log_y=True
    )
    blue = figures.MECHANISM_COLOURS["standard"]
    chart.update_traces(line_dash="dot", selector={"name": "hopfield"})
    chart.update_traces(line_dash="dash", line_color=blue, marker_color=blue, selector={"name": passes.UNFUSED})
    return figures.axis_toggle(chart)


reading = peak("inference", "bsbr", longest) / peak("inference", "standard", longest)
training = peak("training", "bsbr", longest_trained) / peak("training", "standard", longest_trained)
stored = peak("inference", passes.UNFUSED, unfused) / peak("inference", "bsbr", unfused)
figures.say(
    f"**To read {longest:,} tokens BSBR holds {mb(peak('inference', 'bsbr', longest))} at its peak, "
    f"{more_or_less(reading)} standard attention with a fused kernel; to train on {longest_trained:,} it holds "
    f"{mb(peak('training', 'bsbr', longest_trained))}, {more_or_less(training)} standard attention.** "
    f"Up to there the peaks grow as {growth('inference', 'bsbr')} and {growth('inference', 'standard')} in reading: the "
    f"fused kernel never stores the matrix of scores. Standard attention that does store it holds "
    f"{figures.number(stored)} times what BSBR holds at n = {unfused:,}.",
    answer,
)
figures.say(claims.line(result), tested)
figures.show(peaks_by_n("inference"), "inference", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Inference

# %% tags=["remove-input"]
inference = result.select("peak_memory", phase="inference", **PLAIN)
figures.table(figures.pivot(inference, "n", "mechanism", intervals=False), caption="Peak memory to read n tokens, MB")
ratios = result.select("memory_relative", phase="inference", **PLAIN)
figures.table(
    figures.pivot(ratios, "n", "mechanism", intervals=False),
    caption="Standard attention's peak over this mechanism's: above 1, the mechanism needs less",
)
figures.show_provenance(result)

# %% [markdown]
# ## Training
#
# Over texts of some length the peak falls into the first steps of the backward pass, when the logits, their logarithms
# and both their gradients are there at once: four matrices of $n$ tokens by the whole vocabulary. The backbone alone
# shows what the mechanisms add.

# %% tags=["remove-input"]
SHADES = dict(zip(SHOWN, figures.PALETTE, strict=False))


def stacked(phase: str, n: int, checkpointing: str) -> "figures.go.Figure":
    """What is held at the peak, by kind, a bar per mechanism."""
    rows = result.select("memory_part", size=MAIN, phase=phase, n=n, checkpointing=checkpointing)
    chart = figures.bars(rows, "mechanism", group="part", title=f"Held at the peak: {LABELS[phase]}, n = {n:,}")
    for trace in chart.data:
        trace.marker.color = SHADES[trace.name]
    return chart.update_layout(barmode="stack")


shown_n = min(unfused, longest_trained)
figures.show(stacked("training", shown_n, "off"), "training-parts")
figures.show(stacked("training_backbone", shown_n, "off"), "backbone-parts")
figures.show_provenance(result)

# %% tags=["remove-input"]
figures.show(peaks_by_n("training_backbone"), "backbone")
for phase in TRAINING:
    rows = result.select("peak_memory", phase=phase, **PLAIN)
    figures.table(figures.pivot(rows, "n", "mechanism", intervals=False), caption=f"Peak memory, {LABELS[phase]}, MB")
figures.show_provenance(result)

# %% [markdown]
# ## Activation checkpointing

# %% tags=["remove-input"]
saving = pd.DataFrame(
    {
        "mechanism": mechanism,
        **{
            f"{LABELS[phase]}: {words}": value
            for phase in TRAINING
            for words, value in [
                ("without, MB", peak(phase, mechanism, shown_n)),
                ("with, MB", peak(phase, mechanism, shown_n, "on")),
            ]
        },
    }
    for mechanism in NAMES
)
figures.table(saving, caption=f"Peak memory without and with activation checkpointing, n = {shown_n:,}")
figures.show_provenance(result)

# %% [markdown]
# ## The larger size

# %% tags=["remove-input"]
for phase in ("inference", "training"):
    where = {"size": LARGE, "phase": phase, "checkpointing": "off"}
    figures.table(
        figures.pivot(result.select("peak_memory", **where), "n", "mechanism", intervals=False),
        caption=f"Peak memory, {LABELS[phase]}, size {LARGE}, MB",
    )
figures.show_provenance(result)

# %% [markdown]
# ## Growth
#
# An exponent holds for the range it was fitted on. Parameters do not grow with $n$, so at short lengths, where they are
# most of the peak, they hide the growth.

# %% tags=["remove-input"]
fits = result.select("memory_exponent", **PLAIN)
spans = [f"{LABELS[fit.phase]}, n = {fit.n_from:,} … {fit.n_to:,}" for fit in fits.itertuples()]
figures.table(
    figures.pivot(fits.assign(range=spans), "mechanism", "range", digits=2),
    caption=f"Exponent of peak memory, size {MAIN}",
)
figures.show_provenance(result)

# %% [markdown]
# ## Two ways to look
#
# What a fresh process adds to its resident memory over the same pass, beside what tensors add by the tracker's count.

# %% tags=["remove-input"]
found = result.select("resident_peak").dropna(subset="value")
held = [
    peak(cell.phase, cell.mechanism, cell.n)
    - result.value("parameters_and_ids", size=MAIN, mechanism=cell.mechanism, n=cell.n)
    - (0 if cell.phase == "inference" else part(cell.phase, cell.mechanism, cell.n, "gradients"))
    for cell in found.itertuples()
]
table = found[["phase", "mechanism", "n", "freed"]].assign(tensors=held, process=found["value"])
table["ratio"] = table["process"] / table["tensors"]
figures.table(
    table.rename(columns={"freed": "freed memory is", "tensors": "tensors add, MB", "process": "process adds, MB"}),
    caption="The same pass, counted and observed",
)
figures.show_provenance(result)
if len(table):
    lines = [
        f"With freed memory {how}, the process adds between {figures.number(group['ratio'].min())} and "
        f"{figures.number(group['ratio'].max())} times what its tensors do (passes: {len(group)})."
        for how, group in table.groupby("freed", sort=False)
    ]
    figures.say(
        " ".join(lines) + " What remains where it is returned is scratch inside operations, buffers of libraries and "
        "code that is used for the first time. What else a process keeps by default is no tensor's: the C library "
        "holds it ready for the next allocation."
    )

# %% [markdown]
# ## What the documents measured on a CPU
#
# One document gives megabytes that hardly change between its shortest and its longest text. No activation is in such a
# number: it is the parameters and the token ids.

# %% tags=["remove-input"]
on_cpu = stated[stated["section"].str.startswith("Peak Memory Usage")]
document = claims.short(on_cpu["document"].iloc[0])
claimed = on_cpu.pivot(index="mechanism", columns="n", values="value")
first, last = claimed.columns.min(), claimed.columns.max()
MIB = 2**20
steps = (claimed[last] - claimed[first]) * MIB / (last - first)
rounding = 10.0**-3 * MIB / (last - first)  # both ends are rounded to a thousandth
ID_BYTES = torch.long.itemsize
comparison = pd.DataFrame(
    {
        "mechanism": claimed.index,
        f"claimed, n = {first}": list(claimed[first]),
        f"claimed, n = {last:,}": list(claimed[last]),
        "claimed growth, bytes per token": list(steps),
    }
)
for n in (first, last):
    ours = result.select("parameters_and_ids", size=MAIN, n=n).set_index("mechanism")["value"] * MB / MIB
    if len(ours):
        comparison[f"parameters and ids here, n = {n:,}, MiB"] = comparison["mechanism"].map(ours)
if last in settings["inference"]:
    real = result.select("peak_memory", phase="inference", n=last, **PLAIN).set_index("mechanism")["value"] * MB / MIB
    comparison[f"peak here, n = {last:,}, MiB"] = comparison["mechanism"].map(real)
figures.table(comparison, caption=f"Peak memory as claimed in {document}, MB", digits=5)
figures.show_provenance(result)
standard_weights = result.select(
    "memory_part", size=MAIN, phase="inference", mechanism="standard", part="parameters"
).iloc[0]
figures.say(
    f"From n = {first} to {last:,} the claimed numbers grow by {figures.number(steps.min(), 2)} to "
    f"{figures.number(steps.max(), 2)} bytes per token, with {figures.number(rounding, 2)} either way from rounding. A token "
    f"id takes {ID_BYTES}. The hidden state of one token alone takes {SIZES[MAIN]['hidden_dim'] * 4:,} bytes. "
    f"What does not grow is the parameters: standard attention's are "
    f"{figures.number(standard_weights['value'] * MB / MIB, 4)} MiB here, and the document says "
    f"{figures.number(claimed.loc['standard', first], 4)} MB. So these numbers hold neither an activation nor anything "
    f"else that a mechanism could save."
)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
logits = shown_n * SIZES[MAIN]["vocab_size"] * 4 / MB
backbone = peak("training_backbone", "bsbr", shown_n) / peak("training_backbone", "standard", shown_n)
saved = peak("training_backbone", "bsbr", shown_n) / peak("training_backbone", "bsbr", shown_n, "on")
scores = SIZES[MAIN]["num_heads"] * unfused**2 * 4 / MB
others = 1 / result.select("memory_relative", phase="inference", n=longest, **PLAIN).set_index("mechanism")["value"]
figures.say(
    f"The memory that attention is said to cost is that of its matrix of scores: {mb(scores)} for {SIZES[MAIN]['num_heads']} "
    f"heads at n = {unfused:,}. A fused kernel computes it in blocks and keeps none, so standard attention's peak grows "
    f"as {growth('inference', 'standard')} when reading, that of BSBR as {growth('inference', 'bsbr')}. What BSBR adds are "
    f"its own projections, the meta queries and keys, and one state per chunk. At n = {longest:,} the mechanisms hold from "
    f"{figures.number(others.min())} ({others.idxmin()}) to {figures.number(others.max())} ({others.idxmax()}) times what "
    f"standard attention holds.\n\n"
    f"In training on {shown_n:,} tokens a matrix of logits takes {mb(logits)}, and four of them are "
    f"{figures.number(4 * logits / peak('training', 'bsbr', shown_n) * 100, 2)} % of BSBR's peak, "
    f"{mb(peak('training', 'bsbr', shown_n))}. The backbone alone holds {mb(peak('training_backbone', 'bsbr', shown_n))}, "
    f"{more_or_less(backbone)} standard attention. Checkpointing divides "
    f"that by {figures.number(saved)}. Gradients of parameters take as much as the parameters, "
    f"{mb(part('training', 'bsbr', shown_n, 'gradients'))}, whatever the length and whatever the mechanism does with it.\n\n"
    f"Size {MAIN}: {', '.join(f'{name} {value:,}' for name, value in {**SIZES[MAIN], **COMMON}.items())}; float32, batch "
    f"of one."
)

# %% [markdown]
# ## Limits and exercises
#
# - Decoding is not measured here. What it keeps from token to token is each mechanism's state, on the page *The
#   mechanisms*.
# - Memory is only one side of a fused kernel: its time still grows with the square of the text. See *Inference time*.
# - Set `vocab_size` in `SIZES` to that of a pretrained model. Which mechanism's peak in training changes, and which does not?
# - Change `num_layers`. What of the difference between training with and without checkpointing grows with it?
