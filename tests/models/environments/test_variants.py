"""GoalRec's harder worlds against their formulae."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import kstest
from torch import Tensor

from models.environments.variants import CrossedFeatures, DelayedRewards, TrendMode, TrendNoise, normals
from models.hashing import uniforms
from pipeline.errors import DataError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def path(mode: TrendMode, noise: Tensor) -> Tensor:
    """The trend of B sessions under ``noise`` [T, B], [T, B]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trend = TrendNoise(mode)
    values, last = [], torch.zeros(noise.shape[1], 2)
    for shock in noise:
        last = trend(last, shock)
        values.append(last[:, 0])
    return torch.stack(values)


NOISE = torch.randn(100, 5000, generator=torch.Generator().manual_seed(0))


def test_the_default_trend_is_stationary_with_the_variance_of_its_formula() -> None:
    # Of an AR(2): σ²(1 − b) / ((1 + b)((1 − b)² − a²)) = 0.449
    expected = 0.2 * 0.7 / (1.3 * (0.7**2 - 0.5**2))
    variances = path("stationary", NOISE).var(dim=1)
    assert variances[50:].mean() == pytest.approx(expected, rel=0.02)
    assert variances.max() < 0.5


def test_a_trend_follows_its_recursion() -> None:
    values = np.zeros(6)
    for t in range(2, 6):
        values[t] = 0.5 * values[t - 1] + 0.3 * values[t - 2] + 0.2**0.5 * (t - 1)
    np.testing.assert_allclose(path("stationary", torch.arange(1.0, 5)[:, None])[:, 0], values[2:], rtol=1e-6)


def test_half_and_half_wanders_but_no_further_than_two() -> None:
    values = path("half_half", NOISE)
    assert values[80:].std() > 1.2  # the stationary trend's is 0.67
    assert values.abs().max() == 2


def test_the_printed_trend_warns_and_becomes_a_sign() -> None:
    with pytest.warns(UserWarning, match="diverges"):
        TrendNoise("literal_clipped")
    late = path("literal_clipped", NOISE)[50:]
    assert late.abs().max() == 1
    assert (late.abs() == 1).float().mean() > 0.7


def test_late_rewards_are_delivered_in_turn_and_flushed_at_the_end() -> None:
    queue, owed, told = DelayedRewards(3), torch.zeros(2, 3), []
    rewards = torch.tensor([[1.0, 10.0], [2, 20], [3, 30], [4, 40], [5, 50]])
    ended = torch.tensor([[False, False], [False, True], [False, False], [False, False], [True, True]])
    for now, last in zip(rewards, ended, strict=True):
        delivered, owed = queue(owed, now, last)
        told.append(delivered.tolist())
    assert [user for user, _ in told] == [0, 0, 0, 1, 2 + 3 + 4 + 5]
    assert [user for _, user in told] == [0, 10 + 20, 0, 0, 30 + 40 + 50]
    assert not owed.any()


def test_normals_are_the_inverse_of_the_normal_distribution() -> None:
    draws = uniforms(torch.arange(2000), 1, width=10)
    found = normals(draws).numpy()
    np.testing.assert_allclose(found, ndtri(draws.double().numpy() + 2**-25), rtol=1e-5, atol=1e-6)
    assert kstest(found.ravel(), "norm").pvalue > 0.01
    assert normals(torch.tensor([0.0, 1 - 2**-24])).abs().max() < 6


VECTORS = torch.randn(1000, 6, generator=torch.Generator().manual_seed(1))


def test_each_feature_gives_its_bucket_and_each_pair_a_cross() -> None:
    crossed = CrossedFeatures(VECTORS, width=2**40, buckets=4)
    found = crossed(VECTORS)
    assert found.shape == (1000, crossed.active) == (1000, 6 + 15)
    quartile = (VECTORS.numpy()[:, :, None] >= np.quantile(VECTORS, [0.25, 0.5, 0.75], axis=0).T).sum(axis=2)
    first, second = crossed.pairs.numpy()
    for column in range(crossed.active):
        pair = column - 6
        bucket = quartile[:, column] if column < 6 else 4 * quartile[:, first[pair]] + quartile[:, second[pair]]
        assert len(set(zip(found[:, column].tolist(), bucket, strict=True))) == len(set(bucket))  # one to one
    assert len(found.unique()) == 6 * 4 + 15 * 16  # and no two columns share an index


def test_indices_stay_below_the_width_and_only_the_buckets_matter() -> None:
    crossed = CrossedFeatures(VECTORS, width=50, buckets=4)
    found = crossed(VECTORS)
    assert found.min() == 0
    assert found.max() == 49
    far = VECTORS.masked_fill(VECTORS > 2, 100.0)
    assert torch.equal(crossed(far), found)
    assert torch.equal(crossed(VECTORS[3:5]), found[3:5])


def test_of_many_pairs_a_fixed_sample_is_crossed() -> None:
    one, two = (CrossedFeatures(VECTORS, width=1000, crosses=7) for _ in range(2))
    assert one.active == 6 + 7
    assert torch.equal(one(VECTORS), two(VECTORS))
    assert CrossedFeatures(VECTORS[:, :1], width=1000)(VECTORS[:, :1]).shape == (1000, 1)


@pytest.mark.parametrize("wrong", [VECTORS[:0], torch.tensor([[1.0, float("nan")]])])
def test_features_without_quantiles_are_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match="at least one row of finite features"):
        CrossedFeatures(wrong, width=10)
