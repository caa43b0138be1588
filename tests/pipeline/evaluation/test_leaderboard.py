from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.evaluation.leaderboard import LEGS, leaderboard, leg_rows, measured, unit_means
from pipeline.evaluation.significance import (
    cluster_bootstrap,
    cluster_bootstraps,
    holm,
    paired_difference,
    paired_differences,
)
from pipeline.schemas import RERANK_METRICS, ROLLOUT_METRICS, SCHEMAS, empty
from tests.published import PROVENANCE, publish, table

RESAMPLES, SEED = 300, 9
SESSIONS, USERS = 50, 20
AGENTS = {"popularity": (0.4, (1,)), "goalrec": (0.5, (1, 2, 3)), "random": (0.3, (1, 2))}


def make_board(folder: Path, reference: str, *parts: pa.Table, **legs: pa.Table) -> pa.Table:
    """The leaderboard of published legs; of ``rerank`` also in several parts, as each agent publishes its own."""
    files = {leg: publish(folder, {leg: rows})[leg] for leg, rows in legs.items()}
    for number, part in enumerate(parts):
        files.setdefault("rerank", []).extend(publish(folder / str(number), {"rerank": part})["rerank"])
    rows = [leg_rows(leg, files.get(leg, []), reference, RESAMPLES, SEED) for leg in LEGS]
    return leaderboard(rows, PROVENANCE)


def by_pandas(table: pa.Table, leg: str, reference: str) -> pd.DataFrame:
    """The rows of a leg, without provenance, with all of its sessions in memory at once."""
    setting, unit, metrics = LEGS[leg]
    rows = table.to_pandas().assign(unit=lambda rows: rows[unit], setting=lambda rows: rows[setting])
    units = rows.groupby(["setting", "agent", "unit", "user_key"])[list(metrics)].mean().dropna(how="all")
    seeds = rows.groupby(["setting", "agent", "seed"])[list(metrics)].mean()
    found = []
    for (name, agent), own in units.groupby(["setting", "agent"]):
        own = own.droplevel(["setting", "agent"])
        a, b = own.align(units.loc[name, reference], join="inner", axis=0)
        users, both = (frame.index.get_level_values("user_key") for frame in (own, a))
        intervals = pd.DataFrame(map(vars, cluster_bootstraps(own.to_numpy(), users, RESAMPLES, SEED)))
        differences = pd.DataFrame(map(vars, paired_differences(a.to_numpy(), b.to_numpy(), both, RESAMPLES, SEED)))
        board = pd.DataFrame({"setting": name, "agent": agent, "metric": metrics, "leg": leg})
        board[["value", "ci_low", "ci_high"]] = intervals[["mean", "low", "high"]]
        board["n"] = own.notna().sum().to_numpy()
        board["users"] = [own[metric].dropna().index.get_level_values("user_key").nunique() for metric in metrics]
        board["seeds"], board["seed_sd"] = len(seeds.loc[name, agent]), seeds.loc[name, agent].std().to_numpy()
        board["against"] = None if agent == reference else reference
        columns = ["difference", "difference_low", "difference_high", "p_value"]
        board[columns] = differences[["mean", "low", "high", "p_value"]] if agent != reference else np.nan
        found.append(board)
    board = pd.concat(found)
    board["p_value"] = board.groupby(["setting", "metric"])["p_value"].transform(holm)
    return board


@pytest.fixture(scope="module")
def rerank() -> pa.Table:
    """Each tenth session has no positive; ``random`` was not run on sessions 40 to 49."""
    rng = np.random.default_rng(0)
    ease = rng.normal(0, 0.1, SESSIONS)
    rows = []
    for agent, (level, seeds) in AGENTS.items():
        for seed in seeds:
            for mode in ("oneshot", "paged"):
                for session in range(40 if agent == "random" else SESSIONS):
                    scored = session % 10 != 0
                    values = level + ease[session] + rng.normal(0.02 * seed, 0.1, len(RERANK_METRICS))
                    metrics = dict(zip(RERANK_METRICS, values.tolist(), strict=True)) if scored else {}
                    ids = {
                        "session_id": session,
                        "user_key": session % USERS,
                        "agent": agent,
                        "seed": seed,
                        "mode": mode,
                    }
                    rows.append(ids | metrics)
    return table("rerank", rows)


@pytest.fixture(scope="module")
def rollout() -> pa.Table:
    rng = np.random.default_rng(1)
    return table(
        "rollout",
        [
            {"setting": "truth", "agent": agent, "seed": seed, "user_key": user}
            | dict(zip(ROLLOUT_METRICS, (10 * level + rng.normal(0, 1, len(ROLLOUT_METRICS))).tolist(), strict=True))
            for agent, (level, seeds) in AGENTS.items()
            for seed in seeds
            for user in range(USERS)
        ],
    )


@pytest.fixture(scope="module")
def board(rerank: pa.Table, rollout: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("legs")
    found = make_board(folder, "popularity", rerank=rerank, rollout=rollout)
    assert found.schema == SCHEMAS["leaderboard"]
    return found.to_pandas().set_index(["leg", "setting", "agent", "metric"]).sort_index()


def test_there_is_one_row_an_agent_leg_setting_and_metric(board: pd.DataFrame) -> None:
    assert board.index.is_unique
    assert len(board) == len(AGENTS) * (2 * len(RERANK_METRICS) + len(ROLLOUT_METRICS))
    for name, value in PROVENANCE.items():
        assert set(board[name]) == {value}


def test_rows_read_agent_by_agent_are_those_of_all_at_once(
    board: pd.DataFrame, rerank: pa.Table, rollout: pa.Table
) -> None:
    wanted = pd.concat([by_pandas(rerank, "rerank", "popularity"), by_pandas(rollout, "rollout", "popularity")])
    wanted = wanted.set_index(["leg", "setting", "agent", "metric"]).sort_index()
    found = board[wanted.columns]
    pd.testing.assert_frame_equal(found, wanted.astype(found.dtypes), rtol=0, atol=1e-12)


def test_a_unit_is_a_session_with_its_seeds_averaged(rerank: pa.Table, tmp_path: Path) -> None:
    files = publish(tmp_path, {"rerank": rerank})["rerank"]
    with measured("rerank", files) as con:
        units = unit_means(con, "oneshot", "random")
    rows = rerank.to_pandas().query("agent == 'random' and mode == 'oneshot'")
    wanted = rows.groupby(["session_id", "user_key"])[list(RERANK_METRICS)].mean().dropna()
    np.testing.assert_allclose(units.to_numpy(), wanted.to_numpy(), rtol=0, atol=1e-12)
    assert units.index.tolist() == wanted.index.tolist()


def test_a_row_is_the_mean_over_sessions_of_the_mean_over_seeds(board: pd.DataFrame, rerank: pa.Table) -> None:
    rows = rerank.to_pandas().query("agent == 'goalrec' and mode == 'paged'")
    by_session = rows.groupby("session_id")["map"].mean().dropna()
    row = board.loc["rerank", "paged", "goalrec", "map"]
    users = by_session.index.to_numpy() % USERS
    interval = cluster_bootstrap(by_session.to_numpy(), users, 300, seed=9)
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx((interval.mean, interval.low, interval.high))
    assert row.value == pytest.approx(rows["map"].mean())
    assert (row.n, row.users, row.seeds) == (45, 18, 3)  # users 0 and 10 have unscored sessions only
    assert row.seed_sd == pytest.approx(rows.groupby("seed")["map"].mean().std())


def test_differences_are_paired_on_common_sessions_and_corrected_over_agents(
    board: pd.DataFrame, rerank: pa.Table
) -> None:
    rows = rerank.to_pandas().query("mode == 'oneshot'")
    sessions = rows.groupby(["agent", "session_id"])["mrr"].mean().unstack("agent").dropna()
    assert len(sessions) == 36
    users = sessions.index.to_numpy() % USERS
    raw = paired_difference(sessions["random"].to_numpy(), sessions["popularity"].to_numpy(), users, 300, seed=9)
    row = board.loc["rerank", "oneshot", "random", "mrr"]
    found = (row.difference, row.difference_low, row.difference_high)
    assert found == pytest.approx((raw.mean, raw.low, raw.high))
    wide = rows.query("agent != 'random'").groupby(["agent", "session_id"])["mrr"].mean().unstack("agent").dropna()
    other = paired_difference(
        wide["goalrec"].to_numpy(), wide["popularity"].to_numpy(), wide.index.to_numpy() % USERS, 300, seed=9
    )
    adjusted = holm([other.p_value, raw.p_value])
    column = board.xs(("rerank", "oneshot", "mrr"), level=("leg", "setting", "metric")).p_value
    assert (column["goalrec"], column["random"]) == pytest.approx(tuple(adjusted))
    assert raw.p_value < adjusted[1] or other.p_value < adjusted[0]


def test_the_reference_has_no_difference_and_one_seed_no_spread(board: pd.DataFrame) -> None:
    reference = board.xs("popularity", level="agent")
    assert (
        reference[["against", "difference", "difference_low", "difference_high", "p_value", "seed_sd"]]
        .isna()
        .all(axis=None)
    )
    assert (reference.seeds == 1).all()
    assert (board.drop("popularity", level="agent").against == "popularity").all()


def test_a_roll_out_is_paired_by_user(board: pd.DataFrame, rollout: pa.Table) -> None:
    row = board.loc["rollout", "truth", "goalrec", "return"]
    assert (row.n, row.users) == (USERS, USERS)
    means = rollout.to_pandas().groupby("agent")["return"].mean()
    assert row.difference == pytest.approx(means["goalrec"] - means["popularity"])


def test_without_the_reference_nothing_is_compared(rerank: pa.Table, tmp_path: Path) -> None:
    found = make_board(tmp_path, "bc", rerank=rerank).to_pandas()
    assert set(found.leg) == {"rerank"}
    assert found[["against", "difference", "p_value"]].isna().all(axis=None)
    assert found.value.notna().all()


def test_a_metric_without_values_says_n_0(tmp_path: Path) -> None:
    rows = [{"session_id": 1, "user_key": 1, "agent": agent, "seed": 1, "mode": "paged"} for agent in ("a", "b")]
    found = make_board(tmp_path, "a", rerank=table("rerank", rows))
    assert found["n"].to_pylist() == [0] * len(found)
    for column in ("value", "ci_low", "difference", "p_value"):
        assert found[column].null_count == len(found) == 2 * len(RERANK_METRICS)


def test_a_lone_user_has_a_mean_and_no_interval(tmp_path: Path) -> None:
    rows = [{"setting": "truth", "agent": agent, "seed": 1, "user_key": 4, "return": 2.0} for agent in ("a", "b")]
    found = make_board(tmp_path, "a", rollout=table("rollout", rows)).to_pandas()
    row = found.query("agent == 'b' and metric == 'return'").iloc[0]
    assert (row.value, row.difference, row.n) == (2, 0, 1)
    assert pd.isna([row.ci_low, row.p_value]).all()


def test_no_results_make_an_empty_leaderboard(tmp_path: Path) -> None:
    assert make_board(tmp_path, "a").equals(empty("leaderboard"))
    assert make_board(tmp_path, "a", rerank=empty("rerank")).equals(empty("leaderboard"))


def test_the_same_files_give_the_same_bytes_and_their_rows_have_no_order(rerank: pa.Table, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    shuffled = rerank.take(random.permutation(len(rerank)))
    half = len(rerank) // 2
    a = make_board(tmp_path / "a", "popularity", rerank)
    b = make_board(tmp_path / "b", "popularity", shuffled[:half], shuffled[half:])
    pd.testing.assert_frame_equal(a.to_pandas(), b.to_pandas(), rtol=1e-12)
    assert a.equals(make_board(tmp_path / "c", "popularity", rerank))


def test_legs_of_other_making_join_the_board(rerank: pa.Table, tmp_path: Path) -> None:
    rows = leg_rows("rerank", publish(tmp_path, {"rerank": rerank})["rerank"], "popularity", RESAMPLES, SEED)
    other = rows.head(3).assign(leg="ope", setting="page")
    found = leaderboard([rows, other], PROVENANCE).to_pandas()
    assert len(found) == len(rows) + 3
    assert found["leg"].tolist()[-3:] == ["ope"] * 3
    assert found["commit"].eq(PROVENANCE["commit"]).all()


def test_incomplete_provenance_is_refused() -> None:
    with pytest.raises(KeyError, match="versions"):
        leaderboard([], {k: v for k, v in PROVENANCE.items() if k != "versions"})
