"""The convolution is its formula, and a model with it is the one without until it is trained."""

import pytest
import torch
from models import draw_kernels, make, tokens
from torch import Tensor, nn

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.short_conv import ShortConv
from bsbr.studies import attention_maps
from bsbr.training import LanguageModel, Settings
from bsbr.training.trainer import _optimizer

every_mechanism = pytest.mark.parametrize("name", MECHANISMS)


def drawn(width: int, dims: int = 6, dtype: torch.dtype = torch.float64) -> ShortConv:
    torch.manual_seed(0)
    conv = ShortConv(dims, width).to(dtype)
    nn.init.normal_(conv.kernel)
    return conv


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def reference(kernel: Tensor, x: Tensor) -> Tensor:
    """The formula, token by token."""
    rows = []
    for t in range(x.shape[1]):
        rows.append(sum(kernel[:, i] * x[:, t - i] for i in range(min(kernel.shape[1], t + 1))))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("width", [1, 2, 4, 9])
@pytest.mark.parametrize("n", [1, 3, 20])
def test_it_is_the_formula(width, n):
    """Outputs and gradients; and from any token on, if it is given those before."""
    conv, x, weights = drawn(width), normal(2, n, 6), normal(2, n, 6).detach()
    right, found = reference(conv.kernel, x), conv(x, n)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad((out * weights).sum(), (x, conv.kernel)) for out in (found, right))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    for start in range(n):
        for before in {min(start, width - 1), start}:
            torch.testing.assert_close(conv(x[:, start - before :], n - start), right[:, start:])


def test_it_is_pytorchs_convolution():
    conv, x = drawn(4), normal(2, 20, 6)
    right = nn.functional.conv1d(nn.functional.pad(x.mT, (3, 0)), conv.kernel.flip(1)[:, None], groups=6).mT
    torch.testing.assert_close(conv(x, 20), right)


def test_what_is_kept_are_the_last_real_tokens_of_each_row():
    x = normal(4, 7, 6)
    kept = drawn(4).last(x, torch.tensor([7, 4, 2, 1]))
    zero = torch.zeros(6, dtype=x.dtype)
    right = [x[0, 4:7], x[1, 1:4], torch.stack([zero, *x[2, :2]]), torch.stack([zero, zero, x[3, 0]])]
    assert torch.equal(kept, torch.stack(right))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_its_dtype_is_that_of_what_it_reads(dtype):
    conv, x = drawn(4, dtype=torch.float32), normal(2, 9, 6).detach().to(dtype)
    found, right = conv(x, 9).detach(), reference(conv.kernel.detach().to(dtype).double(), x.double())
    assert found.dtype == dtype
    assert float((found - right).norm() / right.norm()) < 2 * torch.finfo(dtype).eps


@every_mechanism
def test_a_new_model_has_the_weights_and_the_outputs_of_one_without_it(name):
    models = []
    for width in (None, 4):
        torch.manual_seed(0)
        models.append(TransformerLM(ModelConfig(name, 61, 32, num_heads=2, ff_dim=48, chunk_size=8, short_conv=width)))
    (plain, convolved), ids = models, tokens(2, 30)
    own = {key: value for key, value in convolved.state_dict().items() if "short_conv" not in key}
    assert own.keys() == plain.state_dict().keys()
    assert all(torch.equal(own[key], value) for key, value in plain.state_dict().items())
    assert torch.equal(convolved(ids), plain(ids))
    draw_kernels(convolved)
    assert not torch.allclose(convolved(ids), plain(ids))


@every_mechanism
def test_every_weight_is_trained_from_the_start_with_one_kernel_for_each_projected_dimension(name):
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(name, 61, 32, num_heads=2, ff_dim=48, chunk_size=8, window_size=8, short_conv=4))
    model(tokens(2, 40)).logsumexp(-1).mean().backward()
    for block in model.blocks:
        conv = block.mixer.short_conv
        assert conv.kernel.shape == (block.mixer.in_proj.out_features, 4)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_queries_keys_and_values_are_convolved_before_they_are_rotated():
    """So that what is read depends on how far tokens are apart, not on where they stand."""
    model = make(mechanism="standard", short_conv=4)
    x = torch.randn(1, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixer = model.blocks[0].mixer
    here, there = (model._rotary(torch.arange(9)[None] + start)[mixer.rotary_dim] for start in (0, 1000))
    torch.testing.assert_close(mixer(x, here), mixer(x, there), rtol=1e-9, atol=1e-9)
    q, k, v = (part.transpose(1, 2).flatten(2) for part in mixer.project(x, model._rotary(torch.zeros(1, 9))[16]))
    convolved = reference(mixer.short_conv.kernel, mixer.in_proj(x))
    torch.testing.assert_close(torch.cat([q, k, v], dim=-1), convolved)


@every_mechanism
def test_a_map_of_attention_weighs_the_convolved_values(name):
    mixer = make(mechanism=name, short_conv=4).blocks[0].mixer
    x = torch.randn(1, 20, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = make(mechanism=name)._rotary(torch.arange(20)[None])[mixer.rotary_dim]
    values = mixer.project(x, rotary)[{"gau": 4}.get(name, 2)]
    out = attention_maps.of_mixer(mixer, x, rotary) @ values
    torch.testing.assert_close(mixer.merge(x, out), mixer(x, rotary), rtol=1e-9, atol=1e-12)


def test_a_state_of_another_width_is_named():
    states = {width: make(mechanism="linear", short_conv=width).prefill(tokens(1, 9))[1] for width in (None, 2, 4)}
    for width, state in states.items():
        if width != 4:
            with pytest.raises(ValueError, match=r"2 layers of linear\.State with short_conv=4, but has 2 of linear"):
                make(mechanism="linear", short_conv=4).step(tokens(1), state)


def test_kernels_are_among_the_weights_that_decay():
    model = LanguageModel(make(torch.float32, mechanism="gau", short_conv=4))
    decaying, others = (group["params"] for group in _optimizer(model, Settings(steps=1)).param_groups)
    kernels = {id(block.mixer.short_conv.kernel) for block in model.model.blocks}
    assert kernels <= {id(p) for p in decaying} and not kernels & {id(p) for p in others}


# What a checkpoint of the default config holds in each layer's mixer, beside the same blocks for all.
PLAIN = ("standard", "linear", "sliding_window", "hopfield", "moba")
MIXERS = {name: ["in_proj.weight", "out_proj.weight"] for name in PLAIN} | {
    "bsbr": ["in_proj.weight", "out_proj.weight", "meta_q_proj.weight", "meta_k_proj.weight"],
    "deltanet": ["in_proj.weight", "out_proj.weight", "beta_proj.weight"],
    "gated_deltanet": [
        "log_rate", "decay_bias", "in_proj.weight", "out_proj.weight", "beta_proj.weight", "decay_proj.weight",
    ],
    "gau": ["scale", "offset", "in_proj.weight", "out_proj.weight", "gate_proj.weight"],
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_checkpoint_without_options_keeps_its_names(name):
    rest = ["mixer_norm.weight", "mixer_norm.bias", "ff_norm.weight", "ff_norm.bias", "ff.0.weight", "ff.2.weight"]
    layer = [*rest, *(f"mixer.{own}" for own in MIXERS[name])]
    names = [f"blocks.{i}.{own}" for i in range(2) for own in layer]
    assert sorted(make(mechanism=name).state_dict()) == sorted(["embedding.weight", *names, "norm.weight", "norm.bias"])


def test_weights_are_drawn_in_the_order_in_which_they_always_were():
    """Each is made, in the order of the layers, and then all are drawn again in that order."""
    torch.manual_seed(0)
    made = [nn.Embedding(61, 32)]
    for _ in range(2):
        sizes = ((32, 96), (32, 32), (32, 48), (48, 32))
        made += [nn.Linear(*size, bias=False) for size in sizes]
    for layer in made:
        nn.init.normal_(layer.weight, std=0.02)
    found = [p for p in make(torch.float32, mechanism="standard").parameters() if p.ndim == 2]
    assert all(torch.equal(layer.weight, own) for layer, own in zip(made, found, strict=True))
