"""The passkey task: what a prompt is made of, and that a score says what greedy decoding would write."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bsbr.studies import passkey

VOCABULARY = sorted(set(passkey.LINE + passkey.QUESTION + "0123456789"))
FILLER = len(VOCABULARY)  # an id of its own, so that what comes of the document can be told


class Characters:
    """A tokenizer with a token for each character."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [VOCABULARY.index(character) for character in text]}


class Pairs(Characters):
    """One that joins digits."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = super().__call__(text)["input_ids"]
        return {"input_ids": ids[::2] if text.isdigit() else ids}


def document(n: int = 1000) -> torch.Tensor:
    """Each token has an id of its own, above those of the characters."""
    return FILLER + torch.arange(n)


def text_of(ids: torch.Tensor) -> str:
    return "".join(VOCABULARY[i] if i < FILLER else "·" for i in ids.tolist())


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(
        vocab_size=FILLER + 1000, num_key_value_heads=1, initializer_range=0.5, eos_token_id=None, **sizes
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("distance", [len(passkey.QUESTION), 100, 701])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_line_ends_exactly_the_distance_before_the_end(distance: int, seed: int) -> None:
    asked = passkey.prompt(Characters(), document(), distance, seed)
    line = passkey.LINE.format(code=asked.code)
    text = text_of(asked.ids)
    assert len(text) - (text.index(line) + len(line)) == distance == asked.distance
    assert text.endswith(passkey.QUESTION) and text.count(asked.code) == 2
    assert text_of(asked.answer) == asked.code and len(asked.code) == passkey.DIGITS
    before = text.index(line)
    assert passkey.BEFORE[0] <= before < passkey.BEFORE[1] and len(text) <= passkey.longest(distance) + len(line)


def test_the_filler_is_one_stretch_of_the_document() -> None:
    ids = passkey.prompt(Characters(), document(), 300, seed=3).ids
    filler = ids[ids >= FILLER]
    assert (filler.diff() == 1).all() and filler[0] > FILLER


def test_a_document_of_several_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"document: expected ids in one dimension, got shape \(2, 500\)"):
        passkey.prompt(Characters(), document().view(2, 500), 100, seed=0)


def test_trials_differ_and_are_the_same_again() -> None:
    trials = [passkey.prompt(Characters(), document(), 300, seed) for seed in range(20)]
    again = [passkey.prompt(Characters(), document(), 300, seed) for seed in range(20)]
    assert all(torch.equal(a.ids, b.ids) and a.code == b.code for a, b in zip(trials, again, strict=True))
    assert len({trial.code for trial in trials}) == 20
    assert len({len(trial.ids) for trial in trials}) > 5, "chunks should fall anywhere"


def test_a_longer_document_is_not_needed() -> None:
    for seed in range(50):
        passkey.prompt(Characters(), document(passkey.longest(200)), 200, seed)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="document: expected at least 688 tokens for distance=400, got 687"):
        passkey.prompt(Characters(), document(687), 400, seed=0)
    with pytest.raises(ValueError, match=f"distance: expected at least the {len(passkey.QUESTION)} tokens"):
        passkey.prompt(Characters(), document(), len(passkey.QUESTION) - 1, seed=0)
    with pytest.raises(ValueError, match="tokenizer: expected one token a digit"):
        passkey.prompt(Pairs(), document(), 300, seed=0)


def test_found_is_what_greedy_decoding_writes() -> None:
    model = tiny_llama()
    asked = passkey.prompt(Characters(), document(), 100, seed=0)
    ids = asked.ids[None]
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=passkey.DIGITS, do_sample=False)
    written = written[0, len(asked.ids) :]
    assert passkey.score(model, passkey.Prompt(asked.ids, written, "", 100)).found
    for place in range(passkey.DIGITS):
        wrong = written.clone()
        wrong[place] = (wrong[place] + 1) % FILLER
        assert not passkey.score(model, passkey.Prompt(asked.ids, wrong, "", 100)).found


def test_likelihood_is_of_the_whole_answer() -> None:
    model = tiny_llama()
    asked = passkey.prompt(Characters(), document(), 100, seed=1)
    score = passkey.score(model, asked)
    with torch.inference_mode():
        ids = torch.cat([asked.ids, asked.answer])
        log = model(ids[None]).logits[0].log_softmax(-1)
    expected = sum(log[len(asked.ids) + i - 1, digit].item() for i, digit in enumerate(asked.answer.tolist()))
    assert score.likelihood == pytest.approx(expected, rel=1e-4)
    assert score.seconds > 0 and isinstance(score.found, bool)
