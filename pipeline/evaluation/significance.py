"""Intervals and tests for means over sessions, where the sessions of one user are not independent.

Users are drawn, sessions come with them. The statistic is the mean over sessions, so a resample's value is a ratio of
sums over the drawn users (Field and Welsh, JRSS B 2007: the cluster bootstrap). Intervals are percentiles.
The test flips the sign of a user's whole difference, which is exact when the two rankers are exchangeable within users.
Resampling is a matrix product of weights [resamples, U] and sums [U, M], in blocks of bounded memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import DataError

Floats = NDArray[np.float64]
CELLS = 1 << 19  # of a block of weights: larger ones leave the cache, which costs a factor of two
LEVEL = 0.95
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
    """A paired difference of means with its 95 % interval and the two-sided permutation p-value."""

    mean: float
    low: float
    high: float
    p_value: float
    reason: str = ""


def cluster_bootstrap(values: ArrayLike, users: ArrayLike, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of ``values`` [S] over the sessions of ``users`` [S]; NaN values are left out."""
    return cluster_bootstraps(np.asarray(values)[:, None], users, resamples, seed)[0]


def cluster_bootstraps(
    values: NDArray[np.floating], users: ArrayLike, resamples: int = 10_000, seed: int = 0
) -> list[Interval]:
    """``cluster_bootstrap`` of each column of ``values`` [S, M]; all see the same resamples of users."""
    sums, counts = _by_user(values, users)  # [U, M] each
    means, n_users = _ratio(sums.sum(axis=0), counts.sum(axis=0)), (counts > 0).sum(axis=0)
    if (counts == counts[:, :1]).all():
        counts = counts[:, :1]  # one denominator serves all
    both = np.hstack([sums, counts])
    totals = np.vstack([weights @ both for weights in _multinomial(len(sums), resamples, seed)])
    draws = _ratio(totals[:, : sums.shape[1]], totals[:, sums.shape[1] :])  # [resamples, M]
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
    p_values = _sign_flips(_by_user(difference, users)[0], resamples, seed)
    return [
        Difference(interval.mean, interval.low, interval.high, np.nan if interval.reason else float(p), interval.reason)
        for interval, p in zip(intervals, p_values, strict=True)
    ]


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


def _ratio(sums: Floats, counts: Floats) -> Floats:
    out = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=out, where=counts > 0)
    return out


def _multinomial(n_users: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each user is drawn when ``n_users`` are drawn with replacement: blocks [b, U] of all resamples."""
    rng = np.random.default_rng(seed)
    for size in _blocks(n_users, resamples):
        # Counting draws is several times as fast as numpy's multinomial with as many cells as draws.
        drawn = rng.integers(n_users, size=(size, n_users), dtype=np.int32) + n_users * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users).astype(np.float64)


def _sign_flips(sums: Floats, resamples: int, seed: int) -> Floats:
    """Two-sided p-values [M] of the users' sums [U, M] under independent signs; the data itself counts as one draw."""
    rng = np.random.default_rng(seed)
    n_users, observed = len(sums), sums.sum(axis=0)
    # Sums that are equal on paper differ in their last bits; they must count as equally extreme.
    threshold = np.abs(observed) - 1e-12 * np.abs(sums).sum(axis=0)
    extreme = np.ones(sums.shape[1])
    for size in _blocks(n_users, resamples):
        packed = rng.integers(256, size=(size, -(-n_users // 8)), dtype=np.uint8)
        positive = np.unpackbits(packed, axis=1, count=n_users).astype(np.float64)
        extreme += (np.abs(2 * positive @ sums - observed) >= threshold).sum(axis=0)
    return extreme / (resamples + 1)


def _blocks(n_users: int, resamples: int) -> Iterator[int]:
    """Resamples of each block, so that a block of weights has at most ``CELLS`` cells (or one row)."""
    step = max(1, CELLS // max(1, n_users))
    for start in range(0, resamples, step):
        yield min(step, resamples - start)
