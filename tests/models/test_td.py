"""Temporal-difference targets and target networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.td import soft_update, td_target


def test_the_target_bootstraps_unless_the_user_left() -> None:
    rewards, next_q = torch.tensor([1.0, 5.0]), torch.tensor([10.0, 10.0])
    target = td_target(rewards, 0.9, torch.tensor([False, True]), next_q)
    torch.testing.assert_close(target, torch.tensor([10.0, 5.0]))


def test_a_terminal_target_is_exactly_the_reward_even_beside_a_broken_critic() -> None:
    rewards, left = torch.tensor([0.1, 5.3]), torch.tensor([True, True])
    assert torch.equal(td_target(rewards, 0.95, left, torch.tensor([torch.nan, torch.inf])), rewards)


def test_at_discount_zero_the_target_is_the_reward() -> None:
    rewards = torch.tensor([0.0, 1.0, 6.0])
    target = td_target(rewards, 0.0, torch.tensor([False, True, False]), torch.tensor([3.0, -4.0, 100.0]))
    assert torch.equal(target, rewards)


def test_no_gradient_passes_the_target() -> None:
    next_q = torch.ones(2, requires_grad=True)
    assert not td_target(torch.zeros(2), 0.9, torch.tensor([False, False]), next_q).requires_grad


@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
def test_the_target_network_moves_by_the_rate(rate: float) -> None:
    torch.manual_seed(0)
    target, source = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = rate * source.weight + (1 - rate) * target.weight
    soft_update(target, source, rate)
    torch.testing.assert_close(target.weight, expected)
