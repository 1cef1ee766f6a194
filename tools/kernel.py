"""The kernel of a notebook that is measured, by the run's own configuration alone.

IPython reads, besides the profile that `execution.own_surroundings` gives it, what lies in `/etc/ipython`,
`/usr/local/etc/ipython` and the environment's `etc/ipython`: settings and programs to run at its start. No variable
and no option turns that off. A kernelspec names this file in place of `ipykernel_launcher`, which does the rest alike.

Where a run has named a scheduler of Dask, the cells of the notebook's sweep are handed to it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.path[0] == str(Path(__file__).resolve().parent):
        del sys.path[0]  # else a notebook could import what lies here

    from ipykernel import kernelapp
    from IPython.core import application

    for searched in (application.SYSTEM_CONFIG_DIRS, application.ENV_CONFIG_DIRS):
        searched.clear()  # in place: other modules hold the same lists
    if address := os.environ.get("BSBR_SCHEDULER"):
        from bsbr.cluster.client import Workers
        from bsbr.store import executor

        executor.use(Workers(address))
    kernelapp.launch_new_instance()
