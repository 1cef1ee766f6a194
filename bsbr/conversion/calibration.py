"""What theory leaves open in a conversion, fitted to the original's attention on a few documents."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from bsbr.conversion import attention, interface
from bsbr.conversion.blocks import BlockSums, block_sums
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.converter import attention_modules, output_projection
from bsbr.conversion.precision import wide
from bsbr.conversion.states import Fit

LEARNING_RATE = 0.05
POSITIONS_AT_ONCE = 256  # whose logits are in memory together
ROWS_A_STEP = 256  # queries of one document that one step of the fit looks at
ALL = slice(None)


@dataclass(frozen=True)
class Calibration:
    """What calibrating a model brought.

    `error` holds, layer by layer (None where nothing was fitted), the squared error of attention's outputs, projected,
    at tokens that have far text, relative to leaving the far text out: before and after, on the documents fitted to.
    The perplexities are means over the held-out documents, None if there were none.

    Examples:
        >>> from bsbr.conversion.calibration import Calibration
        >>> found = Calibration(((0.8, 0.2),), original_perplexity=20, perplexity_before=24, perplexity_after=21)
        >>> found.gap_closed
        75.0
    """

    error: tuple[tuple[float, float] | None, ...]  # of each layer, before and after
    original_perplexity: float | None = None  # with full attention
    perplexity_before: float | None = None  # converted
    perplexity_after: float | None = None  # converted and calibrated

    @property
    def gap_closed(self) -> float | None:
        """Which share of the gap in perplexity to the original was closed, in %; None without held-out documents."""
        if self.original_perplexity is None or self.perplexity_before is None or self.perplexity_after is None:
            return None
        gap = self.perplexity_before - self.original_perplexity
        return 100 * (self.perplexity_before - self.perplexity_after) / gap if gap else math.nan


def calibrate(
    model: Any,
    documents: Sequence[Int[Tensor, "1 n"]],
    held_out: Sequence[Int[Tensor, "1 n"]] = (),
    steps: int = 100,
    report: Callable[[str], None] | None = None,
) -> Calibration:
    """Fit how states are read, layer by layer, so that attention comes out as the original's. Changes `model`.

    One pass over the documents with the original attention gives every layer its queries, keys and values. In each,
    a head's centre starts as its mean query over the tokens that have far text. From there centre, gate and
    temperature are fitted by Adam to the outputs of full attention, all heads together: the error is that of what the
    layer's output projection makes of them. The weights stay as they are. No layer's error is made worse: it keeps
    the best of what Adam ended with, what it started from, and no fit.

    Args:
        model: a converted model whose retrieval is `"states"` or `"both"`.
        documents: token ids, a row each, all longer than the local window; they are cut to the shortest. A few of the
            kind that the model is to read are enough, and as long as it is to read: a head's mean query moves with
            the length.
        held_out: other documents, on which the gain is reported.
        steps: of Adam in each layer, each on some queries of one document; with 0 the centre is the mean query, and
            nothing else is fitted.
        report: is told about progress in sentences.

    Raises:
        ValueError: the model is not converted or reads no states, or there are no documents or too short ones.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr.conversion import ConversionConfig, calibrate, convert
        >>> config = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=0, retrieval="states")
        >>> converted = convert(model, config)
        >>> found = calibrate(converted, [torch.randint(97, (1, 64))], steps=2)
        >>> [after <= before for before, after in found.error]
        [True, True]
    """
    config = _config(model)
    if not config.reads_states:
        raise ValueError(
            f"model: expected retrieval 'states' or 'both', got {config.retrieval!r}: nothing to calibrate"
        )
    if not len(documents):
        raise ValueError("documents: expected one text or more to fit to, got none")
    length = min(_one_row(ids).shape[1] for ids in documents)
    shortest = max(config.window, config.original_below) + config.chunk_size
    if length < shortest:
        raise ValueError(f"documents: expected {shortest} tokens each or more, got {length} in the shortest")
    say = report or (lambda text: None)
    ids = torch.cat([_one_row(document)[:, :length] for document in documents]).to(model.device)
    before = _perplexity(model, held_out)
    modules = attention_modules(model)
    fits, errors = {}, {}

    def fit(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
        layer = modules.index(module)
        scaling = options.get("scaling") or q.shape[3] ** -0.5
        if module.bsbr is not None:
            fits[layer], errors[layer] = _fit_layer(q, k, v, output_projection(module), config, scaling, steps)
            was, now = errors[layer]
            say(f"layer {layer + 1} of {len(modules)}: error {was:.3f} before, {now:.3f} after")
        return attention.attend(q, k, v, None, scaling), None

    with interface.attending_by(model, fit):
        model.base_model(ids, use_cache=False)
    for layer, fitted in fits.items():
        modules[layer].bsbr_fit = fitted.to(model.device, model.dtype)
    after = _perplexity(model, held_out)
    error = tuple(errors.get(layer) for layer in range(len(modules)))
    with _original(model):
        return Calibration(error, _perplexity(model, held_out), before, after)


def _fit_layer(
    q: Tensor, k: Tensor, v: Tensor, mix: Tensor, config: ConversionConfig, scaling: float, steps: int
) -> tuple[Fit, tuple[float, float]]:
    """The fit of one layer, and its errors on the same queries before and after. `mix` is its output projection."""
    config = replace(config, original_below=0)
    q, k, v, mix = (wide(x.detach()) for x in (q, k, v, mix))
    size, start = config.chunk_size, config.window
    end, rows = k.shape[2] // size * size, max(1, ROWS_A_STEP // size) * size
    all_sums = block_sums(q, k, config) if config.retrieval == "both" else None
    fit = Fit(q.shape[1], q.shape[3]).to(q)
    fit.centre.data = q[:, :, start:].mean((0, 2))
    begun, none = copy.deepcopy(fit), Fit(q.shape[1], q.shape[3]).to(q)

    def read(config: ConversionConfig | None, a: int, b: int, fit: Fit | None = None, document: slice = ALL) -> Tensor:
        """Attention outputs of the queries a … b−1."""
        sums = None if all_sums is None else BlockSums(*(x[document] for x in all_sums))
        q_now, k_now, v_now = q[document, :, a:b], k[document, :, :b], v[document, :, :b]
        return attention.attend(q_now, k_now, v_now, config, scaling, sums, fit=fit)

    def error(found: Tensor, aim: Tensor) -> Tensor:
        return ((found - aim).flatten(2) @ mix).square().mean()

    with torch.no_grad():
        aims = read(None, 0, end)[:, start:]
        nothing = error(read(replace(config, retrieval="none", compression_factor=None), start, end), aims)
        scale = max(float(nothing), torch.finfo(q.dtype).tiny)
        before = float(error(read(config, start, end), aims)) / scale
    adam = torch.optim.Adam(fit.parameters(), lr=LEARNING_RATE)
    pieces = [(slice(d, d + 1), a, min(a + rows, end)) for d in range(q.shape[0]) for a in range(start, end, rows)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0)).tolist()
    for step in range(steps):
        document, a, b = pieces[order[step % len(pieces)]]
        with torch.enable_grad():
            loss = error(read(config, a, b, fit, document), aims[document, a - start : b - start]) / scale
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        after, best = min(
            ((float(error(read(config, start, end, each), aims)) / scale, each) for each in (fit, begun, none)),
            key=lambda found: found[0] if math.isfinite(found[0]) else math.inf,
        )
    return best, (before, after)


def _config(model: Any) -> ConversionConfig:
    """What the model was converted with. Raises ValueError if it was not."""
    config = ConversionConfig.kept_in(getattr(model, "config", None))
    if config is None:
        raise ValueError("model: expected a converted model; use convert(…) on it first")
    return config


def _one_row(ids: Tensor) -> Int[Tensor, "1 n"]:
    """A document's ids as one row. Raises ValueError if they are no tensor of ids, or of several rows."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or not 2 <= ids.numel() == ids.shape[-1]:
        got = f"shape {tuple(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"documents: expected tensors of token ids, (1, n) each with n of 2 or more, got {got}")
    return ids.reshape(1, -1)


@torch.inference_mode()
def _perplexity(model: Any, documents: Sequence[Tensor]) -> float | None:
    """Mean over documents, whose logits are made a slice at a time; None if there are none."""
    found, head = [], model.get_output_embeddings()
    for document in documents:
        ids = _one_row(document).to(model.device)
        states = model.base_model(ids, use_cache=False).last_hidden_state[0, :-1].split(POSITIONS_AT_ONCE)
        losses = [
            F.cross_entropy(head(part).float(), next_ids, reduction="none").double()
            for part, next_ids in zip(states, ids[0, 1:].split(POSITIONS_AT_ONCE), strict=True)
        ]
        found.append(torch.cat(losses).mean().exp().item())
    return sum(found) / len(found) if found else None


@contextlib.contextmanager
def _original(model: Any) -> Iterator[None]:
    """The converted model with full attention in every layer."""
    modules = attention_modules(model)
    kept = [module.bsbr for module in modules]
    for module in modules:
        module.bsbr = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, config in zip(modules, kept, strict=True):
            module.bsbr = config
