"""`bsbr`: the states and meta keys of earlier chunks, and the keys and values of those that are read exactly."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bsbr.attention import bsbr
from bsbr.config import ModelConfig
from bsbr.parallel.layout import Layout, Need
from bsbr.parallel.passing import Sent, with_earlier


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


def sent(config: ModelConfig) -> list[Sent]:
    """What `attend` sends."""
    dims, chunk_size, factor = config.hidden_dim, config.chunk_size, config.compression_factor
    state_dim = dims // config.num_heads // (factor or 1)
    every, window = Need(chunk_size, None), Need(1, (config.local_chunks - 1) * chunk_size)
    return [
        Sent("state and meta key of each chunk", dims * (state_dim + 1), every),
        Sent("meta query of the last chunk", dims, Need(chunk_size, 1)),
        Sent("key and value of a token", 2 * dims, window),
    ]
