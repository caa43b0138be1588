"""Every estimator that the Open Bandit Pipeline has too gives the same number from the same log."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.simulators.storefront import Storefront
from pipeline.evaluation.ope.logged import Floats
from pipeline.evaluation.ope.policies import slot_distributions
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.ope.steps import STEP_ESTIMATORS
from pipeline.evaluation.proof_logs import FIRST_PAGES, Ranker, judged_pages, play
from tests.pipeline.evaluation.ope.test_open_bandit import ITEMS, POSITIONS, as_judged, read, share
from tests.pipeline.evaluation.ope.worlds import Bandit

pytest.importorskip("obp.ope.estimators", reason="the Open Bandit Pipeline is not there: `make install` brings it")
from benchmarks.ope_baselines import SLATES, STEPS, slate_columns, slate_value, step_columns, step_value

EXACT = 1e-9
WRONG_Q = np.random.default_rng(5).uniform(-1, 2, (3, 4))


@pytest.mark.parametrize("name", STEPS)
def test_single_decisions(name: str) -> None:
    bandit = Bandit()
    logged, x, action = bandit.log_of(50, 2, seed=4, q=WRONG_Q)
    theirs = step_columns(logged, action, bandit.target[x][:, :, None], WRONG_Q[x][:, :, None])
    assert STEP_ESTIMATORS[name].estimate(logged).value == pytest.approx(step_value(name, theirs), rel=EXACT)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("log", "policy"), [("random", "bts"), ("bts", "random")])
def test_the_open_bandit_logs(name: str, log: str, policy: str, real_data: Path) -> None:
    """The model is the click rate of the other policy's log, drawn towards the mean where a cell has few rows."""
    logged, other = read(real_data, log), read(real_data, policy)
    target = share(other) if policy == "bts" else np.full((ITEMS, POSITIONS), 1 / ITEMS)
    q = click_rate(other)
    item, position = logged["item_id"].to_numpy(), logged["position"].to_numpy() - 1
    ours = replace(as_judged(logged, target[item, position]), q_logged=q[item, position],
                   v_target=(target * q).sum(axis=0)[position])  # fmt: skip
    n = len(logged)
    theirs = step_columns(ours, item, *(np.broadcast_to(x, (n, ITEMS, POSITIONS)) for x in (target, q)), position)
    assert STEP_ESTIMATORS[name].estimate(ours).value == pytest.approx(step_value(name, theirs), rel=EXACT)


def click_rate(log: Any) -> Floats:
    cells = log["item_id"].to_numpy(), log["position"].to_numpy() - 1
    clicks, shown = np.zeros((ITEMS, POSITIONS)), np.zeros((ITEMS, POSITIONS))
    np.add.at(clicks, cells, log["click"].to_numpy())
    np.add.at(shown, cells, 1)
    rate: Floats = (clicks + 50 * log["click"].mean()) / (shown + 50)
    return rate


@pytest.mark.parametrize("name", [*SLATES, "cascade_dr"])
def test_pages_of_ten_slots(name: str) -> None:
    n, ranker = 60, Ranker("cool", temperature=0.7)
    pages = next(play(Storefront(FIRST_PAGES), n, seed=1))
    target = slot_distributions(pages.logits(ranker), pages.slates)  # [n, K, R]
    q = np.random.default_rng(0).uniform(-1, 2, target.shape)
    shown = np.take_along_axis(q, pages.slates[:, :, None], axis=2)[:, :, 0]
    ours = replace(judged_pages(pages, ranker, marginals=True), q_logged=shown, v_target=(target * q).sum(axis=2))
    theirs = slate_columns(ours, pages.slates, target, q)
    expected = slate_value(name, theirs, slots=10, candidates=target.shape[2])
    assert SLATE_ESTIMATORS[name].estimate(ours).value == pytest.approx(expected, rel=EXACT)
