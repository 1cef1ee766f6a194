"""The settings of a conversion that more than one experiment tries, by the names that tables and pages use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from bsbr.conversion.config import ConversionConfig

ORIGINAL = "original"  # the model as it was, which stands among the settings in every table

NEIGHBOURS = ConversionConfig(chunk_size=128, local_chunks=2, sink_tokens=4, retrieval="none")
STATES = replace(NEIGHBOURS, retrieval="states")
FINE_STATES = replace(STATES, chunk_size=32, local_chunks=8, compression_factor=8)
TOP_16 = ConversionConfig(chunk_size=128, local_chunks=2, sink_tokens=32, retrieval="top_k", top_k=16, block_size=32)
SETTINGS = {
    "local": replace(NEIGHBOURS, local_chunks=1, sink_tokens=0),
    "neighbours": NEIGHBOURS,
    "states": STATES,
    "fine states": FINE_STATES,
    "top-8": replace(TOP_16, top_k=8),
    "top-16": TOP_16,
    "top-32": replace(TOP_16, top_k=32),
    "both": replace(TOP_16, retrieval="both", top_k=4),
    "top-16 per token": replace(TOP_16, retrieval="top_k_per_token"),
}


def default(settings: Mapping[str, ConversionConfig]) -> str:
    """The name of what `convert` does unless told otherwise. Raises ValueError if it is not among the settings."""
    for name, config in settings.items():
        if config == ConversionConfig():
            return name
    raise ValueError(f"settings must hold the converter's default, but are {', '.join(settings)}")


def columns(name: str, config: ConversionConfig) -> dict[str, Any]:
    """A setting as factors of a table; what its retrieval does not use stays empty, and compression 0 is none."""
    return {
        "setting": name,
        "chunk_size": config.chunk_size,
        "local_chunks": config.local_chunks,
        "sink_tokens": config.sink_tokens,
        "retrieval": config.retrieval,
        "top_k": config.top_k if config.retrieves_blocks else None,
        "block_size": config.block_size if config.retrieval.startswith("top_k") else None,
        "compression_factor": config.compression_factor or 0,
    }


def frame(settings: Mapping[str, ConversionConfig]) -> pd.DataFrame:
    """One line a setting: its name and `columns`."""
    return pd.DataFrame([columns(name, config) for name, config in settings.items()]).convert_dtypes()


def parameters(settings: Mapping[str, ConversionConfig]) -> dict[str, dict[str, Any]]:
    """The same for the record of a table, whole."""
    return {name: asdict(config) for name, config in settings.items()}
