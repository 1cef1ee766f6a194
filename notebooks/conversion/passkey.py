# %% [markdown]
# # The passkey
#
# Is a passkey that is hidden thousands of tokens back in real text still found by a converted model, and does it take
# the retrieval to find it?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

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
# The task is that of {cite:t}`mohtashami2023` with real text for filler: a stretch of a
# State of the Union address, near its start a line that tells five random digits, and at its end a question for them.
# Between the end of the line and the end of the question lie as many tokens as the distance says. The passkey counts as
# found if each digit is the model's first choice after the right digits before it, which is when greedy decoding writes
# all five. Each trial has digits, a stretch and a start of its own, by a fixed seed.
#
# Averages over tokens do not show such a loss: one line matters, and few of a model's heads read it. Such retrieval
# heads are few in every model that {cite:t}`wu2024` looked at. So the layers are tried one
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
# The line stands behind the sinks of all settings and well before their local windows, so that none reads it as near text.
#
# In a trial all models read the same prompt, one pass over the whole of it with a batch of one. Shares of trials have the
# interval of Clopper and Pearson. Models that are held against each other are held on the same trials: where one was tried
# on fewer, a table has both over those. Time is measured apart: the models read one prompt in turn, round after round, and a
# speedup is the median of the ratios within a round, with a 95 % interval by order statistics.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from dataclasses import replace

import pandas as pd
import torch

from bsbr import ConversionConfig, convert, sources, stats
from bsbr.measure import machine, speed
from bsbr.store import Sweep, row
from bsbr.studies import documents, passkey, pretrained, tasks
from bsbr.studies import settings as known

TOP_K = ConversionConfig(chunk_size=8, local_chunks=32, sink_tokens=32, retrieval="top_k", top_k=128, block_size=4)
NO_RETRIEVAL = replace(TOP_K, retrieval="none")
SETTING, WITHOUT, ORIGINAL = "kept + top-k", "kept + no retrieval", known.ORIGINAL
SETTINGS = {
    SETTING: TOP_K,
    WITHOUT: NO_RETRIEVAL,
    "all + top-k": TOP_K,
    "all + no retrieval": NO_RETRIEVAL,
    "top-16": known.TOP_16,
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
        "rounds": 1, "timed": {300: [SETTING]},
    },
    "quick": {
        "layers": [7, 18], "layer_trials": 1, "trials": 1, "without_trials": 1, "all_trials": 0, "near": [500],
        "near_trials": 2, "float32_trials": 0, "rounds": 7, "timed": {500: [SETTING]},
    },
    "full": {
        "layers": list(range(30)), "layer_trials": 1, "trials": 50, "without_trials": 12, "all_trials": 1,
        "near": NEAR, "near_trials": 2, "float32_trials": 1, "rounds": 7,
        "timed": {2000: [SETTING], FAR: [SETTING, WITHOUT, "top-16"]},
    },
}  # fmt: skip
settings = {"layers_distance": LAYERS_DISTANCE, "far": FAR, **PROFILES[profile]}
far, ROUNDS, TIMED = (settings[name] for name in ("far", "rounds", "timed"))
TRIALS_OF_WITHOUT, TRIALS_OF_ALL = settings["without_trials"], settings["all_trials"]
device = machine.device(target)
figures.table(known.frame(SETTINGS), caption="The settings (compression factor 0: none)")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
@functools.cache
def texts(split: str) -> dict[str, torch.Tensor]:
    """The ids of the speeches that are long enough for the farthest passkey."""
    tokenizer = pretrained.load("SmolLM2", "bfloat16", device)[1]
    found = {speech.key: documents.ids_of(speech.key, tokenizer)[0] for speech in sources.load_speeches(split)}
    return {key: ids for key, ids in found.items() if len(ids) >= passkey.longest(FAR)}


def document_of(split: str, trial: int) -> str:
    """Documents in turn."""
    keys = list(texts(split))
    return keys[trial % len(keys)]


def asked(split: str, document: str, distance: int, trial: int) -> passkey.Prompt:
    tokenizer = pretrained.load("SmolLM2", "bfloat16", device)[1]
    return passkey.prompt(tokenizer, texts(split)[document], distance, seed=SEED + trial)


def layer_likelihood(
    phase: str, dtype: str, distance: int, trial: int, document: str, setting: str, layer: int | None = None
) -> list[dict]:
    """Log-likelihood of the passkey with one layer converted, or with none."""
    model = pretrained.load("SmolLM2", dtype, device)[0]
    if layer is not None:
        model = convert(model, replace(SETTINGS[setting], layers=(layer,)))
    return [row("answer_likelihood", passkey.score(model, asked("development", document, distance, trial)).likelihood)]


@functools.cache
def model_of(dtype: str, setting: str, kept: str) -> object:
    """The original, or its conversion with these layers left as they are, if the setting keeps any."""
    model = pretrained.load("SmolLM2", dtype, device)[0]
    if setting == ORIGINAL:
        return model
    layers = [layer for layer in range(model.config.num_hidden_layers) if str(layer) not in kept.split()]
    config = SETTINGS[setting]
    return convert(model, replace(config, layers=tuple(layers)) if setting in (SETTING, WITHOUT) else config)


def settings_of(dtype: str, distance: int, trial: int) -> list[str]:
    """Those that a trial is made with: the fewer, the more it costs and the less there is to tell apart."""
    names = [ORIGINAL, SETTING]
    if dtype == "bfloat16" and distance == far:
        names += [WITHOUT] * (trial < TRIALS_OF_WITHOUT)
        names += [name for name in SETTINGS if name not in (*names, WITHOUT) and trial < TRIALS_OF_ALL]
    return names


def make_trial(phase: str, dtype: str, distance: int, trial: int, document: str, kept: str, setting: str) -> list[dict]:
    """Whether a model names the passkey of a prompt, and how likely the whole of it is to it."""
    score = passkey.score(model_of(dtype, setting, kept), asked("held_out", document, distance, trial))
    return [row("retrieval_accuracy", 100.0 * score.found), row("answer_likelihood", score.likelihood)]


def time_prompt(phase: str, dtype: str, distance: int, document: str, kept: str) -> list[dict]:
    """The models read one prompt in turn."""
    ids = asked("held_out", document, distance, 0).ids[None].to(device)
    models = {name: model_of(dtype, name, kept) for name in [ORIGINAL, *TIMED[distance]]}
    passes = {name: tasks.generate_prefill_task(model, ids) for name, model in models.items()}
    taken = speed.interleave(passes, min_rounds=ROUNDS, max_rounds=ROUNDS)
    return tasks.timed_rows(taken, "setting", baseline=ORIGINAL)


sweep = Sweep(
    "conversion/passkey",
    target=target,
    profile=profile,
    parameters={"settings": known.parameters(SETTINGS), "far": far, "rounds": ROUNDS, "batch": 1},
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
        "setting": ORIGINAL if layer is None else ALONE,
        **({} if layer is None else {"layer": layer}),
    }
    for trial in range(settings["layer_trials"])
    for layer in [None, *settings["layers"]]
]
alone = sweep.measure(cells, layer_likelihood, machine_bound=False)


# %% [markdown]
# The rule that names the layers to keep, and then the trials.


# %% tags=["hide-input", "remove-output"]
without_any = alone[alone["layer"].isna()]["value"].mean()
lost = without_any - alone[alone["layer"].notna()].groupby("layer")["value"].mean()
kept = sorted(stats.costliest({int(layer): cost for layer, cost in lost.items()}, above=LEAST_LOSS, most=MOST_KEPT))
KEPT = " ".join(map(str, kept)) or "none"
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
        "kept": KEPT,
        "setting": setting,
    }
    for dtype, distance, trials in plan
    for trial in range(trials)
    for setting in settings_of(dtype, distance, trial)
]
tried = sweep.measure(cells, make_trial, machine_bound=False)
at = [
    {
        "phase": "prefill",
        "dtype": "bfloat16",
        "distance": distance,
        "document": document_of("held_out", 0),
        "kept": KEPT,
    }
    for distance in TIMED
]
timed = sweep.measure(at, time_prompt, machine_bound=True)

# %% [markdown]
# Over the trials: shares and means. Settings have made the first trials, some of them more than others; so of each number of
# trials that a setting has made there is a row for all settings that have made as many.


# %% tags=["hide-input"]
def over_trials_of(rows: pd.DataFrame) -> list[dict]:
    found = []
    for _, part in rows.groupby(["phase", "dtype", "distance", "kept"], sort=False):
        made = part.groupby("setting")["trial"].nunique()
        for trials in sorted(set(made), reverse=True):
            own = part[(part["trial"] < trials) & part["setting"].isin(made[made >= trials].index)]
            found += documents.averages(own.assign(trials=trials), "trial", without=["document"])
    return found


result = sweep.publish(
    pd.concat(
        [
            alone,
            tried,
            timed.drop(columns="document"),
            pd.DataFrame(documents.averages(alone, "trial", without=["document"]) + over_trials_of(tried)),
        ],
        ignore_index=True,
    )
)

# %% tags=["remove-input"]
OVER_TRIALS = {name: None for name in ("trial", "document") if name in result.table}
TRIALS = {"phase": "trials", "dtype": "bfloat16", "distance": far}
PREFILL = {**TRIALS, "phase": "prefill"}


def over_trials(metric: str, **where: object) -> pd.DataFrame:
    return result.select(metric, **{**OVER_TRIALS, **where})


def trials_of(where: dict = TRIALS, setting: str = SETTING) -> int:
    """How many trials a setting has made; none if it was not tried."""
    made = over_trials("retrieval_accuracy", **where, setting=setting)["trials"]
    return int(made.max()) if len(made) else 0


def settings_found(where: dict) -> list[str]:
    there = set(over_trials("retrieval_accuracy", **where)["setting"])
    return [name for name in [ORIGINAL, *SETTINGS] if name in there]


def number(metric: str, setting: str, where: dict, **more: object) -> pd.Series:
    return over_trials(metric, **where, setting=setting, **more).iloc[0]


def shown(metric: str, setting: str, where: dict, digits: int = 3) -> str:
    found = number(metric, setting, where)
    return figures.interval(found["value"], found["low"], found["high"], digits)


def outcomes(setting: str) -> pd.Series:
    """Whether each trial found the passkey, by its number."""
    rows = result.select("retrieval_accuracy", **TRIALS, setting=setting)
    return rows[rows["trial"].notna()].set_index("trial")["value"] > 0


def listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


made = trials_of()
MOST = TRIALS | {"trials": made}  # the trials of original and setting
FEWER = TRIALS | {"trials": trials_of(setting=WITHOUT)}  # those that the setting without retrieval has made too
FEWEST = TRIALS | {"trials": trials_of(setting="top-16")}
lost_points = (
    number("retrieval_accuracy", ORIGINAL, MOST)["value"] - number("retrieval_accuracy", SETTING, MOST)["value"]
)
compared = (
    "as often as"
    if not lost_points
    else f"{figures.number(abs(lost_points))} points {'less' if lost_points > 0 else 'more'} often than"
)
opening = (
    f"**{far:,} tokens back, the converted model finds the passkey in {shown('retrieval_accuracy', SETTING, MOST)} % of "
    f"{made} trials, {compared} the original, which finds it in {shown('retrieval_accuracy', ORIGINAL, MOST)} %"
)
if far in TIMED:
    faster = number("speedup", SETTING, PREFILL)
    pace = (
        "in less time"
        if (faster["value"] if pd.isna(faster["low"]) else faster["low"]) > 1
        else "but not measurably faster"
    )
    opening += f", {pace}: its speed is {shown('speedup', SETTING, PREFILL)} times the original's"
opening += (
    f".** Of {pretrained.load('SmolLM2', 'bfloat16', device)[0].config.num_hidden_layers} layers, {len(kept)} keep full "
    f"attention ({listed(kept)})."
)
if FEWER["trials"]:
    opening += (
        f" Of the first {FEWER['trials']} trials the setting finds {shown('retrieval_accuracy', SETTING, FEWER)} %, and the "
        f"same model without retrieval {shown('retrieval_accuracy', WITHOUT, FEWER)} %."
    )
if FEWEST["trials"]:
    opening += (
        f" With no layer kept, the default `top-16` finds {shown('retrieval_accuracy', 'top-16', FEWEST)} % of the first "
        f"{FEWEST['trials']}, and the setting's own retrieval {shown('retrieval_accuracy', 'all + top-k', FEWEST)} %."
    )
figures.say(opening, answer)
figures.say(claims.line(result), claimed)

by_distance = over_trials("retrieval_accuracy", phase="trials", dtype="bfloat16")
by_distance = by_distance[by_distance["setting"].isin([ORIGINAL, SETTING])]
most = by_distance.groupby("distance")["trials"].transform("max")
by_distance = by_distance[by_distance["trials"] == most].sort_values("distance", kind="stable")
chart = figures.lines(
    by_distance, "distance", group="setting", x_title="tokens between passkey and answer",
    log_x=by_distance["distance"].nunique() > 1, title="Passkeys found, by distance",
)  # fmt: skip
figures.show(chart.update_yaxes(range=[-5, 105]), "distance", main_chart)
figures.say(figures.provenance_line(result), origin)


# %% [markdown]
# ## Setting by setting


# %% tags=["remove-input"]
def by_setting(where: dict, what: str) -> None:
    """A table for each number of trials that a setting has made, with all that have made as many."""
    for trials in sorted(set(over_trials("retrieval_accuracy", **where)["trials"]), reverse=True):
        at = where | {"trials": trials}
        rows = [
            {
                "setting": name,
                "passkeys found (%)": shown("retrieval_accuracy", name, at),
                "log-likelihood (nats)": shown("answer_likelihood", name, at),
            }
            for name in settings_found(at)
        ]
        which = f"the same {trials} trials" if trials > 1 else "one trial"
        figures.table(pd.DataFrame(rows), caption=f"{what}: {which} in each line")


by_setting(TRIALS, f"{far:,} tokens back, bfloat16")
for distance in TIMED:
    at = PREFILL | {"distance": distance}
    rows = [
        {
            "setting": name,
            "seconds a prompt": shown("time", name, at),
            "speedup": "–" if name == ORIGINAL else shown("speedup", name, at),
        }
        for name in [ORIGINAL, *TIMED[distance]]
    ]
    figures.table(pd.DataFrame(rows), caption=f"Reading one prompt with the passkey {distance:,} tokens back, bfloat16")
figures.show_provenance(result)

# %% [markdown]
# ## By distance

# %% tags=["remove-input"]
if settings["near"]:
    figures.table(
        figures.pivot(
            by_distance.assign(at=[f"{r.distance:,}, {r.trials} trials" for r in by_distance.itertuples()]),
            "at",
            "setting",
        ).rename(columns={"at": "distance"}),
        caption="Passkeys found (%), by distance",
    )
    figures.show_provenance(result)
else:
    figures.say("Only one distance is measured in this profile.")

# %% [markdown]
# ## In float32

# %% tags=["remove-input"]
if settings["float32_trials"]:
    by_setting(TRIALS | {"dtype": "float32"}, f"{far:,} tokens back, float32, the first of the same prompts")
    figures.show_provenance(result)
else:
    figures.say("It is measured in the full profile only.")

# %% [markdown]
# ## Layer by layer
#
# What the whole passkey loses in log-likelihood when one layer alone reads near text only.

# %% tags=["remove-input"]
LAYERS = {"phase": "layers", "distance": settings["layers_distance"]}
before = over_trials("answer_likelihood", **LAYERS, setting=ORIGINAL).iloc[0]["value"]
likelihoods = over_trials("answer_likelihood", **LAYERS, setting=ALONE).sort_values("layer")
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
pair = stats.pair(*(outcomes(name).sort_index() for name in (ORIGINAL, SETTING)))
uneven = pair.only_first + pair.only_second
sentences = [
    f"**The same prompts.** Of {made} prompts {far:,} tokens back, {pair.both} are answered by both, "
    f"{pair.only_first} by the original alone and {pair.only_second} by the conversion alone"
    + (
        f"; so uneven a split, or more so, has probability {figures.number(pair.probability)} if both are equally good "
        f"(McNemar's exact test)."
        if uneven
        else "."
    )
]
if FEWER["trials"]:
    gained = number("answer_likelihood", SETTING, FEWER)["value"] - number("answer_likelihood", WITHOUT, FEWER)["value"]
    sentences.append(
        f"**What retrieval does.** The layers that are kept read everything in both models. With retrieval in the others "
        f"the passkey's log-likelihood is {figures.number(abs(gained))} nats {'higher' if gained > 0 else 'lower'} than "
        f"without on the same {FEWER['trials']} trials, and it is found in {shown('retrieval_accuracy', SETTING, FEWER)} % "
        f"instead of {shown('retrieval_accuracy', WITHOUT, FEWER)} % of them."
    )
if WITHOUT in TIMED.get(far, []):
    slower = number("time", SETTING, PREFILL)["value"] / number("time", WITHOUT, PREFILL)["value"]
    sentences.append(f"**What it costs.** A prompt takes {figures.number(slower)} times as long as without retrieval.")
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
#   `bsbr.studies.sensitivity.least_sensitive` does so by divergence.
# - With chunks as long as the default's, the question mostly lies in the chunk that reads and not in the one that chooses.
#   Try `chunk_size` in `TOP_K`: what does it cost, and what does it find?
# - An earlier setting, with blocks of eight, was tried on the same held-out prompts and found fewer. The blocks of four
#   were chosen on development speeches, but not without knowing that.
# - Each layer is tried alone. Layers that can stand in for each other show little, and lose more together.
# - Trials are single passes over the prompt, and one prompt is timed. The time of writing the answer, and the memory of the cache, stand under
#   [speed and memory](speed_and_memory.ipynb).
