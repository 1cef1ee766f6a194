# %% [markdown]
# # Attention maps
#
# Which earlier tokens does each token read, in a pretrained model and in its conversion, and do the two look alike?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, verdicts, main_chart, origin = (figures.reserve(what) for what in ("answer", "verdict", "map", "source"))

# %% [markdown]
# ## What was claimed
#
# One document announces maps of BSBR and of standard attention at three lengths and shows none. Another says in words what
# maps of a model and its conversion have in common: patterns within chunks are "remarkably similar", those between
# chunks "more structured, block-like". No number stands with either, so this page gives them one.
#
# ## Method
#
# A map shows the weight $w_{ti}$ with which token $t$ (from top to bottom) reads the value of token $i$ (from left to
# right). The original is `SmolLM2-135M-Instruct` {cite:p}`benallal2025`, its conversion is made with the default settings, and both read the same
# held-out speech from its beginning. The original's weights are its softmax. The conversion's are those that its own
# attention applies: its kernel is given token numbers in place of values, which tells what it reads, and how much.
#
# Attention is causal, so the map of the first tokens is the corner of the map of the longest text: each model reads once.
#
# **Mass within the chunk** is the share of a token's weight that lies on its own chunk. **Similarity of maps** is the
# cosine between the two models' rows, averaged over tokens: over the whole row, over the part within the token's chunk,
# and over the part before it. Hidden states differ from layer to layer, so from the second layer on the two models' queries
# and keys differ too: this compares what the models do, and not what a mechanism would do in the same place.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input"]
import functools
from dataclasses import asdict

import numpy as np
import pandas as pd

from bsbr import MECHANISMS, ConversionConfig, ModelConfig, convert, sources
from bsbr.measure import machine
from bsbr.show import map_explorer
from bsbr.store import Sweep
from bsbr.studies import attention_maps, documents, likeness, pretrained

CONVERSION = ConversionConfig()
CHUNK = CONVERSION.chunk_size
HEADS_AT = 1024  # tokens, the longest of the lengths that the document announces: heads are told apart there
SHOWN_LAYERS = 5
CELLS = 128  # a side of a longer text's map on the page
EXACT = 256  # up to so many tokens, each pair has a cell of its own
ONE_HEAD = {"hidden_dim": 64, "num_heads": 1, "key_dim": 64, "chunk_size": 32, "window_size": 32}
SPREAD = 3  # of the input of a mechanism with random weights: wide enough that no softmax is flat
TRAINED = ("smollm2", "smollm2 converted")
# "tiny" looks at the mechanisms alone: loading the trained model takes longer than that profile may.
PROFILES = {
    "tiny": {"lengths": [], "mechanisms_n": 256},
    "quick": {"lengths": [256, 512, 1024], "mechanisms_n": 256},
    "full": {"lengths": [256, 512, 1024, 2048], "mechanisms_n": 256},
}
settings = PROFILES[profile]
lengths, longest = settings["lengths"], max(settings["lengths"], default=0)
document = sources.load_speeches("held_out")[0].key if lengths else None

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
@functools.cache
def layers(document: str, longest: int) -> dict[str, list[attention_maps.Layer]]:
    """Every layer of both models while they read the speech, ready to say its weights."""
    device = machine.device(target)
    model, tokenizer = pretrained.load("SmolLM2", device=device)
    ids = documents.ids_of(document, tokenizer, longest, device)
    found: dict[str, list[attention_maps.Layer]] = {name: [] for name in TRAINED}
    for name, network in zip(TRAINED, (model, convert(model, CONVERSION)), strict=True):
        attention_maps.visit(network, ids, found[name].append)
    return found


@functools.cache
def mechanism_map(model: str, n: int) -> np.ndarray:
    """The absolute weights of one head of a mechanism with random weights, (1, n, n)."""
    config = ModelConfig(model, **ONE_HEAD)
    return attention_maps.of_mechanism(config, n, spread=SPREAD, device=machine.device(target))


def mechanism(model: str, n: int) -> list[dict]:
    """How much of its weight a mechanism with random weights puts on the own chunk."""
    return likeness.of_mechanism(mechanism_map(model, n), ONE_HEAD["chunk_size"])


def compare(document: str, longest: int) -> list[dict]:
    """Both models' maps, layer by layer and head by head."""
    return likeness.compare(*layers(document, longest).values(), CHUNK, lengths, names=TRAINED, heads_at=HEADS_AT)


# %% tags=["hide-input", "remove-output"]
sweep = Sweep(
    "experiments/attention_maps",
    target=target,
    profile=profile,
    parameters={
        "conversion": asdict(CONVERSION),
        "one_head": ONE_HEAD,
        "lengths": lengths,
        "heads_at": HEADS_AT,
        "dtype": "float32",
    },
    sources=[sources.pin_path("smollm2"), sources.pin_path("speeches")] if lengths else [],
)
cells = [{"model": name, "n": settings["mechanisms_n"]} for name in MECHANISMS]
tables = [sweep.measure(cells, mechanism, machine_bound=False)]
if lengths:
    found = sweep.measure([{"document": document, "longest": longest}], compare, machine_bound=False)
    tables.append(found.drop(columns="longest"))
result = sweep.publish(pd.concat(tables, ignore_index=True))


# %% tags=["hide-input"]
def levels(layer: attention_maps.Layer, n: int) -> np.ndarray:
    """The map of the first n tokens in cells, as levels, (heads, cells, cells)."""
    size = 1 if n <= EXACT else n // CELLS
    parts = []
    for start in range(0, n, CHUNK):
        pooled = attention_maps.pool(layer.rows(start, start + CHUNK).cpu().numpy(), size)
        parts.append(np.pad(pooled, ((0, 0), (0, 0), (0, n // size - pooled.shape[2]))))
    return map_explorer.quantise(np.concatenate(parts, axis=1))


def explore() -> int:
    """Show the explorer in its place, and return its weight in bytes."""
    read = layers(document, longest)
    count = len(read["smollm2"])
    shown = [round(i * (count - 1) / (SHOWN_LAYERS - 1)) for i in range(SHOWN_LAYERS)]
    maps = map_explorer.Maps(
        {
            name: {n: {layer: levels(read[model][layer], n) for layer in shown} for n in lengths}
            for name, model in zip(("original", "converted"), TRAINED, strict=True)
        }
    )
    middle = shown[len(shown) // 2]
    return map_explorer.show(maps, "maps", layer=middle, head=0, n=longest, place=main_chart)


def mechanism_maps() -> None:
    n = settings["mechanisms_n"]
    cells = {name: attention_maps.pool(mechanism_map(name, n), n // CELLS)[0] for name in MECHANISMS}
    found = {name: map_explorer.quantise(weights.clip(0, 1)) for name, weights in cells.items()}
    fig = map_explorer.pictures(found, n, columns=4, height=310 * -(-len(found) // 4))
    figures.show(fig, "mechanisms", None if lengths else main_chart)


# %% tags=["remove-input"]
def mean(metric: str, **where: object) -> str:
    known = {"layer": None, "head": None, **where}
    return figures.number(result.value(metric, **known))


def similarity(scope: str, n: int = longest) -> str:
    return mean("map_similarity", n=n, scope=scope, model=TRAINED[1])


def within(model: str, n: int = longest) -> str:
    return mean("within_mass", n=n, model=model)


if lengths:
    weight = explore()
    figures.say(
        f"**Within a token's own chunk the conversion's maps are the original's with a mean cosine of "
        f"{similarity('within')}, and before it with {similarity('between')}, at {longest:,} tokens of a held-out "
        f"speech.** Where they differ, the conversion reads some blocks of {CONVERSION.block_size} tokens exactly and "
        f"others not at all: a sparse map of the same weights. The original puts {within(TRAINED[0])} % of its "
        f"attention on the own chunk of {CHUNK} tokens, the conversion {within(TRAINED[1])} %.",
        answer,
    )
else:
    mass = {name: result.value("within_mass", model=name, n=settings["mechanisms_n"]) for name in ("bsbr", "standard")}
    figures.say(
        f"**With random weights, BSBR puts {figures.number(mass['bsbr'])} % of its weight on a token's own chunk and "
        f"standard attention {figures.number(mass['standard'])} %.** This profile does not look at a trained model.",
        answer,
    )
    mechanism_maps()
figures.say(claims.line(result), verdicts)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## How to read the maps

# %% tags=["remove-input"]
if lengths:
    figures.say(
        f"Choose a layer, a head and a length above the maps; drag to zoom, double-click to see all again; both maps "
        f"zoom together. Colour is the weight on a logarithmic scale, the same in every map. Up to {EXACT} tokens each "
        f"cell is one pair of tokens; longer maps have {CELLS} × {CELLS} cells, each the largest weight of its pairs, "
        f"so that a single strong weight stays visible. Weights are rounded to {map_explorer.LEVELS} levels. The page "
        f"holds {SHOWN_LAYERS} of {len(layers(document, longest)['smollm2'])} layers with all their heads, "
        f"{figures.number(weight / 1e6)} MB in all.\n\n"
        f"A bright first column is the first token, on which pretrained models rest unused attention; a bright "
        f"diagonal is the token itself and its neighbours. In the conversion, empty blocks are what it does not read."
    )
else:
    figures.say("This profile does not look at a trained model.")

# %% [markdown]
# ## Layer by layer, head by head

# %% tags=["hide-input"]
if lengths:
    alike = result.select("map_similarity", n=longest)
    alike = alike[alike["layer"].notna() & alike["head"].isna()]
    chart = figures.lines(alike, "layer", group="scope", title=f"Likeness of the two maps, {longest:,} tokens")
    figures.show(chart, "layers")
    figures.show_provenance(result)
else:
    figures.say("This profile does not look at a trained model.")

# %% tags=["hide-input"]
if lengths:
    each = result.select("map_similarity", n=HEADS_AT, scope="overall")
    square = each[each["head"].notna()].pivot(index="head", columns="layer", values="value")
    chart = figures.figure(f"Likeness of the two maps by head, {HEADS_AT:,} tokens", "layer", "head", height=340)
    chart.add_heatmap(
        z=square.to_numpy(dtype=float), x=list(square.columns), y=list(square.index), colorscale=map_explorer.COLOURS,
        hovertemplate="layer %{x}, head %{y}: %{z:.3f}<extra></extra>", colorbar={"title": {"text": "cosine"}},
    )  # fmt: skip
    figures.show(chart, "heads")
    figures.show_provenance(result)

# %% tags=["hide-input"]
if lengths:
    mass = result.select("within_mass", n=longest)
    mass = mass[mass["layer"].notna() & mass["head"].isna()]
    chart = figures.lines(mass, "layer", group="model", title=f"Mass on the own chunk, {longest:,} tokens")
    figures.show(chart, "mass")
    figures.show_provenance(result)

# %% [markdown]
# ## By length

# %% tags=["remove-input"]
if lengths:
    alike = result.select("map_similarity")
    figures.table(
        figures.pivot(alike[alike["layer"].isna()], "scope", "n"), caption="Likeness of the two models' maps, by n"
    )
    mass = result.select("within_mass")
    mass = mass[mass["layer"].isna() & mass["model"].isin(TRAINED)]
    figures.table(figures.pivot(mass, "model", "n"), caption=f"Mass on the own chunk of {CHUNK} tokens (%), by n")
    figures.show_provenance(result)
else:
    figures.say("This profile does not look at a trained model.")

# %% [markdown]
# ## The mechanisms
#
# One head of each with random weights on random input: nothing is learned here, so only the shapes mean something. A
# cell is the largest weight of a square of pairs; where weights can be negative it shows their size. A state reaches
# every token of its chunk at once, so BSBR's map has no holes, and behind the own chunk no sharp lines.

# %% tags=["hide-input"]
if lengths:
    mechanism_maps()
figures.table(
    figures.pivot(
        result.select("within_mass", n=settings["mechanisms_n"], chunk_size=ONE_HEAD["chunk_size"]), "model", "n"
    ),
    caption=f"Mass on the own chunk of {ONE_HEAD['chunk_size']} tokens (%), by n",
)
figures.show_provenance(result)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
if lengths:
    all_read = attention_maps.reads_all_up_to(CONVERSION)
    figures.say(
        f"Patterns within chunks: there the rows of the two maps have a mean cosine of {similarity('within')} at "
        f"{longest:,} tokens. Up to {all_read:,} tokens this says nothing about the conversion, since its window and "
        f"the {CONVERSION.top_k} blocks that it may retrieve cover all there is.\n\n"
        f"Patterns between chunks: the conversion's are block-like by construction, as its map of {longest:,} tokens "
        f"shows. The document's conversion reads states instead of blocks, and no map of it was published to compare "
        f"with."
    )
else:
    figures.say("This profile does not look at a trained model.")
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One speech and one model. The cosine is ruled by the few large weights of a row; two maps can be alike by it and differ
#   in all the small ones.
# - A weight is not an influence: a large weight on a token with a short value changes little. Multiply the columns by the
#   lengths of the values and look again.
# - Look at another setting: set `CONVERSION` to `retrieval="none"` and to `"top_k_per_token"`.
# - For one's own text: `attention_maps.visit(model, ids, look)` calls `look` with every layer of any model.
