"""The Open Bandit logs: what one policy's log says of the other is held against what the other earned.

Bernoulli Thompson sampling learnt while it ran, so its share of each item and slot over the log is its policy.
A row's users are unknown; the pseudo-users (hashed features) are the clusters.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.ope.logged import Floats, LoggedSteps
from pipeline.evaluation.ope.steps import IPS, SNIPS

ITEMS, POSITIONS = 80, 3
COLUMNS = ["item_id", "position", "click", "propensity_score", *(f"user_feature_{i}" for i in range(4))]


def read(data: Path, policy: str) -> pd.DataFrame:
    log = pd.read_csv(data / "obd" / policy / "all" / "all.csv", usecols=COLUMNS)
    log["user"] = log.groupby(COLUMNS[-4:]).ngroup()
    return log


@pytest.fixture(scope="module")
def logs(real_data: Path) -> dict[str, pd.DataFrame]:
    return {policy: read(real_data, policy) for policy in ("random", "bts")}


def share(log: pd.DataFrame) -> Floats:
    """How often the log shows each item in each position, [80, 3]; the columns sum to 1."""
    shown = np.zeros((ITEMS, POSITIONS))
    np.add.at(shown, (log["item_id"].to_numpy(), log["position"].to_numpy() - 1), 1)
    return shown / shown.sum(axis=0)


def as_judged(log: pd.DataFrame, target: np.ndarray) -> LoggedSteps:
    columns = (log[name].to_numpy() for name in ("click", "propensity_score"))
    return LoggedSteps(*columns, target, log["user"].to_numpy())


@pytest.fixture(scope="module")
def judged(logs: dict[str, pd.DataFrame]) -> dict[str, LoggedSteps]:
    random, bts = logs["random"], logs["bts"]
    of_bts = share(bts)[random["item_id"], random["position"] - 1]
    return {"bts": as_judged(random, of_bts), "random": as_judged(bts, np.full(len(bts), 1 / ITEMS))}


@pytest.mark.parametrize("estimator", [IPS(), SNIPS()])
@pytest.mark.parametrize("policy", ["bts", "random"])
def test_each_policys_earnings_lie_in_the_interval_from_the_others_log(
    policy: str, estimator: IPS | SNIPS, judged: dict[str, LoggedSteps], logs: dict[str, pd.DataFrame]
) -> None:
    estimate = estimator.estimate(judged[policy])
    assert estimate.low < logs[policy]["click"].mean() < estimate.high


def test_uniform_logging_supports_a_verdict_and_bandit_logging_hardly(judged: dict[str, LoggedSteps]) -> None:
    """Thompson sampling shows some items once in 10,000 rows: a weight of 278 against at most 10 the other way."""
    bts, random = (IPS().estimate(judged[policy]) for policy in ("bts", "random"))
    assert bts.supported, bts.reason
    assert bts.ess > 5 * random.ess
    assert random.reason.startswith("not enough overlap: the weights' tail is too heavy")


@pytest.mark.parametrize("policy", ["random", "bts"])
def test_on_policy_it_is_the_click_rate(policy: str, logs: dict[str, pd.DataFrame]) -> None:
    log = logs[policy]
    estimate = IPS().estimate(as_judged(log, log["propensity_score"].to_numpy()))
    assert estimate.value == log["click"].mean()
