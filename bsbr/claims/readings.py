"""One verdict, by one source of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bsbr.stats import Estimate


@dataclass(frozen=True)
class Reading:
    """What one source says of a claim.

    `claimed` is the number that is judged: the stated one, or what follows from it. `finding` is what was found, in
    words, where it is more than a number. `reason` says why there is no verdict on the number itself.
    """

    label: str
    experiment: str
    claimed: float = math.nan
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    verdict: str = ""
    reason: str = ""
    finding: str = ""

    def with_number(self, found: Estimate) -> Reading:
        """The same with a measured number and its interval."""
        low, high = (math.nan if end is None else end for end in (found.low, found.high))
        return replace(self, measured=found.value, low=low, high=high)
