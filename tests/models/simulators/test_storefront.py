"""The shop's equations against hand-worked cases, and the worth of acting for the whole session."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.feedback import Feedback
from models.simulators.storefront import Shoppers, ShopState, Storefront, StorefrontConfig, seeded
from models.simulators.storefront_policies import BUCKETS, draw_buckets, plackett_luce, production_logits

torch.set_num_threads(1)


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.fixture(scope="module")
def shop() -> Storefront:
    return Storefront(StorefrontConfig())


@pytest.fixture(scope="module")
def state(shop: Storefront) -> ShopState:
    """Users in the middle of a session: moods and satiations are not 0."""
    random = seeded(3, "state")
    state = shop.start_session(shop.population(200, random), random)
    for _ in range(3):
        items = shop.recall(state, random)[:, :10]
        _, _, state = shop.step(state, items, random)
    return state


def small_shop(**changes: float | bool) -> Storefront:
    """A page of 2 × 2 and four items whose hidden sides are set by hand: items 0 and 3 share a category."""
    shop = Storefront(
        StorefrontConfig(n_items=4, n_categories=3, dim=2, rows=2, cols=2, recall_size=4, max_pages=1, **changes)
    )
    shop.x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    shop.appeal = torch.tensor([1.0, 0.0, -1.0, 0.5])
    shop.quality = torch.tensor([0.5, -0.5, 2.0, 0.0])
    shop.log_price = torch.tensor([0.0, 1.0, -1.0, 2.0])
    return shop


def small_state(shop: Storefront) -> ShopState:
    taste = torch.tensor([[0.8, 0.6]])
    return ShopState(
        shoppers=Shoppers(taste, taste, price_sense=torch.tensor([2.0]), patience=torch.tensor([0.3])),
        view=taste,
        mood=torch.tensor([0.5]),
        satiation=torch.tensor([[0.1, 0.2, 0.0]]),
        shown=torch.zeros(1, 4, dtype=torch.bool),
    )


def test_examination_falls_by_row_and_column(shop: Storefront) -> None:
    expected = [math.exp(-0.20 * row - 0.12 * col) for row in range(5) for col in range(2)]
    np.testing.assert_allclose(shop.examination, expected, rtol=1e-6)


def test_neighbours_are_the_up_to_four_adjacent_slots_with_equal_shares() -> None:
    shop = Storefront(StorefrontConfig(rows=2, cols=3))
    third, half = 1 / 3, 1 / 2
    expected = [
        [0, half, 0, half, 0, 0],
        [third, 0, third, 0, third, 0],
        [0, half, 0, 0, 0, half],
        [half, 0, 0, 0, half, 0],
        [0, third, 0, third, 0, third],
        [0, 0, half, 0, half, 0],
    ]
    np.testing.assert_allclose(shop.neighbours, expected, rtol=1e-6)


def test_a_hand_worked_page_has_the_recipes_probabilities() -> None:
    shop = small_shop()
    state = small_state(shop)
    items = torch.tensor([[3, 0, 1, 2]])  # 3 | 0 above 1 | 2: items 3 and 0, of one category, are neighbours
    click = [
        1.0 * sigma(-3 + 2.2 * 0.96 + 0.7 * 0.5 - 0.35 * 2 * 2 - 1.2 * 0.1 + 0.1 * 0.5 - 0.6 * 0.5),
        math.exp(-0.12) * sigma(-3 + 2.2 * 0.8 + 0.7 * 1.0 - 0 - 1.2 * 0.1 + 0.05 - 0.6 * 0.5),
        math.exp(-0.20) * sigma(-3 + 2.2 * 0.6 + 0 - 0.35 * 2 * 1 - 1.2 * 0.2 + 0.05),
        math.exp(-0.32) * sigma(-3 + 2.2 * -0.8 - 0.7 + 0.35 * 2 * 1 - 0 + 0.05),
    ]
    cart = [
        sigma(-1.15 + 0.7 * 0.0 - 0.5 * 2 * 2 + 0.8 * 0.96),
        sigma(-1.15 + 0.7 * 0.5 - 0 + 0.8 * 0.8),
        sigma(-1.15 - 0.7 * 0.5 - 0.5 * 2 * 1 + 0.8 * 0.6),
        sigma(-1.15 + 0.7 * 2.0 + 0.5 * 2 * 1 - 0.8 * 0.8),
    ]
    purchase = [sigma(-0.9 + 0.5 * q + 0.1 * 0.5) for q in (0.0, 0.5, -0.5, 2.0)]
    reward = [p * (1 + 4 * c * b) for p, c, b in zip(click, cart, purchase, strict=True)]
    np.testing.assert_allclose(shop.click_probability(state, items)[0], click, rtol=1e-5)
    np.testing.assert_allclose(shop.cart_probability(state, items)[0], cart, rtol=1e-5)
    np.testing.assert_allclose(shop.purchase_probability(state, items)[0], purchase, rtol=1e-5)
    np.testing.assert_allclose(shop.expected_reward(state, items)[0], reward, rtol=1e-5)


def test_a_hand_worked_page_moves_mood_satiation_taste_and_exit() -> None:
    shop = small_shop()
    items = torch.tensor([[3, 0, 1, 2]])
    feedback = torch.tensor([[Feedback.SKIP, Feedback.CLICK, Feedback.SKIP, Feedback.PURCHASE]])
    after = shop.respond(small_state(shop), items, feedback)
    satiation = [0.85 * 0.1 + 0.5 + 0.15, 0.85 * 0.2 + 0.25, 0.25 + 0.15]
    weights = np.exp([0, -0.12, -0.20, -0.32])
    shown = (weights * [0.0, 0.5, -0.5, 2.0]).sum() / weights.sum()
    mood = 0.7 * 0.5 + 0.4 * shown + 0.15 * (0.5 + 2.0)
    taste = np.array([0.8 + 0.06 * (1 - 1), 0.6])
    boredom = 0.5 * satiation[0] + 0.25 * satiation[1] + 0.25 * satiation[2]
    np.testing.assert_allclose(after.satiation[0], satiation, rtol=1e-6)
    np.testing.assert_allclose(after.mood[0], mood, rtol=1e-6)
    np.testing.assert_allclose(after.shoppers.taste[0], taste / np.linalg.norm(taste), rtol=1e-6)
    leave = sigma(-1.6 - 0.5 * mood + 0.9 * (boredom - 0.5) - 0.3)
    np.testing.assert_allclose(shop.exit_probability(after, items)[0], leave, rtol=1e-6)
    ignored = shop.respond(small_state(shop), items, torch.full_like(feedback, int(Feedback.SKIP)))
    np.testing.assert_allclose(ignored.mood[0], 0.7 * 0.5 + 0.4 * shown - 0.06, rtol=1e-6)


def test_feedback_comes_at_the_stated_rates(shop: Storefront, state: ShopState) -> None:
    items = shop.recall(state, seeded(1, "recall"))[:, :10]
    draws = torch.stack([shop.step(state, items, seeded(1, n))[0] for n in range(400)]).float()  # [400, B, K]
    click = shop.click_probability(state, items)
    carts = click * shop.cart_probability(state, items)
    bought = carts * shop.purchase_probability(state, items)
    for least, rate in ((Feedback.CLICK, click), (Feedback.CART, carts), (Feedback.PURCHASE, bought)):
        error = ((draws >= least).float() - rate).mean()
        tolerance = 4 * (rate * (1 - rate)).sum().sqrt() / (rate.numel() * math.sqrt(400))
        assert abs(error) < tolerance, least
    assert not (draws == Feedback.FAVORITE).any()


def test_recall_offers_distinct_items_not_yet_shown_and_prefers_the_rankers_view(
    shop: Storefront, state: ShopState
) -> None:
    candidates = shop.recall(state, seeded(2, "recall"))
    assert candidates.shape == (200, 50)
    assert all(len(set(row)) == 50 for row in candidates.tolist())
    assert not state.shown.gather(1, candidates).any()
    similarity = state.view @ shop.x.T
    assert similarity.gather(1, candidates).mean() > similarity.mean() + 0.1


def test_recall_takes_the_largest_of_its_scores() -> None:
    shop = Storefront(StorefrontConfig(recall_view=1000.0))  # noise no longer matters
    random = seeded(5, "sharp")
    state = shop.start_session(shop.population(5, random), random)
    expected = (state.view @ shop.x.T).topk(50).indices.sort(dim=1).values
    assert (shop.recall(state, random) == expected).all()


def test_plackett_luce_matches_a_brute_force_over_all_orders_of_four() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.7])
    chance = {}
    for order in itertools.permutations(range(4)):
        left = np.cumsum(np.exp(logits.numpy())[list(order)][::-1])[::-1]
        chance[order] = float(np.prod(np.exp(logits.numpy())[list(order)] / left))
    assert sum(chance.values()) == pytest.approx(1.0)
    n = 40_000
    orders, propensity = plackett_luce(logits.expand(n, 4), 4, seeded(0, "orders"))
    counts = dict.fromkeys(chance, 0)
    for order in map(tuple, orders.tolist()):
        counts[order] += 1
    for order, probability in chance.items():
        rows = (orders == torch.tensor(order)).all(1)
        np.testing.assert_allclose(propensity[rows].prod(1), probability, rtol=1e-5)
        assert abs(counts[order] - n * probability) < 4.5 * math.sqrt(n * probability)


def test_the_propensities_of_a_part_of_the_order_marginalise_what_is_not_shown() -> None:
    logits = torch.randn(1, 4, generator=seeded(1, "logits"))
    orders, propensity = plackett_luce(logits.expand(4000, 4), 2, seeded(0, "orders"))
    pairs = {tuple(o): float(p) for o, p in zip(orders.tolist(), propensity.prod(1), strict=True)}
    assert len(pairs) == 12
    assert sum(pairs.values()) == pytest.approx(1.0, abs=1e-5)


def test_the_production_ranker_uses_its_view_the_appeal_its_error_and_the_rating(
    shop: Storefront, state: ShopState
) -> None:
    items = shop.recall(state, seeded(4, "recall"))
    bucket = draw_buckets(len(state), seeded(4, "bucket"))
    assert sorted(set(bucket.tolist())) == pytest.approx(BUCKETS)
    row, col = 17, 31
    item = int(items[row, col])
    known = float(state.view[row] @ shop.x[item])
    expected = 1.6 * known + 0.7 * shop.appeal[item] + shop.ranker_error[item] + bucket[row] * shop.rating[item]
    assert production_logits(shop, state, items, bucket)[row, col] == pytest.approx(float(expected), rel=1e-4)
    assert shop.ranker_error.std() == pytest.approx(0.5, rel=0.1)


def test_the_myopic_oracle_composes_the_page_that_exhaustive_greedy_search_finds(
    shop: Storefront, state: ShopState
) -> None:
    users, candidates = state[:6], shop.recall(state[:6], seeded(6, "recall"))
    page = shop.oracle_page(users, candidates, farsighted=False)
    logits, worth = shop.attraction(users, candidates).numpy(), shop.click_worth(users, candidates).numpy()
    category, e, w = shop.category[candidates].numpy(), shop.examination.numpy(), shop.neighbours.numpy()

    def value(user: int, chosen: list[int]) -> float:
        total = 0.0
        for k, i in enumerate(chosen):
            same = sum(w[k, j] for j, other in enumerate(chosen) if category[user, other] == category[user, i])
            total += e[k] * sigma(logits[user, i] - 0.6 * same) * worth[user, i]
        return total

    for user in range(len(users)):
        chosen: list[int] = []
        for _ in range(10):
            free = [i for i in range(50) if i not in chosen]
            chosen.append(max(free, key=lambda i: value(user, [*chosen, i])))
        # The same page up to float32: its value must be the one that the search finds.
        assert value(user, page[user].tolist()) == pytest.approx(value(user, chosen), rel=1e-5)
        assert sorted(set(page[user].tolist())) == sorted(page[user].tolist())


def test_the_farsighted_oracle_gives_up_reward_for_quality_and_fresh_categories(
    shop: Storefront, state: ShopState
) -> None:
    candidates = shop.recall(state, seeded(7, "recall"))
    pages = {far: candidates.gather(1, shop.oracle_page(state, candidates, farsighted=far)) for far in (False, True)}
    reward = {far: shop.expected_reward(state, items).sum(1).mean() for far, items in pages.items()}
    quality = {far: shop.quality[items].mean() for far, items in pages.items()}
    tired = {far: state.satiation.gather(1, shop.category[items]).mean() for far, items in pages.items()}
    assert reward[True] < reward[False]
    assert quality[True] > quality[False]
    assert tired[True] < tired[False]


def test_in_a_myopic_world_what_is_shown_changes_nothing_later(state: ShopState) -> None:
    def future(shop: Storefront, first: int) -> list[torch.Tensor]:
        """Probabilities of one fixed page, and of the exit after it, when another page came before it."""
        items = shop.recall(state, seeded(9, "recall"))
        luck = seeded(9, "luck")
        before, probe = items[:, first : first + 10], items[:, 40:50]
        _, _, after = shop.step(state, before, luck)
        feedback, leave, _ = shop.step(after, probe, luck)
        clicks = shop.click_probability(after, probe)
        return [clicks, shop.expected_reward(after, probe), leave, after.shoppers.taste, feedback.float()]

    myopic, full = Storefront(StorefrontConfig(myopic_world=True)), Storefront(StorefrontConfig())
    for a, b in zip(future(myopic, 0), future(myopic, 20), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(future(full, 0)[:4], future(full, 20)[:4], strict=True):
        assert not torch.allclose(a, b)


def test_a_new_session_resets_the_mood_and_lets_the_taste_drift(shop: Storefront, state: ShopState) -> None:
    fresh = shop.start_session(state.shoppers, seeded(1, "start"))
    assert not fresh.mood.any()
    assert not fresh.satiation.any()
    assert not fresh.shown.any()
    np.testing.assert_allclose(fresh.view.norm(dim=1), 1, rtol=1e-5)
    np.testing.assert_allclose(fresh.shoppers.taste.norm(dim=1), 1, rtol=1e-5)
    kept = (fresh.shoppers.taste * state.shoppers.taste).sum(1)
    assert 0.9 < kept.mean() < 1.0
    assert torch.equal(fresh.shoppers.home, state.shoppers.home)


def test_two_policies_meet_the_same_luck(shop: Storefront, state: ShopState) -> None:
    assert torch.equal(shop.recall(state, seeded(1, "recall", 4)), shop.recall(state, seeded(1, "recall", 4)))
    assert not torch.equal(shop.recall(state, seeded(1, "recall", 4)), shop.recall(state, seeded(1, "recall", 5)))
    # The same item in the same slot gets the same click, whatever the other slots show.
    items = shop.recall(state, seeded(1, "recall"))
    other = torch.cat([items[:, :1], items[:, 30:39]], dim=1)
    crowded = replace(state, satiation=torch.zeros_like(state.satiation))
    lonely = Storefront(shop.config.model_copy(update={"click_neighbours": 0.0}))
    one, _, _ = lonely.step(crowded, items[:, :10], seeded(1, "luck"))
    two, _, _ = lonely.step(crowded, other, seeded(1, "luck"))
    assert torch.equal(one[:, 0], two[:, 0])
    assert not torch.equal(one, two)


def test_a_catalogue_is_fixed_by_its_seed() -> None:
    one, same, other = (Storefront(StorefrontConfig(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)
    assert torch.bincount(one.category).tolist() == [50] * 12
    correlation = float(np.corrcoef(one.appeal, one.quality)[0, 1])
    assert correlation == pytest.approx(-0.5, abs=0.12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_items": 289}, "n_items >= 290"),
        ({"recall_size": 9}, "recall_size >= 10"),
        ({"clickbait": 1.5}, "less than or equal to 1"),
        ({"n_item": 600}, "Extra inputs are not permitted"),
    ],
)
def test_an_impossible_shop_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StorefrontConfig(**settings)
