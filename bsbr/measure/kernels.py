"""What a call starts: each operation that computes, with its floating-point operations and the bytes that it moves.

An operation that only looks at a tensor in another way moves nothing. Any other reads each tensor it is given once and
writes each tensor it makes once; what a cache or a fused kernel saves is not known here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bsbr.measure import flops

aten = torch.ops.aten
_WITHOUT_WRITING = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided}
_VIEWS = {aten._unsafe_view, aten._reshape_alias, aten.detach}  # beside those that say so themselves
_OF_ROWS = {aten.embedding}  # reads as much of its first argument as it writes


class Kernel(NamedTuple):
    """One operation of a device: `flops` of matrix products, and `bytes` read and written.

    Examples:
        >>> from bsbr.measure.kernels import Kernel
        >>> Kernel("product", flops=12000, bytes=4400)
        Kernel(kind='product', flops=12000, bytes=4400)
    """

    kind: Literal["product", "attention", "other"]  # matrix products, a fused attention, or neither
    flops: int  # operations of matrix products, two for a multiplication and an addition
    bytes: int  # read and written


def of(run: Callable[[], object]) -> Counter[Kernel]:
    """The kernels of one call of `run`, each with how often it is started, gradients included if the call takes them.

    Under `FakeTensorMode`, any size is counted without its memory and without its arithmetic.

    Args:
        run: the call.

    Examples:
        >>> import torch
        >>> from bsbr.measure import kernels
        >>> kernels.of(lambda: torch.ones(10, 20).t().t() @ torch.ones(20, 30))
        Counter({Kernel(kind='other', flops=0, bytes=800): 1, Kernel(kind='other', flops=0, bytes=2400): 1, ...
    """
    with _Recorder() as recorder:
        run()
    return recorder.found


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Kernel] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a tensor without numbers is asked where it is
            return func(*args, **kwargs)
        spent = flops._PRODUCTS.get(func.overloadpacket, flops._none)(*args, **kwargs)
        if not spent and torch.is_inference_mode_enabled():  # there operations such as linear and matmul arrive whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not func.is_view and func.overloadpacket not in _VIEWS:
            moved = _moved(func.overloadpacket, (args, kwargs), out)
            if spent or moved:
                attention = "scaled_dot_product" in func.overloadpacket.__name__
                kind: Any = "attention" if attention else "product" if spent else "other"
                self.found[Kernel(kind, sum(operations for _, operations in spent), moved)] += 1
        return out


def _moved(operation: Any, given: Any, made: Any) -> int:
    if operation in _WITHOUT_WRITING:
        return 0
    read = sum(_held(x) for x in {id(x): x for x in tree_leaves(given) if isinstance(x, Tensor)}.values())
    written = sum(_held(x) for x in tree_leaves(made) if isinstance(x, Tensor))
    return 2 * written if operation in _OF_ROWS else read + written


def _held(x: Tensor) -> int:
    """Bytes of what a tensor shows, each number once: dimensions that repeat a number show it often."""
    return x.element_size() * math.prod(
        size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size
    )
