"""A small GPT-2, trained here in minutes: the architecture of `gpt2`, whose own weights no package registry has.

It is trained on the State of the Union addresses that are in no part of the pinned split, so that nothing it is tried
on, and nothing a conversion of it is calibrated on, was trained on. `train` leaves a Hugging Face folder in the cache.
It can be stopped at any moment and goes on from its last checkpoint to the same weights as without the stop.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

from bsbr.files import write_whole
from bsbr.tasks import sources

END = "<|endoftext|>"
LARGEST_GRADIENT = 1.0  # norm to which gradients are clipped


@dataclass(frozen=True)
class Settings:
    """What is trained, and how. A step reads `batch` windows of `n_positions` tokens: every position is trained."""

    vocabulary: int
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int
    speeches: int  # at most, evenly over the years
    batch: int
    steps: int
    warm_up: int
    save_every: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    seed: int = 0


PROFILES = {
    "tiny": Settings(
        vocabulary=512, n_embd=32, n_layer=2, n_head=2, n_positions=512, speeches=8, batch=2, steps=20, warm_up=4,
        save_every=5, learning_rate=4e-3,
    ),
    "full": Settings(
        vocabulary=4096, n_embd=256, n_layer=6, n_head=4, n_positions=1024, speeches=1000, batch=1, steps=700,
        warm_up=100, save_every=50,
    ),
}  # fmt: skip


def training_texts(most: int) -> list[str]:
    """The speeches that are in no part of the split, or `most` of them."""
    kept = {key for part in (sources.read_pin("speeches").split or {}).values() for key in part}
    texts = [speech.text for speech in sources.load_speeches() if speech.key not in kept]
    return sources.evenly(texts, min(most, len(texts)))


def train(profile: str, report: Callable[[str], None] = print) -> Path:
    """Train the model of a profile unless it is there; return its folder.

    Args:
        profile: `"tiny"` (seconds, for trying out) or `"full"` (minutes).
        report: is told after each checkpoint which step was reached, the loss, and the time left.

    Raises:
        ValueError: there is no such profile.
        SourceError: the speeches were not fetched, or were altered.
    """
    folder = _folder(profile)
    if (folder / "record.json").is_file():
        return folder
    settings = PROFILES[profile]
    texts = training_texts(settings.speeches)
    tokenizer = _train_tokenizer(texts, settings)
    stream = torch.tensor([token for text in texts for token in tokenizer(text + END)["input_ids"]])

    model = _new_model(settings, tokenizer)
    optimizer = _optimizer(model, settings)
    checkpoint = folder.with_name(f"{folder.name}.checkpoint.safetensors")
    done, seconds = _resume(checkpoint, model, optimizer)

    start = time.perf_counter() - seconds
    for step in range(done + 1, settings.steps + 1):
        loss = _step(model, optimizer, _windows(stream, settings, step), _learning_rate(step, settings))
        seconds = time.perf_counter() - start
        if step % settings.save_every == 0 and step < settings.steps:
            write_whole(checkpoint, _checkpoint(model, optimizer, step, seconds))
            left = seconds / step * (settings.steps - step)
            report(f"small GPT-2: step {step} of {settings.steps}, loss {loss:.2f}, {left:.0f} s left")
    record = {
        "tokens": settings.steps * settings.batch * settings.n_positions,
        "steps": settings.steps,
        "seconds": seconds,
        "loss": evaluate(model.eval(), tokenizer),
        "speeches": len(texts),
        "stream": len(stream),
        "settings": asdict(settings),
    }
    _keep(folder, model, tokenizer, record)
    checkpoint.unlink(missing_ok=True)
    report(f"small GPT-2: trained in {seconds:.0f} s, loss {record['loss']:.2f} on speeches kept for development")
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """The trained model in eval mode, in float32, and its tokenizer."""
    logging.disable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval(), tokenizer


def record(profile: str) -> dict[str, Any]:
    """How the model of a profile was trained: tokens read, steps, seconds, and its loss on development speeches.

    Raises:
        SourceError: it was not trained yet.
    """
    path = _folder(profile) / "record.json"
    if not path.is_file():
        raise sources.SourceError(
            f"The small GPT-2 {profile!r} is not trained yet: call small_gpt2.train({profile!r})."
        )
    return json.loads(path.read_text(encoding="utf-8"))


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any) -> float:
    """Mean loss, in nats a token, over the first full window of each development speech."""
    texts = [speech.text for speech in sources.load_speeches("development")]
    windows = [tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions + 1] for text in texts]
    return sum(_loss(model, ids).item() for ids in windows) / len(windows)


def _folder(profile: str) -> Path:
    """Named after the settings and the texts, so that others are trained anew."""
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {sorted(PROFILES)}, got {profile!r}")
    pin = sources.read_pin("speeches")
    made_of = json.dumps([asdict(PROFILES[profile]), pin.files_sha256, pin.split], sort_keys=True)
    return sources.cache_folder() / f"small_gpt2-{profile}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def _train_tokenizer(texts: list[str], settings: Settings) -> Any:
    """Byte-level BPE, as GPT-2's, so that no text is out of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def _new_model(settings: Settings, tokenizer: Any) -> Any:
    """Untrained, with weights drawn by the seed. Without dropout: the texts are read about once."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        n_positions=settings.n_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return GPT2LMHeadModel(config).train()


def _optimizer(model: Any, settings: Settings) -> torch.optim.Optimizer:
    """AdamW whose weight decay is for matrices alone, as GPT-2's successors are trained."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def _learning_rate(step: int, settings: Settings) -> float:
    """Rises linearly over the warm-up, then falls along half a cosine to nothing."""
    if step <= settings.warm_up:
        return settings.learning_rate * step / settings.warm_up
    share = (step - settings.warm_up) / (settings.steps - settings.warm_up)
    return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2


def _windows(stream: Tensor, settings: Settings, step: int) -> Tensor:
    """[batch, n_positions + 1] tokens, by the step alone, so that a resumed run reads what it would have read."""
    chance = torch.Generator().manual_seed(settings.seed + step)
    starts = torch.randint(len(stream) - settings.n_positions, (settings.batch,), generator=chance)
    return stream[starts[:, None] + torch.arange(settings.n_positions + 1)]


def _loss(model: Any, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each token of [batch, n + 1] given those before it."""
    logits = model(ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def _step(model: Any, optimizer: torch.optim.Optimizer, ids: Tensor, learning_rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with torch.autocast("cpu", torch.bfloat16):  # the weights and their updates stay float32
        loss = _loss(model, ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _checkpoint(model: Any, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> bytes:
    """Weights and the optimizer's state as safetensors, and where the run was."""
    tensors = {
        f"{name}|{key}": value
        for name, p in model.named_parameters()
        for key, value in {"weight": p.detach(), **optimizer.state[p]}.items()
    }
    return save(tensors, {"step": str(step), "seconds": str(seconds)})


def _resume(checkpoint: Path, model: Any, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Steps done and seconds spent; model and optimizer are put back to where they were then."""
    if not checkpoint.is_file():
        return 0, 0.0
    with safe_open(checkpoint, framework="pt") as stored, torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(stored.get_tensor(f"{name}|weight"))
            optimizer.state[p] = {key: stored.get_tensor(f"{name}|{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        where = stored.metadata()
    return int(where["step"]), float(where["seconds"])


def _keep(folder: Path, model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    """Put the folder in place by one rename, so that nobody finds half of it."""
    logging.disable_progress_bar()
    with sources.temporary_folder() as temporary:
        made = temporary / "model"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        write_whole(made / "record.json", json.dumps(record, indent=2) + "\n")
        if not folder.is_dir():  # another run may have been there first
            os.replace(made, folder)
