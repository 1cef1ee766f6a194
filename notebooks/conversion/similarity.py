# %% [markdown]
# # Similarity of a converted model
#
# How much of a pretrained language model is left when BSBR attention takes the place of its own, with no training, and
# where is it lost?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, claimed, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One of the documents states how alike an original `gpt2` and its conversion are: in outputs, and in their most likely
# next tokens on a hundred samples from different domains. Of the distances it says itself that the values still have to
# be filled in; the agreement of predictions it states as a result. It adds, in words, that layers drift apart with depth
# and that rare tokens suffer more.

# %% tags=["hide-input"]
LIKENESS = ["cosine_similarity", "mse", "kl_divergence", "top_1_agreement", "top_5_agreement", "top_10_agreement"]

stated = claims.load(*LIKENESS)
stated = stated[stated["document"].str.contains("Conversion")]
figures.table(
    stated[["section", "quantity", "conditions", "value", "unit", "placeholder"]].assign(
        placeholder=stated["placeholder"].map({True: "says so itself", False: ""})
    ),
    caption="Claimed: a converted GPT-2 beside the original",
)

# %% [markdown]
# ## Method
#
# Two models, each converted and held against itself:
#
# - **SmolLM2**: `SmolLM2-135M-Instruct` {cite:p}`benallal2025`, of the Llama architecture: rotary positions, three query heads to each key/value
#   head, nearly the size of `gpt2`.
# - **GPT-2**: the architecture that the document is about, learned positions and all, in a small size. Its weights are
#   trained here, on the speeches that are read nowhere below, since the original's cannot be had from a package registry.
#   What it shows is that the conversion does the same to this architecture; a model of some minutes is no `gpt2`.
#
# The texts are State of the Union addresses, each from its first token, and e-mails of a public corpus, headers left out.
# Conversions were developed on other speeches: what is read here is fixed by a rule in `data/sources/`, and was read by no
# model while conversions were developed. Some speeches are read at full length; the samples are shorter: half of
# them speeches, half e-mails, all read with the converter's default and a few with other settings too.
#
# A conversion keeps every weight. Each token goes on reading exactly its own chunk and what the setting adds to it; far
# text is what lies before that. [The page on conversion](../../book/conversion.md) has the formulas.
#
# - **local**: its own chunk and nothing else.
# - **neighbours**: the chunk before as well, and the very first tokens, on which pretrained models rest unused attention
#   {cite:p}`xiao2023`.
# - **states**: each far chunk as well, through its state, the expansion of softmax attention around the chunk's mean key;
#   **fine states**: the same with smaller chunks, more of them local, and compressed states.
# - **top-k**: the best far blocks as well, read exactly. A chunk chooses by the chunk before it: the mean
#   queries of that chunk's blocks (meta queries) against the mean keys of all far blocks (meta keys), for each
#   key/value head. So the choice is made before the chunk's first token is known.
# - **both**: the best far chunks exactly, all others through their states.
# - **per token**: top-k, chosen by each token for itself. It costs as much as full attention, and stands here to show
#   what a better choice would be worth.
# - **calibrated**: after `bsbr.conversion.calibrate` on development speeches, which fits how each head reads states and
#   leaves the weights alone. The texts below are not among those that it saw.
#
# Up to the length of the local window the original attention is used, so short texts lose nothing. Perplexity is
# over all positions of a text. Agreement at $k$ is the share of the original's $k$ most likely next tokens
# that are among the conversion's $k$; agreement at a rank asks for the same token at the same place of the two lists.
# Cosine, squared error and KL divergence compare the logits at each position.
#
# What stands for several documents is their mean with a 95 % interval, which takes them as independent; of fewer than six
# there is no interval. Perplexities have geometric means, so that the ratio of two columns is the ratio that is given. **Each
# table is over one set of documents, the same in all its lines**: where a few settings have read more than the others,
# one table has these settings over all documents and another has all settings over the documents that all have read.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"


# %% tags=["hide-input"]
import functools
from collections import Counter

import pandas as pd
import torch

from bsbr import convert, sources
from bsbr.measure import machine
from bsbr.store import Sweep, row
from bsbr.studies import documents, pretrained, similarity
from bsbr.studies import settings as known
from bsbr.training import small_gpt2

CALIBRATED = "fine states, calibrated"
SETTINGS = {
    **{name: known.SETTINGS[name] for name in ("local", "neighbours", "states", "fine states")},
    CALIBRATED: known.FINE_STATES,
    **{name: known.SETTINGS[name] for name in ("top-8", "top-16", "top-32", "both", "top-16 per token")},
}
PAIRS = [("fine states", CALIBRATED)]
PROFILES = {
    "tiny": {
        "long": 384, "speeches": 1, "samples": 2, "sample": 300, "settings": ["local", "top-16"], "some": ["local", "top-16"],
        "few": 1, "gpt2": "GPT-2 tiny", "gpt2_documents": 1, "halved": 0, "context": 512, "context_documents": 1,
        "fit": {"speeches": 1, "tokens": 512, "steps": 1},
    },
    "quick": {
        "long": 1024, "speeches": 0, "samples": 2, "sample": 1024, "settings": [], "some": ["neighbours", "fine states", "top-16"],
        "few": 2, "gpt2": "", "gpt2_documents": 0, "halved": 0, "context": 8192, "context_documents": 0,
        "fit": {"speeches": 8, "tokens": 4096, "steps": 200},
    },
    "full": {
        "long": 4096, "speeches": 6, "samples": 50, "sample": 1024, "settings": list(SETTINGS),
        "some": ["neighbours", "fine states", CALIBRATED, "top-16"], "few": 6, "gpt2": "GPT-2",
        "gpt2_documents": 8, "halved": 6, "context": 8192, "context_documents": 6,
        "fit": {"speeches": 8, "tokens": 4096, "steps": 200},
    },
}  # fmt: skip
FREQUENT, RARE = 1e-3, 1e-4  # a token's share of the development speeches
settings = PROFILES[profile]
GPT2, FIT = settings["gpt2"], settings["fit"]  # what a reading depends on, besides its cell
best = known.default(SETTINGS)
device = machine.device(target)
figures.table(known.frame(SETTINGS), caption="The settings (compression factor 0: none)")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
def load(model: str, dtype: str = "float32") -> tuple:
    return pretrained.load(GPT2 if model == "GPT-2" else model, dtype, device)


@functools.lru_cache(maxsize=1)
def original_reading(model: str, dtype: str, document: str, n: int) -> similarity.Reading:
    original, tokenizer = load(model, dtype)
    return similarity.read(original, documents.ids_of(document, tokenizer, n, device))


@functools.cache
def converted(model: str, dtype: str, setting: str) -> object:
    if setting == CALIBRATED:
        name = GPT2 if model == "GPT-2" else model
        return pretrained.calibrated(name, SETTINGS[setting], dtype, device, **FIT)
    return convert(load(model, dtype)[0], SETTINGS[setting])


@functools.cache
def frequencies(model: str) -> torch.Tensor:
    """Each token's share of the development speeches."""
    name = GPT2 if model == "GPT-2" else model
    counts = Counter(int(token) for ids in pretrained.development(name) for token in ids[0])
    shares = torch.tensor([counts[token] for token in range(load(model)[0].config.vocab_size)])
    return shares / shares.sum()


def frequency_classes(model: str, following: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which of the tokens that follow are how frequent."""
    share = frequencies(model)[following.cpu()]
    return {
        "frequent": share >= FREQUENT,
        "less frequent": (share < FREQUENT) & (share >= RARE),
        "rare": (share < RARE) & (share > 0),
        "never seen": share == 0,
    }


def by_position(found: similarity.Similarity) -> list[dict]:
    """Perplexity of the tokens up to a position that were not in the class before; classes end at doubling positions."""
    rows, start, n = [], 0, len(found.loss) + 1
    ends = [min(256 * 2**i, n) for i in range(16) if 256 * 2**i < 2 * n]
    for end in ends:
        loss, before = (x[start : min(end, n - 1)].double().mean() for x in (found.loss, found.original_loss))
        rows.append(row("perplexity", loss.exp().item(), position=end))
        rows.append(row("perplexity_ratio", (loss - before).exp().item(), position=end))
        start = end
    return rows


def measure(model: str, dtype: str, kind: str, n: int, document: str, setting: str) -> list[dict]:
    """A reading of one text beside the original's."""
    before = original_reading(model, dtype, document, n)
    if setting == known.ORIGINAL:
        found = similarity.compare(before, before)
        return [
            row("perplexity", found.perplexity),
            row("next_token_accuracy", found.next_token_accuracy),
            *(one for one in by_position(found) if one["metric"] == "perplexity"),
        ]
    found = similarity.compare(before, similarity.read(converted(model, dtype, setting), before.ids[None]))
    whole = {
        "perplexity": found.perplexity,
        "perplexity_ratio": found.perplexity_ratio,
        "next_token_accuracy": found.next_token_accuracy,
        **{f"top_{k}_agreement": share for k, share in found.agreement.items()},
        "cosine_similarity": found.cosine,
        "mse": found.mse,
        "kl_divergence": found.kl,
    }
    classes = frequency_classes(model, before.ids[1:])
    return [
        *(row(name, value) for name, value in whole.items()),
        *(row("cosine_similarity", value, layer=layer) for layer, value in enumerate(found.hidden_cosine)),
        *(row("rank_agreement", value, rank=rank) for rank, value in enumerate(found.rank_agreement, start=1)),
        *by_position(found),
        *(
            row("kl_divergence", found.divergence[:-1].cpu()[chosen].mean().item(), frequency=name)
            for name, chosen in classes.items()
            if chosen.any()
        ),
    ]


# %% tags=["hide-input", "remove-output"]
held_out, samples, mails = (
    [text.key for text in found]
    for found in (
        sources.load_speeches("held_out"),
        sources.load_speeches("samples"),
        sources.load_emails("held_out"),
    )
)


def all_with_the_default(names: list[str]) -> list[tuple[list[str], list[str]]]:
    """Documents and their settings: few are read by several, all by the default one."""
    few = sources.evenly(names, settings["few"])
    return [(few, settings["some"]), ([name for name in names if name not in few], [best])]


SMOLLM2 = {"model": "SmolLM2", "dtype": "float32"}
groups = [  # where, documents, settings
    *(
        (SMOLLM2 | {"kind": kind, "n": settings["sample"]}, *part)
        for kind, texts in {"speech": samples, "e-mail": mails}.items()
        for part in all_with_the_default(sources.evenly(texts, settings["samples"]))
    ),
    *(
        (SMOLLM2 | {"kind": "speech", "n": settings[length]}, sources.evenly(held_out, settings[count]), names)
        for length, count, names in (
            ("long", "speeches", settings["settings"]),
            ("context", "context_documents", [best]),
        )
    ),
    (
        {"model": "SmolLM2", "dtype": "bfloat16", "kind": "speech", "n": settings["long"]},
        sources.evenly(held_out, settings["halved"]),
        [best],
    ),
    (
        {"model": "GPT-2", "dtype": "float32", "kind": "speech", "n": settings["sample"]},
        sources.evenly(samples, settings["gpt2_documents"]),
        settings["settings"],
    ),
]
cells = [
    {**where, "document": document, "setting": setting}
    for where, read, names in groups
    for document in read
    for setting in [known.ORIGINAL, *names]
]
sweep = Sweep(
    "conversion/similarity",
    target=target,
    profile=profile,
    parameters={
        "settings": known.parameters(SETTINGS),
        "calibration": FIT,
        "gpt2": GPT2,
        "batch": 1,
    },
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches", "emails")],
)

# %% [markdown]
# What is fitted or trained is kept with how long that took; then come the readings.


# %% tags=["hide-input", "remove-output"]
def time_calibration(phase: str, model: str, setting: str) -> list[dict]:
    seconds = pretrained.seconds_to_calibrate(model, SETTINGS[setting], **FIT)
    return [row("time", seconds, samples=1)]


def time_training(phase: str, model: str) -> list[dict]:
    small_gpt2.train(pretrained.TRAINED_HERE[GPT2])
    return [row("time", small_gpt2.record(pretrained.TRAINED_HERE[GPT2])["seconds"], samples=1)]


def count_training(phase: str, model: str) -> list[dict]:
    parameters = load(model)[0].num_parameters()
    tokens = small_gpt2.record(pretrained.TRAINED_HERE[GPT2])["tokens"]
    return [row("parameters", parameters), row("trained_tokens", tokens)]


fitted = [after for _, after in PAIRS if any(cell["setting"] == after for cell in cells)]
tables = []
if fitted:
    at = [{"phase": "calibration", "model": "SmolLM2", "setting": setting} for setting in fitted]
    tables.append(sweep.measure(at, time_calibration, machine_bound=True))
if settings["gpt2_documents"]:
    at = [{"phase": "training", "model": "GPT-2"}]
    tables.append(sweep.measure(at, time_training, machine_bound=True))
    tables.append(sweep.measure(at, count_training, machine_bound=False))
read = sweep.measure(cells, measure, machine_bound=False)

# %% [markdown]
# Over the documents, each metric has a mean, and its standard deviation is the spread between documents. What
# calibration closes is the gap in mean log-likelihood, on the documents that both settings have read.

# %% tags=["hide-input"]
WHERE = ["model", "dtype", "kind", "n"]
PARTS = ["layer", "rank", "position", "frequency"]
BY_DOCUMENT = ["perplexity", "perplexity_ratio", "top_1_agreement", "kl_divergence"]

both_kinds = read[(read["model"] == "SmolLM2") & (read["n"] == settings["sample"]) & (read["dtype"] == "float32")]
together = pd.concat([read, both_kinds.assign(kind="all")], ignore_index=True)
summaries = []
for key, group in together.groupby(WHERE, sort=False):
    sets = documents.over_all_and_shared(group)
    plain = group[group[PARTS].isna().all(axis=1)].drop(columns=PARTS)
    spread = sets[(sets["documents"] == "all") & sets[PARTS].isna().all(axis=1)].drop(columns=PARTS)
    summaries += documents.averages(sets) + documents.deviations(spread)
    for before, after in PAIRS:
        summaries += documents.gap_closed(plain, before, after, **dict(zip(WHERE, key, strict=True)))
kept = read[read[PARTS].isna().all(axis=1) & read["metric"].isin(BY_DOCUMENT)]
result = sweep.publish(pd.concat([kept, pd.DataFrame(summaries), *tables], ignore_index=True))

# %% tags=["remove-input"]
shown_n = settings["long"] if settings["speeches"] else settings["sample"]
LONG = SMOLLM2 | {"kind": "speech", "n": shown_n, "documents": "all"}
SAMPLES = SMOLLM2 | {"kind": "all", "n": settings["sample"], "documents": "all"}
SMALL = {"model": "GPT-2", "dtype": "float32", "kind": "speech", "n": settings["sample"], "documents": "all"}
HALVED = LONG | {"dtype": "bfloat16", "n": settings["long"]}
CONTEXT = LONG | {"n": settings["context"]}
MEAN = {name: None for name in ("statistic", *PARTS) if name in result.table}


def settings_of(where: dict) -> list[str]:
    return list(result.select("perplexity_ratio", **where, **MEAN)["setting"])


def shared(where: dict) -> dict:
    """The documents that all settings have read, where some have read more."""
    fewer = where | {"documents": "shared"}
    return fewer if settings_of(fewer) else where


def mean(metric: str, setting: str, where: dict = LONG, **part: object) -> pd.Series:
    return result.select(metric, **where, setting=setting, **{**MEAN, **part}).iloc[0]


def shown(metric: str, setting: str, where: dict = LONG, digits: int = 3, **part: object) -> str:
    found = mean(metric, setting, where, **part)
    return figures.interval(found["value"], found["low"], found["high"], digits)


def count(where: dict, setting: str = best) -> int:
    return int(mean("perplexity", setting, where)["samples"])


FEW = shared(SAMPLES)
ALIKE = LONG if settings["speeches"] else shared(LONG)  # where most settings have read the same
closest = min(settings_of(ALIKE), key=lambda setting: mean("perplexity_ratio", setting, ALIKE)["value"])
least = "local" if "local" in settings_of(ALIKE) else "neighbours"
figures.say(
    f"**Without any training, `{best}`, which is the converter's default, reads {count(ALIKE)} held-out speeches of "
    f"{shown_n:,} tokens at {shown('perplexity_ratio', best, ALIKE)} times the original's perplexity, and its first choice "
    f"for the next token is the original's at {shown('top_1_agreement', best, ALIKE)} % of positions.** Over "
    f"{count(SAMPLES)} samples of {settings['sample']:,} tokens, speeches and e-mails, it is "
    f"{shown('perplexity_ratio', best, SAMPLES)} times and {shown('top_1_agreement', best, SAMPLES)} %. On the same "
    f"speeches the setting that comes closest, `{closest}`, is at {shown('perplexity_ratio', closest, ALIKE)} times and "
    f"{shown('top_1_agreement', closest, ALIKE)} %; with `{least}`, perplexity is "
    f"{shown('perplexity_ratio', least, ALIKE)} times the original's. "
    + (
        f"Over the {settings['context']:,} tokens of the whole context, `{best}` is at "
        f"{shown('perplexity_ratio', best, CONTEXT)} times and {shown('top_1_agreement', best, CONTEXT)} %. "
        if settings["context_documents"]
        else ""
    )
    + "What it costs and brings in time stands under [speed and memory](speed_and_memory.ipynb).",
    answer,
)
figures.say(claims.line(result), claimed)


def part_rows(metric: str, part: str, where: dict = ALIKE, names: list[str] | None = None) -> pd.DataFrame:
    rows = result.select(metric, **where, **{name: None for name in MEAN if name != part})
    rows = rows[rows[part].notna()]
    return rows[rows["setting"].isin(names)] if names else rows


LEGEND_BELOW = {"legend": {"orientation": "h", "y": -0.25, "yanchor": "top"}, "height": 480}
SHOWN_FIRST = ["local", "neighbours", "fine states", "top-8", "top-16", "top-16 per token"]


def by_setting(chart: figures.go.Figure) -> figures.go.Figure:
    """Six lines at first; the others come with a click on their name."""
    for trace in chart.data:
        trace.visible = True if trace.name in SHOWN_FIRST else "legendonly"
    return chart.update_layout(LEGEND_BELOW)


positions = part_rows("perplexity_ratio", "position")
chart = figures.lines(
    positions, "position", group="setting", x_title="position in the text, up to", log_x=True, log_y=True,
    title=f"Perplexity relative to the original, by position, {shown_n:,} tokens",
)  # fmt: skip
figures.show(by_setting(chart), "position", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Setting by setting

# %% tags=["remove-input"]
COLUMNS = {
    "perplexity": "perplexity",
    "perplexity_ratio": "relative to the original",
    "next_token_accuracy": "next token right (%)",
    "top_1_agreement": "top-1 agreement (%)",
    "top_5_agreement": "top-5 agreement (%)",
    "top_10_agreement": "top-10 agreement (%)",
    "cosine_similarity": "cosine of logits",
    "mse": "MSE of logits",
    "kl_divergence": "KL (nats)",
}


def summary(where: dict, what: str) -> None:
    """A line a setting, all over the same documents."""

    def cell(metric: str, setting: str) -> str:
        if setting == known.ORIGINAL and metric not in ("perplexity", "next_token_accuracy"):
            return "–"
        return shown(metric, setting, where)

    rows = [
        {"setting": setting} | {title: cell(metric, setting) for metric, title in COLUMNS.items()}
        for setting in [known.ORIGINAL, *settings_of(where)]
    ]
    read = f"the same {count(where)} of them in each line" if count(where) > 1 else "one text"
    figures.table(pd.DataFrame(rows), caption=f"{what}, {where['n']:,} tokens: mean over {read}")


if settings["speeches"]:
    summary(LONG, "SmolLM2, held-out speeches")
summary(SAMPLES, "SmolLM2, speeches and e-mails")
if FEW != SAMPLES:
    summary(FEW, "SmolLM2, those speeches and e-mails that all settings have read")
for kind in ("speech", "e-mail"):
    summary(SAMPLES | {"kind": kind}, f"SmolLM2, the samples that are a {kind}")
figures.show_provenance(result)

# %% [markdown]
# ## GPT-2, trained here

# %% tags=["remove-input"]
if settings["gpt2_documents"]:
    tokens, parameters = (int(result.value(name)) for name in ("trained_tokens", "parameters"))
    took = result.value("time", phase="training")
    figures.say(
        f"A GPT-2 of {parameters:,} parameters, trained on {tokens:,} tokens of speeches in {figures.number(took / 60)} "
        f"minutes."
    )
    summary(SMALL, "GPT-2, held-out speeches")
    figures.show_provenance(result)
else:
    figures.say("It is trained in the full profile only.")

# %% [markdown]
# ## At the whole length of the model's context

# %% tags=["remove-input"]
if settings["context_documents"]:
    summary(CONTEXT, "SmolLM2, held-out speeches")
    figures.show_provenance(result)
else:
    figures.say("It is measured in the full profile only.")

# %% [markdown]
# ## In bfloat16

# %% tags=["remove-input"]
if settings["halved"]:
    summary(HALVED, "SmolLM2 in bfloat16, original and conversion alike, held-out speeches")
    figures.show_provenance(result)
else:
    figures.say("It is measured in the full profile only.")

# %% [markdown]
# ## By position: does far text help?
#
# Tokens up to the length of the local window are read as by the original. What comes later shows what is lost with the
# far text: the line of `neighbours`, which reads none of it, is what far text is worth to the original.

# %% tags=["remove-input"]
numbers = part_rows("perplexity_ratio", "position")
figures.table(
    figures.pivot(numbers.sort_values("position"), "position", "setting"),
    caption="Perplexity relative to the original, positions up to (and from the line before)",
)
before = part_rows("perplexity", "position", names=["original", best])
figures.table(figures.pivot(before.sort_values("position"), "position", "setting"), caption="Perplexity itself")
figures.show_provenance(result)

# %% [markdown]
# ## By rank

# %% tags=["remove-input"]
ranks = part_rows("rank_agreement", "rank")
chart = figures.lines(
    ranks, "rank", group="setting", title="Same token at the same place of both lists", x_title="rank of the choice"
)
figures.show(by_setting(chart), "rank")
figures.show_provenance(result)

# %% [markdown]
# ## By frequency of the token that follows
#
# Frequencies are counted in the development speeches.

# %% tags=["remove-input"]
classes = part_rows("kl_divergence", "frequency", FEW)
order = ["frequent", "less frequent", "rare", "never seen"]
classes = classes.sort_values("frequency", key=lambda column: column.map(order.index), kind="stable")
chart = figures.bars(
    classes, "frequency", group="setting", title="KL divergence by frequency of the token that follows", x_title=""
)
figures.show(by_setting(chart), "frequency")
figures.table(figures.pivot(classes, "frequency", "setting"), caption="KL divergence (nats), speeches and e-mails")
figures.show_provenance(result)

# %% [markdown]
# ## By layer

# %% tags=["remove-input"]
layers = part_rows("cosine_similarity", "layer")
chart = figures.lines(
    layers, "layer", group="setting", title="Hidden states beside the original's", x_title="layers passed",
    y_title="cosine similarity",
)  # fmt: skip
figures.show(by_setting(chart), "layers")
figures.show_provenance(result)

# %% [markdown]
# ## What calibration closes

# %% tags=["remove-input"]
gaps = result.select("gap_closed")
if len(gaps):
    at = gaps.assign(where=[f"{g.model}, {g.kind}, n = {g.n:,}, {g.samples} documents" for g in gaps.itertuples()])
    figures.table(
        figures.pivot(at, "where", "setting"), caption="Share of the gap in log-likelihood that calibration closes (%)"
    )
    took = result.select("time", phase="calibration")
    figures.table(
        took[["setting", "value"]].rename(columns={"value": "seconds"}),
        caption=f"Calibrating SmolLM2 on {FIT['speeches']} speeches of {FIT['tokens']:,} tokens",
    )
    figures.show_provenance(result)
else:
    figures.say("Calibrated settings are not part of this profile.")

# %% [markdown]
# ## Document by document

# %% tags=["remove-input"]
EACH = {name: value for name, value in LONG.items() if name != "documents"}
if settings["speeches"]:
    titles = {speech.key: f"{speech.year} {speech.president}" for speech in sources.load_speeches()}
    for metric, title in {"perplexity": "Perplexity", "top_1_agreement": "Top-1 agreement (%)"}.items():
        rows = result.select(metric, **EACH)
        rows = rows[rows["document"].notna()]
        rows = rows.assign(document=rows["document"].map(titles))
        figures.table(figures.pivot(rows, "document", "setting", digits=4), caption=f"{title}, {shown_n:,} tokens")
if count(LONG) > 1:
    spread = {
        title: result.select(metric, **LONG, **{**MEAN, "statistic": documents.STANDARD}).set_index("setting")["value"]
        for metric, title in {
            "perplexity_ratio": "relative perplexity",
            "top_1_agreement": "top-1 agreement (%)",
        }.items()
    }
    figures.table(
        pd.DataFrame(spread).reset_index(),
        caption=f"Standard deviation between the same {count(LONG)} documents of {shown_n:,} tokens",
    )
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
first, last = (positions["position"].min(), positions["position"].max())
at_end = {
    name: shown("perplexity_ratio", name, ALIKE, position=last)
    for name in ("neighbours", best)
    if name in settings_of(ALIKE)
}
drift = layers[layers["setting"] == best].sort_values("layer")["value"]
rarest, commonest = (mean("kl_divergence", best, FEW, frequency=name) for name in ("rare", "frequent"))
ratio = rarest["value"] / commonest["value"]
same_first, same_last = (
    mean("rank_agreement", best, ALIKE, rank=rank)["value"] for rank in (1, int(ranks["rank"].max()))
)
direction = "falls" if drift.iloc[-1] < drift.iloc[1] else "rises"
sentences = [
    f"**Where.** Of the last positions, up to {int(last):,}, "
    + " and ".join(f"`{name}` has {text} times the original's perplexity" for name, text in at_end.items())
    + f"; up to {int(first):,} all settings with that local window read what the original reads.",
    f"**Layers.** The cosine of `{best}`'s hidden states with the original's {direction} from "
    f"{figures.number(drift.iloc[1], 4)} after the first layer to {figures.number(drift.iloc[-1], 4)} after the last.",
    f"**Ranks.** With `{best}` the first choice is the same at {figures.number(same_first)} % of positions, the tenth at "
    f"{figures.number(same_last)} %: agreement at the lower ranks asks for an order among nearly equal probabilities.",
    f"**Frequency.** Before a rare token the divergence of `{best}` is {figures.number(ratio)} times that before a "
    f"frequent one.",
]
for before, after in PAIRS:
    if before in settings_of(ALIKE) and after in settings_of(ALIKE):
        gap = result.select("gap_closed", **EACH, setting=after).iloc[0]
        sentences.append(
            f"**Calibration.** `{before}` goes from {shown('perplexity_ratio', before, ALIKE)} to "
            f"{shown('perplexity_ratio', after, ALIKE)} times the original's perplexity, which closes "
            f"{figures.interval(gap['value'], gap['low'], gap['high'])} % of the gap."
        )
if "top-16 per token" in settings_of(ALIKE):
    sentences.append(
        f"**A better choice.** Chosen by each token rather than once a chunk, `top-16` goes from "
        f"{shown('perplexity_ratio', 'top-16', ALIKE)} to {shown('perplexity_ratio', 'top-16 per token', ALIKE)} times; with twice the "
        f"blocks, `top-32`, to {shown('perplexity_ratio', 'top-32', ALIKE)}."
    )
figures.say("\n\n".join(sentences))

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - One pretrained model, with weights rounded to four bits by those who packaged it; the original is measured with the
#   same rounded weights. The GPT-2 is small and knows nothing but speeches.
# - Perplexity over all positions: those within the local window are exact and dilute the loss of those after it. The
#   section by position undoes that. What averages over tokens do not show is the loss of a single far fact:
#   see [the passkey](passkey.ipynb).
# - Calibration saw speeches only. The table by kind of text shows what it brings to e-mails.
# - Agreement at more than one choice is the overlap of two sets. The document does not say how it counted.
