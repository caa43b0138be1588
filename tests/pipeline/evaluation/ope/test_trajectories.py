"""Session estimators against loops over sessions, exact expectations over all paths, and dynamic programming."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation.ope.estimate import Estimator
from pipeline.evaluation.ope.logged import LoggedTrajectories
from pipeline.evaluation.ope.trajectories import FQE, PDIS, WIS, TrajectoryDR, fitted_q
from pipeline.evaluation.ope_proof import coverage
from tests.pipeline.evaluation.ope.proofs import estimates, rate
from tests.pipeline.evaluation.ope.worlds import Sessions

WORLD = Sessions.make()
GAMMA = WORLD.discount
ALL = [PDIS(discount=GAMMA), WIS(discount=GAMMA), TrajectoryDR(discount=GAMMA), FQE(discount=GAMMA)]
WEIGHTED_DR = TrajectoryDR(discount=GAMMA, self_normalised=True)
WRONG_Q = np.random.default_rng(8).uniform(-1, 2, (4, 2, 2))
WRONG_BEHAVIOUR = np.full((2, 2), 0.5)


def sessions(logged: LoggedTrajectories) -> list[slice]:
    starts = [*np.flatnonzero(logged.step == 0), len(logged)]
    return [slice(first, last) for first, last in pairwise(starts)]


def test_the_definitions_hold_session_by_session() -> None:
    logged = WORLD.log(60, seed=3, q=WRONG_Q)
    ratio = logged.target / logged.behaviour
    horizon, pdis, dr = 4, [], []
    weights, rewards = np.zeros((60, horizon)), np.zeros((60, horizon))
    for i, rows in enumerate(sessions(logged)):
        total, weight, doubly = 0.0, 1.0, 0.0
        for t, (rho, reward) in enumerate(zip(ratio[rows], logged.reward[rows], strict=True)):
            weight *= rho
            total += GAMMA**t * weight * reward
            weights[i, t:], rewards[i, t] = weight, reward  # a session that ended keeps its weight
        steps = list(zip(ratio[rows], logged.reward[rows], logged.q_logged[rows], logged.v_target[rows], strict=True))
        for rho, reward, q, v in reversed(steps):  # the recursion of Jiang and Li
            doubly = v + rho * (reward + GAMMA * doubly - q)
        pdis.append(total)
        dr.append(doubly)
    wis = sum(GAMMA**t * (weights[:, t] * rewards[:, t]).sum() / weights[:, t].sum() for t in range(horizon))
    assert PDIS(discount=GAMMA).estimate(logged).value == pytest.approx(np.mean(pdis), rel=1e-12)
    assert TrajectoryDR(discount=GAMMA).estimate(logged).value == pytest.approx(np.mean(dr), rel=1e-12)
    assert WIS(discount=GAMMA).estimate(logged).value == pytest.approx(wis, rel=1e-12)


def test_the_hand_worked_table() -> None:
    """Sessions (1, 2) and (4): ratios 2, 1.5 and 0.5; the second ended, and keeps its 0.5 in the second step."""
    logged = LoggedTrajectories(
        session_id=np.array([5, 5, 3]), step=np.array([0, 1, 0]), reward=np.array([1.0, 2.0, 4.0]),
        behaviour=np.array([0.5, 0.5, 0.5]), target=np.array([1.0, 0.75, 0.25]), user_key=np.array([1, 1, 2]),
        q_logged=np.array([1.0, 1.0, 2.0]), v_target=np.array([1.0, 2.0, 3.0]),
    )  # fmt: skip
    assert PDIS(discount=0.5).estimate(logged).value == pytest.approx((2 + 0.5 * 6 + 2) / 2)
    assert WIS(discount=0.5).estimate(logged).value == pytest.approx(4 / 2.5 + 0.5 * 6 / 3.5)
    assert TrajectoryDR(discount=0.5).estimate(logged).value == pytest.approx(
        ((1 + 0 + 0.5 * (2 * 2 + 3 * 1)) + (3 + 0.5 * 2)) / 2
    )


def test_pdis_is_unbiased_and_dr_with_either_nuisance_wrong() -> None:
    def value(estimator: Estimator[LoggedTrajectories], q: np.ndarray, believed: np.ndarray) -> float:
        return estimator.terms(WORLD.enumerated(q, believed)).value

    dr, right_q = TrajectoryDR(discount=GAMMA), WORLD.action_values()
    assert value(PDIS(discount=GAMMA), right_q, WORLD.behaviour) == pytest.approx(WORLD.value, rel=1e-12)
    assert value(dr, WRONG_Q, WORLD.behaviour) == pytest.approx(WORLD.value, rel=1e-12)
    assert value(dr, right_q, WRONG_BEHAVIOUR) == pytest.approx(WORLD.value, rel=1e-12)
    assert abs(value(dr, WRONG_Q, WRONG_BEHAVIOUR) - WORLD.value) > 0.05


def test_on_policy_pdis_is_the_mean_return() -> None:
    logged = WORLD.log(80, seed=2)
    returns = np.bincount(logged.session, logged.reward)
    estimate = PDIS().estimate(replace(logged, target=logged.behaviour))
    assert (estimate.value, estimate.ess) == (pytest.approx(returns.mean(), rel=1e-12), pytest.approx(80))


def test_fqe_with_a_feature_for_each_cell_is_the_value_in_the_estimated_world() -> None:
    """Certainty equivalence: rewards and moves as counted in the log, evaluated by backward induction."""
    logged = WORLD.log(400, seed=6)
    cell = logged.features.argmax(axis=1)  # [n] of (step, state, action)
    count = np.bincount(cell, minlength=16)
    reward = np.bincount(cell, logged.reward, 16) / count
    moves = np.zeros((16, 4, 2))  # to (step, state)
    inside = np.flatnonzero(logged.step[1:] > 0)
    np.add.at(moves, (cell[inside], cell[inside + 1] // 4, cell[inside + 1] // 2 % 2), 1)
    moves /= count[:, None, None]
    v = np.zeros((5, 2))
    for step in reversed(range(4)):
        at = slice(4 * step, 4 * step + 4)
        q = reward[at] + GAMMA * (moves[at, step + 1] @ v[step + 1] if step < 3 else 0.0)
        v[step] = (WORLD.target * q.reshape(2, 2)).sum(axis=1)
    starts = np.bincount(cell[logged.step == 0] // 2 % 2, minlength=2) / 400
    assert FQE(discount=GAMMA, ridge=0).estimate(logged).value == pytest.approx(starts @ v[0], rel=1e-9)


def test_fqe_is_a_weighted_sum_of_rewards() -> None:
    logged = WORLD.log(200, seed=7)
    estimator = FQE(discount=GAMMA, ridge=0)
    weight = estimator.terms(logged).weight[:, 0]
    assert estimator.estimate(logged).value == pytest.approx((weight * logged.reward).sum() / 200, rel=1e-9)
    one_policy = replace(logged, target_features=logged.features)
    assert FQE(ridge=0).estimate(one_policy).ess == pytest.approx(200)  # on-policy, all weights are 1


@pytest.mark.parametrize("estimator", [*ALL, WEIGHTED_DR])
def test_intervals_cover_the_truth(estimator: Estimator[LoggedTrajectories]) -> None:
    found = estimates(estimator, lambda seed: WORLD.log(300, seed), range(200))
    assert 0.90 <= coverage(found, WORLD.value) <= 0.98


@pytest.mark.parametrize("estimator", [PDIS(discount=GAMMA), FQE(discount=GAMMA)])
def test_the_error_falls_like_one_over_the_root_of_n(estimator: Estimator[LoggedTrajectories]) -> None:
    assert -0.62 < rate(estimator, WORLD.log, (100, 400, 1600), WORLD.value) < -0.38


def test_a_model_of_the_same_log_keeps_dr_on_target() -> None:
    def logs(seed: int) -> LoggedTrajectories:
        logged = WORLD.log(300, seed)
        q_logged, v_target = fitted_q(logged, GAMMA)
        return replace(logged, q_logged=q_logged, v_target=v_target)

    found = estimates(TrajectoryDR(discount=GAMMA), logs, range(200))
    assert 0.90 <= coverage(found, WORLD.value) <= 0.98


def test_nobodys_own_rewards_are_in_his_model() -> None:
    logged = WORLD.log(60, seed=1)
    mine = logged.user_key == 4
    changed = replace(logged, reward=np.where(mine, 1_000.0, logged.reward))
    for before, after in zip(fitted_q(logged), fitted_q(changed), strict=True):
        np.testing.assert_array_equal(before[mine], after[mine])
        assert (before != after).any()


@pytest.mark.parametrize(
    ("logged", "estimator", "message"),
    [
        (replace(WORLD.log(9, 0), v_target=None), TrajectoryDR(), "or compute them with trajectories.fitted_q"),
        (
            replace(WORLD.log(9, 0), features=None, target_features=None),
            FQE(),
            "FQE needs features and target_features",
        ),
        (WORLD.log(2, 0), FQE(ridge=0), "the log does not determine the regression"),
    ],
)
def test_what_is_missing_is_named(
    logged: LoggedTrajectories, estimator: Estimator[LoggedTrajectories], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        estimator.estimate(logged)


def test_one_user_cannot_be_cross_fitted() -> None:
    with pytest.raises(DataError, match="1 users and 5 folds leave nobody to learn from"):
        fitted_q(WORLD.log(2, 0))
