"""What theory leaves open in a conversion, fitted to the original's attention on a few documents."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bsbr.convert import attention, interface
from bsbr.convert.attention import Fit
from bsbr.convert.config import ConversionConfig
from bsbr.convert.converter import attention_modules, convert, output_projection
from bsbr.measure import similarity

LEARNING_RATE = 0.05
ROWS_A_STEP = 256  # queries of one document that one step of the fit looks at
ALL = slice(None)


@dataclass(frozen=True)
class Calibration:
    """What calibrating a model brought.

    `error` holds, layer by layer (None where nothing was fitted), the squared error of attention's outputs, projected,
    at tokens that have far text, relative to leaving the far text out: before and after, on the documents fitted to.
    The perplexities are means over the held-out documents, None if there were none.
    """

    error: tuple[tuple[float, float] | None, ...]
    original_perplexity: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None

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
    layer's output projection makes of them. The weights stay as they are.

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
        ValueError: the model is not converted or reads no states, or the documents are too short.
    """
    config = _config(model)
    if not config.reads_states:
        raise ValueError(
            f"model: expected retrieval 'states' or 'both', got {config.retrieval!r}: nothing to calibrate"
        )
    length = min((ids.shape[-1] for ids in documents), default=0)
    shortest = max(config.window, config.original_below) + config.chunk_size
    if length < shortest:
        raise ValueError(f"documents: expected {shortest} tokens each or more, got {length} in the shortest")
    say = report or (lambda text: None)
    ids = torch.cat([document.view(1, -1)[:, :length] for document in documents]).to(model.device)
    before = _perplexity(model, held_out)
    modules = attention_modules(model)
    fits, errors = {}, {}

    def fit(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, None]:
        layer = modules.index(module)
        scaling = settings.get("scaling") or q.shape[3] ** -0.5
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
    q, k, v, mix = (attention.wide(x.detach()) for x in (q, k, v, mix))
    size, start = config.chunk_size, config.window
    end, rows = k.shape[2] // size * size, max(1, ROWS_A_STEP // size) * size
    meta = attention.block_sums(q, k, config) if config.retrieval == "both" else None
    fit = Fit(q.shape[1], q.shape[3]).to(q)
    fit.query.data = q[:, :, start:].mean((0, 2))

    def read(config: ConversionConfig | None, a: int, b: int, fit: Fit | None = None, document: slice = ALL) -> Tensor:
        """Attention outputs of the queries a … b−1."""
        sums = None if meta is None else attention.Meta(*(x[document] for x in meta))
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
        after = float(error(read(config, start, end, fit), aims)) / scale
    return fit, (before, after)


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
        config: the conversion that is meant.
        report: is told about progress in sentences.

    Raises:
        ValueError: the model has fewer layers than `budget`.
    """
    measured = sensitivity(model, documents, config, report)
    if not 1 <= budget <= len(measured):
        raise ValueError(f"budget: expected 1 to {len(measured)} layers, got {budget}")
    return tuple(sorted(sorted(range(len(measured)), key=measured.__getitem__)[:budget]))


def sensitivity(
    model: Any,
    documents: Sequence[Int[Tensor, "1 n"]],
    config: ConversionConfig | None = None,
    report: Callable[[str], None] | None = None,
) -> list[float]:
    """For each layer, the KL divergence (nats a position) from the original if that layer alone is converted."""
    config, say = config or ConversionConfig(), report or (lambda text: None)
    layers = len(attention_modules(model))
    readings = [similarity.read(model, ids) for ids in documents]
    found = []
    for layer in range(layers):
        changed = convert(model, replace(config, layers=(layer,)))
        divergences = [
            similarity.compare(reading, similarity.read(changed, ids)).kl
            for reading, ids in zip(readings, documents, strict=True)
        ]
        found.append(sum(divergences) / len(divergences))
        say(f"layer {layer + 1} of {layers}: {found[-1]:.2g} nats")
    return found


def _config(model: Any) -> ConversionConfig:
    """What the model was converted with. Raises ValueError if it was not."""
    kept = getattr(getattr(model, "config", None), "bsbr", None)
    if kept is None:
        raise ValueError("model: expected a converted model; use convert(…) on it first")
    return ConversionConfig(**kept)


def _perplexity(model: Any, documents: Sequence[Tensor]) -> float | None:
    """Mean over documents; None if there are none."""
    readings = (similarity.read(model, ids.view(1, -1).to(model.device)) for ids in documents)
    found = [similarity.compare(reading, reading).perplexity for reading in readings]
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
