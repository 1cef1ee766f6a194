"""Each fast form against its formula: outputs, gradients, decoding and causality, over shapes chosen to hurt."""

import inspect
import math
import re
from types import ModuleType
from typing import Any, NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bsbr import MECHANISMS, mixers
from bsbr.attention import bsbr, hopfield, linear, standard

MODULES: dict[str, ModuleType] = {name: mixer.attention for name, mixer in mixers.MIXERS.items()}
every_mechanism = pytest.mark.parametrize("name", MECHANISMS)
VARIANTS = "bsbr, other retrievals"  # drawn apart, so that the formula of the documents gets as many cases as others
MODULES[VARIANTS] = bsbr
every_drawn = pytest.mark.parametrize("name", [*MECHANISMS, VARIANTS])
BY_RETRIEVAL = [
    *((name, {}) for name in MECHANISMS),
    *(("bsbr", {"retrieval": kind}) for kind in ("none", "uniform", "per_token")),
    ("bsbr", {"retrieval": "exact", "top_k": 2}),
]
every_retrieval = pytest.mark.parametrize(("name", "options"), BY_RETRIEVAL)
every_option = pytest.mark.parametrize(
    ("name", "options"),
    [
        *BY_RETRIEVAL,
        *(("linear", {"feature_map": each}) for each in linear.FEATURE_MAPS),
        ("hopfield", {"num_steps": 3, "inverse_temperature": 2.0}),
        ("bsbr", {"local_chunks": 2, "top_k": 1}),
        ("moba", {"read_chunks": 4}),
    ],
)
CHECKS = settings(max_examples=40, deadline=None, derandomize=True)
# What options may be, by name; chunk_size and window_size are drawn with n, whose boundaries they make.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "feature_map": st.sampled_from(sorted(linear.FEATURE_MAPS)),
    "num_steps": st.integers(1, 3),
    "inverse_temperature": st.sampled_from([None, 0.2, 2.0]),
    "local_chunks": st.integers(1, 3),
    "top_k": st.sampled_from([None, 1, 2]),
    "read_chunks": st.integers(1, 4),
}
RETRIEVALS = st.sampled_from(["none", "uniform", "per_token"]).map(lambda kind: {"retrieval": kind, "top_k": None})
RETRIEVALS |= st.integers(1, 3).map(lambda count: {"retrieval": "exact", "top_k": count})
SIZES = ("chunk_size", "window_size")
DEFAULTS = {"read_chunks": 2}  # of options that functions have to be given


class Case(NamedTuple):
    """Sizes of one check; `size` is the chunk or the window, `options` are the mechanism's own."""

    batch: int
    heads: int
    n: int
    head_dim: int
    size: int
    options: dict[str, Any]


def parameters(name: str) -> dict[str, Any]:
    """The arguments of the mechanism's fast form, and their annotations."""
    annotations = inspect.get_annotations(MODULES[name].attend)
    return {argument: annotations[argument] for argument in inspect.signature(MODULES[name].attend).parameters}


def shapes(name: str) -> dict[str, list[str]]:
    """The tensors that the mechanism reads, and the names of their dimensions after (batch, heads)."""
    found = {argument: getattr(kind, "dim_str", "").split() for argument, kind in parameters(name).items()}
    return {argument: dims[2:] for argument, dims in found.items() if dims}


@st.composite
def cases(draw: st.DrawFn, name: str) -> Case:
    """Few numbers, many boundaries: n at, beside and between multiples of the chunk or window, or anywhere."""
    size = draw(st.integers(1, 12))
    near_a_boundary = st.builds(lambda m, off: max(1, m * size + off), st.integers(0, 5), st.integers(-1, 1))
    n = draw(near_a_boundary | st.integers(1, 80))
    head_dim = draw(st.sampled_from([2, 3, 8]))
    options = {option: draw(OPTIONS[option]) for option in parameters(name) if option in OPTIONS}
    if name == VARIANTS:
        options |= draw(RETRIEVALS)
    return Case(draw(st.integers(1, 2)), draw(st.integers(1, 2)), n, head_dim, size, options)


def make_tokens(name: str, case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """What each token brings, (batch, heads, n, …) each, in the order of the mechanism's arguments.

    For a row of each chunk, each token brings one, of which `sequence` makes the chunk's.
    """
    generator = torch.Generator().manual_seed(seed)
    p = case.head_dim
    dims = {"head_dim": (p,), "key_dim": (p,), "value_dim": (p + 3,)}

    def normal(argument: str, *rest: int) -> Tensor:
        # Drawn in float32 so that both precisions see the same numbers.
        x = torch.randn(case.batch, case.heads, case.n, *rest, generator=generator)
        shape = {"beta": torch.sigmoid, "log_decay": F.logsigmoid}.get(argument, lambda x: x)
        return shape(x).to(dtype).requires_grad_()

    return [normal(argument, *(dims[last[-1]] if len(last) > 1 else ())) for argument, last in shapes(name).items()]


def sequence(name: str, case: Case, tokens: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """The arguments of `reference` and `attend`: for bsbr, the last meta query and the mean meta key of each chunk.

    Or the meta query of each token, where each chooses.
    """
    known = inspect.signature(MODULES[name].reference).parameters
    sizes = {size: case.size for size in SIZES if size in known}
    options = {**{option: value for option, value in DEFAULTS.items() if option in known}, **case.options, **sizes}
    if MODULES[name] is not bsbr:
        return tokens, options
    q, k, v, meta_q, meta_k = tokens
    complete = q.shape[2] // case.size
    last, meta_k = (x[:, :, : complete * case.size].unflatten(2, (complete, case.size)) for x in (meta_q, meta_k))
    return [q, k, v, meta_q if each_chooses(case) else last[:, :, :, -1], meta_k.mean(3)], options


def each_chooses(case: Case) -> bool:
    return case.options.get("retrieval") == "per_token"


def attend(name: str, case: Case, tokens: list[Tensor], **speed: int) -> Tensor:
    arguments, options = sequence(name, case, tokens)
    if "chunk_size" in parameters(name):  # of linear and deltanet too, where it is a choice of speed
        options = {**options, "chunk_size": case.size, **speed}
    return MODULES[name].attend(*arguments, **options)


def reference(name: str, case: Case, tokens: list[Tensor]) -> Tensor:
    arguments, options = sequence(name, case, tokens)
    return MODULES[name].reference(*arguments, **options)


def prefill(name: str, case: Case, tokens: list[Tensor], lengths: Tensor) -> tuple[Tensor, Any]:
    arguments, options = sequence(name, case, tokens)
    if (
        MODULES[name] is bsbr
    ):  # step() is given each token's meta query and key too: it keeps the sum of the open chunk's
        position, start = torch.arange(tokens[0].shape[2]), lengths[:, None] // case.size * case.size
        opened = (position >= start) & (position < lengths[:, None])
        out, state = bsbr.prefill(*arguments, lengths=lengths, **options)
        return out, (state, (tokens[-1] * opened[:, None, :, None]).sum(2))
    return MODULES[name].prefill(*arguments, lengths=lengths, **options)


def step(name: str, case: Case, token: list[Tensor], state: Any) -> tuple[Tensor, Any]:
    _, options = sequence(name, case, [x[:, :, None] for x in token])
    if MODULES[name] is bsbr:
        return step_and_close(case, token, *state)
    return MODULES[name].step(*token, state, **options)


def step_and_close(case: Case, token: list[Tensor], state: bsbr.AnyState, opened: Tensor) -> tuple[Tensor, Any]:
    """As a mixer does it: a chunk's meta key is the mean of its tokens', its meta query the last one's."""
    q, k, v, meta_q, meta_k = token
    options = {"local_chunks": 1, "top_k": None, "retrieval": "states", **case.options}
    local_chunks, top_k, retrieval = (options[name] for name in ("local_chunks", "top_k", "retrieval"))
    own = meta_q if each_chooses(case) else None
    out, state = bsbr.step(q, k, v, state, case.size, local_chunks, None, retrieval, own)
    opened = opened + meta_k
    rows = bsbr.ended(state, case.size)
    if len(rows):
        sizes = case.size, local_chunks, top_k, None, retrieval
        state = bsbr.close(rows, meta_q[rows], opened[rows] / case.size, state, *sizes)
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


@every_drawn
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"])
@given(data=st.data())
@CHECKS
def test_the_fast_form_is_the_formula(name, dtype, bound, data):
    """Outputs and the gradients of every input, against the formula in float64.

    Where the formula itself, in the same dtype, is further off than the bound (its gradients cancel), as near as that.
    """
    case = data.draw(cases(name))
    tokens, exact_tokens = make_tokens(name, case, dtype), make_tokens(name, case, torch.float64)
    out, exact = attend(name, case, tokens), reference(name, case, exact_tokens)
    assert out.dtype == dtype
    assert relative_error(out, exact) < bound
    found, expected = gradients(out, tokens), gradients(exact, exact_tokens)
    own = gradients(reference(name, case, tokens), tokens)
    bounds = [max(bound, 4 * relative_error(*pair)) for pair in zip(own, expected, strict=True)]
    check_gradients(name, found, expected, bounds)


def check_gradients(name: str, found: list[Tensor], expected: list[Tensor], bounds: list[float]) -> None:
    """Every input's, and the message has the errors of all: dq, dk, dv, …"""
    arguments = [*shapes(name), "compress", "expand"][: len(found)]
    errors = {f"d{x}": relative_error(*pair) for x, *pair in zip(arguments, found, expected, strict=True)}
    assert all(error < bound for error, bound in zip(errors.values(), bounds, strict=True)), errors


@every_drawn
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


@every_retrieval
def test_a_long_decode_is_reading_at_once(name, options):
    """Further than any ring, chunk group or cache reaches."""
    case = Case(batch=2, heads=1, n=200, head_dim=4, size=5, options=options)
    tokens = [x.detach() for x in make_tokens(name, case)]
    whole = attend(name, case, tokens)
    _, state = prefill(name, case, [x[:, :, :3] for x in tokens], torch.tensor([3, 1]))
    positions = torch.tensor([3, 1])
    for _ in range(197):
        out, state = step(name, case, [x[torch.arange(2), :, positions] for x in tokens], state)
        assert relative_error(out, whole[torch.arange(2), :, positions]) < 1e-10
        positions = positions + 1


@every_drawn
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


@pytest.mark.parametrize("name", ["linear", "deltanet", "gated_deltanet"])
def test_the_chunk_is_a_choice_of_speed_only(name):
    case = Case(batch=1, heads=2, n=77, head_dim=8, size=1, options={})
    tokens = make_tokens(name, case)
    exact = reference(name, case, tokens)
    for chunk_size in (1, 2, 16, 64, 77, 1000):
        assert relative_error(attend(name, case, tokens, chunk_size=chunk_size), exact) < 1e-12


@every_retrieval
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("n", [1, 300])
def test_half_precision_stays_close_and_finite(name, options, dtype, n):
    """Inputs five times as large as usual; every step of the arithmetic must stay in the range of the dtype."""
    case = Case(batch=1, heads=2, n=n, head_dim=16, size=64, options=options)
    large = 1.0 if "beta" in shapes(name) else 5.0  # beyond 1, β makes memories grow
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


@every_drawn
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@given(data=st.data())
@settings(CHECKS, max_examples=15)
def test_outliers_of_half_precision_stay_finite(name, dtype, data):
    """A few dimensions of keys and values are far from zero, as pretrained models have them, and no sum overflows.

    Queries are small, so that every output is in range; each value alone is far below the largest of float16.
    """
    size, n = data.draw(st.sampled_from([16, 64, 128])), data.draw(st.integers(1, 400))
    case = data.draw(cases(name))._replace(size=size, n=n)
    shift = data.draw(st.sampled_from([24.0, 100.0]))
    tokens = []
    for argument, x in zip(shapes(name), make_tokens(name, case), strict=True):
        far = shift if argument in ("k", "v", "k_lin") else 0.0
        tokens.append((x.detach() * (1e-3 if argument in ("q", "q_lin") else 1.0) + far).to(dtype))
    wide = [x.double() for x in tokens]
    exact = reference(name, case, wide)
    whole, last = attend(name, case, tokens), torch.full((case.batch,), case.n)
    assert relative_error(whole, exact) < 16 * torch.finfo(dtype).eps
    _, state = prefill(name, case, tokens, last)
    assert all(x.isfinite().all() for x in leaves(state) if x.is_floating_point())


def leaves(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [x for part in state for x in leaves(part)]


@every_option
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_autocast_is_as_exact_as_its_inputs(name, options, dtype):
    """Under autocast, inputs in float32 as in half precision: no sum over the sequence loses digits or overflows."""
    case = Case(batch=1, heads=2, n=300, head_dim=16, size=64, options=options)
    tokens = [x.detach() for x in make_tokens(name, case, torch.float32)]
    right = reference(name, case, [x.double() for x in tokens])
    for given_as in (torch.float32, dtype):
        with torch.autocast("cpu", dtype):
            found = attend(name, case, [x.to(given_as) for x in tokens])
            step(name, case, [x[:, :, -1].to(given_as) for x in tokens], prefill_all_but_last(name, case, tokens))
        assert relative_error(found, right) < 8 * torch.finfo(dtype).eps


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


@every_retrieval
def test_nothing_of_size_n_by_n_is_built(name, options):
    n = 1024
    case = Case(batch=1, heads=1, n=n, head_dim=8, size=32, options=options)
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


@every_retrieval
def test_the_fast_form_compiles_without_graph_breaks(name, options):
    case = Case(batch=1, heads=2, n=50, head_dim=8, size=16, options=options)
    tokens = [x.detach() for x in make_tokens(name, case)]
    torch.compiler.reset()  # one function is compiled anew for a few cases only
    compiled = torch.compile(lambda *tokens: attend(name, case, list(tokens)), fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(*tokens), attend(name, case, tokens)) < 1e-12


def test_an_unknown_feature_map_is_named():
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="feature_map must be one of elu, relu, dpfp, hedgehog, but is 'exp'"):
        linear.attend(x, x, x, feature_map="exp")


def test_hopfield_with_one_step_is_standard_attention():
    q, k, v = torch.randn(3, 2, 2, 37, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hopfield.attend(q, k, v), standard.attend(q, k, v))


@pytest.mark.parametrize("retrieval", ["states", "uniform", "per_token"])
@pytest.mark.parametrize("n", [7, 8, 9, 30])
def test_compressed_states_of_bsbr_follow_the_formula(n, retrieval):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    rows = n if retrieval == "per_token" else n // 4
    inputs = [normal(2, 3, n, 8) for _ in range(3)] + [normal(2, 3, rows, 8), normal(2, 3, n // 4, 8)]
    maps = [normal(3, 8, 2), normal(3, 2, 8)]
    formula, fast = (form(*inputs, 4, 1, None, *maps, retrieval) for form in (bsbr.reference, bsbr.attend))
    assert relative_error(fast, formula) < 1e-10
    check_gradients("bsbr", gradients(fast, inputs + maps), gradients(formula, inputs + maps), [1e-10] * 7)


# -- What is refused ------------------------------------------------------------------------------


@every_mechanism
@given(data=st.data())
@settings(CHECKS, max_examples=15)
def test_tensors_that_do_not_fit_each_other_are_named(name, data):
    case = data.draw(cases(name))
    arguments, options = sequence(name, case, [x.detach() for x in make_tokens(name, case)])
    if "chunk_size" in parameters(name):
        options["chunk_size"] = case.size
    wrong = data.draw(st.integers(1, len(arguments) - 1))
    dim = data.draw(st.integers(0, arguments[wrong].ndim - 1))
    for form in (MODULES[name].attend, MODULES[name].prefill):
        changed = list(arguments)
        changed[wrong] = torch.cat(
            [changed[wrong], changed[wrong].narrow(dim, 0, min(1, changed[wrong].shape[dim]))], dim
        )
        if changed[wrong].shape != arguments[wrong].shape and not is_alone(name, wrong, dim):
            with pytest.raises(ValueError, match=r" must (be a tensor of shape \(.*\), where|have a row for each)"):
                form(*changed, **options)
        changed[wrong] = arguments[wrong][0]
        with pytest.raises(ValueError, match=f"^{list(shapes(name))[wrong]} must be a tensor of shape"):
            form(*changed, **options)
        changed[wrong] = arguments[wrong].tolist()
        with pytest.raises(ValueError, match=f"^{list(shapes(name))[wrong]} must be a tensor of shape"):
            form(*changed, **options)


def is_alone(name: str, argument: int, dim: int) -> bool:
    """Values may have any size where no other argument has it: in gau."""
    names = ["batch", "heads", *list(shapes(name).values())[argument]]
    return names[dim] == "value_dim" and sum(names[dim] in dims for dims in shapes(name).values()) == 1


@every_mechanism
def test_options_that_are_out_of_range_are_named(name):
    case = Case(batch=1, heads=1, n=9, head_dim=4, size=4, options={})
    arguments, options = sequence(name, case, [x.detach() for x in make_tokens(name, case)])
    numbers = {option for option, kind in parameters(name).items() if {int, float} & {kind, *get_args(kind)}}
    for option in numbers:
        for value in (0, -1, "4", math.nan, True):
            with pytest.raises(ValueError, match=f"{option} must be a .* but is {re.escape(repr(value))}"):
                MODULES[name].attend(*arguments, **{**options, option: value})
