"""The passkey task: five digits are told once, thousands of tokens of real text follow, and the end asks for them.

After Mohtashami and Jaggi 2023, "Landmark Attention" (arXiv 2305.16300), with a real document for filler where they
repeat one sentence. Reading the answer needs one far line and nothing else, so it shows what averages over tokens hide.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

LINE = "\n\nThe pass key is {code}. Remember it. {code} is the pass key.\n\n"
QUESTION = "\n\nWhat is the pass key? The pass key is "
DIGITS = 5
BEFORE = (160, 288)  # tokens of the document before the line, at least and below; varied, so that chunks fall anywhere


@dataclass(frozen=True)
class Prompt:
    """A text with a passkey in it, up to the point where the answer would follow, and that answer."""

    ids: Int[Tensor, " n"]
    answer: Int[Tensor, " digits"]
    code: str
    distance: int


@dataclass(frozen=True)
class Score:
    """What a model makes of a prompt: whether it names the passkey, log-probability of the whole answer, seconds."""

    found: bool
    likelihood: float
    seconds: float


def longest(distance: int) -> int:
    """Tokens of a document that suffice for a prompt of that distance, whatever its seed."""
    return BEFORE[1] + distance


def prompt(tokenizer: Any, document: Int[Tensor, " tokens"], distance: int, seed: int) -> Prompt:
    """A stretch of a document with the line of a passkey in it and the question at its end.

    Args:
        tokenizer: the model's; it must make one token of each digit.
        document: the ids of the text that the line is hidden in.
        distance: tokens between the end of that line and the end of the prompt, the question included.
        seed: decides the passkey, where the stretch begins and how much of it comes before the line.

    Raises:
        ValueError: the document is of several rows, or it or the distance is too short, or the tokenizer joins digits.
    """
    if document.ndim != 1:
        raise ValueError(f"document: expected ids in one dimension, got shape {tuple(document.shape)}")
    rng = np.random.default_rng(seed)
    code = "".join(str(digit) for digit in rng.integers(0, 10, DIGITS))
    line, question, answer = (_ids(tokenizer, text) for text in (LINE.format(code=code), QUESTION, code))
    if len(answer) != DIGITS:
        raise ValueError(f"tokenizer: expected one token a digit, got {len(answer)} tokens for {code!r}")
    if distance < len(question):
        raise ValueError(f"distance: expected at least the {len(question)} tokens of the question, got {distance}")
    before, between = int(rng.integers(*BEFORE)), distance - len(question)
    if len(document) < longest(distance):
        raise ValueError(f"document: expected at least {longest(distance)} tokens for {distance=}, got {len(document)}")
    start = int(rng.integers(0, len(document) - before - between + 1))
    stretch = document[start : start + before + between].cpu()
    return Prompt(torch.cat([stretch[:before], line, stretch[before:], question]), answer, code, distance)


def _ids(tokenizer: Any, text: str) -> Int[Tensor, " tokens"]:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def score(model: Any, asked: Prompt) -> Score:
    """Read a prompt with its answer in one pass, a batch of one.

    The passkey is found if each digit is the model's first choice after the prompt and the right digits before it,
    which is when greedy decoding would write it. Seconds are those of the pass.
    """
    ids = torch.cat([asked.ids, asked.answer])[None].to(model.device)
    answer = asked.answer.to(model.device)
    begin = _clock(model.device)
    logits = model(ids[:, :-1], use_cache=False, logits_to_keep=len(answer)).logits[0].float()
    seconds = _clock(model.device) - begin
    likelihood = -F.cross_entropy(logits, answer, reduction="sum").item()
    return Score(bool((logits.argmax(-1) == answer).all()), likelihood, seconds)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
