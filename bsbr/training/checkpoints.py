"""Checkpoints: folders that appear by one rename, from which a run goes on to the same numbers. Nothing is pickled.

A checkpoint is `step-00000050` with the weights and the optimizer's moments as safetensors, and where the run was as
JSON, with the hash of the former: a damaged one is passed over for the one before it, if that is still there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from bsbr.store.files import write_whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class OtherRunError(ValueError):
    """A folder holds checkpoints of a run with other settings."""


def write(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, where: dict[str, Any]) -> None:
    """Keep where a run is, and drop what was kept before.

    Args:
        folder: of this run's checkpoints.
        learner, optimizer: whose weights and moments are kept.
        where: `"run"`, which is the run's key, `"step"`, and anything else that JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"step-{where['step']:08}"
    part = folder / f".{made.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    files = {
        "weights.safetensors": save(_weights(learner)),
        "moments.safetensors": save(_moments(learner, optimizer)),
    }
    for name, content in files.items():
        write_whole(part / name, content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_whole(part / "where.json", json.dumps({**where, "files": hashes}) + "\n")
    shutil.rmtree(made, ignore_errors=True)
    os.replace(part, made)
    for other in folder.iterdir():
        if other.name != made.name:
            shutil.rmtree(other, ignore_errors=True)


def resume(folder: Path, run: str, learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put weights and moments back to the newest whole checkpoint, and return where that was; None if there is none.

    Raises:
        OtherRunError: the checkpoint is of a run with another key.
    """
    for kept in sorted(folder.glob("step-*"), reverse=True):
        files = _read(kept)
        if files is None:
            continue
        where, weights, moments = files
        if where["run"] != run:
            raise OtherRunError(
                f"{folder.parent} holds a run of other settings, data or code, at step {where['step']}: name another "
                "folder, or delete that one to begin anew"
            )
        _put_back(learner, optimizer, weights, moments)
        return where
    return None


def _read(kept: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]] | None:
    """What a checkpoint holds; None if it is damaged."""
    try:
        where = json.loads((kept / "where.json").read_text(encoding="utf-8"))
        contents = {name: (kept / name).read_bytes() for name in where["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(hashlib.sha256(contents[name]).hexdigest() != found for name, found in where["files"].items()):
        return None
    return where, load(contents["weights.safetensors"]), load(contents["moments.safetensors"])


def _weights(learner: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    tensors = {**dict(learner.named_parameters()), **dict(learner.named_buffers())}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _moments(learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, parameter in learner.named_parameters():
        for key in MOMENTS if parameter in optimizer.state else ():
            found[f"{name}|{key}"] = optimizer.state[parameter][key].detach().contiguous()
    return found


@torch.no_grad()
def _put_back(
    learner: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], moments: dict[str, Tensor]
) -> None:
    for name, tensor in {**dict(learner.named_parameters()), **dict(learner.named_buffers())}.items():
        tensor.copy_(weights[name])
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in learner.named_parameters():
        if f"{name}|step" not in moments:
            continue
        state = {key: moments[f"{name}|{key}"] for key in MOMENTS}
        where = {"step": parameter.device if fused else "cpu"}
        optimizer.state[parameter] = {key: value.to(where.get(key, parameter.device)) for key, value in state.items()}
