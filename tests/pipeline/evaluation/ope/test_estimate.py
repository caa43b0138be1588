"""Intervals agree with the bootstrap over users, and an estimate that the log cannot support says why."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.ope.estimate import Support, difference
from pipeline.evaluation.ope.logged import LoggedSlates, LoggedSteps
from pipeline.evaluation.ope.slates import CascadeDR
from pipeline.evaluation.ope.steps import DR, IPS, SNIPS
from pipeline.evaluation.ope_proof import coverage
from pipeline.evaluation.significance import cluster_bootstrap
from tests.pipeline.evaluation.ope.worlds import Bandit

BANDIT = Bandit()
LOG = BANDIT.log(150, 3, seed=1)


def test_the_interval_is_that_of_the_bootstrap_over_users() -> None:
    ours = IPS().estimate(LOG)
    theirs = cluster_bootstrap(LOG.ratio * LOG.reward, LOG.user_key, 10_000, seed=0)
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(theirs.mean, rel=1e-12)
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_interval_of_a_ratio_is_that_of_the_bootstrap_over_users() -> None:
    rng = np.random.default_rng(0)
    sums = np.stack([np.bincount(LOG.user_key, x) for x in (LOG.ratio * LOG.reward, LOG.ratio)])  # [2, U]
    drawn = sums[:, rng.integers(150, size=(10_000, 150))].sum(axis=2)
    low, high = np.quantile(drawn[0] / drawn[1], (0.025, 0.975))
    ours = SNIPS().estimate(LOG)
    assert (ours.low, ours.high) == (pytest.approx(low, abs=0.05 * (high - low)),
                                     pytest.approx(high, abs=0.05 * (high - low)))  # fmt: skip


def test_a_difference_is_paired() -> None:
    """Two policies on one log: their errors cancel, so the difference is known better than either."""
    near = replace(LOG, target=0.9 * LOG.target + 0.1 * LOG.behaviour)
    first, second = (IPS().terms(logged) for logged in (LOG, near))
    value, low, high = difference(first, second)
    one = IPS().estimate(LOG)
    assert value == pytest.approx(one.value - IPS().estimate(near).value)
    assert low < value < high
    assert high - low < 0.2 * (one.high - one.low)
    assert difference(first, first) == (0, 0, 0)


def test_intervals_of_differences_cover_the_truth() -> None:
    on_policy = float((BANDIT.contexts[:, None] * BANDIT.behaviour * BANDIT.mean).sum())

    class Found:
        def __init__(self, seed: int) -> None:
            logged = BANDIT.log(100, 4, seed)
            same = replace(logged, target=logged.behaviour)
            self.value, self.low, self.high = difference(SNIPS().terms(logged), SNIPS().terms(same))

    found: list[Any] = [Found(seed) for seed in range(300)]
    assert 0.90 <= coverage(found, BANDIT.value - on_policy) <= 0.98


def steps(target: Any, reward: Any = None, users: int = 400) -> LoggedSteps:
    n = 400
    reward = np.tile([0.0, 1.0], n // 2) if reward is None else reward
    return LoggedSteps(reward, np.full(n, 0.5), np.asarray(target), np.arange(n) % users)


RARE = np.where(np.arange(400) < 40, 1.0, 0.0)  # the target does what the log did in 40 of 400 rows


@pytest.mark.parametrize(
    ("logged", "reason"),
    [
        (steps(RARE), "not enough overlap: an effective sample size of 40.0 where 50 are needed"),
        (steps(np.full(400, 0.4)), "the mean weight is 0.800 ± 0.000 and not 1: the propensities are not those of"),
        (steps(np.full(400, 0.5), np.zeros(400)), "no reward was logged"),
        (steps(np.full(400, 0.5), users=1), "one user: the spread between users is unknown"),
        (steps(np.zeros(400)), "not enough overlap: an effective sample size of 0.0"),
    ],
)
@pytest.mark.parametrize("estimator", [IPS(), SNIPS()])
def test_what_the_log_cannot_support_says_why(estimator: IPS | SNIPS, logged: LoggedSteps, reason: str) -> None:
    estimate = estimator.estimate(logged)
    assert not estimate.supported
    assert estimate.reason.startswith(reason)


def test_clipping_buys_no_verdict() -> None:
    rng = np.random.default_rng(0)
    behaviour = np.where(rng.random(2_000) < 0.005, 0.0005, 0.5)
    logged = LoggedSteps(rng.random(2_000), behaviour, np.full(2_000, 0.5), np.arange(2_000))
    plain, clipped = IPS().estimate(logged), IPS(clip=1.0).estimate(logged)
    assert clipped.high - clipped.low < 0.1 * (plain.high - plain.low)
    assert (clipped.ess, clipped.supported) == (plain.ess, False)


def test_a_slot_that_the_log_seldom_fills_cannot_hide_a_weight_that_outweighs_all_others() -> None:
    """Its share of the reward is small, so the effective sample size hardly sees it; a doubly robust mean would."""
    n, rng = 2_000, np.random.default_rng(0)
    mask = np.column_stack([np.ones(n, bool), np.arange(n) < 20])
    behaviour, target = np.full((n, 2), 0.5), np.full((n, 2), 0.5)
    behaviour[0, 1] = 1e-8
    reward = rng.random((n, 2)) * [1.0, 0.1]
    pages = LoggedSlates(reward, behaviour, target, mask, np.arange(n), q_logged=reward / 2, v_target=reward / 2)
    estimate = CascadeDR(self_normalised=True).estimate(pages)
    assert estimate.ess > Support().least
    assert abs(estimate.mean_weight - 1) < Support().errors * estimate.mean_weight_error
    assert not estimate.supported
    assert "a few weights outweigh all others" in estimate.reason


def test_the_floor_grows_with_the_log_and_can_be_set() -> None:
    assert (Support().floor(1_000), Support().floor(100_000)) == (50, 1_000)
    assert IPS(support=Support(least=30)).estimate(steps(RARE)).reason.startswith("the mean weight is 0.200")
    assert IPS(support=Support(least=30, errors=1_000)).estimate(steps(RARE)).supported


def test_a_perfect_model_leaves_nothing_to_correct() -> None:
    n = 300
    logged = LoggedSteps(
        np.full(n, 2.0),
        np.full(n, 0.5),
        np.full(n, 0.5),
        np.arange(n),
        q_logged=np.full(n, 2.0),
        v_target=np.full(n, 2.0),
    )
    estimate = DR().estimate(logged)
    assert (estimate.value, estimate.low, estimate.high) == (2.0, 2.0, 2.0)
