"""How well probabilities of a yes or no fit what happened. Labels are 0 or 1; arrays are one-dimensional.

AUC sees only the order: a simulator can have a fine AUC and click twice too often. Hence log-loss and Brier score,
which see the level, and the expected calibration error, which shows it by itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from pipeline.errors import DataError

Floats = NDArray[np.float64]
LEVEL = 0.95  # of intervals, and of what counts as chance


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error of G groups, and what a perfectly calibrated model would show in them."""

    groups: NDArray[np.int64]  # [G] their labels, ascending
    ece: Floats  # [G]
    chance: Floats  # [G] simultaneous 95 % points for labels drawn from the predictions
    rate: Floats  # [G] of the labels
    count: NDArray[np.int64]  # [G]


def quantile_bins(values: ArrayLike, bins: int) -> NDArray[np.int64]:
    """The bin of each value, from 0: about equally many values in each, equal ones together."""
    numbers = np.asarray(values, dtype=np.float64)
    edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, numbers, side="left").astype(np.int64)


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 10
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean prediction, observed rate and count of each bin: the points of a reliability plot.

    Bins hold about equally many predictions (equal ones stay together), because click rates crowd near zero, where
    bins of equal width would put almost everything into one.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    index = quantile_bins(p, bins)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    mean = [np.bincount(index, weights=values, minlength=bins)[filled] / count[filled] for values in (p, y)]
    return mean[0], mean[1], count[filled]


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float:
    """Σ_b n_b/n · |observed rate − mean prediction| over ``reliability``'s bins (Naeini et al. 2015, adaptive bins)."""
    predicted, observed, count = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(predicted - observed), weights=count))


def calibration_by_group(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike, bins: int = 10, draws: int = 100, seed: int = 0
) -> Calibration:
    """``expected_calibration_error`` within each group, beside what chance alone would make of it.

    The error of finitely many labels is never 0. ``draws`` times labels are drawn from the predictions, for which these
    are then perfect by construction; a group's chance level is its mean over the draws plus c standard deviations,
    where c is the 95 % point of the largest excess over all groups: of G calibrated groups, all stay below it in 95 %
    of cases. With one group it is the plain 95 % point.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    names, group, count = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    cell = np.empty(len(p), dtype=np.int64)  # [n] group and bin
    for index in range(len(names)):
        rows = group == index
        cell[rows] = index * bins + quantile_bins(p[rows], bins)

    def errors(outcomes: NDArray[np.floating]) -> Floats:
        gaps = np.bincount(cell, outcomes - p, len(names) * bins).reshape(len(names), bins)  # [G, bins]
        ece: Floats = np.abs(gaps).sum(axis=1) / count
        return ece

    rng = np.random.default_rng(seed)
    null = np.stack([errors((rng.random(len(p)) < p).astype(np.float64)) for _ in range(draws)])  # [draws, G]
    mean, spread = null.mean(axis=0), null.std(axis=0)
    largest = ((null - mean) / np.where(spread > 0, spread, 1)).max(axis=1)  # [draws]
    chance = mean + np.quantile(largest, LEVEL) * spread
    return Calibration(names, errors(y), chance, np.bincount(group, y) / count, count)


def auc_interval(labels: ArrayLike, probabilities: ArrayLike, clusters: ArrayLike) -> tuple[float, float, float]:
    """AUC with its 95 % interval where the rows of one cluster (a session) are not independent; NaN with one class.

    DeLong's structural components, summed within clusters (DeLong et al. 1988; Obuchowski, Biometrics 1997).
    """
    y, p = np.asarray(labels, dtype=bool), np.asarray(probabilities, dtype=np.float64)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan"), float("nan"), float("nan")
    rank, component = rankdata(p), np.empty(len(p))
    component[y] = (rank[y] - rankdata(p[y])) / negatives  # share of the negatives below each positive
    component[~y] = 1 - (rank[~y] - rankdata(p[~y])) / positives  # share of the positives above each negative
    auc = float(component[y].mean())
    influence = (component - auc) / np.where(y, positives, negatives)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(cluster, influence)
    n = len(sums)
    error = np.sqrt(n / (n - 1) * (sums**2).sum()) if n > 1 else np.nan
    half = float(norm.ppf((1 + LEVEL) / 2) * error)
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def survival(lengths: ArrayLike, ended: ArrayLike, horizon: int) -> Floats:
    """P(length > t) for t = 0 … ``horizon``: Kaplan and Meier's estimate (JASA 1958), flat after the longest.

    Where not ``ended``, all that is known of a length is that it is greater. With all ended it is the plain share.
    """
    size, over = np.asarray(lengths, dtype=np.int64), np.asarray(ended, dtype=bool)
    width = max(horizon, int(size.max())) + 1
    exits = np.bincount(size[over], minlength=width)  # [T] after exactly t
    at_risk = np.bincount(size, minlength=width)[::-1].cumsum()[::-1]  # [T] who reached t
    curve: Floats = np.cumprod(1 - exits / np.maximum(at_risk, 1))
    return curve[: horizon + 1]


def binary_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """log_loss, base_rate_log_loss, auc, brier, ece and n; raises DataError where there is nothing to judge.

    The base rate is the rate of ``labels`` themselves, the best constant there is. AUC is NaN with one class only.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if len(y) == 0:
        raise DataError("There are no labels to judge predictions by. Give sessions with at least one shown item.")
    if not np.isfinite(p).all():
        raise DataError(f"{int((~np.isfinite(p)).sum())} of {len(p)} predictions are not finite. Refit the simulator.")
    return {
        "log_loss": float(log_loss(y, p, labels=[0, 1])),
        "base_rate_log_loss": float(log_loss(y, np.full_like(p, y.mean()), labels=[0, 1])),
        "auc": float(roc_auc_score(y, p)) if 0 < y.sum() < len(y) else float("nan"),
        "brier": float(brier_score_loss(y, p)),
        "ece": expected_calibration_error(y, p),
        "n": float(len(y)),
    }
