from typing import Any

import pytest

from pipeline.report.board import Board
from pipeline.report.verdict import missing_controls, verdict
from tests.published import demo_tables, table

SUPERVISED = {"lambdamart": 5.0, "gru4rec": 5.5, "sasrec": 5.2}
CONTROLS = {"iql_discount_0": 5.1, "greedy_simulator": 5.0, **SUPERVISED}


def board(returns: dict[str, float], ope: dict[str, float]) -> Board:
    rows = [("rollout", "judge/attention/natural", "return", returns), ("ope", "snips", "value", ope)]
    return Board(
        table(
            "leaderboard",
            [
                {"agent": agent, "leg": leg, "setting": setting, "metric": metric, "value": value,
                 "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 100, "seeds": 5}
                for leg, setting, metric, values in rows for agent, value in values.items()
            ],
        )
    )  # fmt: skip


def compare(returns: dict[str, float], standard_error: float) -> Any:
    return lambda a, b: [
        {"leg": "rollout", "setting": "judge/attention/natural", "metric": "return",
         "difference": returns[a] - returns[b], "standard_error": standard_error}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("iql", "standard_error", "ope_of_iql", "headline"),
    [
        (6.0, 0.05, 6.0, "RL helps here: iql"),
        (6.0, 0.30, 6.0, "RL is not shown to help here"),  # 0.5 above the best supervised, p = 0.1
        (5.3, 0.01, 6.0, "RL is not shown to help here"),  # above discount 0, below the best supervised
        (6.0, 0.05, 4.0, "RL is not shown to help here"),  # off-policy evaluation contradicts
        (6.0, 0.05, 5.4, "RL helps here: iql"),  # it puts iql lower, but the intervals overlap
        (6.0, 0.24, 6.0, "RL is not shown to help here"),  # p = 0.04 for each, 0.025 needed for two comparisons
    ],
)
def test_rl_helps_only_by_the_rule(iql: float, standard_error: float, ope_of_iql: float, headline: str) -> None:
    returns = {"iql": iql, **CONTROLS}
    found = board(returns, {"iql": ope_of_iql, "gru4rec": 5.5, "iql_discount_0": 4.15})
    assert verdict(found, {}, compare(returns, standard_error)).headline == headline


def test_without_the_controls_there_is_no_verdict_and_what_is_missing_is_named() -> None:
    found = verdict(Board(demo_tables()["leaderboard"]), {"ope": "no overlap"}, compare({}, 1))
    assert found.headline == "No verdict: controls not run"
    for missing in (
        "discount 0",
        "lambdamart, gru4rec and sasrec",
        "greedy ranker",
        "off-policy estimates (no overlap)",
    ):
        assert missing in found.paragraph
    assert "roll-outs in an evaluation simulator" not in found.paragraph


def test_what_was_measured_is_said_with_intervals_also_without_a_verdict() -> None:
    paragraph = verdict(Board(demo_tables()["leaderboard"]), {}, compare({}, 1)).paragraph
    assert "the best agent on trial is goalrec_off with 5.95 [5.71, 6.18]" in paragraph
    assert "significantly above it (p < 0.001, Holm over agents)" in paragraph
    assert "looking ahead changes the value by +17 % in this shop" in paragraph


def test_a_missing_leg_is_a_missing_control() -> None:
    missing = missing_controls(board({"iql": 6.0, **CONTROLS}, {}), {"ope": "propensities were not logged"})
    assert missing == ["off-policy estimates (propensities were not logged)"]


def test_an_empty_leaderboard_claims_nothing() -> None:
    assert "Nothing was measured yet" in verdict(board({}, {}), {}, compare({}, 1)).paragraph
