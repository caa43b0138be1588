import numpy as np
import pyarrow as pa
import pytest

from pipeline.report.board import Board, Column, names, role
from pipeline.report.format import interval, number, p_value, signed
from pipeline.report.tables import leaderboard_table, plain_table, terminal_table
from tests.published import HOSTILE, REFERENCE, demo_tables, table

TRUTH = Column("rollout", "truth", "return")
PAGED = Column("rerank", "paged", "ndcg_reward_20")


def board(*rows: tuple[str, Column, float, float]) -> Board:
    """Agents with a value and half an interval."""
    return Board(
        table(
            "leaderboard",
            [
                {"agent": agent, "value": value, "ci_low": value - half, "ci_high": value + half, "n": 9, "seeds": 1,
                 **column._asdict()}
                for agent, column, value, half in rows
            ],
        )
    )  # fmt: skip


def test_agents_stand_best_first_and_those_without_a_true_value_last() -> None:
    found = Board(demo_tables()["leaderboard"])
    assert found.agents[:3] == ["oracle_farsighted", "oracle_myopic", "goalrec_off"]
    assert found.agents[-2:] == ["ideal", "logged_order"]
    assert found.reference == REFERENCE
    assert [column.label for column in found.columns] == [
        "True value",
        "Return in attention",
        "NDCG@20, paged",
        "NDCG@20, one-shot",
        "MAP, paged",
        "MAP, one-shot",
    ]


def test_kendall_tau_counts_the_pairs_of_the_agents_in_both() -> None:
    # Of the six pairs of a, b, c, d five agree and one (b, c) does not; only the roll-out knows e.
    found = board(
        *[(agent, TRUTH, value, 0.1) for agent, value in zip("abcde", (4, 3, 2, 1, 9), strict=True)],
        *[(agent, PAGED, value, 0.01) for agent, value in zip("abcd", (0.4, 0.2, 0.3, 0.1), strict=True)],
    )
    (agreement,) = found.agreements()
    assert (agreement.n, agreement.tau) == (4, pytest.approx((5 - 1) / 6))


def test_two_agents_in_common_are_too_few_for_a_correlation() -> None:
    found = board(("a", TRUTH, 1, 0), ("b", TRUTH, 2, 0), ("a", PAGED, 0.1, 0), ("b", PAGED, 0.2, 0))
    (agreement,) = found.agreements()
    assert (agreement.n, agreement.tau, agreement.p_value) == (2, None, None)


def test_legs_disagree_only_where_both_intervals_are_apart() -> None:
    found = board(
        ("a", TRUTH, 3, 0.1), ("b", TRUTH, 2, 0.1), ("c", TRUTH, 1.9, 0.1),
        ("a", PAGED, 0.1, 0.01), ("b", PAGED, 0.2, 0.01), ("c", PAGED, 0.5, 0.01),
    )  # fmt: skip
    assert found.disagreements(TRUTH, PAGED) == [("a", "b"), ("a", "c")]
    assert found.disagreements(PAGED, TRUTH) == [("b", "a"), ("c", "a")]


def test_a_value_that_is_not_a_number_is_missing_and_not_last() -> None:
    found = board(("a", TRUTH, float("nan"), 0), ("a", PAGED, 0.2, float("nan")), ("b", TRUTH, 1, 0.1))
    assert found.get("a", TRUTH) is None
    estimate = found.get("a", PAGED)
    assert estimate is not None
    assert estimate.interval is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (float("nan"), "–"), (0.0, "0.000"), (0.12345, "0.123"), (0.9999, "1.00"), (9.876, "9.88"),
        (-0.5, "−0.500"), (1234.5, "1,234"), (12345, "12,345"), (7, "7"), (0.00001, "1.0e-05"),
    ],
)  # fmt: skip
def test_numbers_read_by_their_size(value: float | None, text: str) -> None:
    assert number(value) == text


def test_signs_intervals_and_p_values_read_as_in_a_paper() -> None:
    assert [signed(0.5), signed(-0.5), signed(None)] == ["+0.500", "−0.500", "–"]
    assert [interval(0.1, 0.2), interval(None, 0.2), interval(9, 10.25, 2)] == ["[0.100, 0.200]", "", "[9, 10.25]"]
    assert [p_value(0.00001), p_value(0.0312), p_value(None)] == ["p < 0.001", "p = 0.031", "p –"]


def test_names_are_listed_as_in_a_sentence() -> None:
    assert [names([]), names("a"), names("abc"), names("abcd", 2)] == ["none", "a", "a, b and c", "a, b and 2 more"]


def test_roles_tell_ceilings_and_the_reference_from_agents_on_trial() -> None:
    assert [role("popularity", "popularity"), role("ideal", "popularity"), role("iql", "popularity")] == [
        "reference", "ceiling: sees the labels", ""]  # fmt: skip


def test_the_terminal_table_is_aligned_with_the_best_agent_first_and_the_reference_marked() -> None:
    lines = terminal_table(demo_tables()["leaderboard"]).splitlines()
    grid = lines[: lines.index("")]
    assert len({len(line) for line in grid}) == 1
    assert grid[0].split("  ")[0] == "agent"
    assert [line.split("  ")[0].strip() for line in grid[2:5]] == ["oracle_farsighted", "oracle_myopic", "goalrec_off"]
    (marked,) = [line for line in grid if " * " in line]
    assert marked.startswith(REFERENCE)
    (popularity,) = [
        row for row in demo_tables()["leaderboard"].to_pylist()
        if (row["agent"], row["setting"], row["metric"]) == (REFERENCE, "truth", "return")
    ]  # fmt: skip
    half = (popularity["ci_high"] - popularity["ci_low"]) / 2
    assert f"{popularity['value']:.2f} ± {half:.2f}" in marked
    assert "one-shot" in grid[0]
    assert grid[-1].split()[1] == "-"


def test_the_terminal_table_of_no_rows_says_so() -> None:
    assert terminal_table(table("leaderboard", [])) == "The leaderboard has no rows yet."


def test_bars_lie_on_the_scale_of_their_column() -> None:
    found = leaderboard_table(board(("a", TRUTH, 3, 1), ("b", TRUTH, 8, 2)))
    assert [row[1].bar for row in found.rows] == [(50.0, 75.0, 100.0), (0.0, 12.5, 25.0)]


def test_a_plain_table_shows_every_kind_of_value() -> None:
    found = plain_table(
        "t",
        pa.table({"a": [1200], "b": [True], "c": ["x"], "d": pa.nulls(1)}),
        {"a": "A", "b": "B", "c": "C", "d": "D"},
    )
    assert [cell.text for cell in found.rows[0]] == ["1,200", "yes", "x", "–"]
    assert [cell.text for cell in found.head] == ["A", "B", "C", "D"]


def test_the_terminal_and_the_report_order_agents_alike() -> None:
    published = demo_tables()["leaderboard"]
    shuffled = published.take(np.random.default_rng(0).permutation(published.num_rows))
    assert Board(shuffled).agents == Board(published).agents
    assert HOSTILE in terminal_table(shuffled)


def test_what_sums_of_floats_leave_of_nothing_is_nothing() -> None:
    assert (number(8.9e-18), signed(8.9e-18), signed(-8.9e-18)) == ("0.000", "0.000", "0.000")
    assert (number(4.1e-4), signed(4.1e-4)) == ("4.1e-04", "+4.1e-04")
