"""Pretrained Hugging Face models with BSBR attention."""

from bsbr.convert.config import ConversionConfig
from bsbr.convert.converter import convert

__all__ = ["ConversionConfig", "convert"]
