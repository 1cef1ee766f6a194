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
    "local_exponent": Metric(
        "Local exponent", "", "absolute", 0.3, "Slope between two neighbouring lengths on logarithmic axes."
    ),
    "flops_exponent": Metric("Exponent of FLOPs", "", "absolute", 0, "b of the fit FLOPs = a·n^b."),
    "memory_exponent": Metric("Exponent of memory", "", "absolute", 0.1, "b of the fit memory = a·n^b."),
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
    "parameters_relative": Metric(
        "Parameters relative to standard", "×", "absolute", 0, "Parameters divided by those of standard attention."
    ),
    "parameters_part": Metric("Parameters by part", "", "absolute", 0, "Trainable numbers in one part of the model."),
    "flops": Metric(
        "FLOPs", "FLOP", "absolute", 0, "Floating-point operations of all matrix products; a multiply-add is two."
    ),
    "flops_relative": Metric(
        "FLOPs relative to standard", "×", "absolute", 0, "FLOPs divided by those of standard attention, same n."
    ),
    "flops_fixed": Metric(
        "FLOPs a token, fixed part", "FLOP", "absolute", 0, "a of FLOPs = a·n + b·n² + c, exact for long texts."
    ),
    "flops_growing": Metric(
        "FLOPs a token, growing part", "FLOP", "absolute", 0, "b of FLOPs = a·n + b·n² + c, exact for long texts."
    ),
    "formula_agreement": Metric(
        "Counts that equal the formula",
        "%",
        "absolute",
        0,
        "Share of the counted cells where both say the same number.",
    ),
    "peak_memory": Metric("Peak memory", "MB", "relative", 0.05, "Most bytes held by tensors at any one moment, /10⁶."),
    "memory_part": Metric("Memory by kind", "MB", "relative", 0.05, "Bytes of one kind of tensor at the peak, /10⁶."),
    "memory_relative": Metric(
        "Memory relative to standard", "×", "relative", 0.05, "Standard attention's peak over this one's, same n."
    ),
    "memory_saved": Metric("Memory saved", "%", "absolute", 2, "Share of the uncompressed peak that is not needed."),
    "parameters_and_ids": Metric(
        "Parameters and ids", "MB", "absolute", 0, "Bytes of weights and of the token ids alone, /10⁶."
    ),
    "resident_peak": Metric(
        "Resident peak", "MB", "relative", 0.25, "Resident memory that a fresh process adds at its peak, /10⁶."
    ),
    "state_size": Metric("State", "numbers", "absolute", 0, "Numbers that a layer keeps to decode the next token."),
    "cpu_utilisation": Metric("CPU use", "%", "hardware", 0, "Share of all cores' time that the process used."),
    "memory_utilisation": Metric("Memory use", "%", "hardware", 0, "Resident set as a share of the machine's memory."),
    "io_utilisation": Metric("I/O use", "%", "hardware", 0, "Share of the time in which a disk was busy."),
    "gpu_utilisation": Metric("GPU use", "%", "hardware", 0, "Share of the time in which a kernel ran, by NVML."),
    "gpu_memory_utilisation": Metric(
        "GPU memory use", "%", "hardware", 0, "Share of the GPU's memory in use, by NVML."
    ),
    "power": Metric("Power", "W", "hardware", 0, "Mean electrical power while the work ran."),
    "future_influence": Metric(
        "Influence of the future",
        "",
        "factor",
        10,
        "Largest change of an output when only tokens after it change; 0 if causal.",
    ),
    "density": Metric(
        "Density", "%", "absolute", 0.05, "Share of the pairs of tokens whose weight is above a threshold."
    ),
    "weights_for_mass": Metric(
        "Weights that carry the mass", "%", "absolute", 0.5, "Share of a token's weights that sum to a given mass."
    ),
    "within_mass": Metric("Mass within the chunk", "%", "absolute", 1, "Attention mass on a token's own chunk."),
    "map_similarity": Metric(
        "Similarity of maps", "", "absolute", 0.01, "Mean cosine between rows of two attention maps."
    ),
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
    "accuracy": Metric("Accuracy", "%", "absolute", 1, "Share of the examples whose label the model finds."),
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
    "next_token_accuracy": Metric(
        "Next-token accuracy", "%", "absolute", 1, "Positions where the model's first choice is the token that follows."
    ),
    "rank_agreement": Metric(
        "Agreement at a rank",
        "%",
        "absolute",
        2,
        "Positions where both models have the same token at this rank of their choices.",
    ),
    "gap_closed": Metric(
        "Gap closed",
        "%",
        "absolute",
        15,
        "Share of the gap in mean log-likelihood to the original that calibration closes.",
    ),
    "accuracy_drop": Metric(
        "Accuracy lost", "points", "absolute", 0.5, "Next-token accuracy of the control less this one's."
    ),
    "retrieval_accuracy": Metric(
        "Passkeys found", "%", "absolute", 10, "Share of the trials in which every digit of the passkey is predicted."
    ),
    "answer_likelihood": Metric(
        "Log-likelihood of the answer", "nats", "absolute", 0.5, "Mean log-probability of a whole passkey."
    ),
    "attention_error": Metric(
        "Error of attention",
        "%",
        "relative",
        0.05,
        "Norm of the change of attention's outputs over the norm of the original's, on the original's inputs.",
    ),
    "relative_speed": Metric(
        "Speed relative to a control", "×", "factor", 1.5, "Time of the control divided by this one's, same round."
    ),
    "speed_impact": Metric(
        "Change of speed", "%", "absolute", 15, "How much faster than the control, in % of its speed, same round."
    ),
    "relative_memory": Metric(
        "Memory relative to a control", "×", "relative", 0.05, "Peak memory over that of the control, same n."
    ),
    "cache_memory": Metric("Cache", "MB", "absolute", 0, "Bytes that decoding keeps for one text of n tokens, /10⁶."),
    "memory_crossover_n": Metric(
        "Crossover of memory", "tokens", "factor", 2, "The n from which this model stays below the original's peak."
    ),
    "trained_tokens": Metric(
        "Tokens trained on", "tokens", "absolute", 0, "Tokens that training has read, repeats too."
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
