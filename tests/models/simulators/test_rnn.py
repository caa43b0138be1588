"""The RNN user model on a synthetic user whose click and exit rates are known."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.testing import assert_close

from models.feedback import FIRST_POSITIVE, Feedback
from models.observation import item_vectors
from models.simulators.base import EMPTY, SessionBatch
from models.simulators.metrics import binary_metrics, expected_calibration_error, reliability
from models.simulators.rnn import RNNConfig, RNNUserModel
from pipeline.errors import DataError, ModelError, NotFittedError
from tests.models.builders import ITEMS, USER_WIDTH, empty_state, make_state, make_task

TASK = make_task(rows=2, cols=1)
CONFIG = RNNConfig(hidden=32, layers=(16,), history=False, learning_rate=0.02, weight_decay=0.1)
PAGES, K = 6, 2
CLICK_RATE = torch.sigmoid(1.5 * item_vectors(TASK.catalogue)[:, 0] - 1.0)  # of each item: from 0.04 to 0.86
PURCHASE_RATE = 0.25  # of clicks
EXIT_AFTER_NO_CLICK, EXIT_AFTER_CLICK = 0.5, 0.1


def luck(page: Tensor, seed: int) -> Tensor:
    """Draws for one step: an answer and its kind for each slot, then whether to leave."""
    return torch.rand(len(page), 2 * page.shape[1] + 1, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sessions(batch: int, seed: int) -> SessionBatch:
    """Items are clicked at their own rate; a page without a click makes leaving likely. At most PAGES pages."""
    random = torch.Generator().manual_seed(seed)
    items = torch.randint(1, ITEMS + 1, (batch, PAGES, K), generator=random)
    clicked = torch.rand(items.shape, generator=random) < CLICK_RATE[items]
    bought = torch.rand(items.shape, generator=random) < PURCHASE_RATE
    codes = torch.where(clicked, torch.where(bought, Feedback.PURCHASE, Feedback.CLICK), Feedback.SKIP)
    exit_rate = torch.where(clicked.any(dim=2), EXIT_AFTER_CLICK, EXIT_AFTER_NO_CLICK)
    leave = torch.rand(batch, PAGES, generator=random) < exit_rate
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
    )


@cache
def fitted(seed: int = 11, steps: int = 200) -> RNNUserModel:
    return CONFIG.build(TASK).fit(lambda step: sessions(64, 1000 + step), steps, seed)


def rates(items: Tensor) -> Tensor:
    return fitted().positive_probabilities(fitted().reset(empty_state(len(items), K)), items)


def test_it_beats_the_base_rate_and_is_calibrated_on_other_sessions() -> None:
    quality = fitted().evaluate(sessions(2000, 1))
    for head, gain, ece, n in (("click", 0.1, 0.03, 12_000), ("exit", 0.08, 0.06, 6_000)):
        metrics = quality[head]
        assert metrics["log_loss"] < metrics["base_rate_log_loss"] - gain
        assert metrics["auc"] > 0.7
        assert metrics["ece"] < ece
        assert metrics["n"] > n


def test_it_knows_what_each_item_is_worth() -> None:
    every = torch.arange(1, ITEMS + 1)[None]
    error = (rates(every) - CLICK_RATE[every]).abs()
    assert error.mean() < 0.05


def test_a_step_samples_at_the_predicted_rates() -> None:
    model, users = fitted(), 20_000
    page = torch.full((users, 1), 3)
    start = model.reset(empty_state(users, K))
    feedback, leave, _ = model.step(start, page, luck(page, 5))
    with torch.no_grad():
        pair = model._pair(start[:1], page[:1, 0])
        kinds = model.network.kind(pair).softmax(dim=1)[0]  # of CLICK, FAVORITE, CART, PURCHASE
        exits = {code: model.network.exit_logits(pair, torch.tensor([code])).sigmoid() for code in (1, 2, 5)}
    clicked = feedback[:, 0] >= FIRST_POSITIVE
    _assert_rate(clicked, model.positive_probabilities(start[:1], page[:1]))
    _assert_rate(feedback[clicked, 0] == Feedback.CLICK, kinds[0])
    _assert_rate(feedback[clicked, 0] == Feedback.PURCHASE, kinds[3])
    for code, rate in exits.items():
        _assert_rate(leave[feedback[:, 0] == code], rate)


def _assert_rate(happened: Tensor, rate: Tensor) -> None:
    """Within four standard errors of the predicted rate."""
    expected = float(rate)
    assert 0.01 < expected < 0.99
    deviation = 4 * (expected * (1 - expected) / len(happened)) ** 0.5
    assert happened.float().mean() == pytest.approx(expected, abs=deviation)


def test_users_leave_after_a_page_without_a_click_and_buy_a_quarter_of_what_they_click() -> None:
    model, users = fitted(), 20_000
    page = torch.tensor([3, 5]).expand(users, -1)
    feedback, leave, _ = model.step(model.reset(empty_state(users, K)), page, luck(page, 5))
    clicked = feedback >= FIRST_POSITIVE
    none = ~clicked.any(dim=1)
    assert (feedback[clicked] == Feedback.PURCHASE).float().mean() == pytest.approx(PURCHASE_RATE, abs=0.05)
    assert leave[none].float().mean() == pytest.approx(EXIT_AFTER_NO_CLICK, abs=0.1)
    assert leave[~none].float().mean() == pytest.approx(EXIT_AFTER_CLICK, abs=0.1)


def test_rolling_out_visits_the_states_that_training_sees() -> None:
    """step() on its own answers must leave the hidden state that the whole sequence, read at once, leads to."""
    model, state = fitted(), make_state(6, TASK)
    pages = torch.randint(1, ITEMS + 1, (2, 6, K), generator=torch.Generator().manual_seed(2))
    hidden, answers = model.reset(state), []
    for page in pages:
        feedback, _, hidden = model.step(hidden, page, luck(page, 3))
        answers.append(feedback)
    page_end = torch.zeros(6, 2 * K, dtype=torch.bool)
    page_end[:, K - 1 :: K] = True
    batch = SessionBatch(
        state.user_features, torch.cat([*pages], 1), torch.cat(answers, 1), page_end, torch.ones(6).bool()
    )
    longer = replace(
        batch,
        items=torch.cat([batch.items, pages[0]], 1),
        feedback=torch.cat([batch.feedback, torch.ones_like(pages[0])], 1),
        page_end=torch.cat([page_end, page_end[:, :K]], 1),
    )
    with torch.no_grad():
        pairs = model._pairs(model.network, longer)
    assert_close(pairs[:, 2 * K, : CONFIG.hidden], hidden)


def test_a_user_alone_is_the_same_as_in_a_batch() -> None:
    model, state = fitted(), make_state(8, TASK)
    items = torch.randint(0, ITEMS + 1, (8, 7), generator=torch.Generator().manual_seed(1))
    hidden = model.reset(state)
    together = model.positive_probabilities(hidden, items)
    for row in range(8):
        one = slice(row, row + 1)
        assert_close(model.reset(state[one]), hidden[one])
        assert_close(model.positive_probabilities(hidden[one], items[one]), together[one])


def test_the_length_of_the_padding_changes_no_prediction() -> None:
    batch = sessions(20, 3)
    wide = {name: torch.nn.functional.pad(getattr(batch, name), (0, 9)) for name in ("items", "feedback", "page_end")}
    for head, (labels, probabilities) in fitted().predict(batch).items():
        other_labels, others = fitted().predict(replace(batch, **wide))[head]
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_allclose(probabilities, others, rtol=1e-5)


def test_the_exit_label_lies_on_page_ends_and_a_capped_session_has_no_exit() -> None:
    batch = sessions(300, 4)
    labels, _ = fitted().predict(batch)["exit"]
    assert len(labels) == int(batch.page_end.sum())
    assert labels.sum() == int(batch.terminated.sum())
    assert 0 < labels.sum() < 300  # some are capped at PAGES


def test_an_empty_slot_gets_no_feedback_and_an_empty_page_ends_the_session() -> None:
    model = fitted()
    hidden = model.reset(empty_state(3, K))
    page = torch.tensor([[3, EMPTY], [3, 5], [EMPTY, EMPTY]])
    feedback, leave, after = model.step(hidden, page, luck(page, 0))
    assert ((feedback > 0) == (page != EMPTY)).all()
    assert leave[2]
    assert torch.equal(after[2], hidden[2])
    short, _, after_short = model.step(hidden[:1], page[:1, :1], luck(page[:1, :1], 0))
    assert short.shape == (1, 1)
    assert not torch.equal(after_short, hidden[:1])


def test_one_seed_gives_one_model_and_one_roll_out() -> None:
    twins = [CONFIG.build(TASK).fit(lambda step: sessions(16, step), 3, seed=5) for _ in range(2)]
    other = CONFIG.build(TASK).fit(lambda step: sessions(16, step), 3, seed=6)
    weights = [model.state_dict() for model in (*twins, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["click.0.weight"], weights[2]["click.0.weight"])
    hidden, page = twins[0].reset(empty_state(9, K)), torch.ones(9, K, dtype=torch.int64)
    steps = [twins[0].step(hidden, page, luck(page, 4)) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*steps, strict=True))


def test_weights_come_back_and_others_are_refused() -> None:
    model, other = fitted(), CONFIG.build(TASK)
    other.load_state_dict(model.state_dict())
    state, items = make_state(4, TASK), torch.ones(4, 2, dtype=torch.int64)
    assert torch.equal(
        other.positive_probabilities(other.reset(state), items), model.positive_probabilities(model.reset(state), items)
    )
    with pytest.raises(ModelError, match="do not fit RNNUserModel"):
        RNNConfig(hidden=8, layers=(16,), history=False).build(TASK).load_state_dict(model.state_dict())


def test_the_initial_history_bears_on_the_start_where_it_is_asked_for() -> None:
    def with_history(step: int) -> SessionBatch:
        batch = sessions(16, step)
        return replace(batch, initial_items=make_state(16, TASK, step).initial_items)

    model = RNNConfig(hidden=8, layers=(8,)).build(TASK).fit(with_history, 2, seed=1)
    state = make_state(4, TASK)
    shuffled = replace(state, initial_items=state.initial_items.flip(0))
    assert not torch.equal(model.reset(state), model.reset(shuffled))
    longer = replace(state, initial_items=torch.nn.functional.pad(state.initial_items, (2, 0)))
    assert_close(model.reset(state), model.reset(longer))
    with pytest.raises(DataError, match="initial_items is missing"):
        model.evaluate(sessions(4, 1))


def gap(batch: SessionBatch) -> SessionBatch:
    feedback = batch.feedback.clone()
    feedback[0, 0] = 0
    return replace(batch, feedback=feedback)


def open_end(batch: SessionBatch) -> SessionBatch:
    return replace(batch, page_end=torch.zeros_like(batch.page_end))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: CONFIG.build(TASK).reset(empty_state(1)), NotFittedError, "no weights yet"),
        (lambda: fitted().evaluate(gap(sessions(4, 1))), DataError, "Pad sessions on the right"),
        (lambda: fitted().evaluate(open_end(sessions(4, 1))), DataError, "does not end a page"),
        (lambda: fitted().evaluate(sessions(4, 1)[:0]), DataError, "no sessions"),
        (lambda: binary_metrics([], []), DataError, "no labels"),
        (lambda: binary_metrics([0, 1], [0.5, np.nan]), DataError, "1 of 2 predictions are not finite"),
    ],
)
def test_what_cannot_be_used_is_refused(action: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action()


# ---- metrics.py


def test_binary_metrics_are_those_of_the_hand_worked_table() -> None:
    y, p = [0, 1, 1, 0], [0.1, 0.8, 0.4, 0.4]
    metrics = binary_metrics(y, p)
    assert metrics["log_loss"] == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.4, 0.6])))
    assert metrics["base_rate_log_loss"] == pytest.approx(np.log(2))
    assert metrics["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.16) / 4)
    assert metrics["auc"] == pytest.approx(roc_auc_score(y, p)) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert metrics["n"] == 4
    assert np.isnan(binary_metrics([0, 0], [0.1, 0.2])["auc"])


def test_the_calibration_error_sees_a_level_that_is_wrong_and_no_other() -> None:
    random = np.random.default_rng(0)
    p = random.uniform(0, 0.2, 50_000)
    y = random.uniform(size=50_000) < p
    assert expected_calibration_error(y, p) < 0.005
    assert expected_calibration_error(y, 2 * p) == pytest.approx(0.1, abs=0.005)
    assert expected_calibration_error(y, np.full(50_000, y.mean())) == pytest.approx(0, abs=1e-12)  # ties share a bin


def test_reliability_bins_hold_equally_many_predictions() -> None:
    p = np.random.default_rng(0).beta(1, 20, 1000)
    predicted, observed, count = reliability(p > 0.05, p)
    assert count.tolist() == [100] * 10
    np.testing.assert_allclose(np.average(predicted, weights=count), p.mean())
    np.testing.assert_allclose(np.average(observed, weights=count), (p > 0.05).mean())
