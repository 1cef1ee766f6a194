"""Where the documents contradict each other and themselves, from `data/claims.csv`, for the page of claims."""

import pandas as pd

from bsbr.claims import load, short
from bsbr.show.figures import interval, number
from bsbr.stats import power_law

NOTABLE = 0.3  # a difference of exponents that rounding to two digits does not make
PAIR = ("standard", "bsbr")


def between_documents(judged: pd.DataFrame) -> pd.DataFrame:
    """Standard attention against BSBR at each length that two documents or more speak of, and what was measured."""
    times = ["Inference Time", "Inference Time (seconds)", "Inference Speed Comparison"]
    bytes_ = ["Memory Usage", "Peak Memory Usage (MB)", "Memory Usage Analysis"]
    tables = [
        _beside(judged, "times as fast", "time", times),
        _beside(judged, "times less memory", "peak_memory", bytes_),
    ]
    rows = pd.concat(tables)
    rows = rows[[*(name for name in rows if name != "measured"), "measured"]]
    return rows.rename_axis("BSBR against standard attention").rename_axis(None, axis=1).reset_index()


def _beside(judged: pd.DataFrame, title: str, quantity: str, sections: list[str]) -> pd.DataFrame:
    rows = judged[(judged["quantity"] == quantity) & judged["section"].isin(sections)]
    wide = rows.pivot(index=["n", "document"], columns="mechanism", values="value")
    stated = (wide["standard"] / wide["bsbr"]).dropna().unstack("document")
    stated = stated[stated.nunique(axis=1) > 1].rename(columns=short)
    here = rows[(rows["mechanism"] == "bsbr") & rows["document"].str.contains("Benchmarks (0.1.1)", regex=False)]
    here = here.drop_duplicates("n").set_index("n")
    measured = [interval(*here.loc[n, ["measured", "low", "high"]]) if n in here.index else "–" for n in stated.index]
    names = [f"{title}, n = {n:,}" for n in stated.index]
    return stated.assign(measured=measured).set_axis(names)


def exponents_stated(judged: pd.DataFrame) -> pd.DataFrame:
    """The exponent of the time in each document that states one, in digits or as a class."""
    rows = judged[(judged["quantity"] == "exponent") & judged["mechanism"].isin(PAIR)]
    rows = rows.assign(document=rows["document"].map(short)).drop_duplicates(["mechanism", "document"])
    wide = rows.pivot(index="mechanism", columns="document", values="value")
    return wide.reindex(columns=rows["document"].unique()).rename_axis(None, axis=1).reset_index()


def exponents_implied() -> pd.DataFrame:
    """The stated exponent of a time beside the one that a power law through the same document's own times has."""
    stated = load("exponent")
    found = []
    for (document, section, mechanism), rows in _times().groupby(["document", "section", "mechanism"], sort=False):
        said = stated[(stated["document"] == document) & (stated["mechanism"] == mechanism)]
        if len(rows) < 3 or said.empty:
            continue
        fit = power_law(list(rows["n"].astype(int)), list(rows["value"]))
        found.append(
            {
                "document": short(document), "mechanism": mechanism, "times in": section,
                "lengths": f"{rows['n'].min():,} to {rows['n'].max():,}",
                "stated": said["value"].iloc[0], "its own table": fit.exponent.value,
            }
        )  # fmt: skip
    cases = pd.DataFrame(found).drop_duplicates(["document", "mechanism", "lengths", "its own table"])
    widest_first = (cases["stated"] - cases["its own table"]).abs().sort_values(ascending=False, kind="stable")
    return cases.loc[widest_first.index]


def standard_times() -> pd.DataFrame:
    """Standard attention's time in seconds at one length, where sections of a document differ by more than rounding."""
    rows = _times().query("mechanism == 'standard'")
    found = []
    for (document, n), here in rows.groupby(["document", "n"], sort=False):
        least, most = here["value"].min(), here["value"].max()
        if most / least > 1.01:
            in_words = "; ".join(f"{number(row.value)} s in {row.section}" for row in here.itertuples())
            found.append({"document": short(document), "n": n, "times": in_words, "factor": most / least})
    return pd.DataFrame(found)


def directions() -> pd.DataFrame:
    """Lengths at which sections of one document disagree on which of the two is faster."""
    wide = _times().pivot_table(index=["document", "section", "n"], columns="mechanism", values="value")
    speedup = (wide["standard"] / wide["bsbr"]).dropna().rename("speedup").reset_index()
    found = []
    for (document, n), here in speedup.groupby(["document", "n"], sort=False):
        if here["speedup"].min() < 1 < here["speedup"].max():
            in_words = "; ".join(f"{number(row.speedup)} × in {row.section}" for row in here.itertuples())
            found.append({"document": short(document), "n": n, "BSBR as fast as": in_words})
    return pd.DataFrame(found, columns=["document", "n", "BSBR as fast as"])


def equal_numbers(document: str, first: str, second: str) -> tuple[int, int]:
    """In how many rows of a document's costs two mechanisms have the same number, and in how many both stand."""
    rows = load("time", "peak_memory", "gradient_memory", "activation_memory", "flops")
    wide = rows[rows["document"] == document].pivot(
        index=["section", "quantity", "conditions"], columns="mechanism", values="value"
    )
    both = wide[[first, second]].dropna()
    return int((both[first] == both[second]).sum()), len(both)


def words_against_table() -> str:
    """What the document on conversion says of the speed of larger chunks, and what its table has, in Markdown."""
    speeds = load("relative_speed")
    said = load("statement").set_index("id").loc["mc-small-chunks-slower", "statement"]
    stated = ", ".join(
        f"{number(row.value)} × ({row.conditions.replace('chunk_size=', 'chunks of ')})" for row in speeds.itertuples()
    )
    verb = "falls" if speeds["value"].is_monotonic_decreasing else "does not fall"
    return (
        f"**A sentence against its own table.** {short(speeds['document'].iloc[0])} says that {said}; in the "
        f"table above that sentence the speed {verb} with the chunk: {stated}."
    )


def _times() -> pd.DataFrame:
    """Stated times by length: the tables that name one, each once."""
    rows = load("time").dropna(subset=["n", "value"])
    return rows[~rows["section"].isin(["Chunk Size Impact", "Complexity Analysis"])]
