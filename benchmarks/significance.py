"""What a paired comparison of two rankers costs: intervals and tests of many metrics over the sessions of many users.

``python -m benchmarks.significance --users 100000 --resamples 10000`` draws the values of two rankers and times our
intervals and tests, and beside them a loop that draws users with replacement and sums what they bring, one resample
after the other. The loop would take minutes: it runs ``--subset`` resamples, and its time is scaled up to all of them,
which is fair to it, as every resample costs the same. CPU seconds of one core count, in a process of its own each.
"""

import argparse
import os
from statistics import median

import numpy as np

from benchmarks.common import Measurement, alone, publish
from pipeline.evaluation.significance import cluster_bootstraps, paired_differences
from pipeline.schemas import RERANK_METRICS

SEED = 7
METRICS = len(RERANK_METRICS)
Values = tuple[np.ndarray, np.ndarray, np.ndarray]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--users", type=int, default=100_000, help="with one session each")
    arguments.add_argument("--resamples", type=int, default=10_000)
    arguments.add_argument("--subset", type=int, default=200, help="resamples that the loop runs")
    arguments.add_argument("--repeat", type=int, default=3)
    options = arguments.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read by the processes that are started
    size = options.users, options.resamples
    runs = [
        (alone(_draw, options.users), alone(_intervals, *size), alone(_intervals_and_tests, *size),
         alone(_loop, options.users, options.subset))
        for _ in range(options.repeat)
    ]  # fmt: skip
    drawing, intervals, both, loop = (median(run[n].cpu_seconds for run in runs) for n in range(4))
    memory = [max(run[n].peak_rss_mb for run in runs) for n in range(4)]
    scaled = (loop - drawing) * options.resamples / options.subset
    work = f"{options.resamples:,} resamples of {options.users:,} users, {METRICS} metrics"
    publish(
        "significance",
        [
            Measurement(
                f"{work}: 95 % intervals, against a loop (scaled up from {options.subset} resamples)",
                intervals - drawing,
                "CPU s",
                scaled,
                (intervals - drawing) / scaled,
                memory[1],
            ),
            Measurement(
                f"{work}: paired intervals and permutation tests", both - drawing, "CPU s", peak_rss_mb=memory[2]
            ),
            Measurement(f"{options.users:,} users, {METRICS} metrics: the values alone", memory[0], "MB"),
        ],
    )


def _values(n_users: int) -> Values:
    """The metrics of two rankers [U, M], and the users [U]."""
    rng = np.random.default_rng(SEED)
    ease = rng.normal(0, 0.2, (n_users, 1))
    first, second = (level + ease + rng.normal(0, 0.1, (n_users, METRICS)) for level in (0.50, 0.49))
    return first, second, np.arange(n_users)


def _draw(n_users: int) -> None:
    _values(n_users)


def _intervals(n_users: int, resamples: int) -> None:
    first, second, users = _values(n_users)
    cluster_bootstraps(first - second, users, resamples, SEED)


def _intervals_and_tests(n_users: int, resamples: int) -> None:
    paired_differences(*_values(n_users), resamples, SEED)


def _loop(n_users: int, resamples: int) -> None:
    first, second, users = _values(n_users)
    difference, rng = first - second, np.random.default_rng(SEED)
    means = [difference[rng.integers(len(users), size=len(users))].mean(axis=0) for _ in range(resamples)]
    np.quantile(means, (0.025, 0.975), axis=0)


if __name__ == "__main__":
    main()
