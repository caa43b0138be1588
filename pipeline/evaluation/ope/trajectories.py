"""Estimators of whole sessions: V(π) = E_π[Σ_t γ^t·r_t] from S sessions of μ.

Their weights are w_t = Π_{τ≤t} π(a_τ|s_τ) / μ(a_τ|s_τ).

A session that has ended stays where it ended: its reward is 0 and its weight is kept. (To average step t over the
sessions that reach it would estimate the reward of those alone.) One cut by a length cap counts as ended.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.ope.estimate import Estimator, Terms, doubly_robust, weighted
from pipeline.evaluation.ope.logged import Bools, Floats, LoggedTrajectories


@dataclass(frozen=True)
class _Discounted(Estimator[LoggedTrajectories]):
    discount: float = 1.0  # γ, of the reward of each next step

    def scale(self, weight: Floats) -> Floats:
        return np.power(self.discount, np.arange(weight.shape[1]), dtype=np.float64)  # [T]

    def importance(self, logged: LoggedTrajectories, self_normalised: bool) -> Terms:
        weight = logged.ratios().cumprod(axis=1)  # [S, T]
        reward = logged.dense(logged.reward, 0.0)
        users = logged.user_key[logged.first]
        return weighted(weight, reward, self.clip, self_normalised, users, self.scale(weight), nested=True)


@dataclass(frozen=True)
class PDIS(_Discounted):
    """Per-decision importance sampling: V̂ = 1/S Σ_i Σ_t γ^t·w_it·r_it. Unbiased (Precup, Sutton and Singh, ICML
    2000)."""

    def terms(self, logged: LoggedTrajectories) -> Terms:
        return self.importance(logged, self_normalised=False)


@dataclass(frozen=True)
class WIS(_Discounted):
    """Weighted per-decision importance sampling: V̂ = Σ_t γ^t·Σ_i w_it·r_it / Σ_i w_it. Consistent, with less variance
    (Precup, Sutton and Singh, ICML 2000; in this form CWPDIS in Thomas, PhD thesis 2015)."""

    def terms(self, logged: LoggedTrajectories) -> Terms:
        return self.importance(logged, self_normalised=True)


@dataclass(frozen=True)
class TrajectoryDR(_Discounted):
    """Doubly robust: V̂ = 1/S Σ_i Σ_t γ^t·[w_it·(r_it − q(s_it, a_it)) + w_i,t−1·v(s_it)], with w_i,−1 = 1.

    Jiang and Li, ICML 2016, §4, their recursion written out (Thomas and Brunskill, ICML 2016); with
    ``self_normalised`` it is the weighted DR of the latter.
    """

    self_normalised: bool = False

    def terms(self, logged: LoggedTrajectories) -> Terms:
        if logged.q_logged is None or logged.v_target is None:
            raise DataError("LoggedTrajectories: DR needs q_logged and v_target. Give both, or compute them with "
                            "trajectories.fitted_q.")  # fmt: skip
        weight = logged.ratios().cumprod(axis=1)
        model = logged.dense(logged.q_logged, 0.0), logged.dense(logged.v_target, 0.0)
        reward, users = logged.dense(logged.reward, 0.0), logged.user_key[logged.first]
        return doubly_robust(weight, reward, *model, self.clip, self.self_normalised, users, self.scale(weight))


@dataclass(frozen=True)
class FQE(_Discounted):
    """Fitted Q evaluation: q(s, a) = φ(s, a)ᵀθ with θ = ridge(φ → r + γ·Σ_a π(a|s')·q(s', a)), V̂ = 1/S Σ_i v(s_i0).

    Le, Voloshin and Yue, ICML 2019, algorithm 3, with a linear regression whose fixed point is solved for instead of
    iterated to (Duan, Jia and Wang, ICML 2020). It reads no propensities, and is biased where φ cannot express q.
    Being linear, V̂ is a weighted sum of the rewards, w_it = φ_itᵀy: these weights give the effective sample size. The
    interval is that of the sandwich ψ_i = v(s_i0) + Σ_t w_it·δ_it with the TD error δ (Hao et al., ICML 2021).
    Weights are not clipped.
    """

    ridge: float = 1e-6  # as a share of the features' mean square

    def terms(self, logged: LoggedTrajectories) -> Terms:
        phi, mean_phi = _features(logged)
        system, first = _system(phi, mean_phi, logged.first, self.discount, self.ridge), logged.first
        theta = _solve(system, phi.T @ logged.reward)  # [F]
        weight = phi @ _solve(system.T, mean_phi[first].sum(axis=0))  # [n]
        error = logged.reward + self.discount * _next(mean_phi @ theta, first) - phi @ theta  # [n] δ
        correction = np.bincount(logged.session, weight * error)  # [S] its sum is 0 but for the ridge
        start = mean_phi[first] @ theta  # [S] v(s_i0)
        return Terms(
            numerator=(start + correction - correction.mean())[:, None],
            denominator=np.ones((len(start), 1)),
            weight=weight[:, None],
            share=np.ones(1),
            user_key=logged.user_key[first],
            rewarded=bool((logged.reward != 0).any()),
            unit_mean=False,
        )


def fitted_q(
    logged: LoggedTrajectories, discount: float = 1.0, ridge: float = 1e-6, folds: int = 5
) -> tuple[Floats, Floats]:
    """``q_logged`` and ``v_target`` [n] of the linear FQE, each user's from a fit on the other folds' users.

    Without cross-fitting a model that has seen the rewards that it corrects makes DR's interval too narrow
    (Chernozhukov et al., Econometrics Journal 2018).
    """
    phi, mean_phi = _features(logged)
    users, user = np.unique(logged.user_key, return_inverse=True)
    if len(users) < 2 or folds < 2:
        raise DataError(f"fitted_q: {len(users)} users and {folds} folds leave nobody to learn from. Give two or more "
                        "of each.")  # fmt: skip
    fold = user % min(folds, len(users))
    q_logged, v_target = np.empty(len(phi)), np.empty(len(phi))
    for held_out in range(int(fold.max()) + 1):
        rows, others = fold == held_out, fold != held_out
        system = _system(phi[others], mean_phi[others], logged.first[others], discount, ridge)
        theta = _solve(system, phi[others].T @ logged.reward[others])
        q_logged[rows], v_target[rows] = phi[rows] @ theta, mean_phi[rows] @ theta
    return q_logged, v_target


def _features(logged: LoggedTrajectories) -> tuple[Floats, Floats]:
    if logged.features is None or logged.target_features is None:
        raise DataError("LoggedTrajectories: FQE needs features and target_features [n, F] of state and action.")
    return logged.features, logged.target_features


def _system(phi: Floats, mean_phi: Floats, first: Bools, discount: float, ridge: float) -> Floats:
    """ΦᵀΦ + λI − γ·ΦᵀΦ̄', whose inverse times Φᵀr is θ."""
    gram = phi.T @ phi
    penalty = ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    system: Floats = gram + penalty - discount * phi.T @ _next(mean_phi, first)
    return system


def _next(values: Floats, first: Bools) -> Floats:
    """``values`` of the next step of the session, 0 after the last one."""
    following = np.roll(values, -1, axis=0)
    following[np.roll(first, -1)] = 0
    return following


def _solve(system: Floats, right: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.solve(system, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise DataError("FQE: the log does not determine the regression (singular). Give fewer features, a larger "
                        "ridge, or a discount below 1.") from None  # fmt: skip


TRAJECTORY_ESTIMATORS = {
    "pdis": PDIS(),
    "wis": WIS(),
    "dr": TrajectoryDR(),
    "sn_dr": TrajectoryDR(self_normalised=True),
    "fqe": FQE(),
}
