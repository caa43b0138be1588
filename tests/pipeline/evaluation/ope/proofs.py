"""What every estimator is put to: coverage and error over many logs of a world whose value is known."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.evaluation.ope.estimate import Estimate, Estimator
from pipeline.evaluation.ope_proof import rmse_slope

Logs = Callable[[int], Any]  # a log of a seed


def estimates(estimator: Estimator[Any], logs: Logs, seeds: Iterable[int]) -> list[Estimate]:
    return [estimator.estimate(logs(seed)) for seed in seeds]


def rate(estimator: Estimator[Any], logs: Callable[[int, int], Any], sizes: tuple[int, ...], value: float) -> float:
    """The slope of log RMSE in log n, of 200 logs of each size."""
    values = {n: np.array([estimator.terms(logs(n, seed)).value for seed in range(200)]) for n in sizes}
    return rmse_slope(values, value)
