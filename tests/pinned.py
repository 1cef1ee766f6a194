"""Sources that tests read where they are there."""

from __future__ import annotations

import pytest

from bsbr import sources


def skip_without(*names: str) -> None:
    """Skip what asks for this, with the reason, where one of the pinned sources was not fetched."""
    try:
        for name in names:
            sources.check_files(sources.read_pin(name))
    except sources.SourceError as error:
        pytest.skip(str(error))
