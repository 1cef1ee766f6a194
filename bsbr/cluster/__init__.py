"""Sweeps on more than one process or machine: cells measured by the workers of a Dask cluster, whatever deploys it.

`bsbr.cluster.client` is the executor that a sweep hands its cells to, `worker` what runs in each worker of Dask, and
`measuring` the process in which a worker measures. Dask is imported when it is asked for (`client`, `worker`).
"""

from __future__ import annotations

import importlib.util

SCHEDULER = "BSBR_SCHEDULER"  # environment variable: the address of the scheduler that kernels hand their cells to
MISSING = "cells can be handed to workers only where Dask is installed: run pip install 'bsbr[cluster]'"


def is_installed() -> bool:
    """Whether Dask is here."""
    return importlib.util.find_spec("distributed") is not None
