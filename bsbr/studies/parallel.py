"""Bytes that sequence-parallel attention sends, ours and softmax attention's beside it, and the gradients it gives.

The bytes are read from the kernel's own counters of each TCP connection, so they are what went through the network,
whatever the collectives do inside.
"""

from __future__ import annotations

import math
import os
import pickle
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from bsbr import mixers, parallel
from bsbr.config import ModelConfig
from bsbr.model import TransformerLM
from bsbr.parallel import Layout, Need
from bsbr.rotary import Rotary

# -- Processes ------------------------------------------------------------------------------------


def launch(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on `ranks` new processes, one thread each, joined by gloo; what each returned.

    `function` must be importable by name. An exception on any rank ends all of them and is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run_rank, args=(ranks, folder, function, arguments), nprocs=ranks)
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(ranks)]


def _run_rank(rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    result = function(*arguments)
    Path(folder, str(rank)).write_bytes(pickle.dumps(result))
    dist.barrier()  # a rank that left early would close connections that others still use
    dist.destroy_process_group()


# -- Bytes ----------------------------------------------------------------------------------------


class _Connection(NamedTuple):
    """What Linux says of one TCP connection: fields of `struct tcp_info` in linux/tcp.h."""

    state: int
    packets_in_flight: int
    bytes_acked: int
    bytes_waiting: int


def bytes_sent() -> int:
    """Bytes that this process has sent through its open TCP connections; counted once if they were sent again.

    Waits until the other sides have confirmed all of them. Headers of TCP itself are not counted.

    Raises:
        NotImplementedError: the system is not Linux, whose kernel counts them.
        TimeoutError: the other sides have confirmed nothing for ten seconds.
    """
    deadline = time.monotonic() + 10
    while True:
        connections = [connection for connection in _connections() if connection.state == 1]  # established
        if not any(connection.packets_in_flight or connection.bytes_waiting for connection in connections):
            return sum(connection.bytes_acked for connection in connections)
        if time.monotonic() > deadline:
            raise TimeoutError("bytes that were sent have not been confirmed within ten seconds")
        time.sleep(0.001)


def _connections() -> Iterator[_Connection]:
    if not hasattr(socket, "TCP_INFO"):
        raise NotImplementedError("bytes sent are counted by Linux; this system has no TCP_INFO")
    for path in Path("/proc/self/fd").iterdir():
        if not path.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(path.name))) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family == socket.AF_UNIX:
                continue
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 152)
        (state,), (in_flight,) = struct.unpack_from("B", info, 0), struct.unpack_from("I", info, 24)
        (acked,), (waiting,) = struct.unpack_from("Q", info, 120), struct.unpack_from("I", info, 144)
        yield _Connection(state, in_flight, acked, waiting)


# -- What ours is compared with -------------------------------------------------------------------
# Exact softmax attention of a slice, by the ways that long sequences are usually shared out. Slices are of one length.


def gather_attention(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    layout: Layout,
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """Each rank gets all keys and values by one all-gather; in the backward pass, each gets its gradients' sum."""
    k, v = _AllGather.apply(layout, torch.stack([k, v])).flatten(3, 4)
    return _exact(q, k, v, layout)


def later_only_attention(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    layout: Layout,
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """Keys and values go to later ranks only, as `bsbr.parallel` sends its states."""
    k, v = parallel.with_earlier(layout, [(k, Need(1, None)), (v, Need(1, None))])
    return _exact(q, k, v, layout)


def ring_attention(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    layout: Layout,
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """Keys and values travel round the ring of ranks, and a rank reads each block as it passes (Liu et al. 2023,
    "Ring Attention with Blockwise Transformers for Near-Infinite Context", algorithm 1).

    The blocks that passed are kept for the backward pass, which therefore sends gradients only. The paper's version
    keeps none and sends the blocks round again, so it sends more than this one.
    """
    ranks, own_n = len(layout.lengths), q.shape[2]
    position = torch.arange(own_n, device=q.device)
    highest = q.new_full((*q.shape[:3], 1), -math.inf)
    total, out = torch.zeros_like(highest), torch.zeros_like(q)
    for hop in range(ranks):
        if hop > 0:
            k, v = _PassOn.apply(layout, torch.stack([k, v]))
        offset = ((layout.rank - hop) % ranks - layout.rank) * own_n
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(
            position + offset > position[:, None], -math.inf
        )
        # The first block is the rank's own, so `highest` is finite from then on.
        higher = torch.maximum(highest, scores.amax(-1, keepdim=True)).detach()
        weights, fade = (scores - higher).exp(), (highest - higher).exp()
        total, out = total * fade + weights.sum(-1, keepdim=True), out * fade + weights @ v
        highest = higher
    return out / total


def _exact(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    position = torch.arange(k.shape[2], device=q.device)
    read = position <= position[layout.start : layout.start + q.shape[2], None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=read)


class _AllGather(torch.autograd.Function):
    """(2, batch, heads, own_n, head_dim) to (2, batch, heads, ranks, own_n, head_dim)."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, own: Tensor) -> Tensor:
        ctx.layout = layout
        every = [torch.empty_like(own) for _ in layout.lengths]
        dist.all_gather(every, own.contiguous(), group=layout.group)
        return torch.stack(every, dim=3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        # gloo's reduce_scatter sends twice what it needs to; sending each rank its own part is the least there is.
        layout, parts = ctx.layout, gradient.unbind(3)
        others = [rank for rank in range(len(parts)) if rank != layout.rank]
        theirs = [torch.empty_like(parts[0], memory_format=torch.contiguous_format) for _ in others]
        parallel.exchange(layout.group, [(r, parts[r]) for r in others], list(zip(others, theirs, strict=True)))
        return None, sum(theirs, parts[layout.rank])


class _PassOn(torch.autograd.Function):
    """The block of the rank before; its gradient goes back there."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, own: Tensor) -> Tensor:
        ctx.layout = layout
        return _pass(layout, own, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _pass(ctx.layout, gradient, -1)


def _pass(layout: Layout, own: Tensor, step: int) -> Tensor:
    ranks = len(layout.lengths)
    received = torch.empty_like(own, memory_format=torch.contiguous_format)
    source, target = (layout.rank - step) % ranks, (layout.rank + step) % ranks
    parallel.exchange(layout.group, [(target, own)], [(source, received)])
    return received


# -- Measuring ------------------------------------------------------------------------------------

SOFTMAX = {"all_gather": gather_attention, "ring": ring_attention, "later_only": later_only_attention}


class Sizes(NamedTuple):
    """What a layer's attention works on, in float32."""

    batch: int
    num_heads: int
    head_dim: int
    chunk_size: int


def bytes_per_layer(n: int, methods: dict[str, dict[str, Any]], sizes: Sizes, seed: int) -> dict[str, tuple[int, int]]:
    """Bytes that this rank sends for one layer of n tokens by each method: in the forward and in the backward pass.

    `methods` gives a name to options of a `ModelConfig`, for `bsbr` where they name no other mechanism; the names in
    `SOFTMAX` have no options.
    """
    sent = {}
    for name, options in methods.items():
        for length in (sizes.chunk_size * dist.get_world_size(), n):  # the first opens connections and is forgotten
            forward = _softmax(name, length, sizes, seed) if name in SOFTMAX else _shared(options, length, sizes, seed)
            sent[name] = _count(forward)
    return sent


def _count(forward: Callable[[], Tensor]) -> tuple[int, int]:
    dist.barrier()
    before = bytes_sent()
    out = forward()
    between = bytes_sent()
    out.square().sum().backward()
    return between - before, bytes_sent() - between


def _softmax(name: str, n: int, sizes: Sizes, seed: int) -> Callable[[], Tensor]:
    layout, draw = _slice(n, sizes, seed)
    q, k, v = (draw(layout.lengths[layout.rank]) for _ in range(3))
    return lambda: SOFTMAX[name](q, k, v, layout)


def config_of(options: dict[str, Any], sizes: Sizes) -> ModelConfig:
    """One layer of these sizes, of `bsbr` unless `options` name another mechanism."""
    dims = {"hidden_dim": sizes.num_heads * sizes.head_dim, "num_heads": sizes.num_heads, "num_layers": 1}
    return ModelConfig(**{"mechanism": "bsbr", **dims, "chunk_size": sizes.chunk_size, **options})


def _shared(options: dict[str, Any], n: int, sizes: Sizes, seed: int) -> Callable[[], Tensor]:
    torch.manual_seed(seed)
    config = config_of(options, sizes)
    mixer, layout = mixers.make(config), _layout(n)
    own_n = layout.lengths[layout.rank]
    x = torch.randn(sizes.batch, own_n, config.hidden_dim, requires_grad=True)
    positions = torch.arange(layout.start, layout.start + own_n)[None]
    return lambda: parallel.mix(mixer, layout, x, Rotary.at(positions, mixer.rotary_dim, x.dtype))


def _slice(n: int, sizes: Sizes, seed: int) -> tuple[Layout, Callable[[int], Tensor]]:
    """This rank's place, and what draws a tensor of that many rows."""
    layout = _layout(n)
    generator = torch.Generator().manual_seed(seed + layout.rank)
    shape = sizes.batch, sizes.num_heads

    def draw(rows: int) -> Tensor:
        return torch.randn(*shape, rows, sizes.head_dim, generator=generator, requires_grad=True)

    return layout, draw


def _layout(n: int) -> Layout:
    ranks = dist.get_world_size()
    return Layout(None, dist.get_rank(), (n // ranks,) * ranks)


# -- Training -------------------------------------------------------------------------------------


def gradient_error(mechanism: str, n: int, ranks: int, seed: int) -> float:
    """How far the gradient over `ranks` processes is from that of one, for one text of n tokens, in float32.

    ‖g′ − g‖ / ‖g‖ over all parameters, of the mean loss of a small model of two layers.
    """
    ours, right = launch(ranks, _gradient, mechanism, n, seed)[0], _gradient(mechanism, n, seed)
    return float((ours.double() - right.double()).norm() / right.double().norm())


def _gradient(mechanism: str, n: int, seed: int) -> Tensor:
    """Of this rank's part and summed, or without a group of the whole."""
    torch.manual_seed(seed)
    model = TransformerLM(ModelConfig(mechanism, vocab_size=64, hidden_dim=64, num_heads=2, ff_dim=128, key_dim=32))
    text = torch.randint(64, (1, n + 1))
    if dist.is_initialized():
        own = parallel.shard(text, model.config)
        logits, targets = parallel.logits(model, own.inputs), own.targets
    else:
        logits, targets = model(text[:, :-1]), text[:, 1:]
    (F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / n).backward()
    if dist.is_initialized():
        parallel.sum_gradients(model)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
