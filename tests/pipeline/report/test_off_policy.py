from typing import Any

import pyarrow as pa
import pytest

from pipeline.report.off_policy import off_policy, unsupported_estimates
from pipeline.results import build_results, query
from tests.published import publish, table

ROW = {
    "agent": "iql", "seed": 1, "setting": "page", "estimator": "sn_iips", "value": 1.2, "ci_low": 1.0, "ci_high": 1.4,
    "gain": 0.2, "gain_low": 0.1, "gain_high": 0.3, "n": 500, "users": 90, "ess": 140.0, "tail_index": 0.3,
    "max_weight": 9.0, "mean_weight": 0.97, "mean_weight_error": 0.02, "clipped_share": 0.0, "overlap": 0.8,
    "supported": True, "reason": "", "temperature": 1.0, "propensities": "logged", "pool": "logged",
}  # fmt: skip
NO_BINS, NO_PROOFS = table("ope_calibration", []), table("ope_proof", [])


def estimates(tmp_path: Any, *rows: dict[str, Any]) -> pa.Table:
    """What the query ``off_policy`` makes of rows of ``ope``."""
    build_results(publish(tmp_path, {"ope": table("ope", [ROW | row for row in rows])}), tmp_path / "results.duckdb")
    return query(tmp_path / "results.duckdb", "off_policy")


def test_seeds_are_averaged_in_value_and_shown_at_their_worst_otherwise(tmp_path: Any) -> None:
    (row,) = estimates(
        tmp_path,
        {},
        {"seed": 2, "value": 1.6, "ci_low": 1.5, "ci_high": 1.7, "ess": 60.0, "tail_index": 0.4, "mean_weight": 1.01},
    ).to_pylist()
    assert (row["seeds"], row["value"], row["ci_low"], row["ci_high"]) == (2, pytest.approx(1.4), 1.0, 1.7)
    assert (row["ess"], row["tail_index"], row["mean_weight"], row["supported"]) == (60.0, 0.4, 0.97, True)


def test_one_seed_without_support_leaves_the_agent_without_a_value(tmp_path: Any) -> None:
    found = estimates(tmp_path, {}, {"seed": 2, "supported": False, "reason": "effective sample size 31 < 50"})
    shown = off_policy(found, NO_BINS, NO_PROOFS)
    assert shown.chart is None
    assert shown.table is not None
    texts = [cell.text for cell in shown.table.rows[0]]
    assert texts[:5] == ["iql", "self-normalised IIPS", "no: effective sample size 31 < 50", "–", "–"]


def test_reasons_are_grouped_without_their_figures(tmp_path: Any) -> None:
    refused = {"supported": False, "reason": "effective sample size 31 under 50.5"}
    found = estimates(
        tmp_path,
        refused,
        refused | {"agent": "cql", "reason": "effective sample size 7 under 50.5"},
        refused | {"agent": "bc", "estimator": "sips"},
        {"agent": "random"},
    )
    assert unsupported_estimates(found) == [
        ("Off-policy, self-normalised IIPS: cql and iql", "effective sample size … under …")
    ]


def test_only_supported_estimates_are_drawn_with_their_intervals(tmp_path: Any) -> None:
    found = estimates(tmp_path, {}, {"agent": "cql", "supported": False, "reason": "no overlap"}, {"estimator": "ips"})
    chart = off_policy(found, NO_BINS, NO_PROOFS).chart
    assert chart is not None
    (trace,) = chart.figure["data"]
    assert (trace["name"], trace["text"], trace["x"]) == ("self-normalised IIPS", ["iql"], [1.2])
    assert trace["error_x"]["array"] == pytest.approx([0.2])


@pytest.mark.parametrize(
    ("propensities", "pool", "words"),
    [
        ("logged", "logged", ("are used as they are", "is logged, too")),
        ("fitted", "sampled", ("a behaviour policy was fitted", "were sampled to stand for it")),
        ("logged by slot", "catalogue", ("not given the slots above it", "the whole catalogue")),
    ],
)
def test_words_say_where_propensities_and_candidates_come_from(
    propensities: str, pool: str, words: tuple[str, str], tmp_path: Any
) -> None:
    told = off_policy(estimates(tmp_path, {"propensities": propensities, "pool": pool}), NO_BINS, NO_PROOFS).words
    assert [word in sentence for word, sentence in zip(words, told, strict=False)] == [True, True]
    assert "temperature 1.00" in told[2]


def test_proofs_are_told_as_claims_and_counted() -> None:
    claim = {"claim": "coverage", "estimator": "iips", "target": "near", "value": 0.94, "least": 0.9, "most": 0.98,
             "holds": True}  # fmt: skip
    proofs = table("ope_proof", [claim, claim | {"claim": "whole_pages_refused", "holds": False}])
    shown = off_policy(table("ope", []), NO_BINS, proofs)
    assert shown.proofs is not None
    assert [row[0].text for row in shown.proofs.rows] == ["95 % intervals cover the truth", "Whole pages refused"]
    assert shown.proved == "1 of 2 claims hold."


def test_bins_of_the_behaviour_policy_are_drawn_in_their_order() -> None:
    bins = table("ope_calibration", [{"bin": k, "predicted": k / 10, "observed": k / 9, "count": 5} for k in (3, 1, 2)])
    chart = off_policy(table("ope", []), bins, NO_PROOFS).calibration
    assert chart is not None
    assert chart.figure["data"][0]["x"] == pytest.approx([0.1, 0.2, 0.3])


def test_nothing_estimated_is_nothing_shown(tmp_path: Any) -> None:
    shown = off_policy(estimates(tmp_path), NO_BINS, NO_PROOFS)
    assert (shown.words, shown.chart, shown.table, shown.every, shown.calibration, shown.proofs) == (
        [], None, None, None, None, None)  # fmt: skip
