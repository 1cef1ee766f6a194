"""Which rank holds which tokens, and which rows of its tensors others need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.distributed as dist

Group = dist.ProcessGroup | None  # None: all processes


class Need(NamedTuple):
    """Which earlier rows a rank needs: the `reach` rows before its own, or all (None). A row stands for `tokens`.

    Examples:
        >>> from bsbr.parallel import Layout, Need
        >>> layout = Layout(None, rank=2, lengths=(16, 24, 8))
        >>> layout.received(Need(tokens=8, reach=None))  # chunks of 8 tokens: all earlier ones
        [2, 3]
        >>> layout.received(Need(tokens=1, reach=8))  # tokens: the last 8 before its own
        [0, 8]
        >>> layout.received(Need(tokens=None, reach=None))  # a state of each rank's whole slice
        [1, 1]
    """

    tokens: int | None  # that a row stands for; None where one row stands for all tokens of a rank
    reach: int | None  # rows before a rank's own; None for all


STATE = Need(tokens=None, reach=None)  # one row of every earlier rank


@dataclass(frozen=True)
class Layout:
    """Which tokens each rank holds: rank r has `lengths[r]` of them, after those of the ranks before it.

    Examples:
        >>> from bsbr.parallel import Layout, Need
        >>> layout = Layout(None, rank=1, lengths=(16, 24, 8))
        >>> layout.start
        16
        >>> layout.received(Need(tokens=8, reach=None)), layout.sent(Need(tokens=8, reach=None))
        ([2], {2: 3})
    """

    group: Group  # None for all processes
    rank: int  # of this process
    lengths: tuple[int, ...]  # tokens of each rank

    @property
    def start(self) -> int:
        """The position of this rank's first token."""
        return sum(self.lengths[: self.rank])

    def received(self, need: Need) -> list[int]:
        """How many rows come from each earlier rank, the first rank's first."""
        return [self._shared(source, self.rank, need) for source in range(self.rank)]

    def sent(self, need: Need) -> dict[int, int]:
        """How many of its last rows this rank sends to each later one."""
        return {target: self._shared(self.rank, target, need) for target in range(self.rank + 1, len(self.lengths))}

    def _shared(self, source: int, target: int, need: Need) -> int:
        lengths = self.lengths[source:target]
        own, *between = (1 if need.tokens is None else length // need.tokens for length in lengths)
        return own if need.reach is None else max(0, min(own, need.reach - sum(between)))


def place(group: Group) -> tuple[int, int]:
    """This process's rank in the group, and how many ranks it has. Raises ValueError if it has none."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "group must exist before it is used, but torch.distributed is not initialised; launch with torchrun and "
            "call torch.distributed.init_process_group first"
        )
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            f"group must be a torch.distributed process group that this process is in, or None for all processes, but "
            f"is {group!r}; new_group gives that to processes outside the group, which must not call this"
        )
    return dist.get_rank(group), dist.get_world_size(group)
