"""The page of the original and other implementations keeps its cells from one process to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUNCTIONS = ["parameters", "influence", "held", "prefill", "generate", "resident", "kernels"]


def fingerprints(folder: Path, hash_seed: str, old: str = "", new: str = "") -> list[str]:
    """Of the notebook's measuring functions, in a process of its own."""
    text = (ROOT / "notebooks" / "benchmarks" / "peers.py").read_text(encoding="utf-8")
    assert old in text
    code = text[: text.index("sweep = Sweep(")].replace(old, new, 1) if old else text[: text.index("sweep = Sweep(")]
    (folder / "peers_cells.py").write_text(code, encoding="utf-8")
    script = (
        f"import peers_cells; from bsbr.store import fingerprint\n"
        f"for name in {FUNCTIONS}: print('hash', fingerprint.of(getattr(peers_cells, name)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONHASHSEED": hash_seed},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [line for line in found.stdout.splitlines() if line.startswith("hash")]


def test_its_cells_are_kept_across_processes_until_what_they_reach_changes(tmp_path: Path) -> None:
    before = fingerprints(tmp_path, "1")
    assert len(before) == len(FUNCTIONS)
    assert fingerprints(tmp_path, "2") == before
    mask, narrower = "query - key < WINDOW", "query - key <= WINDOW"
    changed = fingerprints(tmp_path, "1", mask, narrower)
    assert [name for name, old, new in zip(FUNCTIONS, before, changed, strict=True) if old != new] == ["kernels"]
