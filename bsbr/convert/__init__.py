"""Pretrained Hugging Face models with BSBR attention."""

import sys
from types import ModuleType

from bsbr.convert.calibration import calibrate, least_sensitive, sensitivity
from bsbr.convert.config import ConversionConfig
from bsbr.convert.converter import convert, from_pretrained
from bsbr.convert.loading import load, load_tokenizer

__all__ = [
    "ConversionConfig",
    "calibrate",
    "convert",
    "from_pretrained",
    "least_sensitive",
    "load",
    "load_tokenizer",
    "sensitivity",
]


class _CallableModule(ModuleType):
    """Once this package is imported, `bsbr.convert` is the package: it must be callable as the function is."""

    __call__ = staticmethod(convert)


sys.modules[__name__].__class__ = _CallableModule
