"""What is true of `TransformerLM` whatever its mechanism: nothing here names one, except where it compares two."""

import dataclasses
import math
import re

import pytest
import torch
from models import VOCAB, every_mechanism, make, padding_mask, tokens

from bsbr import ModelConfig, TransformerLM
from bsbr.model import leaves


@every_mechanism
def test_no_token_sees_the_future(options):
    """For n from 1 to 700 around every chunk boundary, changing tokens ≥ t changes no output before t at all."""
    model = make(chunk_size=64, **{**options, "window_size": 64})
    lengths = sorted({n for edge in range(0, 701, 64) for n in (edge - 1, edge, edge + 1) if 1 <= n <= 700} | {700})
    with torch.inference_mode():
        for n in lengths:
            ids = tokens(1, n)
            before = model.encode(ids)
            for t in {1, n // 2, n // 64 * 64, n - 1} & set(range(1, n)):
                changed = ids.clone()
                changed[:, t:] = (changed[:, t:] + 1) % VOCAB
                after = model.encode(changed)
                assert torch.equal(after[:, :t], before[:, :t]), (n, t)
                assert not torch.equal(after[:, t:], before[:, t:]), (n, t)


@every_mechanism
def test_no_token_sees_the_future_or_the_padding_when_padded(options):
    model = make(**options)
    for side in ("left", "right"):
        ids, mask = tokens(3, 29), padding_mask([29, 13, 1], side)
        before = model.encode(ids, mask)
        padding_changed = torch.where(mask, ids, (ids + 7) % VOCAB)
        assert torch.equal(model.encode(padding_changed, mask), before)
        later = torch.arange(29) >= 20
        future_changed = torch.where(later, (ids + 1) % VOCAB, ids)
        assert torch.equal(model.encode(future_changed, mask)[:, :20], before[:, :20])


@every_mechanism
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gets_what_it_gets_alone(options, side):
    model = make(**options)
    lengths = [27, 16, 9, 1]
    ids, mask = tokens(4, 27), padding_mask(lengths, side)
    hidden = model.encode(ids, mask)
    for row in range(len(lengths)):
        alone = model.encode(ids[row][mask[row]][None])[0]
        torch.testing.assert_close(hidden[row][mask[row]], alone, rtol=1e-10, atol=1e-12)
    assert torch.equal(hidden[~mask], torch.zeros_like(hidden[~mask]))


@every_mechanism
@pytest.mark.parametrize("side", ["left", "right"])
def test_generating_equals_reading_the_prompt_again_for_each_token(options, side):
    model = make(**options)
    lengths = [21, 16, 7, 1]
    ids, mask = tokens(4, 21), padding_mask(lengths, side)
    generated = model.generate(ids, max_new_tokens=30, attention_mask=mask)[:, 21:]
    for row in range(len(lengths)):
        text = ids[row][mask[row]][None]
        for _ in range(30):
            text = torch.cat([text, model(text)[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(generated[row], text[0, -30:])


@every_mechanism
def test_a_step_gives_the_logits_of_the_whole_sequence(options):
    model = make(**options)
    ids = tokens(2, 40)
    whole = model(ids)
    for split in (1, 7, 8, 9, 23, 39):
        logits, state = model.prefill(ids[:, :split])
        for t in range(split, 40):
            torch.testing.assert_close(logits, whole[:, t - 1], rtol=1e-10, atol=1e-12)
            logits, state = model.step(ids[:, t], state)
        torch.testing.assert_close(logits, whole[:, -1], rtol=1e-10, atol=1e-12)


def test_bsbr_with_one_chunk_is_standard_attention_with_the_same_weights():
    for chunk_size in (40, 41, 512):
        chunked, exact = make(mechanism="bsbr", chunk_size=chunk_size), make(mechanism="standard")
        exact.load_state_dict({name: t for name, t in chunked.state_dict().items() if "meta" not in name})
        ids = tokens(2, 40)
        torch.testing.assert_close(chunked(ids), exact(ids), rtol=1e-12, atol=1e-12)


@every_mechanism
def test_gradient_checkpointing_changes_no_gradient(options):
    model = make(**options).train()
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(tokens(2, 21)).logsumexp(-1).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@every_mechanism
def test_what_stands_at_padding_need_not_be_finite(options):
    """A row of the embedding that was never trained, as after a table grew."""
    model, mask = make(**options), padding_mask([30, 21, 9], "left")
    ids = tokens(3, 30).clamp(max=VOCAB - 2)
    padded = torch.where(mask, ids, VOCAB - 1)
    right, (logits, right_state) = model.encode(ids, mask), model.prefill(ids, mask)
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            model.embedding.weight[VOCAB - 1] = value
        assert torch.equal(model.encode(padded, mask), right)
        found, state = model.prefill(padded, mask)
        torch.testing.assert_close(found[:, :-1], logits[:, :-1])
        for t in range(20):
            found, state = model.step(ids[:, t], state)
            assert found[:, :-1].isfinite().all()
    with torch.no_grad():
        model.embedding.weight[VOCAB - 1] = 0.0
    assert right_state.length.tolist() == [30, 21, 9]


@every_mechanism
def test_gradients_pass_through_decoding_as_through_a_whole_pass(options):
    model, ids = make(**options), tokens(2, 45)
    gradients = []
    for decode in (False, True):
        model.zero_grad()
        if decode:
            logits, state = model.prefill(ids[:, :13])
            outputs = [logits]
            for t in range(13, 45):
                logits, state = model.step(ids[:, t], state)
                outputs.append(logits)
            found = torch.stack(outputs, dim=1)
        else:
            found = model(ids)[:, 12:]
        found.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-8, atol=1e-12, msg=name)


@every_mechanism
def test_a_state_of_inference_mode_can_be_stepped_outside_it(options):
    model, ids = make(**options), tokens(2, 21)
    with torch.inference_mode():
        _, state = model.prefill(ids[:, :15])
    for t in range(15, 21):
        with torch.no_grad():
            logits, state = model.step(ids[:, t], state)
    torch.testing.assert_close(logits, model(ids)[:, -1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mechanism": "mamba"}, "mechanism must be one of standard, bsbr"),
        ({"hidden_dim": 30, "num_heads": 4}, "hidden_dim must be a multiple of 2 · num_heads"),
        ({"chunk_size": 0}, "chunk_size must be a whole number ≥ 1"),
        ({"num_layers": 1.5}, "num_layers must be a whole number ≥ 1"),
        ({"top_k": 0}, "top_k must be a whole number ≥ 1 or None"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"dropout": "0.1"}, r"dropout must lie in \[0, 1\)"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\)"),
        (
            {"mechanism": ["bsbr", "mamba"]},
            "mechanism must be one of standard, bsbr, .* or a list with one for each lay",
        ),
        ({"mechanism": []}, "mechanism must be one of standard, bsbr"),
        ({"mechanism": {"bsbr"}}, "mechanism must be one of standard, bsbr"),
        (
            {"mechanism": ["bsbr"] * 3 + ["standard"]},
            "mechanism must be one name, or one for each of num_layers = 2 layers, but has 4; set num_layers=4",
        ),
        ({"short_conv": 0}, "short_conv must be a whole number ≥ 1 or None, but is 0"),
        ({"short_conv": True}, "short_conv must be a whole number ≥ 1 or None, but is True"),
        ({"hidden_dim": "256"}, "hidden_dim must be a whole number ≥ 1"),
        ({"window_size": 2**31 + 1}, "window_size must be at most 2,147,483,648, but is 2147483649"),
        ({"num_layers": 1_000_000}, "num_layers must be at most 1000, but is 1000000"),
        ({"beta": "1"}, r"beta must lie in \(0, 1\]"),
        ({"beta": float("nan")}, r"beta must lie in \(0, 1\]"),
        ({"inverse_temperature": float("inf")}, "inverse_temperature must be > 0 and finite"),
        ({"inverse_temperature": "2"}, "inverse_temperature must be > 0 and finite"),
        ({"feature_map": None}, "feature_map must be a name"),
        ({"retrieval": None}, "retrieval must be a name"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"mechanism": "bsbr", **options})


def test_a_dict_is_no_config():
    with pytest.raises(ValueError, match=r"config must be a ModelConfig, but is a dict; write ModelConfig\(mechanism"):
        TransformerLM({"mechanism": "bsbr"})


def test_a_compression_factor_that_does_not_divide_head_dim_is_refused():
    with pytest.raises(ValueError, match="compression_factor must divide head_dim = 16, but is 3"):
        make(mechanism="bsbr", compression_factor=3)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(5, dtype=torch.long), None, r"input_ids must be .* of shape \(batch, n\)"),
        (torch.zeros(1, 5), None, "input_ids must be int64 or int32"),
        ([[1, 2]], None, r"input_ids must be int64 or int32 of shape \(batch, n\), but is \[\[1, 2\]\]"),
        ("text", None, "input_ids must be int64 or int32 .* but is 'text'; tokenise first"),
        (tokens(1, 5), [[1] * 5], "attention_mask must be a tensor"),
        (torch.zeros(1, 0, dtype=torch.long), None, "input_ids must hold at least one row of one token"),
        (torch.zeros(0, 5, dtype=torch.long), None, "input_ids must hold at least one row of one token"),
        (torch.full((1, 5), VOCAB), None, f"input_ids must lie in 0 … {VOCAB - 1}"),
        (torch.full((1, 5), -1), None, "input_ids must lie in"),
        (tokens(1, 5), torch.ones(1, 4, dtype=torch.long), "attention_mask must have the shape of input_ids"),
        (tokens(1, 5), torch.ones(5, dtype=torch.long), "attention_mask must have the shape of input_ids"),
        (tokens(1, 5), torch.ones(1, 5), "attention_mask must be bool or whole numbers"),
        (tokens(1, 5), torch.full((1, 5), 2), "attention_mask must hold only 0"),
        (tokens(1, 5), torch.zeros(1, 5, dtype=torch.long), "attention_mask must mark at least one token"),
    ],
)
def test_bad_input_is_named(ids, mask, message):
    model = make(mechanism="bsbr")
    for call in (model.encode, model, model.prefill, lambda i, m: model.generate(i, 1, m)):
        with pytest.raises(ValueError, match=message):
            call(ids, mask)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_new_tokens", value) for value in (-1, 2.5, math.nan, True, "5", 10**12)),
        *(("temperature", value) for value in (-0.1, math.nan, "hot", None, True)),
        *(("eos_token_id", value) for value in (-1, VOCAB, 2.0, "end")),
    ],
)
def test_bad_generation_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} must .* but is {re.escape(repr(value))}"):
        make(mechanism="bsbr").generate(tokens(1, 5), **{"max_new_tokens": 1, option: value})


def test_the_hottest_temperature_draws_evenly_and_broken_logits_are_named():
    model = make(mechanism="standard")
    assert model.generate(tokens(1, 5), 200, temperature=math.inf)[0, 5:].unique().numel() > VOCAB / 2
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="logits must be finite to draw tokens from"):
        model.generate(tokens(1, 5), 1, temperature=1.0)


@every_mechanism
def test_a_step_that_is_not_of_its_state_is_named(options):
    model = make(**options)
    _, state = model.prefill(tokens(3, 9))
    for ids in (tokens(2), tokens(1), tokens(3, 1), torch.zeros(3), [1, 2, 3]):
        with pytest.raises(ValueError, match=r"ids must be int64 or int32 of shape \(3,\), one id for each row"):
            model.step(ids, state)
    with pytest.raises(ValueError, match="ids must lie in 0 … 60"):
        model.step(torch.full((3,), VOCAB), state)
    with pytest.raises(ValueError, match="state must be what prefill or step of this model returned, 1 layers of"):
        make(num_layers=1, **options).step(tokens(3), state)
    other = make(mechanism="linear" if options["mechanism"] != "linear" else "standard")
    with pytest.raises(ValueError, match=r"state must be what .* 2 layers of \w+\.\w+, but has 2 of \w+\.\w+"):
        other.step(tokens(3), state)
    with pytest.raises(ValueError, match="state must be what prefill or step of this model returned, but is a tuple"):
        model.step(tokens(3), tuple(state))
    with pytest.raises(ValueError, match=r"state must hold the same rows in all .* 2 and tensors of 3"):
        model.step(tokens(2), state._replace(length=state.length[:2]))


@pytest.mark.parametrize("size", [512, 2**31], ids=["512", "2^31"])
@pytest.mark.parametrize(
    "options",
    [
        {"mechanism": "sliding_window", "window_size": 1},
        {"mechanism": "bsbr", "local_chunks": 1},
        {"mechanism": "bsbr", "local_chunks": 1, "chunk_size": 1},
        {"mechanism": "bsbr", "chunk_size": 1, "top_k": 1},
        {"mechanism": "bsbr", "local_chunks": 1, "retrieval": "uniform"},
        {"mechanism": "bsbr", "local_chunks": 1, "top_k": 2, "retrieval": "exact"},
        {"mechanism": "bsbr", "chunk_size": 1, "top_k": 2, "retrieval": "exact"},
        {"mechanism": "bsbr", "top_k": 1, "retrieval": "exact"},
        {"mechanism": "gau", "chunk_size": 1, "key_dim": 16},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_a_size_beyond_the_text_costs_no_more_than_the_text(options, size):
    """Rows of 20 and 7 tokens decoded on by 180: what is kept grows with them, a little ahead."""
    model = make(**{name: size if value == 1 else value for name, value in options.items()})
    ids, mask = tokens(2, 200), padding_mask([20, 7], "right")
    with torch.inference_mode():
        logits, state = model.prefill(ids[:, :20], mask)
        assert most_vectors(state) <= 64
        for t in range(20, 200):
            logits, state = model.step(ids[:, t], state)
        texts = ids[:1], torch.cat([ids[1:, :7], ids[1:, 20:]], dim=1)
        whole = torch.cat([model(text)[:, -1] for text in texts])
    torch.testing.assert_close(logits, whole, rtol=1e-10, atol=1e-12)
    assert most_vectors(state) <= 5 * 200


def most_vectors(state):
    """Of one head of one row, in the largest part of a state: those of tokens, or the rows of matrices."""
    return max(x[0, 0].numel() // max(x.shape[-1], 1) for x in leaves(state.layers[0]) if x.ndim >= 4)


def test_generation_stops_when_every_row_has_ended():
    model = make(mechanism="bsbr")
    free = model.generate(tokens(1, 5), max_new_tokens=20)[0, 5:]
    eos = int(free[3])
    stopped = model.generate(tokens(1, 5), max_new_tokens=20, eos_token_id=eos)[0, 5:]
    first = free.tolist().index(eos)
    assert stopped.tolist() == free.tolist()[: first + 1]


def test_sampling_is_repeatable_and_follows_the_temperature():
    model = make(mechanism="bsbr")
    draw = [
        model.generate(tokens(1, 5), 20, temperature=t, generator=torch.Generator().manual_seed(3)).tolist()
        for t in (1.0, 1.0, 1e-6)
    ]
    assert draw[0] == draw[1]
    assert draw[2] == model.generate(tokens(1, 5), 20).tolist()


def test_a_config_cannot_be_changed_under_a_model():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(mechanism="bsbr").config.chunk_size = 4  # type: ignore[misc]
