"""List the licence of each installed package, and the known vulnerabilities of what is pinned.

Called by `nox -s audit`. Licences are what the packages say of themselves. Vulnerabilities come from pip-audit, which
asks PyPI's database; it has an environment of its own, so that it is not among what it checks.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from bsbr.store import provenance

AUDITOR = "pip-audit==2.10.1"
ENVIRONMENT = provenance.ROOT / ".nox" / "audit"
PINNED = ("requirements.txt", "requirements-harness.txt")
UNREACHED = "Vulnerabilities could not be checked"


def main() -> int:
    print("Licences\n")
    for licence, names in licences().items():
        print(f"{licence}\n    {', '.join(names)}")
    print("\nKnown vulnerabilities\n")
    report = audit()
    if isinstance(report, str):
        print(report)
        return 1
    lines, found = summary(report)
    print("\n".join(lines))
    return int(found)


# -- Licences -------------------------------------------------------------------------------------


def licences() -> dict[str, list[str]]:
    """The names of the installed packages by licence, the unknown last."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in importlib.metadata.distributions():
        found[licence(package.metadata)].add(f"{package.metadata['Name']} {package.version}")
    return {
        name: sorted(found[name], key=str.lower) for name in sorted(found, key=lambda name: (name == "unknown", name))
    }


def licence(metadata: Any) -> str:
    """The licence that a package states: its SPDX expression, else its classifiers, else the field's first line."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classified = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    if named := [name for name in classified if name != "OSI Approved"]:
        return " and ".join(sorted(named))
    lines = (metadata.get("License") or "").strip().splitlines()
    return lines[0] if lines else "unknown"


# -- Vulnerabilities ------------------------------------------------------------------------------


def audit() -> dict[str, Any] | str:
    """What pip-audit reports of the pinned packages, or a sentence why it reports nothing."""
    pip_audit = ENVIRONMENT / "bin" / "pip-audit"
    if not pip_audit.exists():
        made = (
            subprocess.run([sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(ENVIRONMENT)]).returncode == 0
        )
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        if not made or subprocess.run([*pip, AUDITOR], capture_output=True).returncode:
            return f"{UNREACHED}: {AUDITOR} could not be installed, so there is probably no network."
    packages: dict[tuple[str, str], Any] = {}
    for name in PINNED:  # each by itself: where both pin a package, its versions differ, and pip-audit takes one only
        report = _audited(pip_audit, without_local_versions(name))
        if isinstance(report, str):
            return report
        for package in report["dependencies"]:
            packages[package["name"], package.get("version", "")] = package
    return {"dependencies": list(packages.values())}


def _audited(pip_audit: Path, pinned: str) -> dict[str, Any] | str:
    with tempfile.TemporaryDirectory() as folder:
        pins, answer = Path(folder, "pins.txt"), Path(folder, "answer.json")
        pins.write_text(pinned, encoding="utf-8")
        options = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", f"--output={answer}"]
        command = [str(pip_audit), *options, "--requirement", str(pins)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        if not answer.exists():
            last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            return f"{UNREACHED}: {last}"
        return dict(json.loads(answer.read_text(encoding="utf-8")))


def without_local_versions(name: str) -> str:
    """The pins of a file as PyPI knows them: `2.13.0+cpu` is `2.13.0` there. Hashes and markers are left out."""
    text = (provenance.ROOT / name).read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+(?:\[[\w,.-]+\])?==[^+\s;\\]+)", text, flags=re.MULTILINE)
    return "".join(f"{pin}\n" for pin in pins)


def summary(report: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines about what was found and what could not be checked, and whether all is checked and nothing found."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = []
    for package in packages:
        for flaw in package.get("vulns", []):
            fixed = ", ".join(flaw["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}")
    checked = len(packages) - len(skipped)
    if checked:
        lines.append(f"{checked} of {len(packages)} packages checked, {len(lines)} vulnerabilities known.")
    if skipped:
        names = ", ".join(skipped) if checked else "all of them"
        lines.append(f"{UNREACHED} for {len(skipped)} packages, of which PyPI's database gave no answer: {names}")
    return lines, bool(skipped) or len(lines) > 1


if __name__ == "__main__":
    sys.exit(main())
