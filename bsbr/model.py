"""One backbone for all mechanisms: a decoder-only transformer whose mixer is chosen by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bsbr.files import write_whole
from bsbr.mixers import MECHANISMS, Mixer, Rotary


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a `TransformerLM` and options of its mechanism; options of other mechanisms are ignored.

    Raises:
        ValueError: an unknown mechanism, a size below 1, a hidden_dim that does not divide into heads of even size, or
            a dropout, beta or inverse_temperature out of range. Making a model also refuses options of its own
            mechanism that do not fit: compression_factor, feature_map, key_dim.
    """

    mechanism: str
    vocab_size: int = 10_000
    hidden_dim: int = 256
    num_layers: int = 2
    num_heads: int = 4
    ff_dim: int = 512
    dropout: float = 0.0
    chunk_size: int = 128  # bsbr, and the chunks of mixed chunk attention in gau
    local_chunks: int = 1  # bsbr: chunks read exactly, the own one included
    top_k: int | None = None  # bsbr: retrieve from this many chunks only; None for all
    compression_factor: int | None = None  # bsbr: states of head_dim² / compression_factor numbers
    window_size: int = 128  # sliding_window: tokens read, the current one included
    feature_map: str = "elu"  # linear: a name in bsbr.attention.linear.FEATURE_MAPS
    beta: float | None = None  # deltanet: how far each token corrects the memory, in (0, 1]; None to learn it
    num_steps: int = 1  # hopfield: updates of the query, the last of which reads the values
    inverse_temperature: float | None = None  # hopfield; None for 1/√head_dim
    expansion: int = 2  # gau: values have expansion · hidden_dim dimensions
    key_dim: int = 128  # gau: dimensions of queries and keys

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(MECHANISMS)}, but is {self.mechanism!r}")
        for name, optional in _COUNTS.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number ≥ 1{' or None' * optional}, but is {value!r}")
        if self.hidden_dim % (2 * self.num_heads):
            raise ValueError(
                f"hidden_dim must be a multiple of 2 · num_heads, so that rotary positions turn pairs in each head, "
                f"but hidden_dim is {self.hidden_dim} and num_heads is {self.num_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), but is {self.dropout!r}")
        if self.beta is not None and not 0 < self.beta <= 1:
            raise ValueError(f"beta must lie in (0, 1], or be None to be learned, but is {self.beta!r}")
        if self.inverse_temperature is not None and not self.inverse_temperature > 0:
            raise ValueError(f"inverse_temperature must be > 0 or None, but is {self.inverse_temperature!r}")


_COUNTS = {f.name: f.type == "int | None" for f in fields(ModelConfig) if f.type in ("int", "int | None")}


class ModelState(NamedTuple):
    """What decoding goes on from: each layer's mixer state, and how many tokens each row has read."""

    layers: tuple[Any, ...]
    length: Int[Tensor, " batch"]


class Block(nn.Module):
    """Pre-norm residual block: mixer, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.hidden_dim)
        self.mixer: Mixer = MECHANISMS[config.mechanism](config)
        self.ff_norm = nn.LayerNorm(config.hidden_dim)
        self.ff = nn.Sequential(
            nn.Linear(config.hidden_dim, config.ff_dim, bias=False),
            nn.GELU(),
            nn.Linear(config.ff_dim, config.hidden_dim, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch n hidden_dim"], rotary: Rotary) -> Float[Tensor, "batch n hidden_dim"]:
        return self._feed(x, self.mixer(self.mixer_norm(x), rotary))

    def prefill(self, x: Tensor, rotary: Rotary, lengths: Tensor) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.prefill(self.mixer_norm(x), rotary, lengths)
        return self._feed(x, mixed), state

    def step(self, x: Float[Tensor, "batch hidden_dim"], rotary: Rotary, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mixer.step(self.mixer_norm(x), rotary, state)
        return self._feed(x, mixed), state

    def _feed(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ff(self.ff_norm(x)))


class TransformerLM(nn.Module):
    """A causal language model with tied embeddings and rotary positions, for any sequence length ≥ 1.

    `attention_mask` marks real tokens with 1 (or True) and padding with 0, anywhere in a row. Each row's real tokens
    are packed to the left before the first layer and put back after the last, so that a row gets what it would get
    alone: same positions, same chunks. Outputs at padding are zero in `encode`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config) for _ in range(config.num_layers)))
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.apply(_initialise)

    def forward(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch n vocab_size"]:
        """Next-token logits. Raises ValueError as `encode` does."""
        return self._logits(self.encode(input_ids, attention_mask))

    def encode(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch n hidden_dim"]:
        """The last hidden states, after the final norm.

        Raises:
            ValueError: `input_ids` not whole numbers of shape (batch, n), empty, or outside the vocabulary;
                `attention_mask` of another shape, not of zeros and ones, or with a row of padding only.
        """
        self._check(input_ids, attention_mask)
        if attention_mask is None:
            return self._encode(input_ids)
        real = attention_mask.bool()
        order = _packing_order(real)
        hidden = self._encode(input_ids.gather(1, order))
        back = order.argsort(dim=1)[..., None].expand_as(hidden)
        return hidden.gather(1, back).masked_fill(~real[..., None], 0.0)

    def prefill(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch vocab_size"], ModelState]:
        """Read a prompt once: the logits after each row's last real token, and the state to decode from."""
        self._check(input_ids, attention_mask)
        batch, n = input_ids.shape
        lengths = torch.full((batch,), n, device=input_ids.device)
        if attention_mask is not None:
            real = attention_mask.bool()
            lengths, input_ids = real.sum(1), input_ids.gather(1, _packing_order(real))
        x, rotary = self._embed(input_ids), self._rotary(torch.arange(n, device=input_ids.device)[None])
        states = []
        for block in self.blocks:
            x, state = block.prefill(x, rotary, lengths)
            states.append(state)
        last = x[torch.arange(batch, device=x.device), lengths - 1]
        return self._logits(self.norm(last)), ModelState(tuple(states), lengths)

    def step(
        self, ids: Int[Tensor, " batch"], state: ModelState
    ) -> tuple[Float[Tensor, "batch vocab_size"], ModelState]:
        """Read one more token a row: the logits after it, and the next state, which may reuse the old one's memory."""
        rotary = self._rotary(state.length[:, None])
        x, states = self._embed(ids), []
        for block, layer_state in zip(self.blocks, state.layers, strict=True):
            x, layer_state = block.step(x, rotary, layer_state)
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

        Raises:
            ValueError: as `encode`; `max_new_tokens` below 0; a negative `temperature`.
        """
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be ≥ 0, but is {max_new_tokens}")
        if temperature < 0:
            raise ValueError(f"temperature must be ≥ 0, where 0 takes the likeliest token, but is {temperature}")
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
                logits, state = self.step(tokens[-1], state)
                token = _sample(logits, temperature, generator)
                tokens.append(token if ended is None else torch.where(ended, tokens[-1], token))
        # Joined outside, so that what is returned may be trained on.
        return torch.cat([input_ids, *(token[:, None].to(input_ids.dtype) for token in tokens)], dim=1)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into the folder `path`, each file replaced whole."""
        folder = Path(path)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_whole(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        write_whole(folder / "config.json", (json.dumps(asdict(self.config), indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> TransformerLM:
        """Load what `save_pretrained` wrote, in eval mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a config that this version cannot read, or weights of another config.
        """
        folder = Path(path)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"path must be a folder written by save_pretrained, but {folder} has no {name}")
        options = json.loads((folder / "config.json").read_text())
        unknown = sorted(set(options) - {field.name for field in fields(ModelConfig)})
        if unknown:
            raise ValueError(f"config.json in {folder} has options this version does not know: {', '.join(unknown)}")
        tensors = load_file(folder / "model.safetensors")
        model = cls(ModelConfig(**options))
        _check_weights(model, tensors, folder)
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) == 1:
            model.to(dtypes.pop())
        model.load_state_dict(tensors)
        return model.eval()

    def _encode(self, input_ids: Tensor, start: int = 0, layer: Callable[..., Tensor] | None = None) -> Tensor:
        """`start` is the first token's position; `layer(block, x, rotary)` stands in for `block(x, rotary)`."""
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        x, rotary = self._embed(input_ids), self._rotary(positions[None])
        for block in self.blocks:
            run = block if layer is None else partial(layer, block)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(run, x, rotary, use_reentrant=False)
            else:
                x = run(x, rotary)
        return self.norm(x)

    def _embed(self, input_ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(input_ids))

    def _rotary(self, positions: Int[Tensor, "batch_or_1 n"]) -> Rotary:
        return Rotary.at(positions, self.blocks[0].mixer.rotary_dim, self.embedding.weight.dtype)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"input_ids must be int64 or int32 of shape (batch, n), but has dtype {input_ids.dtype} and shape "
                f"{tuple(input_ids.shape)}; tokenise first, and add a batch axis with input_ids[None] if it is missing"
            )
        if input_ids.numel() == 0:
            raise ValueError(
                f"input_ids must hold at least one row of one token, but has shape {tuple(input_ids.shape)}"
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
                f"but has {tuple(attention_mask.shape)}"
            )
        if attention_mask is not None and attention_mask.is_floating_point():
            raise ValueError(f"attention_mask must be bool or whole numbers 0 and 1, but is {attention_mask.dtype}")
        if not torch.compiler.is_compiling():  # these read values, which would break a compiled graph
            self._check_values(input_ids, attention_mask)

    def _check_values(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        low, high = (int(value) for value in input_ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"input_ids must lie in 0 … {self.config.vocab_size - 1}, the model's vocabulary, but range from {low} "
                f"to {high}; use the tokenizer this model was made for, or set vocab_size"
            )
        if attention_mask is None:
            return
        if bool(((attention_mask != 0) & (attention_mask != 1)).any()):
            raise ValueError("attention_mask must hold only 0 (padding) and 1 (token)")
        if not bool(attention_mask.bool().any(1).all()):
            raise ValueError("attention_mask must mark at least one token in every row; drop rows that are all padding")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def _packing_order(real: Bool[Tensor, "batch n"]) -> Int[Tensor, "batch n"]:
    """The order that puts each row's real tokens first and keeps them in sequence."""
    return (~real).to(torch.uint8).argsort(dim=1, stable=True)


def _sample(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Int[Tensor, " batch"]:
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _check_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"model.safetensors in {folder} is not of the config beside it: {len(wrong)} tensors differ, first {name} "
            f"(config: {expected.get(name)}, file: {found.get(name)}); save the model again, both files together"
        )
