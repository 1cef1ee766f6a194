"""The audit says what is known, and what it could not find out."""

from __future__ import annotations

import email
import sys

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
