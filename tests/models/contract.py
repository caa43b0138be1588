"""What every agent of the registry owes its callers, as claims about a Subject. test_contract.py runs all of them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from models import AGENTS
from models.base import Agent, AgentConfig, Candidates, StateBatch, Task, TensorBatch, TransitionBatch
from models.base import rank_page as page_of
from models.feedback import Feedback
from models.simulators.storefront import ShopState, Storefront, StorefrontConfig, seeded
from pipeline.errors import HindsightError, ModelError
from tests.models.builders import empty_state, make_candidates, make_state, make_task, make_transitions, where

BATCH, POOL = 6, 30


@dataclass(frozen=True)
class Subject:
    """An agent of the registry on a small task."""

    name: str
    config: AgentConfig
    task: Task

    def build(self, seed: int = 11) -> Any:
        return self.config.build(self.task, seed)

    def inputs(self, size: int = POOL, padded: bool = True) -> tuple[StateBatch, Candidates]:
        """States and candidates with the privileges that the agent declares, and no others."""
        state, privileges = make_state(BATCH, self.task), self.config.privileges
        if "truth" in privileges:
            return state, true_candidates()
        candidates = make_candidates(BATCH, self.task, size, padded)
        position = torch.arange(candidates.items.shape[1]).flip(0).expand_as(candidates.items)
        rewards = torch.tensor(self.task.rewards)[1 + candidates.items % 5]
        return state, replace(
            candidates,
            logged_position=position if "logged_position" in privileges else None,
            rewards=rewards if "labels" in privileges else None,
        )


@dataclass(frozen=True)
class Truth(TensorBatch):
    """What an oracle is shown of the storefront: pipeline.evaluation.truth.ShopView without the rest of that module."""

    shop: Storefront
    state: ShopState
    shop_items: Tensor  # [B, K] numbers of the candidates in the shop


def subject(name: str, settings: dict[str, Any]) -> Subject:
    module, config = AGENTS[name].split(":")
    return Subject(name, getattr(import_module(module), config)(**settings), make_task())


def true_candidates() -> Candidates:
    """Recalled items of a small storefront, all real: it never recalls fewer than a page holds."""
    shop = Storefront(StorefrontConfig(n_items=60, n_categories=5, recall_size=POOL, max_pages=2))
    random = seeded(3, "contract")
    state = shop.start_session(shop.population(BATCH, random), random)
    items = shop.recall(state, random)
    every = torch.ones_like(items, dtype=torch.bool)
    return Candidates(items + 1, every, make_candidates(BATCH, make_task()).tie, truth=Truth(shop, state, items))


# ---- every agent


def it_gives_a_finite_score_to_every_candidate(subject: Subject) -> None:
    state, candidates = subject.inputs()
    scores = subject.build().score(state, candidates)
    assert scores.shape == candidates.items.shape
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores[candidates.mask].isfinite().all()


def its_scores_follow_the_candidates_when_they_are_permuted(subject: Subject) -> None:
    state, candidates = subject.inputs()
    agent = subject.build()
    order = torch.randperm(POOL, generator=torch.Generator().manual_seed(5))
    scores, permuted = agent.score(state, candidates), agent.score(state, _permuted(candidates, order))
    real = candidates.mask[:, order]
    assert_close(permuted[real], scores[:, order][real])
    assert len(scores[candidates.mask].unique()) > 1  # or the claim would be empty


def its_page_has_distinct_candidates_and_gaps_only_when_they_run_out(subject: Subject) -> None:
    for size in (POOL, 4):
        state, candidates = subject.inputs(size)
        page = page_of(subject.build(), state, candidates, subject.task.rows, subject.task.cols)
        assert page.shape == (BATCH, subject.task.page_size)
        for row, mask in zip(page.tolist(), candidates.mask, strict=True):
            filled = min(int(mask.sum()), subject.task.page_size)
            shown = row[:filled]
            assert row[filled:] == [-1] * (subject.task.page_size - filled)
            assert len(set(shown)) == filled
            assert all(index >= 0 and mask[index] for index in shown)


def it_ranks_unknown_items_and_unknown_users(subject: Subject) -> None:
    agent, (_, candidates) = subject.build(), subject.inputs()
    unknown = replace(candidates, items=torch.zeros_like(candidates.items))
    for state in (empty_state(BATCH), subject.inputs()[0]):
        for offered in (candidates, unknown):
            assert agent.score(state, offered)[candidates.mask].isfinite().all()
            assert (page_of(agent, state, offered, subject.task.rows, subject.task.cols)[:, 0] >= 0).all()


def it_ranks_the_same_twice_and_draws_no_random_number(subject: Subject) -> None:
    agent, (state, candidates) = subject.build(), subject.inputs()
    before = torch.get_rng_state()
    scores = agent.score(state, candidates)
    page = page_of(agent, state, candidates, subject.task.rows, subject.task.cols)
    assert torch.equal(scores, agent.score(state, candidates))
    assert torch.equal(page, page_of(agent, state, candidates, subject.task.rows, subject.task.cols))
    assert torch.equal(before, torch.get_rng_state())


def its_scores_do_not_depend_on_the_other_rows(subject: Subject) -> None:
    agent, (state, candidates) = subject.build(), subject.inputs()
    together = agent.score(state, candidates)
    alone = torch.cat([agent.score(state[at : at + 1], candidates[at : at + 1]) for at in range(BATCH)])
    assert_close(together[candidates.mask], alone[candidates.mask])


def its_seed_matters_where_it_is_stochastic(subject: Subject) -> None:
    state, candidates = subject.inputs()
    scores, others = (subject.build(seed).score(state, candidates)[candidates.mask] for seed in (11, 13))
    assert torch.equal(scores, others) != subject.config.stochastic


def its_config_refuses_an_unknown_field(subject: Subject) -> None:
    with pytest.raises(ValidationError, match="no_such_setting"):
        type(subject.config)(no_such_setting=1)  # type: ignore[call-arg]


def its_config_is_frozen_and_survives_json(subject: Subject) -> None:
    config = subject.config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError):
        config.no_such_setting = 1  # type: ignore[attr-defined]


def it_refuses_to_run_without_its_privileges(subject: Subject) -> None:
    state, candidates = subject.inputs()
    bare = replace(candidates, logged_position=None, rewards=None, truth=None)
    agent = subject.build()
    if not subject.config.privileges:
        assert torch.equal(agent.score(state, bare), agent.score(state, candidates))
        return
    with pytest.raises(ModelError, match="is not filled"):
        agent.score(state, bare)
    with pytest.raises(ModelError, match="is not filled"):
        page_of(agent, state, bare, subject.task.rows, subject.task.cols)


def it_can_be_evaluated_somewhere(subject: Subject) -> None:
    agent: Agent = subject.build()
    assert isinstance(agent, Agent)
    assert subject.config.legs
    assert subject.config.legs <= {"rerank", "rollout"}
    assert subject.config.privileges <= {"logged_position", "labels", "truth"}
    # Only the storefront knows the truth, and a roll-out knows neither labels nor logged positions.
    if "truth" in subject.config.privileges:
        assert subject.config.legs == {"rollout"}
    elif subject.config.privileges:
        assert subject.config.legs == {"rerank"}


# ---- agents trained by gradient steps


def its_update_gives_finite_losses_and_lowers_the_first_on_a_repeated_batch(subject: Subject) -> None:
    agent, batch = subject.build(), make_transitions(32, subject.task)
    # Everybody buys everything and leaves: the reward is the target, whichever items an agent draws from the pages.
    bought = torch.where(batch.mask, int(Feedback.PURCHASE), 0)
    rewards = torch.tensor(subject.task.rewards)[bought]
    batch = replace(batch, feedback=bought, rewards=rewards, terminated=torch.ones_like(batch.terminated))
    history = [agent.update(batch) for _ in range(24)]
    assert all(isinstance(value, float) and math.isfinite(value) for losses in history for value in losses.values())
    first = next(iter(history[0]))
    early, late = (sum(losses[first] for losses in part) / 5 for part in (history[:5], history[-5:]))
    assert late < early, f"{first}: {early} → {late}"


def its_weights_rank_the_same_after_a_journey_through_a_file(subject: Subject) -> None:
    state, candidates = subject.inputs()
    agent, other = _trained(subject, 3), subject.build(seed=13)
    assert not torch.equal(agent.score(state, candidates), other.score(state, candidates))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(agent.state_dict(), file)
        other.load_state_dict(load_file(file))
    assert torch.equal(agent.score(state, candidates), other.score(state, candidates))


def it_refuses_weights_that_do_not_fit(subject: Subject) -> None:
    agent = subject.build()
    weights = agent.state_dict()
    name = max(weights, key=lambda name: weights[name].numel())
    for wrong in ({**weights, name: torch.zeros(3, 3, 3)}, {k: v for k, v in weights.items() if k != name}):
        with pytest.raises(ModelError, match=r"do not fit|does not fit"):
            agent.load_state_dict(wrong)


def a_resumed_training_ends_like_an_uninterrupted_one(subject: Subject) -> None:
    agent = _trained(subject, 3)
    file = io.BytesIO()
    torch.save({"weights": agent.state_dict(), "training": agent.training_state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = subject.build()
    resumed.load_state_dict(saved["weights"])
    resumed.load_training_state(saved["training"])
    for batch in _batches(subject, 3, seed=50):
        agent.update(batch)
        resumed.update(batch)
    _assert_equal_weights(agent, resumed)


def its_training_depends_on_its_own_seed_alone(subject: Subject) -> None:
    """Whatever happened to torch's global generator before."""
    agents = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        agents.append(_trained(subject, 3))
    _assert_equal_weights(*agents)


def it_learns_from_original_rows_alone(subject: Subject) -> None:
    """Whatever the hindsight rows hold; if there were none but those, it would say so."""
    agent, other = subject.build(), subject.build()
    batch = make_transitions(32, subject.task)
    scrambled = _where_hindsight(batch, make_transitions(32, subject.task, seed=9))
    for _ in range(2):
        agent.update(batch)
        other.update(scrambled)
    _assert_equal_weights(agent, other)
    with pytest.raises(HindsightError, match="original row"):
        agent.update(replace(batch, hindsight=torch.ones_like(batch.hindsight)))


def it_looks_no_further_than_the_page_at_discount_zero(subject: Subject, bootstraps: bool) -> None:
    """The target is then the page's own: another future leaves every weight as it is, and at discount zero only.

    An agent that ``bootstraps`` reads the future through the next state, which it has unless the user left. One that
    does not reads it from the measurement.
    """
    for discount, same in ((0.0, True), (subject.config.model_dump()["discount"], False)):
        config = type(subject.config)(**{**subject.config.model_dump(), "discount": discount})
        agent, other = (config.build(subject.task, 11) for _ in range(2))
        for batch in _batches(subject, 3):
            agent.update(batch)
            other.update(_with_another_future(batch, bootstraps))
        weights, others = agent.state_dict(), other.state_dict()
        assert all(torch.equal(weights[name], others[name]) for name in weights) == same


EVERY_AGENT = (
    it_gives_a_finite_score_to_every_candidate,
    its_scores_follow_the_candidates_when_they_are_permuted,
    its_page_has_distinct_candidates_and_gaps_only_when_they_run_out,
    it_ranks_unknown_items_and_unknown_users,
    it_ranks_the_same_twice_and_draws_no_random_number,
    its_scores_do_not_depend_on_the_other_rows,
    its_seed_matters_where_it_is_stochastic,
    its_config_refuses_an_unknown_field,
    its_config_is_frozen_and_survives_json,
    it_refuses_to_run_without_its_privileges,
    it_can_be_evaluated_somewhere,
)
LEARNERS = (
    its_update_gives_finite_losses_and_lowers_the_first_on_a_repeated_batch,
    its_weights_rank_the_same_after_a_journey_through_a_file,
    it_refuses_weights_that_do_not_fit,
    a_resumed_training_ends_like_an_uninterrupted_one,
    its_training_depends_on_its_own_seed_alone,
)


def _batches(subject: Subject, count: int, seed: int = 20) -> list[TransitionBatch]:
    return [make_transitions(16, subject.task, seed=seed + at) for at in range(count)]


def _trained(subject: Subject, steps: int) -> Any:
    agent = subject.build()
    for batch in _batches(subject, steps):
        agent.update(batch)
    return agent


def _assert_equal_weights(agent: Any, other: Any) -> None:
    weights, others = agent.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


def _permuted(candidates: Candidates, order: Tensor) -> Candidates:
    truth = candidates.truth and replace(candidates.truth, shop_items=candidates.truth.shop_items[:, order])
    columns = {name: value[:, order] for name, value in vars(candidates).items() if isinstance(value, Tensor)}
    return replace(candidates, **columns, truth=truth)


def _where_hindsight(batch: TransitionBatch, other: TransitionBatch) -> TransitionBatch:
    """``batch`` with the contents of ``other`` in its hindsight rows."""
    columns = {
        name: torch.where(batch.hindsight.view(-1, *[1] * (value.dim() - 1)), getattr(other, name), value)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor) and name != "hindsight"
    }
    return replace(batch, **columns, state=where(batch.hindsight, other.state, batch.state))


def _with_another_future(batch: TransitionBatch, bootstraps: bool) -> TransitionBatch:
    """The same page with the same feedback, and what comes after it changed."""
    if bootstraps:
        return replace(batch, terminated=~batch.terminated)
    return replace(batch, measurement=batch.measurement.flip(0) + 1, goal=batch.goal.flip(0))
