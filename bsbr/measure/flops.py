"""The one counter of floating-point operations, and the rate at which this machine multiplies the same matrices.

A multiplication and an addition are two operations. `torch.utils.flop_counter` counts matrix products. It has no
rule for three of our operations, so they get one here: the fused attention kernel of CPUs and its gradient, counted
for the pairs of tokens that a causal mask lets through, which is the work to be done; and the triangular solve of
`deltanet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bsbr.model import ModelConfig, TransformerLM

aten = torch.ops.aten
ROWS_AT_ONCE = 256  # a fused kernel multiplies blocks of rows: the matrix of all scores never exists


class Product(NamedTuple):
    """`batch` products of (rows × inner) by (inner × columns)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns


class Passes(NamedTuple):
    """Operations of the forward pass, and of the gradients of all weights behind it."""

    forward: int
    backward: int


def count(run: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products in one call of `run`."""
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter:
        run()
    return int(counter.get_total_flops())


def count_passes(config: ModelConfig, n: int) -> Passes:
    """Operations of `TransformerLM.encode` on one row of n tokens, and of the gradients of the sum of its outputs.

    The tensors have shapes and no numbers, so any size is counted without its memory and without its arithmetic. All
    products are the layers', and layers are alike: one is counted.
    """
    with FakeTensorMode():
        model, ids = TransformerLM(replace(config, num_layers=1)), torch.zeros(1, n, dtype=torch.int64)
        with FlopCounterMode(display=False, custom_mapping=_RULES) as counter:
            out = model._encode(ids)  # `encode` would look at the ids, which have no values
            forward = int(counter.get_total_flops())
            out.sum().backward()
        backward = int(counter.get_total_flops()) - forward
    return Passes(config.num_layers * forward, config.num_layers * backward)


def products(run: Callable[[], object]) -> dict[Product, int]:
    """The matrix products in one call of `run`: each shape with the operations spent on it.

    Attention stands as its two products over blocks of rows, with the operations that the causal mask leaves.
    """
    with _Recorder() as recorder:
        run()
    return dict(recorder.spent)


def alone(spent: Mapping[Product, int]) -> Callable[[], None]:
    """A call that does nothing but these operations: each shape multiplied by itself, as often as it was spent.

    Timed in turn with what the operations were recorded from, it tells how near that comes to the rate at which this
    machine multiplies matrices of the same shapes. Where a causal mask left a part of a product, part of its batch is
    multiplied, to the nearest whole matrix.

    Args:
        spent: operations a shape, as `products` returns them.
    """
    parts = []
    for shape, flops in spent.items():
        matrices = max(round(flops / shape._replace(batch=1).flops), 1)
        whole, rest = divmod(matrices, shape.batch)
        left, right = (
            torch.randn(shape.batch, shape.rows, shape.inner),
            torch.randn(shape.batch, shape.inner, shape.columns),
        )
        out = torch.empty(shape.batch, shape.rows, shape.columns)
        if shape.batch == 1:
            left, right, out = left[0], right[0], out[0]
        parts += [(left, right, out)] * whole
        if rest:
            parts.append((left[:rest], right[:rest], out[:rest]))

    @torch.inference_mode()
    def run() -> None:
        for left, right, out in parts:
            (torch.mm if left.ndim == 2 else torch.bmm)(left, right, out=out)

    return run


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.spent: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in _PRODUCTS:
            with self:  # inside inference mode, operations such as linear and matmul arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        for shape, flops in _PRODUCTS.get(func.overloadpacket, _none)(*args, **kwargs):
            self.spent[shape] += flops
        return func(*args, **kwargs)


def _none(*_: Any, **__: Any) -> list[tuple[Product, int]]:
    return []


def _plain(left: Tensor, right: Tensor) -> list[tuple[Product, int]]:
    batch = left.shape[0] if left.ndim == 3 else 1
    shape = Product(batch, left.shape[-2], left.shape[-1], right.shape[-1])
    return [(shape, shape.flops)]


def _attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> list[tuple[Product, int]]:
    batch, (rows, columns) = q.shape[0] * q.shape[1], (q.shape[2], k.shape[2])
    pairs = rows * (rows + 1) // 2 if is_causal else rows * columns
    at_once = min(rows, ROWS_AT_ONCE)
    scores = Product(batch, at_once, q.shape[3], columns)
    values = Product(batch, at_once, columns, v.shape[3])
    return [(scores, 2 * batch * pairs * q.shape[3]), (values, 2 * batch * pairs * v.shape[3])]


def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    dropout_p: float,
    is_causal: bool,
    **_: Any,
) -> list[tuple[Product, int]]:
    """Five products for the forward's two: the scores again, and the gradients of weights, values, queries and keys.

    Dao et al. 2022, FlashAttention (arXiv:2205.14135), algorithm 4.
    """
    (scores, once), (values, for_values) = _attention(q, k, v, dropout_p, is_causal)
    return [(scores, 3 * once), (values, 2 * for_values)]


def _triangular_solve(matrix: Tensor, right: Tensor, **_: Any) -> list[tuple[Product, int]]:
    size, columns = right.shape[-2:]
    batch = right.shape[:-2].numel()
    return [(Product(batch, size, size, columns), batch * size * size * columns)]


_PRODUCTS: dict[Any, Callable[..., list[tuple[Product, int]]]] = {
    aten.mm: _plain,
    aten.bmm: _plain,
    aten.addmm: lambda bias, left, right, **_: _plain(left, right),
    aten.baddbmm: lambda bias, left, right, **_: _plain(left, right),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.linalg_solve_triangular: _triangular_solve,
}


def _rule(operation: Any) -> Callable[..., int]:
    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return sum(spent for _, spent in _PRODUCTS[operation](*args, **kwargs))

    flops._get_raw = True  # type: ignore[attr-defined]  # the counter passes tensors rather than shapes
    return flops


_RULES = {
    operation: _rule(operation)
    for operation in (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
        aten.linalg_solve_triangular,
    )
}


# -- The formula ----------------------------------------------------------------------------------


def expected(config: ModelConfig, n: int) -> int:
    """Operations of `TransformerLM.encode` on one row of n tokens, from the sizes alone.

    What the counter is checked against. Written for the options of `ModelConfig` that are set by default.
    """
    mix, feed = _MIXING[config.mechanism](config, n), 4 * n * config.hidden_dim * config.ff_dim
    return config.num_layers * (mix + feed)


def expected_backward(config: ModelConfig, n: int) -> int:
    """Operations of the gradients that `count_passes` counts, from the sizes alone.

    The gradients of a product are two products of its size, so it is twice the forward pass but for three things: fused
    attention makes five products for two, a triangular solve is followed by a whole product, and constants, as well as
    what no output depends on, have no gradient.
    """
    return 2 * expected(config, n) + config.num_layers * _BEYOND_TWICE[config.mechanism](config, n)


def _whole(n: int, size: int) -> int:
    """n rounded up to a multiple of `size`."""
    return -(-n // size) * size


def _projections(config: ModelConfig, n: int) -> int:
    return 2 * n * config.hidden_dim * 4 * config.hidden_dim


def _causal(config: ModelConfig, n: int) -> int:
    return 2 * n * (n + 1) * config.hidden_dim


def _pieces(n: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """The chunks, and the tokens of one, in each of the pieces of 32 chunks that a scan takes in turn."""
    for start in range(0, n, 32 * chunk_size):
        tokens = min(n - start, 32 * chunk_size)
        yield -(-tokens // min(chunk_size, tokens)), min(chunk_size, tokens)


def _hopfield(config: ModelConfig, n: int) -> int:
    return _projections(config, n) + config.num_steps * _causal(config, n)


def _bsbr(config: ModelConfig, n: int) -> int:
    size, d, p = config.chunk_size, config.hidden_dim, config.hidden_dim // config.num_heads
    meta = 4 * (n // size) * d * d
    if n <= size:
        return _projections(config, n) + _causal(config, n) + meta
    padded = _whole(n, size)
    retrieving = padded // size - 1
    states, read = 2 * retrieving * size * p * d, 2 * padded * p * d
    mixing = 2 * retrieving**2 * d + 2 * retrieving**2 * p * d
    return _projections(config, n) + padded // size * _causal(config, size) + meta + states + mixing + read


def _linear(config: ModelConfig, n: int) -> int:
    p, heads = config.hidden_dim // config.num_heads, config.num_heads
    flops = _projections(config, n)
    for chunks, size in _pieces(n, 64):
        inside = 2 * chunks * size * size * (2 * p + 1)
        sums_and_reading = 4 * chunks * size * p * (p + 1) + 2 * (chunks + 1) * chunks * p * (p + 1)
        flops += heads * (inside + sums_and_reading)
    return flops


def _deltanet(config: ModelConfig, n: int) -> int:
    d, p = config.hidden_dim, config.hidden_dim // config.num_heads
    flops = _projections(config, n) + (2 * n * d * config.num_heads if config.beta is None else 0)
    for chunks, size in _pieces(n, 64):
        tokens = chunks * size
        inside = 2 * tokens * size * d * (1 + 1 + 2 + 2)  # K Kᵀ, Q Kᵀ, T [K, V] and A [W, U]
        solve = tokens * size * size * config.num_heads
        outside = 2 * tokens * p * d * 3 + 2 * chunks * p * p * d  # Kᵀ [W, U], reading; S from chunk to chunk
        flops += inside + solve + outside
    return flops


def _sliding_window(config: ModelConfig, n: int) -> int:
    window, d = config.window_size, config.hidden_dim
    if n <= window:
        return _projections(config, n) + _causal(config, n)
    block = max(window // 4, 32)
    rest = 4 * _whole(n - window, block) * (window + block) * d
    return _projections(config, n) + _causal(config, window) + rest


def _gau(config: ModelConfig, n: int) -> int:
    d, s, e = config.hidden_dim, config.key_dim, config.expansion * config.hidden_dim
    flops = 2 * n * d * (3 * e + s)
    for chunks, size in _pieces(n, config.chunk_size):
        inside = 2 * chunks * size * size * (s + e)
        flops += inside + 4 * chunks * size * s * e + 2 * (chunks + 1) * chunks * s * e
    return flops


_MIXING: dict[str, Callable[[ModelConfig, int], int]] = {
    "standard": lambda config, n: _projections(config, n) + _causal(config, n),
    "bsbr": _bsbr,
    "linear": _linear,
    "deltanet": _deltanet,
    "sliding_window": _sliding_window,
    "hopfield": _hopfield,
    "gau": _gau,
}


def _bsbr_beyond_twice(config: ModelConfig, n: int) -> int:
    size, d = config.chunk_size, config.hidden_dim
    if n <= size:  # the meta query and key of a chunk that nothing follows
        return _causal(config, n) // 2 - 8 * (n // size) * d * d
    return _whole(n, size) // size * _causal(config, size) // 2


def _linear_beyond_twice(config: ModelConfig, n: int) -> int:
    p, heads = config.hidden_dim // config.num_heads, config.num_heads
    return -sum(2 * (chunks + 1) * chunks * p * (p + 1) * heads for chunks, _ in _pieces(n, 64))  # triangle of ones


def _deltanet_beyond_twice(config: ModelConfig, n: int) -> int:
    d, p, pieces = config.hidden_dim, config.hidden_dim // config.num_heads, list(_pieces(n, 64))
    solves = sum(chunks * size**3 * config.num_heads for chunks, size in pieces)
    last_chunks, last_size = pieces[-1]
    unused = 4 * p * p * d  # the state behind the last chunk
    if last_chunks == 1:
        unused += 8 * last_size * p * d  # what a chunk on its own would write to it
    start = 2 * p * d * (last_size if n <= 64 else p)  # the constant that the first chunk reads or goes on from
    return solves - unused - start


def _sliding_window_beyond_twice(config: ModelConfig, n: int) -> int:
    return (_sliding_window(config, n) - _projections(config, n)) // 2


def _gau_beyond_twice(config: ModelConfig, n: int) -> int:
    s, e = config.key_dim, config.expansion * config.hidden_dim
    return -sum(2 * (chunks + 1) * chunks * s * e for chunks, _ in _pieces(n, config.chunk_size))  # triangle of ones


_BEYOND_TWICE: dict[str, Callable[[ModelConfig, int], int]] = {
    "standard": lambda config, n: _causal(config, n) // 2,
    "bsbr": _bsbr_beyond_twice,
    "linear": _linear_beyond_twice,
    "deltanet": _deltanet_beyond_twice,
    "sliding_window": _sliding_window_beyond_twice,
    "hopfield": lambda config, n: config.num_steps * _causal(config, n) // 2,
    "gau": _gau_beyond_twice,
}
