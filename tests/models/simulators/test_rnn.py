"""The RNN user model: its heads and its hidden state. What all user models owe is claimed in contract.py."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from models.feedback import FIRST_POSITIVE, Feedback
from models.simulators.base import SessionBatch
from models.simulators.metrics import binary_metrics, expected_calibration_error, reliability
from models.simulators.rnn import RNNConfig, RNNUserModel
from pipeline.errors import DataError
from tests.models.builders import ITEMS, empty_state, make_state
from tests.models.simulators.contract import TASK, K, assert_rate, luck, sessions

CONFIG = RNNConfig(hidden=32, layers=(16,), history=False, learning_rate=0.02, weight_decay=0.1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def fitted() -> RNNUserModel:
    return CONFIG.build(TASK).fit(lambda step: sessions(32, 1000 + step), 100, seed=11)


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
    assert_rate(clicked, model.positive_probabilities(start[:1], page[:1]))
    assert_rate(feedback[clicked, 0] == Feedback.CLICK, kinds[0])
    assert_rate(feedback[clicked, 0] == Feedback.PURCHASE, kinds[3])
    for code, rate in exits.items():
        assert_rate(leave[feedback[:, 0] == code], rate)


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


def test_the_initial_history_bears_on_the_start_where_it_is_asked_for() -> None:
    model = RNNConfig(hidden=8, layers=(8,)).build(TASK).fit(lambda step: sessions(16, step), 2, seed=1)
    state = make_state(4, TASK)
    shuffled = replace(state, initial_items=state.initial_items.flip(0))
    assert not torch.equal(model.reset(state), model.reset(shuffled))
    longer = replace(state, initial_items=torch.nn.functional.pad(state.initial_items, (2, 0)))
    assert_close(model.reset(state), model.reset(longer))
    with pytest.raises(DataError, match="initial_items is missing"):
        model.evaluate(replace(sessions(4, 1), initial_items=None))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
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
