# %% [markdown]
# # Use of the machine
#
# How busy does each mechanism keep processor, memory, disk and, where there is one, the GPU, while a model reads or
# trains without a pause? And what power does that draw?

# %% tags=["remove-input"]
from bsbr.show import figures

answer, tested = figures.reserve("answer"), figures.reserve("claims' line")
main_chart, origin = figures.reserve("chart"), figures.reserve("source")

# %% [markdown]
# ## What was claimed
#
# One document states percentages of a CPU, and two state percentages and watts of a GPU, for three mechanisms. None says
# what was running.

# %% tags=["hide-input"]
from bsbr.show import claims
from bsbr.store.metrics import metric

CPU = ["cpu_utilisation", "memory_utilisation", "io_utilisation"]
GPU = ["gpu_utilisation", "gpu_memory_utilisation"]
QUANTITIES = [*CPU, "power", *GPU]


def title(name: str) -> str:
    return f"{metric(name).title} ({metric(name).unit})"


stated = claims.load(*QUANTITIES).drop_duplicates(["quantity", "mechanism"])
wide = stated.assign(quantity=stated["quantity"].map(title)).pivot(
    index="mechanism", columns="quantity", values="value"
)
figures.table(wide.rename_axis(columns=None).reset_index(), caption="Claimed")

# %% [markdown]
# ## Method
#
# The same backbone and sizes for every mechanism, float32, one row of random tokens. Two kinds of work run again and
# again without a pause, in windows of equal length:
#
# - **prefill**: `encode`, from token ids to the last hidden state, without gradients;
# - **training**: logits of every token, mean cross-entropy of the next ones, all gradients, and a step of AdamW.
#
# Meanwhile the machine is watched:
#
# - **CPU use** is the processor time of this process over wall time, as a share of *all* cores that it may run on. A
#   single busy thread on two cores is half of it;
# - **memory use** is the resident set of this process, PyTorch's libraries included, as a share of the machine's memory;
# - **I/O use** is the share of the time in which the busiest disk was busy, whoever kept it so. The work itself reads
#   and writes nothing;
# - **power** is what the processor's packages drew, by the energy counters that Linux shows where the hardware has them
#   and the system lets them be read (Intel RAPL), or what the GPU drew, by NVML;
# - **GPU use** is the share of the time in which any kernel ran, and **GPU memory use** the share of its memory in use,
#   by NVML. They are read where the work runs on a GPU.
#
# A value is the median over the windows, with a 95 % interval from order statistics. Windows follow one another, so a
# slow swing of the machine is in the interval only as far as it shows within them. All of it belongs to the machine.
# What this machine has no sensor for is said so, with the reason.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import itertools
import time
from collections.abc import Callable

import torch

from bsbr import MECHANISMS, stats
from bsbr.measure import machine, utilisation
from bsbr.store import Sweep, row
from bsbr.studies import passes

MAIN, LARGE = "256x2x4", "512x4x8"
SIZES = {
    MAIN: {"vocab_size": 10_000, "hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
    LARGE: {"vocab_size": 10_000, "hidden_dim": 512, "num_layers": 4, "num_heads": 8, "ff_dim": 2048},
}
COMMON = {"chunk_size": 128, "window_size": 128}
PROFILES = {
    "tiny": {"sizes": [MAIN], "n": 64, "windows": 7, "seconds": 0.05},
    "quick": {"sizes": [MAIN], "n": 1024, "windows": 7, "seconds": 0.5},
    "full": {"sizes": [MAIN, LARGE], "n": 1024, "windows": 8, "seconds": 1.0},
}
settings = PROFILES[profile]
device = machine.device(target)

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def work(size: str, phase: str, mechanism: str) -> Callable[[], None]:
    """One call of the work, which ends when the device has finished it."""
    kind, options = "inference" if phase == "prefill" else "training", {**SIZES[size], **COMMON}
    given = passes.make(kind, mechanism, settings["n"], device=device, **options)
    optimizer = torch.optim.AdamW(given.model.parameters())

    def once() -> None:
        given.run()
        if phase == "training":
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return once


def watch(once: Callable[[], None], seconds: float) -> dict[str, utilisation.Reading]:
    """What the machine did while the work ran again and again for that long."""
    with utilisation.Monitor(device) as monitor:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            once()
    return monitor.readings


def measure(size: str, phase: str, mechanism: str) -> list[dict]:
    once = work(size, phase, mechanism)
    once()  # what only a first call does is not sustained work
    windows = [watch(once, settings["seconds"]) for _ in range(settings["windows"])]
    rows = []
    for name, reading in windows[0].items():
        values = [window[name].value for window in windows if window[name].value is not None]
        if values:
            rows.append(row(name, stats.median(values)))
        else:
            rows.append(row(name, None, status="not_available", reason=reading.reason))
    return rows


# %% tags=["hide-input", "remove-output"]
PHASES = ["prefill", "training"]
cells = [
    {"size": size, "phase": phase, "mechanism": mechanism}
    for size in settings["sizes"]
    for phase in PHASES
    for mechanism in MECHANISMS
]
sweep = Sweep(
    "benchmarks/utilisation",
    target=target,
    profile=profile,
    parameters={"batch": 1, "dtype": "float32"},
)
result = sweep.publish(sweep.measure(cells, measure, machine_bound=True))

# %% tags=["remove-input"]
cores = result.provenance["machine"]["cores"]
threads = result.provenance["machine"]["threads"]
memory_gib = result.provenance["machine"]["memory_gib"]
missing = result.table[result.table["status"] != "ok"].drop_duplicates("metric")


def shown(name: str, **factors: object) -> str:
    """A number with its interval and unit, or that it was not measured."""
    found = result.select(name, size=MAIN, **factors).iloc[0]
    if found["status"] != "ok":
        return "not measured here"
    return f"{figures.interval(found['value'], found['low'], found['high'], 2)} {found['unit']}"


def spread(name: str, phase: str) -> str:
    """The least and the greatest of all mechanisms."""
    values = result.select(name, size=MAIN, phase=phase)["value"].dropna()
    if values.empty:
        return "not measured here"
    return f"{figures.number(values.min())} to {figures.number(values.max())} {metric(name).unit}"


main = "gpu_utilisation" if device.type == "cuda" else "cpu_utilisation"
holder = "the GPU" if device.type == "cuda" else f"the {cores} cores"
figures.say(
    f"**Reading keeps {holder} busy to {shown(main, phase='prefill', mechanism='bsbr')} with BSBR and "
    f"{shown(main, phase='prefill', mechanism='standard')} with standard attention; training to "
    f"{shown(main, phase='training', mechanism='bsbr')} and {shown(main, phase='training', mechanism='standard')}.** "
    f"Threads of PyTorch: {threads}. Over all mechanisms it is {spread(main, 'prefill')} in reading and "
    f"{spread(main, 'training')} in training: a share of use says how well the work fills the machine, not how much work "
    f"there is. Power while BSBR reads: {shown('power', phase='prefill', mechanism='bsbr')}.",
    answer,
)
figures.say(claims.line(result), tested)
rows = result.select(main, size=MAIN)
chart = figures.bars(
    rows, "mechanism", group="phase", title=f"{metric(main).title}, n = {settings['n']:,}, size {MAIN}"
)
chart.update_yaxes(range=[0, 100])
figures.show(chart, "use", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## All quantities

# %% tags=["remove-input"]
for size, phase in itertools.product(settings["sizes"], PHASES):
    rows = result.table[(result.table["phase"] == phase) & (result.table["size"] == size)]
    titled = rows.assign(
        quantity=rows["metric"].map(title), status=rows["status"].replace("not_available", "not measured here")
    )
    figures.table(
        figures.pivot(titled, "mechanism", "quantity"),
        caption=f"{phase.capitalize()}, n = {settings['n']:,}, size {size}: median and 95 % interval",
    )
figures.show_provenance(result)

# %% [markdown]
# What is not measured here, and why:

# %% tags=["remove-input"]
figures.say("\n".join(f"- {title(lost['metric'])}: {lost['reason']}" for _, lost in missing.iterrows()) or "- nothing")

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
resident = result.select("memory_utilisation", size=MAIN, phase="prefill", mechanism="bsbr").iloc[0]["value"]
figures.say(
    f"One document gives standard attention the highest use of the processor. Use by itself is no cost: a "
    f"mechanism that leaves cores idle takes longer for the same work. What tells mechanisms apart is the time, on the "
    f"page *Inference time*; here they differ by as much as each has steps that one thread does alone, or that are too "
    f"short to be shared.\n\n"
    f"Memory use in reading is {spread('memory_utilisation', 'prefill')} of {memory_gib:g} GiB, with "
    f"{figures.number(resident * memory_gib * 1024 / 100, 2)} MiB for BSBR. Nearly all of it is PyTorch itself and what "
    f"earlier cells left; the bytes of each mechanism are on the page *Memory*. The disk was busy for "
    f"{spread('io_utilisation', 'prefill')} of the time in reading, by others: this work reads and writes nothing.\n\n"
    f"Size {MAIN}: {', '.join(f'{name} {value:,}' for name, value in {**SIZES[MAIN], **COMMON}.items())}; float32, batch of one; "
    f"{settings['windows']} windows of {settings['seconds']:g} s."
)

# %% [markdown]
# ## Limits and exercises
#
# - Power by these counters is that of the whole package, idle cores included. In a virtual machine it is mostly hidden.
# - NVML calls a GPU busy if any kernel runs, however little of the GPU it fills.
# - Set OMP_NUM_THREADS to one. Which mechanism loses least time? Which part of its use falls?
