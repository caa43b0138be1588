"""The adapter against the shop itself: the same probabilities, whatever stands on the page."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models.environments.recall import PopularRecall
from models.environments.sessions import Sessions, SessionSettings
from models.feedback import FIRST_POSITIVE, Feedback
from models.simulators.base import EMPTY
from models.simulators.storefront import Shoppers, ShopState, Storefront, StorefrontConfig, seeded
from models.simulators.storefront_users import StorefrontUsers
from pipeline.errors import ModelError
from tests.models.builders import ITEMS, empty_state, make_task

SHOP = Storefront(StorefrontConfig())
POPULATION = SHOP.population(50, seeded(1, "users"))
# The shop's items 0, 10, 20 … are the dense items 1, 2, 3 …
VOCABULARY = torch.zeros(600, dtype=torch.int64).index_put((torch.arange(60) * 10,), torch.arange(1, 61))
PAGE = torch.tensor([1, 13, 25, 5, 60, 7, 8, 9, 30, 11])  # dense items; some neighbours share a category


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def users(**changes: Any) -> StorefrontUsers:
    return StorefrontUsers(
        **({"shop": SHOP, "population": POPULATION, "vocabulary": VOCABULARY, "matched": False} | changes)
    )


def draws(batch: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, width, generator=torch.Generator().manual_seed(seed))


def begun(model: StorefrontUsers, batch: int) -> ShopState:
    return model.reset(empty_state(batch), draws(batch, model.reset_width()))


def in_the_shop(state: ShopState) -> ShopState:
    """The state without the blank item and its category."""
    return ShopState(state.shoppers, state.view, state.mood, state.satiation[:, :-1], state.shown[:, :-1])


def test_a_session_starts_as_in_the_shop() -> None:
    model = users(matched=True)
    state, luck = begun(model, 50), draws(50, model.reset_width())
    noise = torch.distributions.Normal(0, 1).icdf(luck[:, 1:].double() + 2**-25).float().view(50, 2, 8)
    expected = SHOP.begin(POPULATION, noise.movedim(1, 0))
    for name in ("view", "mood", "satiation"):
        assert_close(getattr(in_the_shop(state), name), getattr(expected, name))
    assert_close(state.shoppers.taste, expected.shoppers.taste)


def test_the_population_is_drawn_from_evenly_unless_it_is_matched() -> None:
    drawn = begun(users(), 5000).shoppers.patience
    assert torch.equal(begun(users(matched=True), 50).shoppers.patience, POPULATION.patience)
    counts = (drawn[:, None] == POPULATION.patience).sum(dim=0)
    assert counts.sum() == 5000
    assert 60 < counts.min() <= counts.max() < 140


def test_pages_change_a_shopper_as_they_do_in_the_shop() -> None:
    model = users(matched=True)
    state = begun(model, 50)
    mine, theirs = state, in_the_shop(state)
    for page in (PAGE, PAGE.flip(0) + 0, PAGE.roll(3)):
        luck = draws(50, model.step_width(10), seed=int(page[0]))
        numbers = (10 * (page - 1)).expand(50, -1)
        feedback, leave, mine = model.step(mine, page.expand(50, -1), luck)
        expected = SHOP.answer(theirs, numbers, luck[:, :-1].view(50, 10, 3).movedim(2, 0))
        theirs = SHOP.respond(theirs, numbers, expected)
        assert torch.equal(feedback, expected)
        assert torch.equal(leave, luck[:, -1] < SHOP.exit_probability(theirs, numbers))
        for name in ("mood", "satiation", "shown"):
            assert_close(getattr(in_the_shop(mine), name), getattr(theirs, name))
        assert_close(mine.shoppers.taste, theirs.shoppers.taste)
    assert (feedback >= FIRST_POSITIVE).any()


def test_clicks_alone_on_a_page_come_at_the_stated_probability_and_move_with_a_shift() -> None:
    model = users(population=POPULATION[:1])
    state = begun(model, 1)[torch.zeros(20_000, dtype=torch.int64)]
    item = torch.full((20_000, 1), 13)
    for shift in (0.0, 1.5):
        expected = torch.logit(model.positive_probabilities(state[:1], item[:1])) + shift
        shifted = torch.full((20_000,), shift) if shift else None
        feedback, _, _ = model.step(state, item, draws(20_000, 4), shifted)
        clicked = (feedback >= FIRST_POSITIVE).float().mean()
        assert clicked == pytest.approx(float(expected.sigmoid()), abs=4 * 0.5 / 20_000**0.5)


def test_an_empty_slot_is_not_seen() -> None:
    """It gets no feedback, is no neighbour, tires nobody, and its category stays out of the shop."""
    model = users(matched=True)
    state, luck = begun(model, 50), draws(50, model.step_width(10))
    page = PAGE.clone()
    page[[1, 2, 9]] = EMPTY
    feedback, leave, after = model.step(state, page.expand(50, -1), luck)
    assert torch.equal(feedback[0] == Feedback.NONE, page == EMPTY)
    assert after.satiation[:, -1].sum() == 0
    tired = in_the_shop(after).satiation.sum(dim=1)  # a tenth a shown item, and the clicks
    clicks = (feedback >= FIRST_POSITIVE).sum(dim=1)
    assert_close(tired, 0.7 + SHOP.config.satiation_click * clicks)
    short, left, same = model.step(state, page[:9].expand(50, -1), torch.cat([luck[:, :27], luck[:, -1:]], dim=1))
    assert torch.equal(short, feedback[:, :9])
    assert torch.equal(left, leave)
    assert_close(same.mood, after.mood)


def test_a_neighbour_that_is_gone_costs_nothing() -> None:
    model = users(matched=True)
    state = begun(model, 50)
    same = model.numbers[torch.tensor([1, 7])]
    assert SHOP.category[same[0]] == SHOP.category[same[1]]
    page = torch.tensor([1, 7] + [EMPTY] * 8).expand(50, -1)
    alone = page.masked_fill(page == 7, EMPTY)
    luck = draws(50, 31).masked_fill(torch.arange(31) == 0, 0.0)
    probability = model.positive_probabilities(state, page[:, :1])[:, 0]
    for shown, between in ((page, False), (alone, True)):
        # Just below the probability alone on the page: clicked there, and not beside an item of its category.
        luck[:, 0] = probability * 0.999
        assert (model.step(state, shown, luck)[0][:, 0] >= FIRST_POSITIVE).all() == between


def test_an_empty_page_ends_the_session() -> None:
    model = users(matched=True)
    _, leave, _ = model.step(begun(model, 50), torch.full((50, 10), EMPTY), torch.ones(50, 31) * 0.9999)
    assert leave.all()


def test_the_engine_rolls_the_shop_out() -> None:
    task = make_task(items=ITEMS)
    sessions = Sessions(users(), task, PopularRecall(task), SessionSettings(pool=30, max_pages=25))
    sessions.start(empty_state(300), torch.arange(300), seed=1)
    depth = torch.zeros(300)
    while not sessions.done:
        depth[sessions.users] += 1
        sessions.step(torch.arange(10).expand(len(sessions.users), -1))
    assert 2 < depth.mean() < 12


def unknown(page: list[int]) -> Any:
    model = users(vocabulary=VOCABULARY * 2)  # the odd dense items are not of the shop
    return model.step(begun(model, 1), torch.tensor([page]), draws(1, 3 * len(page) + 1))


def few(count: int) -> Shoppers:
    return POPULATION[:count]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: unknown([2, 3]), "Item 3 is not in the storefront's vocabulary"),
        (lambda: unknown([2, 0]), "Item 0 is not in the storefront's vocabulary"),
        (lambda: unknown([2, 121]), "Item 121 is not in the vocabulary"),
        (lambda: unknown([2] * 11), "11 slots was shown in a storefront of 10"),
        (lambda: users(vocabulary=VOCABULARY[:9]), "9 entries, 1 of them different items, was given for 600"),
        (lambda: users(vocabulary=VOCABULARY.clamp(max=9)), "60 entries|600 entries, 9 of them different"),
        (lambda: users(vocabulary=VOCABULARY * 0), "600 entries, 0 of them different"),
        (lambda: begun(users(matched=True, population=few(7)), 6), "6 states for a matched population of 7"),
    ],
)
def test_what_the_shop_does_not_know_is_refused(action: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        action()
