"""What the mixers of the mechanisms add to `test_attention.py`, beyond what `test_model.py` says of any model."""

import dataclasses

import pytest
import torch
from models import RETRIEVALS
from torch import Tensor

from bsbr import MECHANISMS, ModelConfig, TransformerLM, mixers

OPTIONS: list[dict] = [
    {"mechanism": "linear", "feature_map": "relu"},
    {"mechanism": "linear", "feature_map": "dpfp"},
    {"mechanism": "linear", "feature_map": "hedgehog"},
    {"mechanism": "deltanet", "beta": 0.5},
    {"mechanism": "deltanet", "beta": 1},
    {"mechanism": "hopfield", "num_steps": 3, "inverse_temperature": 2.0},
    {"mechanism": "gau", "expansion": 1, "key_dim": 6},
    {"mechanism": "sliding_window", "window_size": 1},
    {"mechanism": "gated_deltanet", "beta": 0.5},
    {"mechanism": "moba", "read_chunks": 1},
    {"mechanism": "moba", "read_chunks": 2, "chunk_size": 3},
    *RETRIEVALS,
]
every_mechanism = pytest.mark.parametrize("name", MECHANISMS)


def make(**options) -> TransformerLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=61, hidden_dim=32, num_heads=2, num_layers=2, ff_dim=48, window_size=8, chunk_size=8)
    return TransformerLM(ModelConfig(**{**sizes, **options})).double().eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


def test_every_record_has_a_mixer_and_every_mixer_a_record():
    assert set(mixers.MIXERS) == set(MECHANISMS)
    for name, record in MECHANISMS.items():
        assert record.name == name
        names = set(dir(mixers.MIXERS[name].attention))
        assert {"reference", "attend", "prefill", "step", "State", "operations"} <= names
    assert len({record.colour for record in MECHANISMS.values()}) == len(MECHANISMS)


# Another value of each option that mechanisms use, and one that is not the default of `make`.
OTHERS = dict(
    chunk_size=4, local_chunks=2, top_k=1, read_chunks=2, retrieval="uniform", compression_factor=4, window_size=3, feature_map="relu",
    beta=0.5, num_steps=2, inverse_temperature=2.0, expansion=1, key_dim=16,
)  # fmt: skip


def test_every_option_belongs_to_a_mechanism_and_every_field_is_of_all_or_an_option():
    of_all = {"mechanism", "vocab_size", "hidden_dim", "num_layers", "num_heads", "ff_dim", "dropout", "short_conv"}
    used = {option for record in MECHANISMS.values() for option in record.options}
    assert used == {field.name for field in dataclasses.fields(ModelConfig)} - of_all == set(OTHERS)


@every_mechanism
@pytest.mark.parametrize("option", OTHERS)
def test_a_mechanism_uses_the_options_of_its_record_and_no_others(name, option):
    default, other = make(mechanism=name), make(mechanism=name, **{option: OTHERS[option]})
    shapes = [{key: p.shape for key, p in model.named_parameters()} for model in (default, other)]
    same = shapes[0] == shapes[1] and torch.equal(default(tokens(2, 45)), other(tokens(2, 45)))
    assert same == (option not in MECHANISMS[name].options)


def test_a_mixer_without_a_record_is_refused():
    with pytest.raises(ValueError, match=r"Mamba: mechanism must have one record in bsbr\.mechanisms, but is 'mamba'"):

        class Mamba(mixers.Mixer, mechanism="mamba"):
            pass


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_with_any_option_decoding_is_reading_at_once(options):
    """And the option changes what is computed."""
    model, default = make(**options), make(mechanism=options["mechanism"])
    ids = tokens(2, 30)
    whole = model(ids)
    assert whole.shape == default(ids).shape
    assert not torch.allclose(whole, default(ids))
    logits, state = model.prefill(ids[:, :7])
    for t in range(7, 30):
        torch.testing.assert_close(logits, whole[:, t - 1], rtol=1e-10, atol=1e-12)
        logits, state = model.step(ids[:, t], state)


def reorder(state, order):
    """index_select on the first dimension of every tensor of nested named tuples."""
    if isinstance(state, torch.Tensor):
        return state.index_select(0, order)
    return type(state)(*(reorder(part, order) for part in state))


@every_mechanism
def test_rows_of_a_state_can_be_reordered(name):
    """As beam search does."""
    model = make(mechanism=name)
    ids, order = tokens(3, 21), torch.tensor([2, 0, 0])
    _, state = model.prefill(ids, torch.arange(21) < torch.tensor([[21], [13], [8]]))
    reordered = type(state)(tuple(reorder(layer, order) for layer in state.layers), state.length[order])
    for t in range(20):
        token = tokens(3, 20)[:, t]
        logits, state = model.step(token, state)
        new_logits, reordered = model.step(token[order], reordered)
        torch.testing.assert_close(new_logits, logits[order], rtol=1e-10, atol=1e-12)


@every_mechanism
def test_a_model_compiles_without_graph_breaks(name):
    model = make(mechanism=name)
    ids = tokens(2, 21)
    torch.compiler.reset()  # one function is compiled anew for a few models only
    compiled = torch.compile(model.encode, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), model.encode(ids), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [*({"mechanism": name} for name in MECHANISMS), *RETRIEVALS])
def test_every_parameter_is_trained(options):
    """Each one gets a gradient that is finite, and not zero on a text longer than two chunks and the window."""
    model = make(**options).train()
    model(tokens(2, 40)).logsumexp(-1).mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mechanism": "linear", "feature_map": "exp"}, "feature_map must be one of elu, relu, .* but is 'exp'"),
        ({"mechanism": "deltanet", "beta": 0.0}, r"beta must lie in \(0, 1\], or be None to be learned, but is 0.0"),
        ({"mechanism": "deltanet", "beta": 1.5}, r"beta must lie in \(0, 1\]"),
        ({"mechanism": "sliding_window", "window_size": 0}, "window_size must be a whole number ≥ 1"),
        ({"mechanism": "hopfield", "num_steps": 0}, "num_steps must be a whole number ≥ 1"),
        ({"mechanism": "hopfield", "inverse_temperature": 0.0}, "inverse_temperature must be > 0 and finite, or None"),
        ({"mechanism": "gated_deltanet", "beta": 1.5}, r"beta must lie in \(0, 1\]"),
        ({"mechanism": "moba", "read_chunks": 0}, "read_chunks must be a whole number ≥ 1"),
        ({"mechanism": "gau", "key_dim": 7}, "key_dim must be even"),
        ({"mechanism": "gau", "expansion": 1.5}, "expansion must be a whole number ≥ 1"),
        ({"retrieval": "top"}, "retrieval must be one of states, none, uniform, per_token, exact, but is 'top'"),
        ({"retrieval": "none", "top_k": 2}, "top_k must be None with retrieval 'none', which takes no best chunks"),
        ({"retrieval": "per_token", "top_k": 2}, "top_k must be None with retrieval 'per_token'"),
        ({"retrieval": "exact"}, "top_k must be a whole number ≥ 1 with retrieval 'exact', the chunks to read, but is"),
        ({"retrieval": "none", "compression_factor": 2}, "retrieval must keep states for them to be compressed, but"),
        ({"retrieval": "exact", "top_k": 1, "compression_factor": 2}, "retrieval must keep states"),
    ],
)
def test_an_option_that_makes_no_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"mechanism": "bsbr", **options})
