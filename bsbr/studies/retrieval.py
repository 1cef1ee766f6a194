"""What does the work in BSBR: models each of which changes one part of its retrieval, beside standard attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from bsbr.config import ModelConfig

TOP = 2  # chunks, where the best few are read
# By name the mechanism and its options. Each of the others differs from `bsbr` in one thing.
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "standard": {"mechanism": "standard"},
        "bsbr": {"mechanism": "bsbr"},
        "no retrieval": {"mechanism": "bsbr", "retrieval": "none"},
        "equal weights": {"mechanism": "bsbr", "retrieval": "uniform"},
        "choice by token": {"mechanism": "bsbr", "retrieval": "per_token"},
        f"best {TOP}": {"mechanism": "bsbr", "top_k": TOP},
        f"best {TOP}, read exactly": {"mechanism": "bsbr", "retrieval": "exact", "top_k": TOP},
        "corrected states": {"mechanism": "bsbr", "chunk_encoder": "delta"},
        "one normaliser": {"mechanism": "bsbr", "normaliser": "shared"},
    }
)


def models(names: Iterable[str], **sizes: int) -> dict[str, ModelConfig]:
    """The backbone of each variant, all of the same sizes.

    Args:
        names: of `VARIANTS`.
        sizes: fields of `ModelConfig`, such as `hidden_dim` and `chunk_size`.

    Raises:
        ValueError: there is no such variant, or a size is out of range.
    """
    names = list(names)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"names must be of {', '.join(VARIANTS)}, but one is {unknown[0]!r}")
    return {name: ModelConfig(**{**VARIANTS[name], **sizes}) for name in names}
