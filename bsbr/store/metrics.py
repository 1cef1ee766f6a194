"""Every quantity that a table may hold: its title, its unit, and when another run has reproduced it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What a number means, and when the same number from another run counts as reproduced.

    Attributes:
        rule: how a difference is weighed: `"absolute"`, `"relative"` (as a share of the published value), `"factor"`
            (a ratio either way), or `"hardware"`: it belongs to the machine, so it is not compared.
        tolerance: the most by that rule between runs with other packages, and how far the interval of a number that a
            clock touches is widened.
        rounding: the most by the same rule between runs with the same packages, of a number that no clock touches:
            what the order of additions on another processor may change.
        clock: whether a clock, or the memory that an operating system grants, touches the number.
        trained: whether it comes from training, which amplifies rounding: it is held against the spread of seeds.
    """

    title: str
    unit: str
    rule: Literal["absolute", "relative", "factor", "hardware"]
    tolerance: float
    description: str
    rounding: float = 0
    clock: bool = False
    trained: bool = False

    @property
    def by_interval(self) -> bool:
        """Whether two runs are compared by their intervals instead of by their values."""
        return self.clock or self.trained

    @property
    def rule_in_words(self) -> str:
        if self.rule == "hardware":
            return "not compared: it belongs to the machine"
        tolerance = self._within(self.tolerance)
        if self.by_interval:
            return f"intervals meet, {tolerance}"
        rounding = self._within(self.rounding)
        return rounding if rounding == tolerance else f"{rounding}; with other packages {tolerance}"

    def _within(self, most: float) -> str:
        if not most or (self.rule == "factor" and most == 1):
            return "exactly"
        return {
            "absolute": f"within ±{most:g}",
            "relative": f"within {most:.4g}".rstrip(".") if most < 0.0001 else f"within {most * 100:.4g} %",
            "factor": f"within a factor of {most:g}",
        }[self.rule]

    def agrees(self, published: float, here: float, *, same_packages: bool = False) -> bool:
        """Whether `here` reproduces `published`, by the rounding or the tolerance. Infinities of one sign agree."""
        most = self.rounding if same_packages else self.tolerance
        if published == here:
            return True
        if self.rule == "absolute":
            return abs(here - published) <= most
        if self.rule == "relative":
            return abs(here - published) <= most * abs(published)
        if published <= 0 or here <= 0:
            return False
        return max(published / here, here / published) <= most


METRICS: dict[str, Metric] = {
    "time": Metric("Time", "s", "hardware", 0, "Median wall-clock time of one call.", clock=True),
    "time_per_token": Metric(
        "Time per token",
        "ms",
        "hardware",
        0,
        "Median wall-clock time of one decoded token, the prompt already read.",
        clock=True,
    ),
    "speedup": Metric(
        "Speedup over standard",
        "×",
        "factor",
        1.5,
        "Time of standard attention divided by this one's, same round.",
        clock=True,
    ),
    "relative_time": Metric(
        "Time relative to a control",
        "×",
        "factor",
        1.5,
        "Time divided by that of the control it was interleaved with.",
        clock=True,
    ),
    "noise": Metric(
        "Noise",
        "%",
        "hardware",
        0,
        "How far a cell measured again at the end lies from its first measurement.",
        clock=True,
    ),
    "exponent": Metric(
        "Exponent", "", "absolute", 0.15, "b of the fit time = a·n^b by least squares on logarithms.", clock=True
    ),
    "local_exponent": Metric(
        "Local exponent", "", "absolute", 0.3, "Slope between two neighbouring lengths on logarithmic axes.", clock=True
    ),
    "flops_exponent": Metric("Exponent of FLOPs", "", "absolute", 1e-9, "b of the fit FLOPs = a·n^b.", rounding=1e-9),
    "flops_local_exponent": Metric(
        "Local exponent of FLOPs",
        "",
        "absolute",
        1e-9,
        "Slope of FLOPs between two neighbouring lengths on logarithmic axes.",
        rounding=1e-9,
    ),
    "memory_exponent": Metric(
        "Exponent of memory", "", "absolute", 0.1, "b of the fit memory = a·n^b.", rounding=1e-06
    ),
    "resident_exponent": Metric(
        "Exponent of resident memory", "", "absolute", 0.3, "b of the fit resident memory = a·n^b.", clock=True
    ),
    "r_squared": Metric(
        # Not compared: of a cost that does not grow there is no variance to explain, and R² is noise.
        "R²",
        "",
        "hardware",
        0,
        "Share of the variance of log time that the fit explains.",
        clock=True,
    ),
    "crossover_n": Metric(
        "Crossover",
        "tokens",
        "factor",
        2,
        "The n from which this mechanism stays faster than standard attention.",
        clock=True,
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
        "Memory relative to standard",
        "×",
        "relative",
        0.05,
        "Standard attention's peak over this one's, same n.",
        rounding=1e-09,
    ),
    "memory_saved": Metric(
        "Memory saved", "%", "absolute", 2, "Share of the uncompressed peak that is not needed.", rounding=1e-06
    ),
    "memory_per_page": Metric(
        "Memory a page", "MB", "relative", 0.05, "Peak memory less the parameters, over the pages that are read, /10⁶."
    ),
    "parameters_and_ids": Metric(
        "Parameters and ids", "MB", "absolute", 0, "Bytes of weights and of the token ids alone, /10⁶."
    ),
    "resident_peak": Metric(
        "Resident peak",
        "MB",
        "relative",
        0.25,
        "Resident memory that a fresh process adds at its peak, /10⁶.",
        clock=True,
    ),
    "state_size": Metric("State", "numbers", "absolute", 0, "Numbers that a layer keeps to decode the next token."),
    "cpu_utilisation": Metric(
        "CPU use", "%", "hardware", 0, "Share of all cores' time that the process used.", clock=True
    ),
    "memory_utilisation": Metric(
        "Memory use", "%", "hardware", 0, "Resident set as a share of the machine's memory.", clock=True
    ),
    "io_utilisation": Metric("I/O use", "%", "hardware", 0, "Share of the time in which a disk was busy.", clock=True),
    "gpu_utilisation": Metric(
        "GPU use", "%", "hardware", 0, "Share of the time in which a kernel ran, by NVML.", clock=True
    ),
    "gpu_memory_utilisation": Metric(
        "GPU memory use", "%", "hardware", 0, "Share of the GPU's memory in use, by NVML.", clock=True
    ),
    "power": Metric("Power", "W", "hardware", 0, "Mean electrical power while the work ran.", clock=True),
    "future_influence": Metric(
        "Influence of the future",
        "",
        "factor",
        10,
        "Largest change of an output when only tokens after it change; 0 if causal.",
        rounding=1.001,
    ),
    "density": Metric(
        "Density",
        "%",
        "absolute",
        0.05,
        "Share of the pairs of tokens whose weight is above a threshold.",
        rounding=0.01,
    ),
    "weights_for_mass": Metric(
        "Weights that carry the mass",
        "%",
        "absolute",
        0.5,
        "Share of a token's weights that sum to a given mass.",
        rounding=0.05,
    ),
    "within_mass": Metric(
        "Mass within the chunk", "%", "absolute", 1, "Attention mass on a token's own chunk.", rounding=0.05
    ),
    "map_similarity": Metric(
        "Similarity of maps", "", "absolute", 0.01, "Mean cosine between rows of two attention maps.", rounding=0.0001
    ),
    "bytes_sent": Metric(
        "Bytes sent",
        "B",
        "relative",
        0.01,
        "Bytes that one process sends to others for one layer, by the kernel's count.",
        rounding=0.01,
    ),
    "bytes_ratio": Metric(
        "Bytes relative to BSBR",
        "×",
        "relative",
        0.01,
        "Bytes that all ranks send for a layer, both directions, divided by those that bsbr sends in the same job.",
        rounding=0.01,
    ),
    "predicted_flops": Metric(
        "Predicted FLOPs",
        "",
        "relative",
        0.001,
        "Floating-point operations of matrix products that the busiest of several devices spends, from sizes alone.",
    ),
    "predicted_time": Metric(
        "Predicted seconds",
        "s",
        "relative",
        0.001,
        "Seconds of the busiest device's kernels, or of the busiest link, by the rates of a datasheet. Not measured.",
    ),
    "predicted_bytes": Metric(
        "Predicted bytes",
        "GB",
        "relative",
        0.001,
        "Bytes over the busiest link, in its busier direction, from sizes alone.",
    ),
    "predicted_memory": Metric(
        "Predicted memory",
        "GB",
        "relative",
        0.001,
        "Bytes that the busiest device holds at the peak, from sizes alone, by what holds them.",
    ),
    "prediction_error": Metric(
        "Error of a prediction",
        "%",
        "absolute",
        1,
        "How far a prediction of a published number is from it, in percent of it.",
        rounding=0.1,
    ),
    "accuracy": Metric(
        "Accuracy", "%", "absolute", 1, "Share of the examples whose label the model finds.", trained=True
    ),
    "perplexity": Metric(
        "Perplexity", "", "relative", 0.01, "exp of the mean negative log-likelihood of a token.", rounding=0.0001
    ),
    "perplexity_ratio": Metric(
        "Perplexity relative to the original",
        "×",
        "absolute",
        0.01,
        "Converted model's perplexity over the original's.",
        rounding=0.0001,
    ),
    "top_1_agreement": Metric(
        "Top-1 agreement",
        "%",
        "absolute",
        1,
        "Positions where both models' most likely next token is the same.",
        rounding=0.1,
    ),
    "top_5_agreement": Metric(
        "Top-5 agreement",
        "%",
        "absolute",
        1,
        "Mean overlap of the two models' five most likely next tokens.",
        rounding=0.1,
    ),
    "top_10_agreement": Metric(
        "Top-10 agreement",
        "%",
        "absolute",
        1,
        "Mean overlap of the two models' ten most likely next tokens.",
        rounding=0.1,
    ),
    "cosine_similarity": Metric(
        "Cosine similarity",
        "",
        "absolute",
        0.01,
        "Mean over positions of the cosine between the two models' vectors.",
        rounding=0.0001,
    ),
    "mse": Metric(
        "Mean squared error",
        "",
        "relative",
        0.05,
        "Mean squared difference of the two models' numbers.",
        rounding=0.001,
    ),
    "kl_divergence": Metric(
        "KL divergence",
        "nats",
        "relative",
        0.05,
        "KL of the original's next-token distribution from the converted one's.",
        rounding=0.001,
    ),
    "next_token_accuracy": Metric(
        "Next-token accuracy",
        "%",
        "absolute",
        1,
        "Positions where the model's first choice is the token that follows.",
        rounding=0.1,
    ),
    "rank_agreement": Metric(
        "Agreement at a rank",
        "%",
        "absolute",
        2,
        "Positions where both models have the same token at this rank of their choices.",
        rounding=0.2,
    ),
    "gap_closed": Metric(
        "Gap closed",
        "%",
        "absolute",
        15,
        "Share of the gap in mean log-likelihood to the original that calibration closes.",
        rounding=1,
    ),
    "accuracy_drop": Metric(
        "Accuracy lost", "points", "absolute", 0.5, "Next-token accuracy of the control less this one's.", rounding=0.1
    ),
    "retrieval_accuracy": Metric(
        "Passkeys found", "%", "absolute", 10, "Share of the trials in which every digit of the passkey is predicted."
    ),
    "answer_likelihood": Metric(
        "Log-likelihood of the answer",
        "nats",
        "absolute",
        0.5,
        "Mean log-probability of a whole passkey.",
        rounding=0.001,
    ),
    "attention_error": Metric(
        "Error of attention",
        "%",
        "relative",
        0.05,
        "Norm of the change of attention's outputs over the norm of the original's, on the original's inputs.",
        rounding=0.001,
    ),
    "relative_speed": Metric(
        "Speed relative to a control",
        "×",
        "factor",
        1.5,
        "Time of the control divided by this one's, same round.",
        clock=True,
    ),
    "speed_impact": Metric(
        "Change of speed",
        "%",
        "absolute",
        15,
        "How much faster than the control, in % of its speed, same round.",
        clock=True,
    ),
    "relative_memory": Metric(
        "Memory relative to a control",
        "×",
        "relative",
        0.05,
        "Peak memory over that of the control, same n.",
        rounding=1e-09,
    ),
    "cache_memory": Metric("Cache", "MB", "absolute", 0, "Bytes that decoding keeps for one text of n tokens, /10⁶."),
    "memory_crossover_n": Metric(
        "Crossover of memory",
        "tokens",
        "factor",
        2,
        "The n from which this model stays below the original's peak.",
        rounding=1.000001,
    ),
    "trained_tokens": Metric(
        "Tokens trained on", "tokens", "absolute", 0, "Tokens that training has read, repeats too."
    ),
    "cell": Metric("Whole cell", "", "hardware", 0, "Stands for every number of a cell that could not be measured."),
    "macro_f1": Metric("Macro F1", "%", "absolute", 2, "Mean over the classes of the F1 of each.", trained=True),
    "f1": Metric("F1", "%", "absolute", 2, "Mean overlap of words between an answer and the right one.", trained=True),
    "exact_match": Metric(
        "Exact match", "%", "absolute", 2, "Share of the answers that are right word for word.", trained=True
    ),
    "final_loss": Metric(
        "Final loss", "nats", "absolute", 0.02, "Validation loss a token when training ends.", trained=True
    ),
    "epochs_to_converge": Metric(
        "Epochs to converge",
        "epochs",
        "relative",
        0.1,
        "Epochs until validation loss is within 1 % of its best.",
        trained=True,
    ),
    "diverged_runs": Metric(
        "Diverged runs", "%", "absolute", 10, "Share of the training runs that diverge.", trained=True
    ),
    "largest_gradient": Metric(
        "Largest gradient norm", "", "relative", 0.5, "Largest norm in a run, before clipping.", trained=True
    ),
    "accuracy_difference": Metric(
        "Accuracy against standard",
        "points",
        "absolute",
        1,
        "Accuracy less that of standard attention, paired.",
        trained=True,
    ),
    "f1_difference": Metric(
        "F1 against standard", "points", "absolute", 2, "F1 less that of standard attention, paired.", trained=True
    ),
    "loss_difference": Metric(
        "Loss against standard", "nats", "absolute", 0.02, "Loss less that of standard attention, paired.", trained=True
    ),
    "perplexity_gain": Metric(
        "Perplexity of standard over this one's",
        "×",
        "absolute",
        0.02,
        "More than 1 predicts better, paired.",
        trained=True,
    ),
    "macro_f1_difference": Metric(
        "Macro F1 against standard",
        "points",
        "absolute",
        2,
        "Macro F1 less that of standard attention, paired.",
        trained=True,
    ),
    "exact_match_difference": Metric(
        "Exact match against standard",
        "points",
        "absolute",
        2,
        "Exact match less that of standard attention, paired.",
        trained=True,
    ),
    "loss": Metric("Loss", "nats", "absolute", 0.02, "Mean cross-entropy of a target.", trained=True),
    "validation_loss": Metric(
        "Validation loss", "nats", "absolute", 0.1, "Cross-entropy of a target of the validation part.", trained=True
    ),
    "validation_accuracy": Metric(
        "Validation accuracy",
        "%",
        "absolute",
        2,
        "Share of the targets of the validation part that are told right.",
        trained=True,
    ),
    "learning_rate": Metric(
        "Learning rate", "", "factor", 4, "Highest rate of a run; the one that was chosen on validation.", trained=True
    ),
    "diverged": Metric("Diverged", "", "absolute", 0, "1 for a run that diverged, else 0.", trained=True),
    "training_time": Metric(
        "Training time", "s", "hardware", 0, "Seconds of a run, looks at the validation part included.", clock=True
    ),
    "training_speed": Metric(
        "Training speed", "tokens/s", "hardware", 0, "Tokens that a run reads over its seconds.", clock=True
    ),
    "training_flops": Metric(
        "FLOPs trained with",
        "FLOP",
        "absolute",
        0,
        "Floating-point operations of all matrix products, forward and backward, up to a look at the validation part.",
    ),
    "state_bytes": Metric(
        "Decoding state",
        "B",
        "absolute",
        0,
        "Bytes kept after n tokens to decode the next, all layers, in float32.",
    ),
    "time_reduction": Metric(
        "Time saved", "%", "absolute", 15, "Share of the original's time that is not needed.", clock=True
    ),
    "rouge_1": Metric(
        "ROUGE-1", "%", "absolute", 1, "F1 of single words shared with the reference, × 100.", trained=True
    ),
    "rouge_2": Metric(
        "ROUGE-2", "%", "absolute", 1, "F1 of pairs of words shared with the reference, × 100.", trained=True
    ),
    "rouge_l": Metric("ROUGE-L", "%", "absolute", 1, "F1 of the longest common subsequence, × 100.", trained=True),
}


def metric(name: str) -> Metric:
    """The registered metric of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise ValueError(f"metric must be one of {known}, not {name!r}; register it in bsbr.store.metrics.METRICS")
    return METRICS[name]
