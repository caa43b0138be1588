"""Paired comparisons of made-up agents, against a reference in numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.evaluation import comparisons as module
from pipeline.evaluation.comparisons import RULE, comparisons, on_trial, pairs
from pipeline.evaluation.significance import holm
from tests.published import table

USERS = 60
LEVELS = {"iql": 6.0, "iql_discount_0": 5.5, "sasrec": 5.0, "popularity": 4.0, "random": 3.0}
SEEDS = {"popularity": (1,), "sasrec": (1, 2)}


def episodes(levels: Mapping[str, float] = LEVELS, *settings: str) -> pa.Table:
    """Roll-outs of 3 seeds (but for SEEDS) in each setting."""
    rng = np.random.default_rng(3)
    taste = rng.normal(0, 1, USERS)
    return table(
        "rollout",
        [
            {"setting": setting, "agent": agent, "seed": seed, "user_key": user, "return": value}
            for setting in settings or ("truth",)
            for agent, level in levels.items()
            for seed in SEEDS.get(agent, (1, 2, 3))
            for user, value in enumerate((level + taste + rng.normal(0, 0.5, USERS)).tolist())
        ],
    )


def sessions() -> pa.Table:
    """Re-ranked sessions, two or three a user; every fifth is not scored."""
    rng = np.random.default_rng(4)
    rows: list[dict[str, Any]] = [
        {"session_id": session, "user_key": session % 25, "agent": agent, "seed": seed, "mode": mode,
         "ndcg_reward_20": None if session % 5 == 0 else level / 10 + float(rng.normal(0, 0.1))}
        for mode in ("oneshot", "paged")
        for agent, level in LEVELS.items()
        for seed in SEEDS.get(agent, (1, 2, 3))
        for session in range(60)
    ]  # fmt: skip
    return table("rerank", rows)


def compared(rerank: pa.Table, rollout: pa.Table, resamples: int = 500) -> pd.DataFrame:
    return comparisons(rerank, rollout, "popularity", resamples).to_pandas()


NONE = table("rerank", [])


def test_an_agent_is_on_trial_where_it_stands_beside_itself_without_a_future() -> None:
    assert on_trial(["iql_discount_0", "cql", "iql", "sasrec", "td3_bc_discount_0"]) == ["iql"]


def test_whom_an_agent_is_compared_with() -> None:
    agents = ["iql", "iql_discount_0", "bc", "greedy_simulator", "popularity", "random", "cql"]
    assert [(pair.against, pair.control) for pair in pairs(agents, "popularity")] == [
        ("iql_discount_0", "discount_0"),
        ("bc", "supervised"),
        ("greedy_simulator", "greedy_simulator"),
        ("popularity", "reference"),
    ]
    assert "iql" not in {pair.against for pair in pairs(agents, "iql")}  # nobody is his own reference


def test_seeds_are_averaged_first_and_users_are_paired() -> None:
    rollout = episodes()
    found = compared(NONE, rollout).set_index("against").loc["sasrec"]
    means = rollout.to_pandas().groupby(["agent", "user_key"])["return"].mean()
    difference = (means["iql"] - means["sasrec"]).to_numpy()
    assert found["value"] == pytest.approx(means["iql"].mean())
    assert found["against_value"] == pytest.approx(means["sasrec"].mean())
    assert found["difference"] == pytest.approx(difference.mean())
    half = 1.96 * difference.std(ddof=1) / USERS**0.5
    assert found["difference_high"] - found["difference_low"] == pytest.approx(2 * half, rel=0.1)
    assert found["effect_size"] == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert found["share_better"] == pytest.approx((difference > 0).mean())
    assert (found["n"], found["users"], found["seeds"]) == (USERS, USERS, 3)


def test_the_seeds_own_differences_are_to_the_same_seed_or_to_the_mean_where_there_is_none() -> None:
    rollout = episodes()
    found = compared(NONE, rollout).set_index("against").loc["sasrec"]
    means = rollout.to_pandas().groupby(["agent", "seed"])["return"].mean()
    ours, theirs = means["iql"], means["sasrec"]
    own = [ours[1] - theirs[1], ours[2] - theirs[2], ours[3] - theirs.mean()]
    assert (found["seed_low"], found["seed_high"]) == pytest.approx((min(own), max(own)))


def test_only_sessions_that_both_have_are_compared() -> None:
    rerank = sessions()
    rows = rerank.to_pandas()
    missing = (rows["agent"] == "sasrec") & (rows["session_id"] < 10)
    kept = pa.Table.from_pandas(rows[~missing], rerank.schema, preserve_index=False)
    found = compared(kept, episodes())
    paged = found[(found["setting"] == "paged") & (found["leg"] == "rerank")].set_index("against")
    assert paged["n"].to_dict() == {"iql_discount_0": 48, "sasrec": 40, "popularity": 48}
    assert paged.loc["sasrec", "users"] == len({s % 25 for s in range(10, 60) if s % 5})
    theirs = rows[(rows["mode"] == "paged") & (rows["session_id"] >= 10)].groupby("agent")["ndcg_reward_20"].mean()
    of_both = rows[(rows["mode"] == "paged") & (rows["session_id"] >= 10) & (rows["agent"] == "iql")]
    assert paged.loc["sasrec", "value"] == pytest.approx(of_both["ndcg_reward_20"].mean())
    assert paged.loc["sasrec", "against_value"] == pytest.approx(theirs["sasrec"])


def test_only_worlds_that_judge_are_compared() -> None:
    worlds = ("truth", "judge/a/natural", "judge/a/short", "train/b/natural")
    found = compared(NONE, episodes(LEVELS, *worlds))
    assert sorted(found["setting"].unique()) == ["judge/a/natural", "truth"]


def test_the_family_of_the_rule_is_twins_and_supervised_rankers_wherever_a_world_judges() -> None:
    found = compared(sessions(), episodes(LEVELS, "truth", "judge/a/natural"))
    of_rule = found[found["family"] == RULE]
    assert len(found) == 12
    assert set(map(tuple, of_rule[["control", "leg"]].to_numpy())) == {
        ("discount_0", "rollout"), ("supervised", "rollout")
    }  # fmt: skip
    for _, family in found.groupby("family"):
        np.testing.assert_allclose(family["p_adjusted"], holm(family["p_value"]))


def test_a_large_family_draws_enough_resamples_to_find_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    paired = module.paired_differences

    def spied(a: Any, b: Any, users: Any, resamples: int, seed: int) -> Any:
        drawn.append(resamples)
        return paired(a, b, users, resamples, seed)

    monkeypatch.setattr(module, "paired_differences", spied)
    few, many = (episodes(LEVELS, *(f"judge/{n}/natural" for n in range(size))) for size in (1, 8))
    compared(NONE, few, resamples=5_000)
    assert drawn == [5_000]
    found = compared(NONE, many, resamples=100)
    assert set(drawn[1:]) == {20 * len(found) / 0.05}
    assert found["p_adjusted"].max() < 0.05  # of 24 comparisons, at 100 resamples none could have been


def test_who_has_no_value_in_a_world_is_not_compared_there() -> None:
    rerank = sessions()
    rows = rerank.to_pandas()
    rows.loc[rows["agent"] == "sasrec", "ndcg_reward_20"] = np.nan
    found = compared(pa.Table.from_pandas(rows, rerank.schema, preserve_index=False), episodes())
    assert set(found[found["leg"] == "rerank"]["against"]) == {"iql_discount_0", "popularity"}
    assert "sasrec" in set(found[found["leg"] == "rollout"]["against"])


def test_without_an_agent_on_trial_nothing_is_compared() -> None:
    assert comparisons(NONE, episodes({"iql": 6.0, "sasrec": 5.0}), "popularity", 100).num_rows == 0
    assert comparisons(NONE, table("rollout", []), "popularity", 100).num_rows == 0
