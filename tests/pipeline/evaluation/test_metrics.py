"""Metrics against ranx, which is held to trec_eval by its authors, and against tables worked by hand."""

import os

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import rank_metrics
from pipeline.schemas import RERANK_METRICS

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # to compile ranx takes a minute; its plain Python is fast enough here
ranx = pytest.importorskip("ranx")

NAMES = {"map": "map", "mrr": "mrr", "precision_20": "precision@20", "recall_20": "recall@20", "f1_20": "f1@20"}
NAMES |= {f"ndcg_{k}": f"ndcg@{k}" for k in (5, 10, 20, 40)} | {f"hit_{k}": f"hit_rate@{k}" for k in (1, 5, 10)}
REWARD_NAMES = {f"ndcg_reward_{k}": f"ndcg@{k}" for k in (5, 10, 20, 40)}
Rankings = tuple[np.ndarray, np.ndarray]


def random_rankings(seed: int, sessions: int, width: int, positive: float) -> Rankings:
    """Rewards 0, 1 and 5 in ranked order with garbage in the padding, and lengths from 1 to the width."""
    rng = np.random.default_rng(seed)
    rewards = rng.choice([0.0, 1.0, 5.0], (sessions, width), p=[1 - positive, 0.8 * positive, 0.2 * positive])
    return rewards, rng.integers(1, width + 1, sessions)


def by_ranx(rewards: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The same metrics from ranx; scores are -rank, so that its own tie-breaking has nothing to do."""
    real = [row[:length] for row, length in zip(rewards, lengths, strict=True)]
    run = ranx.Run({f"s{s:06}": {f"d{r}": -float(r) for r in range(len(row))} for s, row in enumerate(real)})
    graded = {f"s{s:06}": {f"d{r}": int(v) for r, v in enumerate(row)} for s, row in enumerate(real)}
    binary = {s: {d: int(v > 0) for d, v in row.items()} for s, row in graded.items()}
    values = {}
    for labels, names in ((binary, NAMES), (graded, REWARD_NAMES)):
        found = ranx.evaluate(ranx.Qrels(labels), run, list(names.values()), return_mean=False)
        values |= {ours: found[theirs] for ours, theirs in names.items()}
    return values


@pytest.mark.parametrize(
    ("rewards", "lengths"),
    [
        random_rankings(0, 120, 60, 0.2),
        random_rankings(1, 60, 7, 0.5),
        (np.array([[5.0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 5, 1]]), np.array([1, 3, 3, 2])),
        (np.array([[0.0], [1.0]]), np.array([1, 1])),
    ],
    ids=["random", "short", "degenerate", "single items"],
)
def test_every_metric_is_that_of_ranx(rewards: np.ndarray, lengths: np.ndarray) -> None:
    ours, theirs = rank_metrics(rewards, rewards > 0, lengths), by_ranx(rewards, lengths)
    assert set(ours) == set(theirs) == set(RERANK_METRICS)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-9, err_msg=name)


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
