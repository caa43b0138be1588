"""Intervals and tests for means over sessions, where the sessions of one user are not independent.

Users are drawn, sessions come with them. The statistic is the mean over sessions, so a resample's value is a ratio of
sums over the drawn users (Field and Welsh, JRSS B 2007: the cluster bootstrap). Intervals are percentiles.
Each user is drawn Poisson(1) times rather than U users in all: a ratio of sums has the same limit (Chamandy et al.,
"Estimating Uncertainty for Massive Data Streams", Google 2012), and independent weights cost a fifth.
The test flips the sign of a user's whole difference, which is exact when the two rankers are exchangeable within users.
Resampling is a matrix product of weights [resamples, U] and sums [U, M] in single precision, in blocks of bounded
memory; sums are centred first, so what is rounded is small beside the spread.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import poisson

from pipeline.errors import DataError

Floats = NDArray[np.float64]
CELLS = 1 << 19  # of a block of weights: larger ones leave the cache, which costs a factor of two
LEVEL = 0.95
ROUNDING = 1e-6  # of single precision, relative to the sum of absolute values
REASONS = {0: "no session has a value", 1: "one user: the spread between users is unknown"}


@dataclass(frozen=True)
class Interval:
    """A mean over sessions with its 95 % interval; nan with the reason where it cannot be known."""

    mean: float
    low: float
    high: float
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """A paired difference of means with its 95 % interval, its size among users, and the two-sided permutation p."""

    mean: float
    low: float
    high: float
    p_value: float
    effect_size: (
        float  # Cohen's d: mean over standard deviation of the users' mean differences; nan where all are equal
    )
    share_better: float  # of users, a tie counting half: the probability of superiority (McGraw and Wong, 1992)
    reason: str = ""


def cluster_bootstrap(values: ArrayLike, users: ArrayLike, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of ``values`` [S] over the sessions of ``users`` [S]; NaN values are left out."""
    return cluster_bootstraps(np.asarray(values)[:, None], users, resamples, seed)[0]


def cluster_bootstraps(
    values: NDArray[np.floating], users: ArrayLike, resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """``cluster_bootstrap`` of each column of ``values`` [S, M]; all see the same resamples of users."""
    sums, counts = _by_user(values, users)  # [U, M] each
    return _ratios(sums, counts, (counts > 0).sum(axis=0), resamples, seed)


def ratio_of_means(a: ArrayLike, b: ArrayLike, users: ArrayLike, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of ``a`` over the mean of ``b``, on the sessions [S] where both have a value."""
    both = np.column_stack([a, b]).astype(np.float64)
    both[np.isnan(both).any(axis=1)] = np.nan
    sums, counts = _by_user(both, users)  # [U, 2]
    return _ratios(sums[:, :1], sums[:, 1:], (counts[:, :1] > 0).sum(axis=0), resamples, seed)[0]


def _ratios(
    sums: Floats, denominators: Floats, n_users: NDArray[np.integer], resamples: int, seed: int
) -> list[Interval]:
    """The ratio of totals of each column of ``sums`` and ``denominators`` [U, M], ``n_users`` [M] of whom count."""
    means = _ratio(sums.sum(axis=0), denominators.sum(axis=0))
    if (denominators == denominators[:, :1]).all():
        denominators = denominators[:, :1]  # one denominator serves all
    residuals = sums - np.nan_to_num(means) * denominators  # [U, M], 0 in total
    both = np.hstack([residuals, denominators]).astype(np.float32)
    totals = np.vstack([weights @ both for weights in _poisson(len(sums), resamples, seed)]).astype(np.float64)
    draws = means + _ratio(totals[:, : sums.shape[1]], totals[:, sums.shape[1] :])  # [resamples, M]
    bounds = np.full((2, sums.shape[1]), np.nan)
    known = n_users > 1
    if known.any():
        # A resample that misses every user with a value (0 / 0) says nothing, hence the nan-quantile.
        bounds[:, known] = np.nanquantile(draws[:, known], ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return [
        Interval(float(mean), float(low), float(high), REASONS.get(int(n), ""))
        for mean, low, high, n in zip(means, *bounds, n_users, strict=True)
    ]


def paired_difference(
    a: ArrayLike, b: ArrayLike, users: ArrayLike, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """The mean of ``a`` - ``b`` over sessions [S] where both have a value."""
    return paired_differences(np.asarray(a)[:, None], np.asarray(b)[:, None], users, resamples, seed)[0]


def paired_differences(
    a: NDArray[np.floating], b: NDArray[np.floating], users: ArrayLike, resamples: int = 10_000, seed: int = 0
) -> list[Difference]:
    """``paired_difference`` of each column of ``a`` and ``b`` [S, M]."""
    if a.shape != b.shape:
        raise DataError(f"Paired values need the same sessions on both sides; got {a.shape} and {b.shape}.")
    difference = np.asarray(a - b, dtype=np.float64)
    intervals = cluster_bootstraps(difference, users, resamples, seed)
    sums, counts = _by_user(difference, users)  # [U, M] each
    columns = zip(_sign_flips(sums, resamples, seed), *_effects(_ratio(sums, counts)), strict=True)
    return [
        Difference(i.mean, i.low, i.high, np.nan if i.reason else float(p), float(d), float(share), i.reason)
        for i, (p, d, share) in zip(intervals, columns, strict=True)
    ]


def _effects(means: Floats) -> tuple[Floats, Floats]:
    """Cohen's d and the share of users who are better off, [M] each, of the users' mean differences [U, M]."""
    known = ~np.isnan(means)
    n = known.sum(axis=0)
    centre = _ratio(np.where(known, means, 0.0).sum(axis=0), n)
    variance = _ratio(np.where(known, (means - centre) ** 2, 0.0).sum(axis=0), n - 1)
    better = ((means > 0) + (means == 0) / 2).sum(axis=0)  # nan is neither
    return _ratio(centre, np.sqrt(variance)), _ratio(better, n)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics, 1979), in the given order.

    NaN stays NaN and counts as no hypothesis.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN sorts last
    adjusted = np.full_like(p, np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors)) if len(order) else []
    return adjusted


def _by_user(values: NDArray[np.floating], users: ArrayLike) -> tuple[Floats, Floats]:
    """Sums and numbers of the values [S, M] that are not NaN, by user: [U, M] each."""
    users = np.asarray(users)
    if values.ndim != 2 or users.shape != values.shape[:1]:
        raise DataError(f"Every session needs one user; got values {values.shape} and users {users.shape}.")
    labels, user = np.unique(users, return_inverse=True)

    def totals(columns: NDArray[Any]) -> Floats:
        return np.stack([np.bincount(user, column, len(labels)) for column in columns.T], axis=1)

    valid = ~np.isnan(values)
    return totals(np.where(valid, values, 0.0)), totals(valid)


def _ratio(numerators: Floats, denominators: NDArray[Any]) -> Floats:
    """The quotients, nan where the denominator is not above 0."""
    out = np.full(numerators.shape, np.nan)
    np.divide(numerators, denominators, out=out, where=denominators > 0)
    return out


def _poisson(n_users: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """How often each user is drawn, Poisson(1): blocks [b, U] of all resamples."""
    rng = np.random.default_rng(seed)
    # 16 random bits, looked up among the quantiles: many times as fast as drawing, with a variance off by 3e-5.
    levels = (np.arange(1 << 16) + 0.5) / (1 << 16)
    quantiles = np.searchsorted(poisson.cdf(np.arange(16), 1), levels).astype(np.uint8)
    for size in _blocks(n_users, resamples):
        words = rng.integers(1 << 64, size=(size, -(-n_users // 4)), dtype=np.uint64).view(np.uint16)
        yield quantiles.take(words[:, :n_users]).astype(np.float32)


def _sign_flips(sums: Floats, resamples: int, seed: int) -> Floats:
    """Two-sided p-values [M] of the users' sums [U, M] under independent signs; the data itself counts as one draw."""
    rng = np.random.default_rng(seed)
    n_users, sums = len(sums), sums.astype(np.float32)
    observed = sums.sum(axis=0, dtype=np.float64)
    # Sums that are equal on paper differ in their last bits; they must count as equally extreme.
    threshold = np.abs(observed) - ROUNDING * np.abs(sums).sum(axis=0, dtype=np.float64)
    extreme = np.ones(sums.shape[1])
    for size in _blocks(n_users, resamples):
        packed = rng.integers(256, size=(size, -(-n_users // 8)), dtype=np.uint8)
        positive = np.unpackbits(packed, axis=1, count=n_users).astype(np.float32)
        extreme += (np.abs(2 * (positive @ sums).astype(np.float64) - observed) >= threshold).sum(axis=0)
    return extreme / (resamples + 1)


def _blocks(n_users: int, resamples: int) -> Iterator[int]:
    """Resamples of each block, so that a block of weights has at most ``CELLS`` cells (or one row)."""
    step = max(1, CELLS // max(1, n_users))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
