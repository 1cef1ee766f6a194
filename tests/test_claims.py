"""Every claim of the documents has a verdict, by rules that are data, or a reason why not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsbr import claims
from bsbr.claims import DECIDED, VERDICTS, loading
from bsbr.claims.rules import PATH
from bsbr.claims.rules import read as read_rules
from bsbr.store import Result, load, row, tidy

B11, B12 = "Research Benchmarks (0.1.1)", "Research Benchmarks (0.1.2)"
SIZES = {
    "512x4x8": {"hidden_dim": 512, "num_layers": 4, "num_heads": 8, "ff_dim": 2048},
    "256x2x4": {"hidden_dim": 256, "num_layers": 2, "num_heads": 4, "ff_dim": 512},
}


def made_up(experiment: str, *rows: dict[str, Any], size: str = "256x2x4", target: str = "cpu") -> Result:
    record = {"parameters": SIZES[size]}
    return Result(experiment, target, "full", tidy(pd.DataFrame(rows)), record, Path("made-up.csv"))


def timed(metric: str, value: float, spread: float = 0.01, **factors: Any) -> dict[str, Any]:
    bounds = {"low": value * (1 - spread), "high": value * (1 + spread), "interval": "order statistics", "samples": 9}
    return row(metric, value, **bounds, **factors)


def prefill(metric: str, value: float, spread: float = 0.01, **factors: Any) -> dict[str, Any]:
    plain = {} if "implementation" in factors else {"batch": 1, "mode": "eager"}
    return timed(metric, value, spread, phase="prefill", **plain, **factors)


def one(judged: pd.DataFrame, claim: str) -> pd.Series:
    found = judged[judged["id"] == claim]
    assert len(found) == 1, claim
    return found.iloc[0]


# -- What is listed -------------------------------------------------------------------------------


def test_each_section_of_the_documents_has_as_many_rows_as_it_holds_claims() -> None:
    counts = claims.counts()
    assert (counts["numbers"] - counts["settings"] + counts["words"] == counts["claims"]).all()
    assert not counts.duplicated(["document", "section"]).any()
    rows = claims.load().groupby(["document", "section"]).size()
    held = counts[counts["claims"] > 0].set_index(["document", "section"])["claims"]
    pd.testing.assert_series_equal(rows.sort_index(), held.sort_index(), check_names=False, check_index_type=False)


def test_claims_can_be_chosen_by_quantity() -> None:
    assert claims.load("crossover_n")["value"].unique() == [1024]
    exponents = claims.load("exponent").query("section == 'Complexity Analysis'")
    assert exponents["n"].isna().all() and len(exponents) == 7
    with pytest.raises(ValueError, match="no claim is about 'beauty'"):
        claims.load("beauty")


def test_what_is_said_twice_counts_once() -> None:
    stated = claims.load()
    numbers = stated[stated["quantity"] != "statement"]
    assert (len(stated), len(numbers)) == (645, 583)
    assert len(claims.distinct(stated)) == 430 and len(claims.distinct(numbers)) == 386
    repeated = stated[stated["repeats"] != ""].merge(stated, left_on="repeats", right_on="id", suffixes=("", "_first"))
    assert (repeated["mechanism"] == repeated["mechanism_first"]).all()
    assert (repeated["repeats_first"] == "").all()
    assert one(stated, "mc-inference-speed-comparison-speedup-bsbr-n-1024")["repeats"] == (
        "mc-inference-speed-comparison-time-bsbr-n-1024"
    )


def test_a_repeat_counts_where_the_first_is_not_there() -> None:
    stated = claims.load()
    alone = stated[stated["id"] == "mc-inference-speed-comparison-speedup-bsbr-n-1024"]
    assert len(claims.distinct(alone)) == 1


def test_placeholders_are_those_that_the_documents_call_so() -> None:
    stated = claims.load().query("placeholder")
    assert (stated["quantity"] != "statement").sum() == 87
    assert stated.groupby("document")["section"].unique().map(set).to_dict() == {
        B12: {
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


@pytest.mark.parametrize(
    ("column", "value", "wrong"),
    [
        ("mechanism", "mamba", "line 3: mechanism must be one of bsbr, .*, not 'mamba'"),
        ("quantity", "beauty", "line 3: no rule is for quantity 'beauty'"),
        ("value", "fast", "line 3: value must be a number or empty, not 'fast'"),
        ("value", "", "line 3: value is empty"),
        ("unit", "MB", "line 3: unit 'MB' cannot be held against '', the unit of exponent"),
        ("placeholder", "no", "line 3: placeholder must be True or False"),
        ("statement", "is beautiful", "line 3: a claim in words has the quantity 'statement'"),
        ("id", "First one", "line 3: id must be lower-case"),
        ("id", "b11-inference-time-time-bsbr-n-64", "line 3: id .* stands further up already"),
        ("repeats", "nothing", "line 3: repeats 'nothing', which is no claim that stands for itself"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, column: str, value: str, wrong: str) -> None:
    rows = pd.read_csv(loading.PATH, keep_default_na=False, dtype="string")
    rows = rows[
        rows["id"].isin(["b11-inference-time-time-bsbr-n-64", "b11-inference-time-exponent-bsbr-stated-as-linear"])
    ]
    rows.iloc[1, list(rows.columns).index(column)] = value
    rows.to_csv(tmp_path / "claims.csv", index=False)
    with pytest.raises(claims.ClaimsError, match=rf"claims\.csv, {wrong}"):
        loading.read(tmp_path / "claims.csv", claims.rules())


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "claims.csv").write_text("document,value\n", encoding="utf-8")
    with pytest.raises(claims.ClaimsError, match="line 1: the columns must be id, document"):
        loading.read(tmp_path / "claims.csv", claims.rules())


# -- The rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ('compare = "growth"', 'compare = "size"', "rule 'speed by chunk size', compare: 'size' is not one of"),
        ('name = "speed"\n', 'name = "speed"\ncolour = "red"\n', r"line \d+, rule 'speed': .*'colour' was unexpected"),
        ('sources = ["chunk sizes"]', 'sources = ["tea leaves"]', "sources 'tea leaves' is not known"),
        ("quantities = [\"speedup\"]", 'quantities = ["beauty"]', "metric 'beauty' is not known"),
        ('models = "unfused"', 'models = "fused"', "source 'our time, unfused': models 'fused' is not known"),
        ('metric = "resident_peak"', 'metric = "weight"', r"line \d+, word 'b11-lower-memory': metric 'weight' is"),
        ("at_most = 0.8", 'at_most = "little"', "parts, 1, at_most: 'little' is not of type 'number'"),
        ("[plain]", "[plain", r"claims_rules\.toml: .*line"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_with_its_line(tmp_path: Path, old: str, new: str, wrong: str) -> None:
    text = PATH.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "claims_rules.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(claims.RulesError, match=wrong):
        read_rules(tmp_path / "claims_rules.toml")


def test_every_rule_is_for_some_claim_and_names_are_their_own() -> None:
    stated = claims.load()
    rulebook = claims.rules()
    used = {rulebook.finds(claim).name for claim in stated.to_dict("records")}  # type: ignore[union-attr]
    everyone = [rule.name for rule in (*rulebook.numbers, *rulebook.words)]
    assert [name for name in everyone if name not in used] == [] and len(set(everyone)) == len(everyone)
    named = [claim for word in rulebook.words for claim in word.claims]
    assert set(named) <= set(stated["id"]) and len(set(named)) == len(named)


def test_the_names_of_mechanisms_are_those_of_the_registry() -> None:
    from bsbr import MECHANISMS

    assert set(claims.rules().mechanisms) <= set(MECHANISMS)  # the documents know not all


def test_the_converted_model_is_the_converters_default() -> None:
    from bsbr import ConversionConfig

    setting = claims.rules().models["converted"]["bsbr"]["setting"]
    recorded = load("conversion/similarity").provenance["parameters"]
    assert ConversionConfig(**recorded["settings"][setting]) == ConversionConfig()


# -- Every claim has a verdict --------------------------------------------------------------------


def check(judged: pd.DataFrame) -> None:
    assert judged["verdict"].isin(VERDICTS).all()
    decided = judged["verdict"].isin(DECIDED)
    number = judged["quantity"].ne("statement") & judged["finding"].eq("")
    assert judged.loc[decided & number & judged["reason"].eq(""), ["claimed", "measured"]].notna().all().all()
    assert (judged.loc[~decided, "reason"] != "").all()
    assert (judged.loc[judged["verdict"] == "not measured yet", "experiment"] != "").all()


def test_every_claim_has_a_verdict_or_a_reason() -> None:
    judged = claims.judge()
    check(judged)
    assert judged["id"].equals(claims.load()["id"])


def test_before_anything_was_measured_nothing_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    judged = claims.judge()
    check(judged)
    assert set(judged["verdict"]) == {"not measured yet", "cannot be measured here", "base of its table"}


@pytest.mark.parametrize("experiment", sorted(claims.rules().experiments))
def test_a_result_that_lacks_everything_decides_nothing(experiment: str) -> None:
    """As a run at reduced sizes does."""
    judged = claims.judge(made_up(experiment, row("cell", 1.0, mechanism="bsbr")))
    check(judged)
    assert len(judged) and not judged["verdict"].isin(DECIDED).any()


def test_no_other_size_and_no_other_length_takes_the_place_of_the_stated() -> None:
    rows = [prefill("speedup", 0.5, mechanism="linear", n=n) for n in (512, 4096)]
    judged = claims.judge(made_up("benchmarks/inference_time", *rows))
    stated = judged[(judged["quantity"] == "time") & (judged["mechanism"] == "linear")].set_index("id")["verdict"]
    assert stated["b12-inference-time-time-linear-n-512"] in DECIDED
    assert stated["b12-inference-time-time-linear-n-1024"] == "not measured yet"
    assert stated["b11-inference-time-time-linear-n-512"] == "not measured yet"
    large = claims.judge(made_up("benchmarks/inference_time", *rows, size="512x4x8"))
    assert one(large, "b11-inference-time-time-linear-n-512")["verdict"] in DECIDED
    assert one(large, "b12-inference-time-time-linear-n-512")["verdict"] == "not measured yet"


def test_a_table_of_both_sizes_is_read_at_each() -> None:
    counted = {"direction": "forward", "n": 64}
    judged = claims.judge(
        made_up(
            "benchmarks/parameters_and_flops",
            row("flops", 1.05e9, size="512x4x8", mechanism="standard", **counted),
            row("flops", 9e9, size="256x2x4", mechanism="standard", **counted),
            row("flops", 2e9, size="512x4x8", mechanism="bsbr", **counted),
            row("parameters", 3_612_000, size="256x2x4", mechanism="standard"),
            row("parameters", 3_650_000, size="256x2x4", mechanism="hopfield"),
            row("parameters", 3_600_000, size="256x2x4", mechanism="gau"),
        )
    )
    assert one(judged, "b11-flops-count-flops-standard-n-64")["verdict"] == "confirmed"
    assert one(judged, "b11-flops-count-flops-bsbr-n-64")["verdict"] == "contradicted"  # stated: equal to standard
    assert one(judged, "b12-parameter-counts-parameters-hopfield")["verdict"] == "confirmed"
    assert one(judged, "b12-parameter-counts-parameters-gau")["verdict"] == "contradicted"  # stated: more
    base = one(judged, "b12-parameter-counts-parameters-relative-standard")
    assert base["verdict"] == "base of its table" and math.isnan(base["claimed"])


def test_a_row_with_a_factor_that_no_rule_names_decides_nothing() -> None:
    judged = claims.judge(
        made_up(
            "benchmarks/inference_time",
            prefill("speedup", 0.5, mechanism="linear", n=512) | {"batch": 8},
            prefill("speedup", 0.5, mechanism="linear", n=256) | {"mode": "compiled"},
        )
    )
    assert one(judged, "b12-inference-time-time-linear-n-512")["verdict"] == "not measured yet"
    assert one(judged, "b12-inference-time-time-linear-n-256")["verdict"] == "not measured yet"


def test_two_rows_for_one_claim_are_an_error() -> None:
    rows = [prefill("speedup", 0.5, mechanism="linear", n=512), prefill("speedup", 0.5, mechanism="linear", n=512)]
    rows[1] |= {"mode": None}
    with pytest.raises(claims.RulesError, match="2 rows of benchmarks/inference_time match"):
        claims.judge(made_up("benchmarks/inference_time", *rows))
