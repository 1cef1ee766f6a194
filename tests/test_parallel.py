"""A sequence shared out over processes gives what one process gives. Each number of ranks is one job of processes."""

import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

from bsbr import ModelConfig, TransformerLM, parallel
from bsbr.attention import deltanet, standard
from bsbr.parallel import Layout
from bsbr.parallel.deltanet import compose
from bsbr.parallel.shared import check
from bsbr.studies.parallel import SOFTMAX, Sizes, bytes_per_layer, config_of, gradient_error, launch

CHUNK = 8
VOCAB = 61
RANKS = (2, 4)
each_number_of_ranks = pytest.mark.parametrize("ranks", RANKS)

# Options, and the slices' lengths for 2 and for 4 ranks (None: as `parallel.part` cuts n = 75).
CASES: dict[str, tuple[dict, dict[int, tuple[int, ...] | None]]] = {
    "plain": ({}, {2: None, 4: None}),
    "whole chunks": ({}, {2: (16, 16), 4: (8, 8, 8, 8)}),
    "last slice below a chunk": ({}, {2: (24, 1), 4: (8, 24, 8, 7)}),
    "one layer": ({"num_layers": 1}, {2: (8, 8), 4: (8, 8, 16, 9)}),
    "compressed": ({"compression_factor": 4}, {2: (32, 17), 4: None}),
    "top 1": ({"top_k": 1}, {2: None, 4: (16, 8, 24, 11)}),
    "top 3": ({"top_k": 3}, {2: (8, 40), 4: None}),
    "2 local chunks": ({"local_chunks": 2}, {2: None, 4: (8, 24, 8, 15)}),
    "window over several ranks": ({"local_chunks": 4}, {2: (8, 43), 4: (8, 8, 16, 21)}),
    "window over all": ({"local_chunks": 9}, {2: (16, 19), 4: (8, 8, 16, 5)}),
    "all options": ({"local_chunks": 3, "top_k": 2, "compression_factor": 2}, {2: None, 4: None}),
    "short convolution": ({"short_conv": 4, "local_chunks": 2}, {2: None, 4: (8, 24, 8, 1)}),
    "convolution over several ranks": ({"short_conv": 12}, {2: (24, 1), 4: (8, 8, 8, 11)}),
    "a mechanism for each layer": ({"mechanism": ("bsbr", "bsbr"), "top_k": 1}, {2: None, 4: None}),
    "gradient checkpointing": ({"local_chunks": 2, "checkpointing": True}, {2: None, 4: None}),
    "linear": ({"mechanism": "linear"}, {2: None, 4: (70, 1, 9, 65)}),
    "linear, twice the features": ({"mechanism": "linear", "feature_map": "dpfp"}, {2: (1, 80), 4: None}),
    "deltanet": ({"mechanism": "deltanet"}, {2: (150, 71), 4: (70, 65, 1, 140)}),
    "deltanet, β fixed": ({"mechanism": "deltanet", "beta": 0.5}, {2: None, 4: None}),
    "sliding window": ({"mechanism": "sliding_window"}, {2: (70, 41), 4: (3, 1, 9, 35)}),
    "sliding window over ranks": ({"mechanism": "sliding_window", "window_size": 20}, {2: (3, 50), 4: (9, 3, 7, 48)}),
    "sliding window over all": ({"mechanism": "sliding_window", "window_size": 90}, {2: None, 4: None}),
    "sliding window of one token": ({"mechanism": "sliding_window", "window_size": 1}, {2: None, 4: None}),
    "gau": ({"mechanism": "gau"}, {2: None, 4: (8, 24, 8, 1)}),
    "two mechanisms": ({"mechanism": ("linear", "sliding_window")}, {2: (5, 14), 4: (5, 14, 1, 2)}),
    "two mechanisms, one in chunks": ({"mechanism": ("bsbr", "deltanet"), "short_conv": 3}, {2: None, 4: None}),
    "two mechanisms, both in chunks": ({"mechanism": ("gau", "bsbr"), "checkpointing": True}, {2: None, 4: None}),
    **{
        f"{name}, short convolution": ({"mechanism": name, "short_conv": 4}, {2: (72, 19), 4: (8, 24, 8, 1)})
        for name in parallel.SHARED
    },
}  # fmt: skip


def make(mechanism: str | tuple[str, ...] = "bsbr", checkpointing: bool = False, **options) -> TransformerLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_dim=32, num_heads=2, num_layers=2, ff_dim=48, chunk_size=CHUNK)
    sizes |= dict(window_size=6, key_dim=8)
    model = TransformerLM(ModelConfig(mechanism=mechanism, **{**sizes, **options})).double()
    model.gradient_checkpointing = checkpointing
    for parameter in model.parameters():
        if parameter.ndim == 2:  # larger than initialised, so that attention is far from uniform
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokens(n: int) -> Tensor:
    return torch.randint(VOCAB, (2, n), generator=torch.Generator().manual_seed(n))


def loss_weights(n: int) -> Tensor:
    return torch.randn(2, n, VOCAB, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def slice_for(rank: int, lengths: tuple[int, ...] | None, n: int) -> slice:
    if lengths is None:
        return parallel.part(n, CHUNK)
    return slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))


def gradients(model: TransformerLM) -> dict[str, Tensor]:
    """Of the parameters that are trained; zero for those that were not used."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}


def relative_error(ours: Tensor, right: Tensor) -> float:
    difference, size = (float(x.detach().abs().max()) for x in (ours - right, right))
    return difference / size if size else difference


# -- What runs on every rank ----------------------------------------------------------------------


def run_rank() -> dict:
    return {
        "cases": {name: run_case(*case) for name, case in CASES.items()},
        "causality": changed_outputs(),
        "subgroup": run_subgroup(),
        "softmax": {name: run_softmax(name) for name in SOFTMAX},
        "refused": refusals(),
        "frozen": run_frozen(),
        "trained": train(TRAINED),
        "bytes": bytes_per_layer(1024, METHODS, SIZES, 0),
    }


def run_case(options: dict, lengths_by_ranks: dict, group: parallel.Group = None) -> tuple[Tensor, dict[str, Tensor]]:
    lengths = lengths_by_ranks[dist.get_world_size()]
    n = sum(lengths) if lengths else 75
    own = slice_for(dist.get_rank(), lengths, n)
    model = make(**options).train()
    logits = parallel.logits(model, tokens(n)[:, own], group)
    (logits * loss_weights(n)[:, own]).sum().backward()
    parallel.sum_gradients(model, group)
    return logits.detach(), gradients(model)


CHANGED = [1, 7, 8, 9, 31, 40, 64, 74]


def changed_outputs() -> list[Tensor]:
    """This rank's outputs, first for some ids and then with those at t and after changed."""
    ids = tokens(75)
    own = parallel.part(75, CHUNK)
    model = make(local_chunks=2)
    later = [torch.where(torch.arange(75) >= t, (ids + 1) % VOCAB, ids) for t in CHANGED]
    with torch.inference_mode():
        return [parallel.encode(model, changed[:, own]).clone() for changed in (ids, *later)]


def run_subgroup() -> Tensor:
    """Two groups, each with a sequence of its own: even ranks and odd ranks."""
    ranks = range(dist.get_world_size())
    groups = [dist.new_group([r for r in ranks if r % 2 == parity]) for parity in (0, 1)]
    group = groups[dist.get_rank() % 2]
    n = 40 + dist.get_rank() % 2
    return parallel.encode(make(), tokens(n)[:, parallel.part(n, CHUNK, group)], group).detach()


def run_frozen() -> dict[str, Tensor]:
    """A loss on the first rank's outputs alone, and a frozen embedding."""
    model = make()
    model.embedding.requires_grad_(False)
    hidden = parallel.encode(model, tokens(32)[:, parallel.part(32, CHUNK)])
    (hidden.sum() if dist.get_rank() == 0 else 0 * hidden.sum()).backward()
    parallel.sum_gradients(model)
    return gradients(model)


TRAINED = ("deltanet", "bsbr", ("sliding_window", "linear"))


def train(mechanisms: Iterable) -> dict:
    """Losses and weights of three updates, as the book has them; without a group, of one process."""
    found = {}
    for mechanism in mechanisms:
        model, text = make(mechanism, num_layers=2), tokens(68)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        for _ in range(3):
            if dist.is_initialized():
                own = parallel.shard(text, model.config)
                logits = parallel.logits(model, own.inputs)
            else:
                own = parallel.Shard(text[:, :-1], text[:, 1:], torch.arange(67), 2 * 67)
                logits = model(own.inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), own.targets.flatten(), reduction="sum") / own.tokens
            optimizer.zero_grad()
            loss.backward()
            total = loss.detach().clone()
            if dist.is_initialized():
                parallel.sum_gradients(model)
                dist.all_reduce(total)
            optimizer.step()
            losses.append(float(total))
        found[mechanism] = losses, torch.cat([p.detach().flatten() for p in model.parameters()])
    return found


def run_beside_a_lost_worker(rank: int, case: str, folder: str) -> None:
    """Rank 1 is lost after the first pass; rank 0 writes which error ended its second one."""
    limit = timedelta(seconds=10)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    model, text = make("linear"), tokens(33)
    own = parallel.shard(text, model.config)
    parallel.encode(model, own.inputs)
    if rank == 1:
        if case == "stands still":
            time.sleep(120)
            Path(folder, "moved again").touch()
        os._exit(0)
    try:
        parallel.encode(model, own.inputs)
    except RuntimeError as error:
        Path(folder, "0").write_text(type(error).__name__)
        os._exit(3)


def run_softmax(name: str) -> list[Tensor]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    layout = Layout(None, rank, (32 // ranks,) * ranks)
    own = slice(layout.start, layout.start + 32 // ranks)
    q, k, v, weights = (x[:, :, own].clone().requires_grad_() for x in softmax_arguments())
    out = SOFTMAX[name](q, k, v, layout)
    (out * weights).sum().backward()
    return [out.detach(), q.grad, k.grad, v.grad]


def softmax_arguments() -> Tensor:
    return torch.randn(4, 2, 3, 32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mixed() -> TransformerLM:
    model = make()
    model.norm.float()
    return model


def refusals() -> dict[str, str]:
    """What each misuse raises on this rank."""
    rank, ranks, model = dist.get_rank(), dist.get_world_size(), make()
    first, last = rank == 0, rank == ranks - 1
    only_first = dist.new_group([0])
    calls = {
        "part of a chunk": lambda: parallel.encode(model, tokens(CHUNK + 1 if first else CHUNK)),
        "other rows": lambda: parallel.encode(model, tokens(CHUNK)[: 1 if last else 2]),
        "no tokens": lambda: parallel.encode(model, tokens(0 if first else CHUNK)),
        "outside the vocabulary": lambda: parallel.encode(model, tokens(CHUNK) + (VOCAB if last else 0)),
        "mechanism": lambda: parallel.encode(make("standard"), tokens(CHUNK)),
        "mechanism to cut for": lambda: parallel.shard(tokens(CHUNK), make("hopfield").config),
        "text of one token": lambda: parallel.shard(tokens(1), model.config),
        "hybrid": lambda: parallel.encode(make(("bsbr", "hopfield")), tokens(CHUNK)),
        "other convolution": lambda: parallel.encode(make(short_conv=4 if first else None), tokens(CHUNK)),
        "retrieval": lambda: parallel.encode(make(retrieval="uniform"), tokens(CHUNK)),
        "other chunks": lambda: parallel.encode(make(chunk_size=4 if first else CHUNK), tokens(CHUNK)),
        "other window": lambda: parallel.encode(make(local_chunks=2 if last else 1), tokens(CHUNK)),
        "other dtype": lambda: parallel.encode(make().float() if last else model, tokens(CHUNK)),
        "other half": lambda: parallel.encode(make().half() if last else make().bfloat16(), tokens(CHUNK)),
        "other layer's dtype": lambda: parallel.encode(mixed() if first else model, tokens(CHUNK)),
        "other heads": lambda: parallel.encode(make(num_heads=1 if first else 2), tokens(CHUNK)),
        "no number": lambda: parallel.part("75", CHUNK),
        "too short": lambda: parallel.part(CHUNK, CHUNK),
        "no group": lambda: parallel.part(100, CHUNK, "world"),
        "not in the group": (lambda: None) if first else lambda: parallel.part(100, CHUNK, only_first),
    }
    messages = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            messages[name] = str(error)
    return messages


@functools.cache
def job(ranks: int) -> list[dict]:
    return launch(ranks, run_rank)


# -- What is true ---------------------------------------------------------------------------------

SIZES = Sizes(batch=1, num_heads=2, head_dim=32, chunk_size=64)
METHODS: dict[str, dict] = {
    "bsbr": {},
    "compressed": {"compression_factor": 4},
    "all_gather": {},
    "ring": {},
    **{name: {"mechanism": name, "window_size": 300} for name in parallel.SHARED if name != "bsbr"},
    **{f"{name}, short convolution": {"mechanism": name, "short_conv": 4} for name in parallel.SHARED},
}


@each_number_of_ranks
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_one_process(case, ranks):
    options, lengths_by_ranks = CASES[case]
    n = sum(lengths_by_ranks[ranks] or (75,))
    model = make(**options)
    logits = model(tokens(n))
    (logits * loss_weights(n)).sum().backward()
    found = [results["cases"][case] for results in job(ranks)]
    assert relative_error(torch.cat([own for own, _ in found], dim=1), logits) <= 1e-10
    right = gradients(model)
    for _, summed in found:
        assert summed.keys() == right.keys()
        assert max(relative_error(summed[name], right[name]) for name in right) <= 1e-10


@each_number_of_ranks
def test_no_token_sees_the_future(ranks):
    before, *after = (torch.cat(parts, dim=1) for parts in zip(*(r["causality"] for r in job(ranks)), strict=True))
    for t, changed in zip(CHANGED, after, strict=True):
        assert torch.equal(changed[:, :t], before[:, :t])
        assert not torch.equal(changed[:, t:], before[:, t:])


@each_number_of_ranks
def test_a_group_of_some_of_the_processes_works_on_its_own(ranks):
    for parity in (0, 1):
        whole = torch.cat([r["subgroup"] for r in job(ranks)[parity::2]], dim=1)
        assert relative_error(whole, make().encode(tokens(40 + parity))) <= 1e-10


@each_number_of_ranks
def test_a_loss_on_one_rank_alone_and_frozen_parameters_are_no_obstacle(ranks):
    model = make()
    model.embedding.requires_grad_(False)
    model.encode(tokens(32))[:, : 32 // ranks].sum().backward()
    right = gradients(model)
    for results in job(ranks):
        assert results["frozen"].keys() == right.keys()
        assert max(relative_error(results["frozen"][name], right[name]) for name in right) <= 1e-10


@each_number_of_ranks
@pytest.mark.parametrize("name", SOFTMAX)
def test_the_softmax_attention_we_compare_with_is_softmax_attention(name, ranks):
    q, k, v, weights = (x.requires_grad_() for x in softmax_arguments().unbind())
    out = standard.attend(q, k, v)
    (out * weights).sum().backward()
    found = zip(*(results["softmax"][name] for results in job(ranks)), strict=True)
    for ours, right in zip(found, (out, q.grad, k.grad, v.grad), strict=True):
        assert relative_error(torch.cat(ours, dim=2), right) <= 1e-10


@each_number_of_ranks
def test_the_bytes_counted_are_those_of_the_tensors_sent(ranks):
    """Rank r sends to the ranks after it and returns gradients to those before; gloo adds a few bytes a message."""
    p, heads, chunks = SIZES.head_dim, SIZES.num_heads, 1024 // SIZES.chunk_size // ranks
    whole, small = (4 * heads * chunks * p * (state_dim + 1) for state_dim in (p, p // 4))
    query, softmax = 4 * heads * p, 2 * 4 * heads * p * 1024 // ranks * (ranks - 1)
    for rank, results in enumerate(job(ranks)):
        later, first, last = ranks - 1 - rank, rank == 0, rank == ranks - 1
        right = {
            "bsbr": (later * whole + query * (not last), rank * whole + query * (not first)),
            "compressed": (later * small + query * (not last), rank * small + query * (not first)),
            "all_gather": (softmax, softmax),
            "ring": (softmax, softmax),
        }
        for name, expected in right.items():
            for counted, tensors in zip(results["bytes"][name], expected, strict=True):
                assert 0 <= counted - tensors <= 1000, (name, rank)


@each_number_of_ranks
@pytest.mark.parametrize("name", [name for name in METHODS if name not in SOFTMAX])
def test_the_formula_gives_the_bytes_counted(name, ranks):
    options = {"mechanism": "bsbr", **METHODS[name]}
    formula = parallel.bytes_sent(config_of(options, SIZES), [1024 // ranks] * ranks)
    for results, expected in zip(job(ranks), formula, strict=True):
        for counted, tensors in zip(results["bytes"][name], expected, strict=True):
            assert 0 <= counted - tensors <= 1500
    sent, returned = (sum(way) for way in zip(*formula, strict=True))
    assert sent == returned > 0


def test_the_formula_knows_states_that_are_wider_than_the_model():
    """And that keys and values are not."""
    for name, times in (("linear", 1), ("deltanet", 1), ("gau", 1), ("sliding_window", 2)):
        config = ModelConfig(name)
        whole, half = (
            parallel.bytes_sent(config, (64, 64), dtype=dtype)[0][0] for dtype in (torch.float32, torch.half)
        )
        assert whole == times * half


@each_number_of_ranks
def test_training_on_shards_is_training_in_one_process(ranks):
    right = train(TRAINED)
    for results in job(ranks):
        for name in TRAINED:
            losses, weights = results["trained"][name]
            assert max(abs(a - b) for a, b in zip(losses, right[name][0], strict=True)) <= 1e-9
            assert relative_error(weights, right[name][1]) <= 1e-9
        assert right["deltanet"][0][-1] < right["deltanet"][0][0]


def test_a_worker_that_dies_ends_the_others_within_the_timeout(tmp_path):
    """The sockets of a process that is gone are closed; one that only stands still is given up after the timeout."""
    assert default_pg_timeout == timedelta(minutes=30)  # as the page on several processes says
    for case in ("dies", "stands still"):
        (tmp_path / case).mkdir()
        with pytest.raises(torch.multiprocessing.ProcessExitedException):
            torch.multiprocessing.spawn(run_beside_a_lost_worker, args=(case, str(tmp_path / case)), nprocs=2)
        assert (tmp_path / case / "0").read_text().endswith("Error")
        assert not (tmp_path / case / "moved again").exists()


@each_number_of_ranks
@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        ("part of a chunk", "input_ids must be whole chunks of 8 tokens on every rank but the last, but rank 0 has 9"),
        ("other rows", "input_ids must have the same rows on every rank"),
        ("no tokens", "input_ids must hold at least one row|rank 0 refused its slice"),
        ("outside the vocabulary", r"input_ids must lie in 0 … 60|rank \d refused its slice"),
        (
            "mechanism",
            rf"a sequence-parallel form \({', '.join(parallel.SHARED)}\), but uses 'standard'; run it in one",
        ),
        ("mechanism to cut for", "but uses 'hopfield'; run it in one process"),
        ("text of one token", r"text must be ids of shape \(batch, n \+ 1\) .* but has shape \(2, 1\)"),
        ("hybrid", "sequence-parallel form .* but uses 'hopfield'; run it in one process"),
        ("other convolution", r"but its config \(a checksum\) is not"),
        ("retrieval", "retrieval must be 'states' over several processes, but is 'uniform'; run it in one"),
        ("other chunks", "model must be the same on every rank, but its chunk_size is not: by rank 4, 8"),
        ("other window", "model must be the same on every rank, but its local_chunks is not: by rank 1"),
        ("other dtype", "model must be the same on every rank, but its bits of a weight is not: by rank 64"),
        ("other half", r"but its dtypes of weights \(a checksum\) is not"),
        ("other layer's dtype", r"but its dtypes of weights \(a checksum\) is not"),
        ("other heads", r"but its config \(a checksum\) is not"),
        ("no number", "n must be a whole number ≥ 1, but is '75'"),
        ("too short", "n must be long enough to give each of . ranks a chunk of 8 tokens, but 8 tokens are 1 chunks"),
        ("no group", "group must be a torch.distributed process group .* but is 'world'"),
    ],
)
def test_misuse_is_named_on_every_rank(misuse, message, ranks):
    for results in job(ranks):
        assert re.search(message, results["refused"][misuse])


@each_number_of_ranks
def test_a_process_outside_the_group_is_refused(ranks):
    first, *others = (results["refused"] for results in job(ranks))
    assert "not in the group" not in first
    assert all("group must be a torch.distributed process group" in refused["not in the group"] for refused in others)


def test_using_it_before_the_processes_are_joined_says_what_to_call():
    with pytest.raises(ValueError, match=r"torch.distributed is not initialised; launch with torchrun"):
        parallel.encode(make(), tokens(16))


@pytest.mark.parametrize("mechanism", parallel.SHARED)
def test_a_long_text_has_the_gradient_that_one_process_gives(mechanism, request):
    """65,536 tokens over four processes, in float32; a minute each on two cores, so only with `--every-page`."""
    if not request.config.getoption("--every-page"):
        pytest.skip("takes a minute; runs with --every-page")
    assert gradient_error(mechanism, 65_536, ranks=4, seed=0) <= 1e-4


def test_maps_of_slices_compose_to_that_of_the_text_with_decay_too():
    """What a gated delta rule needs: `keep` may be any matrix."""
    keep, write = torch.randn(2, 2, 3, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = 0.3 * keep
    right = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    for chunk in range(6):
        right = keep[:, :, chunk] @ right + write[:, :, chunk]
    nothing = torch.eye(5, 10, dtype=torch.float64).expand(2, 3, 5, 10)
    of_slices = [
        deltanet.run(nothing, keep[:, :, part], F.pad(write[:, :, part], (5, 0)))[1]
        for part in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert relative_error(compose(torch.stack(of_slices, dim=2)), right) <= 1e-12


def test_options_without_a_form_are_refused():
    unknown = SimpleNamespace(options={"feature_map": "elu", "gate": True})
    with pytest.raises(ValueError, match="gate must not be an option of 'linear' over several processes"):
        check(ModelConfig("linear", num_layers=1), [unknown])
    rows = torch.zeros(1, 2, CHUNK, 4)
    for option in ({"retrieval": "none"}, {"chunk_encoder": "delta"}, {"normaliser": "shared"}):
        [name] = option
        with pytest.raises(ValueError, match=f"{name} must be '.*' over several processes"):
            parallel.attend(rows, rows, rows, rows, rows, Layout(None, 0, (CHUNK,)), CHUNK, **option)


def test_the_script_of_the_book_runs_under_torchrun(tmp_path):
    """With two processes it prints what it prints with one."""
    page = (Path(__file__).parent.parent / "book" / "parallel.md").read_text(encoding="utf-8")
    script = tmp_path / "train.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    printed = [
        subprocess.run([*command, "--nproc-per-node", str(ranks), script], capture_output=True, text=True, check=True)
        for ranks in (1, 2)
    ]
    assert printed[0].stdout.count("loss") == 5
    assert printed[1].stdout == printed[0].stdout
