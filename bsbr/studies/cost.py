"""What a model would cost on several devices that share one text: seconds, bytes per link, bytes per device. Predicted.

One device's slice is run through the real model on tensors that have shapes and no numbers, which gives its kernels
(`bsbr.measure.kernels`) and the bytes that it holds (`bsbr.measure.memory`). What a slice has to do with the slices
before it, and what it is sent of them (`bsbr.studies.traffic`), comes from sizes. A kernel takes as long as its
arithmetic or its bytes take, whichever is more (the roofline of Williams et al. 2009). `bsbr.studies.cost_checks` holds
all of it against what was measured.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from bsbr.config import ModelConfig
from bsbr.measure import kernels, memory
from bsbr.measure.kernels import Kernel
from bsbr.model import TransformerLM
from bsbr.studies import traffic

Work = Literal["prefill", "training"]
GIGA, TERA = 1e9, 1e12
DELTA_CHUNK = 64  # tokens between two products of p × p matrices in the delta rule

# -- What there is to run on ----------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """A processor: how fast it computes, and how fast it reaches its memory.

    Examples:
        >>> from bsbr.measure.kernels import Kernel
        >>> from bsbr.studies.cost import Device
        >>> device = Device("an example", flops=100e9, bandwidth=10e9, memory=16e9, attained=0.5)
        >>> device.seconds({Kernel("product", flops=10**9, bytes=4000): 3})  # three products, by their arithmetic
        0.06
    """

    name: str  # in tables
    flops: float  # operations of matrix products a second, at most
    bandwidth: float  # bytes a second from and to its memory
    memory: float  # bytes that it has
    attained: float = 1.0  # share of `flops` that matrix products attain
    attention: float = 1.0  # share of `flops` that a fused attention kernel attains
    start: float = 0.0  # seconds that a kernel takes to begin, whatever it does

    def seconds(self, work: Mapping[Kernel, int]) -> float:
        """One kernel after another, each by its arithmetic or by its bytes, whichever takes longer.

        Args:
            work: kernels, each with how often it is started.
        """
        rate = {"product": self.flops * self.attained, "attention": self.flops * self.attention, "other": self.flops}
        return sum(
            times * (self.start + max(one.flops / rate[one.kind], one.bytes / self.bandwidth))
            for one, times in work.items()
        )


@dataclass(frozen=True)
class Link:
    """What joins the devices.

    Examples:
        >>> from bsbr.studies.cost import Link
        >>> Link("an example", bandwidth=50e9, latency=10e-6).seconds(5 * 10**9, rounds=7)
        0.10007
    """

    name: str  # in tables
    bandwidth: float  # bytes a second over one device's link, in one direction
    latency: float  # seconds until the first byte arrives
    topology: str = "switch"  # as in `bsbr.studies.traffic.busiest`

    def seconds(self, load: float, rounds: int) -> float:
        """Time for that many bytes over the busiest link, in so many rounds of waiting."""
        return load / self.bandwidth + rounds * self.latency


# From the makers' pages (book/references.bib: nvidia2022, nvidia2024); `attained`, `attention` and `latency` are
# assumptions. A maker states 1,979 TFLOP/s with sparsity, half of that without, and NVLink both ways together.
DEVICES = {
    "H100": Device(
        "NVIDIA H100 SXM", flops=989 * TERA, bandwidth=3.35 * TERA, memory=80 * GIGA, attained=0.5, attention=0.5
    ),
}
LINKS = {
    "NVLink": Link("NVLink, 450 GB/s each way", bandwidth=450 * GIGA, latency=10e-6),
    "NDR": Link("InfiniBand NDR, 400 Gb/s", bandwidth=50 * GIGA, latency=10e-6),
}
# The sizes of Pythia-1.4B (biderman2023), with this project's backbone: tied embeddings, no biases.
SIZES_1_4B: dict[str, int] = {
    "vocab_size": 50_304, "hidden_dim": 2048, "num_layers": 24, "num_heads": 16, "ff_dim": 8192,
}  # fmt: skip

# -- What it would cost ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """A prediction for the busiest device.

    Examples:
        >>> from bsbr.studies.cost import Cost
        >>> cost = Cost(flops=1e15, arithmetic=2.0, communication=3.0, link_bytes=10**9, memory={"parameters": 10**9})
        >>> cost.limit, cost.overlapped, cost.in_turn, cost.total_memory
        ('network', 3.0, 5.0, 1000000000)
    """

    flops: float  # of matrix products
    arithmetic: float  # seconds of kernels, by arithmetic or memory
    communication: float  # seconds of the busiest link
    link_bytes: int  # over the busiest link, in its busier direction
    memory: dict[str, int]  # bytes held at the peak, by what holds them

    @property
    def overlapped(self) -> float:
        """Seconds if all that can be hidden is: the longer of the two."""
        return max(self.arithmetic, self.communication)

    @property
    def in_turn(self) -> float:
        """Seconds if nothing overlaps."""
        return self.arithmetic + self.communication

    @property
    def limit(self) -> str:
        """Which of the two takes longer: `"network"` or `"arithmetic"`."""
        return "network" if self.communication > self.arithmetic else "arithmetic"

    @property
    def total_memory(self) -> int:
        """Bytes of all parts together."""
        return sum(self.memory.values())


def predict(
    config: ModelConfig,
    n: int,
    device: Device,
    link: Link,
    *,
    ranks: int = 8,
    work: Work = "training",
    recompute: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    method: str | None = None,
) -> Cost:
    """One step of training on a text of n tokens, or one reading of it, by devices that share its tokens.

    Every device holds all weights. Training is next-token prediction, gradients summed over the devices and a step of
    AdamW with two moments in float32, and in half precision a copy of the weights in float32.

    Args:
        config: sizes and mechanism, one for all layers.
        n: tokens of the text.
        device: what computes; all are alike.
        link: what joins them.
        ranks: how many devices.
        work: `"training"` or `"prefill"`.
        recompute: keep of each layer its input alone and compute the rest again in the backward pass.
        dtype: of weights and activations.
        method: how a layer is shared, as in `bsbr.studies.traffic.of_layer`; None for the mechanism's own.

    Raises:
        ValueError: another kind of work; what `bsbr.studies.traffic.of_layer` refuses.

    Examples:
        >>> from bsbr import ModelConfig
        >>> from bsbr.studies.cost import DEVICES, LINKS, predict
        >>> config = ModelConfig("bsbr", hidden_dim=512, num_layers=4, num_heads=8, ff_dim=2048)
        >>> cost = predict(config, 65_536, DEVICES["H100"], LINKS["NDR"], ranks=4)
        >>> cost.limit, f"{cost.link_bytes / 1e6:.0f} MB"
        ('arithmetic', '366 MB')
    """
    if work not in ("prefill", "training"):
        raise ValueError(f"work must be 'prefill' or 'training', but is {work!r}")
    itemsize, training = dtype.itemsize, work == "training"
    sent = traffic.of_layer(config, n, ranks, itemsize, method)
    held = traffic.lengths(config, n, ranks)
    own = own_slice(config, held[-1], work, recompute and training, dtype)
    weights = own.memory["parameters"] // itemsize
    spent = own.kernels + times(remote(config, held, itemsize, work, recompute), config.num_layers)
    if training:
        spent[Kernel("other", 0, weights * _STEP)] += 1
    layers = config.num_layers
    ahead = layers * (1 + (training and recompute))  # forward passes of all layers
    there, back = (traffic.busiest(one, link.topology) for one in (sent.forward, sent.backward))
    load, rounds = ahead * there, ahead * sent.rounds[0]
    if training:
        load += layers * back + 2 * weights * itemsize * (ranks - 1) // ranks  # gradients, by a ring of all-reduce
        rounds += layers * sent.rounds[1] + 2 * (ranks - 1)
    holds = dict(own.memory)
    holds["received"] = _received(config, sent, held, itemsize, work, recompute)
    if training:
        holds["optimizer"] = weights * (8 if itemsize == 4 else 12)
    else:
        holds["decoding state"] = layers * state_bytes(config, held[-1], itemsize)
    return Cost(
        sum(k.flops * t for k, t in spent.items()), device.seconds(spent), link.seconds(load, rounds), load, holds
    )


_STEP = 28  # bytes of a step of AdamW for each weight: gradient, weight, copy and moments, read and written


def _received(
    config: ModelConfig, sent: traffic.Traffic, held: tuple[int, ...], itemsize: int, work: Work, recompute: bool
) -> int:
    """What the last device holds of what it was sent: all of it, and for each layer if it is needed again later."""
    if len(held) == 1:
        return 0
    if sent.rounds[0] > 1:  # a block of keys and values that came and one to come, and the gradients of both
        return (4 if work == "training" else 2) * 2 * config.hidden_dim * held[0] * itemsize
    layers = config.num_layers if work == "training" and not recompute else 1
    return layers * int(sent.forward[:, -1].sum())


# -- One device's slice ---------------------------------------------------------------------------


class Slice(NamedTuple):
    """What a device does with its tokens alone, and what it holds at the peak of that, in bytes by kind."""

    kernels: Counter[Kernel]
    memory: dict[str, int]


def own_slice(config: ModelConfig, n: int, work: str, recompute: bool, dtype: torch.dtype = torch.bfloat16) -> Slice:
    """A pass over n tokens on one device, by a model whose tensors have no numbers.

    Layers are alike, so models of one and of two layers tell what a layer adds.

    Args:
        config: sizes and mechanism, one for all layers.
        n: tokens.
        work: `"prefill"`, `"training"`, or `"training_backbone"`, whose loss is the mean square of what leaves the last
            layer.
        recompute: whether layers are computed again in the backward pass.
        dtype: of weights and activations.
    """
    one, two = (_run(replace(config, num_layers=layers), n, work, recompute, dtype) for layers in (1, 2))
    more = config.num_layers - 1

    def grown(first: Mapping[Any, int], second: Mapping[Any, int]) -> dict[Any, int]:
        keys = dict.fromkeys([*first, *second])
        return {key: first.get(key, 0) + more * (second.get(key, 0) - first.get(key, 0)) for key in keys}

    return Slice(Counter(grown(one.kernels, two.kernels)), grown(one.memory, two.memory))


def times(work: Mapping[Kernel, int], count: int) -> Counter[Kernel]:
    """That many times the same."""
    return Counter({kernel: count * each for kernel, each in work.items()})


@functools.lru_cache(maxsize=256)
def _run(config: ModelConfig, n: int, work: str, recompute: bool, dtype: torch.dtype) -> Slice:
    with FakeTensorMode():
        model = _made(config, dtype).train(work != "prefill")
        model.gradient_checkpointing = recompute
        ids = torch.zeros(1, n, dtype=torch.int64)
        for parameter in model.parameters() if work != "prefill" else ():
            parameter.grad = torch.zeros_like(parameter)
        found: Counter[Kernel] = Counter()

        def run() -> None:  # `encode` would look at the values of ids
            found.update(kernels.of(functools.partial(_PASSES[work], model, ids)))

        peak = memory.tensors(run, model, ids)
    return Slice(found, {part: size for part, size in peak.parts.items() if size or part == "parameters"})


def _made(config: ModelConfig, dtype: torch.dtype) -> TransformerLM:
    """In that dtype from the start: a parameter without numbers refuses to be changed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return TransformerLM(config)
    finally:
        torch.set_default_dtype(before)


def _prefill(model: TransformerLM, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model._encode(ids)


def _training(model: TransformerLM, ids: torch.Tensor) -> None:
    logits = model._logits(model._encode(ids))
    F.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()


def _training_backbone(model: TransformerLM, ids: torch.Tensor) -> None:
    model._encode(ids).square().mean().backward()


_PASSES: dict[str, Any] = {"prefill": _prefill, "training": _training, "training_backbone": _training_backbone}

# -- What it has to do with other slices ----------------------------------------------------------


def remote(
    config: ModelConfig, held: tuple[int, ...], itemsize: int, work: str = "prefill", recompute: bool = False
) -> Counter[Kernel]:
    """What the last device does, for one layer, with what it gets of earlier slices. It does most: all are earlier.

    Alone, the first chunk of a slice of `bsbr` retrieves nothing: that chunk's reading is left out.

    Args:
        config: sizes and mechanism, one for all layers.
        held: tokens of each device.
        itemsize: bytes of a number.
        work: `"training"` takes gradients too.
        recompute: whether the forward pass is made twice.
    """
    *earlier, own = held
    before, dims, heads = sum(earlier), config.hidden_dim, config.num_heads
    head_dim = dims // heads
    forwards, training = 1 + (work == "training" and recompute), work == "training"
    found: Counter[Kernel] = Counter()

    def products(count: int, rows: int, inner: int, columns: int, size: int) -> None:
        moved = (rows * inner + inner * columns + rows * columns) * heads * size
        found[Kernel("product", 2 * heads * rows * inner * columns, moved)] += count * (forwards + 2 * training)

    if not before:
        return found
    if config.name == "standard":  # a block of keys and values at a time
        for block in earlier:
            found[Kernel("attention", 4 * own * block * dims, 2 * (own + block) * dims * itemsize)] += forwards
            if training:
                found[Kernel("attention", 10 * own * block * dims, 4 * (own + block) * dims * itemsize)] += 1
    elif config.name == "bsbr":
        chunks, known = -(-own // config.chunk_size), before // config.chunk_size
        state_dim = head_dim // (config.compression_factor or 1)
        products(1, chunks, head_dim, known, itemsize)  # scores of meta queries and meta keys
        products(1, chunks, known, head_dim * state_dim, itemsize)  # mixing
    elif (
        config.name != "linear"
    ):  # what each chunk's beginning does to a state, the state before it, and slices together
        products(2 * -(-own // DELTA_CHUNK) + len(earlier), head_dim, head_dim, head_dim, 4)
    return found


def state_bytes(config: ModelConfig, n: int, itemsize: int) -> int:
    """What a layer keeps to decode from after n tokens, for one text.

    Args:
        config: sizes and mechanism, one for all layers.
        n: tokens read.
        itemsize: bytes of a number.
    """
    dims, head_dim = config.hidden_dim, config.hidden_dim // config.num_heads
    if config.name == "standard":
        return 2 * n * dims * itemsize
    if config.name == "bsbr":
        state_dim, window = head_dim // (config.compression_factor or 1), config.chunk_size * config.local_chunks
        chunks = n // config.chunk_size
        kept = chunks * dims * (state_dim + 1) + dims * state_dim + 2 * min(window, n) * dims
        return kept * itemsize + 4 * dims  # and the sum of the open chunk, in float32
    return dims * (head_dim + (config.name == "linear")) * 4
