"""One backbone for all mechanisms: a decoder-only transformer whose mixers are chosen by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bsbr import mixers, saving
from bsbr.config import ModelConfig
from bsbr.mixers import Mixer
from bsbr.rotary import Rotary
from bsbr.short_conv import ShortConvState

MOST_NEW_TOKENS = 2**20


class ModelState(NamedTuple):
    """What decoding goes on from: each layer's mixer state, and how many tokens each row has read.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> config = ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8)
        >>> model = TransformerLM(config).eval()
        >>> with torch.inference_mode():
        ...     _, state = model.prefill(torch.randint(100, (2, 20)))
        >>> len(state.layers), state.length.tolist()
        (2, [20, 20])
    """

    layers: tuple[Any, ...]  # each layer's mixer state
    length: Int[Tensor, " batch"]  # tokens that each row has read


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a decoding state (nested tuples)."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from leaves(part)


class Block(nn.Module):
    """Pre-norm residual block: mixer, then feed-forward. Takes and gives (batch, n, hidden_dim), a step one token."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.hidden_dim)
        self.mixer: Mixer = mixers.make(config, layer)
        self.ff_norm = nn.LayerNorm(config.hidden_dim)
        self.ff = nn.Sequential(
            nn.Linear(config.hidden_dim, config.ff_dim, bias=False),
            nn.GELU(),
            nn.Linear(config.ff_dim, config.hidden_dim, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary) -> Float[Tensor, "batch n hidden_dim"]:
        """A whole sequence."""
        return self._feed(x, self.mixer(self.mixer_norm(x), rotary))

    def prefill(self, x: Tensor, rotary: Rotary, lengths: Tensor) -> tuple[Tensor, Any]:
        """A whole sequence, and the mixer's state after the first `lengths` tokens of each row."""
        mixed, state = self.mixer.prefill(self.mixer_norm(x), rotary, lengths)
        return self._feed(x, mixed), state

    def step(self, x: Float[Tensor, "batch hidden_dim"], rotary: Rotary, state: Any) -> tuple[Tensor, Any]:
        """One more token, and the mixer's next state."""
        mixed, state = self.mixer.step(self.mixer_norm(x), rotary, state)
        return self._feed(x, mixed), state

    def _feed(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ff(self.ff_norm(x)))


class TransformerLM(nn.Module):
    """A causal language model with tied embeddings and rotary positions, for any sequence length ≥ 1.

    `attention_mask` marks real tokens with 1 (or True) and padding with 0, anywhere in a row. Each row's real tokens
    are packed to the left before the first layer and put back after the last, so that a row gets what it would get
    alone: same positions, same chunks. Outputs at padding are zero in `encode`. Which ids stand at padding, and whether
    their embeddings are finite, makes no difference.

    Args:
        config: sizes, mechanism and its options.

    Raises:
        ValueError: `config` is not a `ModelConfig`, or has an option that does not fit its mechanism.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> config = ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8)
        >>> model = TransformerLM(config).eval()
        >>> ids = torch.randint(100, (1, 20))
        >>> model(ids).shape
        torch.Size([1, 20, 100])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ValueError(
                f"config must be a ModelConfig, but is a {type(config).__name__}; write ModelConfig(mechanism, …)"
            )
        self.config = config
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config, layer) for layer in range(config.num_layers)))
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.apply(_initialise)

    def forward(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch n vocab_size"]:
        """Next-token logits. Raises ValueError as `encode` does.

        Args:
            input_ids: tokens of the vocabulary.
            attention_mask: (batch, n), 1 for a token and 0 for padding; None where there is no padding.
        """
        return self._logits(self.encode(input_ids, attention_mask))

    def encode(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch n hidden_dim"]:
        """The last hidden states, after the final norm.

        Args:
            input_ids: tokens of the vocabulary.
            attention_mask: (batch, n), 1 for a token and 0 for padding; None where there is no padding.

        Raises:
            ValueError: `input_ids` not whole numbers of shape (batch, n), empty, or outside the vocabulary;
                `attention_mask` of another shape, not of zeros and ones, or with a row of padding only.

        Examples:
            >>> import torch
            >>> from bsbr import ModelConfig, TransformerLM
            >>> config = ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8)
            >>> model = TransformerLM(config).eval()
            >>> ids = torch.randint(100, (2, 20))
            >>> mask = torch.ones_like(ids)
            >>> mask[1, 12:] = 0  # the second text has 12 tokens
            >>> model.encode(ids, mask).shape
            torch.Size([2, 20, 32])
        """
        self._check(input_ids, attention_mask)
        if attention_mask is None:
            return self._encode(input_ids)
        real = attention_mask.bool()
        order = _packing_order(real)
        hidden = self._encode(input_ids.gather(1, order), lengths=real.sum(1))
        back = order.argsort(dim=1)[..., None].expand_as(hidden)
        return hidden.gather(1, back).masked_fill(~real[..., None], 0.0)

    def prefill(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch vocab_size"], ModelState]:
        """Read a prompt once: the logits after each row's last real token, and the state to decode from.

        Args:
            input_ids: the prompts.
            attention_mask: (batch, n), 1 for a token and 0 for padding; None where there is no padding.

        Examples:
            >>> import torch
            >>> from bsbr import ModelConfig, TransformerLM
            >>> config = ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8)
            >>> model = TransformerLM(config).eval()
            >>> ids = torch.randint(100, (1, 20))
            >>> with torch.inference_mode():
            ...     logits, state = model.prefill(ids[:, :19])
            ...     logits, state = model.step(ids[:, 19], state)
            ...     torch.testing.assert_close(logits, model(ids)[:, -1], rtol=1e-4, atol=1e-4)
            >>> int(state.length)
            20
        """
        x, state = self._read(input_ids, attention_mask)
        last = x[torch.arange(len(x), device=x.device), state.length - 1]
        return self._logits(self.norm(last)), state

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, ModelState]:
        """What leaves the last block, each row's real tokens before its padding, and the state behind them."""
        self._check(input_ids, attention_mask)
        batch, n = input_ids.shape
        lengths = torch.full((batch,), n, device=input_ids.device)
        if attention_mask is not None:
            real = attention_mask.bool()
            lengths, input_ids = real.sum(1), input_ids.gather(1, _packing_order(real))
        x = self._embed(input_ids, None if attention_mask is None else lengths)
        rotary = self._rotary(torch.arange(n, device=input_ids.device)[None])
        states = []
        for block in self.blocks:
            x, state = block.prefill(x, rotary[block.mixer.rotary_dim], lengths)
            states.append(state)
        return x, ModelState(tuple(states), lengths)

    def step(
        self, ids: Int[Tensor, " batch"], state: ModelState
    ) -> tuple[Float[Tensor, "batch vocab_size"], ModelState]:
        """Read one more token of each row: the logits after it, and the next state, which may reuse the old's memory.

        Args:
            ids: the next token of each row.
            state: what `prefill` or the step before returned.

        Raises:
            ValueError: `ids` is not one id for each row of the state, or outside the vocabulary; `state` is of a model
                with other layers, or holds other rows in some of them.

        Examples:
            >>> import torch
            >>> from bsbr import ModelConfig, TransformerLM
            >>> config = ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8)
            >>> model = TransformerLM(config).eval()
            >>> with torch.inference_mode():
            ...     logits, state = model.prefill(torch.randint(100, (2, 20)))
            ...     logits, state = model.step(logits.argmax(-1), state)
            >>> logits.shape
            torch.Size([2, 100])
        """
        self._check_step(ids, state)
        return self._step(ids, state)

    def _step(self, ids: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        rotary = self._rotary(state.length[:, None])
        x, states = self._embed(ids), []
        for block, layer_state in zip(self.blocks, state.layers, strict=True):
            x, layer_state = block.step(x, rotary[block.mixer.rotary_dim], layer_state)
            states.append(layer_state)
        return self._logits(self.norm(x)), ModelState(tuple(states), state.length + 1)

    def generate(
        self,
        input_ids: Int[Tensor, "batch n"],
        max_new_tokens: int,
        attention_mask: Tensor | None = None,
        temperature: float = 0.0,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "batch n_plus_new"]:
        """Continue each row: the prompt is read once, each new token is one step. Returns prompt and continuation.

        Temperature 0 takes the likeliest token; above it tokens are drawn from softmax(logits / temperature). A row
        that has produced `eos_token_id` goes on with it; generation ends early when every row has. Dropout follows the
        model's mode: call `eval()` first.

        Args:
            input_ids: the prompts.
            max_new_tokens: how many tokens to add to each row, at most.
            attention_mask: (batch, n), 1 for a token and 0 for padding; None where there is no padding.
            temperature: 0 for the likeliest token, else by what logits are divided before a token is drawn.
            eos_token_id: the token that ends a row; None for none.
            generator: the source of chance that tokens are drawn from; None for PyTorch's own.

        Raises:
            ValueError: as `encode`; `max_new_tokens` is not a whole number from 0 to 2²⁰; `temperature` is not a number
                ≥ 0; `eos_token_id` is outside the vocabulary; tokens are to be drawn from logits that are not finite.

        Examples:
            >>> import torch
            >>> from bsbr import ModelConfig, TransformerLM
            >>> config = ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2, chunk_size=8)
            >>> model = TransformerLM(config).eval()
            >>> prompt = torch.randint(100, (1, 20))
            >>> model.generate(prompt, max_new_tokens=5).shape
            torch.Size([1, 25])
            >>> chance = torch.Generator().manual_seed(0)
            >>> model.generate(prompt, 5, temperature=0.8, generator=chance).shape
            torch.Size([1, 25])
        """
        if type(max_new_tokens) is not int or not 0 <= max_new_tokens <= MOST_NEW_TOKENS:
            raise ValueError(
                f"max_new_tokens must be a whole number from 0 to {MOST_NEW_TOKENS:,}, but is {max_new_tokens!r}; for "
                f"more, go on from a state with step"
            )
        if type(temperature) not in (int, float) or not temperature >= 0:
            raise ValueError(
                f"temperature must be a number ≥ 0, where 0 takes the likeliest token, but is {temperature!r}"
            )
        last = self.config.vocab_size - 1
        if eos_token_id is not None and (type(eos_token_id) is not int or not 0 <= eos_token_id <= last):
            raise ValueError(f"eos_token_id must lie in 0 … {last}, or be None, but is {eos_token_id!r}")
        if max_new_tokens == 0:
            self._check(input_ids, attention_mask)
            return input_ids
        with torch.inference_mode():
            logits, state = self.prefill(input_ids, attention_mask)
            tokens = [_sample(logits, temperature, generator)]
            while len(tokens) < max_new_tokens:
                ended = tokens[-1] == eos_token_id if eos_token_id is not None else None
                if ended is not None and bool(ended.all()):
                    break
                logits, state = self._step(tokens[-1], state)
                token = _sample(logits, temperature, generator)
                tokens.append(token if ended is None else torch.where(ended, tokens[-1], token))
        # Joined outside, so that what is returned may be trained on.
        return torch.cat([input_ids, *(token[:, None].to(input_ids.dtype) for token in tokens)], dim=1)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`, each file replaced whole.

        The weights carry their config too, so that after a stop between the two no config is read with other weights.

        Args:
            path: the folder, which is made where there is none.

        Examples:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from bsbr import ModelConfig, TransformerLM
            >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     sorted(path.name for path in Path(folder).iterdir())
            ['config.json', 'model.safetensors']
        """
        saving.save(path, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> TransformerLM:
        """Load what `save_pretrained` wrote, in eval mode, every weight in the dtype that it was saved in.

        Args:
            path: the folder.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a config that this version cannot read; weights that are damaged, of another config, or not
                floating-point numbers.

        Examples:
            >>> import tempfile
            >>> from bsbr import ModelConfig, TransformerLM
            >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     TransformerLM.from_pretrained(folder).config == model.config
            True
        """
        config, tensors = saving.load(path)
        model = cls(config)
        saving.check_weights(model.state_dict(), tensors, path)
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
        return model.eval()

    def _encode(
        self,
        input_ids: Tensor,
        start: int = 0,
        layer: Callable[..., Tensor] | None = None,
        lengths: Int[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """`start` is the first token's position; `layer(block, x, rotary)` stands in for `block(x, rotary)`.

        With `lengths`, what stands behind the first tokens of each row is padding.
        """
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        x, rotary = self._embed(input_ids, lengths), self._rotary(positions[None])
        for block in self.blocks:
            run = block if layer is None else partial(layer, block)
            turn = rotary[block.mixer.rotary_dim]
            if self.gradient_checkpointing and self.training:
                x = checkpoint(run, x, turn, use_reentrant=False)
            else:
                x = run(x, turn)
        return self.norm(x)

    def _embed(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)  # (batch, n, hidden_dim), or (batch, hidden_dim) for a step
        if lengths is not None:  # 0 · NaN is NaN: causality alone does not keep out what is not finite
            padding = torch.arange(input_ids.shape[1], device=x.device) >= lengths[:, None]
            x = x.masked_fill(padding[..., None], 0.0)
        return self.dropout(x)

    def _rotary(self, positions: Int[Tensor, "batch_or_1 n"]) -> dict[int, Rotary]:
        """By the dimensions that the layers rotate, which differ between mechanisms."""
        dims = dict.fromkeys(block.mixer.rotary_dim for block in self.blocks)
        return {dim: Rotary.at(positions, dim, self.embedding.weight.dtype) for dim in dims}

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.dtype not in _ID_DTYPES:
            raise ValueError(
                f"input_ids must be int64 or int32 of shape (batch, n), but {_described(input_ids)}; tokenise first, "
                f"and add a batch axis with input_ids[None] if it is missing"
            )
        if input_ids.numel() == 0:
            raise ValueError(
                f"input_ids must hold at least one row of one token, but has shape {tuple(input_ids.shape)}"
            )
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            raise ValueError(f"attention_mask must be a tensor, but {_described(attention_mask)}")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
                f"but has {tuple(attention_mask.shape)}"
            )
        if attention_mask is not None and attention_mask.is_floating_point():
            raise ValueError(f"attention_mask must be bool or whole numbers 0 and 1, but is {attention_mask.dtype}")
        if not torch.compiler.is_compiling():  # these read values, which would break a compiled graph
            self._check_values(input_ids, attention_mask)

    def _check_step(self, ids: Tensor, state: ModelState) -> None:
        if not isinstance(state, ModelState):
            raise ValueError(
                f"state must be what prefill or step of this model returned, but is a {type(state).__name__}"
            )
        mine, given = [_expected_state(block.mixer) for block in self.blocks], [_given(layer) for layer in state.layers]
        if given != mine:
            raise ValueError(
                f"state must be what prefill or step of this model returned, {len(mine)} layers of {_named(mine)}, but "
                f"has {len(given)} of {_named(given)}"
            )
        rows = len(state.length)
        if wrong := sorted({len(x) for layer in state.layers for x in leaves(layer)} - {rows}):
            raise ValueError(
                f"state must hold the same rows in all of its parts, but has a length for {rows} and tensors of "
                f"{wrong[0]}; choose rows in every tensor of it alike"
            )
        if not isinstance(ids, Tensor) or ids.dtype not in _ID_DTYPES or ids.shape != state.length.shape:
            raise ValueError(
                f"ids must be int64 or int32 of shape {tuple(state.length.shape)}, one id for each row of the state, "
                f"but {_described(ids)}"
            )
        if not torch.compiler.is_compiling():
            self._check_vocabulary("ids", ids)

    def _check_vocabulary(self, name: str, ids: Tensor) -> None:
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"{name} must lie in 0 … {self.config.vocab_size - 1}, the model's vocabulary, but range from {low} "
                f"to {high}; use the tokenizer this model was made for, or set vocab_size"
            )

    def _check_values(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        self._check_vocabulary("input_ids", input_ids)
        if attention_mask is None:
            return
        if bool(((attention_mask != 0) & (attention_mask != 1)).any()):
            raise ValueError("attention_mask must hold only 0 (padding) and 1 (token)")
        if not bool(attention_mask.bool().any(1).all()):
            raise ValueError("attention_mask must mark at least one token in every row; drop rows that are all padding")


_ID_DTYPES = (torch.int32, torch.int64)


def _expected_state(mixer: Mixer) -> str:
    """In words."""
    return _state_name(mixer.state_type, mixer.short_conv.width if mixer.short_conv is not None else None)


def _given(layer: Any) -> str:
    if isinstance(layer, ShortConvState):
        return _state_name(type(layer.mechanism), layer.inputs.shape[1] + 1)
    return _state_name(type(layer), None)


def _state_name(kind: type, width: int | None) -> str:
    name = f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}"
    return name if width is None else f"{name} with short_conv={width}"


def _named(states: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(states)) or "none"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"has dtype {value.dtype} and shape {tuple(value.shape)}"
    return f"is {value!r:.100}"


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def _packing_order(real: Bool[Tensor, "batch n"]) -> Int[Tensor, "batch n"]:
    """The order that puts each row's real tokens first and keeps them in sequence."""
    return (~real).to(torch.uint8).argsort(dim=1, stable=True)


def _sample(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Int[Tensor, " batch"]:
    if temperature == 0:
        return logits.argmax(-1)
    if not bool(logits.isfinite().all()):
        raise ValueError(
            "logits must be finite to draw tokens from, but some are not; look for weights that are not finite, or "
            "load the model in float32"
        )
    logits = logits.float() - logits.float().amax(-1, keepdim=True)  # the likeliest stays 0, however cold
    probabilities = (logits / max(temperature, torch.finfo(torch.float32).tiny)).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
