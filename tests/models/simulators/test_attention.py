"""HAC's user model against a slow reading of one page at a time, its temper's arithmetic, and what it learns."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.testing import assert_close

from models.base import StateBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.hashing import uniforms
from models.observation import item_vectors
from models.simulators.attention import BLOCK, AttentionConfig, AttentionUserModel, hac_reward
from models.simulators.base import EMPTY, SessionBatch
from pipeline.errors import DataError
from tests.models.builders import ITEMS, USER_WIDTH, make_state, make_task
from tests.models.simulators.contract import PAGES, TASK, assert_rate, copies, luck, random_pages, sessions, start

SMALL = AttentionConfig(dim=16, heads=2, hidden=32, learning_rate=0.01)
ROUNDING = 1e-4  # of twenty drops in float32
VECTORS = item_vectors(TASK.catalogue)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def untrained(config: AttentionConfig = SMALL, **changes: Any) -> AttentionUserModel:
    """Random weights, and none of them small."""
    model = config.model_copy(update=changes).build(TASK).fit(lambda step: sessions(4, step), 0, seed=3)
    with torch.no_grad():
        for weights in model.network.parameters():
            weights.mul_(2)
    return model


# ---- against a slow reading


def slow_interest(model: AttentionUserModel, features: Tensor, history: list[int]) -> Tensor:
    """One user by torch's own attention, [f]: no batch, no padding."""
    network, dim, heads = model.network, model.config.dim, model.config.heads
    user = network.user(features[None])  # [1, f]
    read = torch.zeros(1, dim)
    if history:
        items = network.item(VECTORS[history])[None]  # [1, H, f]
        encoded = stock(network.self_attention, dim, heads)(items, items, items)[0]
        read = stock(network.cross_attention, dim, heads)(user[None], encoded, encoded)[0][0]
    return network.merge(torch.cat([read, user], dim=1))[0]


def stock(ours: Any, dim: int, heads: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.query.weight, ours.key_value.weight]),
            "in_proj_bias": torch.cat([ours.query.bias, ours.key_value.bias]),
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    return theirs.eval()


@pytest.mark.parametrize("length", [3, 50])
@torch.no_grad()
def test_logits_are_those_of_a_slow_reading_of_one_page_after_the_other(length: int) -> None:
    model, batch = untrained(history=length), sessions(12, 5)
    batch.items[::3, 1] = 0  # unknown items, some of them clicked
    clicks, exits = [], []
    for row in range(len(batch)):
        history = [item for item in batch.initial_items[row].tolist() if item]
        page: list[tuple[int, int]] = []
        number = 0
        for item, code, end in zip(batch.items[row].tolist(), batch.feedback[row], batch.page_end[row], strict=True):
            if code == Feedback.NONE:
                break
            page.append((item, int(code)))
            if end:
                interest = slow_interest(model, batch.user_features[row], history[-length:])
                clicks += [float(model.network.item(VECTORS[shown]) @ interest) for shown, _ in page]
                positive = [shown for shown, answer in page if answer >= FIRST_POSITIVE]
                seen = torch.tensor([np.log1p(number), len(positive) / len(page)], dtype=torch.float32)
                exits.append(float(model.network.exit(torch.cat([interest, seen]))))
                history, page, number = history + [shown for shown in positive if shown], [], number + 1
    logits = model.logits(batch)
    np.testing.assert_allclose(logits["click"][1], clicks, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits["exit"][1], exits, rtol=1e-4, atol=1e-5)
    assert len(set(np.round(clicks, 4))) > 50  # or the claim would be empty


def test_many_users_are_read_as_each_of_them_alone() -> None:
    """More than a block of them, with histories of any length, some of them empty."""
    model, lengths = untrained(), torch.arange(2 * BLOCK + 50)[:, None] % 41
    users = make_state(len(lengths), TASK)
    items = torch.randint(1, ITEMS + 1, (len(lengths), 40), generator=torch.Generator().manual_seed(1))
    items = items.masked_fill(torch.arange(40) < 40 - lengths, 0)
    together = model.reset(replace(users, initial_items=items))
    for row in (0, 40, 41, 200, len(lengths) - 1):
        alone = model.reset(replace(users, initial_items=items)[row : row + 1])
        assert_close(together.interest[row : row + 1], alone.interest, rtol=1e-4, atol=1e-5)


def test_rolling_out_visits_the_states_that_training_sees() -> None:
    """step() on its own answers must come to the interest that the log of these answers leads to."""
    model, batch = untrained(), sessions(6, 5)
    pages, hidden, answers = [random_pages(6, 2, seed) for seed in (1, 2, 3)], None, []
    hidden = model.reset(start(batch))
    for page in pages:
        feedback, _, hidden = model.step(hidden, page, luck(page, 3))
        answers.append(feedback)
    probe = random_pages(6, 2, 4)
    log = SessionBatch(
        batch.user_features,
        items=torch.cat([*pages, probe], 1),
        feedback=torch.cat([*answers, torch.ones_like(probe)], 1),
        page_end=torch.tensor([False, True] * 4).expand(6, -1),
        terminated=torch.ones(6).bool(),
        initial_items=batch.initial_items,
    )
    assert (torch.cat(answers, 1) >= FIRST_POSITIVE).any()
    predicted = model.predict(log)["click"][1].reshape(6, -1)[:, -2:]
    np.testing.assert_allclose(model.positive_probabilities(hidden, probe), predicted, rtol=1e-4)


def test_the_history_keeps_the_newest_positives_in_slot_order_and_no_unknown_item() -> None:
    model = untrained(history=3)
    state = StateBatch.at_start(
        torch.zeros(2, USER_WIDTH), torch.tensor([[0, 7, 0, 9], [0, 0, 0, 0]]), torch.full((2, 4), 2), PAGES, 4
    )
    hidden = model.reset(state)
    assert hidden.history.tolist() == [[0, 7, 9], [0, 0, 0]]
    page = torch.tensor([[5, 0, EMPTY, 4], [1, 2, 3, 4]])
    draws = luck(page, 1)
    draws[:, 0:8:2] = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0]])  # a draw of 0 is a positive answer, of 1 a skip
    _, _, after = model.step(hidden, page, draws)
    assert after.history.tolist() == [[9, 5, 4], [0, 2, 4]]
    assert after.pages.tolist() == [1, 1]


# ---- what it learns


def test_what_a_user_liked_and_who_they_are_bear_on_what_they_like_next() -> None:
    """Two tastes, for one side of the items or the other: that of the history, and that of the first feature."""
    side = VECTORS[:, 0] > 0
    of = [torch.nonzero(side)[:20, 0], torch.nonzero(~side)[1:21, 0]]

    def tasteful(step: int, size: int = 32) -> SessionBatch:
        batch, random = sessions(size, step), torch.Generator().manual_seed(step)
        taste = torch.randint(0, 2, (size, 1), generator=random).bool()
        agree = (side[batch.items] == taste).int() + (side[batch.items] == (batch.user_features[:, :1] > 0)).int()
        clicked = torch.rand(agree.shape, generator=random) < torch.tensor([0.1, 0.5, 0.9])[agree]
        picked = torch.randint(0, 20, batch.initial_items.shape, generator=random)
        return replace(
            batch,
            initial_items=torch.where(taste, of[0][picked], of[1][picked]),
            feedback=torch.where(batch.feedback > 0, clicked.int() + 1, 0).long(),
        )

    auc = SMALL.build(TASK).fit(tasteful, 150, seed=2).evaluate(tasteful(9000, 500))["click"]["auc"]
    assert auc > 0.75  # 0.8 for who knows both tastes, 0.7 for who knows one


@cache
def half_liked(response_loss: str) -> Tensor:
    """Predicted rates of items that are liked by 0.4 and by 0.8 of the users, [2]."""
    side = torch.arange(ITEMS + 1) % 2

    def batch(step: int) -> SessionBatch:
        found = sessions(32, step)
        rate = torch.tensor([0.4, 0.8])[side[found.items]]
        clicked = torch.rand(rate.shape, generator=torch.Generator().manual_seed(step)) < rate
        return replace(found, feedback=torch.where(found.feedback > 0, clicked.int() + 1, 0).long())

    task = make_task(rows=2, cols=1)
    task.catalogue.features[1:, 0] = side[1:].float()
    config = SMALL.model_copy(update={"response_loss": response_loss, "l2": 0.0, "learning_rate": 0.02})
    model = config.build(task).fit(batch, 200, seed=2)
    items = torch.arange(1, ITEMS + 1).expand(20, -1)
    rates = model.positive_probabilities(model.reset(start(sessions(20, 1))), items).mean(dim=0)
    return torch.stack([rates[side[1:] == 0].mean(), rates[side[1:] == 1].mean()])


def test_a_double_sigmoid_drives_rates_to_0_and_1_and_plain_bce_finds_them() -> None:
    assert_close(half_liked("bce"), torch.tensor([0.4, 0.8]), atol=0.05, rtol=0)
    low, high = half_liked("double_sigmoid")
    assert low < 0.05
    assert high > 0.95


@torch.no_grad()
def test_kinds_and_exits_come_at_the_rates_of_their_heads() -> None:
    model, users = untrained(), 20_000
    hidden, page = model.reset(copies(users)), torch.tensor([3, 5]).expand(users, -1)
    feedback, leave, _ = model.step(hidden, page, luck(page, 5))
    item = model.network.item(VECTORS[3])
    kinds = model.network.kind(torch.cat([hidden.interest[0], item])).softmax(dim=0)
    clicked = feedback[:, 0] >= FIRST_POSITIVE
    for code in range(FIRST_POSITIVE, len(Feedback)):
        assert_rate(feedback[clicked, 0] == code, kinds[code - FIRST_POSITIVE])
    count = (feedback >= FIRST_POSITIVE).sum(dim=1)
    for clicks in range(3):
        share = torch.tensor([clicks / 2])
        rate = model.network.exit_logits(hidden.interest[:1], hidden.pages[:1], share).sigmoid()
        assert_rate(leave[count == clicks], rate)


def test_the_l2_term_is_the_sum_over_tensors_of_their_mean_squares() -> None:
    batch, model = sessions(8, 1), untrained()
    plain, heavy = (untrained(l2=l2).loss(model.network, batch) for l2 in (0.0, 2.0))
    expected = sum(float((p.detach() ** 2).mean()) for p in model.network.parameters())
    assert float((heavy - plain).detach()) == pytest.approx(2 * expected, rel=1e-5)


def test_what_hac_lacks_leaves_its_response_model_alone() -> None:
    """The heads of kinds and exits read the interest without training it."""
    purchases, batch = sessions(16, 1), sessions(16, 1)
    clicks = replace(
        batch,
        feedback=batch.feedback.clamp(max=int(Feedback.CLICK)),
        terminated=torch.zeros_like(batch.terminated),
    )
    gradients = []
    for log in (purchases, clicks):
        model = untrained()
        model.loss(model.network, log).backward()
        gradients.append({name: p.grad for name, p in model.network.named_parameters()})
    changed = {name for name in gradients[0] if not torch.allclose(gradients[0][name], gradients[1][name])}
    assert changed == {"kind.weight", "kind.bias", "exit.weight", "exit.bias"}


# ---- HAC's reward and temper


def test_the_reward_is_the_mean_over_shown_slots() -> None:
    feedback = torch.tensor([[2, 5, 3, 4], [1, 1, 1, 1], [2, 1, 1, 1], [2, 1, 0, 0], [0, 0, 0, 0]])
    assert_close(hac_reward(feedback), torch.tensor([1.0, -0.2, 0.1, 0.4, 0.0]))
    assert_close(hac_reward(feedback, 0.1), torch.tensor([1.0, -0.1, 0.175, 0.45, 0.0]))
    assert_close(hac_reward(feedback, 0.1, sweet_point=0.9), torch.tensor([0.9, 0.0, 0.275, 0.55, 0.1]))


def tempered(negatives: int, slots: int, **settings: Any) -> tuple[int, float]:
    """Depth and total reward of a user who dislikes so many items of every page."""
    model = untrained(leave="temper", **settings)
    hidden, page = model.reset(copies(1)), torch.arange(1, slots + 1)[None]
    depth, total, gone = 0, 0.0, False
    while not gone:
        draws = torch.zeros(1, 2 * slots + 1)  # a draw of 0 is a positive answer, of 1 a skip
        draws[:, 0 : 2 * negatives : 2] = 1
        feedback, leave, hidden = model.step(hidden, page, draws)
        assert (feedback == Feedback.SKIP).sum() == negatives
        total += float(hac_reward(feedback, model.config.negative_cost, model.config.sweet_point))
        depth, gone = depth + 1, bool(leave)
    return depth, total


@pytest.mark.parametrize(("negatives", "depth", "reward"), [(0, 10, 9.0), (1, 16, 15.6), (2, 9, 7.7), (3, 6, 4.4)])
def test_the_sweet_point_makes_a_perfect_page_worse_than_one_with_a_single_negative(
    negatives: int, depth: int, reward: float
) -> None:
    found = tempered(negatives, 9, negative_cost=0.1, sweet_point=0.9)
    assert found == (depth, pytest.approx(reward, abs=0.05))


def test_perfect_pages_are_seen_for_twenty_pages() -> None:
    assert tempered(0, 10) == (20, pytest.approx(20.0))


@pytest.mark.parametrize(("cost", "sweet_point"), [(0.2, None), (0.1, None), (0.1, 0.9)])
def test_every_finished_session_has_spent_its_temper_and_no_more(cost: float, sweet_point: float | None) -> None:
    """Depth + K(Depth - TotalReward) is the temper spent: above 19, as users stay at 1, by one page's drop at most.

    Where exact arithmetic would come to 1, users leave or stay as float32 rounds it, as in the released code.
    """
    model, users, slots = untrained(leave="temper", negative_cost=cost, sweet_point=sweet_point), 400, 10
    hidden, there = model.reset(make_starts(users)), torch.arange(users)
    depth, total = torch.zeros(users, dtype=torch.float64), torch.zeros(users, dtype=torch.float64)
    shift = torch.linspace(-6, 12, users)  # from users who like nothing to users who like everything
    spent = torch.zeros(users, dtype=torch.float64)
    for number in range(20):
        page = random_pages(len(there), slots, number)
        feedback, leave, hidden = model.step(hidden, page, uniforms(there, number, width=21), shift[there])
        total[there] += hac_reward(feedback, cost, sweet_point)
        depth[there] += 1
        spent[there[leave]] = 20 - hidden.temper[leave].double()
        there, hidden = there[~leave], hidden[~leave]
    assert not len(there)
    budget = depth + slots * (depth - total)
    np.testing.assert_allclose(budget, spent, atol=ROUNDING)
    assert (budget > 19 - ROUNDING).all()
    assert (budget <= 20 + slots * (1 + cost) + ROUNDING).all()
    assert depth.min() < 4
    assert depth.max() > 12


def make_starts(users: int) -> StateBatch:
    state = make_state(users, TASK, seed=4)
    return StateBatch.at_start(state.user_features, state.initial_items, state.initial_feedback, PAGES, 10)


def test_a_temper_needs_no_exit_head_and_a_double_sigmoid_no_calibration() -> None:
    model = untrained(leave="temper", response_loss="double_sigmoid").calibrate(sessions(50, 1))
    assert set(model.predict(sessions(20, 2))) == {"click"}
    assert not [name for name in model.state_dict() if name.startswith(("exit", "calibration"))]
    hazard = untrained(response_loss="double_sigmoid").calibrate(sessions(50, 1))
    assert set(hazard.calibration) == {"exit"}


# ---- what is not there


def test_a_log_without_user_features_makes_everybody_the_same_user() -> None:
    task = replace(TASK, user_width=0)
    bare = replace(sessions(8, 1), user_features=torch.zeros(8, 0))
    model = SMALL.build(task).fit(lambda step: replace(sessions(8, step), user_features=torch.zeros(8, 0)), 2, seed=1)
    hidden = model.reset(start(bare))
    assert_close(hidden.user, hidden.user[:1].expand_as(hidden.user))
    assert model.predict(bare)["click"][1].std() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 30}, r"heads \(4\) must divide dim \(30\)"),
        ({"dropout": 1.0}, "less than 1"),
        ({"response_loss": "hinge"}, "'bce' or 'double_sigmoid'"),
        ({"leave": "never"}, "'hazard' or 'temper'"),
        ({"temper": 0.5}, "greater than or equal to 1"),
        ({"history": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AttentionConfig(**settings)


def test_sessions_without_initial_items_are_refused() -> None:
    with pytest.raises(DataError, match=r"initial_items is missing\. Give it"):
        untrained().evaluate(replace(sessions(4, 1), initial_items=None))
