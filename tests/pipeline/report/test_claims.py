from typing import Any

from pipeline.report.claims import agreement_table, comparisons_table, topics, unsupported_table
from tests.published import table

COMPARISON = {
    "agent": "iql", "against": "iql_discount_0", "control": "discount_0", "leg": "rollout", "setting": "truth",
    "metric": "return", "value": 7.1, "against_value": 6.4, "difference": 0.7, "difference_low": 0.5,
    "difference_high": 0.9, "effect_size": 0.31, "share_better": 0.62, "p_value": 0.0002, "p_adjusted": 0.012,
    "family": "controls", "n": 800, "users": 800, "seeds": 3, "seed_low": -0.1, "seed_high": 1.2,
}  # fmt: skip


def rows(name: str, *found: dict[str, Any]) -> list[dict[str, Any]]:
    return list(table(name, found).to_pylist())


def verdict(name: str, subject: str, holds: bool | None, headline: str, reason: str) -> dict[str, Any]:
    return {"verdict": name, "subject": subject, "holds": holds, "headline": headline, "reason": reason}


def test_verdicts_are_grouped_by_question_with_many_agents_in_a_table() -> None:
    agents = ("bc", "cql", "iql", "td3_bc")
    found = topics(
        rows(
            "verdicts",
            verdict("rl_helps", "", True, "RL helps", "0.7 above"),
            *(verdict("rl_helps", agent, False, f"{agent} does not", "0.1 below") for agent in agents),
            verdict("needs_rl", "truth", None, "Open", "no judge"),
        )
    )
    assert [topic.question for topic in found] == ["Does RL help?", "Does this data need RL at all?"]
    assert [(claim.answer, claim.headline) for topic in found for claim in topic.claims] == [
        ("yes", "RL helps"), ("open", "Open")]  # fmt: skip
    assert found[0].table is not None
    assert [row[0].text for row in found[0].table.rows] == list(agents)
    assert [cell.text for cell in found[0].table.rows[2]] == ["iql", "no", "iql does not", "0.1 below"]
    assert found[1].table is None


def test_a_question_that_is_not_known_is_still_asked() -> None:
    (found,) = topics(rows("verdicts", verdict("has_drifted", "", False, "No", "")))
    assert found.question == "Has drifted?"


def test_a_comparison_shows_its_size_its_adjusted_p_and_the_spread_of_its_seeds() -> None:
    shown = comparisons_table(rows("comparisons", COMPARISON))
    assert shown is not None
    (cells,) = shown.rows
    assert [(cell.text, cell.note) for cell in cells] == [
        ("iql", ""),
        ("iql_discount_0", "itself without a future"),
        ("True value", ""),
        ("7.10", "n = 800"),
        ("6.40", ""),
        ("+0.700", "[0.500, 0.900]"),
        ("p = 0.012", "p < 0.001 alone"),
        ("0.310", ""),
        ("62.0 %", ""),
        ("3", "−0.100 to +1.20"),
    ]


def test_missing_figures_of_a_comparison_are_dashes() -> None:
    bare = {name: COMPARISON[name] for name in ("agent", "against", "control", "leg", "setting", "metric")}
    shown = comparisons_table(rows("comparisons", bare))
    assert shown is not None
    assert [cell.text for cell in shown.rows[0][3:]] == ["–", "–", "–", "p –", "–", "–", "–"]


def test_agreement_names_the_columns_as_the_leaderboard_does() -> None:
    row = {"first_leg": "rollout", "first_setting": "truth", "second_leg": "rerank", "second_setting": "paged",
           "agents": 8, "tau": 0.5, "p_value": 0.1, "opposed": 2}  # fmt: skip
    shown = agreement_table(rows("agreement", row, row | {"tau": None, "p_value": None, "agents": 2}))
    assert shown is not None
    assert [cell.text for cell in shown.rows[0]] == ["True value", "NDCG@20, paged", "0.500", "p = 0.100", "8", "2"]
    assert (shown.rows[1][2].text, shown.rows[1][2].note) == ("–", "too few agents in common")


def test_all_that_is_not_supported_stands_in_one_table_with_its_reason() -> None:
    shown = unsupported_table(
        {"ope": "no candidates are logged"},
        ["rnn (train side) fails click ece."],
        [("Off-policy, SIPS: iql and cql", "no overlap")],
        rows(
            "verdicts",
            verdict("rl_helps", "", None, "No verdict: two seeds", "Three are needed."),
            verdict("rl_helps", "iql", None, "No verdict on iql", "+0.3"),
            verdict("needs_rl", "truth", True, "It does", "0.9"),
            verdict("needs_rl", "judge/rnn/natural", None, "No verdict in rnn", "One user."),
        ),
    )
    assert [[cell.text for cell in row] for row in shown.rows] == [
        ["Leg: ope", "No candidates are logged."],
        ["User model", "rnn (train side) fails click ece."],
        ["Off-policy, SIPS: iql and cql", "no overlap"],
        ["Does RL help?", "No verdict: two seeds. Three are needed."],
        ["Does this data need RL at all?", "No verdict in rnn. One user."],
    ]


def test_tables_of_no_rows_are_left_out() -> None:
    assert (topics([]), comparisons_table([]), agreement_table([])) == ([], None, None)
