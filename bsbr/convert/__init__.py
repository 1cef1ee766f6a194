"""Pretrained Hugging Face models with BSBR attention."""

import sys
from types import ModuleType

from bsbr.convert.config import ConversionConfig
from bsbr.convert.converter import convert

__all__ = ["ConversionConfig", "convert"]


class _CallableModule(ModuleType):
    """Once this package is imported, `bsbr.convert` is the package: it must be callable as the function is."""

    __call__ = staticmethod(convert)


sys.modules[__name__].__class__ = _CallableModule
