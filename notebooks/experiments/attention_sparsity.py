# %% [markdown]
# # Attention sparsity
#
# How many of a token's attention weights matter, within its own chunk of text and between chunks, and how does that
# change with the length of the text?

# %% tags=["remove-input"]
from bsbr.show import figures

answer, verdicts, main_chart, origin = (figures.reserve(what) for what in ("answer", "verdict", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document gives BSBR a sparsity within chunks, between them and overall, and standard attention none at all. It
# does not say whether that was counted or measured. Another gives the density of a converted model's attention by
# length, as the share of its weights above a threshold, and does not say which threshold.

# %% tags=["hide-input"]
from bsbr.show import claims

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
# - **In a trained model**: every layer and head of `SmolLM2-135M-Instruct` {cite:p}`benallal2025` reading held-out speeches, and of its
#   conversion by the default settings, on the same texts. A value is the mean over all layers and heads, then over
#   the same speeches at every length, with a 95 % interval by Student's and bootstrapped t that takes speeches as independent.
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
from dataclasses import asdict

import pandas as pd

from bsbr import MECHANISMS, ConversionConfig, ModelConfig, convert, sources
from bsbr.measure import machine
from bsbr.store import NUMBERS, Sweep, only
from bsbr.studies import attention_maps, documents, pretrained, sparsity

CONVERSION = ConversionConfig()
CHUNK = CONVERSION.chunk_size
ONE_HEAD = {"hidden_dim": 64, "num_heads": 1, "key_dim": 64, "chunk_size": CHUNK, "window_size": CHUNK}
THRESHOLDS = [0.0, 1e-4, 1e-3, 1e-2]
MASSES = [90, 95, 99]  # %
MASS_EVERY = 4
LAYERS_AT, LEVEL = 512, 1e-3  # the length and the threshold at which layers are told apart
DOCUMENTS = 6  # the fewest that give an interval
TRAINED = ["smollm2", "smollm2 converted"]
# "tiny" looks at the mechanisms alone: loading the trained model takes longer than that profile may.
PROFILES = {
    "tiny": {"structure": [128, 256], "lengths": [], "documents": 0},
    "quick": {"structure": [128, 256, 512, 1024], "lengths": [128, 256, 512], "documents": DOCUMENTS},
    "full": {"lengths": [128, 256, 512, 1024, 2048, 4096], "documents": DOCUMENTS},
}
settings = PROFILES[profile]
lengths, structure = settings["lengths"], settings.get("structure", settings["lengths"])
longest, widest = max(lengths, default=0), max(structure)
keys = [speech.key for speech in sources.load_speeches("held_out")] if lengths else []
texts = sources.evenly(keys, settings["documents"])

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def by_structure(model: str) -> list[dict]:
    """What one head of a mechanism can read."""
    config = ModelConfig(model, **ONE_HEAD)
    found = attention_maps.of_mechanism(config, widest, positive=True, device=machine.device(target))
    return sparsity.of_mechanism(found, CHUNK, structure)


def in_a_trained_model(model: str, document: str) -> list[dict]:
    """Every layer and head while the model reads one speech."""
    device = machine.device(target)
    network, tokenizer = pretrained.load("SmolLM2", device=device)
    return sparsity.of_model(
        network if model == "smollm2" else convert(network, CONVERSION),
        documents.ids_of(document, tokenizer, longest, device),
        CHUNK, lengths, thresholds=THRESHOLDS, masses=MASSES, every=MASS_EVERY, by_layer=(LAYERS_AT, LEVEL),
    )  # fmt: skip


sweep = Sweep(
    "experiments/attention_sparsity",
    target=target,
    profile=profile,
    parameters={"conversion": asdict(CONVERSION), "one_head": ONE_HEAD, "dtype": "float32", **settings},
    sources=[sources.pin_path("smollm2"), sources.pin_path("speeches")] if texts else [],
)
table = sweep.measure([{"model": name} for name in MECHANISMS], by_structure, machine_bound=False)
if texts:
    cells = [{"model": model, "document": document} for document in texts for model in TRAINED]
    read = sweep.measure(cells, in_a_trained_model, machine_bound=False)
    table = pd.concat([table, pd.DataFrame(documents.averages(read))], ignore_index=True)
result = sweep.publish(table)


# %% tags=["remove-input"]
def percent(metric: str, model: str, n: int, **where: object) -> str:
    """A number with its interval, unless all speeches agree."""
    found = only(result.table, metric, model=model, n=n, **({"layer": None} if texts else {}), **where)
    flat = found["low"] == found["high"]
    return f"{figures.number(found['value']) if flat else figures.interval(*found[NUMBERS])} %"


def density(model: str, threshold: float = 0.0, scope: str = "overall", n: int = longest or widest) -> str:
    return percent("density", model, n, threshold=threshold, scope=scope)


def mass(model: str, share: int, n: int = longest) -> str:
    return percent("weights_for_mass", model, n, mass=share)


mechanisms = [name for name in MECHANISMS if name in set(result.table["model"])]


def sparse_ones() -> str:
    """The mechanisms that cannot give every pair a weight, with how many they can."""
    where = {"threshold": 0.0, "scope": "overall", "n": longest or widest}
    found = {name: only(result.table, "density", model=name, layer=None, **where)["value"] for name in mechanisms}
    return ", ".join(f"{MECHANISMS[name].title} ({density(name)})" for name, value in found.items() if value < 100)


def series(rows: pd.DataFrame) -> pd.Series:
    """A line's name: the model, and the threshold that its weights are above."""
    return rows["model"] + rows["threshold"].map(lambda threshold: f", above {threshold:g}")


if texts:
    said = (
        f"**Reading {longest:,} tokens, SmolLM2 has {density('smollm2', LEVEL)} of its attention weights above "
        f"{LEVEL:g}, and the largest {mass('smollm2', MASSES[0])} of all carry {MASSES[0]} % of the mass; its "
        f"conversion gives {density('smollm2 converted')} of all pairs a weight.** BSBR is sparse by reads and dense "
        f"by weights: it lets {density('bsbr')} of the pairs carry one, as standard attention does, since a state "
        f"holds every token of its chunk. Of the {len(mechanisms)} mechanisms these leave pairs out: "
        f"{sparse_ones()}."
    )
else:
    said = (
        f"**By structure, BSBR lets {density('bsbr')} of all pairs carry a weight at n = {widest:,}, a window of "
        f"{CHUNK} tokens {density('sliding_window')}.** This profile does not look at a trained model."
    )
figures.say(said, answer)
figures.say(claims.line(result), verdicts)

overall = result.select("density", scope="overall")
if texts:
    overall = overall[overall["layer"].isna() & overall["model"].isin(TRAINED) & overall["threshold"].isin([0, LEVEL])]
    overall = overall.assign(line=series(overall))
else:
    overall = overall.assign(line=overall["model"])
chart = figures.lines(
    overall, "n", group="line", title="Share of the causal pairs of tokens that carry a weight", x_title="n (tokens)",
    y_title="density (%)", log_x=True, log_y=True,
)  # fmt: skip
if texts:
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
for scope in sparsity.SCOPES:
    figures.table(
        figures.pivot(possible[possible["scope"] == scope], "model", "n"),
        caption=f"Share of the pairs {scope if scope == 'overall' else f'{scope} chunks of {CHUNK} tokens'} that can "
        "carry a weight (%), by n",
    )
figures.show_provenance(result)

# %% tags=["remove-input"]
inside, _, everything = sparsity.pairs_up_to(widest // CHUNK, CHUNK)[-1]
figures.say(
    f"Whether BSBR is sparse depends on what is counted. A token reads the tokens of its own chunk one by one: at "
    f"n = {widest:,} that is {figures.number(100 * inside / everything)} % of all pairs, and none of those between "
    f"chunks. What it reads of earlier chunks comes through their states, and through them every earlier token "
    f"reaches it, with a weight that may be negative and that it cannot choose token by token. So counted by "
    f"reads the pattern between chunks is empty, counted by weights it is full, and nothing between the two is a "
    f"property of the mechanism."
)

# %% [markdown]
# ## In a trained model

# %% tags=["remove-input"]
if texts:
    trained = result.select("density")
    trained = trained[trained["layer"].isna() & trained["model"].isin(TRAINED)]
    for scope in sparsity.SCOPES:
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
if texts:
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
if texts:
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
if texts:
    layers = result.select("density")
    layers = layers[layers["layer"].notna()]
    chart = figures.lines(
        layers,
        "layer",
        group="model",
        title=f"Weights above {LEVEL:g} by layer, {LAYERS_AT:,} tokens",
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
if texts:
    claimed = by_document.set_index("n")["value"]
    shares = [result.value("weights_for_mass", model="smollm2", n=n, mass=MASSES[0]) for n in (lengths[0], longest)]
    moved = (
        "falls as well: the tokens that matter grow in number more slowly than the text, and that is what a conversion "
        "to few exact tokens rests on"
        if shares[1] < shares[0]
        else "does not fall: the tokens that matter grow in number as fast as the text"
    )
    dense = stated[(stated["quantity"] == "density") & (stated["mechanism"] == "standard")]["value"].max()
    shared = [n for n in lengths if n in claimed.index]
    compared = "; ".join(
        f"{figures.number(claimed[n])} % at n = {n:,}, measured {density('smollm2 converted', n=n)}" for n in shared
    )
    shortest, all_read = lengths[0], attention_maps.reads_all_up_to(CONVERSION)
    figures.say(
        f"The document's densities for a conversion: {compared}. Its own model was a `gpt2`, this one is SmolLM2, "
        f"whose conversion retrieves blocks; up to {CONVERSION.window:,} tokens its window covers everything, and up to "
        f"{all_read:,} the blocks that it may retrieve cover the rest, so no weight is left out there. The document "
        f"counts standard attention as {figures.number(dense)} % dense; above a threshold of {LEVEL:g} it is "
        f"{density('smollm2', LEVEL)} at {longest:,} tokens, so a threshold makes standard attention sparse too, "
        f"and what it is decides the number.\n\n"
        f"Softmax weights add up to one, so over a longer text each is smaller: "
        f"{density('smollm2', LEVEL, n=shortest)} are above {LEVEL:g} at {shortest} tokens. The share that "
        f"carries {MASSES[0]} % of the mass does not depend on such a level. From {mass('smollm2', MASSES[0], shortest)} "
        f"to {mass('smollm2', MASSES[0])}, it {moved}.\n\n"
        f"Between chunks, {density('smollm2', LEVEL, 'between')} of the original's weights are above {LEVEL:g} "
        f"and {density('smollm2 converted', LEVEL, 'between')} of the conversion's; within chunks "
        f"{density('smollm2', LEVEL, 'within')} and {density('smollm2 converted', LEVEL, 'within')}."
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
# - Set `CONVERSION` to another setting, such as `retrieval="states"`: its map is dense again.
