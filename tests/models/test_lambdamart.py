"""LambdaMART: its features by hand, the contract of agents, and what its trees learn."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor
from torch.testing import assert_close

from models.base import Candidates, GradientAgent, StateBatch, TransitionBatch
from models.feedback import Feedback
from models.goalrec import item_inputs
from models.lambdamart import LambdaMART, LambdaMARTConfig, PairFeatures, mean_ndcg
from models.observation import item_vectors
from pipeline.errors import ConfigError, DataError, ModelError
from tests.models import contract
from tests.models.builders import COUNTERS, empty_state, make_candidates, make_state, make_task, make_transitions
from tests.models.contract import Subject

TASK = make_task()
SMALL = LambdaMARTConfig(min_leaf=2, leaves=7)


def built(seed: int = 11, **changes: Any) -> LambdaMART:
    return SMALL.model_copy(update=changes).build(TASK, seed)


# ---- the features


def slow_features(state: StateBatch, row: int, item: int) -> list[float]:
    """One user and one item, by hand."""
    catalogue, vectors = TASK.catalogue, item_vectors(TASK.catalogue)

    def cosine(other: int) -> float:
        norms = float(vectors[item].norm() * vectors[other].norm())
        return float(vectors[item] @ vectors[other]) / norms if norms else 0.0

    def matches(items: list[int]) -> list[float]:
        category = [i for i in items if i and catalogue.category[i] == catalogue.category[item]]
        return [sum(i == item and i > 0 for i in items), len(category)]

    history = state.history_items[row][state.history_feedback[row] > 0].tolist()
    skips = state.skipped_items[row][state.skipped_items[row] > 0].tolist()
    pages = state.page_items[row][state.page_feedback[row] > 0].tolist()
    alike = [cosine(i) for i in history]
    # An empty place of a history counts as an item without likeness.
    places = alike if len(history) == state.history_items.shape[1] else [*alike, 0.0]
    return [
        float(np.log1p(catalogue.popularity[item])),
        float(np.log1p(catalogue.impressions[item])),
        float(item_inputs(TASK)[item, -1]),
        *catalogue.features[item].tolist(),
        sum(alike) / max(1, len(alike)),
        alike[-1] if alike else 0.0,
        max(places),
        sum(cosine(i) for i in skips) / max(1, len(skips)),
        *matches(history),
        *matches(skips),
        matches(pages)[0],
        *state.user_features[row].tolist(),
        len(history),
        len(skips),
        int(state.pages_seen[row]),
    ]


def test_features_are_those_of_a_slow_reading_of_one_user_and_one_item() -> None:
    state, features = make_state(12, TASK), PairFeatures(TASK)
    items = make_candidates(12, TASK, padded=False).items
    items[:, 0], items[:, 1] = 0, state.history_items[:, -1]  # an unknown one, and one that was liked before
    found = features(state, items)
    assert found.shape == (12, 30, features.width)
    slow = [[slow_features(state, row, item) for item in items[row].tolist()] for row in range(12)]
    assert_close(found, torch.tensor(slow), atol=1e-5, rtol=1e-4)


def test_mean_ndcg_is_that_of_scikit_learn_over_pages_with_a_gain() -> None:
    random = torch.Generator().manual_seed(1)
    scores, gains = torch.randn(20, 10, generator=random), torch.randint(0, 3, (20, 10), generator=random).float()
    gains[3] = 0
    mask = torch.arange(10) < 4 + torch.arange(20)[:, None] % 7  # some pages are shorter
    gains = gains * mask
    pages = [row for row in range(20) if gains[row].any()]
    wanted = [ndcg_score(gains[row][mask[row]][None], scores[row][mask[row]][None]) for row in pages]
    assert mean_ndcg(scores, gains, mask) == pytest.approx(np.mean(wanted), rel=1e-5)
    assert mean_ndcg(scores, 0 * gains, mask) == 1


def test_without_lightgbm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"Install lightgbm>="):
        built()


# ---- the trees


@pytest.fixture
def subject() -> Subject:
    return Subject("lambdamart", SMALL, TASK)


# Before the first tree the seed changes nothing, and a page of purchases alone has no order to learn: both below.
LEARNER_CLAIMS = [claim for claim in contract.LEARNERS if "lowers_the_first" not in claim.__name__]
AGENT_CLAIMS = [
    claim for claim in contract.EVERY_AGENT if claim is not contract.its_seed_matters_where_it_is_stochastic
]


@pytest.mark.parametrize("claim", [*AGENT_CLAIMS, *LEARNER_CLAIMS], ids=lambda claim: str(claim.__name__))
def test_the_contract_of_agents(claim: Any, subject: Subject) -> None:
    claim(subject)


def test_it_learns_from_original_rows_alone(subject: Subject) -> None:
    assert isinstance(subject.build(), GradientAgent)
    contract.it_learns_from_original_rows_alone(subject)


def follow_the_category(rows: int, seed: int) -> TransitionBatch:
    """Users buy what shares the category of all that they liked before, and click one item in ten of the others."""
    batch = make_transitions(rows, TASK, hindsight=False, empty_slots=False, seed=seed)
    random = np.random.default_rng(seed)
    wanted = torch.from_numpy(random.integers(1, 5, (rows, 1)))
    category = TASK.catalogue.category
    liked = torch.stack([(category == w).nonzero()[:6, 0] for w in wanted[:, 0]])
    state = replace(batch.state, history_items=liked, history_feedback=torch.full_like(liked, int(Feedback.CLICK)))
    noise = torch.from_numpy(random.random(batch.items.shape) < 0.1)
    feedback = torch.where(noise, int(Feedback.CLICK), int(Feedback.SKIP))
    feedback = torch.where(category[batch.items] == wanted, int(Feedback.PURCHASE), feedback)
    return replace(batch, state=state, feedback=feedback)


def gains(batch: TransitionBatch) -> Tensor:
    return torch.tensor(TASK.rewards)[batch.feedback]


def test_its_trees_learn_whose_category_is_bought() -> None:
    agent, fresh = built(), follow_the_category(256, seed=1_000)
    losses = [agent.update(follow_the_category(64, seed=step))["loss"] for step in range(30)]
    assert np.mean(losses[-5:]) < losses[0] / 2  # the first is that of the click rate
    scores = agent.score(fresh.state, Candidates(fresh.items, fresh.mask, fresh.items))
    assert mean_ndcg(scores, gains(fresh), fresh.mask) > 0.9


def test_the_seed_draws_the_features_of_each_tree() -> None:
    state, candidates = make_state(6, TASK), make_candidates(6, TASK)
    scores = []
    for seed in (11, 11, 13):
        agent = built(seed, feature_share=0.3)
        for step in range(4):
            agent.update(follow_the_category(64, seed=step))
        scores.append(agent.score(state, candidates))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_it_grows_no_more_trees_than_it_may() -> None:
    agent = built(trees=3)
    assert [agent.update(follow_the_category(64, seed=step))["trees"] for step in range(5)] == [1, 2, 3, 3, 3]


def test_a_batch_of_hindsight_rows_is_refused() -> None:
    batch = make_transitions(4, TASK)
    with pytest.raises(DataError, match="original rows"):
        built().update(batch[batch.hindsight])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "must be the bytes"),
        ({"model": torch.zeros(3)}, "must be the bytes"),
        ({"model": torch.tensor(list(b"no trees"), dtype=torch.uint8)}, "cannot read them"),
    ],
)
def test_weights_that_are_no_trees_are_refused(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built().load_state_dict(weights)


def test_trees_of_another_log_are_refused() -> None:
    agent = built()
    agent.update(follow_the_category(64, seed=1))
    wider = replace(TASK, user_width=TASK.user_width + 1)
    with pytest.raises(ModelError, match="Train again"):
        SMALL.build(wider, 11).load_state_dict(agent.state_dict())


def test_before_the_first_tree_it_ranks_by_click_rate_as_of_the_end_of_the_training_window() -> None:
    candidates, catalogue = make_candidates(3, TASK, padded=False), TASK.catalogue
    overall = catalogue.popularity.sum() / catalogue.impressions.sum()
    rate = (catalogue.popularity + 20 * overall) / (catalogue.impressions + 20)
    assert_close(built().score(empty_state(3), candidates), rate[candidates.items])


def test_its_trees_learn_from_what_was_counted_before_the_page_and_rank_by_what_is_known_at_last() -> None:
    agent = built()
    for step in range(20):
        batch = make_transitions(64, TASK, hindsight=False, empty_slots=False, seed=step)
        counters = torch.rand(batch.counters.shape, generator=torch.Generator().manual_seed(step))
        feedback = torch.where(counters[..., 2] > 0.8, int(Feedback.CLICK), int(Feedback.SKIP))
        agent.update(replace(batch, counters=counters, feedback=feedback))
    candidates = make_candidates(3, TASK, padded=False)
    now = torch.rand(*candidates.items.shape, COUNTERS, generator=torch.Generator().manual_seed(99))
    for counters in (None, now):  # as of the end of the training window, or of the moment
        scores = agent.score(empty_state(3), replace(candidates, counters=counters))
        warm = (TASK.catalogue.counters[candidates.items] if counters is None else counters)[..., 2] > 0.8
        assert scores[warm].min() > scores[~warm].max()


def test_what_the_whole_training_window_says_of_an_item_is_not_in_its_trees() -> None:
    """Its click rate there includes the page at hand: trees that read it would learn from the answers."""
    order = torch.cat([torch.tensor([0]), torch.arange(1, len(TASK.catalogue)).flip(0)])
    counts = {name: getattr(TASK.catalogue, name)[order] for name in ("popularity", "impressions")}
    told = replace(TASK, catalogue=replace(TASK.catalogue, **counts))
    agents = built(), SMALL.build(told, 11)
    for step in range(5):
        for agent in agents:
            agent.update(follow_the_category(64, seed=step))
    assert torch.equal(*(agent.state_dict()["model"] for agent in agents))
