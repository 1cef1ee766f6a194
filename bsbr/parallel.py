"""One sequence over several processes: each rank of a `torch.distributed` group holds a slice of its tokens.

Everything in a model but its mixers treats tokens one by one, so a rank does that for its own slice alone. What a
rank's `bsbr` mixer needs of earlier ranks is little: the state and the meta key of each of their chunks, the meta
query of the last one and, with `local_chunks` = L > 1, the keys and values of the last L − 1. It needs nothing of later
ranks, since no token sees the future. So a layer sends once, to later ranks only, and its backward pass returns the
gradients of what was sent, to earlier ranks only. With `short_conv` it sends a second time, before that: the last
projected tokens, which the convolution of the next rank reads. The result is that of one process, gradients included.

Ranks hold contiguous slices in rank order: whole chunks each, but for the last, which may end anywhere.

    part = parallel.part(input_ids.shape[1], model.config.chunk_size)      # the slice of the sequence for this rank
    logits = parallel.logits(model, input_ids[:, part])
    loss = F.cross_entropy(logits.flatten(0, 1), targets[:, part].flatten(), reduction="sum") / targets.numel()
    loss.backward()                                                        # on every rank
    parallel.sum_gradients(model)
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bsbr.attention import bsbr
from bsbr.mixers import BSBR, Mixer
from bsbr.model import Block, TransformerLM
from bsbr.rotary import Rotary

Group = dist.ProcessGroup | None  # None: all processes

# -- For a whole model ----------------------------------------------------------------------------


def part(n: int, chunk_size: int, group: Group = None) -> slice:
    """This rank's slice of a sequence of n tokens: whole chunks, the same number on each rank, give or take one.

    Args:
        n: tokens of the whole sequence.
        chunk_size: of the model.
        group: the processes that share the sequence; None for all.

    Raises:
        ValueError: fewer chunks than ranks; a number that is not whole and ≥ 1; this process is not in `group`.

    Examples:
        >>> import torch.distributed as dist
        >>> from bsbr import parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> parallel.part(100, chunk_size=8)  # of one rank all
        slice(0, 100, None)
        >>> dist.destroy_process_group()
    """
    for name, value in (("n", n), ("chunk_size", chunk_size)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number ≥ 1, but is {value!r}")
    rank, ranks = _place(group)
    chunks = -(-n // chunk_size)
    if chunks < ranks:
        raise ValueError(
            f"n must be long enough to give each of {ranks} ranks a chunk of {chunk_size} tokens, but {n} tokens are "
            f"{chunks} chunks; use fewer ranks or a smaller chunk_size"
        )
    begin, end = (chunks * r // ranks * chunk_size for r in (rank, rank + 1))
    return slice(begin, min(end, n))


def encode(
    model: TransformerLM, input_ids: Int[Tensor, "batch own_n"], group: Group = None
) -> Float[Tensor, "batch own_n hidden_dim"]:
    """This rank's slice of what `model.encode` gives for the whole sequence. Every rank of the group must call it.

    There is no `attention_mask`: padding on the right changes nothing before it, so its outputs need only be ignored.
    Every rank must run the backward pass, also one whose outputs no loss uses (`(0 * hidden.sum()).backward()`).

    Args:
        model: the same on every rank.
        input_ids: this rank's slice of the texts.
        group: the processes that share the sequence; None for all.

    Raises:
        ValueError: a mechanism without a parallel form; a slice that is not whole chunks, on any but the last rank;
            different batch sizes; models of different configs or dtypes; this process is not in `group`; whatever
            `model.encode` refuses. A fault in one rank's slice is raised on all ranks, so that none waits for another.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import ModelConfig, TransformerLM, parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8))
        >>> ids = torch.randint(100, (1, 24))
        >>> parallel.encode(model, ids[:, parallel.part(24, chunk_size=8)]).shape
        torch.Size([1, 24, 32])
        >>> dist.destroy_process_group()
    """
    for block, name in zip(model.blocks, model.config.mechanisms, strict=True):
        if type(block.mixer) not in _FORWARD:
            known = ", ".join(sorted(mixer.__name__ for mixer in _FORWARD))
            raise ValueError(
                f"model must mix by a mechanism that has a sequence-parallel form ({known}), but uses "
                f"{name!r} ({type(block.mixer).__name__}); run it in one process"
            )
    layout = _agree(model, input_ids, group)
    return model._encode(input_ids, start=layout.start, layer=partial(_layer, layout))


def logits(
    model: TransformerLM, input_ids: Int[Tensor, "batch own_n"], group: Group = None
) -> Float[Tensor, "batch own_n vocab_size"]:
    """This rank's slice of the next-token logits of the whole sequence. Raises ValueError as `encode` does.

    Args:
        model: the same on every rank.
        input_ids: this rank's slice of the texts.
        group: the processes that share the sequence; None for all.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import ModelConfig, TransformerLM, parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8))
        >>> ids = torch.randint(100, (1, 24))
        >>> logits = parallel.logits(model, ids[:, parallel.part(24, chunk_size=8)])
        >>> torch.testing.assert_close(logits, model(ids), rtol=1e-4, atol=1e-4)
        >>> dist.destroy_process_group()
    """
    return model._logits(encode(model, input_ids, group))


def sum_gradients(model: nn.Module, group: Group = None) -> None:
    """Replace every gradient by its sum over the ranks: the gradient of the sum of their losses.

    Call it on every rank, after the backward pass; it is one all-reduce a dtype. A parameter that a rank did not use
    counts as zero there.

    Args:
        model: whose parameters have gradients.
        group: the processes to sum over; None for all.

    Raises:
        ValueError: this process is not in `group`.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import ModelConfig, TransformerLM, parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8))
        >>> ids = torch.randint(100, (1, 24))
        >>> parallel.logits(model, ids).logsumexp(-1).sum().backward()
        >>> parallel.sum_gradients(model)
        >>> all(parameter.grad is not None for parameter in model.parameters())
        True
        >>> dist.destroy_process_group()
    """
    _place(group)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        same = [parameter for parameter in trained if parameter.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
        dist.all_reduce(flat, group=group)
        for parameter, total in zip(same, flat.split([p.numel() for p in same]), strict=True):
            parameter.grad = total.view_as(parameter).clone()


def _layer(layout: Layout, block: Block, x: Tensor, rotary: Rotary) -> Tensor:
    """`block(x, rotary)` for a slice."""
    mix = _FORWARD[type(block.mixer)]
    return block._feed(x, mix(block.mixer, layout, block.mixer_norm(x), rotary))


def _bsbr(mixer: BSBR, layout: Layout, x: Tensor, rotary: Rotary) -> Tensor:
    inputs = None
    if mixer.short_conv is not None:
        halo = Need(1, mixer.short_conv.width - 1)
        inputs = with_earlier(layout, [(mixer.in_proj(x)[:, None], halo)])[0][:, 0]
    q, k, v, meta_q, meta_k = mixer.project(x, rotary, inputs)
    return mixer.merge(x, attend(q, k, v, meta_q, meta_k, layout=layout, **mixer.options))


# A mechanism gets a parallel form with a function here: (mixer, layout, x, rotary) -> what mixer(x, rotary) gives.
_FORWARD: dict[type[Mixer], Callable[..., Tensor]] = {BSBR: _bsbr}


# -- For one layer --------------------------------------------------------------------------------


class Need(NamedTuple):
    """Which earlier rows a rank needs: the `reach` rows before its own, or all (None). A row stands for `tokens`.

    Examples:
        >>> from bsbr.parallel import Layout, Need
        >>> layout = Layout(None, rank=2, lengths=(16, 24, 8))
        >>> layout.received(Need(tokens=8, reach=None))  # chunks of 8 tokens: all earlier ones
        [2, 3]
        >>> layout.received(Need(tokens=1, reach=8))  # tokens: the last 8 before its own
        [0, 8]
    """

    tokens: int  # that a row stands for
    reach: int | None  # rows before a rank's own, in tokens; None for all


@dataclass(frozen=True)
class Layout:
    """Which tokens each rank holds: rank r has `lengths[r]` of them, after those of the ranks before it.

    Examples:
        >>> from bsbr.parallel import Layout, Need
        >>> layout = Layout(None, rank=1, lengths=(16, 24, 8))
        >>> layout.start
        16
        >>> layout.received(Need(tokens=8, reach=None)), layout.sent(Need(tokens=8, reach=None))
        ([2], {2: 3})
    """

    group: Group  # None for all processes
    rank: int  # of this process
    lengths: tuple[int, ...]  # tokens of each rank

    @property
    def start(self) -> int:
        """The position of this rank's first token."""
        return sum(self.lengths[: self.rank])

    def received(self, need: Need) -> list[int]:
        """How many rows come from each earlier rank, the first rank's first."""
        return [self._shared(source, self.rank, need) for source in range(self.rank)]

    def sent(self, need: Need) -> dict[int, int]:
        """How many of its last rows this rank sends to each later one."""
        return {target: self._shared(self.rank, target, need) for target in range(self.rank + 1, len(self.lengths))}

    def _shared(self, source: int, target: int, need: Need) -> int:
        own, *between = (length // need.tokens for length in self.lengths[source:target])
        return own if need.reach is None else max(0, min(own, need.reach - sum(between)))


def attend(
    q: Float[Tensor, "batch heads own_n head_dim"],
    k: Float[Tensor, "batch heads own_n head_dim"],
    v: Float[Tensor, "batch heads own_n head_dim"],
    meta_q: Float[Tensor, "batch heads own_chunks head_dim"],
    meta_k: Float[Tensor, "batch heads own_chunks head_dim"],
    layout: Layout,
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    retrieval: str = "states",
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
) -> Float[Tensor, "batch heads own_n head_dim"]:
    """This rank's slice of `bsbr.attention.bsbr.attend`, from its slices of the arguments.

    `meta_q` and `meta_k` have a row for each complete chunk of the slice. A head sends head_dim · (state_dim + 1)
    numbers a chunk to each later rank and, to those near enough to need them, its last meta query, keys and values.

    Args:
        q: queries of the slice.
        k: keys of the slice.
        v: values of the slice.
        meta_q: the meta query of each complete chunk of the slice.
        meta_k: the meta key of each complete chunk of the slice.
        layout: which tokens each rank holds.
        chunk_size: tokens of a chunk.
        local_chunks: chunks read exactly, the own one included.
        top_k: retrieve from this many chunks only; None for all.
        compress: of `compression_factor`: what takes values to those that a state keeps; None for whole states.
        expand: what takes them back.
        retrieval: what earlier chunks give.
        chunk_encoder: what makes a state.
        normaliser: of what is read exactly, and of what is retrieved.

    Raises:
        ValueError: `retrieval`, `chunk_encoder` or `normaliser` is not its default, which alone has a parallel form.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> layout = parallel.Layout(None, rank=0, lengths=(24,))
        >>> q, k, v = torch.randn(3, 1, 2, 24, 16)
        >>> meta_q, meta_k = torch.randn(2, 1, 2, 3, 16)  # of three chunks
        >>> parallel.attend(q, k, v, meta_q, meta_k, layout, chunk_size=8).shape
        torch.Size([1, 2, 24, 16])
        >>> dist.destroy_process_group()
    """
    for name, value, wanted in (
        ("retrieval", retrieval, "states"),
        ("chunk_encoder", chunk_encoder, "sum"),
        ("normaliser", normaliser, "separate"),
    ):
        if value != wanted:
            raise ValueError(f"{name} must be {wanted!r} over several processes, but is {value!r}; run it in one")
    n, complete = q.shape[2], meta_k.shape[2]
    closed_k, closed_v = (x[:, :, : complete * chunk_size].unflatten(2, (complete, chunk_size)) for x in (k, v))
    states = bsbr.chunk_states(closed_k, closed_v, compress)
    every, last, window = Need(chunk_size, None), Need(chunk_size, 1), Need(1, (local_chunks - 1) * chunk_size)
    needed = [(states, every), (meta_k, every), (meta_q, last)]
    if local_chunks > 1:
        needed += [(k, window), (v, window)]
    states, meta_k, meta_q, *window_kv = with_earlier(layout, needed)
    q, k, v = (bsbr.split_chunks(x, chunk_size) for x in (q, *(window_kv or (k, v))))

    chunks = q.shape[2]
    retrievable = max(0, layout.start // chunk_size + chunks - local_chunks)  # by the last chunk here
    retrieving = min(chunks, retrievable)
    # A chunk retrieves with the query of the chunk before, which for the first one here is an earlier rank's, if any.
    first = (meta_q.shape[2] - complete) + (chunks - retrieving) - 1
    meta_q = meta_q[:, :, first : first + retrieving]
    mixed = bsbr.mix(meta_q, meta_k[:, :, :retrievable], states[:, :, :retrievable], top_k)
    return bsbr.read(q, k, v, mixed, local_chunks, expand).flatten(2, 3)[:, :, :n]


def with_earlier(layout: Layout, needed: Sequence[tuple[Tensor, Need]]) -> tuple[Tensor, ...]:
    """Each tensor (batch, heads, rows, …) behind the rows of earlier ranks that are needed with it. Differentiable.

    Call it once a layer for all that the layer sends, and let the output depend on it on every rank: then the ranks
    meet in the same order in the backward pass too. A second call may follow whose tensors depend on the first's.

    Args:
        layout: which tokens each rank holds.
        needed: each tensor of this rank with what of it the later ranks need.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> layout = parallel.Layout(None, rank=0, lengths=(24,))
        >>> states = torch.randn(1, 2, 3, 16, 16)  # of three chunks
        >>> [found] = parallel.with_earlier(layout, [(states, parallel.Need(tokens=8, reach=None))])
        >>> found.shape  # the first rank needs nothing of others
        torch.Size([1, 2, 3, 16, 16])
        >>> dist.destroy_process_group()
    """
    tensors, needs = zip(*needed, strict=True)
    return _WithEarlier.apply(layout, needs, *tensors)


class _WithEarlier(torch.autograd.Function):
    """Gradients of received rows go back to where these came from, and are added there in rank order."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, needs: Sequence[Need], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.needs = layout, needs
        send: list[tuple[int, Tensor]] = []
        receive: list[tuple[int, Tensor]] = []
        outputs = []
        for x, need in zip(tensors, needs, strict=True):
            earlier = [x.new_empty(*x.shape[:2], rows, *x.shape[3:]) for rows in layout.received(need)]
            receive += enumerate(earlier)
            send += [(rank, _last(x, rows)) for rank, rows in layout.sent(need).items()]
            outputs.append([*earlier, x])
        exchange(layout.group, send, receive)
        return tuple(torch.cat(rows, dim=2) for rows in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layout: Layout = ctx.layout
        send: list[tuple[int, Tensor]] = []
        receive: list[tuple[int, Tensor]] = []
        own, sums = [], []
        for gradient, need in zip(gradients, ctx.needs, strict=True):
            received = layout.received(need)
            *earlier, mine = gradient.split([*received, gradient.shape[2] - sum(received)], dim=2)
            own.append(mine.clone())
            send += enumerate(earlier)
            for rank, rows in layout.sent(need).items():
                shared = _last(own[-1], rows)
                theirs = shared.new_empty(shared.shape)
                receive.append((rank, theirs))
                sums.append((shared, theirs))
        exchange(layout.group, send, receive)
        for shared, theirs in sums:
            shared += theirs
        return None, None, *own


def _last(x: Tensor, rows: int) -> Tensor:
    return x[:, :, x.shape[2] - rows :]


def exchange(group: Group, send: Iterable[tuple[int, Tensor]], receive: Iterable[tuple[int, Tensor]]) -> None:
    """Send and receive (rank, tensor) pairs, all at once, each pair of ranks in the order given."""
    operations = [dist.P2POp(dist.isend, x.contiguous(), group=group, group_peer=rank) for rank, x in send if x.numel()]
    operations += [dist.P2POp(dist.irecv, x, group=group, group_peer=rank) for rank, x in receive if x.numel()]
    for work in dist.batch_isend_irecv(operations) if operations else []:
        work.wait()


# -- Which rank holds what ------------------------------------------------------------------------


def _place(group: Group) -> tuple[int, int]:
    """This process's rank in the group, and how many ranks it has."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group must exist before it is used, but torch.distributed is not initialised; launch with torchrun and "
            "call torch.distributed.init_process_group first"
        )
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            f"group must be a torch.distributed process group that this process is in, or None for all processes, but "
            f"is {group!r}; new_group gives that to processes outside the group, which must not call this"
        )
    return dist.get_rank(group), dist.get_world_size(group)


def _traits(model: TransformerLM) -> dict[str, int]:
    """What ranks must have in common, in whole numbers; the checksums stand for whatever else may differ."""
    config = dataclasses.asdict(model.config)
    dtypes = [str(parameter.dtype) for parameter in model.parameters()]
    return {
        **{name: config[name] or 0 for name in ("chunk_size", "local_chunks", "top_k", "num_layers", "hidden_dim")},
        "bits of a weight": model.embedding.weight.element_size() * 8,
        "config (a checksum)": zlib.crc32(repr(sorted(config.items())).encode()),
        "dtypes of weights (a checksum)": zlib.crc32(repr(dtypes).encode()),
    }


def _agree(model: TransformerLM, input_ids: Tensor, group: Group) -> Layout:
    """The layout that all ranks' slices make, once each rank knows that it makes sense."""
    rank, ranks = _place(group)
    fault: ValueError | None = None
    try:
        model._check(input_ids, None)
    except ValueError as error:
        fault = error
    shape = input_ids.shape if fault is None else (0, 0)
    own = torch.tensor([*shape, *_traits(model).values()], device=model.embedding.weight.device)
    every = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(every, own, group=group)
    batches, lengths, *traits = zip(*(row.tolist() for row in every), strict=True)
    if fault is not None:
        raise fault
    for name, values in zip(_traits(model), traits, strict=True):
        if len(set(values)) > 1:
            raise ValueError(
                f"model must be the same on every rank, but its {name} is not: by rank {', '.join(map(str, values))}; "
                f"make every rank's model of one config, in one dtype"
            )
    if 0 in lengths:
        raise ValueError(f"input_ids must be in order on every rank, but rank {lengths.index(0)} refused its slice")
    if len(set(batches)) > 1:
        raise ValueError(f"input_ids must have the same rows on every rank, but their numbers, by rank, are {batches}")
    chunk_size = model.config.chunk_size
    for other, length in enumerate(lengths[:-1]):
        if length % chunk_size:
            raise ValueError(
                f"input_ids must be whole chunks of {chunk_size} tokens on every rank but the last, but rank {other} "
                f"has {length}; cut the sequence with bsbr.parallel.part"
            )
    return Layout(group, rank, lengths)
