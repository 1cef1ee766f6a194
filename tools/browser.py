"""The browser that opens the built pages: a Chromium of this machine, or the one that BSBR_CHROMIUM names."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def chromium() -> str | None:
    """Its path; None where there is none."""
    return os.environ.get("BSBR_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
