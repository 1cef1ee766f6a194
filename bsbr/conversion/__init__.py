"""Pretrained Hugging Face models with BSBR attention."""

from bsbr.conversion.calibration import calibrate
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.converter import convert, from_pretrained
from bsbr.conversion.loading import load, load_tokenizer

__all__ = [
    "ConversionConfig",
    "calibrate",
    "convert",
    "from_pretrained",
    "load",
    "load_tokenizer",
]
