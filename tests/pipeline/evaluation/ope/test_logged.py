"""Logs are checked when they are put together, and are the same after a round trip through Parquet."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation.ope.logged import LoggedSlates, LoggedSteps, LoggedTrajectories
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.ope.steps import STEP_ESTIMATORS
from pipeline.evaluation.ope.trajectories import TRAJECTORY_ESTIMATORS
from tests.pipeline.evaluation.ope.worlds import Bandit, Sessions, Slates

SLATES = Slates.make(lambda above, below: (0.2 * above, 0.1 * below + 0.1 * above))
LOGS = [
    (Bandit().log(20, 2, seed=1), STEP_ESTIMATORS),
    (replace(SLATES.log(30, seed=1), projection=np.ones(30)), SLATE_ESTIMATORS),
    (Sessions.make().log(20, seed=1), TRAJECTORY_ESTIMATORS),
]


@pytest.mark.parametrize(("logged", "estimators"), LOGS)
def test_estimates_from_the_file_are_those_from_memory(logged: Any, estimators: dict[str, Any], tmp_path: Path) -> None:
    logged.write(tmp_path / "log.parquet")
    back = type(logged).read(tmp_path / "log.parquet")
    for field in fields(logged):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(logged, field.name))
    for estimator in estimators.values():
        assert estimator.estimate(back) == estimator.estimate(logged)


def test_what_a_log_does_not_have_stays_absent(tmp_path: Path) -> None:
    logged = LoggedSteps(np.ones(2), np.ones(2), np.ones(2), np.arange(2))
    logged.write(tmp_path / "log.parquet")
    assert LoggedSteps.read(tmp_path / "log.parquet").q_logged is None


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    Bandit().log(2, 1, seed=0).write(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"not those of a LoggedSlates\. Write it with LoggedSlates.write"):
        LoggedSlates.read(tmp_path / "log.parquet")


def test_an_empty_slot_needs_no_values_and_changes_no_estimate() -> None:
    full = SLATES.log(400, seed=2)

    def widened(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.hstack([values, np.full((len(values), 1), np.nan)])

    names = ("reward", "behaviour", "target", "behaviour_marginal", "target_marginal", "q_logged", "v_target")
    mask = np.hstack([full.mask, np.zeros((400, 1), bool)])
    wide = replace(full, mask=mask, **{name: widened(getattr(full, name)) for name in names})
    for name in ("sips", "iips", "rips", "cascade_dr"):
        estimate, same = (SLATE_ESTIMATORS[name].estimate(log) for log in (wide, full))
        assert estimate.value == pytest.approx(same.value, rel=1e-12)
        assert estimate.ess == pytest.approx(same.ess, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": [1.0, np.nan, 0.0]}, "reward is nan in row 1. Every number must be finite"),
        ({"behaviour": [0.5, 0.5, 0.0]}, "behaviour is 0 in row 2. What was logged had a chance above 0"),
        ({"behaviour": [0.5, 1.5, 0.5]}, "behaviour is 1.5 in row 1."),
        ({"behaviour": [np.nan, 0.5, 0.5]}, "behaviour is nan in row 0.*or fit a behaviour policy"),
        ({"target": [-0.1, 0.5, 0.5]}, "target is -0.1 in row 0. A propensity lies between 0 and 1"),
        ({"target": [0.5, 0.5]}, r"target has the shape \(2,\) where the others have \(3,\)"),
        ({"q_logged": [np.inf, 0.0, 0.0]}, "q_logged is inf in row 0"),
    ],
)
def test_bad_steps_are_named(changes: dict[str, Any], message: str) -> None:
    columns = {"reward": [0.0, 1.0, 0.0], "behaviour": [0.5] * 3, "target": [0.5] * 3, "user_key": [1, 2, 3]}
    with pytest.raises(DataError, match=message):
        LoggedSteps(**{name: np.array(value) for name, value in (columns | changes).items()})


@pytest.mark.parametrize(
    ("session", "step", "message"),
    [
        ([7, 7, 8], [0, 2, 0], "row 1 is step 2 of session 7 where step 1 must be. Sort by session and step"),
        ([7, 7, 8], [1, 2, 0], "row 0 is step 1 of session 7 where step 0 must be"),
        ([7, 8, 7], [0, 0, 0], "the rows of a session do not lie together"),
    ],
)
def test_unsorted_sessions_are_named(session: list[int], step: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LoggedTrajectories(np.array(session), np.array(step), *(np.ones(3) for _ in range(3)), np.arange(3))


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(DataError, match="LoggedSteps: the log is empty"):
        LoggedSteps(*(np.ones(0) for _ in range(4)))


def test_pages_are_tables() -> None:
    with pytest.raises(DataError, match=r"reward has the shape \(3,\)\. Give one row a page and one column a slot"):
        LoggedSlates(*(np.ones(3) for _ in range(3)), np.ones(3, bool), np.arange(3))
