"""What the documents under test state, one number a row of `data/claims.csv`, and what was measured.

Seconds and bytes that belong to another machine are not held against this one's. Where a number does not travel, what
is judged is a number that does and that follows from the document's own table: the ratio to standard attention in the
same row, or the growth from the first row. Which it is, and how near is near enough, stands in `RULES`.
"""

from __future__ import annotations

import html
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pandas as pd
from IPython.display import HTML, display

from bsbr.figures import interval, number, say
from bsbr.metrics import METRICS
from bsbr.provenance import ROOT
from bsbr.results import Result, published
from bsbr.results import load as load_result

PATH = ROOT / "data" / "claims.csv"
COUNTS = ROOT / "data" / "claims_counts.csv"
TEXT = ["document", "section", "quantity", "mechanism", "conditions", "unit"]
VERDICTS = ["confirmed", "direction only", "contradicted", "not measured yet", "cannot be measured here"]


def load(*quantities: str) -> pd.DataFrame:
    """The claims about these quantities (all of them if none is named), in the order of the documents.

    Returns:
        `document`, `section`, `quantity` (a metric's name where there is a metric), `mechanism`, `conditions` such as
        `n=1024`, `value`, `unit`, `placeholder` (whether the document itself says that its number stands in for a
        missing one), and `n` where the conditions give it. An empty `value` is one that the document states as out of
        memory.

    Raises:
        ValueError: no claim is about one of the quantities.
    """
    claims = pd.read_csv(PATH, keep_default_na=False, na_values={"value": [""]}, dtype=dict.fromkeys(TEXT, "string"))
    known = claims["quantity"].unique()
    for quantity in quantities:
        if quantity not in known:
            raise ValueError(f"no claim is about {quantity!r}; the claims are about {', '.join(known)}")
    claims["n"] = claims["conditions"].map(lambda text: conditions(text).get("n")).astype("Int64")
    return claims[claims["quantity"].isin(quantities or known)].reset_index(drop=True)


def counts() -> pd.DataFrame:
    """How many numbers each table and list of the documents holds.

    Returns:
        `document`, `section`, `numbers` (written there in digits), `settings` (those of them that only say under what
        conditions: lengths, sizes, versions), `words` (claims made in words, such as `quadratic` or `OOM`), and
        `claims`, which is numbers − settings + words.
    """
    return pd.read_csv(COUNTS)


def short(document: str) -> str:
    """A document's name for a table's head or a legend: `Benchmarks (0.1.1)`, `Model Conversion`."""
    return document.removeprefix("BSBR ").removeprefix("Research ").split(":")[0]


def conditions(text: str) -> dict[str, Any]:
    """The factors that a claim's conditions name.

    >>> conditions("n=64..1024"), conditions("chunk_size=32"), conditions("stated as linear")
    ({'n_from': 64, 'n_to': 1024}, {'chunk_size': 32}, {})
    """
    found: dict[str, Any] = {}
    for name, value in re.findall(r"(\w+)=([^,]+)", text):
        start, dots, end = value.partition("..")
        if dots:
            found |= {f"{name}_from": int(start), f"{name}_to": int(end)}
        else:
            found[name] = int(value) if value.isdigit() else value
    return found


# -- The rules ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """How the claims of some quantities are judged, and by which experiment.

    Args:
        name: what is judged, in a few words.
        quantities: the claims' quantities it is for.
        experiments: those that decide, in order: the first that has a matching number does.
        where: a regular expression that `document: section` has to match.
        compare: `stated`, the number as it stands; `ratio`, standard attention's number over this mechanism's in the
            same row of the document's table, and for standard attention itself the growth; `growth`, the number over
            the first of its series.
        metric: the metric of the result table, else the claim's quantity.
        ratio: the metric that is the ratio to standard attention already, where the table has one.
        factors: what the row of the result table must have besides mechanism and conditions.
        model: what stands in the result table for a mechanism, as factors; by default `{"mechanism": its name}`.
        tolerance: how far the claimed number may lie from the measured one, as a share of the measured one,
            or in the quantity's own unit if `absolute`.
        side: a direction is right if claimed and measured lie on the same side of this number; `"standard"` stands for
            standard attention's number in the same row. For a growth with n it is the growth in proportion to n.
        share_missing: whether the claim counts what the metric leaves: 100 % less the measured share.
        why: the rule's reasons, in a line for the page.
        target: the only target whose results may decide; by default any.
        unavailable: why this cannot be measured here, where no result has it.
    """

    name: str
    quantities: tuple[str, ...]
    experiments: tuple[str, ...] = ()
    where: str = ""
    compare: Literal["stated", "ratio", "growth"] = "stated"
    metric: str = ""
    ratio: str = ""
    factors: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tolerance: float = 0.2
    absolute: bool = False
    side: float | Literal["standard"] | None = None
    share_missing: bool = False
    why: str = ""
    target: str = ""
    unavailable: str = ""

    def is_for(self, claim: Mapping[str, Any]) -> bool:
        place = f"{claim['document']}: {claim['section']}"
        return claim["quantity"] in self.quantities and bool(re.search(self.where, place))

    @property
    def tolerance_in_words(self) -> str:
        if not self.experiments:
            return "–"
        return f"±{self.tolerance:g}" if self.absolute else f"±{self.tolerance:.0%}".replace("%", " %")

    @property
    def compare_in_words(self) -> str:
        return {"stated": "as stated"}.get(self.compare, self.compare) if self.experiments else "–"

    @property
    def direction_in_words(self) -> str:
        if self.side is None:
            return "–"
        return "against standard" if self.side == "standard" else f"side of {self.side:g}"


# What `convert` does unless told otherwise, by the name that the experiments give to it.
CONVERTED = {"bsbr": {"rung": "top-16"}, "standard": {"rung": "original"}}
PRETRAINED = {"bsbr": {"model": "smollm2 converted"}, "standard": {"model": "smollm2"}}
# Each mechanism's own pattern, with random weights: pairs of tokens that it can read at all.
STRUCTURE = {name: {"model": name} for name in ("bsbr", "standard")}
SIZES = {"(0.1.1)": "512x4x8", "(0.1.2)": "256x2x4"}
# The plain case, where a table has the factor and a claim does not name it. None: the row over all of them.
PLAIN: dict[str, Any] = {
    "batch": 1, "mode": "eager", "checkpointing": "off", "document": None, "layer": None, "statistic": None,
    "rank": None, "position": None, "frequency": None,
}  # fmt: skip
CONVERSION = "Model Conversion"
# The hundred texts of different kinds that the document speaks of, and the cost of reading a prompt.
SAMPLES = {"model": "SmolLM2", "dtype": "float32", "kind": "all"}
PREFILL = {"phase": "prefill", "dtype": "float32"}
REPEATED_N = 1024  # a table of training memory without a length repeats the numbers of the one for this n

RULES = [
    Rule(
        "speed, converted model",
        ("time",),
        ("conversion/speed_and_memory",),
        f"{CONVERSION}.*: Inference Speed",
        "ratio",
        ratio="speedup",
        factors=PREFILL,
        model=CONVERTED,
        side=1,
        why="The converter's default against the original. SmolLM2-135M stands for GPT-2, which cannot be fetched "
        "here: nearly the same size, other layers.",
    ),
    Rule(
        "speedup, converted model",
        ("speedup",),
        ("conversion/speed_and_memory",),
        CONVERSION,
        factors=PREFILL,
        model=CONVERTED,
        side=1,
        why="As above. Where the document's original ran out of memory, its ∞ has the right direction if the "
        "conversion is the faster here.",
    ),
    Rule(
        "speed by chunk size",
        ("time",),
        ("experiments/chunk_size",),
        "Chunk Size",
        "growth",
        factors={"phase": "prefill"},
        side=1,
        why="The document names no length: the longest measured one.",
    ),
    Rule(
        "time a page",
        ("time",),
        ("experiments/document_processing",),
        "Document Processing",
        "ratio",
        ratio="speedup",
        side=1,
    ),
    Rule(
        "time, long questions",
        ("time",),
        ("conversion/question_answering",),
        "Long-Context QA",
        "ratio",
        ratio="speedup",
        model=CONVERTED,
        side=1,
    ),
    Rule("time saved, long questions", ("time_reduction",), ("conversion/question_answering",), side=0),
    Rule(
        "speed",
        ("time",),
        ("benchmarks/inference_time",),
        "",
        "ratio",
        ratio="speedup",
        factors={"phase": "prefill"},
        side=1,
        why="Seconds belong to a processor; how many times as fast one mechanism is as another, at the same length on"
        " the same machine, nearly does not. Reading a text for a task takes what reading it takes, so the task "
        "tables are judged by the same numbers. The first length of standard attention is the base and is not "
        "judged.",
    ),
    Rule(
        "exponent, converted model",
        ("exponent",),
        ("conversion/speed_and_memory",),
        CONVERSION,
        factors=PREFILL,
        model=CONVERTED,
        tolerance=0.15,
        absolute=True,
        side=1,
        why="Over the longest measured range of lengths. Direction: slower or faster than in proportion to n.",
    ),
    Rule(
        "complexity class, converted model",
        ("complexity",),
        ("conversion/speed_and_memory",),
        CONVERSION,
        metric="exponent",
        factors=PREFILL,
        model=CONVERTED,
        tolerance=0.25,
        absolute=True,
        side=1,
        why="As the complexity class of the mechanisms.",
    ),
    Rule(
        "exponent",
        ("exponent",),
        ("benchmarks/inference_time",),
        factors={"phase": "prefill"},
        tolerance=0.15,
        absolute=True,
        side=1,
        why="Over the range of lengths that the document fitted, or the longest measured range where it states a "
        "word. Direction: slower or faster than in proportion to n.",
    ),
    Rule(
        "complexity class",
        ("complexity",),
        ("benchmarks/inference_time",),
        metric="exponent",
        factors={"phase": "prefill"},
        tolerance=0.25,
        absolute=True,
        side=1,
        why="A class speaks of long texts: the exponent over the longest measured range. The tolerance is wider, "
        "since a factor of log n adds about that much.",
    ),
    Rule(
        "fit of the power law",
        ("r_squared",),
        ("benchmarks/inference_time",),
        factors={"phase": "prefill"},
        tolerance=0.02,
        absolute=True,
        why="How straight the line is over the same lengths. There is no direction to get right.",
    ),
    Rule(
        "crossover",
        ("crossover_n", "memory_crossover_n"),
        ("conversion/speed_and_memory",),
        CONVERSION,
        factors=PREFILL,
        model=CONVERTED,
        tolerance=0.5,
        why="Lengths were tried in steps of two, so a crossover is known to half of itself.",
    ),
    Rule(
        "parameters",
        ("parameters", "parameters_relative"),
        ("benchmarks/parameters_and_flops",),
        tolerance=0.02,
        side="standard",
        why="A count, exact on every machine; the documents round to two digits.",
    ),
    Rule(
        "FLOPs",
        ("flops",),
        ("benchmarks/parameters_and_flops",),
        factors={"direction": "forward"},
        tolerance=0.1,
        side="standard",
        why="A count, exact on every machine, of one forward pass. Direction: more or fewer than standard attention.",
    ),
    Rule(
        "exponent of FLOPs",
        ("flops_exponent",),
        ("benchmarks/parameters_and_flops",),
        factors={"direction": "forward"},
        tolerance=0.15,
        absolute=True,
        side=1,
        why="The longest range of lengths counted.",
    ),
    Rule(
        "memory, converted model",
        ("peak_memory",),
        ("conversion/speed_and_memory",),
        CONVERSION,
        "ratio",
        ratio="memory_relative",
        factors=PREFILL,
        model=CONVERTED,
        side=1,
        why="Peaks of reading a prompt, weights included.",
    ),
    Rule(
        "peak memory, inference",
        ("peak_memory",),
        ("benchmarks/memory",),
        r"0\.1\.2\): (Peak Memory|Complexity)",
        factors={"phase": "inference"},
        tolerance=0.1,
        side="standard",
        why="The same model was measured, so bytes are held against bytes. The stated numbers are those of the "
        "weights and token ids alone (`parameters_and_ids` in the table), which is no peak.",
    ),
    Rule(
        "peak memory, training",
        ("peak_memory",),
        ("benchmarks/memory",),
        r"Benchmarks|Memory Usage|Memory Efficiency",
        "ratio",
        ratio="memory_relative",
        factors={"phase": "training"},
        side=1,
        why="The documents give gradients beside it, so it is training; batch and vocabulary they do not give, so "
        "ratios are judged. A table without a length repeats the one for n = 1024, so it is judged at that "
        "length.",
    ),
    Rule(
        "gradients",
        ("gradient_memory",),
        ("benchmarks/memory",),
        compare="ratio",
        metric="memory_part",
        factors={"phase": "training", "part": "gradients"},
        side=1,
        why="As peak memory. A gradient is as large as its parameter, whatever the length.",
    ),
    Rule(
        "activations",
        ("activation_memory",),
        ("benchmarks/memory",),
        compare="ratio",
        metric="memory_part",
        factors={"phase": "training", "part": "activations"},
        side=1,
        why="As peak memory.",
    ),
    Rule(
        "memory ratio, converted model",
        ("relative_memory",),
        ("conversion/speed_and_memory",),
        f"{CONVERSION}.*: Memory Usage",
        factors=PREFILL,
        model=CONVERTED,
        side=1,
        why="As above.",
    ),
    Rule(
        "memory by chunk size",
        ("peak_memory",),
        ("experiments/chunk_size",),
        "Chunk Size",
        "growth",
        factors={"phase": "prefill"},
        side=1,
        why="The document names no length: the longest measured one.",
    ),
    Rule(
        "memory by compression",
        ("relative_memory",),
        ("experiments/compression",),
        r"0\.1\.1\): Compression",
        "growth",
        metric="peak_memory",
        factors={"phase": "prefill"},
        side=1,
        why="The document's factor 1 is no compression. It names no length: the longest measured one.",
    ),
    Rule(
        "memory a page",
        ("peak_memory",),
        ("experiments/document_processing",),
        "Document Processing",
        "ratio",
        ratio="memory_relative",
        side=1,
    ),
    Rule(
        "GPU use and power",
        ("gpu_utilisation", "gpu_memory_utilisation", "power"),
        ("benchmarks/utilisation",),
        factors={"phase": "prefill"},
        side="standard",
        target="gpu",
        unavailable="there is no GPU here",
        why="Percentages and watts of one GPU; on a machine with one, benchmarks/utilisation measures them.",
    ),
    Rule(
        "CPU use",
        ("cpu_utilisation", "memory_utilisation", "io_utilisation"),
        ("benchmarks/utilisation",),
        "CPU Utilization",
        "ratio",
        factors={"phase": "prefill"},
        side=1,
        why="A percentage belongs to a number of cores and bytes; its ratio to standard attention's does less so.",
    ),
    Rule(
        "sparsity of the pattern",
        ("sparsity",),
        ("experiments/attention_sparsity",),
        metric="density",
        model=STRUCTURE,
        tolerance=5,
        absolute=True,
        side=50,
        share_missing=True,
        why="100 % less the density at the lowest threshold and the longest length, of causal pairs: a pair is dense "
        "if the later token can read the earlier at all, be it through a chunk's state. Direction: more or less than "
        "half.",
    ),
    Rule(
        "density, converted model",
        ("density",),
        ("experiments/attention_sparsity",),
        CONVERSION,
        factors={"scope": "overall"},
        model=PRETRAINED,
        tolerance=5,
        absolute=True,
        side=50,
        why="At the lowest threshold; the document names none.",
    ),
    Rule(
        "reduction of density",
        ("density_reduction",),
        ("experiments/attention_sparsity",),
        CONVERSION,
        metric="density",
        factors={"scope": "overall"},
        model=PRETRAINED,
        tolerance=5,
        absolute=True,
        side=50,
        share_missing=True,
        why="The document's standard density is 100 %, so the reduction is 100 % less the density.",
    ),
    Rule(
        "likeness of outputs",
        ("cosine_similarity",),
        ("conversion/similarity",),
        CONVERSION,
        factors=SAMPLES,
        model=CONVERTED,
        tolerance=0.05,
        absolute=True,
        why="Of the logits, by the converter's default, over a hundred samples, speeches and e-mails. The document "
        "says neither lengths nor texts. SmolLM2-135M stands for GPT-2.",
    ),
    Rule(
        "distance of outputs",
        ("mse", "kl_divergence"),
        ("conversion/similarity",),
        CONVERSION,
        factors=SAMPLES,
        model=CONVERTED,
        tolerance=0.2,
        why="As likeness. A distance has no direction to get right.",
    ),
    Rule(
        "agreement on the next token",
        ("top_1_agreement", "top_5_agreement", "top_10_agreement"),
        ("conversion/similarity",),
        CONVERSION,
        factors=SAMPLES,
        model=CONVERTED,
        tolerance=5,
        absolute=True,
        side=50,
        why="As likeness, in points of a percentage. Direction: more or less often than not.",
    ),
    Rule(
        "overall similarity",
        ("overall_similarity",),
        ("conversion/similarity",),
        CONVERSION,
        metric="top_1_agreement",
        factors=SAMPLES,
        model=CONVERTED,
        tolerance=5,
        absolute=True,
        side=50,
        why="A range of similarity in outputs and predictions, of which the document does not say how it is counted: "
        "both ends are held against top-1 agreement.",
    ),
    Rule(
        "speed by chunk size, converted model",
        ("relative_speed",),
        ("conversion/hyperparameters",),
        f"{CONVERSION}.*: Chunk Size",
        factors={"phase": "prefill", "retrieval": "top_k"},
        side=1,
        why="The document's numbers are relative to its smallest chunk. It names no length: the longest measured one. "
        "All else is as the converter's default.",
    ),
    Rule(
        "memory by chunk size, converted model",
        ("relative_memory",),
        ("conversion/hyperparameters",),
        f"{CONVERSION}.*: Chunk Size",
        factors={"phase": "prefill", "retrieval": "top_k", "control": "top-16, chunks of 64"},
        side=1,
        why="As speed.",
    ),
    Rule(
        "likeness by chunk size, converted model",
        ("output_similarity",),
        ("conversion/hyperparameters",),
        f"{CONVERSION}.*: Chunk Size",
        metric="cosine_similarity",
        factors={"phase": None, "retrieval": "top_k", "local_chunks": 2, "sink_tokens": 32, "top_k": 16},
        tolerance=0.05,
        absolute=True,
        why="As speed; cosine of the logits.",
    ),
    Rule(
        "cost by compression, converted model",
        ("memory_saved", "speed_impact"),
        ("conversion/hyperparameters",),
        CONVERSION,
        factors={"phase": "prefill"},
        tolerance=2,
        absolute=True,
        side=0,
        why="In points, against uncompressed states, at the longest length that has the number.",
    ),
    Rule(
        "accuracy by compression, converted model",
        ("accuracy_drop",),
        ("conversion/hyperparameters",),
        CONVERSION,
        factors={"phase": None},
        tolerance=0.5,
        absolute=True,
        side=0,
        why="In points of next-token accuracy, against uncompressed states.",
    ),
    Rule(
        "recommended compression, converted model",
        ("recommended_compression_factor",),
        where=CONVERSION,
        unavailable="which trade is best is a judgement; the page on hyperparameters has the numbers for it",
        why="Memory, speed and accuracy at each factor are measured; what they are worth to a reader is not.",
    ),
    Rule("accuracy by chunk size", ("accuracy",), ("experiments/chunk_size",), "Chunk Size"),
    Rule("accuracy by compression", ("accuracy",), ("experiments/compression",), r"Compression"),
    Rule("accuracy on documents", ("accuracy",), ("experiments/document_processing",), "Document Processing"),
    Rule("text and images", ("accuracy",), ("experiments/multimodal",), "Multi-Modal"),
    Rule(
        "convergence",
        ("epochs_to_converge", "final_loss", "validation_accuracy"),
        ("benchmarks/convergence",),
        side="standard",
    ),
    Rule("classification", ("classification_accuracy",), ("benchmarks/classification",), side="standard"),
    Rule("language modelling", ("perplexity",), ("benchmarks/language_modeling",), side="standard"),
    Rule("question answering", ("f1_score",), ("benchmarks/question_answering",), side="standard"),
    Rule("questions, converted model", ("qa_accuracy",), ("conversion/question_answering",), "Long-Context"),
    Rule("summaries, converted model", ("rouge_1", "rouge_2", "rouge_l"), ("conversion/summarisation",), "Summar"),
    Rule("fine-tuning", ("rouge_l", "qa_accuracy"), ("conversion/fine_tuning",), "Recovery"),
    Rule(
        "human preference",
        ("human_preference",),
        unavailable="it takes people who read and judge",
        why="It takes people who read and judge.",
    ),
    Rule("chunk size for general use", ("recommended_chunk_size",), ("experiments/chunk_size",), metric="none"),
    Rule("compression for memory", ("recommended_compression_factor",), ("experiments/compression",), metric="none"),
    Rule(
        "recommended batch and GPU",
        ("recommended_batch", "recommended_gpu_memory"),
        unavailable="it depends on a GPU and a model that the document does not name",
        why="What is best on a GPU, for a model and a text that the document does not name.",
    ),
]


def rule_for(claim: Mapping[str, Any]) -> Rule:
    """The first rule that is for a claim.

    Raises:
        ValueError: there is none.
    """
    for rule in RULES:
        if rule.is_for(claim):
            return rule
    raise ValueError(f"no rule of bsbr.claims.RULES is for {claim['quantity']!r} of {claim['document']}; add one")


# -- Judging --------------------------------------------------------------------------------------


class Number(NamedTuple):
    """A number with its 95 % interval, where it has one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def over(self, other: Number) -> Number:
        """The ratio of two numbers measured apart; their intervals add up as independent errors of the logarithms."""
        if not other.value:
            return Number(math.nan)
        ratio = self.value / other.value
        if not min(self.value, self.low, other.value, other.low) > 0:  # so also where an interval is missing
            return Number(ratio)
        down = math.hypot(math.log(self.value / self.low), math.log(other.high / other.value))
        up = math.hypot(math.log(self.high / self.value), math.log(other.value / other.low))
        return Number(ratio, ratio * math.exp(-down), ratio * math.exp(up))

    @property
    def missing(self) -> Number:
        """What a percentage leaves of 100 %."""
        return Number(100 - self.value, 100 - self.high, 100 - self.low)


def verdict(
    claimed: float,
    measured: Number,
    *,
    tolerance: float = 0,
    absolute: bool = False,
    sides: tuple[float, float] | None = None,
) -> str:
    """`confirmed`, `direction only` or `contradicted`.

    Confirmed: the claimed number lies in the measured interval, or within the tolerance and not on the other side.
    Direction only: it does not, but claimed and measured lie on the same side. A measured number whose interval
    reaches over the middle has no side.

    Args:
        sides: the number that parts the directions, among the claimed and among the measured numbers.
    """
    if measured.low <= claimed <= measured.high:
        return "confirmed"
    stated, found = _directions(claimed, measured, sides)
    within = tolerance if absolute else tolerance * abs(measured.value)
    if abs(claimed - measured.value) <= within and stated * found >= 0:
        return "confirmed"
    return "direction only" if stated * found > 0 else "contradicted"


def _directions(claimed: float, measured: Number, sides: tuple[float, float] | None) -> tuple[int, int]:
    """On which side the claimed and the measured number lie: −1, 1, or 0 for neither."""
    if sides is None:
        return 0, 0
    stated, found = (
        (claimed > sides[0]) - (claimed < sides[0]),
        (measured.value > sides[1]) - (measured.value < sides[1]),
    )
    return stated, 0 if measured.low <= sides[1] <= measured.high else found


def judge(result: Result | None = None, *, target: str = "cpu", profile: str = "full") -> pd.DataFrame:
    """Every claim with what was measured and a verdict.

    Args:
        result: judge by this result alone, whether published or not; by default by all that are published for
            `target` and `profile`.

    Returns:
        The claims of `load()`, in order, with `claimed` (the number that is judged: the stated one, or the ratio or
        growth that follows from it), `measured`, `low` and `high` (95 % interval), `verdict` (one of `VERDICTS`),
        `reason` (where there is no verdict on the number itself), `rule` (its name in `RULES`) and `experiment` (the
        one that decided, or will).
    """
    stated = load()
    results = _published(target, profile) if result is None else {result.experiment: result}
    judge = _Judge(stated, {name: _Table(found) for name, found in results.items()})
    return stated.join(pd.DataFrame([judge.judge(claim) for claim in judge.claims]))


def _published(target: str, profile: str) -> dict[str, Result]:
    wanted = {name for rule in RULES for name in rule.experiments}
    return {name: load_result(name, target, profile) for name in published(target, profile) if name in wanted}


class _UnjudgedError(Exception):
    """Why a claim has no verdict on its number."""

    def __init__(self, verdict: str, reason: str) -> None:
        self.verdict, self.reason = verdict, reason


class _NotFoundError(LookupError):
    """A result table has no such row."""


class _Table:
    """A result table by metric, as plain dictionaries: hundreds of claims look up a few rows each."""

    def __init__(self, result: Result) -> None:
        table = result.table
        self.target = result.target
        self.factors = set(table.columns)
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in table.astype(object).where(table.notna(), None).to_dict("records"):
            self.rows[row["metric"]].append({str(name): value for name, value in row.items()})

    def find(self, metric: str, wanted: Mapping[str, Any], size: str | None) -> Number:
        """The number with these factors; the plain case, and the greatest lengths, where they leave a choice."""
        if "mechanism" not in self.factors:  # a table about bsbr alone
            wanted = {factor: value for factor, value in wanted.items() if (factor, value) != ("mechanism", "bsbr")}
        if not wanted.keys() <= self.factors:
            raise _NotFoundError
        plain = {factor: value for factor, value in PLAIN.items() if factor not in wanted and factor in self.factors}
        rows = [
            row
            for row in self.rows[metric]
            if all(row[factor] == value for factor, value in wanted.items())
            and all(row[factor] in (value, None) for factor, value in plain.items())
        ]
        rows = [row for row in rows if row.get("size") == size] or rows
        if not rows:
            raise _NotFoundError
        row = max(
            rows,
            key=lambda row: (
                row.get("n_to") or 0,
                row.get("n_from") or 0,
                row.get("n") or 0,
                -(row.get("threshold") or 0),
            ),
        )
        if row["value"] is None:
            reason = row["reason"] or row["status"].replace("_", " ")
            later = reason.startswith("not measured yet")  # a row that keeps the place of a number to come
            raise _UnjudgedError("not measured yet" if later else "cannot be measured here", reason)
        return Number(row["value"], *(math.nan if row[end] is None else row[end] for end in ("low", "high")))


class _Judge:
    """The claims, and the result tables to hold them against."""

    def __init__(self, stated: pd.DataFrame, tables: Mapping[str, _Table]) -> None:
        self.tables = tables
        self.claims = [
            {str(name): None if pd.isna(value) else value for name, value in claim.items()}
            for claim in stated.astype(object).to_dict("records")
        ]
        self.by_key = {self._key(claim): claim for claim in self.claims}
        self.series: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for claim in self.claims:
            self.series[self._key(claim)[:4]].append(claim)

    @staticmethod
    def _key(claim: Mapping[str, Any], mechanism: str | None = None) -> tuple[str, ...]:
        place = (claim["document"], claim["section"], claim["quantity"], mechanism or claim["mechanism"])
        return (*place, claim["conditions"].partition(", out of memory")[0])

    def judge(self, claim: Mapping[str, Any]) -> dict[str, Any]:
        rule = rule_for(claim)
        judged: dict[str, Any] = dict.fromkeys(["claimed", "measured", "low", "high"], math.nan)
        judged |= {"verdict": "", "reason": "", "rule": rule.name, "experiment": "".join(rule.experiments[-1:])}
        try:
            base = self._base(rule, claim)
            judged["claimed"] = self._claimed(claim, base)
            judged["experiment"], found = self._measured(rule, claim, base)
            if math.isnan(found.value):
                raise _UnjudgedError("cannot be measured here", "what it is relative to measured zero")
            judged |= {"measured": found.value, "low": found.low, "high": found.high}
            sides = self._sides(rule, claim, base, judged["experiment"])
            judged["verdict"] = verdict(
                judged["claimed"], found, tolerance=rule.tolerance, absolute=rule.absolute, sides=sides
            )
        except _UnjudgedError as why:
            judged |= {"verdict": why.verdict, "reason": why.reason}
        return judged

    def _base(self, rule: Rule, claim: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The claim that this one is judged relative to, or None if it is judged as it stands."""
        if rule.compare == "stated":
            return None
        if claim["value"] is None:
            raise _UnjudgedError("cannot be measured here", "where memory runs out belongs to the machine")
        standard = self.by_key.get(self._key(claim, "standard"))
        if rule.compare == "ratio" and claim["mechanism"] != "standard" and standard and standard["value"] is not None:
            return standard
        first = self.series[self._key(claim)[:4]][0]
        if first is claim:
            raise _UnjudgedError(
                "cannot be measured here", "the base of its table: the numbers beside it are judged relative to it"
            )
        return first

    def _claimed(self, claim: Mapping[str, Any], base: Mapping[str, Any] | None) -> float:
        if base is None:
            return float(claim["value"])
        if base["mechanism"] != claim["mechanism"]:
            return float(base["value"] / claim["value"]) if claim["value"] else math.nan
        return float(claim["value"] / base["value"]) if base["value"] else math.nan

    def _measured(self, rule: Rule, claim: Mapping[str, Any], base: Mapping[str, Any] | None) -> tuple[str, Number]:
        """The experiment that decides and its number."""
        for experiment in rule.experiments:
            if experiment not in self.tables or rule.target not in ("", self.tables[experiment].target):
                continue
            try:
                return experiment, self._number(self.tables[experiment], rule, claim, base)
            except _NotFoundError:
                continue
        if rule.unavailable:
            raise _UnjudgedError("cannot be measured here", rule.unavailable)
        there = [name for name in rule.experiments if name in self.tables]
        reason = f"{there[-1]} has no such number yet" if there else f"{rule.experiments[-1]} will measure it"
        raise _UnjudgedError("not measured yet", reason)

    def _number(self, table: _Table, rule: Rule, claim: Mapping[str, Any], base: Mapping[str, Any] | None) -> Number:
        metric = rule.metric or claim["quantity"]
        own = self._factors(rule, claim)
        size = next((size for version, size in SIZES.items() if version in claim["document"]), None)
        if base is None:
            found = table.find(metric, own, size)
            return found.missing if rule.share_missing else found
        if base["mechanism"] == claim["mechanism"]:
            return table.find(metric, own, size).over(table.find(metric, self._factors(rule, base), size))
        if rule.ratio and rule.ratio in table.rows:
            return table.find(rule.ratio, own, size)
        return table.find(metric, self._factors(rule, base), size).over(table.find(metric, own, size))

    def _factors(self, rule: Rule, claim: Mapping[str, Any]) -> dict[str, Any]:
        mechanism = claim["mechanism"]
        named = conditions(claim["conditions"])
        if rule.compare == "ratio" and "training" in rule.factors.values():
            named.setdefault("n", REPEATED_N)
        return {**rule.factors, **rule.model.get(mechanism, {"mechanism": mechanism}), **named}

    def _sides(
        self, rule: Rule, claim: Mapping[str, Any], base: Mapping[str, Any] | None, experiment: str
    ) -> tuple[float, float] | None:
        if rule.side is None:
            return None
        if base is not None and base["n"] != claim["n"]:
            in_proportion = claim["n"] / base["n"]
            return in_proportion, in_proportion
        if rule.side != "standard":
            return rule.side, rule.side
        standard = self.by_key.get(self._key(claim, "standard"))
        if standard is None or standard is claim or standard["value"] is None:
            return None
        try:
            return standard["value"], self._number(self.tables[experiment], rule, standard, None).value
        except _NotFoundError:
            return None


# -- Showing --------------------------------------------------------------------------------------


def about(result: Result) -> pd.DataFrame:
    """The judged claims about what an experiment measures, by this result alone."""
    judged = judge(result)
    return judged[judged["experiment"] == result.experiment]


def line(result: Result) -> str:
    """One sentence of Markdown for a notebook's page: how many numbers the documents state about it, by verdict."""
    judged = about(result)
    if judged.empty:
        return "The documents state no number about what is measured here."
    link = "[All claims](../../book/claims.md)"
    return f"The documents state {len(judged)} numbers about what is measured here: {tally(judged)}. {link}"


def tally(judged: pd.DataFrame) -> str:
    """`3 confirmed, 5 direction only, …`: how many of the judged claims have which verdict."""
    found = judged["verdict"].value_counts()
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if verdict in found)


def table(result: Result) -> None:
    """Display every claim about what an experiment measures, beside what this result has."""
    judged = about(result)
    if judged.empty:
        say(line(result))
        return
    head = f"<summary>All {len(judged)}: {tally(judged)}</summary>"
    display(HTML(f'<details class="claims">{head}<div class="table-box">{markup(judged)}</div></details>'))


def markup(judged: pd.DataFrame, link: str = "") -> str:
    """Judged claims as an HTML table whose rows carry document, mechanism and verdict for a filter.

    Args:
        link: the address of an experiment's page, with `{}` for its name, on the page that has the rules; without it
            no cell is a link.
    """
    titles = ["where", "what", "stated", "judged as", "measured", "verdict", "by rule and experiment"]
    body = "".join(_markup_row(claim, link) for claim in judged.to_dict("records"))
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<table class="table claims-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _markup_row(claim: Mapping[Any, Any], link: str) -> str:
    document = short(claim["document"])
    what = filter(None, [title(claim["quantity"]), claim["mechanism"], claim["conditions"]])
    placeholder = "<br><small>called a placeholder</small>" if claim["placeholder"] else ""
    reason = f"<br><small>{html.escape(claim['reason'])}</small>" if claim["reason"] else ""
    by = [(f"#{anchor(claim['rule'])}", claim["rule"])]
    if claim["experiment"]:
        by.append((link.format(claim["experiment"]) if pd.notna(claim["measured"]) else "", claim["experiment"]))
    cells = [
        html.escape(f"{document}: {claim['section']}"),
        html.escape(", ".join(what)),
        html.escape(_stated(claim["value"], claim["unit"])) + placeholder,
        number(claim["claimed"]),
        interval(claim["measured"], claim["low"], claim["high"]).replace(" (", "<br>("),
        html.escape(claim["verdict"]) + reason,
        "<br>".join(f'<a href="{to}">{html.escape(text)}</a>' if link and to else html.escape(text) for to, text in by),
    ]
    data = {"document": document, "mechanism": claim["mechanism"] or "–", "verdict": claim["verdict"]}
    attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in data.items())
    return f"<tr{attributes}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _stated(value: float, unit: str) -> str:
    """A stated number with all of its digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "out of memory"
    return f"{value:,.10g} {unit}".strip()


def anchor(rule: str) -> str:
    """The id of a rule's row on the page of claims."""
    return "rule-" + re.sub(r"\W+", "-", rule.lower())


def title(quantity: str) -> str:
    """A quantity in words: its metric's title, or its name."""
    return METRICS[quantity].title.lower() if quantity in METRICS else quantity.replace("_", " ")
