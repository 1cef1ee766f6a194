"""What is true of every model is true of every mix of two mechanisms, with and without a short convolution."""

import json

import pytest
import torch
from models import VOCAB, make, padding_mask, tokens
from test_mechanisms import reorder
from test_short_conv import reference as convolved
from torch import Tensor

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.measure import flops
from bsbr.model import Block
from bsbr.rotary import Rotary
from bsbr.short_conv import ShortConv
from bsbr.studies import attention_maps, operations

every_mix = pytest.mark.parametrize("width", [None, 4], ids=["plain", "conv"])
PAIRS = [(one, other) for one in MECHANISMS for other in MECHANISMS]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


def mix(pair: tuple[str, ...], width: int | None) -> TransformerLM:
    sizes = dict(hidden_dim=16, num_heads=2, ff_dim=8, chunk_size=4, window_size=5, key_dim=6, expansion=1)
    return make(**sizes, mechanism=pair, num_layers=len(pair), short_conv=width)


def left_padded() -> tuple[Tensor, Tensor]:
    return tokens(4, 19), padding_mask([19, 12, 7, 1], "left")


@every_pair
@every_mix
def test_the_fast_forms_are_the_formulas(pair, width, monkeypatch):
    """Every mechanism and the convolution token by token, in the same backbone; and the counted operations."""
    model, ids = mix(pair, width), tokens(2, 14)
    with torch.inference_mode():
        fast = model.encode(ids)
        assert flops.count(lambda: model.encode(ids[:1])) == operations.expected(model.config, 14).forward
        monkeypatch.setattr(ShortConv, "forward", lambda conv, x, n: convolved(conv.kernel, x)[:, -n:])
        torch.testing.assert_close(fast, model._encode(ids, layer=by_formula), rtol=1e-10, atol=1e-12)


def by_formula(block: Block, x: Tensor, rotary: Rotary) -> Tensor:
    mixer, normed = block.mixer, block.mixer_norm(x)
    read = mixer.attention.reference(*mixer.project(normed, rotary), **mixer.options)
    return block._feed(x, mixer.merge(normed, read))


@every_pair
@every_mix
def test_no_token_sees_the_future_or_the_padding(pair, width):
    model, (ids, mask) = mix(pair, width), left_padded()
    with torch.inference_mode():
        before = model.encode(ids, mask)
        assert torch.equal(model.encode(torch.where(mask, ids, (ids + 7) % VOCAB), mask), before)
        for t in (5, 12, 18):
            later = torch.arange(19) >= t
            after = model.encode(torch.where(later, (ids + 1) % VOCAB, ids), mask)
            assert torch.equal(after[:, :t], before[:, :t]) and not torch.equal(after[:, t:], before[:, t:])


@every_pair
@every_mix
def test_decoding_from_any_split_is_reading_again(pair, width):
    """Rows of unlike lengths, each of which gets what it gets alone; after two steps they change places."""
    model, (ids, mask), later = mix(pair, width), left_padded(), tokens(13, seed=2)
    texts = [row[real] for row, real in zip(ids, mask, strict=True)]
    order = torch.tensor([3, 1, 0, 2])
    with torch.inference_mode():
        right = [model(torch.cat([text, later])[None])[0, len(text) - 1 :] for text in texts]
        logits, state = model.prefill(ids, mask)
        for step in range(13):
            torch.testing.assert_close(logits, torch.stack([row[step] for row in right]), rtol=1e-10, atol=1e-12)
            if step == 2:
                state = type(state)(tuple(reorder(layer, order) for layer in state.layers), state.length[order])
                right = [right[row] for row in order]
            logits, state = model.step(later[step].expand(4), state)
        text, whole = texts[0][None], model(texts[0][None])[0]
        for split in (1, 2, 4, 5, 8):
            logits, _ = model.step(text[:, split], model.prefill(text[:, :split])[1])
            torch.testing.assert_close(logits[0], whole[split], rtol=1e-10, atol=1e-12)


@every_pair
@every_mix
def test_every_weight_is_trained_and_is_saved(pair, width, tmp_path):
    model = mix(pair, width).train()
    model(tokens(2, 30)).logsumexp(-1).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    model.eval().bfloat16().save_pretrained(tmp_path)
    loaded = TransformerLM.from_pretrained(tmp_path)
    assert loaded.config == model.config and hash(loaded.config) == hash(model.config)
    assert torch.equal(loaded(tokens(1, 11)), model(tokens(1, 11)))


def test_layers_are_of_the_mechanisms_in_the_order_named():
    config = ModelConfig(["bsbr", "bsbr", "bsbr", "standard"], num_layers=4, hidden_dim=16)
    assert config.mechanism == config.mechanisms == ("bsbr", "bsbr", "bsbr", "standard")
    assert config.name == "bsbr+standard" and ModelConfig("bsbr").name == "bsbr"
    assert ModelConfig("bsbr", num_layers=3).mechanisms == ("bsbr",) * 3
    kinds = [type(block.mixer).__name__ for block in TransformerLM(config).blocks]
    assert kinds == ["BSBR", "BSBR", "BSBR", "Standard"]


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_mechanism_named_for_each_layer_is_the_mechanism(name):
    one, other = make(mechanism=name, num_layers=3), make(mechanism=[name] * 3, num_layers=3)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(one(tokens(2, 21)), other(tokens(2, 21)))


def test_a_hybrid_compiles_without_graph_breaks():
    model, ids = mix(("gau", "standard"), 4), tokens(2, 13)
    compiled = torch.compile(model.encode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model.encode(ids), rtol=1e-10, atol=1e-12)


def test_a_hybrid_generates_what_it_reads_again():
    model, ids = mix(("gau", "bsbr", "standard", "gau"), 4), tokens(2, 13)
    text = ids
    for _ in range(9):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(ids, 9), text)


def test_options_are_checked_for_each_mechanism():
    with pytest.raises(ValueError, match="feature_map must be one of elu, relu"):
        make(mechanism=("bsbr", "linear"), feature_map="exp")
    with pytest.raises(ValueError, match="key_dim must be even"):
        make(mechanism=("linear", "gau"), key_dim=7)


def test_a_saved_config_names_a_list(tmp_path):
    mix(("linear", "gau"), None).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mechanism"] == ["linear", "gau"]


def test_a_state_of_layers_in_another_order_is_named():
    _, state = mix(("linear", "standard"), None).prefill(tokens(1, 9))
    with pytest.raises(ValueError, match=r"2 layers of standard\.State, linear\.State, but has 2 of linear\.State, "):
        mix(("standard", "linear"), None).step(tokens(1), state)


def test_maps_of_a_hybrid_are_of_its_layers():
    model, found = mix(("gau", "standard"), None).float(), []
    attention_maps.visit(model, tokens(1, 9), lambda layer: found.append((layer.num_heads, layer.rows(0, 9).shape)))
    assert found == [(1, (1, 9, 9)), (2, (2, 9, 9))]
    with pytest.raises(ValueError, match="config must name one mechanism, but has one for each layer: gau, standard"):
        attention_maps.of_mechanism(model.config, 9)
