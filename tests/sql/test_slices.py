"""The query ``slices`` against plain pandas, on sessions whose rankings are known in full."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from pipeline.results import build_results, query
from tests.published import publish, table

SESSIONS, ITEMS, CATEGORIES = 60, 100, 13
UNSEEN = (1, 2, 3)  # items of no training session
AGENTS = {"by_chance": (1, 2), "by_popularity": (1,)}


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    """Items 11 to 30 have as many showings; the first categories have most items; each twentieth item has none."""
    rng = np.random.default_rng(0)
    key = np.arange(1, ITEMS + 1)
    showings = np.where(np.isin(key, UNSEEN), 0, rng.integers(1, 400, ITEMS))
    category = np.floor(CATEGORIES * rng.random(ITEMS) ** 2).astype(int)
    names = [None if number % 20 == 0 else f"c{code}" for number, code in zip(key, category, strict=True)]
    return pd.DataFrame({"item_key": key, "train_impressions": np.where((key > 10) & (key <= 30), 50, showings),
                         "category": pd.Series(names, dtype=object)})  # fmt: skip


@pytest.fixture(scope="module")
def rankings(items: pd.DataFrame) -> pd.DataFrame:
    """Sessions of 5 to 24 items, ranked by chance or by popularity; some have no positive, some nothing else."""
    rng = np.random.default_rng(1)
    popularity = items.set_index("item_key").train_impressions
    found = []
    for session in range(SESSIONS):
        shown = rng.permutation(np.arange(1, ITEMS + 1))[: rng.integers(5, 25)]
        feedback = rng.choice([1, 1, 2, 5], len(shown)) if session % 10 else np.full(len(shown), 1 + session % 20 // 10)
        for agent, seeds in AGENTS.items():
            for seed in seeds:
                for mode in ("oneshot", "paged"):
                    chance = rng.random(len(shown))
                    score = chance if agent == "by_chance" else popularity[shown].to_numpy() + chance
                    rank = (-score).argsort().argsort() + 1
                    found.append(pd.DataFrame({"session_id": session, "user_key": session % 25, "agent": agent,
                                               "seed": seed, "mode": mode, "item_key": shown, "rank": rank,
                                               "feedback": feedback}))  # fmt: skip
    return pd.concat(found, ignore_index=True)


@pytest.fixture(scope="module")
def answer(items: pd.DataFrame, rankings: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    sessions = rankings.groupby(["session_id", "user_key", "agent", "seed", "mode"], as_index=False).agg(
        candidates=("item_key", "size"), positives=("feedback", lambda codes: (codes > 1).sum())
    )
    status = np.where(sessions.positives == sessions.candidates, "all_positive", "scored")
    sessions["status"] = np.where(sessions.positives == 0, "no_positive", status)
    sessions["ndcg_reward_20"] = np.where(sessions.status == "scored", 0.01 * sessions.session_id, np.nan)
    users = [{"user_key": user, "train_sessions": user % 2} for user in range(25)]
    tables = {
        "rankings": table("rankings", rankings.to_dict("records")),
        "rerank": table("rerank", sessions.to_dict("records")),
        "items": table("items", items.to_dict("records")),
        "users": table("users", users),
    }
    folder = tmp_path_factory.mktemp("slices")
    build_results(publish(folder, tables), folder / "results.duckdb")
    return query(folder / "results.duckdb", "slices").to_pandas()


@pytest.fixture(scope="module")
def positives(rankings: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Each positive item of a scored session with its AUC, seeds averaged, by comparing it with every skipped item."""
    ranked, others = rankings[rankings.feedback > 1], rankings[rankings.feedback == 1]
    pairs = ranked.merge(others, on=["session_id", "user_key", "agent", "seed", "mode"], suffixes=("", "_other"))
    pairs["auc"] = (pairs["rank"] < pairs.rank_other).astype(float)
    by_seed = pairs.groupby(["agent", "mode", "seed", "session_id", "user_key", "item_key"]).auc.mean()
    means = by_seed.groupby(["agent", "mode", "session_id", "user_key", "item_key"]).mean()
    return means.reset_index().merge(items, on="item_key")


def assert_mean_and_interval(row: pd.Series, values: pd.Series, users: pd.Series) -> None:
    clusters = (values - values.mean()).groupby(users).sum()
    error = np.sqrt((clusters**2).sum() * len(clusters) / (len(clusters) - 1)) / len(values)
    half = NormalDist().inv_cdf(0.975) * error
    assert (row.n, row.users) == (len(values), len(clusters))
    expected = (values.mean(), values.mean() - half, values.mean() + half)
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx(expected, abs=1e-6)


def test_a_slice_of_a_category_is_the_mean_auc_of_its_positives(answer: pd.DataFrame, positives: pd.DataFrame) -> None:
    one = positives[(positives.agent == "by_chance") & (positives["mode"] == "paged")]
    counts = one.groupby("category", as_index=False).size().sort_values(["size", "category"], ascending=[False, True])
    top = counts.category[:10].tolist()
    found = answer[(answer.dimension == "category") & (answer.agent == "by_chance") & (answer["mode"] == "paged")]
    assert found["slice"].tolist() == [*top, "other", "unknown"]
    assert set(found.metric) == {"auc"}
    assert found.ndcg_reward_20.isna().all()
    slices = one.category.fillna("unknown").where(lambda names: names.isin([*top, "unknown"]), "other")
    for _, row in found.iterrows():
        inside = one[slices == row["slice"]]
        assert_mean_and_interval(row, inside.auc, inside.user_key)


def test_deciles_of_popularity_hold_about_as_many_positives_and_split_no_tie(
    answer: pd.DataFrame, positives: pd.DataFrame
) -> None:
    one = positives[(positives.agent == "by_popularity") & (positives["mode"] == "oneshot")]
    found = answer[(answer.dimension == "item popularity") & (answer.agent == "by_popularity")]
    found = found[found["mode"] == "oneshot"]
    assert found["slice"].iloc[0] == "not in training"
    assert_mean_and_interval(found.iloc[0], *(one[one.item_key.isin(UNSEEN)][name] for name in ("auc", "user_key")))
    bounds = found["slice"].iloc[1:].str.extract(r"^(\d+): (\d+)(?:–(\d+))? showings$").astype(float)
    bounds[2] = bounds[2].fillna(bounds[1])
    assert (bounds[1].to_numpy()[1:] > bounds[2].to_numpy()[:-1]).all()
    assert bounds[0].is_monotonic_increasing
    assert bounds[0].iloc[-1] == 10
    for (_, row), (_, (_, low, high)) in zip(found.iloc[1:].iterrows(), bounds.iterrows(), strict=True):
        inside = one[one.train_impressions.between(low, high) & ~one.item_key.isin(UNSEEN)]
        assert_mean_and_interval(row, inside.auc, inside.user_key)
        if low != 50:  # the decile with the ties is larger
            assert row.n < 0.15 * len(one)


def test_a_random_order_has_an_auc_of_a_half_and_popularity_is_for_popular_items(answer: pd.DataFrame) -> None:
    by_item = answer[answer.dimension == "item popularity"]
    by_chance = by_item[by_item.agent == "by_chance"]
    assert np.average(by_chance.value, weights=by_chance.n) == pytest.approx(0.5, abs=0.04)
    popular = by_item[(by_item.agent == "by_popularity") & (by_item["mode"] == "paged")].value.tolist()
    assert popular[0] < 0.1
    assert popular[-1] > 0.9


def test_sessions_without_a_choice_are_in_no_slice(answer: pd.DataFrame, positives: pd.DataFrame) -> None:
    sessions = answer[answer.dimension.isin(["user", "session length"])]
    scored = positives.session_id.nunique()
    assert scored == SESSIONS - SESSIONS // 10
    assert (sessions.groupby(["agent", "mode", "dimension"]).n.sum() == scored).all()
    of_items = answer[answer.dimension.isin(["item popularity", "category"])]
    pairs = len(positives[["session_id", "item_key"]].drop_duplicates())
    assert (of_items.groupby(["agent", "mode", "dimension"]).n.sum() == pairs).all()


def test_a_slice_of_users_is_the_mean_over_their_sessions(answer: pd.DataFrame, positives: pd.DataFrame) -> None:
    sessions = positives[["session_id", "user_key"]].drop_duplicates()
    found = answer[(answer.dimension == "user") & (answer.agent == "by_chance") & (answer["mode"] == "paged")]
    assert found["slice"].tolist() == ["new", "returning"]
    assert found.ndcg_reward_20.equals(found.value)
    for (_, row), group in zip(found.iterrows(), (0, 1), strict=True):
        inside = sessions[sessions.user_key % 2 == group]
        assert_mean_and_interval(row, 0.01 * inside.session_id, inside.user_key)


def test_a_log_without_categories_has_no_slices_by_category(tmp_path: Path) -> None:
    ranked = [{"session_id": 1, "agent": "a", "seed": 1, "mode": "paged", "item_key": item, "rank": item,
               "feedback": code} for item, code in ((1, 1), (2, 2), (3, 1))]  # fmt: skip
    session = {"session_id": 1, "user_key": 1, "agent": "a", "seed": 1, "mode": "paged", "candidates": 3,
               "positives": 1, "status": "scored", "ndcg_reward_20": 0.5}  # fmt: skip
    tables = {"rankings": table("rankings", ranked), "rerank": table("rerank", [session])}
    build_results(publish(tmp_path, tables), tmp_path / "results.duckdb")
    found = query(tmp_path / "results.duckdb", "slices").to_pylist()
    assert [(row["dimension"], row["slice"]) for row in found] == [
        ("user", "new"), ("session length", "1-20 items"), ("item popularity", "not in training")
    ]  # fmt: skip
    assert (found[2]["value"], found[2]["ci_low"], found[2]["users"]) == (0.5, None, 1)
