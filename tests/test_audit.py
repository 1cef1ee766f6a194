"""The audit says what is known, and what it could not find out."""

from __future__ import annotations

import email
import sys
from pathlib import Path

import pytest

from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import audit

FLAW = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}


def test_every_installed_package_has_its_licence() -> None:
    found = audit.licences()
    named = [name.split()[0].lower() for names in found.values() for name in names]
    assert {"torch", "pandas", "bsbr"} <= set(named)
    assert "unknown" not in list(found)[:-1]


def test_a_licence_is_the_expression_else_the_classifier_else_the_field() -> None:
    text = "License-Expression: MIT\nClassifier: License :: OSI Approved :: BSD License\nLicense: something\n"
    lines = text.splitlines()
    stated = [audit.licence(email.message_from_string("\n".join(lines[start:]))) for start in range(4)]
    assert stated == ["MIT", "BSD License", "something", "unknown"]


def test_what_is_known_and_what_is_not_stands_in_the_summary() -> None:
    checked = {"name": "good", "version": "1.0", "vulns": []}
    assert audit.summary({"dependencies": [checked]}) == (["1 of 1 packages checked, 0 vulnerabilities known."], False)
    lines, found = audit.summary({"dependencies": [checked, {"name": "bad", "version": "1.0", "vulns": [FLAW]}]})
    assert found and lines[0] == "bad 1.0: PYSEC-1, fixed in 2.0"
    lines, found = audit.summary({"dependencies": [checked, {"name": "lost", "skip_reason": "not found"}]})
    assert found and lines[1].endswith("no answer: lost")
    lines, found = audit.summary({"dependencies": [{"name": "lost", "skip_reason": "not found"}]})
    assert found and "could not be checked for 1 packages" in lines[0] and lines[0].endswith("all of them")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-harness.txt"])
def test_every_pin_is_asked_about_as_pypi_knows_it(name: str) -> None:
    asked = audit.without_local_versions(name).splitlines()
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    assert name in audit.PINNED and lines
    assert asked == [line.split(";")[0].split("+")[0].rstrip(" \\") for line in lines]


def test_what_both_files_pin_is_listed_once_for_each_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = iter([[("torch", "2.0"), ("dateutil", "2.9")], [("dateutil", "2.8"), ("torch", "2.0")]])
    reports = ({"dependencies": [{"name": name, "version": version} for name, version in one]} for one in told)
    monkeypatch.setattr(audit, "_audited", lambda program, pinned: next(reports))
    monkeypatch.setattr(audit, "ENVIRONMENT", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip-audit").touch()
    report = audit.audit()
    assert isinstance(report, dict)
    found = [(package["name"], package["version"]) for package in report["dependencies"]]
    assert found == [("torch", "2.0"), ("dateutil", "2.9"), ("dateutil", "2.8")]
