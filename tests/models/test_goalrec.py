"""GoalRec: the claims of its equations, and that it learns a small world whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from models.base import Candidates, Task, TransitionBatch
from models.feedback import Feedback
from models.goalrec import GoalRec, GoalRecConfig, explained_variance, principal_components, reward_goal
from pipeline import hindsight
from pipeline.errors import ConfigError, ModelError
from tests.models.builders import empty_state, make_candidates, make_state, make_task, make_transitions

torch.set_num_threads(1)


def build(seed: int = 11, **settings: Any) -> GoalRec:
    return GoalRecConfig(**settings).build(make_task(), seed)


def ranked(agent: GoalRec) -> Tensor:
    state, candidates = make_state(6, agent.task), make_candidates(6, agent.task, padded=False)
    return agent.score(state, candidates)


# ---- a bandit whose truth is known: items have a click rate, a purchase rate, and pages are sessions of their own


def bandit(rows: int, seed: int = 0) -> tuple[Task, TransitionBatch, np.ndarray, np.ndarray]:
    """One page a session; clicks and purchases depend on the item alone, and what is clicked is bought less."""
    rng = np.random.default_rng(seed)
    task = make_task()
    count = len(task.catalogue)
    click_rate = np.r_[0, rng.permutation(np.linspace(0.02, 0.5, count - 1))]
    buy_rate = np.where(click_rate > 0.25, 0.02, 0.9)
    items = 1 + rng.random((rows, count - 1)).argsort(axis=1)[:, :10]
    clicked = rng.random(items.shape) < click_rate[items]
    bought = clicked & (rng.random(items.shape) < buy_rate[items])
    feedback = np.where(bought, Feedback.PURCHASE, np.where(clicked, Feedback.CLICK, Feedback.SKIP))
    pages = hindsight.Pages(np.arange(rows + 1), items, feedback, np.ones(rows, bool), np.zeros((count, 2), np.float32))
    measured = hindsight.measurements(pages, np.zeros(rows, int))
    deviation = hindsight.scale(measured, pages.shown)
    batch = TransitionBatch(
        state=empty_state(rows),
        items=torch.from_numpy(items),
        feedback=torch.from_numpy(feedback),
        rewards=torch.tensor(task.rewards)[torch.from_numpy(feedback)],
        measurement=torch.from_numpy(measured),
        goal=torch.from_numpy(hindsight.goals(measured, deviation)[0]),
        hindsight=torch.ones(rows, dtype=torch.bool),
        terminated=torch.ones(rows, dtype=torch.bool),
        truncated=torch.zeros(rows, dtype=torch.bool),
        propensity=torch.full(items.shape, torch.nan),
        counters=task.catalogue.counters[items],
    )
    # The click rate is hidden from the catalogue: it must be learnt from the pages, by the item's own vector.
    vectors = torch.from_numpy(rng.normal(size=(count, 12))).float()
    vectors[:, 0] = torch.from_numpy(click_rate) * 4
    flat = torch.ones(count)
    catalogue = replace(task.catalogue, embeddings=vectors, popularity=flat, impressions=10 * flat)
    return (
        replace(task, catalogue=catalogue, measurement_scale=torch.from_numpy(deviation)),
        batch,
        click_rate,
        buy_rate,
    )


@pytest.fixture(scope="module")
def trained() -> tuple[GoalRec, np.ndarray, np.ndarray]:
    task, batch, click_rate, buy_rate = bandit(rows=2048)
    agent = GoalRecConfig(goal={"clicks": 1.0}, gru=8, state_width=48).build(task, 3)
    for step in range(120):
        first = step * 64 % 2048
        agent.update(batch[first : first + 64])
    return agent, click_rate, buy_rate


def every_item(agent: GoalRec) -> Tensor:
    items = torch.arange(1, len(agent.task.catalogue))[None]
    return agent.score(empty_state(1), Candidates(items, items > 0, items))[0]


def test_the_ranking_learns_the_click_rates(trained: tuple[GoalRec, np.ndarray, np.ndarray]) -> None:
    agent, click_rate, _ = trained
    scores = every_item(agent).numpy()
    assert np.corrcoef(scores, click_rate[1:])[0, 1] > 0.9
    best = click_rate[1:][scores.argsort()[::-1][:10]].mean()
    assert best > 1.5 * click_rate[1:].mean()  # of a random page


def test_another_goal_ranks_otherwise_without_training(trained: tuple[GoalRec, np.ndarray, np.ndarray]) -> None:
    agent, click_rate, buy_rate = trained
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    buyers = every_item(agent.with_goal({"purchases": 1.0})).numpy()
    truth = (click_rate * buy_rate)[1:]
    assert np.corrcoef(buyers, truth)[0, 1] > 0.7
    assert np.corrcoef(every_item(agent).numpy(), truth)[0, 1] < 0.3
    assert all(torch.equal(before[name], value) for name, value in agent.state_dict().items())
    assert_close(every_item(agent.with_goal({"clicks": 3.0})), every_item(agent))  # a goal is a direction


# ---- equations


def test_the_ranking_does_not_depend_on_the_value_stream() -> None:
    agent = build()
    before = ranked(agent)
    with torch.no_grad():
        for parameter in agent.model.value_head.parameters():
            parameter.normal_()
    assert torch.equal(ranked(agent), before)


def test_the_best_log_variance_is_the_log_of_the_mean_squared_error() -> None:
    model = build().model
    error = torch.randn(400, len(model.membership), generator=torch.Generator().manual_seed(0)) * 1.7
    optimiser = torch.optim.Adam([model.log_variance], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        model.uncertainty_loss(error).backward()
        optimiser.step()
    assert_close(model.log_variance.detach(), (error.square() @ model.membership).mean(dim=0).log(), atol=1e-3, rtol=0)


def test_the_embedding_shares_one_log_variance() -> None:
    agent = build()
    together = agent.model.membership[:, agent.parts.blocks.index("embedding")]
    assert [name for name, one in zip(agent.parts.names, together, strict=True) if one] == [
        "embedding_0",
        "embedding_1",
    ]
    assert agent.model.membership.sum(dim=1).tolist() == [1.0] * len(agent.parts.names)


def test_log_variances_stay_in_their_bounds() -> None:
    agent, batch = build(learning_rate=1.0), make_transitions(8, make_task())
    for _ in range(12):
        agent.update(batch)
    assert agent.model.log_variance.abs().max() <= 6


def test_log_variances_do_not_decay() -> None:
    agent = build(weight_decay=0.5)
    decayed = {id(p) for group in agent.optimiser.param_groups if group["weight_decay"] for p in group["params"]}
    spared = [name for name, p in agent.model.named_parameters() if id(p) not in decayed]
    assert spared == ["log_variance"]


@pytest.mark.parametrize("split", [True, False])
def test_the_parts_add_up_to_the_measurement(split: bool) -> None:
    agent, batch = build(split_page=split), make_transitions(5, make_task())
    parts = agent.parts.of(batch.measurement, batch.feedback)
    assert_close(parts * agent.parts.unit @ agent.parts.compose.T, batch.measurement)
    goal = normalize(torch.rand(8, generator=torch.Generator().manual_seed(1)), dim=0)
    assert_close(parts @ agent.parts.decompose(goal), (batch.measurement / agent.task.measurement_scale) @ goal)


def test_what_comes_after_a_page_is_credited_to_its_items_together() -> None:
    parts = build().parts
    advantage = torch.arange(2 * len(parts.names)).float().view(1, 2, -1)
    pooled = parts.pooled(advantage, torch.tensor([[True, True]]))
    own = [parts.names.index("click"), parts.names.index("own_purchase")]
    assert_close(pooled[..., own], advantage[..., own])
    after = [j for j in range(len(parts.names)) if j not in own]
    assert_close(pooled[..., after], advantage.sum(dim=1, keepdim=True).expand(-1, 2, -1)[..., after])
    one_slot_empty = parts.pooled(advantage, torch.tensor([[True, False]]))
    assert_close(one_slot_empty[0, 0], advantage[0, 0])


def test_the_auxiliary_loss_keeps_the_mean_advantage_near_zero() -> None:
    start = make_transitions(16, make_task(), empty_slots=False)
    shifted = replace(start, measurement=start.measurement + 3)  # a mean that V or A may take up

    def mean_advantage(value_weight: float) -> float:
        agent = build(split_page=False, value_weight=value_weight, gru=4, state_width=32)
        agent.update(start)
        for _ in range(40):
            agent.update(shifted)
        encoded = agent.model.encode(shifted.state)
        return agent.model.advantage(encoded, shifted.goal, shifted.items).mean().abs().item()

    assert mean_advantage(1.0) < 0.5 * mean_advantage(0.0)


def test_empty_slots_and_rows_without_a_goal_teach_nothing() -> None:
    batch = make_transitions(8, make_task(), empty_slots=False)
    empty = ~batch.mask
    empty[:, -3:] = True
    without_goal = torch.zeros_like(empty)
    without_goal[:, 0] = True
    batch = replace(
        batch,
        feedback=batch.feedback.masked_fill(empty, 0),
        items=batch.items.masked_fill(empty, 0),
        goal=batch.goal.masked_fill(without_goal[..., None], 0),
    )
    spoilt = replace(batch, measurement=torch.where((empty | without_goal)[..., None], 1e3, batch.measurement))
    spoilt = replace(spoilt, items=torch.where(empty, 7, spoilt.items))
    one, other = build(goal_mix=0), build(goal_mix=0)
    one.update(batch), other.update(spoilt)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


# ---- the control without a future


def test_without_a_future_neither_later_pages_nor_logged_goals_matter() -> None:
    batch = make_transitions(8, make_task())
    other = replace(batch, measurement=torch.rand_like(batch.measurement), goal=batch.goal.flip(0))
    agents = build(discount=0), build(discount=0)
    losses = agents[0].update(batch), agents[1].update(other)
    assert losses[0] == losses[1]
    assert build().update(batch) != build().update(other)


def alone(batch: TransitionBatch, task: Task) -> hindsight.Pages:
    """The pages of the batch, every one a session of its own."""
    return hindsight.Pages(
        offsets=np.arange(len(batch) + 1),
        items=batch.items.numpy(),
        feedback=batch.feedback.numpy(),
        terminated=batch.terminated.numpy(),
        embeddings=hindsight.fit_pca(task.catalogue.embeddings.numpy(), 2),
    )


def test_without_a_future_measurements_and_goals_are_those_of_sessions_of_one_page() -> None:
    agent, batch = build(discount=0), make_transitions(12, make_task())
    pages, deviation = alone(batch, agent.task), agent.task.measurement_scale.numpy()
    expected = hindsight.measurements(pages, np.zeros(12, int))
    measured, goal = agent._relabelled(batch)
    assert_close(measured[batch.mask], torch.from_numpy(expected)[batch.mask])
    assert measured[batch.mask][:, -2:].any()  # the embedding of what was clicked is there
    reached = torch.from_numpy(hindsight.goals(expected, deviation)[0])
    session = torch.from_numpy(hindsight.session_goals(pages, deviation)[0])[:, None] * batch.mask[..., None]
    assert_close(goal, torch.where(batch.hindsight[:, None, None], reached, session))


def test_without_a_future_nothing_is_removed_but_what_later_pages_would_add() -> None:
    batch = make_transitions(12, make_task())
    agent = build(discount=0)
    parts = agent.parts.of(agent._relabelled(batch)[0], batch.feedback)[batch.mask]
    later = [agent.parts.names.index(name) for name in ("later_clicks", "later_purchases")]
    assert not parts[:, later].any()
    every = [name for name, part in zip(agent.parts.names, parts.T, strict=True) if part.any()]
    assert every == [name for name in agent.parts.names if not name.startswith("later_")]


def test_on_sessions_of_one_page_the_discount_changes_nothing() -> None:
    batch = make_transitions(12, make_task())
    task = make_task()
    pages, deviation = alone(batch, task), task.measurement_scale.numpy()
    measured = hindsight.measurements(pages, np.zeros(12, int))
    reached, session = hindsight.goals(measured, deviation)[0], hindsight.session_goals(pages, deviation)[0]
    goal = np.where(batch.hindsight.numpy()[:, None, None], reached, session[:, None] * pages.shown[..., None])
    batch = replace(batch, measurement=torch.from_numpy(measured), goal=torch.from_numpy(goal.astype(np.float32)))
    agents = build(discount=1), build(discount=0)
    for _ in range(3):
        losses = [agent.update(batch) for agent in agents]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_close(ranked(agents[0]), ranked(agents[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [0, 3, 12])
def test_components_are_those_that_measurements_average(count: int) -> None:
    embeddings = make_task().catalogue.embeddings  # 8 wide: further components are zeros
    assert_close(
        principal_components(embeddings, count),
        torch.from_numpy(hindsight.fit_pca(embeddings.numpy(), count)),
        atol=1e-5,
        rtol=0,
    )


# ---- goals, weights, resuming


def test_the_default_goal_adds_up_to_the_reward() -> None:
    assert reward_goal(make_task().rewards) == {"clicks": 1.0, "purchases": 4.0}
    raw = build().goal / make_task().measurement_scale
    names = make_task().measurement_names
    assert_close(raw[names.index("purchases")] / raw[names.index("clicks")], torch.tensor(4.0))
    assert_close(build().goal.norm(), torch.tensor(1.0))
    assert torch.equal(ranked(build()), ranked(build(goal={"clicks": 1.0, "purchases": 4.0})))


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"click_rato": 1.0}, "'click_rato' is not a measurement; did you mean 'click_ratio'"),
        ({"clicks": 1.0, "revenue": 1.0}, "known are: click, click_ratio, clicks"),
        ({}, "no direction"),
        ({"clicks": 0.0}, "no direction"),
    ],
)
def test_a_goal_that_means_nothing_is_refused(goal: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build().with_goal(goal)
    with pytest.raises(ConfigError, match=message):
        build(goal=goal)


@pytest.mark.parametrize("settings", [{"discount": 0.9}, {"goal_mix": 1.5}, {"learning_rate": 0}, {"gaol": {}}])
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        GoalRecConfig(**settings)


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match="do not fit GoalRec"):
        build().load_state_dict(build(state_width=64).state_dict())
    with pytest.raises(ModelError, match="Missing key"):
        build().load_state_dict({})


def test_a_batch_without_a_goal_is_refused() -> None:
    batch = make_transitions(4, make_task())
    with pytest.raises(ModelError, match="has a goal"):
        build(goal_mix=0).update(replace(batch, goal=torch.zeros_like(batch.goal)))


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one() -> None:
    batches = [make_transitions(8, make_task(), seed=seed) for seed in range(4)]
    whole, half, resumed = build(), build(), build(seed=99)
    for batch in batches:
        whole.update(batch)
    for batch in batches[:2]:
        half.update(batch)
    resumed.load_state_dict(half.state_dict())
    resumed.load_training_state(half.training_state())
    for batch in batches[2:]:
        resumed.update(batch)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_ids_are_learnt_where_asked_and_zero_for_the_unknown_item() -> None:
    agent = build(id_width=4)
    agent.update(make_transitions(8, make_task()))
    assert not agent.state_dict()["ids.weight"][0].any()
    assert agent.state_dict()["ids.weight"][1:].any()
    assert "ids.weight" not in build().state_dict()


def test_explained_variance_is_one_for_the_truth_and_zero_for_the_mean() -> None:
    target = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    target[:, 2] = 4.0
    assert_close(explained_variance(target, target), torch.tensor([1.0, 1.0, 0.0]))
    mean = target.mean(dim=0).expand_as(target)
    assert_close(explained_variance(mean, target), torch.zeros(3), atol=1e-5, rtol=0)
