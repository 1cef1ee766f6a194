"""What is published under `data/` keeps the rules of the store."""

from __future__ import annotations

import pandas as pd
import pytest

from bsbr import stats
from bsbr.store import load, provenance, published, tidy
from bsbr.store.table import published_folder

PUBLISHED = [
    (name, target, profile)
    for target in ("cpu", "gpu")
    for profile in ("full", "tiny")
    for name in published(target, profile)
]


@pytest.mark.parametrize(("name", "target", "profile"), PUBLISHED)
def test_no_row_has_an_interval_from_fewer_samples_than_its_method_needs(name: str, target: str, profile: str) -> None:
    table = load(name, target, profile).table
    bounded = table[table["low"].notna() | table["high"].notna()]
    for row in bounded.itertuples():
        assert row.interval in stats.METHODS
        assert row.samples >= stats.METHODS[row.interval].least
        assert row.low <= row.high
    assert (table[table["interval"] != ""]["low"].notna()).all()


@pytest.mark.parametrize(("name", "target", "profile"), PUBLISHED)
def test_a_table_and_its_record_belong_together(name: str, target: str, profile: str) -> None:
    result = load(name, target, profile)
    assert (result.experiment, result.target, result.profile) == (name, target, profile)
    pd.testing.assert_frame_equal(tidy(result.table), result.table)
    labels = set(result.table["over"]) - {""}
    items = result.provenance.get("over", {})
    assert labels == set(items)
    for label, names in items.items():
        assert label.split()[0] == str(len(names)) and len(set(names)) == len(names)
    assert (provenance.ROOT / "notebooks" / f"{name}.py").exists()


def test_every_table_has_a_record_and_every_record_a_table() -> None:
    for target, profile in {(target, profile) for _, target, profile in PUBLISHED}:
        folder = published_folder(target, profile)
        tables = {path.with_suffix("") for path in folder.rglob("*.csv")}
        assert tables == {path.with_suffix("") for path in folder.rglob("*.json")}
