"""Every number that the documents state is listed, and has a verdict or a reason why not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsbr import claims
from bsbr.claims import Number, Rule, verdict
from bsbr.provenance import ROOT
from bsbr.results import Result, load, published, row, tidy

BENCHMARKS = "Research Benchmarks (0.1.1)"
NO_CLAIMS = "The documents state no number about what is measured here."


def made_up(experiment: str, *rows: dict[str, Any]) -> Result:
    return Result(experiment, "cpu", "full", tidy(pd.DataFrame(rows)), {}, Path("made-up.csv"))


def one(judged: pd.DataFrame, **where: Any) -> pd.Series:
    for column, value in where.items():
        judged = judged[judged[column] == value]
    assert len(judged) == 1
    return judged.iloc[0]


# -- What is listed -------------------------------------------------------------------------------


def test_each_table_of_the_documents_has_as_many_rows_as_it_holds_claims() -> None:
    counts = claims.counts()
    assert (counts["numbers"] - counts["settings"] + counts["words"] == counts["claims"]).all()
    assert not counts.duplicated(["document", "section"]).any()
    rows = claims.load().groupby(["document", "section"]).size()
    held = counts[counts["claims"] > 0].set_index(["document", "section"])["claims"]
    pd.testing.assert_series_equal(rows.sort_index(), held.sort_index(), check_names=False, check_index_type=False)


def test_a_claim_stands_once_and_has_a_number() -> None:
    stated = claims.load()
    assert not stated.duplicated(["document", "section", "quantity", "mechanism", "conditions"]).any()
    assert (stated["value"].notna() | stated["conditions"].str.contains("out of memory")).all()
    assert set(stated["document"]) == set(claims.counts()["document"])


def test_placeholders_are_those_that_the_documents_call_so() -> None:
    marked = claims.load().query("placeholder").groupby("document")["section"].unique().map(set).to_dict()
    assert marked == {
        "Research Benchmarks (0.1.2)": {
            "Convergence Speed", "Training Memory", "Document Classification", "Language Modeling",
            "Question Answering", "GPU Utilization",
        },
        "BSBR Model Conversion: Research Results": {"Output Distribution Comparison"},
    }  # fmt: skip


def test_conditions_name_the_factors_of_a_table() -> None:
    assert claims.conditions("n=64..1024") == {"n_from": 64, "n_to": 1024}
    assert claims.conditions("n=8192, out of memory") == {"n": 8192}
    assert claims.conditions("statistic=standard deviation") == {"statistic": "standard deviation"}
    assert claims.conditions("stated as linear") == {}


# -- Every claim has a verdict --------------------------------------------------------------------


def check_complete(judged: pd.DataFrame) -> None:
    stated = claims.load()
    assert len(judged) == len(stated) and judged["value"].equals(stated["value"])
    assert judged["verdict"].isin(claims.VERDICTS).all()
    by_number = judged["verdict"].isin(["confirmed", "direction only", "contradicted"])
    assert judged.loc[by_number, ["claimed", "measured"]].notna().all().all()
    assert (judged.loc[~by_number, "reason"] != "").all() and (judged.loc[by_number, "reason"] == "").all()
    assert (judged.loc[judged["verdict"] == "not measured yet", "experiment"] != "").all()


def test_every_claim_has_a_verdict_or_a_reason() -> None:
    check_complete(claims.judge())


def test_every_claim_has_a_verdict_or_a_reason_before_anything_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    judged = claims.judge()
    check_complete(judged)
    assert set(judged["verdict"]) == {"not measured yet", "cannot be measured here"}


@pytest.mark.parametrize("experiment", sorted({name for rule in claims.RULES for name in rule.experiments}))
def test_a_result_that_lacks_everything_leaves_its_claims_unmeasured(experiment: str) -> None:
    """As a run at reduced sizes does."""
    result = made_up(experiment, row("noise", 1.0, mechanism="bsbr"))
    check_complete(claims.judge(result))
    assert not claims.about(result)["verdict"].isin(["confirmed", "direction only", "contradicted"]).any()
    assert "not measured yet" in claims.line(result) or "cannot be measured here" in claims.line(result)
    claims.table(result)


def test_every_rule_is_for_some_claim_and_names_are_their_own() -> None:
    used = {claims.rule_for(claim).name for claim in claims.load().to_dict("records")}
    assert [rule.name for rule in claims.RULES if rule.name not in used] == []
    assert len({rule.name for rule in claims.RULES}) == len(claims.RULES)


def test_a_claim_without_a_rule_is_an_error_that_says_where_to_add_one() -> None:
    with pytest.raises(ValueError, match=r"no rule of bsbr\.claims\.RULES is for 'beauty'"):
        claims.rule_for({"quantity": "beauty", "document": "d", "section": "s"})


# -- Verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "measured", "expected"),
    [
        (2.0, Number(1.5, 1.2, 2.1), "confirmed"),  # within the interval
        (1.4, Number(1.5, 1.45, 1.55), "confirmed"),  # within the tolerance
        (1.1, Number(0.95, 0.93, 0.97), "contradicted"),  # within the tolerance, but the other side of 1
        (1.0, Number(0.95, 0.93, 0.97), "confirmed"),  # no side claimed
        (17.0, Number(1.2, 1.1, 1.3), "direction only"),
        (math.inf, Number(1.8, 1.7, 1.9), "direction only"),
        (17.0, Number(1.2, 0.9, 1.5), "contradicted"),  # the measured interval has no side
        (17.0, Number(0.9, 0.8, 0.95), "contradicted"),
        (0.5, Number(0.9), "direction only"),  # no interval
    ],
)
def test_a_ratio_is_confirmed_or_right_in_direction_or_contradicted(
    claimed: float, measured: Number, expected: str
) -> None:
    assert verdict(claimed, measured, tolerance=0.2, sides=(1, 1)) == expected


def test_without_a_direction_a_number_is_confirmed_or_contradicted() -> None:
    assert verdict(0.83, Number(0.85), tolerance=0.05, absolute=True) == "confirmed"
    assert verdict(0.83, Number(0.99), tolerance=0.05, absolute=True) == "contradicted"


def test_the_interval_of_a_ratio_holds_both_intervals() -> None:
    ratio = Number(4, 3, 5).over(Number(2, 1.5, 2.5))
    assert ratio.value == 2 and 3 / 2.5 < ratio.low < 3 / 2 and 5 / 2 < ratio.high < 5 / 1.5
    assert Number(4).over(Number(2, 1, 3)).value == 2 and math.isnan(Number(4).over(Number(2, 1, 3)).low)
    assert math.isnan(Number(1).over(Number(0)).value)


def timed(mechanism: str, n: int, metric: str = "time", value: float = 1.0, **more: Any) -> dict[str, Any]:
    factors = {"phase": "prefill", "mechanism": mechanism, "n": n, "batch": 1, "mode": "eager"} | more
    return row(metric, value, low=value * 0.98, high=value * 1.02, **factors)


def test_times_are_judged_by_the_ratio_to_standard_attention_in_the_same_table() -> None:
    """The document has 0.7 s against 12 s for n = 1024, and 1.2 s against 42 s for n = 2048."""
    result = made_up(
        "benchmarks/inference_time",
        timed("bsbr", 1024, "speedup", 17.0),
        timed("bsbr", 2048, "speedup", 2.0),
        timed("bsbr", 512, "speedup", 0.5),
        timed("bsbr", 2048, "speedup", 35.0, batch=8),
        timed("bsbr", 2048, "speedup", 35.0, mode="compiled"),
    )
    judged = claims.judge(result)
    table = {"document": BENCHMARKS, "section": "Inference Time", "quantity": "time", "mechanism": "bsbr"}
    first = one(judged, **table, n=1024)
    assert first["claimed"] == pytest.approx(12 / 0.7) and first["measured"] == 17 and first["verdict"] == "confirmed"
    assert one(judged, **table, n=2048)["verdict"] == "direction only"
    assert one(judged, **table, n=512)["verdict"] == "contradicted"
    assert one(judged, **table, n=64)["verdict"] == "not measured yet"


def test_standard_attention_is_judged_by_its_own_growth() -> None:
    """From 0.1 s at n = 64 to 42 s at n = 2048, where growth in proportion would be 32-fold."""
    result = made_up(
        "benchmarks/inference_time",
        *(timed("standard", n, value=seconds) for n, seconds in ((64, 0.001), (128, 0.003), (256, 0.003), (2048, 0.1))),
    )
    judged = claims.judge(result)
    table = {"document": BENCHMARKS, "section": "Inference Time", "quantity": "time", "mechanism": "standard"}
    assert one(judged, **table, n=64)["verdict"] == "cannot be measured here"
    assert "base" in one(judged, **table, n=64)["reason"]
    assert one(judged, **table, n=128)["verdict"] == "confirmed"
    assert one(judged, **table, n=256)["verdict"] == "contradicted"  # stated 10, measured 3: below proportion, 4
    assert one(judged, **table, n=2048)["verdict"] == "direction only"  # stated 420, measured 100: both above 32


def test_a_stated_number_is_held_against_the_documents_own_size() -> None:
    counted = {"direction": "forward", "n": 64}
    result = made_up(
        "benchmarks/parameters_and_flops",
        row("flops", 1.05e9, size="512x4x8", mechanism="standard", **counted),
        row("flops", 9e9, size="256x2x4", mechanism="standard", **counted),
        row("flops", 2e9, size="512x4x8", mechanism="bsbr", **counted),
        row("parameters", 3_612_000, size="256x2x4", mechanism="standard"),
        row("parameters", 3_680_000, size="256x2x4", mechanism="bsbr"),
        row("parameters", 3_600_000, size="256x2x4", mechanism="gau"),
    )
    judged = claims.judge(result)
    flops = {"document": BENCHMARKS, "section": "FLOPs Count", "quantity": "flops", "n": 64}
    assert one(judged, **flops, mechanism="standard")["verdict"] == "confirmed"
    assert one(judged, **flops, mechanism="bsbr")["verdict"] == "contradicted"
    parameters = {
        name: one(judged, quantity="parameters", mechanism=name)["verdict"] for name in ("standard", "bsbr", "gau")
    }
    assert parameters == {"standard": "confirmed", "bsbr": "direction only", "gau": "contradicted"}


def test_what_ran_out_of_memory_or_measured_zero_says_so() -> None:
    where = {"phase": "training", "n": 64}
    result = made_up(
        "benchmarks/memory",
        row("memory_relative", None, status="out_of_memory", reason="too large", mechanism="bsbr", part=None, **where),
        row("memory_part", 0.0, mechanism="bsbr", part="gradients", **where),
        row("memory_part", 5.0, mechanism="standard", part="gradients", **where),
    )
    judged = claims.judge(result)
    table = {"document": BENCHMARKS, "section": "Memory Usage", "mechanism": "bsbr", "n": 64}
    assert one(judged, **table, quantity="peak_memory")["reason"] == "too large"
    assert "zero" in one(judged, **table, quantity="gradient_memory")["reason"]


def test_sparsity_is_what_density_leaves() -> None:
    result = made_up(
        "experiments/attention_sparsity",
        *(row("density", value, model="bsbr", scope="between", n=n, threshold=t) for n, t, value in
          ((512, 0.0, 1.0), (1024, 0.0, 12.0), (1024, 0.1, 0.5))),
    )  # fmt: skip
    found = one(claims.judge(result), quantity="sparsity", mechanism="bsbr", conditions="scope=between")
    assert (found["claimed"], found["measured"], found["verdict"]) == (85, 88, "confirmed")


def test_growth_by_chunk_size_starts_at_the_first_of_the_table() -> None:
    factors = {"phase": "prefill", "n": 4096}
    result = made_up(
        "experiments/chunk_size",
        *(row("time", t, chunk_size=b, **factors) for b, t in ((32, 1.0), (64, 1.4), (128, 0.9))),
    )
    judged = claims.about(result).query("quantity == 'time'").set_index("conditions")["verdict"]
    assert list(judged) == ["cannot be measured here", "confirmed", "contradicted", "not measured yet"]


def test_a_row_that_keeps_the_place_of_a_number_to_come_is_no_verdict_on_this_machine() -> None:
    result = made_up(
        "experiments/chunk_size",
        *(row("accuracy", None, chunk_size=b, status="not_available", reason=why) for b, why in
          ((32, "not measured yet: needs training"), (64, "no such device"))),
    )  # fmt: skip
    judged = claims.about(result).query("quantity == 'accuracy'").set_index("conditions")["verdict"]
    assert judged["chunk_size=32"] == "not measured yet"
    assert judged["chunk_size=64"] == "cannot be measured here"


def test_the_power_of_a_processor_is_not_held_against_that_of_a_gpu() -> None:
    result = made_up("benchmarks/utilisation", row("power", 250.0, mechanism="bsbr", phase="prefill"))
    where = {"document": BENCHMARKS, "quantity": "power", "mechanism": "bsbr"}
    assert one(claims.judge(result), **where)["reason"] == "there is no GPU here"
    assert one(claims.judge(replace(result, target="gpu")), **where)["verdict"] == "confirmed"


def test_the_converted_model_is_the_converters_default() -> None:
    from bsbr import ConversionConfig

    rungs = load("conversion/similarity").provenance["parameters"]["rungs"]
    assert ConversionConfig(**rungs[claims.CONVERTED["bsbr"]["rung"]]) == ConversionConfig()


# -- Showing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", published())
def test_a_notebook_can_show_what_was_claimed_about_it(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = load(experiment)
    judged, line = claims.about(result), claims.line(result)
    if judged.empty:
        assert line == NO_CLAIMS
        return
    assert f"state {len(judged)} numbers" in line and "(../../book/claims.md)" in line
    assert sum(int(word) for word in claims.tally(judged).split() if word.isdigit()) == len(judged)
    claims.table(result)
    assert claims.markup(judged).count("<tr data-") == len(judged)


def test_an_experiment_without_claims_says_so() -> None:
    result = made_up("group/name", row("noise", 1.0))
    assert claims.line(result) == NO_CLAIMS
    claims.table(result)


def test_tolerances_are_said_in_words() -> None:
    assert Rule("", (), ("a",), tolerance=0.2).tolerance_in_words == "±20 %"
    assert Rule("", (), ("a",), tolerance=0.15, absolute=True).tolerance_in_words == "±0.15"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The table, filter and script of the book's page, without the rest of it."""
    choices = "".join(
        f'<select name="{name}"><option value=""></select>' for name in ("document", "mechanism", "verdict")
    )
    script = (ROOT / "book" / "_static" / "claims.js").as_uri()
    path = tmp_path / "claims.html"
    path.write_text(
        f'<!doctype html><form class="claims-filter" hidden>{choices}<output></output></form>'
        f'{claims.markup(claims.judge(), "{}")}<script src="{script}"></script>',
        encoding="utf-8",
    )
    return path


def test_the_list_can_be_filtered(browser: Any, page: Path) -> None:
    judged = claims.judge()
    rows = "() => [...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).length"
    tab = browser.new_page()
    tab.goto(page.as_uri())
    assert tab.evaluate(rows) == len(judged)
    assert tab.locator("form").is_visible()
    tab.select_option("select[name=mechanism]", "gau")
    assert tab.evaluate(rows) == (judged["mechanism"] == "gau").sum()
    tab.select_option("select[name=verdict]", "not measured yet")
    wanted = ((judged["mechanism"] == "gau") & (judged["verdict"] == "not measured yet")).sum()
    assert tab.evaluate(rows) == wanted
    assert tab.locator("output").inner_text() == f"{wanted} of {len(judged)}"
    tab.goto("about:blank")
    tab.goto(page.as_uri() + "#verdict=cannot+be+measured+here")
    assert tab.evaluate(rows) == (judged["verdict"] == "cannot be measured here").sum()
    tab.close()


def test_without_scripts_all_of_it_stands_there(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("tbody tr:visible").count() == len(claims.load())
    assert not tab.locator("form").is_visible()
    context.close()
