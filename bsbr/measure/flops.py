"""The one counter of floating-point operations, and the rate at which this machine multiplies the same matrices.

A multiplication and an addition are two operations. `torch.utils.flop_counter` counts matrix products. It has no
rule for two of our operations, so both get one here: the fused attention kernel of CPUs, counted for the pairs of tokens
that a causal mask lets through, which is the work that has to be done; and the triangular solve of `deltanet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bsbr.measure import speed

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


def count(run: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products in one call of `run`."""
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter:
        run()
    return int(counter.get_total_flops())


def products(run: Callable[[], object]) -> dict[Product, int]:
    """The matrix products in one call of `run`: each shape with the operations spent on it.

    Attention stands as its two products over blocks of rows, with the operations that the causal mask leaves.
    """
    with _Recorder() as recorder:
        run()
    return dict(recorder.spent)


def seconds_alone(spent: Mapping[Product, int], seconds: float = 0.2) -> dict[Product, float]:
    """How long the operations of each shape take at the rate at which PyTorch multiplies that shape by itself.

    Args:
        spent: operations a shape, as `products` returns them.
        seconds: time spent on measuring one shape.
    """
    return {shape: flops / _rate(shape, seconds) for shape, flops in spent.items()}


def _rate(shape: Product, seconds: float) -> float:
    batch, rows, inner, columns = shape
    left, right = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
    out = torch.empty(batch, rows, columns)
    multiply = torch.mm if batch == 1 else torch.bmm
    if batch == 1:
        left, right, out = left[0], right[0], out[0]
    with torch.inference_mode():
        samples = speed.interleave({"product": lambda: multiply(left, right, out=out)}, seconds=seconds, block=0.005)
    return shape.flops / speed.median(samples["product"]).value


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
    aten.linalg_solve_triangular: _triangular_solve,
}


def _rule(operation: Any) -> Callable[..., int]:
    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return sum(spent for _, spent in _PRODUCTS[operation](*args, **kwargs))

    flops._get_raw = True  # type: ignore[attr-defined]  # the counter passes tensors rather than shapes
    return flops


_RULES = {
    operation: _rule(operation)
    for operation in (aten._scaled_dot_product_flash_attention_for_cpu, aten.linalg_solve_triangular)
}
