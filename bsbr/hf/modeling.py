"""`TransformerLM` behind the interface of `transformers`: what to read, to keep and to refuse; no mathematics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple

from bsbr.hf.cache import BSBRCache, put_rows, select_rows
from bsbr.hf.configuration import BSBRConfig
from bsbr.model import ModelState, TransformerLM

OF_THE_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")
WITHOUT_MEANING = ("token_type_ids",)  # tokenizers give them where a text has one part
REFUSED = {
    "output_attentions": "no mechanism forms such weights on its way; see bsbr.studies.attention_maps",
    "inputs_embeds": "the model reads input_ids only; give those",
    "position_ids": "positions are counted from attention_mask; leave them out",
}


class BSBRForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model of any mechanism for `generate`, `Trainer`, `peft` and what else reads such models.

    Its `model` is the `TransformerLM` itself, so a weight is called as there with `model.` before it. Folders of either
    class are read by both. Input and output embeddings are one. A row is read as it would be alone, however it is
    padded; new tokens after a filled cache are read one by one, as decoded ones are.

    What it refuses, in a sentence: `output_attentions`, `inputs_embeds`, `position_ids`, caches of other models, caches
    of a fixed size, and assisted decoding, for which tokens would have to be taken back.

    Args:
        config: of the model, with the options of its backbone.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.hf import BSBRForCausalLM
        >>> backbone = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8))
        >>> model = BSBRForCausalLM.from_backbone(backbone.eval())
        >>> ids = torch.randint(100, (1, 20))
        >>> model(ids, labels=ids).loss.item() > 0
        True
        >>> model.generate(ids, max_new_tokens=5, do_sample=False).shape
        torch.Size([1, 25])
    """

    config_class = BSBRConfig
    config: BSBRConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True

    def __init__(self, config: BSBRConfig) -> None:
        super().__init__(config)
        self.model = TransformerLM(config.model_config)
        for parameter in self.model.parameters():
            if not parameter.is_meta:
                _mark_as_given(parameter)
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: TransformerLM) -> BSBRForCausalLM:
        """The same model, with the same weights in the same memory, behind this interface.

        Args:
            backbone: the model that is to be read through it.
        """
        config = BSBRConfig(backbone=asdict(backbone.config), dtype=backbone.embedding.weight.dtype)
        with torch.device("meta"):
            model = cls(config)
        model.model = backbone
        return model.train(backbone.training)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, whose weights are those of the output too."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another embedding in its place. Its size is the new `vocab_size`."""
        self.model.embedding = value
        self.config.vocab_size = self.model.embedding.num_embeddings
        self.model.config = self.config.model_config

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "batch n"] | None = None,
        attention_mask: Int[Tensor, "batch past_and_n"] | None = None,
        past_key_values: BSBRCache | None = None,
        labels: Int[Tensor, "batch n"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next tokens, and with `labels` their mean cross-entropy in nats.

        Args:
            input_ids: tokens; those after what `past_key_values` has read, if that is given.
            attention_mask: 1 at tokens and 0 at padding, of these columns or of all that were read so far.
            past_key_values: goes on from there, and is changed by it.
            labels: token ids, −100 where none is to be told. They are shifted here: give those of `input_ids`.
            use_cache: return a cache; by default as the config says, and not in training.
            output_hidden_states: return what enters each block, (batch, n, hidden_size), and the last norm's output.
            logits_to_keep: of how many columns from the right logits are returned, 0 for all; or their numbers.
            kwargs: those of the loss: num_items_in_batch, ignore_index, shift_labels.

        Raises:
            ValueError: an argument that this model does not read; as `TransformerLM.encode` and `TransformerLM.step`.
        """
        if input_ids is None:
            raise ValueError(f"input_ids must be given: {REFUSED['inputs_embeds']}")
        of_the_loss = self._checked(kwargs)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = _cache(past_key_values, bool(use_cache))
        with_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        mask = _new_columns(input_ids, attention_mask, cache)
        if cache is not None and cache.state is not None:
            logits, hidden = self._continue(input_ids, mask, cache, logits_to_keep, bool(with_hidden))
        else:
            hidden = self._encode(input_ids, mask, cache, bool(with_hidden))
            logits = self.model._logits(slice_logits_to_keep(hidden[-1], logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **of_the_loss)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache, hidden_states=hidden if with_hidden else None
        )

    def _encode(
        self, input_ids: Tensor, mask: Tensor | None, cache: BSBRCache | None, every: bool
    ) -> tuple[Tensor, ...]:
        """The last hidden states, and before them what enters each block, if `every` one is wanted."""
        with _recorded(self.model, every) as found:
            if cache is None:
                last = self.model.encode(input_ids, mask)
            else:
                x, state = self.model._read(input_ids, mask)
                last = _put_back(self.model.norm(x), mask)
                cache.put(state, input_ids.shape[1])
        return (*(_put_back(x, mask) for x in found[:-1]), last)

    def _continue(
        self, input_ids: Tensor, mask: Tensor | None, cache: BSBRCache, logits_to_keep: int | Tensor, every: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Read new columns one by one after what the cache has read: their logits, and hidden states if wanted."""
        some = isinstance(logits_to_keep, int) and logits_to_keep > 0
        logits: deque[Tensor] = deque(maxlen=logits_to_keep if some else None)  # type: ignore[arg-type]
        hidden: list[list[Tensor]] = []
        for column, ids in enumerate(input_ids.unbind(1)):
            assert cache.state is not None
            with _recorded(self.model, every) as found:
                given, state = _step(self.model, ids, None if mask is None else mask[:, column].bool(), cache.state)
            logits.append(given)
            hidden.append(found)
            cache.put(state, 1)
        kept = torch.stack(list(logits), dim=1)
        kept = kept if some else slice_logits_to_keep(kept, logits_to_keep)
        return kept, tuple(torch.stack(layer, dim=1) for layer in zip(*hidden, strict=True)) if every else None

    def _checked(self, others: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the loss among the others, none of which may be one that is not read."""
        for name, value in others.items():
            if name in OF_THE_LOSS or name in WITHOUT_MEANING or value is None or value is False:
                continue
            raise ValueError(f"{name} must be left out: {REFUSED.get(name, 'this model does not read it')}")
        if self.config.output_attentions:
            raise ValueError(f"output_attentions must be False in the config: {REFUSED['output_attentions']}")
        return {name: others[name] for name in OF_THE_LOSS if name in others}

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw the weights that no file gave, as the backbone draws them."""
        wanted = {name: x for name, x in self.model.named_parameters() if not (x.is_meta or _is_given(x))}
        if wanted:
            fresh = TransformerLM(self.config.model_config)
            for name, parameter in wanted.items():
                parameter.copy_(fresh.get_parameter(name))
                _mark_as_given(parameter)
        super().initialize_weights()

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """The cache that `generate` begins with. Raises ValueError where another kind is asked for."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation must be None, but is {kind!r}: this model decodes from the states of its "
                "mechanism, which a BSBRCache holds"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = BSBRCache()

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `generate` gives to `forward`. Raises ValueError if a prompt ends with padding."""
        mask = kwargs.get("attention_mask")
        if kwargs.get("is_first_iteration") and mask is not None and not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask must end with a token in every row, but some end with padding, after which there is no "
                "next token; pad on the left, with tokenizer.padding_side = 'left'"
            )
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc,arg-type]

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """Read the settings of `generate` beside the weights; a mechanism's `top_k` is not taken for one of them."""
        own = self.generation_config
        super().adjust_generation_fn(*args, **kwargs)  # type: ignore[misc]
        if getattr(self.generation_config, "_from_model_config", False):
            self.generation_config = own


def _is_given(parameter: Tensor) -> bool:
    """Whether transformers takes a weight for one that needs not be drawn any more."""
    return getattr(parameter, "_is_hf_initialized", False)


def _mark_as_given(parameter: Tensor) -> None:
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]


def _cache(given: Any, wanted: bool) -> BSBRCache | None:
    if given is None:
        return BSBRCache() if wanted else None
    if not isinstance(given, BSBRCache):
        raise ValueError(
            f"past_key_values must be a BSBRCache, such as this model returns, but is a {type(given).__name__}; leave "
            "it out to begin a text"
        )
    return given


def _new_columns(input_ids: Tensor, attention_mask: Tensor | None, cache: BSBRCache | None) -> Tensor | None:
    """The mask of the new columns; None where they are tokens all."""
    if attention_mask is None:
        return None
    past, (batch, new) = 0 if cache is None else cache.columns, input_ids.shape
    if tuple(attention_mask.shape) not in ((batch, new), (batch, past + new)):
        raise ValueError(
            f"attention_mask must have a column for each of the {new} of input_ids, or for these and the {past} before "
            f"them, but has shape {tuple(attention_mask.shape)}"
        )
    mask = attention_mask[:, -new:]
    return None if bool((mask == 1).all()) else mask


def _put_back(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows whose tokens were packed to the left, with each token in its column again, and 0 at padding."""
    if mask is None:
        return x
    real = mask.bool()
    place = (real.cumsum(1) - 1).clamp(min=0)[..., None]
    return x.gather(1, place.expand_as(x)).masked_fill(~real[..., None], 0.0)


def _step(
    model: TransformerLM, ids: Int[Tensor, " batch"], real: Bool[Tensor, " batch"] | None, state: ModelState
) -> tuple[Float[Tensor, "batch vocab_size"], ModelState]:
    """One more token of each row that has one; the others' states stay, and their logits are 0."""
    if real is None or bool(real.all()):
        return model.step(ids, state)
    waiting = (~real).nonzero()[:, 0]
    before = select_rows(state, waiting)
    logits, state = model.step(ids, state)
    return logits.masked_fill(~real[:, None], 0.0), put_rows(state, waiting, before)


@contextmanager
def _recorded(model: TransformerLM, wanted: bool) -> Iterator[list[Tensor]]:
    """Within it, a list grows by what enters each block, and by the output of the last norm, if that is wanted."""
    found: list[Tensor] = []
    if not wanted:
        yield found
        return
    handles = [
        block.mixer_norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for block in model.blocks
    ]
    handles.append(model.norm.register_forward_hook(lambda _, inputs, output: found.append(output)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
