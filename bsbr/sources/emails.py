"""The e-mails of the SpamAssassin collection."""

from __future__ import annotations

import email
import email.policy
import functools
import json
import re
from dataclasses import dataclass

from bsbr.sources.parts import PARTS, grouped, near_duplicates, parts_of
from bsbr.sources.pins import check_files, read_pin, split_keys

REPLY = re.compile(r"^\s*((re|fwd?|aw|sv)(\[\d+\])?\s*:|\[[^\]]*\]|\(fwd\))\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Email:
    """One e-mail of the SpamAssassin collection, without its headers.

    `key` is its file name, `group` the collection's label: `easy-ham-1`, `easy-ham-2`, `hard-ham-1`, `spam-1`
    or `spam-2`.
    """

    key: str
    group: str
    text: str


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


def thread(raw: str) -> str | None:
    """What an e-mail is about: its subject without "Re:", "Fwd:" and a list's name; None if that says little."""
    head = raw.partition("\n\n")[0]
    found = re.search(r"^subject:(.*(?:\n[ \t].*)*)", head, re.IGNORECASE | re.MULTILINE)
    subject = " ".join(found[1].split()).lower() if found else ""
    while (shorter := REPLY.sub("", subject)) != subject:
        subject = shorter
    return subject if len(subject) > 3 else None


@functools.cache
def _raw() -> dict[str, dict[str, str]]:
    folder = check_files(read_pin("emails"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


@functools.cache
def _all_emails() -> dict[str, Email]:
    read = ((key, record["group"], email_text(record["text"])) for key, record in _raw().items())
    return {key: Email(key, group, text) for key, group, text in read if text}


@functools.cache
def _parts() -> dict[str, list[str]]:
    mails = _all_emails()
    threads = {key: thread(_raw()[key]["text"]) for key in mails}
    families = [*grouped(threads), *near_duplicates({key: mail.text for key, mail in mails.items()})]
    return parts_of("emails", {key: mail.group for key, mail in mails.items()}, families)


def load_emails(split: str | None = None) -> list[Email]:
    """E-mails of the SpamAssassin collection, without their headers: all that can be read, or one part of them.

    Args:
        split: None for all in order of file name. For conversions `"development"` (for choosing settings) or
            `"held_out"` (for reporting only), neither of which has spam. For models that are trained here `"train"`,
            `"validation"` or `"test"`, which have nothing to do with the former.

    Raises:
        ValueError: there is no such split.
        SourceError: the e-mails were not fetched, or were altered.

    Examples:
        >>> from bsbr.sources import load_emails
        >>> {mail.group for mail in load_emails("held_out")} & {"spam-1", "spam-2"}
        set()
    """
    mails = _all_emails()
    if split is None:
        return list(mails.values())
    keys = _parts()[split] if split in PARTS else split_keys("emails", split)
    return [mails[key] for key in keys if key in mails]
