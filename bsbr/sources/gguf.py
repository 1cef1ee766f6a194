"""Unpacking a GGUF. It stands alone, so that what was unpacked is kept whatever else of the sources' code changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def unpack(gguf: Path, folder: Path) -> None:
    """Model and tokenizer of a GGUF as a Hugging Face folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **settings)
    # Transformers saves no model whose config says that its weights were packed.
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = type(model)(type(model.config)(**config)).float()
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **settings).save_pretrained(folder)
