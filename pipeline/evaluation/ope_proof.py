"""The off-policy estimators held against the storefront's truth: every claim that a reviewer would ask for, measured.

Logs are simulated again and again, each is judged as anybody's would be, and what comes out is compared with what the
rankers are truly worth. Which claims hold is in the rows; nothing here raises when one does not. Beside each claim go
the estimates that it was measured from, so that it can be measured again.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from models.simulators.storefront import Storefront
from pipeline.evaluation.ope.diagnostics import policy_selection
from pipeline.evaluation.ope.estimate import Estimate, Estimator
from pipeline.evaluation.ope.logged import Floats
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.ope.steps import STEP_ESTIMATORS
from pipeline.evaluation.ope.trajectories import TRAJECTORY_ESTIMATORS
from pipeline.evaluation.proof_logs import (
    FIRST_PAGES,
    LOGGING,
    ONE_ITEM,
    Pages,
    Ranker,
    judged_pages,
    judged_sessions,
    judged_steps,
    play,
    resized,
    session_value,
    users,
    with_fitted_model,
    with_true_model,
)
from pipeline.plan import Job
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import write_parquet

SIZE = 400  # users of a log
SHORT = 80  # of those judged by the marginal propensities of slots, whose quadrature takes most of the time
LONG = 1_000  # of those that are to choose between rankers, and that the floors are tried on
TRUTH_USERS = 20_000  # sessions that the value of a ranker is averaged over
NEAR = Ranker("near: temperature 0.8", temperature=0.8)
HALF = Ranker("half the temperature", temperature=0.5)
COLD = Ranker("a tenth of the temperature", temperature=0.1)
RATED = Ranker("more weight on ratings", rating=0.3)
CHOICE = (LOGGING, NEAR, RATED, Ranker("hot", temperature=1.5), Ranker("cool", temperature=0.65),
          Ranker("less weight on ratings", rating=-0.3), Ranker("more weight on badges", badge=0.3),
          Ranker("less weight on badges", badge=-0.3))  # fmt: skip
MISTAKEN = Ranker("whom the log is mistaken for", temperature=1.5)
ITEMWISE = ("iips", "sn_iips")
PAGEWISE = ("sips", "sn_sips", "rips", "sn_rips", "cascade_dr", "sn_cascade_dr")

COVERAGE = 0.90, 0.98  # of 95 % intervals
BIAS = 0.0, 0.25  # in standard deviations of the estimate from one log; 220 logs leave 0.07 of them to chance
SLOPE = -0.65, -0.35  # of log RMSE in log n; in theory -1/2
ROUNDING = 1e-6  # of a value: logged propensities are single precision
UNBIASED = 0.0, 0.01  # of a value: for neighbours' effects, which no cascade has, and what is left of chance
BIASED = 0.05, None  # what is seen where nothing makes an estimate right
CLAIM = "claim", "setting", "estimator", "target"  # what names one
Row = dict[str, Any]
Logs = Sequence[Any]  # of one kind


@dataclass(frozen=True)
class Claim:
    """What was measured of an estimator, and the estimates, one a log and ranker, that it was measured from."""

    row: Row  # of ope_proof
    rests_on: list[Row]  # of ope_proof_logs


def prove_estimators(job: Job) -> None:
    """``ope_proof`` and its logs of a storefront; no rows for other logs, whose truth nobody knows."""
    experiment = job.experiment
    claims = prove(experiment.budgets().proof_logs) if experiment.source.kind == "storefront" else []
    estimates = [*chain.from_iterable(claim.rests_on for claim in claims)]
    for name, rows in (("ope_proof", [claim.row for claim in claims]), ("ope_proof_logs", estimates)):
        table = pa.Table.from_pylist(rows, schema=SCHEMAS[name])
        write_parquet(job.folder("ope_proof") / f"{name}.parquet", name, table.to_batches())


def prove(logs: int) -> list[Claim]:
    """Every claim, from ``logs`` replications of ``SIZE`` users."""
    torch.set_num_threads(1)
    with threadpool_limits(1):  # the products are small: threads cost more than they bring
        return [*_prove_pages(logs), *_prove_items_and_sessions(logs)]


@dataclass(frozen=True)
class Trial:
    """Logs of one world that are judged for one ranker."""

    setting: str  # page, item or session
    ranker: Ranker
    truth: float  # the ranker's value; NaN where it is not asked for
    logs: Logs

    def resized(self, n: int) -> "Trial":
        return replace(self, logs=resized(self.logs, n))

    def labels(self, estimator: str) -> Row:
        return {"setting": self.setting, "estimator": estimator, "target": self.ranker.name, **self._known()}

    def estimates(self, estimator: Estimator[Any]) -> list[Estimate]:
        """What is said of each log."""
        return [estimator.estimate(log) for log in self.logs]

    def values(self, estimator: Estimator[Any]) -> Floats:
        """The estimate from each log, without its interval."""
        return np.array([estimator.terms(log).value for log in self.logs])

    def rows(self, found: Iterable[Row]) -> list[Row]:
        """What was ``found`` in each log as rows of ``ope_proof_logs``, for a claim to put its name on."""
        known = {"ranker": self.ranker.name, **self._known()}
        return [known | {"log": log, **told} for log, told in enumerate(found)]

    def _known(self) -> Row:
        return {"n": users(self.logs[0]), "truth": None if math.isnan(self.truth) else self.truth}


def _prove_pages(logs: int) -> Iterator[Claim]:
    shop = Storefront(FIRST_PAGES)
    pages = [next(play(shop, SIZE, seed)) for seed in range(logs)]
    short = [next(play(shop, SHORT, seed)) for seed in range(logs)]
    near, rated = (_fitted(pages, _page_trial(pages, ranker)) for ranker in (NEAR, RATED))
    near_short = replace(near, logs=[judged_pages(page, NEAR, marginals=True) for page in short])
    for names, trials in ((PAGEWISE, (near, rated)), (ITEMWISE, (near_short,))):
        estimators = {name: SLATE_ESTIMATORS[name] for name in names}
        for trial in trials:
            yield from covers(estimators, trial)
        yield from learns(estimators, trials[0])
    yield from on_policy(_named(SLATE_ESTIMATORS, "sips", "rips"), _page_trial(pages[:1], LOGGING))
    marginal = replace(near, ranker=LOGGING, logs=[judged_pages(short[0], LOGGING, marginals=True)])
    yield from on_policy(_named(SLATE_ESTIMATORS, *ITEMWISE), marginal)
    yield from _doubly_robust_pages(pages[::4], replace(near, logs=near.logs[::4]))
    yield from _floors(pages[::2])
    yield from _selection(pages[::4])


def _page_trial(pages: Sequence[Pages], ranker: Ranker) -> Trial:
    truth = np.mean([page.value(ranker, seed) for seed, page in enumerate(pages)])
    return Trial("page", ranker, float(truth), [judged_pages(page, ranker) for page in pages])


def _fitted(pages: Sequence[Pages], trial: Trial) -> Trial:
    both = zip(trial.logs, pages, strict=True)
    return replace(trial, logs=[with_fitted_model(log, page, trial.ranker) for log, page in both])


def _doubly_robust_pages(pages: Sequence[Pages], near: Trial) -> Iterator[Claim]:
    logs = [
        replace(with_true_model(log, page, NEAR, seed), reward=page.worth(page.slates))
        for seed, (log, page) in enumerate(zip(near.logs, pages, strict=True))
    ]
    believed = [judged_pages(page, MISTAKEN).target for page in pages]
    yield from doubly_robust(_named(SLATE_ESTIMATORS, "cascade_dr", "rips"), replace(near, logs=logs), believed)


def _floors(pages: Sequence[Pages]) -> Iterator[Claim]:
    """Whole pages get no verdict where their slots do, though the propensities are exact; far away nothing does."""
    half, cold = (
        Trial("page", ranker, math.nan, [judged_pages(page, ranker) for page in pages]).resized(LONG)
        for ranker in (HALF, COLD)
    )
    whole, slots = _named(SLATE_ESTIMATORS, "sips", "sn_sips"), _named(SLATE_ESTIMATORS, "rips", "sn_rips")
    yield from verdicts("refused", whole, half, 0.0, 0.1)
    yield from verdicts("supported", slots, half, 0.85, 1.0)
    yield from verdicts("refused", whole | slots, cold, 0.0, 0.05)


def _selection(pages: Sequence[Pages]) -> Iterator[Claim]:
    trials = [_page_trial(pages, ranker).resized(LONG) for ranker in CHOICE]
    yield from selects(_named(SLATE_ESTIMATORS, "rips", "sn_rips"), trials)


def _prove_items_and_sessions(logs: int) -> Iterator[Claim]:
    shop = Storefront(ONE_ITEM)
    played = [list(play(shop, SIZE, seed)) for seed in range(logs)]
    first = [pages[0] for pages in played]
    for ranker in (HALF, RATED):
        items: Logs = [judged_steps(page, ranker) for page in first]
        item = Trial("item", ranker, _model_value(items), items)
        truth = session_value(shop, TRUTH_USERS, logs, ranker)  # of users in none of the logs
        session = Trial("session", ranker, truth, [judged_sessions(pages, ranker) for pages in played])
        for estimators, trial in ((STEP_ESTIMATORS, item), (TRAJECTORY_ESTIMATORS, session)):
            yield from covers(estimators, trial)
            if ranker is HALF:
                yield from learns(estimators, trial)
        if ranker is HALF:
            logged = Trial("item", LOGGING, math.nan, [judged_steps(first[0], LOGGING)])
            yield from on_policy(_named(STEP_ESTIMATORS, "ips", "snips"), logged)
            believed = [judged_steps(page, MISTAKEN).target for page in first]
            expected = [replace(log, reward=log.q_logged) for log in items]
            yield from doubly_robust(_named(STEP_ESTIMATORS, "dr", "ips"), replace(item, logs=expected), believed)


def _model_value(logs: Logs) -> float:
    """The value where the model that the logs carry is exactly right."""
    return float(np.mean([log.v_target.mean() for log in logs]))


def _named(estimators: Mapping[str, Estimator[Any]], *names: str) -> dict[str, Estimator[Any]]:
    return {name: estimators[name] for name in names}


# ---- claims


def on_policy(estimators: Mapping[str, Estimator[Any]], trial: Trial) -> Iterator[Claim]:
    """Of the ranker that made the log, every estimate is the mean of the log."""
    log = trial.logs[0]
    mean = float(log.reward.sum() / len(log))
    trial, error = replace(trial, truth=mean, logs=[log]), ROUNDING * mean
    for name, estimator in estimators.items():
        (found,) = trial.estimates(estimator)
        rows = trial.rows(_whole([found]))
        yield _claim("on_policy", trial.labels(name), rows, 1, found.value, mean - error, mean + error)


def covers(estimators: Mapping[str, Estimator[Any]], trial: Trial) -> Iterator[Claim]:
    """95 % intervals hold the truth as often as they say, of estimates with a verdict; the mean of all is right."""
    for name, estimator in estimators.items():
        found = trial.estimates(estimator)
        counted = [estimate for estimate in found if estimate.supported]
        values = np.array([estimate.value for estimate in found])
        labels, rows = trial.labels(name), trial.rows(_whole(found))
        yield _claim("coverage", labels, rows, len(counted), coverage(counted, trial.truth), *COVERAGE)
        yield _claim("bias", labels, rows, len(found), abs(values.mean() - trial.truth) / values.std(), *BIAS)


def learns(estimators: Mapping[str, Estimator[Any]], trial: Trial) -> Iterator[Claim]:
    """The root mean squared error falls like 1/√n: the slope of its logarithm in that of n."""
    n = users(trial.logs[0])
    trials = [trial.resized(size) for size in (n // 2, n, 4 * n)]
    for name, estimator in estimators.items():
        values = [one.values(estimator) for one in trials]
        sizes = [users(one.logs[0]) for one in trials]
        slope = rmse_slope(dict(zip(sizes, values, strict=True)), trial.truth)
        yield _claim("rmse_slope", trials[-1].labels(name), _valued(trials, values), len(values[-1]), slope, *SLOPE)


def doubly_robust(
    estimators: Mapping[str, Estimator[Any]], trial: Trial, believed: Sequence[Floats]
) -> Iterator[Claim]:
    """Unbiased with a wrong model or with wrong propensities; visibly not with both, nor by weights alone.

    ``estimators`` are the doubly robust one and the one without a model. The logs of ``trial`` carry the right model
    and, as rewards, what was to be expected of the pages shown: estimates are linear in rewards, so these leave out
    chance and no bias. The wrong model is minus the right one; ``believed`` are wrong propensities of each log.
    """
    (robust, plain), right = estimators, trial.logs
    wrong = [replace(log, q_logged=-log.q_logged, v_target=-log.v_target) for log in right]

    def misjudged(logs: Logs) -> Logs:
        return [replace(log, behaviour=chances) for log, chances in zip(logs, believed, strict=True)]

    for claim, name, amiss, logs in (
        ("doubly_robust", robust, "wrong model", wrong),
        ("doubly_robust", robust, "wrong propensities", misjudged(right)),
        ("visibly_biased", robust, "both wrong", misjudged(wrong)),
        ("visibly_biased", plain, "wrong propensities", misjudged(right)),
    ):
        values = replace(trial, logs=logs).values(estimators[name])
        labels = trial.labels(name) | {"target": f"{trial.ranker.name}; {amiss}"}
        error, bounds = abs(values.mean() / trial.truth - 1), UNBIASED if claim == "doubly_robust" else BIASED
        yield _claim(claim, labels, _valued([trial], [values]), len(logs), error, *bounds)


def verdicts(
    claim: str, estimators: Mapping[str, Estimator[Any]], trial: Trial, least: float, most: float
) -> Iterator[Claim]:
    """The share of the logs from which an estimate gets a verdict."""
    for name, estimator in estimators.items():
        found = trial.estimates(estimator)
        share = float(np.mean([estimate.supported for estimate in found]))
        yield _claim(claim, trial.labels(name), trial.rows(_whole(found)), len(found), share, least, most)


def selects(estimators: Mapping[str, Estimator[Any]], trials: Sequence[Trial]) -> Iterator[Claim]:
    """Estimates order rankers as the truth does; regret@1 is a share of what lies between the best and the worst."""
    true = np.array([trial.truth for trial in trials])
    for name, estimator in estimators.items():
        estimated = np.stack([trial.values(estimator) for trial in trials])  # [rankers, logs]
        found = [policy_selection(values, true) for values in estimated.T]
        rho, regret = np.mean([(one.rho, one.regret / np.ptp(true)) for one in found], axis=0)
        labels = trials[0].labels(name) | {"target": f"{len(trials)} rankers", "truth": None}
        rows = _valued(trials, estimated)
        yield _claim("selection", labels, rows, len(found), rho, 0.7, 1.0)
        yield _claim("selection_regret", labels, rows, len(found), regret, 0.0, 0.25)


def coverage(found: Sequence[Estimate], truth: float) -> float:
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))


def rmse_slope(values: Mapping[int, Floats], truth: float) -> float:
    """The slope of log RMSE in log n, of the ``values`` estimated at each n: -1/2 for what learns as fast as a mean."""
    rmse = [np.sqrt(((estimated - truth) ** 2).mean()) for estimated in values.values()]
    return float(np.polyfit(np.log(list(values)), np.log(rmse), 1)[0])


def _whole(found: Iterable[Estimate]) -> Iterator[Row]:
    return ({"value": one.value, "ci_low": one.low, "ci_high": one.high, "supported": one.supported} for one in found)


def _valued(trials: Iterable[Trial], values: Iterable[Floats]) -> list[Row]:
    """Rows of claims that ask for values alone, those of each trial's logs."""
    both = zip(trials, values, strict=True)
    return [row for trial, found in both for row in trial.rows({"value": value} for value in found.tolist())]


def _claim(
    claim: str, labels: Row, rests_on: list[Row], logs: int, value: float, least: float, most: float | None
) -> Claim:
    holds = value >= least and (most is None or value <= most)
    row = {"claim": claim, **labels, "logs": logs, "value": float(value), "least": least, "most": most,
           "holds": bool(holds)}  # fmt: skip
    name = {column: row[column] for column in CLAIM}
    return Claim(row, [name | one for one in rests_on])
