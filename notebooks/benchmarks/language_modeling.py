# %% [markdown]
# # Language modelling
#
# How well does each mechanism predict text, trained alike at several lengths? Does it use what stands far back, and does
# it go on when it reads more than it was trained on?

# %% tags=["remove-input"]
from bsbr.show import claims, figures

answer, stated, main_chart, origin = (figures.reserve(what) for what in ("answer", "claims", "chart", "source"))

# %% [markdown]
# ## What was claimed
#
# One document states perplexities of BSBR, standard and linear attention at three lengths, without naming data or model:
# BSBR a little behind standard attention, linear attention behind both. What can be held against that is the ratio to
# standard attention at the same length. It also says in words that BSBR is the better one for long texts.
#
# ## Method
#
# Texts of the Brown corpus and State of the Union addresses, divided by document; all as the page [How models are
# compared](../../book/fair.md) says. Every run reads equally many tokens, each at most once, in windows of one length.
# The learning rate of each mechanism is chosen at the shortest length from one grid, by validation loss, and used at the
# other lengths too. Fresh seeds follow, and the perplexity of each on the same windows of the test part.
#
# - **By position**: the perplexity of the tokens in stretches of the window. The later a token, the more text it has
#   before it; a mechanism that uses far text gets better along the window.
# - **Reading on**: the models of the shortest length read windows many times as long as those that they were trained on.
# - **n-grams**: unigrams, and five-grams with interpolated Kneser–Ney smoothing {cite:p}`chen1999`, counted on the very tokens that the run of
#   each seed has read, and tried on the same windows of the test part.
# - **Equal parameters**: mechanisms with more parameters than standard attention, trained once more with feed-forward
#   layers so narrow that the numbers are equal.
#
# Chunks and windows of attention hold an eighth of the text.

# %% tags=["parameters", "remove-cell"]
target = "cpu"
profile = "quick"

# %% tags=["hide-input", "remove-output"]
import functools
from dataclasses import asdict

import pandas as pd

from bsbr import MECHANISMS, ModelConfig, sources
from bsbr.measure import machine
from bsbr.show import learning as shown
from bsbr.store import Sweep
from bsbr.studies import learning, prediction, short_runs
from bsbr.training import Settings
from bsbr.training.tasks import corpus_windows

CORPORA = ("brown", "speeches")
NGRAMS = {"unigram": 1, "5-gram": 5}
MORE = 1.01  # times standard attention's parameters, from which on there is a second comparison
EQUAL = "equal parameters"
PROFILES = {
    "tiny": {
        "lengths": [64, 128], "far": 256, "hidden_dim": 32, "ff_dim": 64, "num_heads": 2, "key_dim": 16, "tokens_a_step": 256,
        "steps": 6, "test_tokens": 512, "far_tokens": 512, "validation_tokens": 512, "mechanisms": ["standard", "gau"],
        "rates": [3e-3], "short": "gau", "short_steps": 2,
    },
    "quick": {"seeds": []},
    "full": {},
}  # fmt: skip
settings = {
    "lengths": [512, 1024, 2048], "far": 4096, "hidden_dim": 128, "num_layers": 2, "num_heads": 4, "ff_dim": 256,
    "key_dim": 64, "tokens_a_step": 2048, "steps": 480, "test_tokens": 2**16, "far_tokens": 2**15, "validation_tokens": 2**15,
    "mechanisms": list(MECHANISMS), "rates": [5e-4, 1.5e-3, 4.5e-3], "seeds": [1, 2, 3], "short": "bsbr", "short_rate": 1.5e-3,
    "short_steps": 32, **PROFILES[profile],
}  # fmt: skip
lengths, seeds = settings["lengths"], tuple(settings["seeds"])
shortest, longest = lengths[0], lengths[-1]
sizes = {name: settings[name] for name in ("hidden_dim", "num_layers", "num_heads", "ff_dim", "key_dim")}

# %% [markdown]
# ## Measuring


# %% tags=["hide-input", "remove-output"]
def models(n: int) -> dict[str, ModelConfig]:
    return {name: ModelConfig(name, **sizes, chunk_size=n // 8, window_size=n // 8) for name in settings["mechanisms"]}


def training(n: int) -> Settings:
    return Settings(
        steps=settings["steps"],
        batch=settings["tokens_a_step"] // n,
        warm_up=settings["steps"] // 10,
        evaluate_rows=settings["validation_tokens"] // n,
    )


def contest(n: int, chosen: dict[str, float] | None, configs: dict[str, ModelConfig], far: bool) -> learning.Contest:
    task = corpus_windows(n, CORPORA)
    judge = functools.partial(prediction.judge, task=task, rows=settings["test_tokens"] // n)
    if far:
        judge = functools.partial(
            judge, far=corpus_windows(settings["far"], CORPORA), far_rows=settings["far_tokens"] // settings["far"]
        )
    return learning.Contest(
        "mechanism", configs, task, training(n), tuple(settings["rates"]), seeds, judge, chosen=chosen
    )  # fmt: skip


sweep = Sweep(
    "benchmarks/language_modeling",
    target=target,
    profile=profile,
    parameters={**sizes, "corpora": list(CORPORA), "tokens": settings["steps"] * settings["tokens_a_step"]},
    sources=[sources.pin_path(name) for name in CORPORA],
)
device = machine.device(target).type
whole = contest(shortest, None, models(shortest), far=True)
of_few_steps = {"rate": settings["short_rate"], "steps": settings["short_steps"], "device": device}
tables = [short_runs.hold(sweep, whole, settings["short"], n=shortest, **of_few_steps)]
if seeds:
    tables.append(learning.hold(sweep, whole, device=device, n=shortest))
    rates = learning.chosen(tables[-1], "mechanism")
    for n in lengths[1:]:
        tables.append(learning.hold(sweep, contest(n, rates, models(n), far=False), device=device, n=n))
    vocabulary = {"vocab_size": corpus_windows(shortest, CORPORA).vocab_size}
    configs = {name: ModelConfig(**{**asdict(one), **vocabulary}) for name, one in models(shortest).items()}
    wanted = learning.parameters(configs["standard"])
    larger = [name for name, one in configs.items() if learning.parameters(one) > MORE * wanted]
    narrow = {name: learning.with_parameters(configs[name], wanted) for name in ["standard", *larger]}
    equal = contest(shortest, rates, narrow, far=False)
    tables.append(learning.hold(sweep, equal, device=device, n=shortest, sizes=EQUAL))
    counted = []
    for n in lengths:
        task, rows = corpus_windows(n, CORPORA), settings["test_tokens"] // n
        for name, order in NGRAMS.items():
            counting = functools.partial(prediction.ngram, task, training(n), rows, order=order)
            cells = [{"mechanism": name, "n": n, "seed": seed} for seed in seeds]
            counted.append(sweep.measure(cells, counting, machine_bound=False))
    of_seeds = pd.concat(counted, ignore_index=True)
    tables += [of_seeds, pd.DataFrame(prediction.over_seeds(of_seeds, ["mechanism", "n"]))]
result = sweep.publish(pd.concat(tables, ignore_index=True))


# %% tags=["remove-input"]
def means(metric: str, **factors: object) -> pd.DataFrame:
    """Means over seeds: rows of models of the plain sizes."""
    return result.select(metric, seed=None, sizes=None, **factors)


compared = shown.is_compared(result)
if compared:
    differ = {n: shown.differing(result, "perplexity_gain", n=n) for n in lengths}
    beaten = {n: shown.beating(result, "perplexity", "5-gram", less=True, n=n) for n in lengths}
    figures.say(
        f"**Trained at {longest:,} tokens: {differ[longest]}** {beaten[longest]} Trained at {shortest:,} tokens: "
        f"{differ[shortest]} {beaten[shortest]}",
        answer,
    )
    chart = figures.lines(
        means("perplexity", position=None), "n", title="Perplexity on the test part, by the length of a text",
        x_title="n (tokens), in training and test", log_x=True,
    )  # fmt: skip
    figures.show(chart, "perplexity", main_chart)
else:
    figures.say(shown.NOT_COMPARED, answer)
    figures.say(shown.short_run(result), main_chart)
figures.say(claims.line(result), stated)
figures.say(figures.provenance_line(result), origin)

# %% [markdown]
# ## By length
#
# Each line has the mechanism's perplexity over the same tokens of the test part, and beside it what it costs. A gain is
# standard attention's perplexity over this one's, seed by seed; above one predicts better.

# %% tags=["remove-input"]
for n in lengths if compared else []:
    qualities = {"perplexity": "perplexity", "perplexity_gain": "standard's over this"}
    shown.table(result, qualities, f"Trained and read at n = {n:,}", n=n)
    figures.say(f"{differ[n]} {beaten[n]}")
if not compared:
    figures.say(shown.NOT_COMPARED)
figures.show_provenance(result)

# %% [markdown]
# ## By position
#
# What text further back is worth: the perplexity of the tokens up to each position, trained and read at the longest
# length.

# %% tags=["remove-input"]
if compared:
    by_position = means("perplexity", n=longest, read=longest).dropna(subset="position")
    chart = figures.lines(
        by_position, "position", title=f"Perplexity by position, trained at {longest:,} tokens",
        x_title="position (tokens), end of a stretch", log_x=True,
    )  # fmt: skip
    figures.show(chart, "position")
    figures.table(
        figures.pivot(by_position, "mechanism", "position"), "Perplexity of the stretch that ends at a position"
    )
else:
    figures.say(shown.NOT_COMPARED)

# %% [markdown]
# ## Reading on
#
# The models that were trained at the shortest length read on. Where a line rises beyond that length, the mechanism cannot
# go on by itself; where it falls, it even uses the text that is longer than any it has seen.

# %% tags=["remove-input"]
if compared:
    far = settings["far"]
    further = means("perplexity", n=shortest, read=far).dropna(subset="position")
    chart = figures.lines(
        further, "position", title=f"Trained at {shortest:,} tokens, reading {far:,}",
        x_title="position (tokens), end of a stretch", log_x=True, log_y=True,
    )  # fmt: skip
    chart.add_vline(x=shortest, line={"dash": "dot", "color": "#7F7F7F"})
    figures.show(figures.axis_toggle(chart), "reading-on")
    ends = {name: part.set_index("position") for name, part in further.groupby("mechanism", sort=False)}
    words = []
    for name, part in ends.items():
        if {shortest, far} <= set(part.index[part["value"].notna()]):
            within, beyond = (part.loc[end] for end in (shortest, far))
            low, high = (beyond["value"] if pd.isna(beyond[end]) else beyond[end] for end in ("low", "high"))
            kept = "better" if high < within["value"] else "worse" if low > within["value"] else "as well"
            words.append(
                f"{shown.name_of(name)} {kept} ({figures.number(within['value'])}, then {figures.number(beyond['value'])})"
            )
    figures.say(
        f"In the last stretch of {far:,} tokens, against the last stretch of the trained length, each predicts: "
        f"{'; '.join(words)}."
    )
else:
    figures.say(shown.NOT_COMPARED)

# %% [markdown]
# ## At equal parameters

# %% tags=["remove-input"]
if compared:
    shown.table(
        result,
        {"perplexity": "perplexity", "perplexity_gain": "standard's over this"},
        f"Mechanisms with more parameters, their feed-forward layers made narrower; n = {shortest:,}",
        n=shortest,
        sizes=EQUAL,
    )
    figures.say(shown.differing(result, "perplexity_gain", n=shortest, sizes=EQUAL))
else:
    figures.say(shown.NOT_COMPARED)

# %% [markdown]
# ## Learning rates

# %% tags=["remove-input"]
if compared:
    chart = shown.grid(result, training(shortest).seed, "Validation loss by learning rate", n=shortest)
    figures.show(chart, "grid")
figures.say(shown.short_run(result))
figures.show_provenance(result)

# %% [markdown]
# ## Claimed and measured

# %% tags=["remove-input"]
claims.table(result)

# %% [markdown]
# ## Limits and exercises
#
# - Small models and few tokens: a published model has read many thousand times as many. The order of the mechanisms may be
#   another there.
# - The rate that is best at one length need not be at another. Choose it at the longest, and see what changes.
# - A window begins somewhere in a document, and may hold the end of one and the start of another.
