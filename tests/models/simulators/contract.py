"""What every fitted user model owes its callers, as claims about a Subject. test_contract.py runs all of them.

The sessions are those of a synthetic user whose click, purchase and exit rates are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from torch.testing import assert_close

from models import SIMULATORS
from models.base import StateBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.hashing import uniforms
from models.observation import item_vectors
from models.simulators.base import EMPTY, FittedUserModel, SessionBatch, UserModelConfig
from pipeline.errors import DataError, HindsightError, ModelError, NotFittedError
from tests.models.builders import ITEMS, USER_WIDTH, make_state, make_task

TASK = make_task(rows=2, cols=1)
PAGES, K = 6, 2
CLICK_RATE = torch.sigmoid(1.5 * item_vectors(TASK.catalogue)[:, 0] - 1.0)  # of each item: from 0.04 to 0.86
PURCHASE_RATE = 0.25  # of clicks
EXIT_RATE = torch.tensor([0.5, 0.2, 0.06])  # after a page with so many clicks


@dataclass(frozen=True)
class Subject:
    """A user model of the registry on a small task."""

    name: str
    config: UserModelConfig

    def build(self) -> FittedUserModel:
        return self.config.build(TASK)

    def fitted(self) -> FittedUserModel:
        return _fitted(self.config)

    def copy(self) -> FittedUserModel:
        """A model of one's own with the fitted weights."""
        model = self.build()
        model.load_state_dict(self.fitted().state_dict())
        return model


def config_class(name: str) -> Any:
    module, config = SIMULATORS[name].split(":")
    return getattr(import_module(module), config)


def sessions(batch: int, seed: int, slots: int = K) -> SessionBatch:
    """Items are clicked at their own rate; the fewer clicks on a page, the likelier its user leaves. PAGES at most."""
    random = torch.Generator().manual_seed(seed)
    items = torch.randint(1, ITEMS + 1, (batch, PAGES, slots), generator=random)
    clicked = torch.rand(items.shape, generator=random) < CLICK_RATE[items]
    bought = torch.rand(items.shape, generator=random) < PURCHASE_RATE
    codes = torch.where(clicked, torch.where(bought, Feedback.PURCHASE, Feedback.CLICK), Feedback.SKIP)
    leave = torch.rand(batch, PAGES, generator=random) < EXIT_RATE[clicked.sum(dim=2)]
    there = leave.cumsum(dim=1) - leave.int() == 0  # [B, PAGES], not left on an earlier page
    page_end = torch.zeros_like(clicked)
    page_end[:, :, -1] = True
    shown = there[:, :, None].expand_as(items)
    return SessionBatch(
        user_features=torch.randn(batch, USER_WIDTH, generator=random),
        items=(items * shown).flatten(1),
        feedback=(codes * shown).flatten(1),
        page_end=(page_end & shown).flatten(1),
        terminated=leave.any(dim=1),
        initial_items=make_state(batch, TASK, seed).initial_items,
    )


def start(batch: SessionBatch) -> StateBatch:
    """What is known of the users of ``batch`` when their sessions start."""
    known = (batch.initial_items > 0).long() * Feedback.CLICK
    return StateBatch.at_start(batch.user_features, batch.initial_items, known, PAGES, K)


def copies(users: int, row: int = 3) -> StateBatch:
    """One and the same user, so often."""
    return start(sessions(row + 1, 7))[torch.full((users,), row)]


def random_pages(users: int, slots: int, seed: int = 2) -> Tensor:
    return torch.randint(1, ITEMS + 1, (users, slots), generator=torch.Generator().manual_seed(seed))


def luck(page: Tensor, seed: int) -> Tensor:
    """Draws for one step: an answer and its kind for each slot, then whether to leave."""
    return uniforms(torch.arange(len(page)), seed, width=2 * page.shape[1] + 1)


def ready(model: FittedUserModel, state: StateBatch) -> Any:
    """The hidden state at the start of a session."""
    return model.reset(state, uniforms(torch.arange(len(state)), 99, width=model.reset_width()))  # type: ignore[attr-defined]


def assert_rate(happened: Tensor, rate: Tensor | float) -> None:
    """Within four standard errors of the predicted rate."""
    expected = float(rate)
    assert 0.01 < expected < 0.99
    deviation = 4 * (expected * (1 - expected) / len(happened)) ** 0.5
    assert happened.float().mean() == pytest.approx(expected, abs=deviation)


def assert_same(one: Any, other: Any) -> None:
    """Of hidden states: tensors, or dataclasses of tensors."""
    for a, b in zip(_tensors(one), _tensors(other), strict=True):
        assert_close(a, b)


def _tensors(hidden: Any) -> list[Tensor]:
    return [hidden] if isinstance(hidden, Tensor) else [v for v in vars(hidden).values() if isinstance(v, Tensor)]


@cache
def _fitted(config: UserModelConfig) -> FittedUserModel:
    return config.build(TASK).fit(lambda step: sessions(32, 1000 + step), 200, seed=11)


# ---- what it has learnt


def it_beats_the_base_rate_and_is_calibrated_on_other_sessions(subject: Subject) -> None:
    quality = subject.fitted().evaluate(sessions(1000, 1))
    for head, gain, ece in (("click", 0.15, 0.04), ("exit", 0.04, 0.05)):
        assert quality[head]["log_loss"] < quality[head]["base_rate_log_loss"] - gain
        assert quality[head]["auc"] > 0.65
        assert quality[head]["ece"] < ece


def it_knows_what_each_item_is_worth(subject: Subject) -> None:
    model, every = subject.fitted(), torch.arange(1, ITEMS + 1).expand(20, -1)
    rates = model.positive_probabilities(ready(model, start(sessions(20, 1))), every)  # type: ignore[attr-defined]
    assert (rates - CLICK_RATE[every]).abs().mean() < 0.06


def its_users_leave_where_they_click_little_and_buy_a_quarter_of_what_they_click(subject: Subject) -> None:
    model: Any = subject.fitted()
    page = random_pages(4000, K)
    feedback, leave, _ = model.step(ready(model, copies(4000)), page, luck(page, 5))
    clicked = feedback >= FIRST_POSITIVE
    assert (feedback[clicked] == Feedback.PURCHASE).float().mean() == pytest.approx(PURCHASE_RATE, abs=0.06)
    for clicks, rate in enumerate(EXIT_RATE.tolist()):
        assert leave[clicked.sum(dim=1) == clicks].float().mean() == pytest.approx(rate, abs=0.1)


def calibration_mends_a_distorted_model_and_leaves_a_good_one_alone(subject: Subject) -> None:
    own, others, (good, bad) = sessions(600, 21), sessions(600, 22), (subject.copy(), subject.copy())
    right = bad.logits
    bad.logits = lambda batch: {h: (y, 3 * x - 2) for h, (y, x) in right(batch).items()}  # type: ignore[method-assign]
    losses = [{h: m["log_loss"] for h, m in model.evaluate(others).items()} for model in (good, bad)]
    for model in (good, bad):
        after = {h: m["log_loss"] for h, m in model.calibrate(own).evaluate(others).items()}
        for head, loss in after.items():
            assert loss < losses[0][head] + 0.005
            assert model is good or loss < losses[1][head] - 0.05


def it_acts_through_its_calibration(subject: Subject) -> None:
    """A slope of 0 makes every rate that of the offset alone."""
    model: Any = subject.copy()
    rates = {"click": 0.7, "exit": 0.2}
    model.calibration = {head: torch.tensor([0.0, np.log(p / (1 - p))]) for head, p in rates.items()}
    page = random_pages(4000, K)
    hidden = ready(model, copies(4000))
    feedback, leave, _ = model.step(hidden, page, luck(page, 7))
    assert_rate((feedback >= FIRST_POSITIVE).flatten(), rates["click"])
    assert_rate(leave, rates["exit"])
    assert_close(model.positive_probabilities(hidden, page), torch.full_like(page, rates["click"], dtype=torch.float32))


def one_seed_gives_one_model_and_one_roll_out(subject: Subject) -> None:
    """Whatever happened to torch's global generator before; and nothing happens to it."""
    models: list[Any] = []
    for noise, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        models.append(subject.build().fit(lambda step: sessions(16, step), 3, seed))
        page = random_pages(9, K)
        models[-1].step(ready(models[-1], start(sessions(9, 1))), page, luck(page, 4))
        assert torch.equal(before, torch.get_rng_state())
    one, same, other = (model.state_dict() for model in models)
    assert [name for name in one if not torch.equal(one[name], same[name])] == []
    assert [name for name in one if not torch.equal(one[name], other[name])] != []
    answers = [model.step(ready(model, start(sessions(9, 1))), page, luck(page, 4)) for model in models[:2]]
    assert all(torch.equal(a, b) for a, b in zip(answers[0][:2], answers[1][:2], strict=True))


# ---- how it answers


def it_answers_at_the_rates_it_states(subject: Subject) -> None:
    model: Any = subject.fitted()
    hidden = ready(model, copies(20_000))
    for item in (3, 8):
        page = torch.full((20_000, 1), item)
        stated = model.positive_probabilities(hidden[:1], page[:1])
        feedback, _, _ = model.step(hidden, page, luck(page, item))
        assert_rate(feedback[:, 0] >= FIRST_POSITIVE, stated)


def a_shift_moves_the_logit_of_each_user(subject: Subject) -> None:
    model: Any = subject.fitted()
    hidden, page = ready(model, copies(20_000)), torch.full((20_000, 1), 8)
    shift = torch.tensor([-1.0, 1.0]).repeat(10_000)
    feedback, _, _ = model.step(hidden, page, luck(page, 6), shift)
    logit = model.positive_probabilities(hidden[:1], page[:1]).logit()
    for moved in (-1.0, 1.0):
        assert_rate(feedback[shift == moved, 0] >= FIRST_POSITIVE, (logit + moved).sigmoid())


def a_user_alone_is_the_same_as_in_a_batch(subject: Subject) -> None:
    model: Any = subject.fitted()
    batch, page = sessions(8, 5), random_pages(8, K)
    state, draws = start(batch), luck(page, 3)
    hidden = ready(model, state)
    rates = model.positive_probabilities(hidden, page)
    feedback, leave, after = model.step(hidden, page, draws)
    for row in range(8):
        one = slice(row, row + 1)
        alone = model.reset(state[one], uniforms(torch.tensor([row]), 99, width=model.reset_width()))
        assert_same(alone, hidden[one])
        assert_close(model.positive_probabilities(alone, page[one]), rates[one])
        answer, gone, later = model.step(alone, page[one], draws[one])
        assert torch.equal(answer, feedback[one])
        assert torch.equal(gone, leave[one])
        assert_same(later, after[one])
    together = model.predict(batch)["click"][1]
    np.testing.assert_allclose(
        together, np.concatenate([model.predict(batch[row : row + 1])["click"][1] for row in range(8)]), rtol=1e-4
    )


def hidden_states_can_be_taken_by_rows(subject: Subject) -> None:
    """As a roll-out does when some users have left."""
    model: Any = subject.fitted()
    page, rows = random_pages(8, K), torch.tensor([6, 1, 4])
    _, _, hidden = model.step(ready(model, start(sessions(8, 5))), page, luck(page, 3))
    again, draws = random_pages(8, K, seed=4), luck(page, 8)
    feedback, leave, after = model.step(hidden, again, draws)
    some_feedback, some_leave, some_after = model.step(hidden[rows], again[rows], draws[rows])
    assert torch.equal(some_feedback, feedback[rows])
    assert torch.equal(some_leave, leave[rows])
    assert_same(some_after, after[rows])


def padding_changes_nothing(subject: Subject) -> None:
    model, batch = subject.fitted(), sessions(20, 3)
    wide: dict[str, Any] = {name: pad(getattr(batch, name), (0, 9)) for name in ("items", "feedback", "page_end")}
    wide["initial_items"] = pad(batch.initial_items, (4, 0))
    others = model.predict(replace(batch, **wide))
    for head, (labels, probabilities) in model.predict(batch).items():
        np.testing.assert_array_equal(labels, others[head][0])
        np.testing.assert_allclose(probabilities, others[head][1], rtol=1e-4)
    assert_same(ready(model, start(batch)), ready(model, start(replace(batch, **wide))))


def predictions_come_in_the_order_of_the_shown_items(subject: Subject) -> None:
    """And, calibrated, they are the rates at which it answers: one item a page, so the first stands for itself."""
    model: Any = subject.copy().calibrate(sessions(300, 21))
    batch = sessions(30, 4, slots=1)
    shown = batch.feedback > 0
    labels, predicted = model.predict(batch)["click"]
    np.testing.assert_array_equal(labels, batch.feedback[shown] >= FIRST_POSITIVE)
    first = shown.sum(dim=1).cumsum(dim=0) - shown.sum(dim=1)
    stated = model.positive_probabilities(ready(model, start(batch)), batch.items[:, :1])[:, 0]
    np.testing.assert_allclose(predicted[first], stated, rtol=1e-4)


def the_exit_label_lies_on_page_ends_and_a_capped_session_has_none(subject: Subject) -> None:
    batch = sessions(300, 4)
    labels, _ = subject.fitted().predict(batch)["exit"]
    assert len(labels) == int(batch.page_end.sum())
    assert labels.sum() == int(batch.terminated.sum())
    assert 0 < labels.sum() < 300  # some are capped at PAGES


def an_empty_slot_gets_no_feedback_and_an_empty_page_ends_the_session(subject: Subject) -> None:
    model: Any = subject.fitted()
    page = torch.tensor([[3, EMPTY], [EMPTY, 5], [EMPTY, EMPTY]])
    feedback, leave, _ = model.step(ready(model, copies(3)), page, luck(page, 0))
    assert ((feedback > 0) == (page != EMPTY)).all()
    assert leave[2]
    draws = luck(page, 0)
    draws[:, -1] = 1 - 1e-6  # nobody else leaves
    assert model.step(ready(model, copies(3)), page, draws)[1].tolist() == [False, False, True]


def it_answers_unknown_items_and_unknown_users(subject: Subject) -> None:
    model: Any = subject.fitted()
    batch, page = sessions(6, 5), torch.zeros(6, K, dtype=torch.int64)
    nobody = replace(batch, initial_items=torch.zeros_like(batch.initial_items), items=torch.zeros_like(batch.items))
    hidden = ready(model, start(nobody))
    for at in range(3):
        assert model.positive_probabilities(hidden, page).isfinite().all()
        feedback, _, hidden = model.step(hidden, page, luck(page, at), torch.full((6,), 2.0))
        assert (feedback > 0).all()
    for _, probabilities in model.predict(nobody).values():
        assert np.isfinite(probabilities).all()


# ---- its weights and settings


def its_weights_and_calibration_come_back_from_a_file(subject: Subject) -> None:
    model, other, batch = subject.copy().calibrate(sessions(300, 21)), subject.build(), sessions(20, 3)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(model.state_dict(), file)
        other.load_state_dict(load_file(file))
    assert set(other.calibration) == {"click", "exit"}
    predicted, plain = model.predict(batch), subject.fitted().predict(batch)
    for head, (_, probabilities) in other.predict(batch).items():
        np.testing.assert_array_equal(probabilities, predicted[head][1])
        assert not np.allclose(probabilities, plain[head][1])


def its_config_is_frozen_and_survives_json(subject: Subject) -> None:
    config = subject.config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="no_such_setting"):
        type(config)(no_such_setting=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        config.no_such_setting = 1  # type: ignore[attr-defined]


EVERY_MODEL = (
    it_beats_the_base_rate_and_is_calibrated_on_other_sessions,
    it_knows_what_each_item_is_worth,
    its_users_leave_where_they_click_little_and_buy_a_quarter_of_what_they_click,
    calibration_mends_a_distorted_model_and_leaves_a_good_one_alone,
    it_acts_through_its_calibration,
    one_seed_gives_one_model_and_one_roll_out,
    it_answers_at_the_rates_it_states,
    a_shift_moves_the_logit_of_each_user,
    a_user_alone_is_the_same_as_in_a_batch,
    hidden_states_can_be_taken_by_rows,
    padding_changes_nothing,
    predictions_come_in_the_order_of_the_shown_items,
    the_exit_label_lies_on_page_ends_and_a_capped_session_has_none,
    an_empty_slot_gets_no_feedback_and_an_empty_page_ends_the_session,
    it_answers_unknown_items_and_unknown_users,
    its_weights_and_calibration_come_back_from_a_file,
    its_config_is_frozen_and_survives_json,
)


# ---- what it refuses


def _gap(batch: SessionBatch) -> SessionBatch:
    feedback = batch.feedback.clone()
    feedback[0, 0] = 0
    return replace(batch, feedback=feedback)


def _open_end(batch: SessionBatch) -> SessionBatch:
    return replace(batch, page_end=torch.zeros_like(batch.page_end))


def _step(subject: Subject, item: int) -> Any:
    model: Any = subject.fitted()
    page = torch.tensor([[3, item]])
    return model.step(ready(model, copies(1)), page, luck(page, 0))


def _rate(subject: Subject, item: int) -> Any:
    model: Any = subject.fitted()
    return model.positive_probabilities(ready(model, copies(1)), torch.tensor([[3, item]]))


def _reset_without_a_number(subject: Subject) -> Any:
    state = copies(3)
    features = state.user_features.clone()
    features[1, 0] = torch.nan
    return ready(subject.fitted(), replace(state, user_features=features))


def _load_other_shape(subject: Subject) -> None:
    weights = subject.fitted().state_dict()
    largest = max(weights, key=lambda name: weights[name].numel())
    subject.build().load_state_dict({**weights, largest: torch.zeros(3, 3, 3)})


def _load_without_one(subject: Subject) -> None:
    weights = subject.fitted().state_dict()
    weights.pop(max(weights, key=lambda name: weights[name].numel()))
    subject.build().load_state_dict(weights)


def _load_for_other_items(subject: Subject) -> None:
    subject.config.build(make_task(rows=2, cols=1, seed=1)).load_state_dict(subject.fitted().state_dict())


REFUSALS: tuple[tuple[str, Callable[[Subject], Any], type[HindsightError], str], ...] = (
    ("not fitted", lambda s: ready(s.build(), copies(1)), NotFittedError, "no weights yet"),
    ("no sessions", lambda s: s.fitted().evaluate(sessions(4, 1)[:0]), DataError, "There are no sessions"),
    ("gap", lambda s: s.fitted().evaluate(_gap(sessions(4, 1))), DataError, "Pad sessions on the right"),
    ("open end", lambda s: s.fitted().evaluate(_open_end(sessions(4, 1))), DataError, "does not end a page"),
    ("unknown item shown", lambda s: _step(s, ITEMS + 1), ModelError, f"Item {ITEMS + 1} is not in the vocabulary"),
    ("unknown item asked for", lambda s: _rate(s, ITEMS + 1), ModelError, "runs from 0 to 60"),
    ("negative item", lambda s: _step(s, -2), ModelError, "Item -2 is not in the vocabulary"),
    ("NaN features", _reset_without_a_number, DataError, r"1 of 3 users are not finite \(first: row 1\)"),
    ("other shape", _load_other_shape, ModelError, "do not fit"),
    ("missing tensor", _load_without_one, ModelError, "do not fit"),
    ("other vocabulary", _load_for_other_items, ModelError, "fitted on another vocabulary"),
)
