"""How claims are shown: a line and a table for a notebook, the list with its filters, and the page of the rules."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from IPython.display import HTML, display

from bsbr.claims import VERDICTS, Reading, Rule, Word, conditions, distinct, judge, load, rules, short, title
from bsbr.show.figures import interval, number, say
from bsbr.store import Result

__all__ = [
    "FILTERS",
    "about",
    "anchor",
    "conditions",
    "filtered",
    "filters",
    "line",
    "load",
    "markup",
    "rules_markup",
    "short",
    "table",
    "tally",
    "title",
    "words_markup",
]

FILTERS = ("document", "section", "mechanism", "verdict", "said", "by", "experiment")
BESIDE = "beside it"
TITLES = ["claim", "stated", "judged as", "measured", "verdict", BESIDE, "by rule and experiment"]


def about(result: Result) -> pd.DataFrame:
    """The judged claims about what an experiment measures, by this result alone."""
    return judge(result)


def line(result: Result) -> str:
    """One sentence of Markdown for a notebook's page: how much the documents state about it, by verdict."""
    judged = about(result)
    if judged.empty:
        return "The documents state nothing about what is measured here."
    once = distinct(judged)
    link = "[All claims](../../book/claims.md)"
    return f"The documents state {_things(once)} about what is measured here: {tally(once)}. {link}"


def _things(judged: pd.DataFrame) -> str:
    words = int((judged["quantity"] == "statement").sum())
    counts = [(len(judged) - words, "number", "numbers"), (words, "statement in words", "statements in words")]
    parts = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    return " and ".join(parts)


def tally(judged: pd.DataFrame) -> str:
    """`3 confirmed, 5 direction only, …`: how many of the judged claims have which verdict."""
    found = judged["verdict"].value_counts()
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if verdict in found)


def table(result: Result) -> None:
    """Display every claim about what an experiment measures, beside what this result has."""
    judged = about(result)
    if judged.empty:
        say(line(result))
        return
    head = f"<summary>All {len(judged)}: {tally(judged)}</summary>"
    display(HTML(f'<details class="claims">{head}<div class="table-box">{markup(judged)}</div></details>'))


def markup(judged: pd.DataFrame, link: str = "") -> str:
    """Judged claims as an HTML table; each row has the claim's address and carries what the filter chooses by.

    Args:
        link: the address of an experiment's page, with `{}` for its name, on the page that has the rules; without it
            no row has an address and no cell is a link.
    """
    titles = [title for title in TITLES if title != BESIDE or judged["beside"].map(len).any()]
    body = "".join(_row(claim, link, BESIDE in titles) for claim in judged.to_dict("records"))
    head = "".join(f"<th>{title}</th>" for title in titles)
    caption = '<caption class="unseen">Claims, what was measured, and verdicts</caption>'
    return f'<table class="table claims-table">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(claim: Mapping[Any, Any], link: str, beside: bool) -> str:
    where = f"{short(claim['document'])}: {claim['section']}"
    own = _linked(f"#{address(claim['id'])}", _what(claim), link)
    notes = ["called a placeholder"] if claim["placeholder"] else []
    if claim["repeats"]:
        notes.append(_linked(f"#{address(claim['repeats'])}", "said before", link))
    cells = [
        f"{own}<br><small>{html.escape(where)}</small>",
        "<br>".join([html.escape(_stated(claim)), *(f"<small>{note}</small>" for note in notes)]),
        "" if claim["quantity"] == "statement" else html.escape(number(claim["claimed"])),
        _measured(claim),
        _verdict(claim),
        *(["<hr>".join(_beside(reading) for reading in claim["beside"])] if beside else []),
        "<br>".join(_by(claim, link)),
    ]
    attributes = "".join(f' data-{key}="{html.escape(value)}"' for key, value in _choices(claim).items())
    anchored = f' id="{html.escape(address(claim["id"]))}"' if link else ""
    return f"<tr{anchored}{attributes}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _what(claim: Mapping[Any, Any]) -> str:
    if claim["quantity"] == "statement":
        return f"{claim['mechanism']}, in words"
    where = re.sub(r"stated as ([^,]+)", r"stated as “\1”", claim["conditions"])  # the document's own word, even "None"
    return ", ".join(filter(None, [title(claim["quantity"]), claim["mechanism"], where]))


def _stated(claim: Mapping[Any, Any] | pd.Series) -> str:
    """The paraphrase of a statement, or a number with all of its digits."""
    if claim["quantity"] == "statement":
        return str(claim["statement"])
    value = claim["value"]
    if not math.isfinite(value):
        return "∞" if value > 0 else "out of memory"
    return f"{value:,.15g} {claim['unit']}".strip()


def _measured(claim: Mapping[Any, Any]) -> str:
    found = html.escape(interval(claim["measured"], claim["low"], claim["high"])).replace(" (", "<br>(")
    return html.escape(claim["finding"]).replace("; ", "<br>") or found


def _verdict(claim: Mapping[Any, Any]) -> str:
    by = f"<br><small>{html.escape(claim['by'])}</small>" if claim["by"] else ""
    reason = f"<br><small>{html.escape(claim['reason'])}</small>" if claim["reason"] else ""
    return html.escape(claim["verdict"]) + by + reason


def _beside(reading: Reading) -> str:
    found = reading.finding or (
        "" if math.isnan(reading.measured) else interval(reading.measured, reading.low, reading.high)
    )
    return f"<b>{html.escape(reading.label)}</b><br>" + ", ".join(
        html.escape(part) for part in (reading.verdict, found) if part
    )


def _by(claim: Mapping[Any, Any], link: str) -> list[str]:
    by = [_linked(f"#{anchor(claim['rule'])}", claim["rule"], link)]
    if claim["experiment"]:
        there = not math.isnan(claim["measured"]) or bool(claim["finding"])
        page = link.format(claim["experiment"]) if link and there else ""
        by.append(_linked(page, claim["experiment"], page))
    return by


def _linked(to: str, text: str, link: str) -> str:
    return f'<a href="{html.escape(to)}">{html.escape(text)}</a>' if link else html.escape(text)


def _choices(claim: Mapping[Any, Any]) -> dict[str, str]:
    """What the filter chooses by."""
    own = {"document": short(claim["document"]), "said": "again" if claim["repeats"] else "first"}
    return {name: own.get(name) or str(claim[name] or "–") for name in FILTERS}


def filters(names: Iterable[str] = FILTERS) -> str:
    """The form of the list's filter, which the page's script fills and shows."""
    chosen = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option></select></label>' for name in names
    )
    words = '<label>words <input type="search" name="text" size="12"></label>'
    view = '<a class="claims-view" href="#">this view</a>'
    turn = '<button type="button">Previous</button><button type="button">Next</button>'
    turn = f'<span class="turn"><output></output>{turn}</span>'
    skip = '<a class="skip-table" href="#after-claims">Skip the table</a>'
    return f'<form class="claims-filter" hidden>{chosen}{words}{view} {turn}</form>{skip}'


def filtered(**wanted: str) -> str:
    """The address of the list with a filter, on the same page or after `claims.html`: `#verdict=open`."""
    return "#" + "&".join(f"{name}={value.replace('&', '%26').replace(' ', '+')}" for name, value in wanted.items())


def address(claim: str) -> str:
    """The id of a claim's row on the page of claims."""
    return f"claim-{claim}"


def anchor(rule: str) -> str:
    """The id of a rule's row on the page of claims."""
    return "rule-" + re.sub(r"\W+", "-", rule.lower())


# -- The rules ------------------------------------------------------------------------------------


def rules_markup(judged: pd.DataFrame) -> str:
    """Every rule for numbers as an HTML table: what is judged, how, and why so."""
    used = judged["rule"].value_counts()
    titles = ["rule and experiments", "claims", "judged", "tolerance", "no effect", "why so"]
    body = "".join(_rule_row(rule, int(used.get(rule.name, 0))) for rule in rules().numbers)
    return _rules_table(titles, body)


def words_markup() -> str:
    """Every rule for words as an HTML table: the statements, and what their words are taken to mean."""
    stated = load().set_index("id")
    body = "".join(_word_row(word, stated) for word in rules().words)
    return _rules_table(["statement", "taken to mean", "decided by"], body)


def _rules_table(titles: list[str], body: str) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<table class="table rules-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _rule_row(rule: Rule, claims: int) -> str:
    sources = "<br>".join(html.escape(f"{source.label}: {source.experiment}") for source in rule.sources)
    cells = [
        f"{html.escape(rule.name)}<br><small>{sources}</small>", str(claims), rule.compare if rule.sources else "–",
        html.escape(tolerance_in_words(rule)), html.escape(neutral_in_words(rule)), _code(rule.why),
    ]  # fmt: skip
    return f'<tr id="{anchor(rule.name)}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _word_row(word: Word, stated: pd.DataFrame) -> str:
    rows = [stated.loc[[claim]].iloc[0] for claim in word.claims]
    said = "<br>".join(html.escape(_stated(row)) for row in rows)
    by = "<br>".join(html.escape(name) for name in word.experiments) or html.escape(word.unavailable)
    return f'<tr id="{anchor(word.name)}"><td>{said}</td><td>{_code(word.meaning)}</td><td>{by}</td></tr>'


def _code(text: str) -> str:
    return re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))


def tolerance_in_words(rule: Rule) -> str:
    """`25 % of the effect`, `±0.15`: how near is near enough."""
    if not rule.sources:
        return "–"
    parts = [f"{rule.share:.0%} of the effect".replace("%", " %")] if rule.share else []
    parts += [f"{rule.relative:.0%} of the number".replace("%", " %")] if rule.relative else []
    parts += [f"±{rule.margin:g}"] if rule.margin else []
    parts += [f"equal within ±{rule.equal:g}"] if rule.equal else []
    return ", ".join(parts)


def neutral_in_words(rule: Rule) -> str:
    if not rule.sources:
        return "–"
    if rule.compare == "difference":
        return "0"
    if rule.compare in ("ratio", "growth"):
        return "1, in proportion to n" if rule.proportional else "1"
    if rule.neutral is None:
        return "no direction"
    return "standard attention" if rule.neutral == "standard" else f"{rule.neutral:g}"
