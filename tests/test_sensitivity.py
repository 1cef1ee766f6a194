"""How layers and heads suffer, held to models that are converted and read as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bsbr import ConversionConfig, convert
from bsbr.conversion.converter import attention_modules
from bsbr.studies import sensitivity, similarity

HEADS, LAYERS, DIM = 4, 3, 6
SIZES: dict[str, Any] = dict(
    vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS
)
MAKERS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, initializer_range=0.5, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=24, n_layer=LAYERS, n_head=HEADS, n_positions=128, initializer_range=0.5)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(initializer_range=0.5, **SIZES)),
}
NOTHING_FAR = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=4, retrieval="none")
TOP_2 = ConversionConfig(chunk_size=8, local_chunks=1, sink_tokens=4, top_k=2, block_size=4)
CONFIGS = {"none": NOTHING_FAR, "top-k": TOP_2, "states": replace(NOTHING_FAR, retrieval="states")}
architectures = pytest.mark.parametrize("kind", MAKERS)
conversions = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


def original(kind: str = "llama") -> PreTrainedModel:
    torch.manual_seed(0)
    return MAKERS[kind]().eval().double()


def tokens(n: int = 45) -> torch.Tensor:
    return torch.randint(50, (1, n), generator=torch.Generator().manual_seed(n))


def projection(model: PreTrainedModel, layer: int) -> nn.Module:
    """The linear map to which a layer's heads hand their outputs."""
    module = attention_modules(model)[layer]
    return next(getattr(module, name) for name in ("o_proj", "c_proj", "dense") if hasattr(module, name))


def outputs(model: PreTrainedModel, ids: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer's heads give, side by side, in the pass over the text; and the logits of that pass."""
    seen: list[torch.Tensor] = []
    hook = projection(model, layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.inference_mode():
        logits = model(ids).logits
    hook.remove()
    return seen[0].unflatten(-1, (HEADS, DIM)), logits


def slow_head_divergences(model: PreTrainedModel, ids: torch.Tensor, config: ConversionConfig) -> Iterator[float]:
    """The whole model, read once for each head, with that head's outputs put in from the converted model."""
    for layer in range(LAYERS):
        before, exact = outputs(model, ids, layer)
        after, _ = outputs(convert(model, replace(config, layers=(layer,))), ids, layer)
        for head in range(HEADS):
            mixed = before.clone()
            mixed[..., head, :] = after[..., head, :]
            put_in = projection(model, layer).register_forward_pre_hook(lambda *_, mixed=mixed: (mixed.flatten(-2),))
            with torch.inference_mode():
                log_q = model(ids).logits.log_softmax(-1)
            put_in.remove()
            log_p = exact.log_softmax(-1)
            yield float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@architectures
@conversions
def test_a_layer_suffers_as_in_a_model_that_is_read_anew(kind: str, config: ConversionConfig) -> None:
    model, ids = original(kind), tokens()
    found = sensitivity.layer_sensitivity(model, ids, config)
    slow = sensitivity.layer_sensitivity_reference(model, ids, config)
    assert found.tolist() == pytest.approx(slow.tolist(), rel=1e-4, abs=1e-7)
    assert (found > 0).all()


@architectures
@conversions
def test_a_head_suffers_as_in_a_model_with_its_outputs_put_in(kind: str, config: ConversionConfig) -> None:
    model, ids = original(kind), tokens()
    found = sensitivity.head_sensitivity(model, ids, config)
    assert found.shape == (LAYERS, HEADS)
    assert found.flatten().tolist() == pytest.approx(list(slow_head_divergences(model, ids, config)), rel=1e-4)


@architectures
@conversions
def test_the_error_of_attention_is_on_the_originals_inputs(kind: str, config: ConversionConfig) -> None:
    model, ids = original(kind), tokens()
    found = sensitivity.attention_error(model, ids, config)
    for layer in range(LAYERS):  # a layer that is the first to be converted has the original's inputs
        before, _ = outputs(model, ids, layer)
        after, _ = outputs(convert(model, replace(config, layers=(layer,))), ids, layer)
        norms = [torch.linalg.vector_norm(x, dim=(0, 1, 3)) for x in (after - before, before)]
        error = 100 * norms[0] / norms[1]
        assert found[layer].tolist() == pytest.approx(error.tolist(), rel=1e-4)


def test_only_the_layers_that_are_named_are_tried() -> None:
    model, ids = original(), tokens()
    some = replace(TOP_2, layers=(0, 2))
    for measure in (sensitivity.layer_sensitivity, sensitivity.head_sensitivity, sensitivity.attention_error):
        torch.testing.assert_close(measure(model, ids, some), measure(model, ids, TOP_2)[[0, 2]])


@pytest.mark.parametrize("every", [2, 7, 100])
def test_the_divergence_may_be_taken_at_some_positions(every: int) -> None:
    model, ids = original(), tokens()
    readings = [similarity.read(read, ids) for read in (model, convert(model, replace(TOP_2, layers=(1,))))]
    positions = [t for t in range(ids.shape[1]) if (ids.shape[1] - 1 - t) % every == 0]
    exact = similarity.compare(*readings).divergence[positions].mean().item()
    found = sensitivity.layer_sensitivity(model, ids, replace(TOP_2, layers=(1,)), every)
    assert found.item() == pytest.approx(exact, rel=1e-4)


def test_the_model_stays_as_it_was() -> None:
    model, ids = original(), tokens()
    with torch.inference_mode():
        before = model(ids).logits
        for measure in (sensitivity.layer_sensitivity, sensitivity.head_sensitivity, sensitivity.attention_error):
            measure(model, ids, TOP_2)
        assert torch.equal(model(ids).logits, before)


def test_a_converted_model_is_still_read_by_its_own_attention_afterwards() -> None:
    model, ids = original(), tokens()
    changed = convert(model, TOP_2)
    with torch.inference_mode():
        before = changed(ids).logits
        sensitivity.attention_error(model, ids, TOP_2)
        assert torch.equal(changed(ids).logits, before)


def test_what_cannot_be_measured_is_refused() -> None:
    model, ids = original(), tokens()
    for measure in (sensitivity.layer_sensitivity, sensitivity.head_sensitivity, sensitivity.attention_error):
        with pytest.raises(ValueError, match="ids: expected one row of more than 8 tokens"):
            measure(model, ids[:, :8], TOP_2)
        with pytest.raises(ValueError, match="ids: expected one row of more than 45 tokens"):
            measure(model, ids, replace(TOP_2, original_below=45))
        with pytest.raises(ValueError, match="ids: expected one row"):
            measure(model, ids.repeat(2, 1), TOP_2)
        with pytest.raises(ValueError, match=r"layers: expected numbers from 0 to 2, got \[3\]"):
            measure(model, ids, replace(TOP_2, layers=(0, 3)))
    with pytest.raises(ValueError, match="every: expected at least 1, got 0"):
        sensitivity.layer_sensitivity(model, ids, TOP_2, every=0)


@architectures
def test_the_least_sensitive_layers_are_chosen(kind: str) -> None:
    model, documents = original(kind), [tokens(45), tokens(60)]
    slow = sum(sensitivity.layer_sensitivity_reference(model, ids, TOP_2) for ids in documents)
    order = sorted(range(LAYERS), key=slow.tolist().__getitem__)
    for budget in range(1, LAYERS + 1):
        assert sensitivity.least_sensitive(model, documents, budget, TOP_2) == tuple(sorted(order[:budget]))
    among = replace(TOP_2, layers=tuple(order[1:]))
    assert sensitivity.least_sensitive(model, documents, 1, among) == (order[1],)


def test_a_choice_of_layers_that_cannot_be_is_refused() -> None:
    model = original()
    with pytest.raises(ValueError, match="budget: expected 1 to 3 layers, got 4"):
        sensitivity.least_sensitive(model, [tokens()], 4, TOP_2)
    with pytest.raises(ValueError, match="documents: expected one text or more"):
        sensitivity.least_sensitive(model, [], 1, TOP_2)
    with pytest.raises(ValueError, match="ids: expected one row of more than 256 tokens"):
        sensitivity.least_sensitive(model, [tokens()], 1)


def test_the_command_names_the_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = original("gpt2").float()
    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, 50)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in tokens(60)[0].tolist()), encoding="utf-8")
    asked = [str(tmp_path), "--texts", str(tmp_path / "text.txt"), "--chunk-size", "8", "--local-chunks", "1"]
    asked += ["--sink-tokens", "4", "--block-size", "4", "--top-k", "2"]
    assert sensitivity.main([*asked, "--budget", "2"]) == 0
    chosen = sensitivity.least_sensitive(model, [tokens(60)], 2, TOP_2)
    assert capsys.readouterr().out == f"--layers {chosen[0]},{chosen[1]}\n"
    assert sensitivity.main([*asked, "--budget", "4"]) == 1
    assert "sensitivity: budget: expected 1 to 3 layers, got 4" in capsys.readouterr().err
