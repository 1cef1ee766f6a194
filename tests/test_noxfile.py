"""The environment that all sessions share is made anew where it has to be, and nothing of a person's reaches it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nox.registry
import pytest
from nox.command import CommandFailed

ROOT = Path(__file__).resolve().parent.parent


class Session:
    """What a session would run. Making the environment leaves the mark of a real one: its folder."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], dict[str, str | None]]] = []

    def run(self, *command: str, env: dict[str, str | None]) -> None:
        self.calls.append((list(command), env))
        if "virtualenv" in command:
            shutil.rmtree(command[-1], ignore_errors=True)
            time.sleep(0.2)
            Path(command[-1]).mkdir(parents=True)

    def log(self, text: str) -> None:
        pass

    warn = log

    @property
    def installs(self) -> int:
        return sum("requirements.txt" in command for command, _ in self.calls)


def checkout(folder: Path) -> Any:
    """The noxfile of a checkout there."""
    folder.mkdir(exist_ok=True)
    for name in ("noxfile.py", "requirements.txt", "requirements-hashes.txt"):
        shutil.copy(ROOT / name, folder)
    return load(folder)


def load(folder: Path) -> Any:
    nox.registry._REGISTRY.clear()  # nox complains of sessions that it has seen in another noxfile
    spec = importlib.util.spec_from_file_location("noxfile_copy", folder / "noxfile.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    os.chdir(folder)
    return module


@pytest.fixture(autouse=True)
def _stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_environment_is_made_once(tmp_path: Path) -> None:
    noxfile, session = checkout(tmp_path / "a"), Session()
    for _ in range(2):
        noxfile.run(session, "python", "x.py")
    assert session.installs == 1
    assert session.calls[-1][0] == [str(tmp_path / "a" / ".nox" / "bsbr" / "bin" / "python"), "x.py"]


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_checkout_sets_itself_up_anew(how: Any, tmp_path: Path) -> None:
    checkout(tmp_path / "a").run(Session(), "python")
    how(tmp_path / "a", tmp_path / "b")
    session = Session()
    load(tmp_path / "b").run(session, "python")
    assert session.installs == 1
    assert all(str(tmp_path / "a") not in " ".join(command) for command, _ in session.calls)


def test_changed_requirements_are_installed(tmp_path: Path) -> None:
    noxfile, session = checkout(tmp_path / "a"), Session()
    noxfile.run(session, "python")
    with (tmp_path / "a" / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("more==1.0\n")
    noxfile.run(session, "python")
    assert session.installs == 2


def test_files_of_another_hash_are_installed_by_version_with_a_warning(tmp_path: Path) -> None:
    noxfile, session, warnings = checkout(tmp_path / "a"), Session(), []
    run = session.run

    def refuse(*command: str, env: dict[str, str | None]) -> None:
        run(*command, env=env)
        if "--require-hashes" in command:
            raise CommandFailed("a hash differs")

    session.run, session.warn = refuse, warnings.append  # type: ignore[method-assign]
    noxfile.run(session, "python")
    assert session.installs == 1
    assert len(warnings) == 1


def test_what_is_pinned_has_hashes_but_for_torch() -> None:
    pins = [
        re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        for name in ("requirements.txt", "requirements-hashes.txt")
    ]
    pinned, hashed = ({re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found} for found in pins)
    assert hashed == {name: version for name, version in pinned.items() if name != "torch"}, (
        "see requirements-hashes.txt"
    )
    text = (ROOT / "requirements-hashes.txt").read_text(encoding="utf-8")  # PyPI's of torch, to compare with afterwards
    assert re.search(rf"^# torch=={re.escape(pinned['torch'])}\n(#     sha256:\w{{64}}\n)+", text, flags=re.MULTILINE)


def test_what_came_without_a_pinned_hash_is_listed(tmp_path: Path) -> None:
    noxfile, report = checkout(tmp_path / "a"), tmp_path / "report.json"
    pinned = re.findall(r"sha256:(\w{64})", (ROOT / "requirements-hashes.txt").read_text(encoding="utf-8"))

    def installed(name: str, url: str, **archive: Any) -> dict[str, Any]:
        return {"metadata": {"name": name, "version": "1.0"}, "download_info": {"url": url, **archive}}

    hashes = [{"archive_info": {"hashes": {"sha256": digest}}} for digest in (pinned[0], "0" * 64)]
    files = [
        installed("checked", "https://pypi.org/checked.whl", **hashes[0]),
        installed("torch", "https://me:secret@index/cpu/torch.whl", **hashes[1]),
        installed("built", "file:///wheels/built.whl"),
    ]
    report.write_text(json.dumps({"install": files}), encoding="utf-8")
    assert noxfile.without_hash(report) == ["torch 1.0 from https://index/cpu", "built 1.0 from file:///wheels"]
    assert noxfile.without_hash(tmp_path / "nowhere") == []


def test_an_installation_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    noxfile, session = checkout(tmp_path / "a"), Session()
    cut, run = Session(), Session.run

    def stop(*command: str, env: dict[str, str | None]) -> None:
        if "requirements.txt" in command:
            raise KeyboardInterrupt
        run(cut, *command, env=env)

    cut.run = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        noxfile.run(cut, "python")
    noxfile.run(session, "python")
    assert session.installs == 1


def test_of_two_sessions_at_once_one_makes_the_environment(tmp_path: Path) -> None:
    noxfile, sessions = checkout(tmp_path / "a"), [Session(), Session()]
    threads = [threading.Thread(target=noxfile.run, args=(session, "python")) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(session.installs for session in sessions) == 1


def test_nothing_of_a_person_reaches_the_environment(tmp_path: Path) -> None:
    noxfile, session = checkout(tmp_path / "a"), Session()
    noxfile.run(session, "python")
    for _, variables in session.calls:
        assert variables["PIP_USER"] == "0"
        assert variables["PYTHONUTF8"] == "1"
        assert all(variables[name] is None for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "JUPYTER_PATH"))


def test_pip_obeys_the_variable_against_a_configuration_with_user(tmp_path: Path) -> None:
    """`user = true` makes pip refuse in a virtual environment; PIP_USER=0 overrules it and leaves the rest."""
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nuser = true\n[install]\nuser = true\n", encoding="utf-8")
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text("", encoding="utf-8")
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--no-deps", "pip"]
    around = {name: value for name, value in os.environ.items() if name != "PIP_USER"}  # .ci/run sets it
    said = {
        user: subprocess.run(
            call, env={**around, "PIP_CONFIG_FILE": str(config), **variables}, capture_output=True, encoding="utf-8"
        )
        for user, variables in {"person": {}, "project": {"PIP_USER": "0"}}.items()
    }
    assert "Can not perform a '--user' install" in said["person"].stderr
    assert said["project"].returncode == 0, said["project"].stderr


def test_the_first_line_works_where_pip_refuses_to_install_beside_the_systems_packages() -> None:
    """Debian's and Homebrew's Python are "externally managed": whatever installs makes its environment first."""
    pages = ["README.md", "CONTRIBUTING.md", "book/index.md", "book/reproduce.md"]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages}
    for page, text in texts.items():
        lines = [line for line in text.splitlines() if line.lstrip("$ ").startswith("python3 -m venv .venv && ")]
        assert lines and all(". .venv/bin/activate && pip install nox" in line for line in lines), page
    for page in ("README.md", "book/reproduce.md"):
        for words in ("externally managed", "sudo apt install python3-venv", "pipx install nox"):
            assert words in texts[page], page


@pytest.mark.skipif(shutil.which("git") is None, reason="git reads the attributes")
@pytest.mark.parametrize("path", [".ci/run", "noxfile.py", "data/claims.csv", "README.md"])
def test_text_has_the_same_line_ends_in_every_checkout(path: str) -> None:
    found = subprocess.run(["git", "check-attr", "eol", path], cwd=ROOT, capture_output=True, encoding="utf-8")
    if found.returncode:
        pytest.skip("no repository here")
    assert found.stdout.strip().endswith("eol: lf")
