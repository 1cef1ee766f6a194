"""What half precision, autocast, late positions and cold temperatures leave of the numbers."""

import pytest
import torch
from models import every_mechanism, make, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bsbr.rotary import Rotary


@every_mechanism
def test_low_precision_training_step_and_dropout_stay_finite(options):
    for dtype in (torch.float32, torch.bfloat16):
        model = make(dtype, dropout=0.1, **options).train()
        for n in (1, 8, 45):
            loss = model(tokens(2, n)).float().logsumexp(-1).mean()
            loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert not torch.equal(model(tokens(2, 21)), model(tokens(2, 21)))  # dropout draws anew
        assert torch.equal(model.eval()(tokens(2, 21)), model(tokens(2, 21)))


@every_mechanism
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_decoding_in_half_precision_is_as_near_as_a_whole_pass(options, dtype, autocast):
    """Both against the same weights in float64; nothing that decoding carries on is rounded at each token."""
    model = make(torch.float32 if autocast else dtype, **{"chunk_size": 64, "num_layers": 1, **options})
    exact, ids = make(**{"chunk_size": 64, "num_layers": 1, **options}), tokens(1, 300)
    exact.load_state_dict(model.state_dict())
    right = exact(ids)[:, 150:]
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
        whole = model(ids)[:, 150:]
        logits, state = model.prefill(ids[:, :151])
        outputs = [logits]
        for t in range(151, 300):
            logits, state = model.step(ids[:, t], state)
            outputs.append(logits)
    errors = [
        float((x.double() - right).norm().detach() / right.norm().detach()) for x in (whole, torch.stack(outputs, 1))
    ]
    assert errors[0] < 4 * torch.finfo(dtype).eps
    assert errors[1] < 1.5 * errors[0] + 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_the_meta_key_of_a_long_chunk_is_decoded_as_it_is_prefilled(dtype):
    model, exact = make(dtype, mechanism="bsbr", chunk_size=512), make(mechanism="bsbr", chunk_size=512)
    exact.load_state_dict(model.state_dict())
    ids = tokens(1, 513)
    with torch.no_grad():
        states = [model.prefill(ids)[1], model.prefill(ids[:, :1])[1], exact.prefill(ids)[1]]
        for t in range(1, 513):
            _, states[1] = model.step(ids[:, t], states[1])
    prefilled, decoded, right = (state.layers[0].attention.meta_k[:, :, 0].double() for state in states)
    assert (decoded - right).norm() < 2 * (prefilled - right).norm()


class NoDouble(TorchDispatchMode):
    """A device that has no float64, as Apple's: `meta` plays it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            assert not (isinstance(x, Tensor) and x.dtype == torch.float64 and x.device.type == "meta"), func
        return out


@every_mechanism
def test_no_device_needs_float64(options):
    model = make(torch.float32, **options).to("meta")
    with NoDouble():
        model._encode(torch.zeros(1, 40, dtype=torch.long, device="meta"))


@pytest.mark.parametrize("head_dim", [2, 64, 128])
def test_angles_of_late_positions_are_as_exact_as_float32(head_dim):
    positions = torch.tensor([[0, 1, 4095, 65_536, 1_000_003]])
    right = Rotary.at(positions, head_dim, torch.float64)
    found = Rotary.at(positions, head_dim, torch.float32)
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=4e-6)
        torch.testing.assert_close(ours[:, :, :4].double(), theirs[:, :, :4], rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-8, 1e-20, 1e-37, 1e-39, 5e-324])
def test_the_coldest_temperature_takes_the_likeliest_token(dtype, temperature):
    model = make(dtype, mechanism="standard")
    torch.nn.init.normal_(model.embedding.weight)  # logits far apart, so that none are equal in half precision
    generator = torch.Generator().manual_seed(0)
    drawn = model.generate(tokens(2, 5), 6, temperature=temperature, generator=generator)
    assert torch.equal(drawn, model.generate(tokens(2, 5), 6))
