"""DeepPage: the mapping, the state encoder, and what each of its three steps learns from what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.base import Candidates, StateBatch, Task, TransitionBatch
from models.deeppage import DeepPage, DeepPageConfig, StateEncoder, map_page, masked_gru
from pipeline.errors import ModelError
from tests.models.builders import empty_state, make_candidates, make_state, make_task, make_transitions

TASK = make_task()
SMALL = {"item_width": 8, "category_width": 4, "feedback_width": 4, "channels": 8, "hidden": 16}
BATCH = 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_agent(task: Task = TASK, **settings: Any) -> DeepPage:
    return DeepPageConfig(**SMALL, **settings).build(task, seed=11)


def logged_pages(batch: TransitionBatch) -> Tensor:
    """The vectors of the logged items, zeros in empty slots, [B, S, E]."""
    return TASK.catalogue.embeddings[batch.items] * batch.mask[..., None]


# ---- Algorithm 1


def _slow_mapping(similarities: Tensor, candidates: Candidates) -> list[list[int]]:
    pages = []
    for slots, mask, tie in zip(similarities, candidates.mask.tolist(), candidates.tie.tolist(), strict=True):
        left = [index for index, real in enumerate(mask) if real]
        page = []
        for slot in slots.tolist():
            best = max(left, key=lambda index, slot=slot, tie=tie: (slot[index], -tie[index]), default=-1)
            left = [index for index in left if index != best]
            page.append(best)
        pages.append(page)
    return pages


def test_the_mapping_equals_a_slow_reference_with_ties_and_padding() -> None:
    candidates = make_candidates(BATCH, TASK)  # 30, 25 … 5, 1 real candidates
    random = torch.Generator().manual_seed(3)
    similarities = torch.randint(-3, 4, (BATCH, 10, 30), generator=random) / 3  # ties everywhere
    assert map_page(similarities, candidates).tolist() == _slow_mapping(similarities, candidates)


def test_a_proto_page_of_real_items_is_mapped_to_them_slot_by_slot() -> None:
    agent, candidates = make_agent(), make_candidates(3, TASK, padded=False)
    wanted = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(row))[:10] for row in range(3)])
    proto = 0.3 * TASK.catalogue.embeddings[candidates.items.gather(1, wanted)]  # cosine: the length is no matter
    agent.networks["actor"] = _Constant(proto)
    assert torch.equal(agent.rank_page(empty_state(3), candidates, 5, 2), wanted)


def test_slots_that_want_the_same_item_get_distinct_ones() -> None:
    agent, candidates = make_agent(), make_candidates(1, TASK, padded=False)
    vectors = TASK.catalogue.embeddings[candidates.items[0]]
    agent.networks["actor"] = _Constant(vectors[7].expand(1, 10, -1))
    page = agent.rank_page(empty_state(1), candidates, 5, 2)[0]
    nearest = (vectors @ vectors[7] / vectors.norm(dim=1)).argsort(descending=True)[:10]
    assert page.tolist() == nearest.tolist()
    assert page[0] == 7


def test_a_candidate_scores_its_cosine_to_the_slot_that_resembles_it_most() -> None:
    agent, candidates = make_agent(), make_candidates(2, TASK, padded=False)
    state = make_state(2, TASK)
    proto = agent.networks["actor"](state).detach()
    cosine = nn.functional.cosine_similarity(
        proto[:, :, None], TASK.catalogue.embeddings[candidates.items][:, None], dim=3
    )
    torch.testing.assert_close(agent.score(state, candidates), cosine.amax(dim=1))


class _Constant(nn.Module):
    """An actor whose proto page is given."""

    def __init__(self, proto: Tensor) -> None:
        super().__init__()
        self.proto = proto

    def forward(self, state: StateBatch) -> Tensor:
        return self.proto


# ---- the state


def test_a_masked_gru_equals_one_cell_stepped_over_the_kept_inputs() -> None:
    torch.manual_seed(0)
    gru, cell = nn.GRU(3, 4, batch_first=True), nn.GRUCell(3, 4)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data = getattr(gru, f"{name}_l0").data
    inputs, h_0 = torch.randn(4, 5, 3), torch.randn(4, 4)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    hidden, real, last = masked_gru(gru, inputs, mask, h_0)
    for row in range(4):
        state, steps = h_0[row : row + 1], []
        for step in inputs[row][mask[row]]:
            state = cell(step[None], state)
            steps.append(state[0])
        assert real[row].tolist() == [True] * len(steps) + [False] * (5 - len(steps))
        torch.testing.assert_close(last[row], state[0])
        for expected, given in zip(steps, hidden[row], strict=False):
            torch.testing.assert_close(given, expected)


def test_with_no_page_yet_the_state_is_the_initial_one() -> None:
    encoder, state = _encoder(), make_state(BATCH, TASK)
    fresh = replace(
        state, page_items=torch.zeros_like(state.page_items), page_feedback=torch.zeros_like(state.page_feedback)
    )
    assert torch.equal(encoder(fresh), encoder.initial_state(fresh))
    seen = state.pages_seen > 0
    assert (encoder(state) != encoder(fresh)).any(dim=1).equal(seen)


def test_a_user_without_a_past_starts_from_zero() -> None:
    assert not _encoder()(empty_state(2)).any()


def test_attention_weights_sum_to_one_over_the_pages_seen() -> None:
    seen = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    hidden = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(0))
    weights = _encoder().attention_weights(hidden, seen)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert not weights[~seen].any()
    assert len(weights[2].unique()) == 3


def test_the_state_is_the_attended_sum_of_its_pages() -> None:
    """Eqs. 9-11 by hand, a user at a time, without padding."""
    encoder, states = _encoder(), make_state(BATCH, TASK)
    for row in range(BATCH):
        user = states[row : row + 1]
        seen = (user.page_feedback[0] > 0).any(dim=1)
        if not seen.any():
            continue
        pages = encoder.page(encoder.slot_vectors(user.page_items[0, seen], user.page_feedback[0, seen]))
        hidden = encoder.session_gru(pages[None], encoder.initial_state(user)[None])[0][0]  # [t, H]
        attended = encoder.attention(hidden).softmax(dim=0).T @ hidden
        torch.testing.assert_close(encoder(states)[row], attended[0])


def test_padding_does_not_reach_the_state() -> None:
    encoder, state = _encoder(), make_state(BATCH, TASK)
    longer = replace(
        state,
        **{name: nn.functional.pad(getattr(state, name), (3, 0)) for name in ("initial_items", "initial_feedback")},
        **{name: nn.functional.pad(getattr(state, name), (0, 0, 2, 0)) for name in ("page_items", "page_feedback")},
    )
    torch.testing.assert_close(encoder(longer), encoder(state))


def test_empty_slots_hold_no_item() -> None:
    encoder = _encoder()
    vectors = encoder.slot_vectors(torch.tensor([[3, 4]]), torch.tensor([[1, 0]]))
    assert vectors[0, 0].all()
    assert not vectors[0, 1].any()


def _encoder() -> StateEncoder:
    torch.manual_seed(0)
    return StateEncoder(DeepPageConfig(**SMALL), TASK)


# ---- learning


def test_a_supervised_step_brings_the_proto_page_nearer_to_the_logged_page() -> None:
    agent, batch = make_agent(supervised_lr=1e-3, actor_lr=0.0), make_transitions(32, TASK, hindsight=False)

    def distance() -> float:
        proto = agent.networks["actor"](batch.state)
        return ((proto - logged_pages(batch)).square().sum(dim=2) * batch.mask).sum().item()

    distances = [distance()]
    for _ in range(5):
        agent.update(batch)
        distances.append(distance())
    assert distances == sorted(distances, reverse=True)
    assert len(set(distances)) == 6


@pytest.mark.parametrize("weight_by_reward", [False, True])
def test_equation_16_is_the_squared_distance_over_known_items_of_filled_slots(weight_by_reward: bool) -> None:
    agent, batch = make_agent(weight_by_reward=weight_by_reward), make_transitions(BATCH, TASK, hindsight=False)
    batch = replace(batch, items=torch.where(batch.items == batch.items[1, 0], 0, batch.items))  # an unknown item
    proto = agent.networks["actor"](batch.state).detach()
    total = 0.0
    for row in range(BATCH):
        for slot in range(10):
            item, code, reward = (int(v[row, slot]) for v in (batch.items, batch.feedback, batch.rewards))
            if item and code:
                weight = 1 + reward if weight_by_reward else 1
                difference = proto[row, slot] - TASK.catalogue.embeddings[item]
                total += weight * float(difference.square().sum())
    assert agent.update(batch)["supervised"] == pytest.approx(total / BATCH, rel=1e-5)


def test_the_critic_learns_from_valid_pages_and_the_actor_from_proto_pages() -> None:
    agent, batch = make_agent(), make_transitions(BATCH, TASK, hindsight=False)
    judged, bootstrapped = _pages_of(agent.networks["critic"]), _pages_of(agent.targets["critic"])
    after = batch.state.advance(batch.items, batch.feedback)
    target_proto = agent.targets["actor"](after)
    agent.update(batch)
    logged, proto = judged
    assert torch.equal(logged, logged_pages(batch))
    assert not logged.requires_grad
    assert proto.requires_grad  # it comes from the actor, whose gradient passes the critic
    assert torch.equal(bootstrapped[0], target_proto)
    assert all(parameter.requires_grad for parameter in agent.networks["critic"].parameters())


def _pages_of(critic: nn.Module) -> list[Tensor]:
    """The pages that ``critic`` will be asked about."""
    pages: list[Tensor] = []
    critic.register_forward_pre_hook(lambda _, inputs: pages.append(inputs[1]))
    return pages


def test_the_actor_climbs_the_critic() -> None:
    agent = make_agent(supervised_lr=0.0, critic_lr=0.0, actor_lr=1e-3)
    batch = make_transitions(32, TASK, hindsight=False)
    values = [-agent.update(batch)["actor"] for _ in range(5)]
    assert values == sorted(values)
    assert len(set(values)) == 5


def test_only_those_who_left_have_no_future() -> None:
    agent, batch = make_agent(discount=0.95), make_transitions(BATCH, TASK, hindsight=False)
    rewards, after = batch.rewards.sum(dim=1), batch.state.advance(batch.items, batch.feedback)
    next_q = agent.targets["critic"](after, agent.targets["actor"](after)).detach()
    expected = torch.where(batch.terminated, rewards, rewards + 0.95 * next_q)
    assert (batch.truncated & ~batch.terminated).any()
    torch.testing.assert_close(agent._target(batch), expected)


def test_the_targets_follow_slowly() -> None:
    agent, batch = make_agent(target_rate=0.25), make_transitions(BATCH, TASK, hindsight=False)
    before = {name: value.clone() for name, value in agent.targets.state_dict().items()}
    agent.update(batch)
    now, networks = agent.targets.state_dict(), agent.networks.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(now[name], 0.75 * value + 0.25 * networks[name])


def test_it_learns_to_show_what_the_log_shows_where_the_log_shows_it() -> None:
    agent = make_agent(supervised_lr=1e-2)
    batch = make_transitions(BATCH, TASK, hindsight=False, empty_slots=False)
    page = batch.items[:1].expand(BATCH, -1)  # everybody is shown the same page
    batch = replace(batch, items=page)
    decoys = torch.tensor([item for item in range(1, 61) if item not in page[0].tolist()][:20])
    offered = torch.cat([decoys, page[0]])[None]
    candidates = Candidates(offered, torch.ones_like(offered, dtype=torch.bool), torch.arange(30)[None])
    state = make_state(1, TASK, seed=5)
    for _ in range(40):
        agent.update(batch)
    shown = offered[0, agent.rank_page(state, candidates, 5, 2)[0]]
    assert (shown == page[0]).sum() >= 8


# ---- shapes and errors


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 4), (6, 1), (3, 3)])
def test_pages_of_every_shape_train_and_rank(rows: int, cols: int) -> None:
    task = make_task(rows, cols)
    agent = make_agent(task)
    agent.update(make_transitions(4, task, empty_slots=False))
    page = agent.rank_page(make_state(4, task), make_candidates(4, task), rows, cols)
    assert page.shape == (4, rows * cols)
    assert (page[0] >= 0).all()


def test_a_proto_page_stays_within_the_range_of_the_items() -> None:
    agent = make_agent()
    for parameter in agent.networks["actor"].deconvolution.parameters():
        parameter.data.mul_(1000)
    proto, bound = agent.networks["actor"](make_state(BATCH, TASK)), TASK.catalogue.embeddings.abs().amax(dim=0)
    assert (proto.abs() <= bound).all()
    assert (proto.abs().amax(dim=(0, 1)) > 0.99 * bound).any()


ERRORS = [
    (lambda agent: agent.rank_page(make_state(2, TASK), make_candidates(2, TASK), 2, 5), "pages of 5 × 2 .* 2 × 5"),
    (lambda agent: agent.update(make_transitions(4, TASK)[torch.tensor([1, 3])]), "holds no original row"),
    (lambda agent: agent.load_state_dict(make_agent(make_task(3, 3)).state_dict()), "do not fit DeepPage .* size"),
]


@pytest.mark.parametrize(("misuse", "message"), ERRORS)
def test_misuse_is_explained(misuse: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        misuse(make_agent())


def test_weights_do_not_hold_the_catalogue() -> None:
    names = make_agent().state_dict()
    assert {name.split(".")[0] for name in names} == {"actor", "critic"}
    assert not [name for name in names if "embeddings" in name or "bound" in name]
