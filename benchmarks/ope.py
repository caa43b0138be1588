"""Our off-policy estimates against the Open Bandit Pipeline's: the same estimator, the same log, the same number.

``python -m benchmarks.ope --steps 100000 --pages 20000`` times the value from columns in memory, checks of the input
included on both sides, as each package makes them for anybody (``replace`` puts our log together anew, so that they are
made); ``--repeat`` times in turn, of which the median counts.
Where the package has an interval, a second row compares all that ours gives (value, interval, effective sample size,
tail index, verdict) with its value and an interval of as many resamples as it takes unless told. CPU seconds of one
thread count: wall time would measure who else is on the machine.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import Measurement, publish
from benchmarks.ope_baselines import SLATES, STEPS, slate_columns, slate_value, step_columns, step_value
from pipeline.evaluation.ope.logged import LoggedSlates, LoggedSteps
from pipeline.evaluation.ope.policies import conditional_propensities, sample_slates, slot_distributions
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.ope.steps import STEP_ESTIMATORS

SEED = 7
ACTIONS, SLOTS, CANDIDATES = 20, 10, 30
T = TypeVar("T")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=100_000)
    arguments.add_argument("--pages", type=int, default=20_000, help=f"of {SLOTS} slots")
    arguments.add_argument("--repeat", type=int, default=3)
    options = arguments.parse_args()
    with threadpool_limits(1):
        publish("ope", [*_steps(options.steps, options.repeat), *_slates(options.pages, options.repeat)])


def _steps(n: int, repeat: int) -> list[Measurement]:
    rng = np.random.default_rng(SEED)
    behaviour, target = rng.dirichlet(np.full(ACTIONS, 2.0), (2, n))  # [n, A] each
    action = (behaviour.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=ACTIONS - 1)
    q, at = rng.random((n, ACTIONS)), (np.arange(n), action)
    reward = (rng.random(n) < q[at]).astype(float)
    logged = LoggedSteps(reward, behaviour[at], target[at], np.arange(n), q[at], (target * q).sum(axis=1))
    theirs = step_columns(logged, action, target[:, :, None], q[:, :, None])
    return [
        _compare(f"{name} of {n:,} decisions", repeat, lambda name=name: step_value(name, theirs),
                 lambda name=name: STEP_ESTIMATORS[name].terms(replace(logged)).value)
        for name in STEPS
    ] + [_full(f"ips of {n:,} decisions", repeat, lambda: STEPS["ips"]().estimate_interval(**theirs),
               lambda: STEP_ESTIMATORS["ips"].estimate(replace(logged)))]  # fmt: skip


def _slates(n: int, repeat: int) -> list[Measurement]:
    rng = np.random.default_rng(SEED)
    behaviour = rng.normal(size=(n, CANDIDATES))
    target = behaviour + 0.3 * rng.normal(size=(n, CANDIDATES))
    slates = sample_slates(behaviour, SLOTS, rng)
    chances, q = slot_distributions(target, slates), rng.random((n, SLOTS, CANDIDATES))
    conditional = [conditional_propensities(logits, slates) for logits in (behaviour, target)]
    shown = np.take_along_axis(q, slates[:, :, None], axis=2)[:, :, 0]
    reward = (rng.random((n, SLOTS)) < shown).astype(float)
    # Their propensities stand for the marginals, too: what a number is does not change what it costs.
    logged = LoggedSlates(reward, *conditional, np.ones((n, SLOTS), bool), np.arange(n), *conditional,
                          q_logged=shown, v_target=(chances * q).sum(axis=2))  # fmt: skip
    theirs = slate_columns(logged, slates, chances, q)
    return [
        _compare(f"{name} of {n:,} pages", repeat, lambda name=name: slate_value(name, theirs, SLOTS, CANDIDATES),
                 lambda name=name: SLATE_ESTIMATORS[name].terms(replace(logged)).value)
        for name in (*SLATES, "cascade_dr")
    ] + [_full(f"rips of {n:,} pages", repeat, lambda: SLATES["rips"](len_list=SLOTS).estimate_interval(**theirs),
               lambda: SLATE_ESTIMATORS["rips"].estimate(replace(logged)))]  # fmt: skip


def _compare(what: str, repeat: int, theirs: Callable[[], float], ours: Callable[[], float]) -> Measurement:
    runs = [(_timed(theirs), _timed(ours)) for _ in range(repeat)]
    (_, expected), (_, found) = runs[0]
    if not np.isclose(found, expected, rtol=1e-9, atol=0):
        raise SystemExit(f"{what}: ours gives {found!r}, the Open Bandit Pipeline {expected!r}. They must agree.")
    return _measurement(f"value by {what}", runs)


def _full(what: str, repeat: int, theirs: Callable[[], Any], ours: Callable[[], Any]) -> Measurement:
    return _measurement(f"value and interval by {what}", [(_timed(theirs), _timed(ours)) for _ in range(repeat)])


def _measurement(what: str, runs: list[tuple[tuple[float, Any], tuple[float, Any]]]) -> Measurement:
    theirs, ours = (median(run[side][0] for run in runs) for side in (0, 1))
    return Measurement(what, ours, "CPU s", theirs, ours / theirs)


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
