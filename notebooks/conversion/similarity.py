# %% [markdown]
# # Similarity of a converted model
#
# How much of a pretrained language model is left when BSBR attention takes the place of its own, with no training, and
# where is it lost?

# %% tags=["remove-input"]
from bsbr import claims, figures

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
# - **SmolLM2**: `SmolLM2-135M-Instruct`, of the Llama architecture: rotary positions, three query heads to each key/value
#   head, nearly the size of `gpt2`.
# - **GPT-2**: the architecture that the document is about, learned positions and all, in a small size. Its weights are
#   trained here, on the speeches that are read nowhere below, since the original's cannot be had from a package registry.
#   What it shows is that the conversion does the same to this architecture; a model of some minutes is no `gpt2`.
#
# The texts are State of the Union addresses, each from its first token, and e-mails of a public corpus, headers left out.
# Settings were chosen on other speeches: what is read here is fixed by a rule in `data/sources/`, and was read by no
# model while conversions were developed. Some speeches are read at full length; the samples are shorter: half of
# them speeches, half e-mails, all read with the converter's default and a few with other rungs too.
#
# A conversion keeps every weight. Each token goes on reading exactly its own chunk and what the rung adds to it; far
# text is what lies before that. [The page on conversion](../../book/conversion.md) has the formulas.
#
# - **local**: its own chunk and nothing else.
# - **neighbours**: the chunk before as well, and the very first tokens, on which pretrained models rest unused attention
#   ([Xiao et al., ICLR](https://arxiv.org/abs/2309.17453)).
# - **states**: each far chunk as well, through its state, the expansion of softmax attention around the chunk's mean key;
#   **fine states**: the same with smaller chunks, more of them local, and compressed states.
# - **top-k**: the best far blocks as well, read exactly. A chunk chooses by the chunk before it: the mean
#   queries of that chunk's blocks (meta queries) against the mean keys of all far blocks (meta keys), for each
#   key/value head. So the choice is made before the chunk's first token is known.
# - **both**: the best far chunks exactly, all others through their states.
# - **per token**: top-k, chosen by each token for itself. It costs as much as full attention, and stands here to show
#   what a better choice would be worth.
# - **calibrated**: after `bsbr.convert.calibrate` on development speeches, which fits how each head reads states and
#   leaves the weights alone. The texts below are not among those that it saw.
#
# Up to the length of the local window the original attention is used, so short texts lose nothing. Perplexity is
# over all positions of a text. Agreement at $k$ is the share of the original's $k$ most likely next tokens
# that are among the conversion's $k$; agreement at a rank asks for the same token at the same place of the two lists.
# Cosine, squared error and KL divergence compare the logits at each position. Means are over documents, with a 95 %
# interval by Student's t that takes documents as independent.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"


# %% tags=["hide-input"]
import functools
import math
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

import bsbr.convert
from bsbr import ConversionConfig, convert
from bsbr.convert import calibrate
from bsbr.measure import machine, similarity
from bsbr.results import Sweep, row
from bsbr.tasks import small_gpt2, sources

NEIGHBOURS = ConversionConfig(chunk_size=128, local_chunks=2, sink_tokens=4, retrieval="none")
STATES = replace(NEIGHBOURS, retrieval="states")
FINE = replace(STATES, chunk_size=32, local_chunks=8, compression_factor=8)
TOP_16 = ConversionConfig(chunk_size=128, local_chunks=2, sink_tokens=32, retrieval="top_k", top_k=16, block_size=32)
RUNGS = {
    "local": replace(NEIGHBOURS, local_chunks=1, sink_tokens=0),
    "neighbours": NEIGHBOURS,
    "states": STATES,
    "fine states": FINE,
    "fine states, calibrated": FINE,
    "top-8": replace(TOP_16, top_k=8),
    "top-16": TOP_16,
    "top-32": replace(TOP_16, top_k=32),
    "both": replace(TOP_16, retrieval="both", top_k=4),
    "top-16 per token": replace(TOP_16, retrieval="top_k_per_token"),
}
PAIRS = [("fine states", "fine states, calibrated")]
PROFILES = {
    "tiny": {
        "long": 384, "speeches": 1, "samples": 1, "sample": 300, "rungs": ["local", "top-16"], "some": ["top-16"], "few": 1,
        "gpt2": "tiny",
        "gpt2_documents": 1, "halved": 0, "context": 512, "context_documents": 1,
        "fit_documents": 1, "fit_tokens": 512, "fit_steps": 1,
    },
    "quick": {
        "long": 1024, "speeches": 0, "samples": 2, "sample": 1024, "rungs": [], "some": ["neighbours", "fine states", "top-16"], "few": 2,
        "gpt2": "",
        "gpt2_documents": 0, "halved": 0, "context": 8192, "context_documents": 0,
        "fit_documents": 8, "fit_tokens": 4096, "fit_steps": 200,
    },
    "full": {
        "long": 4096, "speeches": 4, "samples": 50, "sample": 1024, "rungs": list(RUNGS),
        "some": ["neighbours", "fine states", "fine states, calibrated", "top-16"], "few": 6, "gpt2": "full",
        "gpt2_documents": 8, "halved": 4, "context": 8192, "context_documents": 4,
        "fit_documents": 8, "fit_tokens": 4096, "fit_steps": 200,
    },
}  # fmt: skip
FEWEST_FOR_INTERVAL = 4  # documents; from fewer, Student's t gives bounds that no perplexity can take
BY_DOCUMENT = ["perplexity", "perplexity_ratio", "top_1_agreement", "kl_divergence"]
FREQUENT, RARE = 1e-3, 1e-4  # a token's share of the development speeches
settings = PROFILES[profile]
device = machine.device(target)
rungs = pd.DataFrame([{"rung": name, **asdict(config)} for name, config in RUNGS.items()])
rungs["top_k"] = rungs["top_k"].where(rungs["retrieval"].isin(["top_k", "top_k_per_token", "both"])).astype("Int64")
rungs["block_size"] = rungs["block_size"].where(rungs["retrieval"].str.startswith("top_k")).astype("Int64")
figures.table(rungs.drop(columns=["layers", "original_below"]), caption="The rungs")

# %% [markdown]
# ## Measuring


# %% tags=["hide-input"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
speeches = {speech.key: speech.text for split in ("held_out", "samples") for speech in sources.load_speeches(split)}
TEXTS = {"speech": speeches, "e-mail": {mail.key: mail.text for mail in sources.load_emails("held_out")}}


@functools.cache
def original(model: str, dtype: str = "float32") -> tuple:
    """A model and its tokenizer."""
    if model == "SmolLM2":
        found, tokenizer = sources.load_smollm2(DTYPES[dtype])
    else:
        found, tokenizer = small_gpt2.load(small_gpt2.train(settings["gpt2"]))
    return found.to(device), tokenizer


def ids_of(model: str, text: str, n: int) -> torch.Tensor:
    ids = original(model)[1](text, return_tensors="pt")["input_ids"][:, :n].to(device)
    if ids.shape[1] < n:
        raise ValueError(f"a text has only {ids.shape[1]} tokens, {n} are needed")
    return ids


@functools.lru_cache(maxsize=1)
def original_reading(model: str, dtype: str, kind: str, document: str, n: int) -> similarity.Reading:
    return similarity.read(original(model, dtype)[0], ids_of(model, TEXTS[kind][document], n))


@functools.cache
def development(model: str) -> list[torch.Tensor]:
    """What calibration may see, and what the frequency of a token is counted in."""
    texts = [speech.text for speech in sources.load_speeches("development")]
    return [original(model)[1](text, return_tensors="pt")["input_ids"] for text in texts]


@functools.cache
def converted(model: str, dtype: str, rung: str) -> object:
    """Converted by a rung; a calibrated one is fitted to development speeches first."""
    found = convert(original(model, dtype)[0], RUNGS[rung])
    if rung.endswith("calibrated"):
        longest = min(settings["fit_tokens"], getattr(found.config, "max_position_embeddings", math.inf))
        texts = [ids[:, :longest] for ids in development(model)[: settings["fit_documents"]]]
        calibrate(found, texts, steps=settings["fit_steps"])
    return found


@functools.cache
def frequencies(model: str) -> torch.Tensor:
    """Each token's share of the development speeches."""
    counts = Counter(int(token) for ids in development(model) for token in ids[0])
    shares = torch.tensor([counts[token] for token in range(original(model)[0].config.vocab_size)])
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


def measure(model: str, dtype: str, kind: str, n: int, document: str, rung: str) -> list[dict]:
    """One rung's reading of one text beside the original's."""
    before = original_reading(model, dtype, kind, document, n)
    if rung == "original":
        found = similarity.compare(before, before)
        at = [r for r in by_position(found) if r["metric"] == "perplexity"]
        return [
            row("perplexity", found.perplexity),
            row("next_token_accuracy", found.next_token_accuracy),
            *at,
        ]
    found = similarity.compare(before, similarity.read(converted(model, dtype, rung), before.ids[None]))
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


def all_with_the_default(documents: list[str]) -> list[tuple[list[str], list[str]]]:
    """Documents and their rungs: few are read by several rungs, all by the default one."""
    few = sources.evenly(documents, settings["few"])
    return [(few, settings["some"]), ([document for document in documents if document not in few], ["top-16"])]


# %% tags=["hide-input", "remove-output"]
held_out, samples, mails = (
    [text.key for text in found]
    for found in (
        sources.load_speeches("held_out"),
        sources.load_speeches("samples"),
        sources.load_emails("held_out"),
    )
)
SMOLLM2 = {"model": "SmolLM2", "dtype": "float32"}
groups = [  # where, documents, rungs
    *(
        (SMOLLM2 | {"kind": kind, "n": settings["sample"]}, *part)
        for kind, texts in {"speech": samples, "e-mail": mails}.items()
        for part in all_with_the_default(sources.evenly(texts, settings["samples"]))
    ),
    (
        SMOLLM2 | {"kind": "speech", "n": settings["long"]},
        sources.evenly(held_out, settings["speeches"]),
        settings["rungs"],
    ),
    (
        SMOLLM2 | {"kind": "speech", "n": settings["context"]},
        sources.evenly(held_out, settings["context_documents"]),
        ["top-16"],
    ),
    (
        {"model": "SmolLM2", "dtype": "bfloat16", "kind": "speech", "n": settings["long"]},
        sources.evenly(held_out, settings["halved"]),
        ["top-16"],
    ),
    (
        {"model": "GPT-2", "dtype": "float32", "kind": "speech", "n": settings["sample"]},
        sources.evenly(samples, settings["gpt2_documents"]),
        settings["rungs"],
    ),
]
cells = [
    {**where, "document": document, "rung": rung}
    for where, documents, rungs in groups
    for document in documents
    for rung in ["original", *rungs]
]
sweep = Sweep(
    "conversion/similarity",
    target=target,
    profile=profile,
    parameters={
        "rungs": {name: asdict(config) for name, config in RUNGS.items()},
        "calibration": {name: settings[name] for name in ("fit_documents", "fit_tokens", "fit_steps")},
        "gpt2": settings["gpt2"],
        "batch": 1,
    },
    code=[bsbr.convert, similarity, small_gpt2],
    sources=[sources.pin_path(name) for name in ("smollm2", "speeches", "emails")],
)

# %% [markdown]
# How long a whole `calibrate` takes, loading left out; then every reading of every text.


# %% tags=["hide-input", "remove-output"]
def time_calibration(phase: str, model: str, rung: str) -> list[dict]:
    original(model), development(model)
    converted.cache_clear()
    begin = time.perf_counter()
    converted(model, "float32", rung)
    return [row("time", time.perf_counter() - begin, samples=1)]


def train_gpt2(phase: str, model: str) -> list[dict]:
    """The model is left in the cache, which remembers how it was trained."""
    small_gpt2.train(settings["gpt2"])
    record = small_gpt2.record(settings["gpt2"])
    parameters = original(model)[0].num_parameters()
    return [
        row("parameters", parameters),
        row("trained_tokens", record["tokens"]),
        row("time", record["seconds"], samples=1),
    ]


fitted = [rung for _, rung in PAIRS if any(cell["rung"] == rung for cell in cells)]
timed = [
    sweep.measure([{"phase": "calibration", "model": "SmolLM2", "rung": rung} for rung in fitted], time_calibration)
    if fitted
    else pd.DataFrame(),
    sweep.measure([{"phase": "training", "model": "GPT-2"}], train_gpt2)
    if settings["gpt2_documents"]
    else pd.DataFrame(),
]
read = sweep.measure(cells, measure)

# %% [markdown]
# Over the documents, each metric has a mean, and its standard deviation is the spread between documents. What
# calibration closes is the gap in mean log-likelihood, with an interval by the bootstrap over documents.

# %% tags=["hide-input"]
WHERE = ["model", "dtype", "kind", "n"]
PARTS = ["layer", "rank", "position", "frequency"]


def means(rows: pd.DataFrame) -> list[dict]:
    by = [*WHERE, "rung", "metric", *(part for part in PARTS if part in rows)]
    found = []
    for key, part in rows.groupby(by, dropna=False, sort=False):
        where = {name: value for name, value in zip(by, key, strict=True) if pd.notna(value)}
        metric = where.pop("metric")
        mean = similarity.mean(list(part["value"]))
        low, high = (mean.low, mean.high) if mean.samples >= FEWEST_FOR_INTERVAL else (None, None)
        found.append(row(metric, mean.value, low=low, high=high, samples=mean.samples, **where))
        if not set(PARTS) & set(where) and mean.samples > 1:
            found.append(row(metric, mean.deviation, samples=mean.samples, statistic="standard deviation", **where))
    return found


def gap_closed(before: np.ndarray, after: np.ndarray, axis: int = -1) -> np.ndarray:
    """Of mean log ratios of perplexity before and after calibration."""
    return 100 * (1 - after.mean(axis) / before.mean(axis))


def closed(rows: pd.DataFrame) -> list[dict]:
    found = []
    logs = rows[rows["metric"] == "perplexity_ratio"].assign(log=lambda part: np.log(part["value"]))
    for where, part in logs[logs["position"].isna()].groupby(WHERE, sort=False):
        by_rung = part.pivot(index="document", columns="rung", values="log")
        for before, after in PAIRS:
            if after not in by_rung or before not in by_rung:
                continue
            both = by_rung[[before, after]].dropna()  # not every document is read by these rungs
            pair = (both[before].to_numpy(float), both[after].to_numpy(float))
            low = high = None
            if len(both) >= FEWEST_FOR_INTERVAL:
                interval = bootstrap(pair, gap_closed, paired=True, method="percentile", rng=0).confidence_interval
                low, high = (float(end) for end in interval)
            at = dict(zip(WHERE, where, strict=True))
            found.append(
                row("gap_closed", float(gap_closed(*pair)), low=low, high=high, samples=len(both), rung=after, **at)
            )
    return found


both_kinds = read[(read["model"] == "SmolLM2") & (read["n"] == settings["sample"]) & (read["dtype"] == "float32")]
together = pd.concat([read, both_kinds.assign(kind="all")], ignore_index=True)
plain = read[[part for part in PARTS if part in read]].isna().all(axis=1)
kept = read[plain & read["metric"].isin(BY_DOCUMENT)]
result = sweep.publish(
    pd.concat([kept, pd.DataFrame([*means(together), *closed(together)]), *timed], ignore_index=True)
)

# %% tags=["remove-input"]
shown_n = settings["long"] if settings["speeches"] else settings["sample"]
LONG = {"model": "SmolLM2", "dtype": "float32", "kind": "speech", "n": shown_n}
SAMPLES = {"model": "SmolLM2", "dtype": "float32", "kind": "all", "n": settings["sample"]}
SMALL = {"model": "GPT-2", "dtype": "float32", "kind": "speech", "n": settings["sample"]}
HALVED = {"model": "SmolLM2", "dtype": "bfloat16", "kind": "speech", "n": settings["long"]}
CONTEXT = {"model": "SmolLM2", "dtype": "float32", "kind": "speech", "n": settings["context"]}
MEAN = {name: None for name in ("document", "statistic", "phase", *PARTS) if name in result.table}
best = next(rung for rung, config in RUNGS.items() if config == ConversionConfig())


def rungs_of(where: dict) -> list[str]:
    return list(result.select("perplexity_ratio", **where, **MEAN)["rung"])


def mean(metric: str, rung: str, where: dict = LONG, **part: object) -> pd.Series:
    return result.select(metric, **where, rung=rung, **{**MEAN, **part}).iloc[0]


def shown(metric: str, rung: str, where: dict = LONG, digits: int = 3, **part: object) -> str:
    found = mean(metric, rung, where, **part)
    return figures.interval(found["value"], found["low"], found["high"], digits)


def count(where: dict, rung: str = best) -> int:
    return int(mean("perplexity", rung, where)["samples"])


closest = min(rungs_of(LONG), key=lambda rung: mean("perplexity_ratio", rung)["value"])
least = "local" if "local" in rungs_of(LONG) else "neighbours"
figures.say(
    f"**Without any training, the rung `{best}`, which is the converter's default, reads held-out speeches of {shown_n:,} "
    f"tokens at {shown('perplexity_ratio', best)} times the original's perplexity, and its first choice for the next token "
    f"is the original's at {shown('top_1_agreement', best)} % of positions.** Over {count(SAMPLES)} samples of "
    f"{settings['sample']:,} tokens, speeches and e-mails, it is {shown('perplexity_ratio', best, SAMPLES)} times and "
    f"{shown('top_1_agreement', best, SAMPLES)} %. The rung that comes closest, `{closest}`, is at "
    f"{shown('perplexity_ratio', closest)} times and {shown('top_1_agreement', closest)} %; with `{least}`, perplexity is "
    f"{shown('perplexity_ratio', least)} times the original's. "
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


def part_chart(metric: str, part: str, where: dict = LONG, rungs: list[str] | None = None) -> pd.DataFrame:
    rows = result.select(metric, **where, **{name: None for name in MEAN if name != part})
    rows = rows[rows[part].notna()]
    return rows[rows["rung"].isin(rungs)] if rungs else rows


LEGEND_BELOW = {"legend": {"orientation": "h", "y": -0.25, "yanchor": "top"}, "height": 480}
positions = part_chart("perplexity_ratio", "position")
chart = figures.lines(
    positions, "position", group="rung", x_title="position in the text, up to", log_x=True, log_y=True,
    title=f"Perplexity relative to the original, by position, {shown_n:,} tokens",
)  # fmt: skip
figures.show(chart.update_layout(LEGEND_BELOW), "position", main_chart)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## Rung by rung

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


def summary(where: dict, caption: str) -> None:
    def cell(metric: str, rung: str) -> str:
        if rung == "original" and metric not in ("perplexity", "next_token_accuracy"):
            return "–"
        return shown(metric, rung, where)

    rows = [
        {"rung": rung, "texts": count(where, rung)} | {title: cell(metric, rung) for metric, title in COLUMNS.items()}
        for rung in ["original", *rungs_of(where)]
    ]
    figures.table(pd.DataFrame(rows), caption=f"{caption}: mean and 95 % interval")


summary(LONG, f"SmolLM2, {shown_n:,} tokens of {count(LONG)} held-out speeches")
summary(SAMPLES, f"SmolLM2, {settings['sample']:,} tokens of {count(SAMPLES)} speeches and e-mails")
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
    summary(SMALL, f"GPT-2, {settings['sample']:,} tokens of {count(SMALL)} held-out speeches")
    figures.show_provenance(result)
else:
    figures.say("It is trained in the full profile only.")

# %% [markdown]
# ## At the whole length of the model's context

# %% tags=["remove-input"]
if settings["context_documents"]:
    summary(CONTEXT, f"SmolLM2, {settings['context']:,} tokens of {count(CONTEXT)} held-out speeches")
    figures.show_provenance(result)
else:
    figures.say("It is measured in the full profile only.")

# %% [markdown]
# ## In bfloat16

# %% tags=["remove-input"]
if settings["halved"]:
    summary(HALVED, f"SmolLM2 in bfloat16, original and conversion alike, {settings['long']:,} tokens")
    figures.show_provenance(result)
else:
    figures.say("It is measured in the full profile only.")

# %% [markdown]
# ## By position: does far text help?
#
# Tokens up to the length of the local window are read as by the original. What comes later shows what is lost with the
# far text: the line of `neighbours`, which reads none of it, is what far text is worth to the original.

# %% tags=["remove-input"]
numbers = part_chart("perplexity_ratio", "position")
figures.table(
    figures.pivot(numbers.sort_values("position"), "position", "rung"),
    caption="Perplexity relative to the original, positions up to (and from the line before)",
)
before = part_chart("perplexity", "position", rungs=["original", best])
figures.table(figures.pivot(before.sort_values("position"), "position", "rung"), caption="Perplexity itself")
figures.show_provenance(result)

# %% [markdown]
# ## By rank

# %% tags=["remove-input"]
ranks = part_chart("rank_agreement", "rank")
chart = figures.lines(
    ranks, "rank", group="rung", title="Same token at the same place of both lists", x_title="rank of the choice"
)
figures.show(chart.update_layout(LEGEND_BELOW), "rank")
figures.show_provenance(result)

# %% [markdown]
# ## By frequency of the token that follows
#
# Frequencies are counted in the development speeches.

# %% tags=["remove-input"]
where = SAMPLES
classes = part_chart("kl_divergence", "frequency", where)
order = ["frequent", "less frequent", "rare", "never seen"]
classes = classes.sort_values("frequency", key=lambda column: column.map(order.index), kind="stable")
chart = figures.bars(
    classes, "frequency", group="rung", title="KL divergence by frequency of the token that follows", x_title=""
)
figures.show(chart.update_layout(LEGEND_BELOW), "frequency")
figures.table(figures.pivot(classes, "frequency", "rung"), caption="KL divergence (nats), speeches and e-mails")
figures.show_provenance(result)

# %% [markdown]
# ## By layer

# %% tags=["remove-input"]
layers = part_chart("cosine_similarity", "layer")
chart = figures.lines(
    layers, "layer", group="rung", title="Hidden states beside the original's", x_title="layers passed",
    y_title="cosine similarity",
)  # fmt: skip
figures.show(chart.update_layout(LEGEND_BELOW), "layers")
figures.show_provenance(result)

# %% [markdown]
# ## What calibration closes

# %% tags=["remove-input"]
gaps = result.select("gap_closed")
if len(gaps):
    at = gaps.assign(where=[f"{g.model}, {g.kind}, n = {g.n:,}" for g in gaps.itertuples()])
    figures.table(
        figures.pivot(at, "where", "rung"), caption="Share of the gap in log-likelihood that calibration closes (%)"
    )
    took = result.select("time", phase="calibration")
    figures.table(
        took[["rung", "value"]].rename(columns={"value": "seconds"}),
        caption=f"Calibrating SmolLM2 on {settings['fit_documents']} speeches of {settings['fit_tokens']:,} tokens",
    )
    figures.show_provenance(result)
else:
    figures.say("Calibrated rungs are not part of this profile.")

# %% [markdown]
# ## Document by document

# %% tags=["remove-input"]
if settings["speeches"]:
    titles = {speech.key: f"{speech.year} {speech.president}" for speech in sources.load_speeches()}
    for metric, title in {"perplexity": "Perplexity", "top_1_agreement": "Top-1 agreement (%)"}.items():
        rows = result.select(metric, **LONG)
        rows = rows[rows["document"].notna()]
        rows = rows.assign(document=rows["document"].map(titles))
        figures.table(figures.pivot(rows, "document", "rung", digits=4), caption=f"{title}, {shown_n:,} tokens")
deviations = {
    title: result.select(metric, **LONG, **{**MEAN, "statistic": "standard deviation"}).set_index("rung")["value"]
    for metric, title in {"perplexity_ratio": "relative perplexity", "top_1_agreement": "top-1 agreement (%)"}.items()
}
figures.table(
    pd.DataFrame(deviations).reset_index(), caption=f"Standard deviation between documents of {shown_n:,} tokens"
)
figures.show_provenance(result)

# %% [markdown]
# ## Reading

# %% tags=["remove-input"]
first, last = (positions["position"].min(), positions["position"].max())
at_end = {
    rung: shown("perplexity_ratio", rung, position=last) for rung in ("neighbours", best) if rung in rungs_of(LONG)
}
drift = layers[layers["rung"] == best].sort_values("layer")["value"]
rarest, commonest = (mean("kl_divergence", best, SAMPLES, frequency=name) for name in ("rare", "frequent"))
ratio = rarest["value"] / commonest["value"]
same_first, same_last = (mean("rank_agreement", best, rank=rank)["value"] for rank in (1, int(ranks["rank"].max())))
direction = "falls" if drift.iloc[-1] < drift.iloc[1] else "rises"
sentences = [
    f"**Where.** Of the last positions, up to {int(last):,}, "
    + " and ".join(f"`{rung}` has {text} times the original's perplexity" for rung, text in at_end.items())
    + f"; up to {int(first):,} all rungs with that local window read what the original reads.",
    f"**Layers.** The cosine of `{best}`'s hidden states with the original's {direction} from "
    f"{figures.number(drift.iloc[1], 4)} after the first layer to {figures.number(drift.iloc[-1], 4)} after the last.",
    f"**Ranks.** With `{best}` the first choice is the same at {figures.number(same_first)} % of positions, the tenth at "
    f"{figures.number(same_last)} %: agreement at the lower ranks asks for an order among nearly equal probabilities.",
    f"**Frequency.** Before a rare token the divergence of `{best}` is {figures.number(ratio)} times that before a "
    f"frequent one.",
]
for before, after in PAIRS:
    if before in rungs_of(LONG) and after in rungs_of(LONG):
        gap = result.select("gap_closed", **LONG, rung=after).iloc[0]
        sentences.append(
            f"**Calibration.** `{before}` goes from {shown('perplexity_ratio', before)} to "
            f"{shown('perplexity_ratio', after)} times the original's perplexity, which closes "
            f"{figures.interval(gap['value'], gap['low'], gap['high'])} % of the gap."
        )
if "top-16 per token" in rungs_of(LONG):
    sentences.append(
        f"**A better choice.** Chosen by each token rather than once a chunk, `top-16` goes from "
        f"{shown('perplexity_ratio', 'top-16')} to {shown('perplexity_ratio', 'top-16 per token')} times; with twice the "
        f"blocks, `top-32`, to {shown('perplexity_ratio', 'top-32')}."
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
