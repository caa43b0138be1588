"""GRU4Rec and SASRec: their encoders against slow readings, their losses by hand, and what they learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torch.testing import assert_close

from models.base import Candidates, StateBatch, TransitionBatch
from models.feedback import FIRST_POSITIVE, Feedback
from models.gru4rec import GRU4RecConfig
from models.next_item import NextItemAgent, NextItemConfig, bce, bpr_max
from models.sasrec import SASRecConfig
from pipeline.errors import DataError
from tests.models.builders import HISTORY, empty_state, make_state, make_task, make_transitions

TASK = make_task()
WIDTH = 16
CONFIGS: list[NextItemConfig] = [GRU4RecConfig(width=WIDTH), SASRecConfig(width=WIDTH)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def built(config: NextItemConfig, **changes: Any) -> NextItemAgent:
    return type(config)(**{**config.model_dump(), **changes}).build(TASK, 11)


def histories() -> tuple[Tensor, Tensor]:
    """Vectors [7, 6, d] of histories of 0 to 6 items, left-padded with noise, and which of them are there."""
    random = torch.Generator().manual_seed(1)
    known = torch.arange(HISTORY) >= HISTORY - torch.arange(HISTORY + 1)[:, None]
    return torch.randn(HISTORY + 1, HISTORY, WIDTH, generator=random), known


# ---- the encoders


def slow_gru(encoder: Any, items: Tensor) -> Tensor:
    """One user's items [n, d] by torch's own cell, one after the other: [d]."""
    cell = nn.GRUCell(WIDTH, WIDTH)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in encoder.gru.state_dict().items()})
    hidden = torch.zeros(1, WIDTH)
    for item in items:
        hidden = cell(item[None], hidden)
    return hidden[0]


def slow_attention(encoder: Any, items: Tensor) -> Tensor:
    """One user's items [n, d] by the formulas of the paper, [d]: no batch, no padding."""
    x = torch.cat([encoder.start[None], items + encoder.positions.weight[: len(items)].flip(0)])
    for block in encoder.blocks:
        attention, heads = block.self_attn, block.self_attn.num_heads
        normed = layer_norm(x, (WIDTH,), block.norm1.weight, block.norm1.bias)
        projected = normed @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k, v = (part.view(len(x), heads, -1).transpose(0, 1) for part in projected.chunk(3, dim=1))  # [h, n, d/h]
        logits = q @ k.transpose(1, 2) / (WIDTH / heads) ** 0.5
        causal = torch.tril(torch.ones(len(x), len(x))) == 1
        mixed = (logits.where(causal, -torch.inf).softmax(dim=2) @ v).transpose(0, 1).reshape(len(x), WIDTH)
        x = x + mixed @ attention.out_proj.weight.T + attention.out_proj.bias
        normed = layer_norm(x, (WIDTH,), block.norm2.weight, block.norm2.bias)
        x = x + block.linear2(torch.relu(block.linear1(normed)))
    return layer_norm(x, (WIDTH,), encoder.norm.weight, encoder.norm.bias)[-1]


@pytest.mark.parametrize(("config", "slow"), zip(CONFIGS, (slow_gru, slow_attention), strict=True))
@torch.no_grad()
def test_a_history_is_read_as_if_it_stood_alone_without_padding(config: NextItemConfig, slow: Any) -> None:
    encoder = built(config).network.encoder
    for name, weights in encoder.named_parameters():
        if "norm" not in name:
            weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(len(name))) / 3)
    vectors, known = histories()
    read = encoder(vectors * known[..., None], known)
    # A user without history: the GRU has its zero state; attention's newest place is an empty one behind the start.
    expected = torch.stack([slow(encoder, vectors[row, -row:]) for row in range(1, HISTORY + 1)])
    assert_close(read[1:], expected, atol=1e-5, rtol=1e-4)
    assert len(read.unique(dim=0)) == HISTORY + 1


@torch.no_grad()
def test_sasrec_reads_no_more_than_the_longest_history_it_is_made_for() -> None:
    agent, state = built(SASRecConfig(width=WIDTH), longest=2), make_state(8, TASK)
    forgotten = torch.where(torch.arange(HISTORY) < HISTORY - 2, 0, 1)
    short = replace(
        state, history_items=state.history_items * forgotten, history_feedback=state.history_feedback * forgotten
    )
    assert_close(agent.network(state), agent.network(short))
    assert not torch.allclose(agent.network(state), built(SASRecConfig(width=WIDTH)).network(state))


def test_heads_that_cannot_share_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 heads cannot share a width of 64"):
        SASRecConfig(heads=3)


# ---- the losses


def random_scores() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [4, 3] of a page, weights of its positives, logits [4, 5] of possible negatives, and which are."""
    random = torch.Generator().manual_seed(2)
    positives, logits = torch.randn(4, 3, generator=random), torch.randn(4, 5, generator=random)
    weight = torch.tensor([[1.0, 0, 5], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    negative = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    return positives, weight, logits, negative


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_bce_is_the_weighted_mean_over_positives_and_negatives() -> None:
    positives, weight, logits, negative = random_scores()
    total = sum(
        -w * np.log(sigmoid(r)) for w, r in zip(weight.flatten().tolist(), positives.flatten().tolist(), strict=True)
    )
    total += sum(-np.log(1 - sigmoid(r)) for r in logits[negative].tolist())
    assert float(bce(positives, weight, logits, negative)) == pytest.approx(total / (9 + 9), rel=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_bpr_max_is_the_papers_sum_for_each_positive_of_pages_with_a_negative(penalty: float) -> None:
    positives, weight, logits, negative = random_scores()
    total = 0.0
    for row in range(3):  # the last page has no negative
        r = logits[row][negative[row]].double().numpy()
        s = np.exp(r) / np.exp(r).sum()
        for w, p in zip(weight[row].tolist(), positives[row].tolist(), strict=True):
            ranking = -np.log(sum(share * sigmoid(p - score) for share, score in zip(s, r, strict=True)))
            total += w * (ranking + penalty * (s * r**2).sum())
    loss = bpr_max(positives, weight, logits, negative, penalty)
    assert float(loss) == pytest.approx(total / 7, rel=1e-5)


def test_a_page_of_positives_alone_gives_bpr_max_nothing_to_learn() -> None:
    positives = torch.randn(2, 3, requires_grad=True)
    loss = bpr_max(positives, torch.ones(2, 3), torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool), 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert positives.grad is not None
    assert not positives.grad.any()


# ---- what is learnt from a page


def test_negatives_are_drawn_by_impressions_to_the_power_of_three_quarters() -> None:
    agent = built(CONFIGS[0], negatives=200_000)
    torch.manual_seed(3)
    found = torch.bincount(agent._negatives(), minlength=len(TASK.catalogue)) / 200_000
    wanted = TASK.catalogue.impressions**0.75
    assert_close(found, wanted / wanted.sum(), atol=2e-3, rtol=0)
    assert found[0] == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_an_item_of_the_page_is_never_a_sampled_negative_of_it(config: NextItemConfig) -> None:
    agent, batch = built(config, loss="bce", ids=True), make_transitions(4, TASK, hindsight=False)
    clicked = replace(batch, feedback=torch.where(batch.mask, int(Feedback.CLICK), 0))
    agent._negatives = lambda: clicked.items[0, :5]  # type: ignore[method-assign]
    query, shown = agent.network(clicked.state), clicked.items
    others = [i for row in range(4) for i in clicked.items[0, :5].tolist() if i not in shown[row].tolist()]
    rows = [row for row in range(4) for i in clicked.items[0, :5].tolist() if i not in shown[row].tolist()]
    negatives = (query[rows] * agent.network.items(torch.tensor(others))).sum(dim=1)
    positives = agent.network.logits(query, shown)[clicked.mask]
    expected = (nn.functional.softplus(-positives).sum() + nn.functional.softplus(negatives).sum()) / (
        len(positives) + len(negatives)
    )
    assert_close(agent._loss(clicked), expected)


@pytest.mark.parametrize(("weighted", "worth"), [(True, [0, 0, 1, 1, 1, 5]), (False, [1, 1, 1, 1, 1, 1])])
def test_a_positive_counts_by_its_reward_in_clicks_where_it_should(weighted: bool, worth: list[float]) -> None:
    assert built(CONFIGS[0], weight_by_reward=weighted).worth.tolist() == worth
    free = replace(TASK, rewards=(0.0, 0.0, 0.0, 0.0, 0.0, 5.0))
    assert GRU4RecConfig(weight_by_reward=True).build(free, 11).worth.tolist() == [1] * 6


@pytest.mark.parametrize("config", CONFIGS)
def test_a_batch_of_hindsight_rows_is_refused(config: NextItemConfig) -> None:
    batch = make_transitions(4, TASK)
    with pytest.raises(DataError, match="original rows"):
        built(config).update(batch[batch.hindsight])


def follow_the_category(rows: int, seed: int) -> TransitionBatch:
    """Users click what shares the category of the last item they liked, and nothing else."""
    batch, random = make_transitions(rows, TASK, hindsight=False, empty_slots=False, seed=seed), np.random
    last = torch.from_numpy(random.default_rng(seed).integers(1, len(TASK.catalogue), (rows, HISTORY)))
    state: StateBatch = replace(
        batch.state, history_items=last, history_feedback=torch.full_like(last, int(Feedback.CLICK))
    )
    same = TASK.catalogue.category[batch.items] == TASK.catalogue.category[last[:, -1:]]
    return replace(batch, state=state, feedback=torch.where(same, int(Feedback.CLICK), int(Feedback.SKIP)))


@pytest.mark.parametrize("loss", ["bce", "bpr_max"])
@pytest.mark.parametrize("config", CONFIGS)
def test_it_learns_that_the_last_item_says_which_items_are_clicked_next(config: NextItemConfig, loss: str) -> None:
    agent = built(config, loss=loss, learning_rate=0.01)
    for step in range(120):
        agent.update(follow_the_category(64, seed=step))
    fresh = follow_the_category(256, seed=1_000)
    scores = agent.score(fresh.state, Candidates(fresh.items, fresh.mask, fresh.items))
    positive = fresh.feedback >= FIRST_POSITIVE
    ahead = (scores[:, :, None] > scores[:, None]) & positive[:, :, None] & ~positive[:, None]
    auc = ahead.sum() / (positive[:, :, None] & ~positive[:, None]).sum()
    assert auc > 0.9
    nothing = agent.score(empty_state(256), Candidates(fresh.items, fresh.mask, fresh.items))
    assert (nothing[:, None] == nothing).float().mean() < 1  # without a history it still tells items apart
