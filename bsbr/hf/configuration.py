"""A `ModelConfig` in the form that `transformers` saves, loads and asks for sizes."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from bsbr.config import ModelConfig
from bsbr.saving import MODEL_TYPE

NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ff_dim",
}  # what transformers calls a size, and what the backbone does
OPTIONS = tuple(field.name for field in fields(ModelConfig))


def _size(option: str) -> property:
    def get(self: BSBRConfig) -> int:
        return (self.backbone or {})[option]

    def put(self: BSBRConfig, value: int) -> None:
        self.backbone = asdict(ModelConfig(**{**(self.backbone or {}), option: value}))

    return property(get, put)


class BSBRConfig(PretrainedConfig):
    """The config of a `BSBRForCausalLM`: `BSBRConfig(mechanism="bsbr", chunk_size=64, hidden_dim=256)`.

    Options of `ModelConfig` are given by name, and kept together in `backbone`, since `transformers` has a `top_k` of
    its own. Sizes also have the names that `transformers` asks for: `vocab_size`, `hidden_size`, `num_hidden_layers`,
    `num_attention_heads`, `intermediate_size`.

    Args:
        backbone: options of `ModelConfig` by name. Those given on their own come before these. The mechanism is
            `"bsbr"` where none is named.
        bos_token_id, eos_token_id, pad_token_id: of the tokenizer that belongs to the model.
        use_cache: whether `generate` decodes from a cache, and `forward` outside training returns one.
        kwargs: options of `ModelConfig`, and those of `transformers.PretrainedConfig`.

    Raises:
        ValueError: as `ModelConfig`.

    Examples:
        >>> from bsbr.hf import BSBRConfig
        >>> config = BSBRConfig(mechanism="bsbr", chunk_size=64, hidden_dim=128)
        >>> config.hidden_size, config.model_config.chunk_size
        (128, 64)
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (so it is named and typed in transformers)

    backbone: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    vocab_size = _size("vocab_size")
    hidden_size = _size("hidden_dim")
    num_hidden_layers = _size("num_layers")
    num_attention_heads = _size("num_heads")
    intermediate_size = _size("ff_dim")

    if TYPE_CHECKING:  # which sees the fields alone

        def __init__(self, **kwargs: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        options = {"mechanism": "bsbr", **(self.backbone or {})}
        for name in [*NAMES, *OPTIONS]:
            if name in kwargs:
                options[NAMES.get(name, name)] = kwargs.pop(name)
        self.backbone = asdict(ModelConfig(**options))
        super().__post_init__(**kwargs)

    @property
    def model_config(self) -> ModelConfig:
        """The config of the backbone."""
        return ModelConfig(**(self.backbone or {}))
