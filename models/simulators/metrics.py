"""How well probabilities of a yes or no fit what happened. Labels are 0 or 1; arrays are one-dimensional.

AUC sees only the order: a simulator can have a fine AUC and click twice too often. Hence log-loss and Brier score,
which see the level, and the expected calibration error, which shows it by itself.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from pipeline.errors import DataError

Floats = NDArray[np.float64]


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 10
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean prediction, observed rate and count of each bin: the points of a reliability plot.

    Bins hold about equally many predictions (equal ones stay together), because click rates crowd near zero, where
    bins of equal width would put almost everything into one.
    """
    y, p = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    edges = np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1])
    index = np.searchsorted(edges, p, side="left")
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    mean = [np.bincount(index, weights=values, minlength=bins)[filled] / count[filled] for values in (p, y)]
    return mean[0], mean[1], count[filled]


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float:
    """Σ_b n_b/n · |observed rate − mean prediction| over ``reliability``'s bins (Naeini et al. 2015, adaptive bins)."""
    predicted, observed, count = reliability(labels, probabilities, bins)
    return float(np.average(np.abs(predicted - observed), weights=count))


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
