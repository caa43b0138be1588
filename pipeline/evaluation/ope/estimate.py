"""From the terms of an estimator to its estimate: value, 95 % interval, the weights' health, and whether it counts.

Every estimator here is a sum of ratios of sums over the log's n sessions (pages, single decisions):

    V̂ = Σ_m (Σ_i a_im / Σ_i b_im),   b = 1 for a plain mean, b = the weights where they are normalised by themselves.

Its interval is a clustered normal approximation. With the influence ψ_i = Σ_m (a_im − R_m·b_im) / mean(b_m), where
R_m is the m-th ratio, the variance is G/(G−1)·Σ_g (Σ_{i∈g} ψ_i)² / n² over the G users (the linearised ratio:
Särndal, Swensson and Wretman, Model Assisted Survey Sampling, 1992; the cluster-robust sum: Liang and Zeger, Biometrika
1986), and the bounds are Student's with G − 1 degrees of freedom. It agrees with the bootstrap over users, needs no
seed, and gives the difference of two policies on one log (where their errors are correlated) for nothing.
"""

import math
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from scipy import stats

from pipeline.evaluation.ope.diagnostics import effective_sample_size, mean_weight, tail_index
from pipeline.evaluation.ope.logged import Floats, Ints
from pipeline.evaluation.significance import LEVEL

Log = TypeVar("Log")
ROUNDING = 1e-3  # of mean weights on-policy, where their spread is 0: logs keep propensities in single precision


@dataclass(frozen=True)
class Support:
    """When an estimate counts.

    The defaults were chosen on the storefront's first pages of 10 slots (300 logs of 1,000 pages and 120 of 4,000,
    for each of 7 targets from near to far). There, intervals of RIPS cover the truth in 85 % of all, in 86 % of those
    with the effective sample size, and in 93 % of those that pass everything; self-normalised in 90, 93 and 94 %.
    """

    least: float = 50  # effective sample size below which there is no verdict, whatever the log's size
    share: float = 0.01  # and as a share of the log
    tail: float = 0.5  # tail index above which the weights' variance, hence the interval, cannot be known
    errors: float = 2.5  # standard errors that the mean weight may lie from 1
    uncertain: float = 0.25  # standard error of the mean weight from which on it could be anything

    def floor(self, n: int) -> float:
        return max(self.least, self.share * n)


@dataclass(frozen=True)
class Terms:
    """What an estimator makes of a log: the numerators and denominators of its ratios, and its importance weights.

    Weights are those before clipping: clipping hides a lack of overlap, it does not mend it. A column of ``weight``
    belongs to a part of the session (a slot, a step); ``share`` is that part's share of the squared reward.
    """

    numerator: Floats  # [n, M]
    denominator: Floats  # [n, M]
    weight: Floats  # [n, W]; of FQE [steps, 1]
    share: Floats  # [W] sums to 1
    user_key: Ints  # [n]
    clipped_share: float = 0.0
    rewarded: bool = True  # whether any reward was logged
    unit_mean: bool = True  # whether the weights' mean must be 1
    nested: bool = False  # whether each part's weight is the one before times a ratio

    @property
    def value(self) -> float:
        return float(self._ratios().sum())

    def influence(self) -> Floats:
        """ψ [n], whose mean is 0."""
        mean = self.denominator.mean(axis=0)
        psi: Floats = ((self.numerator - self._ratios() * self.denominator) / np.where(mean > 0, mean, 1)).sum(axis=1)
        return psi

    def _ratios(self) -> Floats:
        sums = self.denominator.sum(axis=0)
        # No weight at all is no evidence; the effective sample size of 0 says so.
        ratios: Floats = np.divide(self.numerator.sum(axis=0), sums, out=np.zeros_like(sums), where=sums > 0)
        return ratios


@dataclass(frozen=True)
class Estimate:
    """A policy's value with its 95 % interval, and how far the log supports it.

    Where ``supported`` is False there is no verdict: the numbers show why, and are not to be read as a value.
    """

    value: float
    low: float
    high: float
    n: int  # sessions, pages or decisions
    ess: float  # effective sample size: of so many on-policy ones
    tail_index: float  # of the weights: their variance is finite below 1/2
    max_weight: float
    mean_weight: float  # 1 where propensities and overlap are right; NaN where the estimator's weights need not be
    mean_weight_error: float
    clipped_share: float
    supported: bool
    reason: str = ""


@dataclass(frozen=True)
class Estimator(Generic[Log]):
    """What all estimators share. ``clip`` bounds the weights from above (Ionides 2008): less variance, some bias."""

    clip: float = math.inf
    support: Support = field(default_factory=Support)

    def terms(self, logged: Log) -> Terms:
        raise TypeError(f"{type(self).__name__} must define terms(logged)")

    def estimate(self, logged: Log) -> Estimate:
        return summarise(self.terms(logged), self.support)


def weighted(
    weight: Floats,
    reward: Floats,
    clip: float,
    self_normalised: bool,
    user_key: Ints,
    scale: Floats | float = 1.0,
    nested: bool = False,
) -> Terms:
    """The terms of Σ_m scale_m · mean_i(w_im·r_im), or of Σ_m scale_m · Σ_i w_im·r_im / Σ_i w_im. All are [n, M]."""
    used = np.minimum(weight, clip)
    denominator = used if self_normalised else np.ones_like(used)
    of_weights = _of_weights(weight, reward, clip, user_key)
    return Terms(scale * used * reward, denominator, weight, *of_weights, nested=nested)


def doubly_robust(
    weight: Floats,
    reward: Floats,
    q_logged: Floats,
    v_target: Floats,
    clip: float,
    self_normalised: bool,
    user_key: Ints,
    scale: Floats | float = 1.0,
) -> Terms:
    """The terms of Σ_m scale_m · mean_i(w_im·(r_im − q_im) + w_i,m−1·v_im), with w_i,−1 = 1. All are [n, M]."""
    used = np.minimum(weight, clip)
    before = np.hstack([np.ones_like(used[:, :1]), used[:, :-1]])  # [n, M] weight of what led to this state
    numerator = np.hstack([scale * used * (reward - q_logged), scale * before * v_target])
    denominator = np.hstack([used, before]) if self_normalised else np.ones_like(numerator)
    return Terms(numerator, denominator, weight, *_of_weights(weight, reward, clip, user_key), nested=True)


def _of_weights(weight: Floats, reward: Floats, clip: float, user_key: Ints) -> tuple[Floats, Ints, float, bool]:
    squared = (reward**2).sum(axis=0)  # [W]
    rewarded = bool(squared.sum() > 0)
    share = squared / squared.sum() if rewarded else np.full(weight.shape[1], 1 / weight.shape[1])
    return share, user_key, float((weight > clip).mean()), rewarded


def summarise(terms: Terms, support: Support) -> Estimate:
    value, error, users = terms.value, *clustered_error(terms.influence(), terms.user_key)
    n = len(terms.numerator)
    ess = effective_sample_size(terms.weight, terms.share, terms.nested) * n / len(terms.weight)
    tail = tail_index(terms.weight, terms.share)
    mean, mean_error = np.nan, np.nan
    if terms.unit_mean:
        average, residual = mean_weight(terms.weight, terms.share)
        mean, mean_error = average, clustered_error(residual, terms.user_key)[0]
    half = t_quantile(users) * error
    reason = _refusal(terms, support, ess, tail, mean, mean_error, users)
    return Estimate(
        value=value,
        low=value - half,
        high=value + half,
        n=n,
        ess=ess,
        tail_index=tail,
        max_weight=float(terms.weight.max()),
        mean_weight=mean,
        mean_weight_error=mean_error,
        clipped_share=terms.clipped_share,
        supported=not reason,
        reason=reason,
    )


def difference(first: Terms, second: Terms) -> tuple[float, float, float]:
    """The value of ``first`` minus that of ``second`` on the same log, with its 95 % interval."""
    value = first.value - second.value
    error, users = clustered_error(first.influence() - second.influence(), first.user_key)
    half = t_quantile(users) * error
    return value, value - half, value + half


def clustered_error(influence: Floats, user_key: Ints) -> tuple[float, int]:
    """The standard error of a mean whose rows move it by ``influence`` [n], and the number of users; NaN with one."""
    _, user = np.unique(user_key, return_inverse=True)
    sums = np.bincount(user, influence)
    users = len(sums)
    if users < 2:
        return math.nan, users
    return float(np.sqrt(users / (users - 1) * (sums**2).sum()) / len(influence)), users


def t_quantile(users: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, users - 1)) if users > 1 else math.nan


def _refusal(
    terms: Terms, support: Support, ess: float, tail: float, mean: float, mean_error: float, users: int
) -> str:
    """Why there is no verdict, or nothing."""
    floor = support.floor(len(terms.numerator))
    if users < 2:
        return "one user: the spread between users is unknown"
    if not terms.rewarded:
        return "no reward was logged: a value of 0 would say nothing"
    if ess < floor:
        return f"not enough overlap: an effective sample size of {ess:.1f} where {floor:.0f} are needed"
    if tail > support.tail:
        return (f"not enough overlap: the weights' tail is too heavy (index {tail:.3f}, at most {support.tail:g}) to "
                "know their variance")  # fmt: skip
    if abs(mean - 1) > support.errors * mean_error + ROUNDING:
        return (f"the mean weight is {mean:.3f} ± {mean_error:.3f} and not 1: the propensities are not those of this "
                "log, or the target shows what the log never does")  # fmt: skip
    if mean_error > support.uncertain:
        return (f"the mean weight is {mean:.3f} ± {mean_error:.3f}: a few weights outweigh all others, in slots or "
                "steps that the log seldom fills")  # fmt: skip
    return ""
