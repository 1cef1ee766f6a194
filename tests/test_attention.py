"""Each fast form against its formula: outputs, gradients, decoding and causality, over shapes chosen to hurt."""

from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bsbr.attention import bsbr, deltanet, gau, hopfield, linear, sliding_window, standard

MODULES: dict[str, ModuleType] = {
    "standard": standard,
    "bsbr": bsbr,
    "linear": linear,
    "deltanet": deltanet,
    "sliding_window": sliding_window,
    "hopfield": hopfield,
    "gau": gau,
}
every_mechanism = pytest.mark.parametrize("name", MODULES)
CHECKS = settings(max_examples=40, deadline=None, derandomize=True)


class Case(NamedTuple):
    """Sizes of one check; `size` is the chunk or the window, `options` are the mechanism's own."""

    batch: int
    heads: int
    n: int
    head_dim: int
    size: int
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn, name: str) -> Case:
    """Few numbers, many boundaries: n at, beside and between multiples of the chunk or window, or anywhere."""
    size = draw(st.integers(1, 12))
    near_a_boundary = st.builds(lambda m, off: max(1, m * size + off), st.integers(0, 5), st.integers(-1, 1))
    n = draw(near_a_boundary | st.integers(1, 80))
    head_dim = draw(st.sampled_from([2, 3, 8]))
    options: dict[str, Any] = {}
    if name == "linear":
        options = {"feature_map": draw(st.sampled_from(sorted(linear.FEATURE_MAPS)))}
    if name == "hopfield":
        options = {"num_steps": draw(st.integers(1, 3)), "inverse_temperature": draw(st.sampled_from([None, 0.2, 2.0]))}
    if name == "bsbr":
        options = {"local_chunks": draw(st.integers(1, 3)), "top_k": draw(st.sampled_from([None, 1, 2]))}
    return Case(draw(st.integers(1, 2)), draw(st.integers(1, 2)), n, head_dim, size, options)


def make_tokens(name: str, case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """What each token brings, (batch, heads, n, …) each, in the order of the mechanism's arguments."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*dims: int) -> Tensor:
        # Drawn in float32 so that both precisions see the same numbers.
        x = torch.randn(case.batch, case.heads, case.n, *dims, generator=generator)
        return x.to(dtype)

    p = case.head_dim
    tokens = [normal(p) for _ in range({"bsbr": 5, "gau": 4}.get(name, 3))]
    if name == "deltanet":
        tokens.append(normal().sigmoid())
    if name == "gau":
        tokens.append(normal(p + 3))
    return [x.requires_grad_() for x in tokens]


def sequence(name: str, case: Case, tokens: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """The arguments of `reference` and `attend`: for bsbr, the last meta query and the mean meta key of each chunk."""
    if name == "standard":
        return tokens, {}
    if name in ("linear", "deltanet", "hopfield"):
        return tokens, case.options
    if name == "sliding_window":
        return tokens, {"window_size": case.size}
    if name == "gau":
        return tokens, {"chunk_size": case.size}
    q, k, v, meta_q, meta_k = tokens
    complete = q.shape[2] // case.size
    meta_q, meta_k = (x[:, :, : complete * case.size].unflatten(2, (complete, case.size)) for x in (meta_q, meta_k))
    return [q, k, v, meta_q[:, :, :, -1], meta_k.mean(3)], {"chunk_size": case.size, **case.options}


def attend(name: str, case: Case, tokens: list[Tensor], **speed: int) -> Tensor:
    arguments, options = sequence(name, case, tokens)
    if name in ("linear", "deltanet"):
        options = {**options, "chunk_size": case.size, **speed}
    return MODULES[name].attend(*arguments, **options)


def reference(name: str, case: Case, tokens: list[Tensor]) -> Tensor:
    arguments, options = sequence(name, case, tokens)
    return MODULES[name].reference(*arguments, **options)


def prefill(name: str, case: Case, tokens: list[Tensor], lengths: Tensor) -> tuple[Tensor, Any]:
    arguments, options = sequence(name, case, tokens)
    if name == "bsbr":  # step() is given each token's meta query and key too: it keeps the sum of the open chunk's
        position, start = torch.arange(tokens[0].shape[2]), lengths[:, None] // case.size * case.size
        opened = (position >= start) & (position < lengths[:, None])
        out, state = bsbr.prefill(*arguments, lengths=lengths, **options)
        return out, (state, (tokens[-1] * opened[:, None, :, None]).sum(2))
    return MODULES[name].prefill(*arguments, lengths=lengths, **options)


def step(name: str, case: Case, token: list[Tensor], state: Any) -> tuple[Tensor, Any]:
    _, options = sequence(name, case, [x[:, :, None] for x in token])
    if name == "bsbr":
        return step_and_close(case, token, *state)
    return MODULES[name].step(*token, state, **options)


def step_and_close(case: Case, token: list[Tensor], state: bsbr.State, opened: Tensor) -> tuple[Tensor, Any]:
    """As a mixer does it: a chunk's meta key is the mean of its tokens', its meta query the last one's."""
    q, k, v, meta_q, meta_k = token
    local_chunks, top_k = case.options.get("local_chunks", 1), case.options.get("top_k")
    out, state = bsbr.step(q, k, v, state, case.size, local_chunks)
    opened = opened + meta_k
    rows = bsbr.ended(state, case.size)
    if len(rows):
        state = bsbr.close(rows, meta_q[rows], opened[rows] / case.size, state, case.size, local_chunks, top_k)
        opened[rows] = 0
    return out, (state, opened)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected, or over 1e-2 where that is smaller.

    Inputs are of order 1: smaller values would be zero but for rounding, as the gradient of a softmax at n = 1 is.
    """
    difference, size = (
        x.detach().square().mean().sqrt() for x in (found.double() - expected.double(), expected.double())
    )
    return float(difference / size.clamp(min=1e-2))


def gradients(out: Tensor, tokens: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    found = torch.autograd.grad((out * weights).sum(), tokens, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, tokens, strict=True)]


@every_mechanism
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"])
@given(data=st.data())
@CHECKS
def test_the_fast_form_is_the_formula(name, dtype, bound, data):
    """Outputs and the gradients of every input, against the formula in float64."""
    case = data.draw(cases(name))
    tokens, exact_tokens = make_tokens(name, case, dtype), make_tokens(name, case, torch.float64)
    out, exact = attend(name, case, tokens), reference(name, case, exact_tokens)
    assert out.dtype == dtype
    assert relative_error(out, exact) < bound
    for found, expected in zip(gradients(out, tokens), gradients(exact, exact_tokens), strict=True):
        assert relative_error(found, expected) < bound


@every_mechanism
@given(data=st.data())
@CHECKS
def test_stepping_from_any_split_is_reading_at_once(name, data):
    """Rows of different lengths are prefilled together, then stepped on, each with its own next tokens."""
    case = data.draw(cases(name))
    lengths = torch.tensor([data.draw(st.integers(1, case.n)) for _ in range(case.batch)])
    longest = int(lengths.max())
    tokens = [x.detach() for x in make_tokens(name, case)]
    whole = attend(name, case, tokens)
    out, state = prefill(name, case, [x[:, :, :longest] for x in tokens], lengths)
    for row, length in enumerate(lengths):
        assert relative_error(out[row, :, :length], whole[row, :, :length]) < 1e-10
    rows = torch.arange(case.batch)
    for later in range(case.n - longest):
        out, state = step(name, case, [x[rows, :, lengths + later] for x in tokens], state)
        assert relative_error(out, whole[rows, :, lengths + later]) < 1e-10


@every_mechanism
def test_a_long_decode_is_reading_at_once(name):
    """Further than any ring, chunk group or cache reaches."""
    case = Case(batch=2, heads=1, n=200, head_dim=4, size=5, options={})
    tokens = [x.detach() for x in make_tokens(name, case)]
    whole = attend(name, case, tokens)
    _, state = prefill(name, case, [x[:, :, :3] for x in tokens], torch.tensor([3, 1]))
    positions = torch.tensor([3, 1])
    for _ in range(197):
        out, state = step(name, case, [x[torch.arange(2), :, positions] for x in tokens], state)
        assert relative_error(out, whole[torch.arange(2), :, positions]) < 1e-10
        positions = positions + 1


@every_mechanism
@given(data=st.data())
@CHECKS
def test_no_mechanism_sees_the_future(name, data):
    """Tokens ≥ t may be anything: in float64, outputs before t stay the same to the last bit."""
    case = data.draw(cases(name))
    t = data.draw(st.integers(0, case.n - 1))
    tokens = make_tokens(name, case)
    later = torch.arange(case.n) >= t
    changed = [
        torch.where(later[:, None] if x.ndim == 4 else later, other, x)
        for x, other in zip(tokens, make_tokens(name, case, seed=2), strict=True)
    ]
    assert torch.equal(attend(name, case, changed)[:, :, :t], attend(name, case, tokens)[:, :, :t])


@pytest.mark.parametrize("name", ["linear", "deltanet"])
def test_the_chunk_is_a_choice_of_speed_only(name):
    case = Case(batch=1, heads=2, n=77, head_dim=8, size=1, options={})
    tokens = make_tokens(name, case)
    exact = reference(name, case, tokens)
    for chunk_size in (1, 2, 16, 64, 77, 1000):
        assert relative_error(attend(name, case, tokens, chunk_size=chunk_size), exact) < 1e-12


@every_mechanism
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("n", [1, 300])
def test_half_precision_stays_close_and_finite(name, dtype, n):
    """Inputs five times as large as usual; every step of the arithmetic must stay in the range of the dtype."""
    case = Case(batch=1, heads=2, n=n, head_dim=16, size=64, options={})
    large = 1.0 if name == "deltanet" else 5.0
    tokens = [(x.detach() * large).to(dtype).requires_grad_() for x in make_tokens(name, case)]
    out = attend(name, case, tokens)
    assert out.dtype == dtype
    exact = reference(name, case, [x.detach().double() for x in tokens])
    assert relative_error(out, exact) < 4 * torch.finfo(dtype).eps
    assert all(g.isfinite().all() for g in gradients(out, tokens))
    stepped, _ = step(name, case, [x[:, :, -1].detach() for x in tokens], prefill_all_but_last(name, case, tokens))
    assert stepped.dtype == dtype
    assert relative_error(stepped, exact[:, :, -1]) < 8 * torch.finfo(dtype).eps


def prefill_all_but_last(name: str, case: Case, tokens: list[Tensor]) -> Any:
    """The state that one step from the end starts with; for n = 1, with the token itself, then forgotten."""
    before = [x[:, :, : max(case.n - 1, 1)].detach() for x in tokens]
    return prefill(name, case, before, torch.full((case.batch,), case.n - 1))[1]


@every_mechanism
def test_degenerate_tokens_give_finite_outputs_and_gradients(name):
    """All tokens zero, and all tokens the same: nothing to normalise by, nothing to tell apart."""
    case = Case(batch=1, heads=1, n=70, head_dim=4, size=16, options={})
    maps: list[dict[str, Any]] = [{"feature_map": m} for m in linear.FEATURE_MAPS] if name == "linear" else [{}]
    for options in maps:
        for value in (0.0, 1.0):
            same = [torch.full_like(x, value).requires_grad_() for x in make_tokens(name, case, torch.float32)]
            out = attend(name, case._replace(options=options), same)
            assert out.isfinite().all()
            assert all(g.isfinite().all() for g in gradients(out, same))


@every_mechanism
def test_nothing_of_size_n_by_n_is_built(name):
    n = 1024
    case = Case(batch=1, heads=1, n=n, head_dim=8, size=32, options={})
    tokens = make_tokens(name, case, torch.float32)
    with LargestTensor() as largest:
        gradients(attend(name, case, tokens), tokens)
    assert largest.numel < n * n / 4


class LargestTensor(TorchDispatchMode):
    """Watches every operation for the largest tensor it returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return result


@every_mechanism
def test_the_fast_form_compiles_without_graph_breaks(name):
    case = Case(batch=1, heads=2, n=50, head_dim=8, size=16, options={})
    tokens = [x.detach() for x in make_tokens(name, case)]
    compiled = torch.compile(lambda *tokens: attend(name, case, list(tokens)), fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(*tokens), attend(name, case, tokens)) < 1e-12


def test_an_unknown_feature_map_is_named():
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="feature_map must be one of elu, relu, dpfp, hedgehog, but is 'exp'"):
        linear.attend(x, x, x, feature_map="exp")


def test_hopfield_with_one_step_is_standard_attention():
    q, k, v = torch.randn(3, 2, 2, 37, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hopfield.attend(q, k, v), standard.attend(q, k, v))


@pytest.mark.parametrize("n", [7, 8, 9, 30])
def test_compressed_states_of_bsbr_follow_the_formula(n):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    inputs = [normal(2, 3, n, 8) for _ in range(3)] + [normal(2, 3, n // 4, 8) for _ in range(2)]
    maps = [normal(3, 8, 2), normal(3, 2, 8)]
    formula, fast = (form(*inputs, 4, 1, None, *maps) for form in (bsbr.reference, bsbr.attend))
    assert relative_error(fast, formula) < 1e-10
    for found, expected in zip(gradients(fast, inputs + maps), gradients(formula, inputs + maps), strict=True):
        assert relative_error(found, expected) < 1e-10
