# %% [markdown]
# # Attention sparsity
#
# How many of a token's attention weights matter, within its own chunk of text and between chunks, and how does that
# change with the length of the text?

# %% tags=["remove-input"]
from bsbr import figures

answer, verdicts, main_chart, origin = (figures.reserve(what) for what in ("answer", "verdict", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document gives BSBR a sparsity within chunks, between them and overall, and standard attention none at all. It
# does not say whether that was counted or measured. Another gives the density of a converted model's attention by
# length, as the share of its weights above a threshold, and does not say which threshold.

# %% tags=["hide-input"]
from bsbr import claims

stated = claims.load("sparsity", "density")
figures.table(
    stated[["document", "section", "quantity", "mechanism", "conditions", "value", "unit"]].assign(
        document=stated["document"].map(claims.short)
    ),
    caption="Claimed: how sparse attention is",
)

# %% [markdown]
# ## Method
#
# A weight $w_{ti}$ is how much of token $i$'s value goes into output $t$. With queries and keys fixed, every mechanism
# here is linear in the values, so feeding the columns of the identity matrix as values brings out every weight of any
# mechanism, also of those that never compute one. In softmax attention these are the usual attention weights.
#
# **Density** is the share of weights above a threshold, of all pairs of a token with itself or an earlier one: the other
# half of the square is not attention, and counting it would make any causal model look sparse. *Within* are pairs in one
# chunk, *between* are pairs in two. Zero as the threshold asks which pairs carry a weight at all.
#
# - **By structure**: for each mechanism, which pairs *can* carry a weight. One head, with random weights and only
#   positive queries and keys, so that nothing cancels or is cut off at zero.
# - **In a trained model**: every layer and head of `SmolLM2-135M-Instruct` reading held-out speeches, and of its
#   conversion by the default settings, on the same texts. A value is the mean over all layers and heads, then over
#   speeches, with a 95 % interval by Student's t that takes speeches as independent.
#
# **Weights that carry the mass**: how few of a token's weights add up to a given share of their sum, as a share of all
# that it could have. A softmax is never exactly zero, so this says more about a trained model than a threshold does.
#
# Attention is causal, so the map of the first tokens of a text is the corner of the map of all of it: each text is read
# once, at the longest length.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from bsbr import MECHANISMS, ConversionConfig, ModelConfig, convert
from bsbr.measure import attention_maps, machine, similarity
from bsbr.mixers import Rotary
from bsbr.results import Sweep, row
from bsbr.tasks import sources

CONVERSION = ConversionConfig()
CHUNK = CONVERSION.chunk_size
ONE_HEAD = {"hidden_dim": 64, "num_heads": 1, "key_dim": 64, "chunk_size": CHUNK, "window_size": CHUNK}
THRESHOLDS = (0.0, 1e-4, 1e-3, 1e-2)
MASSES = (90, 95, 99)  # %
MASS_EVERY = 4  # sorting is slow: of the tokens, every fourth is asked how many weights carry its mass
BY_LAYER = 1e-3  # the threshold at which layers are told apart
FEWEST_FOR_INTERVAL = 4  # speeches
# "tiny" looks at the mechanisms alone: loading the trained model takes longer than that profile may.
PROFILES = {
    "tiny": {"lengths": [128, 256], "documents": 0},
    "quick": {"lengths": [128, 256, 512], "documents": 4},
    "full": {"lengths": [128, 256, 512, 1024, 2048, 4096], "documents": 4},
}
settings = PROFILES[profile]
lengths, longest = settings["lengths"], max(settings["lengths"])
device = machine.device(target)
keys = [speech.key for speech in sources.load_speeches("held_out")] if settings["documents"] else []
documents = [keys[i * len(keys) // settings["documents"]] for i in range(settings["documents"])]

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
SCOPES = ("within", "between", "overall")


def scoped(counts: np.ndarray) -> np.ndarray:
    """(…, 2) within and between, as (…, 3) with their sum."""
    return np.concatenate([counts, counts.sum(-1, keepdims=True)], axis=-1)


PAIRS = scoped(np.cumsum([attention_maps.pairs(start, start + CHUNK) for start in range(0, longest, CHUNK)], axis=0))


def density_rows(counts: np.ndarray) -> list[dict]:
    """Densities at each length from the counts of one map or the mean of several, (chunks, thresholds, scopes)."""
    rows = []
    for n in lengths:
        chunks = n // CHUNK
        total = counts[:chunks].sum(0)
        for scope, pairs, found in zip(SCOPES, PAIRS[chunks - 1], total.T, strict=True):
            for threshold, count in zip(THRESHOLDS, found, strict=True):
                where = {"n": n, "scope": scope, "threshold": threshold}
                if pairs == 0:
                    rows.append(row("density", None, status="not_available", reason="there is one chunk", **where))
                else:
                    rows.append(row("density", 100 * float(count) / float(pairs), **where))
    return rows


def by_structure(model: str) -> list[dict]:
    """What one head of a mechanism can read."""
    torch.manual_seed(0)
    mixer = MECHANISMS[model](ModelConfig(model, **ONE_HEAD)).to(device)
    x = torch.randn(1, longest, ONE_HEAD["hidden_dim"]).to(device)
    rotary = Rotary.at(torch.arange(longest, device=device)[None], mixer.rotary_dim, x.dtype)
    with torch.inference_mode():
        found = attention_maps.of_mixer(mixer, x, rotary, positive=True)[0].abs().cpu().numpy()
    chunks = [found[:, start : start + CHUNK, : start + CHUNK] for start in range(0, longest, CHUNK)]
    counts = np.array([attention_maps.count_above(rows, 0.0).sum(0) for rows in chunks])
    rows = density_rows(scoped(counts)[:, None].repeat(len(THRESHOLDS), axis=1))
    return [one for one in rows if one["threshold"] == 0]


@functools.cache
def original() -> tuple:
    model, tokenizer = sources.load_smollm2()
    return model.to(device), tokenizer


def in_a_trained_model(model: str, document: str) -> list[dict]:
    """Every layer and head while the model reads one speech."""
    network, tokenizer = original()
    network = network if model == "smollm2" else convert(network, CONVERSION)
    speech = next(speech for speech in sources.load_speeches("held_out") if speech.key == document)
    ids = tokenizer(speech.text, return_tensors="pt")["input_ids"][:, :longest].to(device)
    above, carrying = [], []

    def look(layer: attention_maps.Layer) -> None:
        for start, end in attention_maps.by_chunk(layer, CHUNK):
            rows = layer.rows(start, end).cpu().numpy()
            above.append([attention_maps.count_above(rows, threshold).mean(0) for threshold in THRESHOLDS])
            few = attention_maps.count_for_mass(rows[:, ::MASS_EVERY], [mass / 100 for mass in MASSES])
            carrying.append(few.mean(0))

    attention_maps.visit(network, ids, look)
    chunks = longest // CHUNK
    counts = scoped(np.array(above).reshape(-1, chunks, len(THRESHOLDS), 2))
    rows = density_rows(counts.mean(0))
    level, overall = THRESHOLDS.index(BY_LAYER), SCOPES.index("overall")
    for index, share in enumerate(counts[:, :, level, overall].sum(1) / PAIRS[-1, overall]):
        where = {"n": longest, "scope": "overall", "threshold": BY_LAYER, "layer": index}
        rows.append(row("density", 100 * float(share), **where))
    asked = np.arange(longest)[(np.arange(longest) % CHUNK) % MASS_EVERY == 0]
    few = np.array(carrying).reshape(-1, chunks, len(MASSES)).mean(0)
    for n in lengths:
        could = float((asked[asked < n] + 1).sum())
        for mass, count in zip(MASSES, few[: n // CHUNK].sum(0), strict=True):
            rows.append(row("weights_for_mass", 100 * float(count) / could, n=n, mass=mass))
    return rows


# %% tags=["hide-input", "remove-output"]
sweep = Sweep(
    "experiments/attention_sparsity",
    target=target,
    profile=profile,
    parameters={
        "conversion": asdict(CONVERSION),
        "one_head": ONE_HEAD,
        "longest": longest,
        "lengths": lengths,
        "mass_every": MASS_EVERY,
        "documents": documents,
        "dtype": "float32",
    },
    code=[attention_maps, density_rows],
    sources=[sources.pin_path("smollm2"), sources.pin_path("speeches")] if documents else [],
)
structure = sweep.measure([{"model": name} for name in MECHANISMS], by_structure)
TRAINED = ["smollm2", "smollm2 converted"]
cells = [{"model": model, "document": document} for document in documents for model in TRAINED]
read = sweep.measure(cells, in_a_trained_model) if cells else None

# %% tags=["hide-input"]
FACTORS = ["metric", "model", "n", "scope", "threshold", "layer", "mass"]


def over_documents(rows: pd.DataFrame) -> list[dict]:
    """Each number's mean over the speeches."""
    found = []
    for key, part in rows.groupby(FACTORS, dropna=False, sort=False):
        where = {name: None if pd.isna(value) else value for name, value in zip(FACTORS[1:], key[1:], strict=True)}
        if part["value"].isna().all():
            first = part.iloc[0]
            found.append(row(key[0], None, status=first["status"], reason=first["reason"], **where))
            continue
        mean = similarity.mean(list(part["value"]))
        low, high = (mean.low, mean.high) if mean.samples >= FEWEST_FOR_INTERVAL else (None, None)
        found.append(row(key[0], mean.value, low=low, high=high, samples=mean.samples, **where))
    return found


means = [] if read is None else [pd.DataFrame(over_documents(read))]
result = sweep.publish(pd.concat([structure, *means], ignore_index=True))


# %% tags=["remove-input"]
def percent(found: pd.Series) -> str:
    """A number with its interval, unless all speeches agree."""
    if found["low"] == found["high"]:
        return f"{figures.number(found['value'])} %"
    return f"{figures.interval(found['value'], found['low'], found['high'])} %"


def density(model: str, threshold: float = 0.0, scope: str = "overall", n: int = longest) -> str:
    """A density with its interval, in words."""
    where = {"layer": None} if documents else {}
    found = result.select("density", model=model, n=n, scope=scope, threshold=threshold, **where).iloc[0]
    return percent(found)


def mass(model: str, share: int, n: int = longest) -> str:
    found = result.select("weights_for_mass", model=model, n=n, mass=share).iloc[0]
    return percent(found)


def series(rows: pd.DataFrame) -> pd.Series:
    """A line's name: the model, and the threshold that its weights are above."""
    return rows["model"] + rows["threshold"].map(lambda threshold: f", above {threshold:g}")


if documents:
    said = (
        f"**Reading {longest:,} tokens, SmolLM2 has {density('smollm2', BY_LAYER)} of its attention weights above "
        f"{BY_LAYER:g}, and the largest {mass('smollm2', MASSES[0])} of all carry {MASSES[0]} % of the mass; its "
        f"conversion gives {density('smollm2 converted')} of all pairs a weight.** BSBR is sparse by reads and dense "
        f"by weights: it lets {density('bsbr')} of the pairs carry one, as standard attention does, since a state "
        f"holds every token of its chunk. Of the seven mechanisms only the window leaves pairs out "
        f"({density('sliding_window')} can carry a weight)."
    )
else:
    said = (
        f"**By structure, BSBR lets {density('bsbr')} of all pairs carry a weight at n = {longest:,}, a window of "
        f"{CHUNK} tokens {density('sliding_window')}.** This profile does not look at a trained model."
    )
figures.say(said, answer)
figures.say(claims.line(result), verdicts)

overall = result.select("density", scope="overall")
if documents:
    overall = overall[
        overall["layer"].isna() & overall["model"].isin(TRAINED) & overall["threshold"].isin([0, BY_LAYER])
    ]
    overall = overall.assign(line=series(overall))
else:
    overall = overall.assign(line=overall["model"])
chart = figures.lines(
    overall, "n", group="line", title="Share of the causal pairs of tokens that carry a weight", x_title="n (tokens)",
    y_title="density (%)", log_x=True, log_y=True,
)  # fmt: skip
if documents:
    by_document = stated[(stated["quantity"] == "density") & (stated["mechanism"] == "bsbr")]
    figures.add_claim(chart, by_document["n"], by_document["value"], "converted, claimed")
chart.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"}, height=460)
figures.show(figures.axis_toggle(chart), "density", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## By structure

# %% tags=["remove-input"]
possible = result.select("density", threshold=0.0)
possible = possible[possible["model"].isin(list(MECHANISMS))]
for scope in SCOPES:
    figures.table(
        figures.pivot(possible[possible["scope"] == scope], "model", "n"),
        caption=f"Share of the pairs {scope if scope == 'overall' else f'{scope} chunks of {CHUNK} tokens'} that can "
        "carry a weight (%), by n",
    )
figures.show_provenance(result)

# %% tags=["remove-input"]
inside, everything = PAIRS[-1, 0], PAIRS[-1, 2]
figures.say(
    f"Whether BSBR is sparse depends on what is counted. A token reads the tokens of its own chunk one by one: at "
    f"n = {longest:,} that is {figures.number(100 * inside / everything)} % of all pairs, and none of those between "
    f"chunks. What it reads of earlier chunks comes through their states, and through them every earlier token "
    f"reaches it, with a weight that may be negative and that it cannot choose token by token. So counted by "
    f"reads the pattern between chunks is empty, counted by weights it is full, and nothing between the two is a "
    f"property of the mechanism."
)

# %% [markdown]
# ## In a trained model

# %% tags=["remove-input"]
if documents:
    trained = result.select("density")
    trained = trained[trained["layer"].isna() & trained["model"].isin(TRAINED)]
    for scope in SCOPES:
        part = trained[trained["scope"] == scope]
        figures.table(
            figures.pivot(part.assign(line=series(part)), "line", "n"),
            caption=f"Density {scope} chunks of {CHUNK} tokens (%), by n"
            if scope != "overall"
            else "Density overall (%), by n",
        )
    figures.show_provenance(result)
else:
    figures.say("This profile does not look at a trained model.")

# %% tags=["hide-input"]
if documents:
    levels = trained[(trained["n"] == longest) & (trained["threshold"] > 0)]
    chart = figures.lines(
        levels.assign(line=levels["model"] + ", " + levels["scope"]), "threshold", group="line", log_x=True, log_y=True,
        title=f"Density by threshold, {longest:,} tokens", y_title="density (%)",
    )  # fmt: skip
    chart.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"}, height=460)
    figures.show(chart, "threshold")
    figures.show_provenance(result)

# %% [markdown]
# ## How few weights carry the mass

# %% tags=["hide-input"]
if documents:
    few = result.select("weights_for_mass")
    few = few.assign(line=few["model"] + few["mass"].map(lambda mass: f", {mass} % of the mass"))
    chart = figures.lines(
        few, "n", group="line", log_x=True, log_y=True, title="Fewest weights that carry a share of a token's mass",
        x_title="n (tokens)", y_title="share of its weights (%)",
    )  # fmt: skip
    chart.update_layout(legend={"orientation": "h", "y": -0.25, "yanchor": "top"}, height=460)
    figures.show(chart, "mass")
    figures.table(figures.pivot(few, "line", "n"), caption="Share of a token's weights (%), by n")
    figures.show_provenance(result)
else:
    figures.say("This profile does not look at a trained model.")

# %% [markdown]
# ## Layer by layer

# %% tags=["hide-input"]
if documents:
    layers = result.select("density")
    layers = layers[layers["layer"].notna()]
    chart = figures.lines(
        layers,
        "layer",
        group="model",
        title=f"Weights above {BY_LAYER:g} by layer, {longest:,} tokens",
        y_title="density (%)",
    )
    figures.show(chart, "layers")
    figures.show_provenance(result)
else:
    figures.say("This profile does not look at a trained model.")

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
if documents:
    claimed = by_document.set_index("n")["value"]
    shares = [result.value("weights_for_mass", model="smollm2", n=n, mass=MASSES[0]) for n in (lengths[0], longest)]
    moved = "falls as well" if shares[1] < shares[0] else "does not fall"
    dense = stated[(stated["quantity"] == "density") & (stated["mechanism"] == "standard")]["value"].max()
    shared = [n for n in lengths if n in claimed.index]
    compared = "; ".join(
        f"{figures.number(claimed[n])} % at n = {n:,}, measured {density('smollm2 converted', n=n)}" for n in shared
    )
    shortest, kept = lengths[0], CONVERSION.top_k * CONVERSION.block_size + CONVERSION.sink_tokens
    all_read = next(c for c in range(longest) if CONVERSION.far_end(c) > kept) * CHUNK
    figures.say(
        f"The document's densities for a conversion: {compared}. Its own model was a `gpt2`, this one is SmolLM2, "
        f"whose conversion retrieves blocks; up to {CONVERSION.window} tokens its window covers everything, and up to "
        f"{all_read:,} the blocks that it may retrieve cover the rest, so no weight is left out there. The document "
        f"counts standard attention as {figures.number(dense)} % dense; above a threshold of {BY_LAYER:g} it is "
        f"{density('smollm2', BY_LAYER)} at {longest:,} tokens, so a threshold makes standard attention sparse too, "
        f"and what it is decides the number.\n\n"
        f"Softmax weights add up to one, so over a longer text each is smaller: "
        f"{density('smollm2', BY_LAYER, n=shortest)} are above {BY_LAYER:g} at {shortest} tokens. The share that "
        f"carries {MASSES[0]} % of the mass does not depend on such a level, and {moved}, from "
        f"{mass('smollm2', MASSES[0], shortest)} to {mass('smollm2', MASSES[0])}: if it falls, the tokens that matter "
        f"grow in number more slowly than the text, and that is what a conversion to few exact tokens rests on.\n\n"
        f"Between chunks, {density('smollm2', BY_LAYER, 'between')} of the original's weights are above {BY_LAYER:g} "
        f"and {density('smollm2 converted', BY_LAYER, 'between')} of the conversion's; within chunks "
        f"{density('smollm2', BY_LAYER, 'within')} and {density('smollm2 converted', BY_LAYER, 'within')}."
    )
else:
    figures.say("This profile does not look at a trained model.")

# %% [markdown]
# ## Limits and exercises
#
# - One model, one kind of text, read from its beginning. A weight that is small may still matter where the value is
#   long, and the first token takes much weight with a short value.
# - A sparse map saves time only if the few weights are found without computing all: see what the choice of blocks costs
#   and misses on the page about the similarity of a converted model.
# - Zero as a threshold asks for what float arithmetic keeps apart from zero. Which weights of the original are exactly
#   zero in half precision?
# - Set `CONVERSION` to another rung, such as `retrieval="states"`: its map is dense again.
