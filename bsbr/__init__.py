"""BSBR: block sparse attention with block retrieval, six architectures to compare it with, and what measures them.

The public names are imported when they are first used, so that reading results (`bsbr.store`) needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsbr.config import ModelConfig
    from bsbr.conversion import ConversionConfig, convert
    from bsbr.mechanisms import MECHANISMS
    from bsbr.model import TransformerLM

__version__ = "0.1.0"

__all__ = ["MECHANISMS", "ConversionConfig", "ModelConfig", "TransformerLM", "convert"]

_HOME = {
    "MECHANISMS": "bsbr.mechanisms",
    "ModelConfig": "bsbr.config",
    "TransformerLM": "bsbr.model",
    "ConversionConfig": "bsbr.conversion",
    "convert": "bsbr.conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bsbr' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
