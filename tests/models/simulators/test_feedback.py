"""MaHRL's user model on synthetic users whose tastes show in what they clicked and skipped, and against slow loops."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor
from torch.testing import assert_close

from models.feedback import FIRST_POSITIVE, Feedback
from models.observation import item_vectors
from models.simulators.base import EMPTY, SessionBatch
from models.simulators.feedback import (
    FeedbackConfig,
    FeedbackState,
    FeedbackUserModel,
    class_metrics,
)
from models.simulators.histories import logged_pages, positives_before, skips_before
from pipeline.errors import DataError, ModelError
from tests.models.builders import ITEMS, USER_WIDTH, empty_state, make_state, make_task

TASK = make_task(rows=2, cols=1)
CONFIG = FeedbackConfig(hidden=24, width=24, history=5, learning_rate=0.03)
PAGES, K = 6, 2
KIND = item_vectors(TASK.catalogue)[:, 0]  # half of the users like high values, half like low ones
FIRST_SLOT = 1.0  # what it adds to the click logit
PURCHASE_RATE = 0.3  # of clicks
EXIT_AFTER_NO_CLICK, EXIT_AFTER_CLICK = 0.4, 0.05


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sessions(batch: int, seed: int) -> SessionBatch:
    """Users of either taste, with up to four clicks of earlier sessions. At most PAGES pages."""
    random = torch.Generator().manual_seed(seed)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    items = torch.randint(1, ITEMS + 1, (batch, PAGES, K), generator=random)
    taste = 2.0 * torch.randint(0, 2, (batch, 1, 1), generator=random) - 1  # ±1
    logit = 2 * taste * KIND[items] - 1.5 + FIRST_SLOT * torch.tensor([1.0, 0.0])
    bought = torch.where(chance(batch, PAGES, K) < PURCHASE_RATE, Feedback.PURCHASE, Feedback.CLICK)
    codes = torch.where(chance(batch, PAGES, K) < logit.sigmoid(), bought, Feedback.SKIP)
    clicked = codes >= FIRST_POSITIVE
    exit_rate = torch.where(clicked.any(dim=2), EXIT_AFTER_CLICK, EXIT_AFTER_NO_CLICK)
    leave = chance(batch, PAGES) < exit_rate
    shown = (leave.cumsum(dim=1) - leave.int() == 0)[:, :, None].expand_as(items)  # not left on an earlier page
    page_end = torch.zeros_like(clicked)
    page_end[:, :, -1] = True
    earlier = torch.randint(1, ITEMS + 1, (batch, 4), generator=random)
    liked = chance(batch, 4) < (2 * taste[:, 0] * KIND[earlier] - 1.5).sigmoid()
    return SessionBatch(
        user_features=torch.randn(batch, USER_WIDTH, generator=random),
        items=(items * shown).flatten(1),
        feedback=(codes * shown).flatten(1),
        page_end=(page_end & shown).flatten(1),
        terminated=leave.any(dim=1),
        initial_items=earlier * liked,
    )


def ragged_sessions() -> SessionBatch:
    """Pages of 1 to 3 items, unknown items, lists of earlier items with holes, sessions of all lengths and codes."""
    random = torch.Generator().manual_seed(7)
    rows, columns = 9, 17
    shown = torch.arange(columns) < torch.randint(1, columns + 1, (rows, 1), generator=random)
    last = shown & (shown.cumsum(dim=1) == shown.sum(dim=1, keepdim=True))
    page_end = (torch.rand(rows, columns, generator=random) < 0.5) | last
    return SessionBatch(
        user_features=torch.zeros(rows, USER_WIDTH),
        items=torch.randint(0, 9, (rows, columns), generator=random) * shown,
        feedback=torch.randint(1, len(Feedback), (rows, columns), generator=random) * shown,
        page_end=page_end & shown,
        terminated=torch.ones(rows).bool(),
        initial_items=torch.randint(0, 3, (rows, 6), generator=random),
    )


@cache
def fitted(steps: int = 200, **settings: Any) -> FeedbackUserModel:
    config = CONFIG.model_copy(update=settings)
    return config.build(TASK).fit(lambda step: sessions(48, 1000 + step), steps, seed=11)


def luck(model: FeedbackUserModel, page: Tensor, seed: int) -> Tensor:
    width = model.step_width(page.shape[1])
    return torch.rand(len(page), width, generator=torch.Generator().manual_seed(seed))


def like(sign: float, users: int = 1) -> Tensor:
    """Five items that one taste likes and the other does not, [users, 5]."""
    return (sign * KIND[1:]).topk(5).indices.add(1).expand(users, -1)


def start(earlier: Tensor, model: FeedbackUserModel | None = None) -> FeedbackState:
    return (model or fitted()).reset(replace(empty_state(len(earlier), K), initial_items=earlier))


# ---- the maths, against slow loops


def slow_histories(batch: SessionBatch, width: int) -> list[tuple[list[int], list[int]]]:
    """Of each page in turn, by walking through each session."""
    assert batch.initial_items is not None
    found = []
    for row in range(len(batch)):
        skipped: list[int] = []
        positive = [int(item) for item in batch.initial_items[row] if item]
        page: list[tuple[int, int]] = []
        for item, code, end in zip(batch.items[row], batch.feedback[row], batch.page_end[row], strict=True):
            page.append((int(item), int(code)))
            if end:
                found.append((skipped[-width:], positive[-width:]))
                skipped = skipped + [i for i, c in page if i and c == Feedback.SKIP]
                positive = positive + [i for i, c in page if i and c > Feedback.SKIP]
                page = []
    return found


def test_the_histories_of_a_page_are_those_of_a_walk_through_the_session() -> None:
    batch, width = ragged_sessions(), 4
    pages = logged_pages(batch)
    histories = skips_before(batch, pages, width), positives_before(batch, pages, width)
    expected = slow_histories(batch, width)
    assert len(expected) > 40
    for side in (0, 1):
        padded = [[0] * (width - len(page[side])) + page[side] for page in expected]
        assert histories[side].tolist() == padded


def numpy_gru(weights: dict[str, NDArray[np.float32]], name: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last state of a GRU (Cho et al. 2014, as in torch's documentation) over ``inputs`` [N, V]."""
    w, u, b, c = (weights[f"{name}.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = np.zeros(u.shape[1], dtype=np.float32)
    for x in inputs:
        (xr, xz, xn), (hr, hz, hn) = np.split(w @ x + b, 3), np.split(u @ h + c, 3)
        r, z = 1 / (1 + np.exp(-(xr + hr))), 1 / (1 + np.exp(-(xz + hz)))
        h = (1 - z) * np.tanh(xn + r * hn) + z * h
    return h


def test_the_logits_are_those_of_the_formula_item_by_item() -> None:
    model, batch, n = fitted(), ragged_sessions(), CONFIG.history
    weights = {name: value.numpy() for name, value in model.network.state_dict().items()}
    vectors = item_vectors(TASK.catalogue).numpy()
    pages = iter(slow_histories(batch, n))
    expected = []
    for row in range(len(batch)):
        slot = 0
        for item, code, end in zip(batch.items[row], batch.feedback[row], batch.page_end[row], strict=True):
            if code == Feedback.NONE:
                break
            if slot == 0:
                history = [np.array([0] * (n - len(side)) + side) for side in next(pages)]
                last = [
                    numpy_gru(weights, g, vectors[h]) for g, h in zip(("skipped", "positive"), history, strict=True)
                ]
                s = weights["merge.weight"] @ np.concatenate(last) + weights["merge.bias"]
            v = weights["state.weight"] @ s + weights["state.bias"] + weights["item.weight"] @ vectors[item]
            v = np.maximum(0, v + weights["slot"][min(slot, K - 1)])
            expected.append(weights["answer.weight"] @ v + weights["answer.bias"])
            slot = 0 if end else slot + 1
    with torch.no_grad():
        logits = model._logged(model.network, batch)[0]
    np.testing.assert_allclose(logits, np.array(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", [1, 4])
def test_rolling_out_visits_the_states_that_training_sees(slots: int) -> None:
    """step() on its own answers, gaps on the page or none, leaves the state that the logged session leads to."""
    model, users, random = fitted(), 6, torch.Generator().manual_seed(2)
    state = make_state(users, TASK)
    hidden, shown, answers, ends = model.reset(state), [], [], []
    for page in range(5):
        items = torch.randint(0, ITEMS + 1, (users, slots), generator=random)
        if slots > 1:
            items[:, page % 2] = EMPTY
        feedback, _, after = model.step(hidden, items, luck(model, items, page))
        there = items != EMPTY
        shown.append(items[there].view(users, -1))
        answers.append(feedback[there].view(users, -1))
        ends.append(torch.arange(shown[-1].shape[1]).expand(users, -1) == shown[-1].shape[1] - 1)
        before, hidden = hidden, after
    batch = SessionBatch(
        *(state.user_features, torch.cat(shown, 1), torch.cat(answers, 1), torch.cat(ends, 1)),
        terminated=torch.ones(users).bool(),
        initial_items=state.initial_items,
    )
    pages = logged_pages(batch)
    histories = (before(batch, pages, CONFIG.history) for before in (skips_before, positives_before))
    for logged, stepped in zip(histories, (before.skipped, before.positive), strict=True):
        assert torch.equal(logged.view(users, 5, -1)[:, -1], stepped)
    assert before.skipped.any()
    assert (hidden.page == 5).all()


# ---- what it learns


def test_it_beats_the_base_rates_on_other_sessions() -> None:
    quality, classes = fitted().evaluate(sessions(1000, 1)), fitted().precision(sessions(1000, 1))
    # Leaving is a step in the number of clicks, which a linear head only comes near.
    for head, gain, auc, ece in (("click", 0.15, 0.8, 0.04), ("exit", 0.06, 0.7, 0.1)):
        assert quality[head]["log_loss"] < quality[head]["base_rate_log_loss"] - gain
        assert quality[head]["auc"] > auc
        assert quality[head]["ece"] < ece
    assert classes["log_loss"] < classes["base_rate_log_loss"] - 0.08
    assert min(classes["auc_skip"], classes["auc_click"], classes["auc_order"]) > 0.7


def test_what_was_clicked_and_what_was_skipped_tell_the_taste() -> None:
    model, high, low = fitted(), like(1), like(-1)
    for item, others in ((high, low), (low, high)):
        liked, disliked = start(item), start(others)
        assert (model.positive_probabilities(liked, item) > model.positive_probabilities(disliked, item) + 0.2).all()
        new = start(torch.zeros(1, 1, dtype=torch.int64))
        skipped = model._state(others, new.positive, new.page)
        assert (model.positive_probabilities(skipped, item) > model.positive_probabilities(new, item) + 0.05).all()


def test_the_first_slot_is_clicked_more_often_unless_the_paper_is_asked_for() -> None:
    page = like(1)[:, :1].expand(1, K)
    for position, steps in ((True, 200), (False, 5)):
        model = fitted(steps, position=position)
        hidden = start(like(1), model)
        with torch.no_grad():
            logits = model._answers(hidden, page, torch.arange(K)[None])[0]
        odds = logits[:, 1:].logsumexp(dim=1) - logits[:, 0]
        assert odds[0] - odds[1] == pytest.approx(FIRST_SLOT if position else 0.0, abs=0.5 if position else 1e-6)


# ---- what it does


def test_a_step_samples_at_the_predicted_rates() -> None:
    model, users = fitted(), 20_000
    page, hidden = like(1, users)[:, :1], start(like(1, users))
    feedback, leave, _ = model.step(hidden, page, luck(model, page, 5))
    skip, click, order = (feedback[:, 0] == code for code in (Feedback.SKIP, Feedback.CLICK, Feedback.PURCHASE))
    with torch.no_grad():
        rates = model._answers(hidden[:1], page[:1], torch.zeros(1, 1, dtype=torch.int64))[0, 0].softmax(dim=0)
        exits = [model.network.exits(hidden.encoding[:1], hidden.page[:1], torch.tensor([n])) for n in (0, 1)]
    assert_close(rates[1:].sum(), model.positive_probabilities(hidden[:1], page[:1])[0, 0])
    for happened, rate in [*zip((skip, click, order), rates, strict=True)]:
        _assert_rate(happened, rate)
    assert (skip | click | order).all()
    _assert_rate(leave[skip], exits[0].sigmoid())
    _assert_rate(leave[~skip], exits[1].sigmoid())


def _assert_rate(happened: Tensor, rate: Tensor) -> None:
    """Within four standard errors of the predicted rate."""
    expected = float(rate)
    assert 0.01 < expected < 0.99
    assert happened.float().mean() == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / len(happened)) ** 0.5
    )


def test_noise_moves_the_slots_of_a_page_together_and_leaves_the_rates() -> None:
    users, quiet = 40_000, fitted()
    noisy = CONFIG.model_copy(update={"probability_noise": 1.0}).build(TASK)
    noisy.load_state_dict(quiet.state_dict())
    every = torch.arange(1, ITEMS + 1)[None]
    even = int(every[0, (quiet.positive_probabilities(start(like(1)), every)[0] - 0.5).abs().argmin()])
    page, hidden = torch.full((users, K), even), start(like(1, users))
    assert noisy.step_width(K) == quiet.step_width(K) + 1
    both = []
    for model in (quiet, noisy):
        positive = model.step(hidden, page, luck(model, page, 3))[0] >= FIRST_POSITIVE
        both.append((positive.float().mean(dim=0), torch.corrcoef(positive.float().T)[0, 1]))
    (quiet_rate, quiet_correlation), (noisy_rate, noisy_correlation) = both
    assert_close(noisy_rate, quiet_rate, atol=0.015, rtol=0)
    assert abs(quiet_correlation) < 0.02
    assert noisy_correlation > 0.1


def test_where_nobody_leaves_only_empty_pages_end_a_session() -> None:
    model = fitted(20, leave="never")
    page = torch.tensor([[3, 5], [3, EMPTY], [EMPTY, EMPTY]]).repeat(100, 1)
    hidden = start(torch.zeros(300, 1, dtype=torch.int64), model)
    feedback, leave, after = model.step(hidden, page, luck(model, page, 1))
    assert torch.equal(leave, (page == EMPTY).all(dim=1))
    assert torch.equal(feedback > 0, page != EMPTY)
    assert torch.equal(after.encoding[2::3], hidden.encoding[2::3])
    assert torch.equal(after.page, (~leave).long())
    assert set(model.evaluate(sessions(50, 1))) == {"click"}


def test_leaving_is_learnt_beside_the_answers_and_does_not_bend_them() -> None:
    torch.manual_seed(0)
    batch, gradients = sessions(20, 1), []
    models = [CONFIG.model_copy(update={"leave": leave}).build(TASK) for leave in ("hazard", "never")]
    network = models[0].new_network()
    for model in models:
        other = model.new_network()
        other.load_state_dict(network.state_dict(), strict=False)
        model.loss(other, batch).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in other.named_parameters()})
    assert gradients[0].keys() - gradients[1].keys() == {"exit.weight", "exit.bias"}
    for name, gradient in gradients[1].items():
        assert_close(gradients[0][name], gradient)


# ---- what enters


def test_favourites_and_carts_train_as_clicks() -> None:
    batch = ragged_sessions()
    code = batch.feedback
    as_clicks = replace(batch, feedback=code.where((code != Feedback.FAVORITE) & (code != Feedback.CART), 2))
    assert not torch.equal(as_clicks.feedback, code)
    network = fitted().network
    assert_close(fitted().loss(network, batch), fitted().loss(network, as_clicks))


def test_unknown_items_and_padding_leave_no_trace_in_a_history() -> None:
    model, plain = fitted(), like(1)
    state = start(plain)
    assert_close(start(torch.nn.functional.pad(plain, (3, 0))).encoding, state.encoding)
    assert_close(start(torch.cat([plain, torch.zeros_like(plain)], dim=1)).encoding, state.encoding)
    page = torch.zeros(1, K, dtype=torch.int64)
    after = model.step(state, page, luck(model, page, 0))[2]
    assert_close(after.encoding, state.encoding)
    assert after.page == 1


@pytest.mark.parametrize("best", [Feedback.CLICK, Feedback.SKIP])
def test_a_class_that_the_log_lacks_is_learnt_to_be_rare(best: Feedback) -> None:
    def lacking(step: int) -> SessionBatch:
        batch = sessions(32, step)
        return replace(batch, feedback=batch.feedback.clamp(max=best))

    model = CONFIG.build(TASK).fit(lacking, 60, seed=1).calibrate(lacking(500))
    measured = model.precision(lacking(501))
    assert np.isnan(measured["auc_order"])
    assert np.isnan(measured["auc_click"]) == (best == Feedback.SKIP)
    page = like(1, 2000)[:, :K]
    feedback = model.step(start(like(1, 2000), model), page, luck(model, page, 1))[0]
    assert (feedback > best).float().mean() < 0.03


# ---- how it is judged


def test_class_metrics_are_those_of_the_hand_worked_table() -> None:
    labels = [0, 0, 1, 0, 2]
    p = [[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.2, 0.5]]
    metrics = class_metrics(labels, p)
    assert metrics["precision"] == pytest.approx(3 / 5)  # rows 1, 2 and 5
    assert metrics["majority_rate"] == pytest.approx(3 / 5)
    assert metrics["log_loss"] == pytest.approx(-np.mean(np.log([0.8, 0.5, 0.3, 0.2, 0.5])))
    assert metrics["base_rate_log_loss"] == pytest.approx(-(0.6 * np.log(0.6) + 2 * 0.2 * np.log(0.2)))
    assert metrics["auc_skip"] == pytest.approx(3 / 6)  # of 3 × 2 pairs: 0.8 above both, 0.5 above 0.3 only, 0.2 none
    assert metrics["auc_click"] == pytest.approx(2 / 4)  # 0.3 is above 0.1 and 0.2
    assert metrics["auc_order"] == pytest.approx(1)
    assert metrics["n"] == 5


def test_precision_is_no_more_than_the_rate_of_skips_where_nine_of_ten_are_skipped() -> None:
    """MaHRL's "90 % overall precision": a model that tells clicks from skips scores as one that always says skip."""

    def rare(batch: SessionBatch) -> SessionBatch:
        lucky = torch.rand(batch.items.shape, generator=torch.Generator().manual_seed(len(batch))) < 0.25
        return replace(batch, feedback=torch.where(lucky, batch.feedback, batch.feedback.clamp(max=1)))

    model = CONFIG.build(TASK).fit(lambda step: rare(sessions(48, step)), 120, seed=1)
    measured = model.precision(rare(sessions(1000, 9999)))
    assert measured["majority_rate"] > 0.89
    assert measured["precision"] == pytest.approx(measured["majority_rate"], abs=0.005)
    assert measured["auc_skip"] > 0.6
    assert measured["log_loss"] < measured["base_rate_log_loss"]


def test_calibration_moves_the_rate_of_positives_and_not_what_they_are() -> None:
    batch, raw = sessions(300, 5), fitted()
    shifted = CONFIG.build(TASK)
    shifted.load_state_dict(raw.state_dict() | {"calibration.click": torch.tensor([1.0, -2.0])})
    odds = [p / (1 - p) for p in (raw.predict(batch)["click"][1], shifted.predict(batch)["click"][1])]
    np.testing.assert_allclose(odds[1], odds[0] * np.exp(-2), rtol=1e-4)
    assert shifted.precision(batch)["log_loss"] > raw.precision(batch)["log_loss"]
    page = like(1, 20_000)[:, :1]
    feedback = [m.step(start(like(1, 20_000), m), page, luck(m, page, 4))[0] for m in (raw, shifted)]
    bought = [float((f[f >= FIRST_POSITIVE] == Feedback.PURCHASE).float().mean()) for f in feedback]
    assert bought[0] == pytest.approx(bought[1], abs=0.04)


def test_precision_and_evaluate_agree_on_the_skips() -> None:
    batch = sessions(300, 6)
    labels, positive = fitted().predict(batch)["click"]
    measured = fitted().precision(batch)
    assert measured["auc_skip"] == pytest.approx(roc_auc_score(labels, positive))
    assert measured["log_loss"] > log_loss(labels, positive)  # the kind of a positive is one more thing to know


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: fitted().precision(sessions(4, 1)[:0]), DataError, "no sessions"),
        (
            lambda: fitted().precision(replace(sessions(4, 1), page_end=torch.zeros(4, PAGES * K).bool())),
            DataError,
            "does not end a page",
        ),
        (lambda: fitted().positive_probabilities(start(like(1)), like(1) + ITEMS), ModelError, "not in the vocabulary"),
        (
            lambda: fitted().reset(replace(empty_state(1), user_features=torch.full((1, USER_WIDTH), torch.nan))),
            DataError,
            "not finite",
        ),
        (
            lambda: FeedbackConfig(hidden=8).build(TASK).load_state_dict(fitted().state_dict()),
            ModelError,
            "do not fit FeedbackUserModel",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(action: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action()
