"""JupyterLab on the experiments, set up so that a .py opens as a notebook and is all that saving it writes.

Called by `nox -s lab`. The .ipynb beside a .py is written by full runs only, so the list of files leaves it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pairs

from bsbr.store import files

HIDDEN = ["__pycache__", "*.pyc", "*.pyo", ".DS_Store", "*~"]  # as JupyterLab has it
VIEWERS = {"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": "Jupytext Notebook"}}}


def main(arguments: list[str]) -> int:
    settings = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    files.write_whole(settings, json.dumps(VIEWERS, indent=2))
    try:
        return subprocess.run(command(arguments), cwd=pairs.NOTEBOOKS.parent).returncode
    except KeyboardInterrupt:  # how one ends JupyterLab
        return 0


def command(arguments: list[str]) -> list[str]:
    hidden = [*HIDDEN, *(pairs.page(name).name for name in pairs.experiments())]
    call = [sys.executable, "-m", "jupyterlab", "notebooks", f"--ContentsManager.hide_globs={hidden}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container there is often no other user
        call.append("--allow-root")
    return [*call, *arguments]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
