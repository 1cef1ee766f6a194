"""The memory meter finds sizes that are known, and the same ones every time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.measure import memory
from bsbr.studies import passes

FLOAT = 4
ROWS, COLUMNS = 64, 32
ONE = ROWS * COLUMNS * FLOAT  # one activation


class Chain(nn.Module):
    """A linear layer, then `depth` sines, each of which keeps its input for the backward pass."""

    def __init__(self, depth: int, checkpointed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(COLUMNS, COLUMNS, bias=False)
        self.depth, self.checkpointed = depth, checkpointed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.checkpointed:
            return checkpoint(self.sines, x, use_reentrant=False)
        for _ in range(self.depth):  # not by self.sines: a caller may hold an argument until the call returns
            x = x.sin()
        return x

    def sines(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = x.sin()
        return x


def measured(model: nn.Module, run: Callable[[Tensor], object]) -> memory.TensorPeak:
    x = torch.ones(ROWS, COLUMNS)
    return memory.tensors(lambda: run(x), model, x)


def test_parameters_inputs_and_gradients_are_counted_exactly() -> None:
    model = nn.Linear(COLUMNS, COLUMNS, bias=False)
    weight = COLUMNS * COLUMNS * FLOAT
    found = measured(model, lambda x: model(x).sum().backward())
    assert found.after["gradients"] == found.after["parameters"] == found.parts["parameters"] == weight
    assert found.parts["inputs"] == ONE
    assert found.total == sum(found.parts.values())
    again = measured(model, lambda x: model(x).sum().backward())
    assert again.parts["gradients"] == weight, "gradients from before are held from the start"
    assert again.total > found.total
    assert found.allocator is None


def test_buffers_and_optimizer_state_have_their_own_parts() -> None:
    model = nn.BatchNorm1d(COLUMNS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(x: Tensor) -> None:
        model(x).square().sum().backward()
        optimizer.step()

    step(torch.ones(ROWS, COLUMNS))
    found = memory.tensors(lambda: step(torch.ones(ROWS, COLUMNS)), model, optimizer)
    assert found.parts["buffers"] == 2 * COLUMNS * FLOAT + 8  # mean, variance, and the count of batches
    assert found.after["optimizer_state"] == 2 * COLUMNS * FLOAT  # a momentum for the scale, and one for the shift


@pytest.mark.parametrize("depth", [2, 5])
def test_a_training_pass_keeps_every_activation_and_inference_two(depth: int) -> None:
    model = Chain(depth)
    held = measured(model, lambda x: model(x))
    assert held.parts["activations"] == (depth + 1) * ONE  # the linear layer's output, and each sine's
    with torch.no_grad():
        assert measured(model, lambda x: model(x)).parts["activations"] == 2 * ONE  # an operation's input and output


def test_checkpointing_keeps_the_input_of_its_part_alone() -> None:
    model = Chain(5, checkpointed=True)
    assert measured(model, lambda x: model(x)).after["activations"] == 0
    assert measured(model, lambda x: model(x)).parts["activations"] == 3 * ONE  # kept; a sine's input and output
    trained = [measured(each, lambda x, each=each: each(x).sum().backward()) for each in (model, Chain(5))]
    assert trained[0].after["gradients"] == trained[1].after["gradients"] > 0


def test_the_peak_of_temporaries_is_that_of_the_backward_pass() -> None:
    model = Chain(5)
    found = measured(model, lambda x: model(x).sum().backward())
    assert found.parts["activations"] == 5 * ONE + 2 * FLOAT  # a sine's input each; the sum, and its gradient
    assert found.parts["temporaries"] == 2 * ONE  # the cosine, and the gradient that goes on


def test_a_view_counts_once_and_what_was_freed_no_longer() -> None:
    model = nn.Identity()
    assert measured(model, lambda x: (x + 1).view(-1)[:3].t()).parts["activations"] == ONE
    assert measured(model, lambda x: [x + number for number in range(3)]).parts["activations"] == 3 * ONE
    assert measured(model, lambda x: [(x + number).sum() for number in range(3)]).parts["activations"] < 2 * ONE


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_two_calls_and_both_ways_of_inference_give_the_same_numbers(mechanism: str) -> None:
    model = TransformerLM(ModelConfig(mechanism, vocab_size=50, hidden_dim=32, num_layers=2, chunk_size=16))
    ids = torch.randint(50, (1, 100))

    def train() -> None:
        model.zero_grad()
        model(ids).logsumexp(-1).sum().backward()

    assert memory.tensors(train, model, ids) == memory.tensors(train, model, ids)
    with torch.no_grad():
        found = memory.tensors(lambda: model.encode(ids), model, ids)
    with torch.inference_mode():
        assert memory.tensors(lambda: model.encode(ids), model, ids).total == found.total
    assert found.parts["inputs"] == ids.numel() * 8
    assert memory.tensors(lambda: model.generate(ids, 3), model, ids).total > 0  # modules that run more than once


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.filterwarnings("ignore")
def test_the_allocator_says_the_same_but_for_scratch_inside_operations(mechanism: str) -> None:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(mechanism))
    ids = torch.randint(10_000, (1, 1024))
    for run in (lambda: model.encode(ids).sum().backward(), torch.no_grad()(lambda: model.encode(ids))):
        model.zero_grad()
        found = memory.tensors(run, model, ids)
        model.zero_grad()
        held = found.parts["parameters"] + found.parts["buffers"] + found.parts["inputs"]
        assert found.total == pytest.approx(held + allocated(run), rel=0.04)


def allocated(run: Callable[[], object]) -> int:
    """The peak by the log of PyTorch's CPU allocator, which the profiler keeps."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def test_misuse_is_named() -> None:
    model = nn.Identity()
    with pytest.raises(TypeError, match="model must be the torch module"):
        memory.tensors(lambda: None, lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs must be tensors or optimizers, one argument each"):
        memory.tensors(lambda: None, model, [torch.ones(1)])  # type: ignore[arg-type]
    split = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    with pytest.raises(ValueError, match="model must lie on one device, but lies on cpu, meta"):
        memory.tensors(lambda: None, split)


def test_what_goes_wrong_in_the_call_comes_out_and_leaves_no_hook() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        memory.tensors(lambda: model(torch.ones(1, 3)), model)
    assert memory.tensors(lambda: model(torch.ones(1, 2)), model).parts["activations"] > 0


# -- A process ------------------------------------------------------------------------------------


def hundred_megabytes() -> Callable[[], object]:
    torch.ones(100_000_000)  # what preparing needed is not the call's
    return lambda: torch.ones(25_000_000)


def killed() -> Callable[[], object]:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_adds_what_its_call_touches_whatever_the_parent_or_its_preparation_held() -> None:
    held = torch.ones(150_000_000)
    found = memory.peak(hundred_megabytes)
    assert 95e6 < found.added < 120e6
    assert found.before < held.nbytes


def half_freed() -> Callable[[], object]:
    memory.return_freed_blocks()

    def run() -> object:
        return [torch.ones(250_000).sum() for _ in range(50)]  # a megabyte, fifty times over

    run()  # what a first call loads is none of its memory
    return run


def test_memory_that_is_freed_can_be_returned_at_once() -> None:
    assert memory.peak(half_freed).added < 10e6


@pytest.mark.parametrize("phase", ["inference", "training"])
def test_a_pass_is_the_same_one_in_a_child(phase: str) -> None:
    sizes = {"vocab_size": 5000, "hidden_dim": 128, "num_layers": 2, "ff_dim": 256}
    given = passes.make(phase, "bsbr", 2048, **sizes)
    if phase != "inference":
        passes.with_gradients(given.model)
    held = memory.tensors(given.run, given.model, given.ids)
    before = sum(held.parts[part] for part in ("parameters", "inputs", "gradients"))
    child = memory.peak(passes.fresh, phase, "bsbr", 2048, 1, "returned", sizes)
    assert child.added == pytest.approx(held.total - before, rel=0.3)


def test_standard_attention_that_stores_its_scores_grows_with_the_square() -> None:
    sizes = {"vocab_size": 50, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16}
    n = 512
    fused, stored = (
        memory.tensors(given.run, given.model, given.ids).total
        for given in (passes.make("inference", name, n, **sizes) for name in ("standard", passes.UNFUSED))
    )
    assert stored - fused > 2 * n * n * FLOAT


@pytest.mark.parametrize(("phase", "n", "message"), [("reading", 8, "phase must be one"), ("training", 1, "n must be")])
def test_passes_that_are_none_are_refused(phase: str, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        passes.make(phase, "bsbr", n)


def test_a_process_that_the_system_ends_is_out_of_memory() -> None:
    with pytest.raises(MemoryError, match="ended by the system"):
        memory.peak(killed)
