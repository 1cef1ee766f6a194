"""Which layers and heads of a model suffer when their attention alone is converted.

A text is read once by the original. What lies before a changed layer is known from there, so that trying a layer
costs only the layers from it on: half a pass in the mean. `layer_sensitivity_reference`, which reads the whole model
anew for every layer, is what this is held to.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.utils import logging

from bsbr.conversion import attention, interface, loading
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.converter import attention_modules, convert
from bsbr.conversion.options import add_setting, read_text, setting_of
from bsbr.conversion.precision import wide
from bsbr.studies import similarity


def least_sensitive(
    model: Any,
    documents: Sequence[Int[Tensor, "1 n"]],
    budget: int,
    config: ConversionConfig | None = None,
    report: Callable[[str], None] | None = None,
) -> tuple[int, ...]:
    """The `budget` layers whose conversion alone changes the model's predictions least, for `ConversionConfig.layers`.

    Args:
        model: a model that `convert` takes, in memory.
        documents: token ids, a row each; one of some thousand tokens is enough.
        budget: how many layers to convert.
        config: the conversion that is meant; if it names `layers`, only those are chosen from.
        report: is told about progress in sentences.

    Raises:
        ValueError: there are fewer layers than `budget` to choose from, no documents, or one that is too short.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr import ConversionConfig
        >>> from bsbr.studies.sensitivity import least_sensitive
        >>> config = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, retrieval="none")
        >>> layers = least_sensitive(model, [torch.randint(97, (1, 40))], budget=1, config=config)
        >>> ConversionConfig(layers=layers).layers == layers
        True
    """
    config, say = config or ConversionConfig(), report or (lambda text: None)
    layers = config.layers_of(len(attention_modules(model)))
    if not 1 <= budget <= len(layers):
        raise ValueError(f"budget: expected 1 to {len(layers)} layers, got {budget}")
    if not len(documents):
        raise ValueError("documents: expected one text or more to measure on, got none")
    total = torch.zeros(len(layers), dtype=torch.float64)
    for number, ids in enumerate(documents, start=1):
        total += layer_sensitivity(model, ids, config).double().cpu()
        say(f"text {number} of {len(documents)}: each of {len(layers)} layers tried")
    order = total.argsort(stable=True).tolist()
    return tuple(sorted(layers[index] for index in order[:budget]))


@torch.inference_mode()
def layer_sensitivity_reference(
    model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig
) -> Float[Tensor, " layers"]:
    """What `layer_sensitivity` is held to: for each layer, a model with it alone converted reads it all. Slow."""
    original = similarity.read(model, ids)
    layers = config.layers_of(len(attention_modules(model)))
    changed = (convert(model, replace(config, layers=(layer,))) for layer in layers)
    return torch.tensor([similarity.compare(original, similarity.read(each, ids)).kl for each in changed])


@torch.inference_mode()
def layer_sensitivity(
    model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig, every: int = 1
) -> Float[Tensor, " layers"]:
    """KL divergence (nats, mean over positions) from the original, when one layer alone is converted.

    Args:
        model: a model that `convert` takes, in memory.
        ids: one text, longer than what is read exactly.
        config: the conversion. Each of its `layers` is tried in turn, by default all.
        every: the divergence is taken at every so many-th position, the last included.

    Returns:
        one number a layer, in the order of the layers that were tried.

    Raises:
        ValueError: the text is too short for the conversion to change anything, the model lacks one of `config.layers`,
            or `every` is not positive.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr import ConversionConfig
        >>> from bsbr.studies.sensitivity import layer_sensitivity
        >>> config = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, retrieval="none")
        >>> found = layer_sensitivity(model, torch.randint(97, (1, 40)), config)
        >>> found.shape, bool((found >= 0).all())
        (torch.Size([2]), True)
    """
    with _Trial(model, ids, config, every) as trial:
        every_head = torch.ones(1, trial.heads, dtype=torch.bool)
        return torch.cat([trial.divergence(layer, every_head) for layer in trial.layers])


@torch.inference_mode()
def head_sensitivity(
    model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig, every: int = 1
) -> Float[Tensor, "layers heads"]:
    """The same when one head of one layer alone is converted. All heads of a layer are read as one batch.

    Arguments and errors are those of `layer_sensitivity`.

    Args:
        model: a model that `convert` takes, in memory.
        ids: one text, longer than what is read exactly.
        config: the conversion. The heads of each of its `layers` are tried, by default of all.
        every: the divergence is taken at every so many-th position, the last included.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr import ConversionConfig
        >>> from bsbr.studies.sensitivity import head_sensitivity
        >>> config = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, retrieval="none")
        >>> head_sensitivity(model, torch.randint(97, (1, 40)), config).shape
        torch.Size([2, 4])
    """
    with _Trial(model, ids, config, every) as trial:
        each_head = torch.eye(trial.heads, dtype=torch.bool)
        return torch.stack([trial.divergence(layer, each_head) for layer in trial.layers])


@torch.inference_mode()
def attention_error(model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig) -> Float[Tensor, "layers heads"]:
    """By how much (%) each head's attention outputs change, on the original's inputs: one pass tells it of all heads.

    The norm of the change over the norm of the original's outputs, over all positions of the text. What later layers
    make of the change is not in it. Arguments and errors are those of `layer_sensitivity`.
    """
    _check(ids, config)
    errors = []

    def compare(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> tuple[Tensor, None]:
        scaling = options.get("scaling") or q.shape[3] ** -0.5
        before = attention.attend(q, k, v, None, scaling)
        if module.bsbr is not None:
            change = attention.attend(q, k, v, config, scaling) - before
            errors.append(100 * _norm_by_head(change) / _norm_by_head(before))
        return before, None

    changed = convert(model, config)
    with interface.attending_by(changed, compare):
        changed.base_model(ids, use_cache=False)
    return torch.stack(errors)


class _Trial:
    """The original's reading of one text, and a copy of the model in which one layer at a time is changed.

    Layers have to be tried in ascending order: the copy's layers before the changed one are replaced, one by one and
    for good, by what they gave in the original. The copy shares the original's weights and leaves the original alone.
    """

    def __init__(self, model: Any, ids: Tensor, config: ConversionConfig, every: int) -> None:
        _check(ids, config)
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        self.config, self.every = config, every
        self.changed = convert(model, replace(config, layers=None))
        self.modules = attention_modules(self.changed)
        self.layers = config.layers_of(len(self.modules))
        self.heads = int(self.changed.config.num_attention_heads)
        self.blocks = [block for block in self.changed.modules() if set(block.children()) & set(self.modules)]
        self.reading = similarity.read(model, ids)
        self.log_p = self._log_probabilities(self.reading.hidden[-1])
        self.now: tuple[nn.Module, Bool[Tensor, "copies heads"]] | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> _Trial:
        self.stack.enter_context(interface.attending_by(self.changed, self._attend))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def divergence(self, layer: int, chosen: Bool[Tensor, "copies heads"]) -> Float[Tensor, " copies"]:
        """Of copies of the model, in each of which the chosen heads of this layer are converted."""
        ids, copies = self.reading.ids, len(chosen)
        for before, block in enumerate(self.blocks[:layer], start=1):
            block.forward = functools.partial(_known, self.reading.hidden[before].expand(copies, -1, -1))
        self.now = (self.modules[layer], chosen.to(ids.device))
        hidden = self.changed.base_model(ids.expand(copies, -1), use_cache=False).last_hidden_state
        return torch.stack([self._divergence(each) for each in hidden])

    def _attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> Any:
        scaling = options.get("scaling") or q.shape[3] ** -0.5
        if self.now is None or module is not self.now[0]:
            return attention.attend(q, k, v, None, scaling), None
        q, k, v = q[:1], k[:1], v[:1]  # up to here all copies are alike
        before, after = (attention.attend(q, k, v, config, scaling) for config in (None, self.config))
        return torch.where(self.now[1][:, None, :, None], after, before), None

    def _log_probabilities(self, hidden: Float[Tensor, "n hidden_dim"]) -> Float[Tensor, "positions vocab"]:
        chosen = hidden[(len(hidden) - 1) % self.every :: self.every]
        return wide(self.reading.head(chosen)).log_softmax(-1)

    def _divergence(self, hidden: Float[Tensor, "n hidden_dim"]) -> Float[Tensor, ""]:
        log_q = self._log_probabilities(hidden)
        total = F.kl_div(log_q, self.log_p, log_target=True, reduction="none").sum(-1)
        return total.mean().clamp(min=0)  # rounding alone can take the divergence of equals below zero


def _known(output: Tensor, *_: Any, **__: Any) -> Tensor:
    """A layer's forward where what it gives is known."""
    return output


def _norm_by_head(x: Float[Tensor, "1 n heads head_dim"]) -> Float[Tensor, " heads"]:
    return wide(x).square().sum((0, 1, 3)).sqrt()


def _check(ids: Tensor, config: ConversionConfig) -> None:
    exact = max(config.window, config.original_below)
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] <= exact:
        raise ValueError(
            f"ids: expected one row of more than {exact} tokens, which this conversion reads as the original does, "
            f"got shape {tuple(ids.shape)}"
        )


def main(arguments: list[str] | None = None) -> int:
    """`python -m bsbr.studies.sensitivity MODEL --budget N --texts FILE …`: the layers to name to `bsbr.conversion`."""
    parser = argparse.ArgumentParser(
        prog="python -m bsbr.studies.sensitivity",
        description="Print the option --layers of bsbr.conversion that names the layers which suffer least by it.",
    )
    parser.add_argument("model", help="a local folder, a .gguf file, or a name on the Hugging Face hub")
    parser.add_argument("--budget", required=True, type=int, metavar="N", help="how many layers are to be converted")
    parser.add_argument("--texts", required=True, type=Path, nargs="+", metavar="FILE", help="to measure on")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="of each text (default: %(default)s)")
    add_setting(parser)
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        setting = setting_of(options)
        model, tokenizer = loading.load(options.model), loading.load_tokenizer(options.model)
        documents = [read_text(path, tokenizer, options.tokens) for path in options.texts]
        layers = least_sensitive(model, documents, options.budget, setting, lambda text: print(text, file=sys.stderr))
    except (ValueError, OSError) as error:
        print(f"sensitivity: {error}", file=sys.stderr)
        return 1
    print(f"--layers {','.join(map(str, layers))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
