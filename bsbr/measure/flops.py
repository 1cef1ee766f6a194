"""The one counter of floating-point operations, and the rate at which this machine multiplies the same matrices.

A multiplication and an addition are two operations. `torch.utils.flop_counter` counts matrix products. It has no
rule for three of our operations, so they get one here: the fused attention kernel of CPUs and its gradient, counted
for the pairs of tokens that a causal mask lets through, which is the work to be done; and the triangular solve of
`deltanet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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
    """Operations of the forward pass, and of the gradients of all weights behind it.

    Examples:
        >>> from bsbr.measure.flops import Passes
        >>> passes = Passes(forward=12000, backward=24000)
        >>> sum(passes)
        36000
    """

    forward: int  # operations of the forward pass
    backward: int  # of the gradients


def count(run: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products in one call of `run`.

    Args:
        run: the call.

    Examples:
        >>> import torch
        >>> from bsbr.measure import flops
        >>> flops.count(lambda: torch.ones(10, 20) @ torch.ones(20, 30))
        12000
    """
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter:
        run()
    return int(counter.get_total_flops())


def count_passes(forward: Callable[[], Tensor]) -> Passes:
    """Operations of one call of `forward`, and of the gradients of the sum of what it returns.

    The tensors have shapes and no numbers, so any size is counted without its memory and without its arithmetic. That
    holds for tensors made inside the call, which must therefore make its model, and look at no values.

    Args:
        forward: makes its model and returns what that gives.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from bsbr.measure import flops
        >>> flops.count_passes(lambda: nn.Linear(20, 30)(torch.ones(10, 20)))
        Passes(forward=12000, backward=12000)
    """
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=_RULES) as counter:
        out = forward()
        ahead = int(counter.get_total_flops())
        out.sum().backward()
    return Passes(ahead, int(counter.get_total_flops()) - ahead)


def products(run: Callable[[], object]) -> dict[Product, int]:
    """The matrix products in one call of `run`: each shape with the operations spent on it.

    Attention stands as its two products over blocks of rows, with the operations that the causal mask leaves.

    Args:
        run: the call.

    Examples:
        >>> import torch
        >>> from bsbr.measure import flops
        >>> flops.products(lambda: torch.ones(10, 20) @ torch.ones(20, 30))
        {Product(batch=1, rows=10, inner=20, columns=30): 12000}
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

    Examples:
        >>> import torch
        >>> from bsbr.measure import flops
        >>> work = lambda: torch.ones(10, 20) @ torch.ones(20, 30)
        >>> flops.count(flops.alone(flops.products(work)))
        12000
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
