"""What `nox -s bench` says of the book: sizes as they are, and seconds that a slow line really takes."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import weigh


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two pages that show the same; one of them waits for 200 kB that cannot be compressed."""
    (tmp_path / "index.html").write_text("<p>Go on</p>", encoding="utf-8")
    (tmp_path / "light.html").write_text("<!doctype html><p>Here</p>", encoding="utf-8")
    script = '<script src="much.js"></script>'
    (tmp_path / "heavy.html").write_text(f"<!doctype html>{script}<p>Here</p>", encoding="utf-8")
    much = "".join(
        random.Random(0).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", k=266_667)
    )
    (tmp_path / "much.js").write_text(f"// {much}", encoding="utf-8")
    return tmp_path


def test_the_size_is_that_of_all_files_and_an_entry_is_no_page(site: Path) -> None:
    assert weigh.size(site) == pytest.approx(0.2667, rel=0.01)
    assert weigh.pages(site) == ["heavy.html", "light.html"]


def test_a_page_that_waits_for_a_script_is_seen_as_much_later_as_the_line_needs(browser: Any, site: Path) -> None:
    with weigh.served(site) as address:
        light, heavy = (weigh.first_paint(browser, f"{address}/{page}.html") for page in ("light", "heavy"))
    assert heavy - light > 200_000 * 8 / 1.6e6  # a second, and what asking takes
    assert light > 0.15


def test_a_missed_aim_is_a_failure_and_a_missing_book_is_not(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weigh, "chromium", lambda: None)
    assert weigh.main(site) == 0
    assert "skipped: no Chromium" in capsys.readouterr().out
    monkeypatch.setattr(weigh, "SIZE", 0.1)
    assert weigh.main(site) == 1
    assert "MISSED  the whole site in MB: 0.27" in capsys.readouterr().out
    assert weigh.main(site / "nowhere") == 0
    assert "skipped: there is no book" in capsys.readouterr().out
