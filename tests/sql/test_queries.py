from datetime import date
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.results import build_results, query, query_names
from tests.published import REFERENCE, RERANKED, ROLLED_OUT, SEEDED, SEES_THE_TRUTH, demo_tables, publish, table

NUMBER = {"agent": "goalrec_off", "leg": "rerank", "setting": "paged", "metric": "map"}
PARAMS: dict[str, dict[str, Any]] = {
    "agreement_rows": {
        "first_leg": "rollout",
        "first_setting": "truth",
        "second_leg": "rerank",
        "second_setting": "paged",
    },
    "calibration_rows": {"bin": 0},
    "column_scores": {name: NUMBER[name] for name in ("leg", "setting", "metric")},
    "coverage_rows": {"agent": "goalrec_off", "setting": "judge/attention/natural"},
    "data_rows": {"subject": "events", "name": "click", "period": ""},
    "difference_rows": NUMBER | {"against": REFERENCE},
    "gate_rows": {"simulator": "rnn", "head": "click"},
    "length_rows": {"measure": "sessions_of_a_user"},
    "lineage": NUMBER,
    "ope_rows": {"agent": "goalrec_off"},
    "ope_proof_rows": {"claim": "coverage", "estimator": "rips"},
    "paired_difference": {"a": "goalrec_off", "b": "popularity"},
    "rows_behind": NUMBER,
    "reject_rows": {"reason": "cannot read … as a time"},
    "scored_rows": {"mode": "paged"},
    "split_rows": {"split": "train"},
    "slice_rows": {"agent": "goalrec_off", "mode": "paged", "dimension": "user", "slice": "new"},
    "training_rows": {"agent": "goalrec_off"},
    "validation_rows": {"agent": "goalrec_off", "trial": "", "step": 200},
    "worst_sessions": {"agent": "goalrec_off"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    build_results(publish(folder / "data", demo_tables()), folder / "results.duckdb")
    return folder / "results.duckdb"


def rows(results: Path, name: str) -> list[dict[str, Any]]:
    return list(query(results, name, PARAMS.get(name)).to_pylist())


@pytest.fixture(scope="module")
def rerank() -> pd.DataFrame:
    return demo_tables()["rerank"].to_pandas()


@pytest.mark.parametrize("name", query_names())
def test_every_query_answers_and_also_before_there_is_any_row(name: str, results: Path, tmp_path: Path) -> None:
    assert rows(results, name)
    build_results({}, tmp_path / "results.duckdb")
    without_rows = rows(tmp_path / "results.duckdb", name)
    assert without_rows == [] or name == "dictionary"


@pytest.mark.parametrize("name", query_names())
def test_every_query_answers_the_same_twice(name: str, results: Path) -> None:
    assert query(results, name, PARAMS.get(name)).equals(query(results, name, PARAMS.get(name)))


def test_the_leaderboard_holds_the_main_metrics_with_the_best_agent_first(results: Path) -> None:
    board = pd.DataFrame(rows(results, "leaderboard"))
    settings = board[["leg", "setting", "metric"]].drop_duplicates().to_numpy().tolist()
    assert settings == [
        ["rollout", "truth", "return"],
        ["rollout", "judge/attention/natural", "return"],
        ["rerank", "paged", "ndcg_reward_20"],
        ["rerank", "oneshot", "ndcg_reward_20"],
        ["rerank", "paged", "map"],
        ["rerank", "oneshot", "map"],
    ]
    assert board.agent[0] == "oracle_farsighted"
    assert len(board) == 2 * len(ROLLED_OUT) - len(SEES_THE_TRUTH) + 4 * len(RERANKED)
    published = demo_tables()["leaderboard"].to_pandas().set_index(["agent", "setting", "metric"])
    for row in board.itertuples():
        assert row.value == published.loc[(row.agent, row.setting, row.metric), "value"]


def test_paired_differences_match_a_reference_in_numpy(results: Path, rerank: pd.DataFrame) -> None:
    answer = next(r for r in rows(results, "paired_difference") if (r["setting"], r["metric"]) == ("paged", "map"))
    scored = rerank[(rerank["mode"] == "paged") & (rerank.status == "scored")]
    means = scored.groupby(["agent", "session_id", "user_key"])["map"].mean()
    difference = (means["goalrec_off"] - means["popularity"]).reset_index()
    residuals = difference["map"] - difference["map"].mean()
    clusters = residuals.groupby(difference.user_key).sum().to_numpy()
    error = np.sqrt((clusters**2).sum() * len(clusters) / (len(clusters) - 1)) / len(difference)
    half = NormalDist().inv_cdf(0.975) * error
    assert (answer["n"], answer["users"]) == (54, len(clusters))
    assert answer["difference"] == pytest.approx(difference["map"].mean())
    assert answer["standard_error"] == pytest.approx(error)
    assert answer["difference_low"] == pytest.approx(difference["map"].mean() - half)
    assert answer["difference_high"] == pytest.approx(difference["map"].mean() + half)
    assert answer["share_better"] == pytest.approx((difference["map"] > 0).mean())
    assert answer["value_a"] - answer["value_b"] == pytest.approx(answer["difference"])


def test_paired_differences_of_rollouts_pair_users(results: Path) -> None:
    answer = next(r for r in rows(results, "paired_difference") if (r["setting"], r["metric"]) == ("truth", "return"))
    rollout = demo_tables()["rollout"].to_pandas()
    means = rollout[rollout.setting == "truth"].groupby(["agent", "user_key"])["return"].mean()
    assert answer["difference"] == pytest.approx((means["goalrec_off"] - means["popularity"]).mean())
    assert answer["n"] == answer["users"] == 40


def test_the_front_is_what_no_other_point_beats_in_clicks_purchases_and_depth(results: Path) -> None:
    tables = {name: demo_tables()[name].to_pandas() for name in ("goal_sweep", "rollout")}
    sweep = tables["goal_sweep"]
    others = tables["rollout"].merge(sweep[["setting", "user_key"]].drop_duplicates())
    episodes = pd.concat([sweep, others[others.agent != "goalrec_off"].assign(goal="")])
    wished = ["clicks", "purchases", "depth"]
    by_user = episodes.groupby(["setting", "agent", "goal", "user_key"])[[*wished, "return"]].mean()
    points = by_user.groupby(["setting", "agent", "goal"]).agg(["mean", "std", "size"])
    answer = pd.DataFrame(rows(results, "pareto")).set_index(["setting", "agent", "goal"])
    assert len(answer) == len(points) == 2 * (4 + len(ROLLED_OUT) - 1) - len(SEES_THE_TRUTH)
    for key, row in answer.iterrows():
        assert (row["users"], row["seeds"]) == (30, 2 if key[1] in SEEDED else 1)
        for metric in [*wished, "return"]:
            mean, deviation, n = points.loc[key, metric]
            half = NormalDist().inv_cdf(0.975) * deviation / np.sqrt(n)
            assert row[[metric, f"{metric}_low", f"{metric}_high"]].tolist() == pytest.approx(
                [mean, mean - half, mean + half], rel=1e-6
            )
        rivals = answer[[not agent.startswith("oracle") for agent in answer.index.get_level_values("agent")]]
        better = rivals.loc[[key[0]], wished].to_numpy() - row[wished].to_numpy(dtype=float)
        beaten = bool(((better >= 0).all(axis=1) & (better > 0).any(axis=1)).any())
        assert row["on_front"] == (None if key[1].startswith("oracle") else not beaten)
    assert set(answer.on_front) == {True, False, None}


def test_the_error_of_a_simulator_is_its_value_minus_the_truth(results: Path) -> None:
    answer = pd.DataFrame(rows(results, "simulator_error")).set_index(["simulator", "agent"])
    means = demo_tables()["rollout"].to_pandas().groupby(["simulator", "agent"])["return"].mean()
    assert set(answer.index.get_level_values(0)) == {"rnn", "attention"}
    for (simulator, agent), row in answer.iterrows():
        truth = means["truth", agent]
        assert row["error"] == pytest.approx(means[simulator, agent] - truth)
        assert row["relative_error"] == pytest.approx(row["error"] / truth)
        assert row["passed_gate"] == (simulator == "attention")
    in_judge = answer.loc["attention"]
    assert in_judge.sort_values("value", ascending=False)["rank_in_simulator"].is_monotonic_increasing


def test_the_drop_is_from_the_train_side_to_the_judge(results: Path) -> None:
    means = demo_tables()["rollout"].to_pandas().groupby(["simulator", "agent"])["return"].mean()
    for row in rows(results, "simulator_drop"):
        assert (row["train_simulator"], row["judge_simulator"]) == ("rnn", "attention")
        trained, judged = means["rnn", row["agent"]], means["attention", row["agent"]]
        assert row["relative_drop"] == pytest.approx(judged / trained - 1)


def test_roll_outs_are_told_by_world_and_agent(results: Path) -> None:
    answer = pd.DataFrame(rows(results, "rollouts")).set_index(["setting", "agent"])
    rollout = demo_tables()["rollout"].to_pandas()
    for (setting, agent), row in answer.iterrows():
        found = rollout[(rollout.setting == setting) & (rollout.agent == agent)]
        assert row["return"] == pytest.approx(found["return"].mean())
        assert row["ctr"] == pytest.approx(found["clicks"].sum() / (found["clicks"] / found["ctr"]).sum())
        assert row["episodes"] == len(found)
    assert answer.loc["judge/attention/natural", "catalogue_coverage"].eq(0.5).all()


def test_one_user_gives_no_standard_error(tmp_path: Path) -> None:
    episodes = [{"setting": "truth", "agent": agent, "seed": 1, "user_key": 1, "return": value, "depth": 1.0}
                for agent, value in (("a", 2.0), ("b", 1.0))]  # fmt: skip
    build_results(publish(tmp_path, {"rollout": table("rollout", episodes)}), tmp_path / "results.duckdb")
    (_, answer) = query(tmp_path / "results.duckdb", "paired_difference", {"a": "a", "b": "b"}).to_pylist()
    assert (answer["difference"], answer["standard_error"], answer["difference_low"]) == (1.0, None, None)


def test_the_worst_sessions_are_those_with_the_largest_loss(results: Path, rerank: pd.DataFrame) -> None:
    scored = rerank[(rerank["mode"] == "paged") & (rerank.status == "scored")]
    means = scored.groupby(["agent", "session_id"]).ndcg_reward_20.mean()
    losses = (means["goalrec_off"] - means[REFERENCE]).sort_values()
    answer = rows(results, "worst_sessions")
    assert [row["session_id"] for row in answer] == losses.index[:20].tolist()
    np.testing.assert_allclose([row["difference"] for row in answer], losses[:20])
    assert {row["reference"] for row in answer} == {REFERENCE}
    assert all(row["start_ts"] is not None for row in answer)


def test_provenance_names_the_origin_of_every_figure(results: Path) -> None:
    answer = rows(results, "provenance")
    assert len(answer) == demo_tables()["leaderboard"].num_rows
    assert {(row["data_hash"], row["commit"]) for row in answer} == {("d4ta" * 4, "0123abcd")}


def test_seed_variance_is_the_spread_of_the_seeds_means(results: Path, rerank: pd.DataFrame) -> None:
    answer = {(row["agent"], row["setting"]): row for row in rows(results, "seed_variance")}
    scored = rerank[(rerank["mode"] == "paged") & (rerank.status == "scored") & (rerank.agent == "goalrec_off")]
    means = scored.groupby("seed").ndcg_reward_20.mean()
    found = answer["goalrec_off", "paged"]
    assert (found["lowest"], found["highest"]) == (pytest.approx(means.min()), pytest.approx(means.max()))
    assert found["seed_sd"] == pytest.approx(means.std(ddof=1))
    assert found["ratio"] == pytest.approx(found["seed_sd"] / found["user_half_width"])
    assert answer["random", "paged"]["seed_sd"] is None


def test_slices_part_the_scored_sessions(results: Path, rerank: pd.DataFrame) -> None:
    answer = pd.DataFrame(rows(results, "slices"))
    counts = answer.groupby(["agent", "mode", "dimension"]).n.sum()
    assert (counts == 54).all()
    new = answer[(answer.agent == "random") & (answer["mode"] == "paged") & (answer["slice"] == "new")]
    of_new = rerank[(rerank.agent == "random") & (rerank["mode"] == "paged") & (rerank.user_key % 3 == 0)]
    assert new.ndcg_reward_20.item() == pytest.approx(of_new.ndcg_reward_20.mean())


def test_sessions_that_measure_nothing_are_counted(results: Path) -> None:
    assert rows(results, "sessions_scored") == [
        {"mode": mode, "sessions": 60, "scored": 54, "no_positive": 6, "all_positive": 0}
        for mode in ("paged", "oneshot")
    ]


def test_reasons_of_refused_rows_lose_what_they_quote(results: Path) -> None:
    assert rows(results, "rejects_by_reason") == [{"reason": "cannot read … as a time", "n_rows": 3, "files": 1}]


def test_events_are_counted_by_day_and_type(results: Path) -> None:
    answer = rows(results, "events_by_day")
    assert sum(row["events"] for row in answer) == demo_tables()["events"].num_rows
    assert (str(answer[0]["event_date"]), answer[0]["event_type"], answer[0]["events"]) == ("2024-01-01", "click", 5)


def test_the_data_overview_is_in_the_reports_order_and_keeps_the_instants(results: Path) -> None:
    answer = rows(results, "data_overview")
    assert [row["name"] for row in answer] == [
        "first_event", "events", "positives_share", "shown_set_is_constructed", "raw_files", "rows_in"
    ]  # fmt: skip
    assert answer[0] == {"section": "overview", "name": "first_event", "value": None, "instant": "2024-01-01 00:00:00"}
    assert answer[-1] == {"section": "ingest", "name": "rows_in", "value": 123, "instant": None}


def test_periods_come_in_order_with_all_their_subjects(results: Path) -> None:
    answer = rows(results, "data_by_period")
    assert [str(row["period"]) for row in answer] == ["2024-01-01"] * 8 + ["2024-01-02"] * 9
    assert {row["subject"] for row in answer} == {"events", "feedback", "sessions", "users", "items"}
    assert answer[0] == {"period": date(2024, 1, 1), "subject": "events", "name": "impression", "n": 58}


def test_feedback_is_added_up_over_the_periods(results: Path) -> None:
    assert rows(results, "data_feedback") == [
        {"feedback": "skip", "impressions": 80, "share": 0.8},
        {"feedback": "click", "impressions": 20, "share": 0.2},
    ]


def test_quantiles_stand_beside_each_other_and_missing_ones_are_null(results: Path) -> None:
    sessions, users = rows(results, "data_spread")
    assert (sessions["measure"], sessions["mean"], sessions["median"]) == ("impressions_of_a_session", 2.5, 2)
    assert (sessions["highest"], sessions["p90"]) == (9, None)
    assert (users["measure"], users["mean"]) == ("sessions_of_a_user", 1.5)


def test_session_lengths_are_those_of_sessions_alone(results: Path) -> None:
    answer = rows(results, "data_session_lengths")
    assert [(row["length"], row["sessions"]) for row in answer] == [("1", 15), ("2–3", 40), ("8–15", 5)]
    assert [row["share"] for row in answer] == pytest.approx([15 / 60, 40 / 60, 5 / 60])


def test_popularity_cold_start_and_coverage_are_one_row_a_kind(results: Path) -> None:
    assert rows(results, "data_popularity") == [
        {"kind": "impressions", "top_1_percent_share": 0.25, "top_10_percent_share": None, "gini": 0.25},
        {"kind": "positives", "top_1_percent_share": None, "top_10_percent_share": None, "gini": 0.5},
    ]
    assert rows(results, "data_cold_start") == [
        {"name": "cut_off", "value": None, "instant": "2024-01-05 00:00:00"},
        {"name": "cold_users_share", "value": 0.125, "instant": None},
    ]
    impressions, clicks = rows(results, "data_coverage")
    assert (impressions["event_type"], impressions["propensity"]) == ("impression", 0.75)
    assert (clicks["event_type"], clicks["session_id"], clicks["request_id"]) == ("click", 0.5, None)


def test_learning_curves_average_the_seeds_of_a_step(results: Path) -> None:
    log = demo_tables()["training_log"].to_pandas()
    means = log.groupby(["agent", "metric", "step"])["value"].agg(["mean", "min", "max"])
    for row in rows(results, "learning_curves"):
        wanted = means.loc[(row["agent"], row["metric"], row["step"])]
        assert (row["value"], row["lowest"], row["highest"]) == pytest.approx(tuple(wanted))
        assert row["seeds"] == 2


def test_verdicts_come_in_the_reports_order(results: Path) -> None:
    answer = rows(results, "verdicts")
    assert [row["place"] for row in answer] == list(range(1, len(answer) + 1))
    assert answer[0]["headline"] == "No verdict: controls not run"
    assert answer[0]["holds"] is None


def test_comparisons_say_which_the_rule_accepts(results: Path) -> None:
    answer = rows(results, "comparisons")
    assert [(row["control"], row["setting"], row["better"]) for row in answer] == [
        ("discount_0", "truth", True),
        ("supervised", "truth", True),
        ("discount_0", "judge/attention/natural", False),  # p is 0.04, and 0.08 after Holm's correction
        ("supervised", "judge/attention/natural", False),
        ("reference", "paged", True),
    ]


def test_the_least_alike_columns_come_first(results: Path) -> None:
    assert [row["tau"] for row in rows(results, "agreement")] == [0.33, 1.0]


def test_decoders_are_told_as_a_share_of_looking_ahead(results: Path) -> None:
    answer = {(row["setting"], row["decoder"]): row for row in rows(results, "decoding")}
    decoded = demo_tables()["decoding"].to_pandas().groupby("decoder")["return"].mean()
    judge = {decoder: answer["judge/attention/natural", decoder] for decoder in decoded.index}
    for decoder, row in judge.items():
        assert row["share_of_lookahead"] == pytest.approx(decoded[decoder] / decoded["lookahead"])
        assert row["users"] == 40
    assert answer["truth", "oracle_farsighted"]["share_of_lookahead"] == 1
    assert answer["truth", "oracle_myopic"]["share_of_lookahead"] == pytest.approx(0.85, abs=0.01)


def test_the_items_behind_a_coverage_are_as_many_as_it_counts(results: Path) -> None:
    shown = pd.DataFrame(rows(results, "coverage_rows")).groupby("seed").item.nunique()
    assert set(shown) == {30}
