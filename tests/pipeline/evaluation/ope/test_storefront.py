"""First pages of the storefront, whose propensities and truth are exact: what a page of 10 slots can be judged by.

The target is the production ranker at half its temperature: it shows what the log shows, only more surely.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.feedback import Feedback
from models.simulators.storefront import ShopState, Storefront, StorefrontConfig, seeded
from models.simulators.storefront_policies import draw_buckets, production_logits, production_page
from pipeline.evaluation.ope.estimate import Estimate
from pipeline.evaluation.ope.logged import Floats, Ints, LoggedSlates, LoggedTrajectories
from pipeline.evaluation.ope.policies import (
    ConditionalLogit,
    conditional_propensities,
    marginal_propensities,
    sample_slates,
    slot_distributions,
)
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.evaluation.ope.trajectories import fitted_q
from tests.pipeline.evaluation.ope.proofs import coverage

torch.set_num_threads(1)
PAGES, K, R = 3_000, 10, 50
REWARD = torch.tensor([{Feedback.CLICK: 1.0, Feedback.CART: 1.0, Feedback.PURCHASE: 5.0}.get(f, 0.0) for f in Feedback])
SHOP = Storefront(StorefrontConfig())


@dataclass(frozen=True)
class FirstPages:
    """What the log shows of one first page a user, and the hidden state that made it."""

    state: ShopState
    candidates: Tensor  # [n, R]
    logits: Floats  # [n, R] of the production ranker
    pages: Ints  # [n, K]
    propensities: Floats  # [n, K] as logged
    reward: Floats  # [n, K]

    def value(self, logits: Floats) -> float:
        """The expected reward of first pages drawn from ``logits``."""
        draws = [sample_slates(logits, K, np.random.default_rng(seed)) for seed in range(4)]
        shown = [self.candidates.gather(1, torch.from_numpy(pages)) for pages in draws]
        return float(np.mean([SHOP.expected_reward(self.state, items).sum(1).mean().item() for items in shown]))


def simulate(n: int, seed: int) -> FirstPages:
    state = SHOP.start_session(SHOP.population(n, seeded(seed, "users")), seeded(seed, "start"))
    candidates, bucket = SHOP.recall(state, seeded(seed, "recall")), draw_buckets(n, seeded(seed, "bucket"))
    pages, propensities = production_page(SHOP, state, candidates, bucket, seeded(seed, "ranking"))
    feedback, _, _ = SHOP.step(state, candidates.gather(1, pages), seeded(seed, "feedback"))
    logits = production_logits(SHOP, state, candidates, bucket).double().numpy()
    reward = REWARD[feedback].double().numpy()
    return FirstPages(state, candidates, logits, pages.numpy(), propensities.double().numpy(), reward)


@pytest.fixture(scope="module")
def log() -> FirstPages:
    return simulate(PAGES, seed=2)


def judged(log: FirstPages, target: Floats, marginals: bool = True) -> LoggedSlates:
    conditional = conditional_propensities(target, log.pages)
    behaviour, wanted = (
        (marginal_propensities(x, log.pages) for x in (log.logits, target)) if marginals else (None, None)
    )
    q_logged, v_target = model(log, target, conditional)
    return LoggedSlates(
        log.reward, log.propensities, conditional, np.ones((PAGES, K), bool), np.arange(PAGES), behaviour, wanted,
        q_logged, v_target,
    )  # fmt: skip


def model(log: FirstPages, target: Floats, conditional: Floats) -> tuple[Floats, Floats]:
    """Cascade-DR's model: a linear FQE over the slots, from what the log shows of an item, apart for each depth."""
    items, view = log.candidates, log.state.view
    shown = [(SHOP.x[items] * view[:, None]).sum(2), SHOP.badge[items], SHOP.rating[items], SHOP.log_price[items]]
    known = torch.stack(shown, dim=2).double().numpy()  # [n, R, 4]
    depth = np.linspace(0, 1, K)[:, None]

    def features(chances: Floats) -> Floats:
        """The mean features [n·K, 18] of each slot's item under ``chances`` [n, K, R]."""
        items = chances @ known  # [n, K, 4]
        slots = np.broadcast_to(np.eye(K), (PAGES, K, K))
        return np.concatenate([slots, items, items * depth], axis=2).reshape(PAGES * K, -1)

    logged = LoggedTrajectories(
        np.repeat(np.arange(PAGES), K), np.tile(np.arange(K), PAGES), log.reward.ravel(), log.propensities.ravel(),
        conditional.ravel(), np.repeat(np.arange(PAGES), K),
        features=features((log.pages[:, :, None] == np.arange(R)).astype(float)),
        target_features=features(slot_distributions(target, log.pages)),
    )  # fmt: skip
    q_logged, v_target = fitted_q(logged)
    return q_logged.reshape(PAGES, K), v_target.reshape(PAGES, K)


@pytest.fixture(scope="module")
def target(log: FirstPages) -> Floats:
    return log.logits / 0.5


@pytest.fixture(scope="module")
def found(log: FirstPages, target: Floats) -> dict[str, Estimate]:
    logged = judged(log, target)
    names = [name for name in SLATE_ESTIMATORS if not name.endswith("pseudo_inverse")]
    return {name: SLATE_ESTIMATORS[name].estimate(logged) for name in names}


def test_the_logged_propensities_are_those_of_the_formula(log: FirstPages) -> None:
    np.testing.assert_allclose(conditional_propensities(log.logits, log.pages), log.propensities, rtol=1e-5)


def test_whole_pages_have_no_overlap_where_their_slots_have(found: dict[str, Estimate]) -> None:
    for name in ("sips", "sn_sips"):
        assert found[name].reason.startswith("not enough overlap: an effective sample size of")
        assert found[name].ess < 0.02 * PAGES
    for name in ("rips", "sn_rips", "iips", "sn_iips", "cascade_dr", "sn_cascade_dr"):
        assert found[name].supported, (name, found[name].reason)
    assert found["sips"].ess < found["rips"].ess < found["iips"].ess


def test_what_is_supported_is_true(log: FirstPages, target: Floats, found: dict[str, Estimate]) -> None:
    truth, logged = log.value(target), log.reward.sum(axis=1).mean()
    assert truth > logged + 0.15  # it is no copy of the log
    for name, estimate in found.items():
        if estimate.supported:
            assert estimate.low < truth < estimate.high, name
    assert found["iips"].high - found["iips"].low < 0.6 * (found["rips"].high - found["rips"].low)


def page_estimates(temperature: float, seeds: range, names: tuple[str, ...]) -> dict[str, list[Estimate]]:
    """Of logs of 1,000 pages, the value of the production ranker at a share of its ``temperature``."""
    found: dict[str, list[Estimate]] = {name: [] for name in names}
    for seed in seeds:
        log = simulate(1_000, seed)
        conditional = conditional_propensities(log.logits / temperature, log.pages)
        logged = LoggedSlates(log.reward, log.propensities, conditional, np.ones((1_000, K), bool), np.arange(1_000))
        for name in names:
            found[name].append(SLATE_ESTIMATORS[name].estimate(logged))
    return found


def test_other_logs_give_the_same_verdicts() -> None:
    found = page_estimates(0.5, range(10, 30), ("sips", "sn_sips", "rips", "sn_rips"))
    supported = {name: np.mean([estimate.supported for estimate in estimates]) for name, estimates in found.items()}
    assert max(supported["sips"], supported["sn_sips"]) < 0.1
    assert min(supported["rips"], supported["sn_rips"]) > 0.85


@pytest.mark.slow
def test_intervals_of_supported_estimates_cover_the_truth() -> None:
    found = page_estimates(0.6, range(100, 300), ("rips", "sn_rips"))
    truth = float(np.mean([many.value(many.logits / 0.6) for many in (simulate(10_000, seed) for seed in range(3, 6))]))
    for estimates in found.values():
        assert 0.90 <= coverage([estimate for estimate in estimates if estimate.supported], truth) <= 0.98


def test_on_policy_every_estimator_gives_the_mean_of_the_log(log: FirstPages) -> None:
    logged = judged(log, log.logits, marginals=False)
    for name in ("sips", "rips"):
        estimate = SLATE_ESTIMATORS[name].estimate(logged)
        assert estimate.supported, estimate.reason  # propensities in single precision do no harm
        assert estimate.value == pytest.approx(log.reward.sum(axis=1).mean(), rel=1e-6)


def test_a_ranker_without_overlap_gets_no_verdict(log: FirstPages) -> None:
    logged = judged(log, log.logits / 0.1, marginals=False)
    for name in ("sips", "rips", "cascade_dr", "sn_rips", "sn_cascade_dr"):
        assert "not enough overlap" in SLATE_ESTIMATORS[name].estimate(logged).reason


def test_a_fitted_behaviour_policy_is_calibrated_but_page_weights_tell_that_it_is_not_the_true_one(
    log: FirstPages,
) -> None:
    """The bucket is hidden from it, as is the ranker's fixed error but for how often an item was shown."""
    items, half = log.candidates.numpy(), PAGES // 2
    offered, shown = (
        np.bincount(x[:half].ravel(), minlength=600) for x in (items, np.take_along_axis(items, log.pages, 1))
    )
    popularity = np.log((shown + 1) / (offered + 5))[items]
    similarity = (SHOP.x[log.candidates] * log.state.view[:, None]).sum(2).double().numpy()
    features, mask = np.stack([popularity, similarity], axis=2), np.ones((PAGES, R), bool)
    fitted = ConditionalLogit().fit(features[:half], log.pages[:half], mask[:half])
    found = fitted.propensities(features[half:], log.pages[half:], mask[half:])
    uniform = -np.log(np.arange(R, R - K, -1))
    exact = np.log(log.propensities[half:])
    assert ((np.log(found) - exact) ** 2).mean() < 0.3 * ((uniform - exact) ** 2).mean()
    rows = fitted.calibration(features[half:], log.pages[half:], mask[half:])
    assert max(abs(row["predicted"] - row["observed"]) for row in rows) < 0.02
    logged = judged(log, log.logits / 0.7, marginals=False)
    believed = fitted.propensities(features, log.pages, mask)
    assert SLATE_ESTIMATORS["rips"].estimate(logged).supported
    assert "and not 1" in SLATE_ESTIMATORS["rips"].estimate(replace(logged, behaviour=believed)).reason
