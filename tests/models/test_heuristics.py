"""The rankers that learn nothing: floor, yardsticks, ceiling and oracles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.base import Candidates, rank
from models.heuristics import (
    IdealConfig,
    LoggedOrderConfig,
    OracleFarsightedConfig,
    OracleMyopicConfig,
    PopularityConfig,
    RandomConfig,
)
from pipeline.errors import ModelError
from tests.models.builders import empty_state, make_candidates, make_task
from tests.models.contract import BATCH, true_candidates

TASK = make_task()


def _splitmix64(z: int) -> int:
    """Steele, Lea and Flood's generator, one step from ``z``, on Python's integers."""
    mask = 2**64 - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def _random_scores(tie: Tensor, seed: int) -> Tensor:
    candidates = Candidates(torch.ones_like(tie), torch.ones_like(tie, dtype=torch.bool), tie)
    return RandomConfig().build(TASK, seed).score(empty_state(len(tie)), candidates)


def test_random_scores_are_the_top_bits_of_a_splitmix64_hash() -> None:
    ties = [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123456789]
    expected = [(_splitmix64((tie ^ _splitmix64(11)) % 2**64) >> 40) / 2**24 for tie in ties]
    assert _random_scores(torch.tensor([ties]), seed=11)[0].tolist() == expected


def test_random_scores_are_uniform_and_the_seeds_independent() -> None:
    ties = torch.arange(40_000)[None]  # as regular as hashes never are
    one, other = _random_scores(ties, 11)[0], _random_scores(ties, 13)[0]
    counts = torch.histc(one, bins=20, min=0, max=1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 43.8  # the 99.9th percentile with 19 degrees of freedom
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.02  # four standard errors


def test_popularity_ranks_by_the_clicks_of_the_training_window_and_unknown_items_last() -> None:
    candidates = make_candidates(1, TASK, padded=False)
    candidates = replace(candidates, items=torch.where(torch.arange(30) == 7, 0, candidates.items))
    order = rank(PopularityConfig().build(TASK, 11).score(empty_state(1), candidates), candidates)[0]
    popularity = TASK.catalogue.popularity[candidates.items[0]]
    assert popularity[order].tolist() == sorted(popularity.tolist(), reverse=True)
    assert order[-1] == 7


def test_logged_order_puts_the_log_back_together() -> None:
    candidates = make_candidates(2, TASK, padded=False)
    position = candidates.tie.argsort(dim=1).argsort(dim=1)
    candidates = replace(candidates, logged_position=position)
    order = rank(LoggedOrderConfig().build(TASK, 11).score(empty_state(2), candidates), candidates)
    assert torch.equal(position.gather(1, order), torch.arange(30).expand(2, -1))


def test_ideal_ranks_by_the_labels() -> None:
    candidates = make_candidates(1, TASK, padded=False)
    rewards = torch.tensor(TASK.rewards)[candidates.items % 6]
    candidates = replace(candidates, rewards=rewards)
    order = rank(IdealConfig().build(TASK, 11).score(empty_state(1), candidates), candidates)
    assert rewards[0, order[0]].tolist() == sorted(rewards[0].tolist(), reverse=True)


@pytest.mark.parametrize(("config", "farsighted"), [(OracleMyopicConfig(), False), (OracleFarsightedConfig(), True)])
def test_an_oracle_shows_the_page_of_the_storefront(config: Any, farsighted: bool) -> None:
    candidates = true_candidates()
    truth = candidates.truth
    page = truth.shop.oracle_page(truth.state, truth.shop_items, farsighted=farsighted)
    oracle = config.build(TASK, 11)
    assert torch.equal(oracle.rank_page(empty_state(BATCH), candidates, 5, 2), page)
    order = rank(oracle.score(empty_state(BATCH), candidates), candidates)
    assert torch.equal(order[:, :10], page)


def test_the_oracles_differ() -> None:
    candidates = true_candidates()
    pages = [
        config.build(TASK, 11).rank_page(empty_state(BATCH), candidates, 5, 2)
        for config in (OracleMyopicConfig(), OracleFarsightedConfig())
    ]
    assert not torch.equal(*pages)


def test_an_oracle_refuses_a_page_that_the_storefront_does_not_have() -> None:
    oracle = OracleMyopicConfig().build(TASK, 11)
    with pytest.raises(ModelError, match=r"oracle_myopic: a page of 3 × 3 slots .* lays out 10"):
        oracle.rank_page(empty_state(BATCH), true_candidates(), 3, 3)


PRIVILEGED = [
    (LoggedOrderConfig(), "logged_order: Candidates.logged_position is not filled"),
    (IdealConfig(), "ideal: Candidates.rewards is not filled"),
    (OracleMyopicConfig(), "oracle_myopic: Candidates.truth is not filled"),
    (OracleFarsightedConfig(), "oracle_farsighted: Candidates.truth is not filled"),
]


@pytest.mark.parametrize(("config", "message"), PRIVILEGED)
def test_a_privileged_ranker_names_what_it_lacks(config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config.build(TASK, 11).score(empty_state(BATCH), make_candidates(BATCH, TASK))
