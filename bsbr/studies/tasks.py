"""What is timed of a model, and the rows that its times become.

Two phases: *prefill* reads a text, *decode* continues it by tokens, each the most likely one, with the state or the
cache that reading has left. Reading before decoding is never on the clock.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bsbr import stats
from bsbr.measure import speed
from bsbr.model import ModelState, TransformerLM
from bsbr.store import Row, is_out_of_memory, row
from bsbr.studies.original import Original

# -- Our models -----------------------------------------------------------------------------------


def prefill_task(model: TransformerLM | Original, ids: Tensor, *, fused: bool = True) -> speed.Task:
    """One pass over `ids` (batch, n) up to the last hidden state, without gradients.

    Args:
        fused: whether softmax attention may use a fused kernel; if not, it stores its matrices of scores.
    """

    @torch.inference_mode()
    def run(_: None) -> None:
        with contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            model.encode(ids)

    return speed.Task(run)


def decode_task(model: TransformerLM, ids: Tensor, new_tokens: int) -> speed.Task:
    """`new_tokens` decoded after `ids` (batch, n), which are read now; each call starts from a copy of that state."""
    with torch.inference_mode():
        logits, state = model.prefill(ids)
    first = logits.argmax(-1)

    @torch.inference_mode()
    def run(now: ModelState) -> None:
        token = first
        for _ in range(new_tokens):
            scores, now = model.step(token, now)
            token = scores.argmax(-1)

    return speed.Task(run, prepare=lambda: speed.clone(state))


# -- Hugging Face models --------------------------------------------------------------------------


@dataclass
class Prefilled:
    """What a prefill task has left: the cache of the text, and the next token (batch, 1); nothing before it ran."""

    cache: Any = None
    token: Tensor | None = None


def forward(model: Any, ids: Tensor, cache: Any = None) -> Any:
    """The pass that `generate` makes over `ids` (batch, n): logits of the last token, and the cache grown by n."""
    with torch.inference_mode():
        return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def generate_prefill_task(
    model: Any, ids: Tensor, left: Prefilled | None = None, *, first: int | None = None
) -> speed.Task:
    """The pass over `ids` (batch, n) with which `generate` begins.

    Args:
        left: where the last call leaves its cache and next token. What the call before left is freed first.
        first: tokens that the first call, which never counts, reads of the text; all by default.
    """
    left = Prefilled() if left is None else left
    texts = itertools.chain([ids[:, :first]], itertools.repeat(ids))

    def prepare() -> Tensor:
        left.cache = left.token = None
        return next(texts)

    def run(text: Tensor) -> None:
        output = forward(model, text)
        left.cache, left.token = output.past_key_values, output.logits.argmax(-1)

    return speed.Task(run, prepare)


def generate_decode_task(model: Any, left: Prefilled, new_tokens: int) -> speed.Task:
    """`new_tokens` decoded after what a prefill task has left; each call starts from a copy of its cache.

    One token is decoded now: in it a conversion builds the states of the prompt's chunks, once for the whole text.

    Raises:
        ValueError: the prefill task has not run.
    """
    if left.token is None:
        raise ValueError("left must be what a prefill task has filled, but that task has not run")
    cache, first = left.cache, forward(model, left.token, left.cache).logits.argmax(-1)

    def run(start: Any) -> None:
        token = first
        for _ in range(new_tokens):
            token = forward(model, token, start).logits.argmax(-1)

    return speed.Task(run, prepare=lambda: copy.deepcopy(cache))


# -- What does not fit ----------------------------------------------------------------------------


class Refused(NamedTuple):
    """Why there is no time: `status` of a row, and the reason in words."""

    status: str
    reason: str

    def row(self, name: str, **factors: Any) -> Row:
        """The row that stands for a number of that metric."""
        return row(name, None, status=self.status, reason=self.reason, **factors)


def ready(make: Callable[[int], speed.Task], n: int, limit: float) -> speed.Task | Refused:
    """The task of length n, called once, unless it does not fit into memory or a call would take over `limit` seconds.

    Args:
        make: the task of a length. What it does by itself, such as reading a prompt, counts as part of a call here.
    """

    def call(length: int) -> speed.Task:
        task = make(length)
        task.run(task.prepare())
        return task

    try:
        speed.foresee(call, n, limit)
        return call(n)
    except speed.TooLongError as error:
        return Refused("too_long", str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Refused("out_of_memory", (str(error).splitlines() or ["memory ran out"])[0][:200])


# -- Rows -----------------------------------------------------------------------------------------


def timed_rows(
    samples: Mapping[str, speed.Samples],
    factor: str,
    *,
    baseline: str | None = None,
    control: str | None = None,
    **factors: Any,
) -> list[Row]:
    """Rows of tasks that took turns: `time`, and by name how many times as fast as, and as long as, others.

    Args:
        samples: seconds by name, one a round.
        factor: what the names are values of.
        baseline: of `speedup`; a row for each other name, where it was timed.
        control: of `relative_time`, the same.
        factors: of every row.
    """
    rows = []
    for name, taken in samples.items():
        where: dict[str, Any] = {factor: name, **factors}
        rows.append(row("time", stats.median(taken), **where))
        if baseline is not None and baseline in samples and name != baseline:
            rows.append(row("speedup", stats.ratio(samples[baseline], taken), **where))
        if control is not None and control in samples and name != control:
            rows.append(row("relative_time", stats.ratio(taken, samples[control]), **where))
    return rows


def per_token_rows(samples: Mapping[str, speed.Samples], new_tokens: int, factor: str, **factors: Any) -> list[Row]:
    """Rows of `time_per_token` in milliseconds, of tasks that decode `new_tokens`."""
    return [
        row("time_per_token", stats.median(taken / new_tokens * 1000), **{factor: name, **factors})
        for name, taken in samples.items()
    ]
