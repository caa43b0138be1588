"""Whether importance weights can be trusted, and whether estimates rank policies as the truth does."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pipeline.errors import DataError
from pipeline.evaluation.ope.logged import Floats


def effective_sample_size(weight: Floats, share: Floats | None = None, nested: bool = False) -> float:
    """How many on-policy sessions would serve as well: (Σ_i w_i)² / Σ_i w_i² (Kish, Survey Sampling, 1965).

    ``weight`` is [n] or [n, W]. Where the W parts of a session have weights of their own, the variance of their sum is
    Σ_m share_m / ess_m when each part's reward has that ``share`` [W] of the squared reward and does not depend on
    its weight; hence the harmonic mean of the parts' sizes. ``nested`` weights are products that grow from part to
    part: their second moments cannot fall, so a later part that seems to have more than an earlier one has only not
    met its large weights yet, and gets the earlier one's.
    """
    table = weight.reshape(len(weight), -1)
    share = np.full(table.shape[1], 1 / table.shape[1]) if share is None else share
    squares = (table**2).sum(axis=0)
    sizes = np.divide(table.sum(axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
    sizes = np.minimum.accumulate(sizes) if nested else sizes
    counted = share > 0
    return float(1 / (share[counted] / sizes[counted]).sum()) if (sizes[counted] > 0).all() else 0.0


def tail_index(weight: Floats, share: Floats) -> float:
    """How heavy the tail of the weights [n, W] is: the mean by ``share`` [W] of the parts' generalised Pareto shape.

    Below 1/2 a weight's variance is finite, so that its mean has a normal interval; from 1 on not even the mean can be
    learnt. The shape is fitted to the largest min(n/5, 3·√n) weights (Vehtari et al., JMLR 2024, "Pareto smoothed
    importance sampling"); 0 where fewer than 5 of them differ from the rest: the other diagnostics must see those.
    """
    return float(
        sum(part * _pareto_shape(np.abs(column)) for part, column in zip(share, weight.T, strict=True) if part)
    )


def _pareto_shape(weight: Floats) -> float:
    """Zhang and Stephens' estimate (Technometrics 2009) with the weak prior towards 1/2 of Vehtari et al."""
    n = len(weight)
    kept = int(min(n / 5, 3 * np.sqrt(n)))
    ordered = np.sort(weight)
    excess = ordered[n - kept :] - ordered[n - kept - 1] if kept else ordered[:0]
    excess = excess[excess > 1e-9 * ordered[-1]] if n else excess  # what rounding leaves of equal weights is no tail
    if len(excess) < 5:
        return 0.0
    points = 30 + int(np.sqrt(len(excess)))
    quartile = excess[int(len(excess) / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(points / (np.arange(points) + 0.5))) / (3 * quartile)  # [points]
    shape = np.log1p(-grid[:, None] * excess).mean(axis=1)
    scale = np.divide(-grid, shape, out=np.full_like(grid, 1 / excess.mean()), where=shape != 0)  # its limit at 0
    log_likelihood = len(excess) * (np.log(scale) - shape - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    best = (grid * weights).sum() / weights.sum()
    fitted = float(np.log1p(-best * excess).mean())
    return (len(excess) * fitted + 5) / (len(excess) + 10)


def mean_weight(weight: Floats, share: Floats) -> tuple[float, Floats]:
    """The mean of the parts' weights [n, W] by their ``share`` [W], and each row's deviation from it, [n]."""
    rows = weight @ share
    mean = float(rows.mean())
    return mean, rows - mean


def overlaps(target: Floats, behaviour: Floats, floor: float) -> Floats:
    """Of each decision, the share of the target's mass on actions that the behaviour takes with more than ``floor``.

    Both are distributions [..., R] over the same candidates, padding has 0 in both: [...].
    """
    if target.shape != behaviour.shape:
        raise DataError(f"Overlap needs the same candidates on both sides; got {target.shape} and {behaviour.shape}.")
    shares: Floats = np.where(behaviour > floor, target, 0).sum(axis=-1) / target.sum(axis=-1)
    return shares


@dataclass(frozen=True)
class Selection:
    """How well estimates choose between policies."""

    rho: float  # Spearman's correlation of estimated and true values
    regret: float  # true value of the best policy minus that of the one with the best estimate


def policy_selection(estimated: ArrayLike, true: ArrayLike) -> Selection:
    """``rho`` and regret@1 of P policies' ``estimated`` [P] against their ``true`` values [P]."""
    estimates, values = np.asarray(estimated, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if estimates.shape != values.shape or len(values) < 2:
        raise DataError(f"Policies are compared two or more at a time, each with both values; got {estimates.shape} "
                        f"and {values.shape}.")  # fmt: skip
    chosen = values[estimates.argmax()]
    return Selection(float(stats.spearmanr(estimates, values).statistic), float(values.max() - chosen))
