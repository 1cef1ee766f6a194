"""Bytes that ranks send one another for one layer of a text that they share: from sizes alone, for each way of sharing.

`benchmarks/sequence_parallel` counts the same bytes in the kernel's own counters; the tests hold one to the other.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bsbr.config import ModelConfig
from bsbr.parallel import Layout, Need

Bytes = NDArray[np.int64]  # (ranks, ranks): from the rank of the row to that of the column

# What gloo adds to each message, in bytes: two headers from its sender, one from its receiver.
BY_SENDER, BY_RECEIVER = 96, 48
DEFAULT = {  # how a mechanism's layer is shared where no other way is asked for
    "standard": "ring",
    "bsbr": "states",
    "linear": "states",
    "deltanet": "states",
    "gated_deltanet": "states",
}
SOFTMAX = ("ring", "ring_keeping", "all_gather", "later_only")  # ways to share exact softmax attention


class Traffic(NamedTuple):
    """What ranks send for one layer, and in how many messages.

    Examples:
        >>> from bsbr import ModelConfig
        >>> from bsbr.studies import traffic
        >>> config = ModelConfig("bsbr", hidden_dim=256, num_heads=4, chunk_size=128)
        >>> sent = traffic.of_layer(config, n=2048, ranks=4, itemsize=4)
        >>> sent.forward.sum(axis=1)  # by each rank: only later ones need what a rank has
        array([799744, 533504, 267264,      0])
        >>> traffic.busiest(sent.forward, "switch")
        799744
    """

    forward: Bytes
    backward: Bytes
    messages: NDArray[np.int64]  # in the forward pass, (ranks, ranks)
    rounds: tuple[int, int]  # how often a rank waits for others, forward and backward


def lengths(config: ModelConfig, n: int, ranks: int) -> tuple[int, ...]:
    """Tokens of each rank, as `bsbr.parallel.part` cuts them: whole chunks of `bsbr`, single tokens of others.

    Args:
        config: the model's.
        n: tokens of the text.
        ranks: devices that share it.

    Raises:
        ValueError: there are fewer chunks than ranks.
    """
    size = config.chunk_size if "bsbr" in config.mechanisms else 1
    chunks = -(-n // size)
    if chunks < ranks:
        raise ValueError(
            f"n must give each of {ranks} ranks a chunk of {size} tokens, but is {n}; use fewer ranks or a longer text"
        )
    ends = [min(chunks * rank // ranks * size, n) for rank in range(ranks + 1)]
    return tuple(end - begin for begin, end in itertools.pairwise(ends))


def of_layer(config: ModelConfig, n: int, ranks: int, itemsize: int, method: str | None = None) -> Traffic:
    """What the ranks send for one layer of a text of n tokens, in both passes.

    `"states"` sends to later ranks what the mechanism keeps of a rank's tokens: chunk states and meta keys (`bsbr`, as
    `bsbr.parallel` does), the sum of a slice (`linear`), or the change that a slice makes to any state before it, two
    matrices a head (`deltanet`, `gated_deltanet`). Of softmax attention, `"ring"` is Ring Attention (Liu et al. 2023,
    arXiv:2310.01889): keys and values go round, and in the backward pass once more, with their gradients, which go one
    step further, home. `"ring_keeping"` keeps the blocks instead, so that gradients alone go back; `"all_gather"`
    collects all keys and values; `"later_only"` sends them as `"states"` are sent.

    Args:
        config: sizes and mechanism, one for all layers.
        n: tokens of the text.
        ranks: devices that share it.
        itemsize: bytes of a number.
        method: the way of sharing; None for the mechanism's own.

    Raises:
        ValueError: a mechanism or method without a known way of sharing; layers of several mechanisms; too few chunks.
    """
    usual = method_of(config)
    method = method or usual
    if method not in ((usual,) if usual == "states" else SOFTMAX):
        raise ValueError(
            f"method must be 'states' for {config.name!r}, or one of {', '.join(SOFTMAX)} for exact softmax attention, "
            f"but is {method!r}"
        )
    held = lengths(config, n, ranks)
    places = [Layout(None, rank, held) for rank in range(ranks)]
    forward, messages = np.zeros((ranks, ranks), np.int64), np.zeros((ranks, ranks), np.int64)
    block = 2 * config.hidden_dim * itemsize  # keys and values of a token
    if method in ("ring", "ring_keeping"):
        for rank in range(ranks) if ranks > 1 else ():
            ahead = (rank + 1) % ranks
            passed = sum(held[(rank - hop) % ranks] for hop in range(ranks - 1))
            forward[rank, ahead], messages[rank, ahead] = passed * block, ranks - 1
        if method == "ring_keeping":
            return Traffic(forward, forward.T.copy(), messages, (ranks - 1, ranks - 1))
        home = np.where(forward > 0, forward + sum(held) * block, 0)
        return Traffic(forward, home, messages, (ranks - 1, ranks))
    if method == "all_gather":
        for rank in range(ranks):
            forward[rank, [other for other in range(ranks) if other != rank]] = held[rank] * block
        messages = 2 * (forward > 0).astype(np.int64)  # gloo cuts a block in two
        return Traffic(forward, forward.T.copy(), messages, (1, 1))
    for place in places:
        for size, need in _needs(config, method, held[0], itemsize):
            for target, rows in place.sent(need).items():
                forward[place.rank, target] += rows * size
                messages[place.rank, target] += rows > 0
    return Traffic(forward, forward.T.copy(), messages, (1, 1))


def method_of(config: ModelConfig) -> str:
    """How a model's layers are shared, where no other way is asked for.

    Raises:
        ValueError: the layers are of several mechanisms, or of one without a known way.
    """
    method = DEFAULT.get(config.name)
    if config.name == "bsbr" and config.retrieval != "states":
        raise ValueError(f"retrieval must be 'states' over several devices, but is {config.retrieval!r}")
    if method is None:
        raise ValueError(
            f"mechanism must be one that several devices can share here ({', '.join(DEFAULT)}), but is {config.name!r}"
        )
    return method


def with_gloo(sent: Bytes, messages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes that leave each rank over gloo: its messages with their headers, and its answers to those it gets.

    Args:
        sent: bytes from rank to rank.
        messages: how many messages they are in.
    """
    return sent.sum(axis=1) + BY_SENDER * messages.sum(axis=1) + BY_RECEIVER * messages.sum(axis=0)


def busiest(sent: Bytes, topology: str) -> int:
    """Bytes over the busiest link, in its busier direction.

    Args:
        sent: bytes from rank to rank.
        topology: `"switch"`: each rank has one link, to a switch that reaches all; `"ring"`: each has a link to either
            neighbour, and what is meant for others goes the shorter way.

    Raises:
        ValueError: another topology.
    """
    if topology == "switch":
        return int(max(sent.sum(axis=0).max(), sent.sum(axis=1).max()))
    if topology != "ring":
        raise ValueError(f"topology must be 'switch' or 'ring', but is {topology!r}")
    ranks = len(sent)
    loads = np.zeros((2, ranks), np.int64)
    for source, target in zip(*np.nonzero(sent), strict=True):
        ahead = int(target - source) % ranks
        way, hops = (0, ahead) if ahead <= ranks - ahead else (1, ranks - ahead)
        for hop in range(hops):
            loads[way, (source + (hop if way == 0 else -hop)) % ranks] += sent[source, target]
    return int(loads.max())


def _needs(config: ModelConfig, method: str, own_n: int, itemsize: int) -> list[tuple[int, Need]]:
    """Bytes of a row of all heads, and which rows later ranks need. Sums over a slice are in float32 at least."""
    token, head_dim, wide = config.hidden_dim * itemsize, config.hidden_dim // config.num_heads, max(itemsize, 4)
    if method == "later_only":
        return [(token, Need(1, None))] * 2
    if config.name == "linear":
        return [(config.hidden_dim * (head_dim + 1) * wide, Need(own_n, None))]
    if config.name != "bsbr":
        return [(2 * config.hidden_dim * head_dim * wide, Need(own_n, None))]
    size, state_dim = config.chunk_size, head_dim // (config.compression_factor or 1)
    window = Need(1, (config.local_chunks - 1) * size)
    every, last = Need(size, None), Need(size, 1)
    near = [(token, window)] * 2 if config.local_chunks > 1 else []
    return [(token * state_dim, every), (token, every), (token, last), *near]
