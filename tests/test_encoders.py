"""What makes the state of a chunk, and by what it is weighed: what the two options of `bsbr` are meant to do."""

import pytest
import torch
from torch import Tensor

from bsbr import ModelConfig, TransformerLM, parallel
from bsbr.attention import _encoders, bsbr, deltanet
from bsbr.studies import attention_maps as maps

both = pytest.mark.parametrize("chunk_encoder", bsbr.ENCODERS)
either = pytest.mark.parametrize("normaliser", bsbr.NORMALISERS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(chunk_encoder: str, k: Tensor, v: Tensor, compress: Tensor | None = None) -> Tensor:
    """The state of one chunk: its keys and values are (chunk_size, dim)."""
    return bsbr.chunk_states(k[None, None, None], v[None, None, None], compress, chunk_encoder)[0, 0, 0]


# -- States ---------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_a_state_is_what_its_rule_leaves_token_by_token(chunk_encoder, size):
    k, v = 2 * normal(size, 8), normal(size, 3, seed=1)
    exact = _encoders.reference(k, v, chunk_encoder)
    torch.testing.assert_close(made(chunk_encoder, k, v), exact, rtol=1e-10, atol=1e-12)


def test_the_sum_is_linear_in_the_keys_and_the_delta_rule_is_not():
    k, other, v = normal(5, 8), normal(5, 8, seed=1), normal(5, 8, seed=2)
    for chunk_encoder, linear in (("sum", True), ("delta", False)):
        of_both, parts = made(chunk_encoder, k + other, v), made(chunk_encoder, k, v) + made(chunk_encoder, other, v)
        assert torch.allclose(of_both, parts) == linear


def test_for_keys_of_one_length_the_delta_rule_is_that_of_deltanet():
    """There keys have length 1, so what is kept for keys of length c is c times as large; β = c² / (p + c²)."""
    k, v, q = (normal(1, 1, 9, 8, seed=i) for i in range(3))
    c = 3
    k = c * k / k.norm(dim=-1, keepdim=True)
    _, state = deltanet.prefill(q, k, v, torch.full((1, 1, 9), c**2 / (8 + c**2), dtype=torch.float64))
    torch.testing.assert_close(c * made("delta", k[0, 0], v[0, 0]), state.memory[0, 0], rtol=1e-10, atol=1e-12)


def test_a_key_that_comes_again_recalls_its_last_value_by_the_delta_rule_and_all_of_them_by_the_sum():
    key, v = 1e3 * normal(1, 8), normal(4, 8, seed=1)
    k = key.expand(4, 8)
    recalled = {name: key[0] @ made(name, k, v) for name in bsbr.ENCODERS}
    torch.testing.assert_close(recalled["delta"], v[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(recalled["sum"] / key.square().sum(), v.mean(0))


@both
def test_compressed_values_make_a_state_of_compressed_columns(chunk_encoder):
    k, v, compress = normal(6, 8), normal(6, 8, seed=1), normal(1, 8, 2, seed=2)
    found = made(chunk_encoder, k, v, compress)
    torch.testing.assert_close(found, made(chunk_encoder, k, v) @ compress[0], rtol=1e-10, atol=1e-12)


@either
@both
@pytest.mark.parametrize("retrieval", ["states", "uniform", "per_token"])
def test_compression_and_every_encoder_and_normaliser_follow_the_formula(chunk_encoder, normaliser, retrieval):
    n = 14
    inputs = [normal(2, 3, n, 8, seed=i) for i in range(3)]
    inputs += [normal(2, 3, n if retrieval == "per_token" else n // 4, 8, seed=3), normal(2, 3, n // 4, 8, seed=4)]
    inputs += [normal(3, 8, 2, seed=5), normal(3, 2, 8, seed=6)]
    outputs, found = [], []
    for form in (bsbr.attend, bsbr.reference):
        given = [x.clone().requires_grad_() for x in inputs]
        options = {"retrieval": retrieval, "chunk_encoder": chunk_encoder, "normaliser": normaliser}
        out = form(*given[:5], 4, compress=given[5], expand=given[6], **options)
        (out * normal(*out.shape, seed=7)).sum().backward()
        outputs.append(out)
        found.append([torch.zeros_like(x) if x.grad is None else x.grad for x in given])
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


# -- One normaliser -------------------------------------------------------------------------------


@pytest.mark.parametrize("retrieval", ["states", "uniform", "per_token"])
@pytest.mark.parametrize("local_chunks", [1, 2])
def test_a_chunk_counts_for_its_tokens_where_nothing_is_preferred(retrieval, local_chunks):
    """Queries of zero retrieve nothing: of values of one, the share of the tokens that are read exactly is left."""
    n, size = 23, 4
    zeros, ones = torch.zeros(1, 1, n, 6, dtype=torch.float64), torch.ones(1, 1, n, 6, dtype=torch.float64)
    meta_q = zeros if retrieval == "per_token" else zeros[:, :, : n // size]
    out = bsbr.attend(
        zeros, normal(1, 1, n, 6), ones, meta_q, normal(1, 1, n // size, 6), size, local_chunks, retrieval=retrieval,
        normaliser="shared",
    )  # fmt: skip
    token = torch.arange(n, dtype=torch.float64)
    first = ((token // size - local_chunks + 1) * size).clamp(min=0)
    torch.testing.assert_close(out[0, 0, :, 0], (token - first + 1) / (token + 1), rtol=1e-12, atol=1e-12)


def test_a_chunk_of_high_score_leaves_the_exact_tokens_nothing_and_of_low_score_all():
    q, k, v = (normal(1, 1, 8, 6, seed=i) for i in range(3))
    meta_q = torch.ones(1, 1, 2, 6, dtype=torch.float64)
    for score, expected in (
        (1e3, (q @ made("sum", k[0, 0, :4], v[0, 0, :4]))[:, :, 4:]),
        (-1e3, bsbr.attend(q, k, v, meta_q, meta_q, 4, retrieval="none")[:, :, 4:]),
    ):
        out = bsbr.attend(q, k, v, meta_q, meta_q * score, 4, normaliser="shared")
        torch.testing.assert_close(out[:, :, 4:], expected, rtol=1e-10, atol=1e-12)


@either
@both
def test_a_map_of_either_is_what_is_read(chunk_encoder, normaliser):
    """Outputs are linear in the values, so attention maps hold for these options too."""
    config = ModelConfig(
        "bsbr", hidden_dim=16, num_heads=2, chunk_size=4, chunk_encoder=chunk_encoder, normaliser=normaliser
    )
    assert maps.of_mechanism(config, 18).shape == (2, 18, 18)
    inputs = [normal(1, 1, 18, 8, seed=i) for i in range(3)] + [normal(1, 1, 4, 8, seed=i) for i in (3, 4)]
    options = {"chunk_encoder": chunk_encoder, "normaliser": normaliser}

    def attend(values: Tensor) -> Tensor:
        return bsbr.attend(*inputs[:2], values, *inputs[3:], 4, **options)

    found = maps.weights(attend, inputs[2]) @ inputs[2]
    torch.testing.assert_close(found, attend(inputs[2]), rtol=1e-10, atol=1e-12)


# -- Models ---------------------------------------------------------------------------------------


def test_neither_adds_parameters_and_one_chunk_is_standard_attention():
    sizes = {"vocab_size": 50, "hidden_dim": 32, "num_heads": 2, "num_layers": 1}
    plain = TransformerLM(ModelConfig("bsbr", **sizes, chunk_size=8))
    other = TransformerLM(ModelConfig("bsbr", **sizes, chunk_size=8, chunk_encoder="delta", normaliser="shared"))
    other.load_state_dict(plain.state_dict())
    ids = torch.randint(50, (1, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(ids), other(ids))


@pytest.mark.parametrize(("option", "value"), [("chunk_encoder", "delta"), ("normaliser", "shared")])
def test_over_several_processes_either_is_refused(option, value):
    q, meta = normal(1, 2, 24, 8), normal(1, 2, 3, 8)
    with pytest.raises(ValueError, match=f"{option} must be '.*' over several processes, but is '{value}'; run it in"):
        parallel.attend(q, q, q, meta, meta, parallel.Layout(None, 0, (24,)), chunk_size=8, **{option: value})
