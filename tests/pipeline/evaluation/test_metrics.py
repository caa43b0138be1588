"""Metrics against ranx, which is held to trec_eval by its authors, and against tables worked by hand."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from benchmarks.metrics import BINARY, GRADED
from models.base import Candidates, StateBatch
from pipeline.errors import DataError
from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import rank_metrics
from pipeline.evaluation.rerank import MODES, Mode, ranking_table, rerank, session_table
from pipeline.evaluation.sessions import load_sessions
from pipeline.experiment import History
from pipeline.schemas import RERANK_METRICS
from tests.models.builders import make_task
from tests.pipeline.evaluation.builders import Plain, make_rows, write

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # to compile ranx takes a minute; its plain Python is fast enough here
ranx = pytest.importorskip("ranx")

Rankings = tuple[np.ndarray, np.ndarray]


def random_rankings(seed: int, sessions: int, width: int, positive: float) -> Rankings:
    """Rewards 0, 1 and 5 in ranked order with garbage in the padding, and lengths from 1 to the width."""
    rng = np.random.default_rng(seed)
    rewards = rng.choice([0.0, 1.0, 5.0], (sessions, width), p=[1 - positive, 0.8 * positive, 0.2 * positive])
    return rewards, rng.integers(1, width + 1, sessions)


def padded(rankings: list[np.ndarray]) -> Rankings:
    """Rewards of rankings of different lengths as one matrix, padded with purchases that must not count."""
    lengths = np.array([len(row) for row in rankings])
    rewards = np.full((len(rankings), lengths.max()), 5.0)
    rewards[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rankings)
    return rewards, lengths


def by_ranx(rewards: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The same metrics from ranx; scores are -rank, so that its own tie-breaking has nothing to do."""
    real = [row[:length] for row, length in zip(rewards, lengths, strict=True)]
    run = ranx.Run({f"s{s:06}": {f"d{r}": -float(r) for r in range(len(row))} for s, row in enumerate(real)})
    graded = {f"s{s:06}": {f"d{r}": int(v) for r, v in enumerate(row)} for s, row in enumerate(real)}
    binary = {s: {d: int(v > 0) for d, v in row.items()} for s, row in graded.items()}
    values = {}
    for labels, names in ((binary, BINARY), (graded, GRADED)):
        found = ranx.evaluate(ranx.Qrels(labels), run, list(names.values()), return_mean=False)
        values |= {ours: found[theirs] for ours, theirs in names.items()}
    return values


def assert_as_ranx(found: dict[str, np.ndarray], rewards: np.ndarray, lengths: np.ndarray) -> None:
    theirs = by_ranx(rewards, lengths)
    assert set(found) == set(theirs) == set(RERANK_METRICS)
    for name, values in found.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("rewards", "lengths"),
    [
        random_rankings(0, 120, 60, 0.2),
        random_rankings(1, 60, 7, 0.5),
        (np.zeros((3, 45)), np.array([45, 20, 1])),
        (np.array([[1.0, 5, 1], [5, 5, 5], [1, 0, 0]]), np.array([3, 3, 1])),
        (np.array([[0.0], [1.0]]), np.array([1, 1])),
        (np.array([[0.0, 1, 0, 5], [5, 0, 0, 0]]), np.array([4, 2])),
        (np.array([[-1.0, 5, -2, 0, 1], [-1, 0, -5, -1, -1], [1, -1, 0, 0, 0]]), np.array([5, 5, 3])),
    ],
    ids=["random", "short", "none relevant", "all relevant", "single items", "under every cut-off", "punished items"],
)
def test_every_metric_is_that_of_ranx(rewards: np.ndarray, lengths: np.ndarray) -> None:
    assert_as_ranx(rank_metrics(rewards, rewards > 0, lengths), rewards, lengths)


class ThreeScores:
    """Gives one of three scores to each item, so that most candidates of a session are tied."""

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        return (candidates.items % 3).float()


@pytest.mark.parametrize("mode", MODES)
def test_tied_rankings_as_published_give_ranx_the_metrics_that_we_publish(mode: Mode, tmp_path: Path) -> None:
    task = make_task(rows=3, cols=2)
    sessions = load_sessions(write(tmp_path / "c.parquet", make_rows(60)), "test", task, History())
    ranked = rerank(ThreeScores(), Plain(), task, sessions, mode)
    rows = ranking_table(sessions, ranked, "tied", 1).to_pandas().sort_values(["session_id", "rank"])
    rewards, lengths = padded([group.to_numpy() for _, group in rows.groupby("session_id")["reward"]])
    found = session_table(sessions, ranked, "tied", 1).to_pandas().set_index("session_id").sort_index()
    theirs = by_ranx(rewards, lengths)
    scored = (found.status == "scored").to_numpy()
    assert 10 < scored.sum() < len(scored)
    for name in RERANK_METRICS:
        np.testing.assert_allclose(found[name][scored], theirs[name][scored], rtol=0, atol=1e-9, err_msg=name)


def test_real_ratings_ranked_by_popularity_score_as_in_ranx(real_data: Path) -> None:
    """MovieLens: what 150 users rated later, by how often others had rated it before."""
    log = pd.read_csv(real_data / "ml-100k" / "u.data", sep="\t", names=["user", "item", "rating", "ts"])
    earlier, later = (log[(log.ts <= log.ts.median()) == side] for side in (True, False))
    shown = later.assign(popularity=later["item"].map(earlier["item"].value_counts()).fillna(0))
    shown = shown.sort_values(["user", "popularity", "item"], ascending=[True, False, True])
    rewards = shown["rating"].map({1: 0, 2: 0, 3: 0, 4: 1, 5: 5}).astype(float)
    rankings = [row.to_numpy() for _, row in rewards.groupby(shown["user"])]
    rewards, lengths = padded([row for row in rankings if len(row) <= 150][:150])
    assert (len(lengths), lengths.max() > 40, lengths.min() < 25) == (150, True, True)
    assert_as_ranx(rank_metrics(rewards, rewards > 0, lengths), rewards, lengths)


def test_gains_below_one_count_here_and_not_in_ranx() -> None:
    """ranx takes labels under 1 for irrelevant, also as gains. A reward of a half is a gain of a half here."""
    rewards, lengths = np.array([[0.0, 0.5, 2.0]]), np.array([3])
    half = 0.5 / np.log2(3)
    expected = (half + 2 / 2) / (2 + half)
    assert rank_metrics(rewards, rewards > 0, lengths)["ndcg_reward_5"].item() == pytest.approx(expected, abs=1e-12)
    run = [np.array([[0, -0.0], [1, -1], [2, -2]])]
    theirs = ranx.evaluate([np.array([[2, 2.0], [1, 0.5]])], run, ["ndcg@5", "mrr"], return_mean=False)
    assert theirs["ndcg@5"].item() == pytest.approx((2 / 2) / 2, abs=1e-12)


def test_a_relevant_item_that_earns_nothing_has_no_gain_and_divides_by_nothing() -> None:
    """The best order has a gain of 0, so there is nothing to reach: 0 and not 0 / 0, as in trec_eval."""
    found = rank_metrics(np.array([[0.0, -1.0]]), np.array([[True, True]]), np.array([2]))
    assert (found["ndcg_reward_20"].item(), found["ndcg_20"].item(), found["map"].item()) == (0, 1, 1)


def test_a_ranking_worked_by_hand() -> None:
    rewards = np.array([[0.0, 1.0, 0.0, 5.0, 0.0, 0.0]])  # a click second, a purchase fourth
    found = {name: value.item() for name, value in rank_metrics(rewards, rewards > 0, np.array([6])).items()}
    dcg, ideal = 1 / np.log2(3) + 1 / np.log2(5), 1 + 1 / np.log2(3)
    reward_dcg, reward_ideal = 1 / np.log2(3) + 5 / np.log2(5), 5 + 1 / np.log2(3)
    expected = {"map": (1 / 2 + 2 / 4) / 2, "mrr": 1 / 2, "precision_20": 2 / 20, "recall_20": 1.0, "f1_20": 2 / 11,
                "hit_1": 0.0, "hit_5": 1.0, "hit_10": 1.0}  # fmt: skip
    expected |= {f"ndcg_{k}": dcg / ideal for k in (5, 10, 20, 40)}
    expected |= {f"ndcg_reward_{k}": reward_dcg / reward_ideal for k in (5, 10, 20, 40)}
    assert found == pytest.approx(expected, abs=1e-12)


def test_f1_is_that_of_the_session_not_of_the_averages() -> None:
    rewards = np.zeros((2, 40))
    rewards[0, 0], rewards[1, ::2] = 1, 1
    found = rank_metrics(rewards, rewards > 0, np.array([40, 40]))
    precision, recall = found["precision_20"].mean(), found["recall_20"].mean()
    assert found["f1_20"].mean() == pytest.approx((2 * 0.05 / 1.05 + 0.5) / 2)
    assert abs(found["f1_20"].mean() - 2 * precision * recall / (precision + recall)) > 1e-3


def test_relevance_is_apart_from_the_gains() -> None:
    """A click that earns nothing is relevant; a punished skip is a gain of 0."""
    found = rank_metrics(np.array([[-1.0, 0.0]]), np.array([[False, True]]), np.array([2]))
    assert (found["map"].item(), found["ndcg_reward_5"].item()) == (0.5, 0.0)


def test_padding_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, lengths = random_rankings(2, 50, 30, 0.3)
    whole = rank_metrics(rewards, rewards > 0, lengths)
    monkeypatch.setattr(metrics, "CELLS", 200)
    padded = np.hstack([rewards, np.full((50, 9), 5.0)])
    for name, values in rank_metrics(padded, padded > 0, lengths).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-12, err_msg=name)


def test_no_sessions_give_no_values() -> None:
    found = rank_metrics(np.zeros((0, 5)), np.zeros((0, 5), bool), np.zeros(0, int))
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(RERANK_METRICS, 0)


@pytest.mark.parametrize(
    ("rewards", "relevant", "lengths"),
    [((2, 3), (2, 4), (2,)), ((2, 3), (2, 3), (3,)), ((2, 0), (2, 0), (2,)), ((3,), (3,), (3,))],
)
def test_shapes_that_do_not_fit_are_refused(rewards: tuple, relevant: tuple, lengths: tuple) -> None:
    with pytest.raises(DataError, match="Pad the rankings"):
        rank_metrics(np.zeros(rewards), np.zeros(relevant, bool), np.zeros(lengths, int))
