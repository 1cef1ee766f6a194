"""Training that begins with larger first weights than a backbone's own: an option of an experiment, the same for all.

All matrices of a `TransformerLM` are drawn with a deviation of 0.02, whatever its width; kernels of short convolutions
begin as the identity, and stay it. With a deviation near
1/√hidden_dim, narrow models have learned recall in fewer steps in trials; whether it helps others was not looked at.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict

import torch

from bsbr.config import ModelConfig
from bsbr.model import TransformerLM
from bsbr.sources.pins import cache_folder
from bsbr.training import LanguageModel, Run, Settings, checkpoints, fit
from bsbr.training.runs import run_key
from bsbr.training.settings import Task


def fit_from(times: float, config: ModelConfig, task: Task, settings: Settings, *, device: str | None = None) -> Run:
    """`fit` of a language model whose first matrices are so many times as large, kept apart from that of others.

    Raises:
        ValueError: `times` is not positive, or as `fit`.
    """
    if not times > 0:
        raise ValueError(f"times must be positive, but is {times!r}")
    config = ModelConfig(**{**asdict(config), "vocab_size": task.vocab_size})
    key = run_key(config, task, settings, None, device)
    folder = cache_folder() / "runs" / f"{config.name}-{key[:16]}-{times:g}"
    checkpoint = folder.with_name(f"{folder.name}.checkpoint")
    if not folder.exists() and not any(checkpoint.glob("step-*")):
        run = hashlib.sha256(f"{key} {settings} {task.fingerprint()}".encode()).hexdigest()
        learner = _enlarged(config, settings.seed, times)
        none_yet = torch.optim.SGD(learner.parameters())  # an optimizer without moments
        checkpoints.write(checkpoint, learner, none_yet, {"run": run, "step": 0, "seconds": 0.0, "curve": []})
    beside = {"start.txt": f"first matrices {times:g} times as large\n"}
    return fit(config, task, settings, folder=folder, device=device, quiet=True, beside=beside)


def _enlarged(config: ModelConfig, seed: int, times: float) -> LanguageModel:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        learner = LanguageModel(TransformerLM(config))
        for name, parameter in learner.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("short_conv.kernel"):
                parameter.mul_(times)
    return learner
