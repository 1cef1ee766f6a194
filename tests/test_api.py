"""The API reference: each name that it documents says what it takes and has an example, and the example runs."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import griffe
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from bsbr.sources import SourceError
from bsbr.training import tokens

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import api

PAGE = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
DOCUMENTED = {
    f"{module}.{name}": methods
    for module, lines in re.findall(r"```\{api\} (\S+)\n(.*?)```", PAGE, re.DOTALL)
    for name, methods in api.listed(lines.splitlines()).items()
}
NAMES = list(DOCUMENTED)
NO_ERRORS = [name for name in NAMES if api.object_type(api.find(name)) != "exception"]
METHODS = [(name, one) for name, chosen in DOCUMENTED.items() for one in api.members(api.find(name), chosen)]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# -- What is said of a name -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_ERRORS)
def test_a_name_has_an_example_and_each_parameter_is_described(name: str) -> None:
    item = api.find(name)
    assert api.examples(item), f"{name} has no section Examples with >>> in its docstring"
    said = api.described(item)
    assert not [one.name for one in api.parameters(item) if not said.get(one.name)]


@pytest.mark.parametrize(("name", "method"), METHODS, ids=lambda one: getattr(one, "name", one))
def test_a_method_is_called_in_an_example(name: str, method: griffe.Object) -> None:
    """`forward` is what the module itself is called for; what every task has, `Task` documents."""
    code = api.examples(api.find(name)) + api.examples(method)
    known = {"forward", *api.find("bsbr.training.settings.Task").members}
    assert method.name in known or re.search(rf"\b{method.name}\b", code), f"no example calls {method.path}"


@pytest.mark.parametrize("name", NAMES)
def test_only_what_there_is_is_described(name: str) -> None:
    """A parameter that was renamed is renamed in its docstring."""
    for item in (api.find(name), *api.members(api.find(name))):
        there = {one.name for one in api.parameters(item)} | set(item.members)
        assert set(api.described(item)) <= there, item.path


@pytest.mark.parametrize("module", ["bsbr", "bsbr.hf", "bsbr.conversion", "bsbr.training", "bsbr.training.tasks"])
def test_what_a_module_offers_is_documented(module: str) -> None:
    documented = {api.find(name).path for name in NAMES} | {"bsbr.mechanisms.MECHANISMS"}
    offered = {api.find(f"{module}.{name}").path for name in importlib.import_module(module).__all__}
    assert offered <= documented


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no bsbr\.store\.lode"):
        api.find("bsbr.store.lode")


# -- Examples -------------------------------------------------------------------------------------

WITH_EXAMPLES = [(name, "") for name in NO_ERRORS] + [(name, one.name) for name, one in METHODS if api.examples(one)]


SLOW = {"bsbr.measure.memory.peak", "bsbr.sources.load_emails", "bsbr.sources.load_smollm2"}  # run with --every-page


@pytest.fixture(scope="module", autouse=True)
def tokens_made() -> None:
    """What is made once says so when it is made, and an example is not to say it."""
    with contextlib.suppress(SourceError):
        tokens.prepared()


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published results to read, and a folder of one's own to write into; what was fetched stays where it is."""
    published = Path("results", "cpu", "full", "benchmarks")
    (tmp_path / published).mkdir(parents=True)
    for file in (ROOT / "data" / published).glob("inference_time.*"):
        shutil.copy(file, tmp_path / published)
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))


@pytest.mark.usefixtures("own_data")
@pytest.mark.parametrize(("name", "method"), WITH_EXAMPLES, ids=lambda one: one or "itself")
def test_an_example_runs(name: str, method: str, request: pytest.FixtureRequest) -> None:
    if name in SLOW and not request.config.getoption("--every-page"):
        pytest.skip("takes seconds; runs with --every-page")
    owner, _, last = name.rpartition(".")
    found: Any = getattr(importlib.import_module(owner), last)
    found = getattr(found, method) if method else found
    example = doctest.DocTestParser().get_doctest(found.__doc__, {"__name__": "__main__"}, name, None, None)
    assert example.examples
    said: list[str] = []
    runner = Runner(optionflags=FLAGS)
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


class Runner(doctest.DocTestRunner):
    """A doctest that needs a source which was not fetched is skipped, as other tests are."""

    def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
        if isinstance(exc_info[1], SourceError):
            pytest.skip(str(exc_info[1]))
        super().report_unexpected_exception(out, test, example, exc_info)


# -- The page -------------------------------------------------------------------------------------

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "api"]
"""
REFERENCE = """# Reference

```{api} bsbr.stats
Estimate
median
```

```{api} bsbr
ModelConfig
TransformerLM
```
"""
OTHER = "# Other\n\nA `TransformerLM`, `bsbr.stats.median(…)`, again `TransformerLM`; `median` alone says too little.\n"


@pytest.fixture(scope="module")
def small_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    pages = {"conf.py": CONF, "index.md": REFERENCE, "other.md": f"---\norphan: true\n---\n{OTHER}"}
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    # A book is built without PyTorch: here, whoever imports it fails.
    (folder / "torch.py").write_text("raise ImportError('not to be imported')", encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-qnW", "--keep-going", str(folder), str(folder / "site")]
    run = subprocess.run(command, cwd=folder, env={"PYTHONPATH": f"{folder}:{ROOT}"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / "site"


def links(page: Path, selector: str) -> dict[str, str]:
    """Where the links of a part of a page lead, by their words."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    return {one.get_text(): str(one["href"]) for one in soup.select(f"{selector} a.reference.internal")}


def test_a_name_has_an_address_of_its_own(small_book: Path) -> None:
    soup = BeautifulSoup((small_book / "index.html").read_text(encoding="utf-8"), "html.parser")
    for address in ("bsbr.TransformerLM.generate", "bsbr.model.TransformerLM.generate", "bsbr.stats.median"):
        assert soup.find(id=address), address
    inventory = (small_book / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = zlib.decompress(inventory).decode()
    assert "bsbr.TransformerLM.generate py:method 1 index.html#$ -" in known
    assert "bsbr.stats.median py:function 1 index.html#$ -" in known


def test_types_and_names_lead_to_where_they_are_documented(small_book: Path) -> None:
    page = small_book / "index.html"
    assert links(page, "dt.sig")["Estimate"] == "#bsbr.stats.Estimate"
    assert links(page, "dt.sig")["ModelConfig"] == "#bsbr.ModelConfig"
    assert links(page, "dd")["encode"] == "#bsbr.TransformerLM.encode"
    assert "Tensor" not in links(page, "dt.sig")
    assert links(small_book / "other.html", "p") == {
        "TransformerLM": "index.html#bsbr.TransformerLM",
        "bsbr.stats.median(…)": "index.html#bsbr.stats.median",
    }


def test_a_name_shows_its_parameters_what_it_returns_and_raises_and_its_example(small_book: Path) -> None:
    soup = BeautifulSoup((small_book / "index.html").read_text(encoding="utf-8"), "html.parser")
    entry = soup.find(id="bsbr.TransformerLM.generate").find_parent("dl")
    begins = 'TransformerLM.generate(input_ids: Int[Tensor, "batch n"], max_new_tokens: int,'
    assert entry.dt.get_text().strip().startswith(begins)
    words = " ".join(entry.get_text(" ").split())
    for part in ("Parameters", "temperature : float = 0.0", "Raises", "ValueError", "Example", ">>> prompt"):
        assert part in words, part
