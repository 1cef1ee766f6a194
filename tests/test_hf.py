"""The backbone behind the interface of transformers says what the backbone says, and refuses what it cannot do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import every_mechanism, make, tokens
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from bsbr import TransformerLM
from bsbr.hf import BSBRCache, BSBRConfig, BSBRForCausalLM
from bsbr.model import Block, leaves

transformers_logging.disable_progress_bar()
GREEDY = dict(do_sample=False, max_new_tokens=12, eos_token_id=None)
ROUNDING = dict(rtol=1e-9, atol=1e-9)


def wrapped(**options: Any) -> BSBRForCausalLM:
    return BSBRForCausalLM.from_backbone(make(**{"mechanism": "bsbr", **options}))


def padded(ids: torch.Tensor, left: int) -> torch.Tensor:
    """A mask by which the second row begins with padding."""
    mask = torch.ones_like(ids)
    mask[1, :left] = 0
    return mask


# -- The same numbers -----------------------------------------------------------------------------


@every_mechanism
@torch.no_grad()
def test_it_says_what_the_backbone_says(options):
    backbone = make(**options)
    model, ids = BSBRForCausalLM.from_backbone(backbone), tokens(2, 21)
    mask = padded(ids, 5)
    assert torch.equal(model(ids).logits, backbone(ids))
    out = model(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    assert torch.equal(out.logits, backbone(ids, mask)) and out.past_key_values is None
    assert torch.equal(out.hidden_states[-1], backbone.encode(ids, mask)) and len(out.hidden_states) == 3
    alone = model(ids[1:, 5:], output_hidden_states=True).hidden_states
    for one, padded_one in zip(alone, out.hidden_states, strict=True):
        torch.testing.assert_close(one, padded_one[1:, 5:], **ROUNDING)
        assert not padded_one[1, :5].any()


@every_mechanism
def test_generate_reads_the_prompt_once_and_says_what_reading_it_anew_says(options, monkeypatch):
    backbone = make(**options)
    model, ids = BSBRForCausalLM.from_backbone(backbone), tokens(2, 21)
    mask = padded(ids, 5)
    found = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(found, backbone.generate(ids, 12, mask))
    with monkeypatch.context() as patch:
        patch.setattr(TransformerLM, "encode", None)
        read = []
        patch.setattr(
            model.model.blocks[0],
            "prefill",
            lambda *args: read.append(1) or Block.prefill(model.model.blocks[0], *args),
        )
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), found) and read == [1]
    for how in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        with_cache, without = (
            model.generate(ids, attention_mask=mask, use_cache=use, **{**GREEDY, **how}) for use in (True, False)
        )
        assert torch.equal(with_cache, without), how


@pytest.mark.parametrize("n", [21, 6])
@every_mechanism
@torch.no_grad()
def test_a_second_turn_of_rows_of_other_lengths_goes_on_where_each_row_was(options, n):
    """From 6 tokens, tensors grow while a row waits."""
    model = wrapped(**options)
    first, second = tokens(2, n), tokens(2, 19, seed=3)
    masks = padded(first, 5), padded(second, 7).flip(0)
    mask, both = torch.cat(masks, 1), torch.cat([first, second], 1)
    whole = model(both, attention_mask=mask, output_hidden_states=True)
    cache = model(first, attention_mask=masks[0], use_cache=True).past_key_values
    out = model(second, attention_mask=mask, past_key_values=cache, output_hidden_states=True)
    torch.testing.assert_close(out.logits, whole.logits[:, n:], **ROUNDING)
    assert cache is out.past_key_values and cache.get_seq_length() == n + 19
    real = masks[1].bool()
    for one, other in zip(out.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(one[real], other[:, n:][real], **ROUNDING)


def test_generate_goes_on_from_a_cache_that_it_returned():
    model, ids = wrapped(), tokens(2, 13)
    once = model.generate(ids, return_dict_in_generate=True, **{**GREEDY, "max_new_tokens": 5})
    kept = copy.deepcopy(once.past_key_values)
    asked = torch.cat([once.sequences, tokens(2, 4, seed=5)], 1)
    for cache in (once.past_key_values, kept):
        again = model.generate(asked, past_key_values=cache, **GREEDY)
        assert torch.equal(again, model.generate(asked, **GREEDY))


def test_a_seed_gives_the_same_sample_and_a_stream_gives_it_token_by_token():
    class Stream(BaseStreamer):
        def __init__(self) -> None:
            self.found: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.found += value.flatten().tolist()

        def end(self) -> None:
            self.found.append(-1)

    model, ids, streams = wrapped(), tokens(1, 9), [Stream(), Stream()]
    drawn = []
    for seed, stream in zip((0, 0), streams, strict=True):
        torch.manual_seed(seed)
        drawn.append(model.generate(ids, do_sample=True, top_k=20, temperature=5.0, max_new_tokens=15, streamer=stream))
    assert torch.equal(*drawn) and streams[0].found == [*drawn[0][0].tolist(), -1]
    torch.manual_seed(1)
    assert not torch.equal(model.generate(ids, do_sample=True, temperature=5.0, max_new_tokens=15), drawn[0])


def test_a_cache_gives_its_rows_and_forgets():
    model, ids = wrapped(), tokens(3, 10)
    cache = model(ids, use_cache=True).past_key_values
    assert (len(cache), cache.batch_size, cache.get_seq_length(), cache.get_max_length()) == (2, 3, 10, -1)
    before = [x.clone() for x in leaves(cache.state)]
    cache.batch_select_indices(torch.tensor([True, False, True]))
    cache.batch_repeat_interleave(2)
    assert all(torch.equal(x, old[[0, 0, 2, 2]]) for x, old in zip(leaves(cache.state), before, strict=True))
    cache.reorder_cache(torch.tensor([3]))
    cache.crop(0)
    assert cache.batch_size == 1 and "10 columns of 1 rows" in repr(cache)
    cache.reset()
    assert not cache.is_initialized and cache.get_seq_length() == len(cache) == 0
    assert torch.equal(model(ids, past_key_values=cache).logits, model(ids).logits)


# -- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_attentions": True}, "output_attentions must be left out: .*studies.attention_maps"),
        (
            {"inputs_embeds": torch.zeros(1, 9, 32), "input_ids": None},
            "input_ids must be given: .*reads input_ids only",
        ),
        ({"position_ids": torch.arange(9)[None]}, "position_ids must be left out: positions are counted"),
        ({"cu_seq_lens_q": torch.arange(2)}, "cu_seq_lens_q must be left out: this model does not read it"),
        ({"past_key_values": DynamicCache()}, "past_key_values must be a BSBRCache, .* but is a DynamicCache"),
        ({"attention_mask": torch.ones(1, 7)}, r"attention_mask must have a column for each of the 9 .*\(1, 7\)"),
        ({"input_ids": torch.full((1, 9), 61)}, "input_ids must lie in 0 … 60"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_forward_names_what_it_does_not_read(arguments, message):
    with pytest.raises(ValueError, match=message):
        wrapped()(**{"input_ids": tokens(1, 9), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_lookup_num_tokens": 2}, "assisted generation is not supported with stateful models"),
        ({"assistant_model": wrapped()}, "assisted generation is not supported with stateful models"),
        ({"cache_implementation": "static"}, "cache_implementation must be None, but is 'static'"),
        ({"attention_mask": torch.tensor([[1] * 8 + [0]])}, "attention_mask must end with a token .* pad on the left"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_generate_names_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        wrapped().generate(tokens(1, 9), max_new_tokens=2, **arguments)


def test_a_cache_takes_no_tokens_back_and_no_keys_of_others():
    with pytest.raises(ValueError, match=r"tokens_to_remove must be 0, but is 2: .*copy\.deepcopy"):
        BSBRCache().crop(2)
    with pytest.raises(ValueError, match="a BSBRCache holds the state of a BSBRForCausalLM"):
        BSBRCache().update(torch.zeros(1), torch.zeros(1), 0)


def test_a_config_is_checked_as_the_backbone_s():
    with pytest.raises(ValueError, match="chunk_size must be a whole number ≥ 1"):
        BSBRConfig(chunk_size=0)
    config = BSBRConfig(hidden_size=64, top_k=2)
    assert config.model_config.hidden_dim == config.hidden_size == 64 and config.model_config.top_k == 2
    with pytest.raises(ValueError, match="hidden_dim must be a multiple"):
        config.hidden_size = 63


# -- Folders --------------------------------------------------------------------------------------


@every_mechanism
def test_either_class_reads_the_other_s_folder(options, tmp_path):
    backbone, ids = make(torch.bfloat16, **options), tokens(1, 21)
    BSBRForCausalLM.from_backbone(backbone).save_pretrained(tmp_path / "ours")
    backbone.save_pretrained(tmp_path / "theirs")
    assert AutoConfig.from_pretrained(tmp_path / "ours").model_config == backbone.config
    for folder in ("ours", "theirs"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert isinstance(model, BSBRForCausalLM) and model.dtype == torch.bfloat16 and not model.training
        assert model.model.config == backbone.config and model.generation_config.top_k is None
        assert torch.equal(model(ids).logits, TransformerLM.from_pretrained(tmp_path / folder)(ids))
        for name, weight in backbone.state_dict().items():
            assert torch.equal(model.state_dict()[f"model.{name}"], weight), name


def test_a_folder_of_transformers_with_an_option_that_is_unknown_is_refused(tmp_path):
    wrapped().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["flash"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not know: flash"):
        TransformerLM.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="flash"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@every_mechanism
def test_new_weights_are_drawn_as_the_backbone_draws_them(options):
    config = BSBRForCausalLM.from_backbone(make(**options)).config
    config.dtype = None
    made = []
    for new in (
        lambda: TransformerLM(config.model_config),
        lambda: BSBRForCausalLM(config).model,
        lambda: BSBRForCausalLM.from_pretrained(None, config=config, state_dict={}).model,
    ):
        torch.manual_seed(3)
        made.append(new().state_dict())
    assert all(torch.equal(made[0][name], other[name]) for other in made[1:] for name in made[0])


# -- Training -------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_next_tokens_and_checkpointing_keeps_its_gradients():
    model, ids = wrapped(), tokens(2, 17)
    labels = ids.masked_fill(torch.arange(17) < 4, -100)
    wanted = torch.nn.functional.cross_entropy(model.model(ids)[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.activation_checkpointing_enable()
        out = model.train()(ids, labels=labels)
        assert out.past_key_values is None and model.model.gradient_checkpointing == checkpointing
        torch.testing.assert_close(out.loss.double(), wanted, rtol=1e-5, atol=1e-5)
        out.loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **ROUNDING)


def test_tokens_are_added_to_the_vocabulary():
    model, ids = wrapped(), tokens(1, 9)
    before = model(ids).logits
    model.resize_token_embeddings(64)
    assert model.config.vocab_size == model.model.config.vocab_size == model.vocab_size == 64
    torch.testing.assert_close(model(ids).logits[..., :61], before, **ROUNDING)
    assert model(torch.full((1, 2), 63)).logits.shape == (1, 2, 64)


def rows() -> list[dict[str, list[int]]]:
    ids = tokens(8, 12).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def test_trainer_goes_on_from_a_checkpoint_to_the_same_weights(tmp_path):
    def trained(name: str, **how: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = wrapped().float()
        arguments = TrainingArguments(
            str(tmp_path / name), max_steps=4, save_steps=2, report_to="none", disable_tqdm=True, use_cpu=True,
            per_device_train_batch_size=2, learning_rate=1e-2,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows()).train(**how)
        return model.state_dict()

    straight = trained("one")
    resumed = trained("two", resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    start = wrapped().float().state_dict()
    assert not torch.equal(straight["model.norm.weight"], start["model.norm.weight"])
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert load_file(tmp_path / "one" / "checkpoint-4" / "model.safetensors").keys() == straight.keys()


@pytest.mark.parametrize("mechanism", ["bsbr", "gau"])
def test_a_lora_trains_decodes_is_kept_and_merged(mechanism, tmp_path):
    model, ids = wrapped(mechanism=mechanism), tokens(2, 13)
    torch.manual_seed(0)
    wanted = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["in_proj", "out_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), wanted).double()
    adapted.train()(ids, labels=ids).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)
    adapted.eval()
    assert not torch.allclose(adapted(ids).logits, model(ids).logits)
    assert torch.equal(*(adapted.generate(input_ids=ids, use_cache=use, **GREEDY) for use in (True, False)))
    adapted.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(model, tmp_path).merge_and_unload()
    assert isinstance(merged, BSBRForCausalLM)
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-6, atol=1e-6)


def test_the_package_alone_imports_neither_transformers_nor_torch():
    code = "import sys, bsbr, bsbr.config; sys.exit(any(name in sys.modules for name in ('transformers', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
