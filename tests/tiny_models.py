"""Models of every architecture that can be converted, small and with random weights, and settings for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from bsbr.conversion import ConversionConfig, calibrate, convert

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

TOKENS = dict(vocab_size=97, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256) | TOKENS
LLAMA_LIKE = SIZES | dict(intermediate_size=48, num_key_value_heads=2)
DROPOUTS = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
MAKERS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **TOKENS, **DROPOUTS)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=48, **SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **LLAMA_LIKE)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(no_rope_layer_interval=2, **LLAMA_LIKE)),
}
CONFIGS = {
    "top-k": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=4, top_k=2, block_size=4),
    "both": ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=3, retrieval="both", top_k=1),
    "calibrated": ConversionConfig(
        chunk_size=8, local_chunks=1, sink_tokens=3, retrieval="states", compression_factor=2, layers=(1,)
    ),
}
ROUNDING = dict(rtol=1e-4, atol=1e-4)  # weights from a file lie elsewhere in memory, and are summed in another order
architectures = pytest.mark.parametrize("kind", MAKERS)
settings = pytest.mark.parametrize("name", CONFIGS)


def original(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return MAKERS[kind]().eval().to(dtype)


def grouped_llama() -> LlamaForCausalLM:
    """A Llama of which two query heads share each key and value head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (batch, n), generator=torch.Generator().manual_seed(seed))


def converted(kind: str, name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A converted model; where it is called calibrated, with numbers as a calibration might leave them."""
    model = convert(original(kind, dtype), CONFIGS[name])
    if name == "calibrated":
        calibrate(model, [tokens(1, 40)], steps=2)
    return model
