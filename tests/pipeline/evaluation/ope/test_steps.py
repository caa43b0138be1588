"""Step-wise estimators against hand-worked tables, exact expectations, and the truth over hundreds of logs."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation.ope.logged import LoggedSteps
from pipeline.evaluation.ope.steps import DR, IPS, SNIPS, STEP_ESTIMATORS
from pipeline.evaluation.ope_proof import coverage
from tests.pipeline.evaluation.ope.proofs import estimates, rate
from tests.pipeline.evaluation.ope.worlds import Bandit

BANDIT = Bandit()
WRONG_Q = np.random.default_rng(5).uniform(-1, 2, (3, 4))
WRONG_BEHAVIOUR = np.full((3, 4), 0.25)
ALL = list(STEP_ESTIMATORS.values())

# weights 2, 0.5, 1, 0; corrections r - q of 0.5, -0.5, 0.2, 0
TABLE = LoggedSteps(
    reward=np.array([1.0, 0.0, 0.2, 1.0]),
    behaviour=np.array([0.25, 0.8, 0.5, 0.5]),
    target=np.array([0.5, 0.4, 0.5, 0.0]),
    user_key=np.array([1, 1, 2, 3]),
    q_logged=np.array([0.5, 0.5, 0.0, 1.0]),
    v_target=np.array([0.4, 0.6, 0.2, 0.8]),
)


@pytest.mark.parametrize(
    ("estimator", "value"),
    [
        (IPS(), (2 + 0 + 0.2 + 0) / 4),
        (SNIPS(), 2.2 / 3.5),
        (DR(), 2.0 / 4 + (1 - 0.25 + 0.2) / 4),
        (DR(self_normalised=True), 2.0 / 4 + 0.95 / 3.5),
        (IPS(clip=1.0), (1 + 0 + 0.2) / 4),
        (SNIPS(clip=1.0), 1.2 / 2.5),
        (DR(clip=1.0), 2.0 / 4 + (0.5 - 0.25 + 0.2) / 4),
    ],
)
def test_the_hand_worked_table(estimator: IPS | SNIPS | DR, value: float) -> None:
    estimate = estimator.estimate(TABLE)
    assert estimate.value == pytest.approx(value, rel=1e-12)
    assert estimate.ess == pytest.approx(3.5**2 / 5.25)  # of the weights before clipping
    assert (estimate.n, estimate.max_weight, estimate.mean_weight) == (4, 2.0, 3.5 / 4)
    assert estimate.clipped_share == (0.25 if estimator.clip == 1.0 else 0.0)


@pytest.mark.parametrize("estimator", [IPS(), SNIPS()])
def test_on_policy_it_is_the_mean_of_the_rewards(estimator: IPS | SNIPS) -> None:
    logged = BANDIT.log(100, 3, seed=1)
    estimate = estimator.estimate(replace(logged, target=logged.behaviour))
    assert estimate.value == logged.reward.mean()
    assert (estimate.ess, estimate.mean_weight, estimate.max_weight) == (pytest.approx(300), 1.0, 1.0)


def test_ips_is_unbiased() -> None:
    logged = BANDIT.enumerated(WRONG_Q, BANDIT.behaviour)
    assert IPS().terms(logged).value == pytest.approx(BANDIT.value, rel=1e-12)


def test_dr_is_unbiased_with_either_nuisance_wrong_and_not_with_both() -> None:
    def value(q: np.ndarray, believed: np.ndarray) -> float:
        return DR().terms(BANDIT.enumerated(q, believed)).value

    assert value(WRONG_Q, BANDIT.behaviour) == pytest.approx(BANDIT.value, rel=1e-12)
    assert value(BANDIT.mean, WRONG_BEHAVIOUR) == pytest.approx(BANDIT.value, rel=1e-12)
    assert abs(value(WRONG_Q, WRONG_BEHAVIOUR) - BANDIT.value) > 0.05


@pytest.mark.parametrize("estimator", ALL)
def test_intervals_cover_the_truth(estimator: IPS | SNIPS | DR) -> None:
    found = estimates(estimator, lambda seed: BANDIT.log(100, 4, seed), range(300))
    assert 0.90 <= coverage(found, BANDIT.value) <= 0.98
    assert np.mean([estimate.supported for estimate in found]) > 0.96  # the mean weight strays in 1 log of 80


def test_an_interval_blind_to_users_is_too_narrow() -> None:
    def blind(seed: int) -> LoggedSteps:
        logged = BANDIT.log(40, 20, seed)
        return replace(logged, user_key=np.arange(len(logged)))

    assert coverage(estimates(SNIPS(), blind, range(300)), BANDIT.value) < 0.85


@pytest.mark.parametrize("estimator", ALL)
def test_the_error_falls_like_one_over_the_root_of_n(estimator: IPS | SNIPS | DR) -> None:
    slope = rate(estimator, lambda n, seed: BANDIT.log(n // 2, 2, seed), (200, 800, 3200), BANDIT.value)
    assert -0.6 < slope < -0.4


def test_dr_without_a_model_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="DR needs q_logged and v_target"):
        DR().estimate(replace(TABLE, q_logged=None))
