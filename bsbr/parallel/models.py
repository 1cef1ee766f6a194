"""A whole model on a slice of a text: cutting, running, and adding up gradients."""

from __future__ import annotations

import dataclasses
import zlib
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from bsbr.config import ModelConfig
from bsbr.model import Block, TransformerLM
from bsbr.parallel.layout import Group, Layout, place
from bsbr.parallel.shared import check, mix, slice_size
from bsbr.rotary import Rotary


def part(n: int, chunk_size: int, group: Group = None) -> slice:
    """This rank's slice of a sequence of n tokens: whole chunks, the same number on each rank, give or take one.

    Args:
        n: tokens of the whole sequence.
        chunk_size: of the model; 1 where no layer works in chunks.
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
    rank, ranks = place(group)
    chunks = -(-n // chunk_size)
    if chunks < ranks:
        raise ValueError(
            f"n must be long enough to give each of {ranks} ranks a chunk of {chunk_size} tokens, but {n} tokens are "
            f"{chunks} chunks; use fewer ranks or a smaller chunk_size"
        )
    begin, end = (chunks * r // ranks * chunk_size for r in (rank, rank + 1))
    return slice(begin, min(end, n))


class Shard(NamedTuple):
    """A rank's slice of texts that are trained on. The loss of a rank is its sum over `targets`, divided by `tokens`.

    Examples:
        >>> from bsbr.parallel import Shard
        >>> Shard._fields
        ('inputs', 'targets', 'positions', 'tokens')
    """

    inputs: Int[Tensor, "batch own_n"]  # ids of the slice
    targets: Int[Tensor, "batch own_n"]  # the token after each input, of which the last is the next rank's first input
    positions: Int[Tensor, " own_n"]  # of the inputs in the whole text; `encode` turns by them without being told
    tokens: int  # targets of all ranks together


def shard(text: Int[Tensor, "batch n_plus_1"], config: ModelConfig, group: Group = None) -> Shard:
    """This rank's inputs, targets and positions of texts of n + 1 tokens, which give n inputs and n targets.

    Slices are as equal as the mechanisms allow: to a token, or to a chunk where a layer works in chunks.

    Args:
        text: the same on every rank.
        config: of the model.
        group: the processes that share the texts; None for all.

    Raises:
        ValueError: a mechanism that has no form over several processes; `text` is not of two tokens or more; otherwise
            as `part`.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import ModelConfig, parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> own = parallel.shard(torch.tensor([[5, 6, 7, 8]]), ModelConfig("linear"))
        >>> own.inputs.tolist(), own.targets.tolist(), own.positions.tolist(), own.tokens
        ([[5, 6, 7]], [[6, 7, 8]], [0, 1, 2], 3)
        >>> dist.destroy_process_group()
    """
    check(config)
    if not isinstance(text, Tensor) or text.ndim != 2 or text.shape[1] < 2:
        raise ValueError(
            f"text must be ids of shape (batch, n + 1) with n ≥ 1, for n inputs and the token after each, but "
            f"{f'has shape {tuple(text.shape)}' if isinstance(text, Tensor) else f'is {text!r:.100}'}"
        )
    n = text.shape[1] - 1
    own = part(n, slice_size(config), group)
    positions = torch.arange(own.start, own.stop, device=text.device)
    return Shard(text[:, own], text[:, own.start + 1 : own.stop + 1], positions, len(text) * n)


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
        ValueError: a mechanism or an option without a parallel form; a slice that is not whole chunks, on any but the
            last rank, where a layer works in chunks; different batch sizes; models of different configs or dtypes; this
            process is not in `group`; whatever `model.encode` refuses. A fault in one rank's slice is raised on all
            ranks, so that none waits for another.

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
    check(model.config, [block.mixer for block in model.blocks])
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
    place(group)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        same = [parameter for parameter in trained if parameter.dtype == dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
        dist.all_reduce(flat, group=group)
        for parameter, total in zip(same, flat.split([p.numel() for p in same]), strict=True):
            parameter.grad = total.view_as(parameter).clone()


def _layer(layout: Layout, block: Block, x: Tensor, rotary: Rotary) -> Tensor:
    """`block(x, rotary)` for a slice."""
    return block._feed(x, mix(block.mixer, layout, block.mixer_norm(x), rotary))


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
    rank, ranks = place(group)
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
    whole = slice_size(model.config)
    for other, length in enumerate(lengths[:-1]):
        if length % whole:
            raise ValueError(
                f"input_ids must be whole chunks of {whole} tokens on every rank but the last, but rank {other} "
                f"has {length}; cut the sequence with bsbr.parallel.shard"
            )
    return Layout(group, rank, lengths)
