"""PyTorch's tracker of tensors, fit for any call. A module apart, since importing it takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker


class Tracker(MemTracker):
    """`MemTracker`, for inference mode as well and for calls that run a module more than once."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # where operations such as linear arrive whole, and hide what they make
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if not self._mod_tracker.is_bw:  # MemTracker refuses a second call of a module unless its statistics are reset
            self.memory_tracking.pop(module, None)
        super()._pre_fw_hook(module, inputs)
