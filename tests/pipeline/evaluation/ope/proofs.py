"""What every estimator is put to: coverage and error over many logs of a world whose value is known."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from pipeline.evaluation.ope.estimate import Estimate, Estimator

Logs = Callable[[int], Any]  # a log of a seed


def estimates(estimator: Estimator[Any], logs: Logs, seeds: Iterable[int]) -> list[Estimate]:
    return [estimator.estimate(logs(seed)) for seed in seeds]


def coverage(found: list[Estimate], value: float) -> float:
    return float(np.mean([estimate.low <= value <= estimate.high for estimate in found]))


def rmse(found: list[Estimate], value: float) -> float:
    return float(np.sqrt(np.mean([(estimate.value - value) ** 2 for estimate in found])))


def rate(estimator: Estimator[Any], logs: Callable[[int, int], Any], sizes: tuple[int, ...], value: float) -> float:
    """The slope of log RMSE in log n: -1/2 for an estimator that learns as fast as a mean."""
    errors = [rmse(estimates(estimator, lambda seed, n=n: logs(n, seed), range(200)), value) for n in sizes]
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
