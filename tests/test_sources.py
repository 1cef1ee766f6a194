"""Sources: what is pinned is what is read, whole or not at all, and the network is asked only once."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    assert {"emails", "smollm2", "speeches"} <= set(sources.source_names())
    for name in sources.source_names():
        pin = sources.read_pin(name)
        assert pin.licence and len(pin.archive_sha512) == 128 and len(pin.files_sha256) == 64
    with pytest.raises(ValueError, match="expected one of"):
        sources.read_pin("wikitext")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("speeches", {"development": 8, "held_out": 12, "samples": 50}), ("emails", {"development": 10, "held_out": 50})],
)
def test_the_parts_of_a_split_share_no_text(name: str, sizes: dict[str, int]) -> None:
    split = sources.read_pin(name).split or {}
    assert {part: len(keys) for part, keys in split.items()} == sizes
    assert len(set().union(*split.values())) == sum(sizes.values())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    try:
        folder = sources.smollm2_folder()
        sources.check_files(sources.read_pin("speeches"))
        sources.check_files(sources.read_pin("emails"))
    except sources.SourceError as error:
        pytest.skip(str(error))
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def samples_by_the_rule(tokenizer: Any) -> list[str]:
    """The split rule of the speeches, in code."""
    taken = {speech.key for part in ("development", "held_out") for speech in sources.load_speeches(part)}
    free = [speech for speech in sources.load_speeches() if speech.key not in taken]
    long = [speech.key for speech in free if len(tokenizer(speech.text[:8000])["input_ids"]) >= 1100]
    return [long[i * len(long) // 50] for i in range(50)]


def emails_by_the_rule(tokenizer: Any) -> list[str]:
    """The split rule of the e-mails, in code: those held out, then those for development."""
    taken: dict[str, set[tuple[str, ...]]] = {}
    ham = [mail for mail in sources.load_emails() if "ham" in mail.group]
    for mail in sorted(ham, key=lambda mail: hashlib.sha256(mail.key.encode()).hexdigest()):
        beyond_ascii = sum(not character.isascii() for character in mail.text) / len(mail.text)
        if len(mail.text) < 1100 or beyond_ascii > 0.01 or len(tokenizer(mail.text)["input_ids"]) < 1100:
            continue
        words = mail.text.replace(">", " ").split()
        runs = set(zip(*(words[i:] for i in range(8)), strict=False))
        if all(len(runs & others) < 0.1 * min(len(runs), len(others)) for others in taken.values()):
            taken[mail.key] = runs
        if len(taken) == 60:
            break
    return list(taken)


def test_the_splits_follow_their_rules(tokenizer: Any) -> None:
    speeches, emails = (sources.read_pin(name).split or {} for name in ("speeches", "emails"))
    assert samples_by_the_rule(tokenizer) == speeches["samples"]
    assert emails_by_the_rule(tokenizer) == emails["held_out"] + emails["development"]


def test_an_email_is_its_plain_text_without_headers() -> None:
    plain = "From: a\nSubject: b\n\nHello\n"
    assert sources.email_text(plain) == "Hello"
    encoded = "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\ncaf=E9\n"
    assert sources.email_text(encoded) == "café"
    parts = "".join(f"--x\nContent-Type: text/{kind}\n\nin {kind}\n" for kind in ("html", "plain"))
    assert (
        sources.email_text(f"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n\n{parts}--x--\n")
        == "in plain"
    )


@pytest.mark.parametrize(
    "raw",
    [
        "Content-Type: text/html\n\n<p>Hello</p>\n",
        "Subject: b\n\ncaf\ufffd\n",
        "Content-Type: text/plain; charset=unheard-of\n\nHello\n",
        "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\ncaf=E9\n",
        "Subject: b\n\n",
    ],
    ids=["html", "lost characters", "unknown charset", "wrong charset", "empty"],
)
def test_an_email_that_cannot_be_read_is_left_out(raw: str) -> None:
    assert sources.email_text(raw) is None


def test_emails_are_read_as_pinned(tokenizer: Any) -> None:
    held_out = sources.load_emails("held_out")
    assert {mail.group for mail in held_out} <= {"easy-ham-1", "easy-ham-2", "hard-ham-1"}
    assert not any("Return-Path:" in mail.text[:200] for mail in held_out)
    with pytest.raises(ValueError, match="split: expected None or one of"):
        sources.load_emails("test")


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
