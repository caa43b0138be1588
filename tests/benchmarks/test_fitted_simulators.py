"""The benchmark of fitted user models plays what it says it plays."""

from argparse import Namespace

import pytest
import torch

from benchmarks import fitted_simulators
from benchmarks.fitted_simulators import CASES, make_model, make_state, make_task
from models import SIMULATORS


def test_every_fitted_user_model_has_a_case() -> None:
    assert set(CASES) == set(SIMULATORS)


@pytest.mark.parametrize("name", CASES)
def test_a_case_measures_the_batch_the_single_user_and_the_large_catalogue(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitted_simulators, "alone", lambda function, *arguments: Namespace(result=function(*arguments)))
    monkeypatch.setattr(fitted_simulators, "ALONE", 2)
    monkeypatch.setattr(fitted_simulators, "MANY_ITEMS", 3_000)
    speed, growth = CASES[name](Namespace(users=5, repeat=1))[:2]
    assert (speed.what, speed.unit) == (f"{name}, 5 users at once, against one at a time", "user-steps / CPU s")
    assert speed.baseline is not None
    assert speed.ratio == pytest.approx(speed.value / speed.baseline)
    assert growth.baseline == pytest.approx(1 / speed.value)


def test_one_user_and_many_are_the_same_simulator() -> None:
    task = make_task(fitted_simulators.ITEMS)
    model, state = make_model("feedback", task), make_state(task, 3, 0)
    pages = torch.randint(1, 100, (3, 10), generator=torch.Generator().manual_seed(1))
    draws = torch.rand(3, model.step_width(10), generator=torch.Generator().manual_seed(2))
    together = model.step(model.reset(state), pages, draws)[0]
    alone = [model.step(model.reset(state[slice(n, n + 1)]), pages[n : n + 1], draws[n : n + 1])[0] for n in range(3)]
    assert torch.equal(together, torch.cat(alone))
