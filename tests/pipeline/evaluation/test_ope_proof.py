"""What is claimed of the off-policy estimators holds in the storefront, and a claim that fails says so."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.evaluation import ope_proof
from pipeline.evaluation.ope.estimate import Estimator, Support
from pipeline.evaluation.ope.logged import LoggedSteps
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.ope.steps import DR, IPS, STEP_ESTIMATORS
from pipeline.evaluation.ope.trajectories import TRAJECTORY_ESTIMATORS
from pipeline.evaluation.ope_proof import (
    CLAIM,
    COVERAGE,
    Claim,
    Trial,
    covers,
    doubly_robust,
    learns,
    on_policy,
    prove,
    rmse_slope,
    selects,
    verdicts,
)
from pipeline.evaluation.proof_logs import LOGGING
from pipeline.experiment import Experiment
from pipeline.plan import Job
from pipeline.results import build_results, query
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import read_table
from tests.conftest import TINY
from tests.pipeline.evaluation.ope.worlds import Bandit
from tests.published import publish

BANDIT = Bandit()
LOGS = 40  # replications: coverage is then known within 3.4 points, the other claims well enough


@pytest.fixture(scope="module")
def proved() -> list[Claim]:
    return prove(LOGS)


@pytest.fixture(scope="module")
def claims(proved: list[Claim]) -> pd.DataFrame:
    return pd.DataFrame([claim.row for claim in proved])


@pytest.fixture(scope="module")
def estimates(proved: list[Claim]) -> pd.DataFrame:
    return pd.DataFrame([row for claim in proved for row in claim.rests_on])


@pytest.fixture(scope="module")
def results(claims: pd.DataFrame, estimates: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    tables = {"ope_proof": claims, "ope_proof_logs": estimates}
    made = {name: pa.Table.from_pandas(rows, SCHEMAS[name], preserve_index=False) for name, rows in tables.items()}
    build_results(publish(folder / "data", made), folder / "results.duckdb")
    return folder / "results.duckdb"


def of(claims: pd.DataFrame, claim: str) -> pd.DataFrame:
    found = claims[claims.claim == claim]
    assert len(found)
    return found


def test_claims_are_rows_of_the_table(claims: pd.DataFrame) -> None:
    assert set(claims.columns) == set(SCHEMAS["ope_proof"].names)
    assert not claims.duplicated([*CLAIM]).any()


def test_every_claim_can_be_measured_again_from_its_rows(claims: pd.DataFrame, results: Path) -> None:
    answer = query(results, "ope_proof_recomputed").to_pandas()
    assert len(answer) == len(claims)
    assert answer.error.abs().max() < 1e-9
    assert answer.error.notna().all()
    assert set(answer.claim) == {"on_policy", "coverage", "bias", "rmse_slope", "doubly_robust", "visibly_biased",
                                 "refused", "supported", "selection", "selection_regret"}  # fmt: skip


def test_a_claim_rests_on_one_estimate_a_log_and_ranker(estimates: pd.DataFrame, claims: pd.DataFrame) -> None:
    assert not estimates.duplicated([*CLAIM, "ranker", "n", "log"]).any()
    assert set(estimates.columns) == set(SCHEMAS["ope_proof_logs"].names)
    largest = estimates[estimates.n == estimates.groupby([*CLAIM]).n.transform("max")]
    counted = largest[(largest.claim != "coverage") | largest.supported.eq(True)]
    logs = counted.groupby([*CLAIM]).log.nunique()
    assert logs.to_dict() == claims.set_index([*CLAIM]).logs.to_dict()


def test_one_query_lists_what_a_claim_rests_on(claims: pd.DataFrame, results: Path) -> None:
    rows = query(results, "ope_proof_rows", {"claim": "coverage", "estimator": "sn_rips"}).to_pandas()
    assert rows.groupby("target").log.agg(list).map(lambda logs: logs == [*range(LOGS)]).all()
    counted = rows[rows.supported]
    hits = counted.truth.between(counted.ci_low, counted.ci_high).groupby(counted.target).mean()
    published = of(claims, "coverage").query("estimator == 'sn_rips'").set_index("target").value
    assert hits.to_dict() == pytest.approx(published.to_dict())


@pytest.mark.parametrize("claim", ["on_policy", "refused", "supported", "visibly_biased"])
def test_what_takes_no_luck_holds(claim: str, claims: pd.DataFrame) -> None:
    assert of(claims, claim).holds.all()


def test_intervals_cover_the_truth_on_the_whole(claims: pd.DataFrame) -> None:
    found = of(claims, "coverage")
    assert COVERAGE[0] <= found.value.mean() <= COVERAGE[1]
    assert found.value.min() > 0.8
    assert (found.logs > 0.7 * LOGS).all()


def test_every_estimator_is_proved_but_the_pseudo_inverse(claims: pd.DataFrame) -> None:
    """Its second moment differs from page to page here, and could only be sampled."""
    found = of(claims, "coverage").groupby("setting").estimator.unique().map(set).to_dict()
    pages = {name for name in SLATE_ESTIMATORS if not name.endswith("pseudo_inverse")}
    assert found == {"page": pages, "item": {*STEP_ESTIMATORS}, "session": {*TRAJECTORY_ESTIMATORS}}


def test_whole_page_weights_are_refused_where_those_of_slots_are_not(claims: pd.DataFrame) -> None:
    half = claims[claims.target == "half the temperature"].set_index(["claim", "estimator"]).value
    assert half["refused", "sips"] <= 0.1 < 0.85 <= half["supported", "rips"]


def test_the_doubly_robust_survive_what_ruins_the_others(claims: pd.DataFrame) -> None:
    robust, biased = (
        of(claims, name).set_index(["setting", "estimator"]) for name in ("doubly_robust", "visibly_biased")
    )
    assert robust.loc["item"].value.max() < 0.02
    assert robust.loc["page"].value.max() < 0.03
    assert robust.index.get_level_values("estimator").isin(["dr", "cascade_dr"]).all()
    assert (biased.value > 0.2).all()
    assert set(biased.index) == {("item", "dr"), ("item", "ips"), ("page", "cascade_dr"), ("page", "rips")}


def test_estimates_choose_well_between_rankers(claims: pd.DataFrame) -> None:
    assert of(claims, "selection").value.min() > 0.7
    assert of(claims, "selection_regret").value.max() < 0.25


@pytest.mark.slow
def test_the_same_proof_gives_the_same_rows() -> None:
    assert prove(20) == prove(20)


@pytest.mark.slow
def test_every_claim_holds_with_enough_logs() -> None:
    found = pd.DataFrame([claim.row for claim in prove(220)])
    assert found.holds.all(), found[~found.holds].to_string()
    assert (of(found, "coverage").query("target.str.startswith('near')").logs >= 200).all()


@pytest.mark.parametrize(("kind", "rows"), [("storefront", 25), ("movielens", 0)])
def test_only_where_the_truth_is_known_there_is_a_proof(
    kind: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many claims as logs: the profile says how many, and one's own budget goes before it."""
    made = Claim({"claim": "made"}, [{"claim": "made", "log": log} for log in range(2)])
    monkeypatch.setattr(ope_proof, "prove", lambda logs: [made] * logs)
    experiment = Experiment.model_validate(TINY | {"source": {"kind": kind}, "budget": {"proof_logs": 25}})
    job = SimpleNamespace(experiment=experiment, folder=lambda table: tmp_path)
    ope_proof.prove_estimators(cast(Job, job))
    assert len(read_table([tmp_path / "ope_proof.parquet"], "ope_proof")) == rows
    assert len(read_table([tmp_path / "ope_proof_logs.parquet"], "ope_proof_logs")) == 2 * rows


# ---- each claim fails where it is not so


class TooSure(IPS):
    """IPS whose log is a tenth of what it seems: each row counts ten times."""

    def estimate(self, logged: LoggedSteps) -> Any:
        columns = (logged.reward, logged.behaviour, logged.target)
        many = LoggedSteps(*(np.repeat(x, 10) for x in columns), np.arange(10 * len(logged)))
        return IPS(support=self.support).estimate(many)


class Stubborn(IPS):
    """An estimator that does not learn from more data."""

    def terms(self, logged: LoggedSteps) -> Any:
        return super().terms(replace(logged, reward=np.full(len(logged), logged.reward[:100].mean())))


def trial(value: float = BANDIT.value) -> Trial:
    return Trial("item", LOGGING, value, [BANDIT.log(200, 1, seed) for seed in range(60)])


def skewed(log: LoggedSteps) -> LoggedSteps:
    return replace(log, behaviour=log.behaviour * 0.5)


BROKEN: list[tuple[str, Callable[[], Iterator[Claim]]]] = [
    ("on_policy", lambda: on_policy({"ips": IPS()}, trial())),  # judged for another policy than the log's
    ("coverage", lambda: covers({"too sure": TooSure()}, trial())),
    ("bias", lambda: covers({"ips": IPS()}, replace(trial(), truth=BANDIT.value + 0.05))),
    ("rmse_slope", lambda: learns({"stubborn": Stubborn()}, trial())),
    ("refused", lambda: verdicts("refused", {"ips": IPS()}, trial(), 0.0, 0.1)),
    ("supported", lambda: verdicts("supported", {"ips": IPS(support=Support(least=1e9))}, trial(), 0.85, 1.0)),
    ("doubly_robust",
     lambda: doubly_robust({"ips": IPS(), "dr": DR()}, trial(), [np.full(200, 0.25)] * 60)),
    ("selection", lambda: selects({"ips": IPS()}, [replace(trial(), truth=k, logs=[
        replace(log, target=log.behaviour * (1 - 0.1 * k)) for log in trial().logs]) for k in (3.0, 2.0, 1.0)])),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "made"), BROKEN)
def test_a_claim_that_is_not_so_does_not_hold(claim: str, made: Callable[[], Iterator[Claim]]) -> None:
    found = [one.row for one in made() if one.row["claim"] == claim]
    assert found
    assert not found[0]["holds"]


def test_the_slope_is_that_of_the_errors() -> None:
    values = {n: np.array([1.0, -1.0]) / n for n in (10, 100, 1_000)}
    assert rmse_slope(values, truth=0.0) == pytest.approx(-1)


def test_the_bandit_passes_what_is_true_of_it() -> None:
    estimators: dict[str, Estimator[Any]] = {"ips": IPS(), "dr": DR()}
    good = [claim.row for claim in (*covers(estimators, trial()), *learns(estimators, trial()))]
    assert all(row["holds"] for row in good if row["claim"] != "coverage"), good
