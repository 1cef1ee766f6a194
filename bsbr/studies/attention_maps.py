"""Attention maps: how much of each token's value goes into each output, for any mechanism and for converted models.

Where queries and keys are fixed, every mechanism here is linear in the values, o_t = Σ_i w_ti v_i, also where it never
computes a w_ti. So values that are columns of the identity matrix bring the weights out (`weights`), and no mechanism
needs a formula of its own. They are those of a softmax in softmax attention; elsewhere they may be negative and need
not add up to one.

A map of n tokens has n² numbers a head. `visit` therefore goes through a model layer by layer and gives each layer's
map a few rows at a time. Everything is causal: the map of a text's beginning is the corner of the map of all of it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bsbr.config import ModelConfig
from bsbr.conversion import ConversionConfig, attention
from bsbr.conversion.blocks import BlockSums, block_sums
from bsbr.conversion.states import Fit
from bsbr.mixers import Mixer, make
from bsbr.model import TransformerLM
from bsbr.rotary import Rotary

Rows = Float[np.ndarray, "heads rows tokens"]


@dataclass(frozen=True)
class Layer:
    """One layer's map while a model reads a text.

    `rows(start, end)` is (heads, end − start, end): the weights of the outputs start … end − 1 on the tokens before
    `end`, none of which is later than the last of them.
    """

    index: int
    num_heads: int
    n: int
    rows: Callable[[int, int], Float[Tensor, "heads rows tokens"]]


# -- One attention --------------------------------------------------------------------------------


def weights(
    attend: Callable[[Tensor], Tensor], values: Float[Tensor, "batch heads n dim"]
) -> Float[Tensor, "batch heads n n"]:
    """The weight of every token in every output, by feeding columns of the identity matrix as values.

    Costs ⌈n / dim⌉ calls of `attend`, and n² numbers a head.

    Args:
        attend: from values to outputs of the same shape; linear, so its queries and keys are fixed.
        values: any such values; only shape, dtype and device count.
    """
    n, dim = values.shape[2:]
    identity = torch.eye(n, -(-n // dim) * dim, dtype=values.dtype, device=values.device)
    columns = [attend(part.expand_as(values).contiguous()) for part in identity.split(dim, dim=1)]
    return torch.cat(columns, dim=-1)[..., :n]


def of_mixer(
    mixer: Mixer, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary, positive: bool = False
) -> Float[Tensor, "batch heads n n"]:
    """The map of one mixer on its input; with `short_conv`, of the weights of the convolved values.

    Args:
        positive: take the absolute value of everything the mechanism reads (queries, keys, …), so that nothing cancels
            or is cut off below zero, and no decay, so that nothing fades: what then has a weight is what the mechanism
            *can* read, or can with these queries and keys where they choose.
    """
    parts, names = list(mixer.project(x, rotary)), list(inspect.signature(mixer.attention.attend).parameters)
    if positive:
        parts = [part * 0 if name == "log_decay" else part.abs() for name, part in zip(names, parts, strict=False)]
    place = names.index("v")

    def attend(values: Tensor) -> Tensor:
        parts[place] = values
        return mixer.attention.attend(*parts, **mixer.options)

    return weights(attend, parts[place].clone())


@torch.inference_mode()
def of_mechanism(
    config: ModelConfig,
    n: int,
    *,
    positive: bool = False,
    spread: float = 1.0,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "heads n n"]:
    """The absolute weights of a mechanism with random weights on n random tokens, always the same ones.

    Args:
        positive: of `of_mixer`.
        spread: by what the input is multiplied: with more, fewer softmaxes are flat.

    Raises:
        ValueError: the config names a mechanism for each layer.
    """
    if not isinstance(config.mechanism, str):
        raise ValueError(f"config must name one mechanism, but has one for each layer: {', '.join(config.mechanism)}")
    torch.manual_seed(0)
    mixer = make(config).to(device)
    x = spread * torch.randn(1, n, config.hidden_dim).to(device)
    rotary = Rotary.at(torch.arange(n, device=device)[None], mixer.rotary_dim, x.dtype)
    return of_mixer(mixer, x, rotary, positive=positive)[0].abs().cpu().numpy()


def softmax_rows(
    q: Float[Tensor, "heads n head_dim"], k: Float[Tensor, "kv_heads n head_dim"], scaling: float, start: int, end: int
) -> Float[Tensor, "heads rows tokens"]:
    """Rows start … end − 1 of causal softmax attention's weights, softmax(q kᵀ · scaling), for grouped heads too."""
    grouped = q[:, start:end].unflatten(0, (k.shape[0], -1)).flatten(1, 2)
    scores = (grouped @ k[:, :end].mT).mul_(scaling).view(q.shape[0], end - start, end)
    later = torch.ones(end - start, end, dtype=torch.bool, device=q.device).triu_(start + 1)
    return scores.masked_fill_(later, -torch.inf).softmax(-1)


def converted_rows(
    q: Float[Tensor, "heads n head_dim"],
    k: Float[Tensor, "kv_heads n head_dim"],
    config: ConversionConfig,
    scaling: float,
    start: int,
    end: int,
    sums: BlockSums | None = None,
    fit: Fit | None = None,
) -> Float[Tensor, "heads rows tokens"]:
    """Rows start … end − 1 of the weights with which a converted layer reads.

    `sums`, the block sums of q and k, saves computing them again for each range of rows; `fit` is how the layer reads
    states, if that was calibrated.
    """
    if sums is None and _chooses_by_chunk(config):
        sums = block_sums(q[None], k[None], config)
    query, keys = q[None, :, start:end], k[None, :, :end]

    def attend(values: Tensor) -> Float[Tensor, "1 heads rows head_dim"]:
        return attention.attend(query, keys, values, config, scaling, sums, fit=fit).transpose(1, 2)

    if config.reads_states:
        return weights(attend, keys)[0]
    return _kernel_weights(attend, keys)[0]


def _chooses_by_chunk(config: ConversionConfig) -> bool:
    return config.retrieval in ("top_k", "both")


def reads_all_up_to(config: ConversionConfig) -> int:
    """The length, in whole chunks, up to which a conversion that reads no states still reads every token.

    Up to there its window, its sinks and the blocks that it may retrieve cover all there is.

    Raises:
        ValueError: it reads states, which reach every token at any length.
    """
    if config.reads_states:
        raise ValueError(f"config: expected a retrieval without states, got {config.retrieval!r}, which reads all")
    kept = config.sink_tokens + (config.top_k * config.block if config.retrieves_blocks else 0)
    return config.chunk_size * next(chunk for chunk in itertools.count() if config.far_end(chunk) > kept)


def _kernel_weights(
    attend: Callable[[Tensor], Tensor], values: Float[Tensor, "batch kv_heads n dim"]
) -> Float[Tensor, "batch heads rows n"]:
    """What `weights` finds, at the cost of one call, for an attention that is PyTorch's fused kernel and nothing else.

    Whatever gathering stands before the kernel and after it moves whole rows. So values that are token numbers tell
    which tokens the kernel was given, and outputs that are row numbers tell where each row of its weights belongs.
    """
    n = values.shape[2]
    numbers = torch.arange(n, dtype=torch.float64, device=values.device)
    with _Kernel(n) as kernel:
        out = attend(numbers[:, None].expand_as(values).contiguous())
    return torch.cat(kernel.rows)[out[..., 0].long()]


class _Kernel(TorchFunctionMode):
    """Stands in for `scaled_dot_product_attention`: keeps its weights, by token, and returns the rows' numbers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.rows: list[Float[Tensor, "rows n"]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._read(*args, **(kwargs or {}))

    def _read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            is_read = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if is_read else scores + attn_mask
        found = scores.softmax(-1)
        tokens = value[..., 0].long()[..., None, :].expand_as(found)
        by_token = found.new_zeros(*found.shape[:-1], self.n).scatter_add_(-1, tokens, found).flatten(0, -2)
        first = sum(map(len, self.rows))
        self.rows.append(by_token)
        numbers = torch.arange(first, first + len(by_token), dtype=value.dtype, device=value.device)
        return numbers.view(found.shape[:-1])[..., None].expand(*found.shape[:-1], value.shape[-1])


# -- A whole model --------------------------------------------------------------------------------


@torch.inference_mode()
def visit(model: Any, ids: Int[Tensor, "1 n"], look: Callable[[Layer], None]) -> None:
    """Let a model read a text, and call `look` with each layer's map as the text passes it, first layer first.

    Args:
        model: a `TransformerLM`; or a causal language model of transformers, original or converted by
            `bsbr.conversion`, whose attention is PyTorch's fused kernel (`sdpa`) or ours.
        ids: one row of tokens.

    Raises:
        ValueError: `ids` is not one row of tokens, or the model is of another kind or uses another attention.
    """
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ValueError(f"ids: expected one row of tokens, shape (1, n), got shape {tuple(ids.shape)}")
    if isinstance(model, TransformerLM):
        return _visit_own(model, ids, look)
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if name not in ("sdpa", "bsbr"):
        raise ValueError(
            f"model: expected a TransformerLM, or a model of transformers whose attention is 'sdpa' or converted by "
            f"bsbr.conversion, got {type(model).__name__} with attention {name!r}; try "
            "model.set_attn_implementation('sdpa')"
        )
    _visit_transformers(model, ids, look, name)


def _visit_own(model: TransformerLM, ids: Tensor, look: Callable[[Layer], None]) -> None:
    def watch(index: int, mixer: Mixer, x: Tensor, rotary: Rotary) -> None:
        whole = functools.cache(lambda: of_mixer(mixer, x, rotary)[0])
        heads = whole().shape[0]
        look(Layer(index, heads, ids.shape[1], lambda start, end: whole()[:, start:end, :end]))

    with ExitStack() as hooks:
        for index, block in enumerate(model.blocks):
            hook = functools.partial(lambda index, mixer, inputs: watch(index, mixer, *inputs), index)
            hooks.enter_context(block.mixer.register_forward_pre_hook(hook))
        model.encode(ids)


def _visit_transformers(model: Any, ids: Tensor, look: Callable[[Layer], None], name: str) -> None:
    """Every layer calls the attention function that is registered under `name`: for this reading, ours stands there."""
    attend = ALL_ATTENTION_FUNCTIONS[name]

    def watch(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        q, k, scaling = query[0], key[0], options["scaling"]
        config = module.bsbr if name == "bsbr" else None  # None too in a layer that the conversion left as it was
        if config is not None:
            sums = block_sums(query, key, config) if _chooses_by_chunk(config) else None
            rows = functools.partial(converted_rows, q, k, config, scaling, sums=sums, fit=module.bsbr_fit)
        else:
            rows = functools.partial(softmax_rows, q, k, scaling)
        look(Layer(module.layer_idx, q.shape[0], q.shape[1], rows))
        return attend(module, query, key, value, mask, **options)

    ALL_ATTENTION_FUNCTIONS[name] = watch
    try:
        model.base_model(ids, use_cache=False)
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = attend


# -- What a map says ------------------------------------------------------------------------------


def by_chunk(layer: Layer, chunk_size: int) -> list[tuple[int, int]]:
    """The ranges of rows that are one chunk each."""
    return [(start, min(start + chunk_size, layer.n)) for start in range(0, layer.n, chunk_size)]


def pairs(start: int, end: int) -> tuple[int, int]:
    """Pairs of a token in start … end − 1 with one not after it: within that range, and between it and what is before.

    >>> pairs(4, 8)
    (10, 16)
    """
    rows = end - start
    return rows * (rows + 1) // 2, rows * start


def count_above(rows: Rows, threshold: float) -> Int[np.ndarray, "heads 2"]:
    """How many weights of one chunk's rows are above a threshold in absolute value, each head: within and between.

    `rows` are those of one chunk, so the tokens before their first are those of earlier chunks.
    """
    before = rows.shape[2] - rows.shape[1]
    # np.count_nonzero of a whole array is several times as fast as along an axis.
    return np.array(
        [
            [np.count_nonzero(head[:, before:] > threshold), np.count_nonzero(head[:, :before] > threshold)]
            for head in rows
        ]
    )


def count_for_mass(rows: Rows, masses: Sequence[float]) -> Int[np.ndarray, "heads masses"]:
    """The fewest weights of each row that make up a share of its sum of absolute weights, added up over rows.

    Args:
        rows: absolute weights.
        masses: shares of the sum, in (0, 1).
    """
    rising = np.sort(rows, axis=-1)  # NumPy's sort of floats is vectorised, PyTorch's is not
    np.cumsum(rising, axis=-1, out=rising)
    total = rising[..., -1:]
    tokens = rows.shape[1] * rows.shape[2]
    return np.stack(
        [
            [tokens - np.count_nonzero(head <= (1 - mass) * top) for mass in masses]
            for head, top in zip(rising, total, strict=True)
        ]
    )


def within_mass(rows: Rows) -> Float[np.ndarray, " heads"]:
    """Σ over one chunk's rows of the share of absolute weight that lies on the row's own chunk."""
    before = rows.shape[2] - rows.shape[1]
    return (rows[:, :, before:].sum(-1) / rows.sum(-1).clip(min=1e-30)).sum(-1)


def cosine(a: Rows, b: Rows) -> Float[np.ndarray, "heads rows"]:
    """The cosine between each row of two maps; where one of the two is empty, 0, and where both are, 1."""
    product, norms = (a * b).sum(-1), np.sqrt((a * a).sum(-1)) * np.sqrt((b * b).sum(-1))
    empty = ~a.any(-1) & ~b.any(-1)
    return np.where(empty, 1.0, product / np.where(norms > 0, norms, 1.0))


def pool(rows: Rows, size: int) -> Rows:
    """The largest absolute weight of each square of size × size pairs; rows and tokens are multiples of `size`."""
    heads, count, tokens = rows.shape
    return np.abs(rows).reshape(heads, count // size, size, tokens // size, size).max((2, 4))
