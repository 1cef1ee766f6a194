"""The trainer: every mechanism learns, a run is its settings, data and seed, and a stopped one goes on to the same."""

from __future__ import annotations

import ast
import json
import math
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import ENVIRONMENT, forking

from bsbr import MECHANISMS, ModelConfig, TransformerLM
from bsbr.sources import made
from bsbr.store import fingerprint
from bsbr.training import Classifier, LanguageModel, Settings, checkpoints, evaluate, fit, settings, train
from bsbr.training.heads import IGNORED
from bsbr.training.runs import Run
from bsbr.training.tasks import Recall, Windows

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(vocab_size=32, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=4, window_size=4, key_dim=8)
QUICK = dict(batch=4, learning_rate=1e-2, precision="float32", save_every=3)


def windows(n: int = 16) -> Windows:
    """A stream in which each token says what comes next."""
    stream = np.arange(3000) * 5 % 31
    return Windows({"train": stream, "validation": stream[:500], "test": stream[:400]}, n, vocab_size=32)


@dataclass(frozen=True)
class Parity:
    """Rows of unlike lengths, and whether their first token is odd."""

    vocab_size: int = 32

    def size(self, part: str) -> int:
        return 64

    def rows(self, part: str, indices: list[int]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[1 + i % 30] * 6 for i in indices])
        mask = (torch.arange(6) < torch.tensor([1 + i % 6 for i in indices])[:, None]).long()
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([i % 2 for i in indices])}

    def fingerprint(self) -> str:
        return "parity"


def learner(mechanism: str = "standard", **options: Any) -> LanguageModel:
    return LanguageModel(TransformerLM(ModelConfig(mechanism, **{**SMALL, **options})))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", settings.PRECISIONS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_learns(mechanism: str, precision: str, tmp_path: Path) -> None:
    chosen = Settings(steps=30, warm_up=3, **{**QUICK, "precision": precision})
    found = train(lambda: learner(mechanism), windows(), chosen, tmp_path / "c", device="cpu", quiet=True)
    first, last = found.curve[0], found.curve[-1]
    assert first["loss"] == pytest.approx(math.log(32), abs=0.2) and last["validation_loss"] < first["loss"] - 0.5
    assert (last["step"], last["tokens"], found.diverged) == (30, 30 * 4 * 16, None)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_classifier_learns_and_does_not_read_padding(pooling: str, tmp_path: Path) -> None:
    def make() -> Classifier:
        return Classifier(TransformerLM(ModelConfig("bsbr", **SMALL)), 2, pooling)

    found = train(make, Parity(), Settings(steps=60, **QUICK), tmp_path / "c", device="cpu", quiet=True)
    assert found.curve[-1]["validation_accuracy"] > 0.9
    with torch.no_grad():
        ids, mask = torch.tensor([[3, 4, 0, 0]]), torch.tensor([[1, 1, 0, 0]])
        torch.testing.assert_close(found.learner.logits(ids, mask), found.learner.logits(ids[:, :2]))
    with pytest.raises(ValueError, match="pooling must be one of mean, last"):
        Classifier(TransformerLM(ModelConfig("bsbr", **SMALL)), 2, "max")


def test_the_loss_is_of_the_labels_alone() -> None:
    model = learner().eval()
    ids = torch.randint(32, (2, 8))
    labels = torch.full_like(ids, IGNORED)
    labels[0, 3], labels[1, 7] = 5, 6
    with torch.no_grad():
        found = model(ids, labels)
        logits = model.model(ids)
    expected = -(logits[0, 3].log_softmax(-1)[5] + logits[1, 7].log_softmax(-1)[6])
    assert found.targets == 2 and found.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_depends_on_its_seed_and_leaves_the_callers_chance_alone(tmp_path: Path) -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        chosen, folder = Settings(steps=4, seed=seed, **QUICK), tmp_path / f"{time.time_ns()}"
        model = train(lambda: learner(dropout=0.2), windows(), chosen, folder, device="cpu", quiet=True)
        return weights(model.learner)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = run(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert same(run(0), one) and not same(run(1), one)


class Stop(Exception):  # noqa: N818
    pass


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Settings(steps=11, warm_up=2, evaluate_every=4, **QUICK)

    def run(folder: str) -> Any:
        make = lambda: learner("bsbr", dropout=0.1)  # noqa: E731
        return train(make, windows(), chosen, tmp_path / folder, device="cpu", quiet=True)

    whole = run("whole")
    rows = Windows.rows
    for stop_at in (2, 5, 8):  # calls of `rows` from the last checkpoint on
        calls = []

        def counted(self: Windows, *args: Any, calls: list[int] = calls, stop_at: int = stop_at) -> Any:
            calls.append(0)
            if len(calls) > stop_at:
                raise Stop
            return rows(self, *args)

        monkeypatch.setattr(Windows, "rows", counted)
        with pytest.raises(Stop):
            run("stopped")
    monkeypatch.setattr(Windows, "rows", rows)
    again = run("stopped")
    assert same(weights(again.learner), weights(whole.learner))
    drop = {"seconds"}
    assert [{k: v for k, v in p.items() if k not in drop} for p in again.curve] == [
        {k: v for k, v in p.items() if k not in drop} for p in whole.curve
    ]


def test_a_damaged_checkpoint_is_passed_over_and_another_runs_is_refused(tmp_path: Path) -> None:
    module = learner()
    optimizer = torch.optim.AdamW(module.parameters())
    checkpoints.write(tmp_path, module, optimizer, {"run": "a", "step": 1})
    before = weights(module)
    kept = tmp_path / "step-00000001"
    (tmp_path / "step-00000002").mkdir()
    for name in ("where.json", "weights.safetensors", "moments.safetensors"):
        (tmp_path / "step-00000002" / name).write_bytes((kept / name).read_bytes())
    (tmp_path / "step-00000002" / "weights.safetensors").write_bytes(b"cut short")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    with pytest.raises(checkpoints.OtherRunError, match="holds a run of other settings"):
        checkpoints.resume(tmp_path, "b", module, optimizer)
    where = checkpoints.resume(tmp_path, "a", module, optimizer)
    assert where and where["step"] == 1 and same(weights(module), before)


def test_parts_of_a_batch_add_up_to_the_whole(tmp_path: Path) -> None:
    def run(accumulation: int) -> Any:
        chosen = Settings(steps=3, accumulation=accumulation, **QUICK)
        make = lambda: Classifier(TransformerLM(ModelConfig("linear", **SMALL)), 2)  # noqa: E731
        return train(make, Parity(), chosen, tmp_path / f"{accumulation}", device="cpu", quiet=True)

    one, parts = run(1).curve, run(4).curve
    for name in ("loss", "gradient_norm", "tokens"):
        assert [point[name] for point in parts] == pytest.approx([point[name] for point in one], rel=1e-3), name
    with pytest.raises(ValueError, match="batch must be a multiple of accumulation × processes = 3, but is 4"):
        run(3)


def test_a_run_that_diverges_ends_and_says_where(tmp_path: Path) -> None:
    chosen = Settings(steps=50, **{**QUICK, "learning_rate": 1e30, "largest_gradient": 1e30})
    found = train(learner, windows(), chosen, tmp_path / "c", device="cpu", quiet=True)
    assert found.diverged is not None and len(found.curve) == found.diverged - 1


def test_each_row_is_read_once_in_an_epoch_by_seed_and_step_alone() -> None:
    chosen = Settings(steps=99, batch=4)
    epoch = [i for step in range(1, 6) for i in settings.indices(step, chosen, 10)]
    assert sorted(epoch[:10]) == list(range(10)) == sorted(epoch[10:]) and epoch[:10] != epoch[10:]
    assert settings.indices(4, chosen, 10) == epoch[12:16]
    assert settings.indices(1, Settings(steps=99, batch=4, seed=1), 10) != epoch[:4]
    endless = [set(settings.indices(step, Settings(steps=99, seed=s), None)) for s in (0, 1) for step in (1, 2)]
    assert len(set.union(*endless)) == sum(map(len, endless))


def test_the_learning_rate_rises_and_falls() -> None:
    chosen = Settings(steps=10, warm_up=4, learning_rate=1.0, final_rate=0.1)
    rates = [settings.learning_rate(step, chosen) for step in range(1, 11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("steps", 0, "steps must be a whole number ≥ 1"),
        ("batch", 2.5, "batch must be a whole number ≥ 1"),
        ("learning_rate", math.nan, "learning_rate must lie between 0"),
        ("warm_up", 11, "warm_up must be at most steps = 10"),
        ("precision", "float16", "precision must be one of float32, bfloat16"),
    ],
)
def test_settings_out_of_range_are_named(option: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**{"steps": 10, option: value})


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    from bsbr.training.trainer import _optimizer

    module = Classifier(TransformerLM(ModelConfig("bsbr", **SMALL)), 2)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decaying, still = (
        {names[id(p)] for p in group["params"]} for group in _optimizer(module, Settings(steps=1)).param_groups
    )
    assert "model.embedding.weight" in still and "output.bias" in still and "output.weight" in decaying
    assert all("norm" not in name for name in decaying) and len(decaying) + len(still) == len(names)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BSBR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny(steps: int = 4, seed: int = 0, **options: Any) -> Run:
    config, chosen = ModelConfig("bsbr", **SMALL), Settings(steps=steps, seed=seed, evaluate_every=2, **QUICK)
    return fit(config, windows(), chosen, device="cpu", quiet=True, **options)


def test_a_run_is_kept_with_its_curve_and_record(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny()
    assert list(run.curve["step"]) == [1, 2, 3, 4] and run.curve["validation_loss"].notna().sum() == 2
    record = run.record
    assert (record["tokens"], record["steps"], record["settings"]["seed"]) == (4 * 4 * 16, 4, 0)
    assert {"commit", "packages", "machine", "task", "validation", "diverged"} <= record.keys()
    found = evaluate(run.learner(), windows(), "validation")
    assert found["loss"] == pytest.approx(record["validation"]["loss"], rel=1e-6)
    assert sorted(path.name for path in run.folder.parent.iterdir()) == [run.folder.name, f"{run.folder.name}.sha256"]

    monkeypatch.setattr("bsbr.training.runs.train", None)
    assert tiny().folder == run.folder


def test_of_two_trainings_of_one_run_at_once_the_second_waits_and_finds_it_done(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, both = [], threading.Barrier(2)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return train(*arguments, **options)

    def run(_: int) -> Run:
        both.wait()
        return tiny(steps=30)

    monkeypatch.setattr("bsbr.training.runs.train", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, range(2))
    assert len(calls) == 1 and one.folder == other.folder and made.is_whole(one.folder)
    assert "is at work in" in capsys.readouterr().out
    assert {path.name for path in one.folder.parent.iterdir()} == {one.folder.name, f"{one.folder.name}.sha256"}


def test_other_settings_data_or_code_are_another_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {tiny().folder, tiny(seed=1).folder, tiny(steps=5).folder}
    meaning = fingerprint._meaning
    monkeypatch.setattr(fingerprint, "_said", fingerprint._said.__wrapped__)  # each text is read again

    def changed(file: str) -> None:
        """The tree of a file of the project, as if it had been edited."""
        text = (ROOT / "bsbr" / file).read_text(encoding="utf-8")
        edited = fingerprint._meaning(ast.parse(text))
        monkeypatch.setattr(fingerprint, "_meaning", lambda tree: meaning(tree).replace(edited, "edited"))

    for file in ("attention/deltanet.py", "sources/pins.py"):  # what a run of bsbr's cannot depend on
        changed(file)
        assert tiny().folder in folders
    for number, file in enumerate(("attention/standard.py", "training/trainer.py", "model.py"), start=4):
        changed(file)
        folders.add(tiny().folder)
        assert len(folders) == number


def test_a_damaged_run_is_trained_again_to_the_same(cache: Path) -> None:
    run = tiny()
    whole = weights(run.learner())
    (run.folder / "model.safetensors").write_bytes((run.folder / "model.safetensors").read_bytes()[:-100])
    assert same(weights(tiny().learner()), whole)
    made.record_path(run.folder).unlink()  # as a stop between the two leaves it
    assert same(weights(tiny().learner()), whole) and made.is_whole(run.folder)


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    tiny(folder=tmp_path / "mine")
    with pytest.raises(checkpoints.OtherRunError, match="has a run of other settings"):
        tiny(folder=tmp_path / "mine", seed=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(checkpoints.OtherRunError, match="files that are of no run"):
        tiny(folder=tmp_path / "other")


def test_a_classifier_is_read_back_as_it_was_trained(cache: Path) -> None:
    run = fit(ModelConfig("gau", **SMALL), Parity(), Settings(steps=3, **QUICK), classes=2, device="cpu", quiet=True)
    assert evaluate(run.learner(), Parity(), "validation")["loss"] == pytest.approx(run.record["validation"]["loss"])


# --- several processes, and kills ----------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from bsbr import ModelConfig
from bsbr.training import Settings, fit
from bsbr.training.tasks import Recall
def settings(steps, dropout):
    config = ModelConfig("bsbr", 64, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=4, dropout=dropout)
    how = Settings(steps=steps, batch=4, precision="float32", save_every=2, evaluate_every=5, evaluate_rows=8)
    return config, Recall(4, 32, 64), how
def run(folder, steps, dropout):
    return fit(*settings(steps, dropout), folder=Path(folder), device="cpu", quiet=True)
"""
SERVER = f"""{SCRIPT}
import os
import torch._dynamo
from bsbr.training.runs import run_key
run_key(*settings(40, 0.1), None, "cpu")
print("ready", flush=True)
for folder in sys.stdin:
    if not (pid := os.fork()):
        run(folder.strip(), 40, 0.1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_two_processes_train_to_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}\nrun(sys.argv[1], 10, 0.0)")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script), str(tmp_path / "two")], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    names: dict[str, Any] = {}
    exec(SCRIPT, names)
    one, two = names["run"](tmp_path / "one", 10, 0.0), Run(tmp_path / "two")
    assert (one.record["processes"], two.record["processes"]) == (1, 2)
    for name in ("loss", "gradient_norm", "tokens", "validation_loss"):
        numbers = (run.curve[name].dropna().to_numpy() for run in (one, two))
        np.testing.assert_allclose(*numbers, rtol=1e-3, err_msg=name)


def test_killed_at_random_moments_it_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """The moments are drawn anew each time. Runs are forked from a process that has loaded and read all they need, so
    that kills hit the training."""
    chance, ended = random.Random(time.time_ns()), []
    with forking(SERVER) as fork:

        def run(name: str, seconds: float | None) -> None:
            ended.append(fork(str(tmp_path / name), seconds))

        begin = time.perf_counter()
        run("whole", None)
        length = time.perf_counter() - begin
        names = ["killed 1"]
        while ended.count(-signal.SIGKILL) < 10:
            run(names[-1], chance.uniform(0, length))
            if ended[-1] == 0:  # it was through before its kill: the next kills are another run's
                names.append(f"killed {len(names) + 1}")
        run(names[-1], None)
    assert ended[0] == 0 and set(ended) == {0, -signal.SIGKILL}
    for name in names:
        assert same(*(weights(Run(tmp_path / each).learner()) for each in (name, "whole")))
        one, other = (Run(tmp_path / each).curve.drop(columns="seconds") for each in (name, "whole"))
        assert one.equals(other)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{name}{end}" for name in ("whole", *names) for end in ("", ".sha256")}


def test_nothing_is_pickled() -> None:
    for path in (ROOT / "bsbr" / "training").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("import pickle", "torch.save", "torch.load", "save_state("))


def test_the_record_is_plain_json(cache: Path) -> None:
    json.dumps(tiny().record, allow_nan=False)
    assert Recall(4, 32, 64).fingerprint() != Recall(4, 32, 64, seed=1).fingerprint()
