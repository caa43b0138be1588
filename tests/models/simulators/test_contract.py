"""Every fitted user model of the registry keeps the contract of models/simulators/base.py; none is skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import SIMULATORS
from tests.models.simulators import contract
from tests.models.simulators.contract import Subject

SMALL: dict[str, dict[str, Any]] = {  # settings that make the tests fast; the others are small as they are
    "rnn": {"hidden": 16, "layers": (16,), "history": False, "learning_rate": 0.02, "weight_decay": 0.1},
    "attention": {"dim": 16, "heads": 2, "hidden": 32, "learning_rate": 0.01},
    "feedback": {"hidden": 16, "width": 16, "history": 4, "learning_rate": 0.05, "weight_decay": 0.01},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def subject(name: str) -> Subject:
    return Subject(name, contract.config_class(name)(**SMALL.get(name, {})))


@pytest.mark.parametrize("claim", contract.EVERY_MODEL, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("name", SIMULATORS)
def test_every_user_model(claim: Any, subject: Subject) -> None:
    claim(subject)


@pytest.mark.parametrize(
    ("action", "error", "message"), [row[1:] for row in contract.REFUSALS], ids=[row[0] for row in contract.REFUSALS]
)
@pytest.mark.parametrize("name", SIMULATORS)
def test_what_cannot_be_used_is_refused(action: Any, error: type[Exception], message: str, subject: Subject) -> None:
    with pytest.raises(error, match=message):
        action(subject)
