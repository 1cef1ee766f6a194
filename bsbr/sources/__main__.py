"""`python -m bsbr.sources`: fetch everything; say in one line what went wrong if something did."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from bsbr import sources
from bsbr.sources import SourceError


def fetch_all(report: Callable[[str], None] = print) -> None:
    """Fetch, check and unpack every source that is not there yet; convert the checkpoint. Does nothing twice.

    A source that cannot be had does not keep the others from being fetched.

    Raises:
        SourceError: a registry did not answer, or what it sent is not what is pinned: the first of these.
    """
    sources.remove_leftovers()
    names = sources.source_names()
    failed: list[SourceError] = []
    for i, name in enumerate(names, start=1):
        source = sources.read_pin(name)
        report(f"source {i} of {len(names)}: {source.title}")
        try:
            sources.fetch(source, report)
            if source.members.endswith(".gguf"):
                sources.convert_gguf(source, report)
        except SourceError as error:
            report(f"{name}: failed")
            failed.append(error)
    if failed:
        raise failed[0]


def main(arguments: list[str] | None = None) -> int:
    """Fetch everything; say in one line what went wrong if something did."""
    description = "Fetch, check and unpack every pinned corpus and checkpoint that is not there yet."
    parser = argparse.ArgumentParser(prog="python -m bsbr.sources", description=description)
    parser.parse_args(arguments)
    try:
        fetch_all(lambda text: print(text, flush=True))
    except SourceError as error:
        print(f"sources: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
