"""Every quantity that a table may hold: its title, its unit, and when another run has reproduced it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What a number means, and when the same number from another run counts as reproduced.

    `rule` is `"absolute"` (difference at most `tolerance`), `"relative"` (that share of the published value),
    `"factor"` (a ratio of at most `tolerance` either way) or `"hardware"` (it belongs to the machine, so it is
    not compared).
    """

    title: str
    unit: str
    rule: Literal["absolute", "relative", "factor", "hardware"]
    tolerance: float
    description: str

    @property
    def rule_in_words(self) -> str:
        return {
            "absolute": f"within ±{self.tolerance:g}" if self.tolerance else "exactly",
            "relative": f"within {self.tolerance:.2%}",
            "factor": f"within a factor of {self.tolerance:g}",
            "hardware": "not compared: it belongs to the machine",
        }[self.rule]

    def agrees(self, published: float, here: float) -> bool:
        """Whether `here` reproduces `published`. Two infinities of one sign agree."""
        if published == here:
            return True
        if self.rule == "absolute":
            return abs(here - published) <= self.tolerance
        if self.rule == "relative":
            return abs(here - published) <= self.tolerance * abs(published)
        if published <= 0 or here <= 0:
            return False
        return max(published / here, here / published) <= self.tolerance


METRICS: dict[str, Metric] = {
    "time": Metric("Time", "s", "hardware", 0, "Median wall-clock time of one call."),
    "time_per_token": Metric(
        "Time per token",
        "ms",
        "hardware",
        0,
        "Median wall-clock time of one decoded token, the prompt already read.",
    ),
    "speedup": Metric(
        "Speedup over standard",
        "×",
        "factor",
        1.5,
        "Time of standard attention divided by this one's, same round.",
    ),
    "relative_time": Metric(
        "Time relative to a control",
        "×",
        "factor",
        1.5,
        "Time divided by that of the control it was interleaved with.",
    ),
    "noise": Metric(
        "Noise",
        "%",
        "hardware",
        0,
        "How far a cell measured again at the end lies from its first measurement.",
    ),
    "exponent": Metric("Exponent", "", "absolute", 0.15, "b of the fit time = a·n^b by least squares on logarithms."),
    "r_squared": Metric(
        # Not compared: of a cost that does not grow there is no variance to explain, and R² is noise.
        "R²",
        "",
        "hardware",
        0,
        "Share of the variance of log time that the fit explains.",
    ),
    "crossover_n": Metric(
        "Crossover",
        "tokens",
        "factor",
        2,
        "The n from which this mechanism stays faster than standard attention.",
    ),
    "parameters": Metric("Parameters", "", "absolute", 0, "Trainable numbers in the model."),
    "bytes_sent": Metric(
        "Bytes sent",
        "B",
        "relative",
        0.01,
        "Bytes that one process sends to others for one layer, by the kernel's count.",
    ),
    "bytes_ratio": Metric(
        "Bytes relative to BSBR",
        "×",
        "relative",
        0.01,
        "Bytes that all ranks send for a layer, both directions, divided by those that bsbr sends in the same job.",
    ),
    "perplexity": Metric("Perplexity", "", "relative", 0.01, "exp of the mean negative log-likelihood of a token."),
    "perplexity_ratio": Metric(
        "Perplexity relative to the original",
        "×",
        "absolute",
        0.01,
        "Converted model's perplexity over the original's.",
    ),
    "top_1_agreement": Metric(
        "Top-1 agreement",
        "%",
        "absolute",
        1,
        "Positions where both models' most likely next token is the same.",
    ),
    "top_5_agreement": Metric(
        "Top-5 agreement", "%", "absolute", 1, "Mean overlap of the two models' five most likely next tokens."
    ),
    "top_10_agreement": Metric(
        "Top-10 agreement", "%", "absolute", 1, "Mean overlap of the two models' ten most likely next tokens."
    ),
    "cosine_similarity": Metric(
        "Cosine similarity",
        "",
        "absolute",
        0.01,
        "Mean over positions of the cosine between the two models' vectors.",
    ),
    "mse": Metric("Mean squared error", "", "relative", 0.05, "Mean squared difference of the two models' numbers."),
    "kl_divergence": Metric(
        "KL divergence",
        "nats",
        "relative",
        0.05,
        "KL of the original's next-token distribution from the converted one's.",
    ),
    "cell": Metric("Whole cell", "", "hardware", 0, "Stands for every number of a cell that could not be measured."),
}


def metric(name: str) -> Metric:
    """The registered metric of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise ValueError(f"metric must be one of {known}, not {name!r}; register it in bsbr.metrics.METRICS")
    return METRICS[name]
