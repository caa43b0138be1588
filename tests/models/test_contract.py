"""Every agent of the registry keeps the contract of models/base.py; two of them do so in files of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import AGENTS
from models.base import GradientAgent
from tests.models import contract
from tests.models.contract import Subject

HEURISTICS = [name for name, target in AGENTS.items() if target.startswith("models.heuristics:")]
OWN_FILE = {  # test_<name>.py
    "lambdamart",  # what a step of it is differs, and so do two of the claims
    "greedy_simulator",  # it has to be given a fitted user model
}
LEARNERS = [name for name in AGENTS if name not in {*HEURISTICS, *OWN_FILE}]
GOAL_CONDITIONED = {"goalrec_off"}  # learns from hindsight rows and their measurements, without a bootstrap
WITHOUT_DISCOUNT = {"bc", "gru4rec", "sasrec", "lambdamart"}
SMALL: dict[str, dict[str, Any]] = {  # settings that make the tests fast; the others are small as they are
    "deeppage_off": {"item_width": 8, "category_width": 4, "feedback_width": 4, "channels": 8, "hidden": 16},
    "bc": {"hidden": (16,)},
    "td3_bc": {"hidden": (16,)},
    "iql": {"hidden": (16,)},
    "cql": {"hidden": (16,)},
    "gru4rec": {"width": 16},
    "sasrec": {"width": 16},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def subject(name: str) -> Subject:
    return contract.subject(name, SMALL.get(name, {}))


def _id(claim: Any) -> str:
    return str(claim.__name__)


@pytest.mark.parametrize("claim", contract.EVERY_AGENT, ids=_id)
@pytest.mark.parametrize("name", [name for name in AGENTS if name not in OWN_FILE])
def test_every_agent(claim: Any, subject: Subject) -> None:
    claim(subject)


@pytest.mark.parametrize("claim", contract.LEARNERS, ids=_id)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner(claim: Any, subject: Subject) -> None:
    claim(subject)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in GOAL_CONDITIONED])
def test_agents_without_goals_learn_from_original_rows_alone(subject: Subject) -> None:
    contract.it_learns_from_original_rows_alone(subject)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in WITHOUT_DISCOUNT])
def test_agents_with_a_discount_look_no_further_than_the_page_at_zero(name: str, subject: Subject) -> None:
    contract.it_looks_no_further_than_the_page_at_discount_zero(subject, bootstraps=name not in GOAL_CONDITIONED)


@pytest.mark.parametrize("name", AGENTS)
def test_learners_alone_take_gradient_steps(name: str, subject: Subject) -> None:
    assert isinstance(subject.build(), GradientAgent) == (name in {*LEARNERS, "lambdamart"})
