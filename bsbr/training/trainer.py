"""The trainer: one loop for every mechanism, head and task, on a CPU, a GPU, or several by `accelerate launch`.

A run is its settings, its data and its seed. Rows, learning rate and dropout of a step depend on seed and step alone,
so a run that was stopped goes on from its last checkpoint to the same numbers as without the stop, bit for bit on the
same machine and packages.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from bsbr.training import checkpoints
from bsbr.training.heads import Score
from bsbr.training.settings import Batch, Settings, Task, generator, indices, learning_rate

Point = dict[str, float]


@dataclass
class Trained:
    """What a run came to.

    Attributes:
        learner: the trained module, in eval mode.
        curve: one row a step: `step`, `tokens` read so far, `seconds` so far, `learning_rate`, `loss` in nats a
            target, `gradient_norm` before clipping; and where validation was looked at, `validation_loss` and
            `validation_accuracy`.
        seconds: of training and looking at validation, over all sittings.
        diverged: the step at which loss or gradient was no number any more, where the run ended; None if it did not.

    Examples:
        >>> from torch import nn
        >>> from bsbr.training.trainer import Trained
        >>> trained = Trained(nn.Identity(), curve=[{"step": 1, "loss": 2.0}], seconds=0.5)
        >>> trained.curve[-1]["loss"], trained.diverged
        (2.0, None)
    """

    learner: nn.Module
    curve: list[Point] = field(default_factory=list)
    seconds: float = 0.0
    diverged: int | None = None


def train(
    make: Callable[[], nn.Module],
    task: Task,
    settings: Settings,
    checkpoint: Path,
    *,
    run: str = "",
    device: str | None = None,
    name: str = "training",
    quiet: bool = False,
) -> Trained:
    """Train a learner, or go on where it was stopped.

    Args:
        make: makes the learner, whose `forward` takes a batch by name and returns a `Score`; its weights are drawn by
            the settings' seed.
        task: what is learned.
        settings: how.
        checkpoint: the folder of this run's checkpoints. Whoever keeps the result removes it.
        run: a key of what the run depends on beside task and settings, so that another's checkpoint is refused.
        device: `"cpu"` keeps to it; None takes what `accelerate` finds: a GPU, or what `accelerate launch` says.
        name: what the line of progress begins with.
        quiet: whether there is no such line.

    Raises:
        ValueError: the batch does not divide into the parts of all processes.
        checkpoints.OtherRunError: the folder has a checkpoint of another run.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.training import LanguageModel, Settings, train
        >>> config = ModelConfig("bsbr", vocab_size=32, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16)
        >>> from bsbr.training.tasks import Recall
        >>> task = Recall(pairs=2, n=16, vocab_size=32, train_rows=8, test_rows=4)
        >>> make = lambda: LanguageModel(TransformerLM(config))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trained = train(make, task, Settings(steps=2, batch=4), Path(folder, "run"), device="cpu", quiet=True)
        >>> len(trained.curve), trained.diverged
        (2, None)
    """
    accelerator = Accelerator(cpu=device == "cpu")
    shares = settings.accumulation * accelerator.num_processes
    if settings.batch % shares:
        raise ValueError(
            f"batch must be a multiple of accumulation × processes = {shares}, but is {settings.batch}; change one"
        )
    run = hashlib.sha256(f"{run} {settings} {task.fingerprint()}".encode()).hexdigest()
    with _chance(accelerator):
        torch.manual_seed(settings.seed)
        learner = make().train().to(accelerator.device)
        optimizer = _optimizer(learner, settings)
        where = checkpoints.resume(checkpoint, run, learner, optimizer) or {"step": 0, "seconds": 0.0, "curve": []}
        trained = Trained(learner, where["curve"], where["seconds"])
        loop = _Loop(accelerator, accelerator.prepare(learner), optimizer, task, settings)
        begin, before = time.perf_counter(), trained.seconds
        hidden = quiet or not accelerator.is_main_process
        with tqdm(total=settings.steps, initial=where["step"], desc=name, unit="step", disable=hidden) as bar:
            for step in range(where["step"] + 1, settings.steps + 1):
                point = loop.step(step)
                last = step == settings.steps
                if point and (last or (settings.evaluate_every and step % settings.evaluate_every == 0)):
                    point |= loop.validate()
                trained.seconds = before + time.perf_counter() - begin
                if point is None:
                    trained.diverged = step
                    break
                tokens = trained.curve[-1]["tokens"] if trained.curve else 0
                trained.curve.append({**point, "tokens": tokens + point["tokens"], "seconds": trained.seconds})
                rate = (trained.curve[-1]["tokens"]) / trained.seconds
                bar.set_postfix_str(f"loss {point['loss']:.3f}, {rate:,.0f} tokens/s", refresh=False)
                bar.update()
                if step % settings.save_every == 0 and not last and accelerator.is_main_process:
                    state = {"run": run, "step": step, "seconds": trained.seconds, "curve": trained.curve}
                    checkpoints.write(checkpoint, learner, optimizer, state)
    learner.eval()
    return trained


class _Loop:
    """What a step and a look at the validation part do."""

    def __init__(
        self,
        accelerator: Accelerator,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        settings: Settings,
    ) -> None:
        self.accelerator, self.learner, self.optimizer = accelerator, learner, optimizer
        self.task, self.settings = task, settings
        self.size = task.size("train")

    def step(self, step: int) -> Point | None:
        """One update; None, and none made, if loss or gradient is no number."""
        settings, here = self.settings, self.accelerator
        torch.manual_seed(generator("dropout", settings.seed, step, here.process_index).initial_seed())
        wanted = indices(step, settings, self.size)
        share = settings.batch // (settings.accumulation * here.num_processes)
        parts = [wanted[i : i + share] for i in range(0, settings.batch, share)]
        mine = [self._rows("train", part) for part in parts[here.process_index :: here.num_processes]]
        targets = here.reduce(torch.tensor(sum(map(_targets, mine)), device=here.device, dtype=torch.float64), "sum")
        tokens = here.reduce(torch.tensor(sum(map(_tokens, mine)), device=here.device, dtype=torch.float64), "sum")

        total = torch.zeros((), device=here.device)
        for i, batch in enumerate(mine):
            waits = i < len(mine) - 1 and here.num_processes > 1
            with here.no_sync(self.learner) if waits else nullcontext(), self._autocast():
                loss = self.learner(**batch).loss
                # Processes average their gradients, and what is wanted is the mean over the targets of all.
                (loss * (here.num_processes / targets.item())).backward()
            total += loss.detach()
        mean = (here.reduce(total, "sum") / targets).item()
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), settings.largest_gradient).item()
        if not (math.isfinite(mean) and math.isfinite(norm)):
            return None
        rate = learning_rate(step, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"step": step, "tokens": int(tokens.item()), "learning_rate": rate, "loss": mean, "gradient_norm": norm}

    def validate(self) -> Point:
        """Loss and accuracy on the validation part."""
        found = evaluate(
            self.accelerator.unwrap_model(self.learner),
            self.task,
            "validation",
            rows=self.settings.evaluate_rows,
            batch=max(1, self.settings.batch // (self.settings.accumulation * self.accelerator.num_processes)),
            accelerator=self.accelerator,
        )
        self.learner.train()
        return {f"validation_{name}": found[name] for name in ("loss", "accuracy")}

    def _rows(self, part: str, wanted: list[int]) -> Batch:
        return {name: value.to(self.accelerator.device) for name, value in self.task.rows(part, wanted).items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)


@torch.no_grad()
def evaluate(
    learner: nn.Module, task: Task, part: str, *, rows: int = 0, batch: int = 8, accelerator: Accelerator | None = None
) -> Point:
    """`loss` in nats a target, `accuracy` and number of `targets` of a part, in float32; the learner is left in eval.

    Args:
        learner: as `train` takes.
        part: `"train"`, `"validation"` or `"test"`.
        rows: how many, at most; 0 for all.
        batch: rows read at once.
        accelerator: of several processes, which then share the rows.
        task: whose rows are read.

    Raises:
        ValueError: all rows of a part that never ends were asked for.

    Examples:
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.training import LanguageModel, evaluate
        >>> config = ModelConfig("bsbr", vocab_size=32, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16)
        >>> from bsbr.training.tasks import Recall
        >>> task = Recall(pairs=2, n=16, vocab_size=32, train_rows=8, test_rows=4)
        >>> found = evaluate(LanguageModel(TransformerLM(config)), task, "test")
        >>> sorted(found), found["targets"]
        (['accuracy', 'loss', 'targets'], 8.0)
    """
    size = task.size(part)
    if size is None and not rows:
        raise ValueError(f"rows must be ≥ 1, since rows of {part!r} never end, but is {rows}; set evaluate_rows")
    count = rows if size is None else min(size, rows or size)
    first, stride = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    mine = range(first, count, stride)
    device = next(learner.parameters()).device
    learner.eval()
    sums = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    for start in range(0, len(mine), batch):
        found = task.rows(part, list(mine[start : start + batch]))
        score: Score = learner(**{name: value.to(device) for name, value in found.items()})
        sums += torch.stack([value.to(sums.device, torch.float64) for value in score])
    if accelerator:
        sums = accelerator.reduce(sums, "sum")
    loss, right, targets = sums.tolist()
    return {"loss": loss / targets, "accuracy": right / targets, "targets": targets}


@torch.inference_mode()
def token_losses(model: nn.Module, input_ids: Int[Tensor, "batch n"]) -> Float[Tensor, "batch n_minus_1"]:
    """Cross-entropy in nats of each token but the first given those before it, by a `TransformerLM`, in float32.

    Args:
        model: a `TransformerLM`.
        input_ids: the texts.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.training import token_losses
        >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=100, hidden_dim=32, num_heads=2)).eval()
        >>> losses = token_losses(model, torch.randint(100, (1, 20)))
        >>> losses.shape, float(losses.mean().exp()) > 1  # perplexity
        (torch.Size([1, 19]), True)
    """
    logits = model(input_ids)[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


@contextmanager
def _chance(accelerator: Accelerator) -> Iterator[None]:
    """Leaves the caller's random numbers as they were."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _optimizer(learner: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW whose weight decay is for linear maps alone, matrices and kernels: not for norms, biases and embeddings."""
    embeddings = {id(p) for part in learner.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for parameter in learner.parameters():
        groups[parameter.ndim >= 2 and id(parameter) not in embeddings].append(parameter)
    device = next(learner.parameters()).device.type
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": settings.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, settings.beta_2),
        fused=device in ("cpu", "cuda"),
    )


def _targets(batch: Batch) -> int:
    """Labels that are not left out."""
    return int((batch["labels"] >= 0).sum())


def _tokens(batch: Batch) -> int:
    """Tokens that are read: all but padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())
