"""What the benchmark of the simulators compares does the same, and its table says so."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import simulators
from benchmarks.simulators import CASES, load_networks, play_alone, taobao_alone, taobao_batched
from models.simulators import virtual_taobao_baselines as baselines
from models.simulators.virtual_taobao import ACTION, LENGTHS, VirtualTaobaoConfig
from tests.models.simulators.taobao_weights import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return save_weights(tmp_path_factory.mktemp("virtual_taobao"))


def test_one_user_at_a_time_is_the_same_simulator(weights: str) -> None:
    users, random = 20, np.random.default_rng(0)
    model = VirtualTaobaoConfig(weights=weights).load()
    actions = torch.from_numpy(random.uniform(-1, 1, (users, ACTION)).astype(np.float32))
    start = torch.from_numpy(random.random((users, model.reset_width()), dtype=np.float32))
    luck = random.random((users, LENGTHS, 2)).astype(np.float32)
    found = play_alone(load_networks(weights), actions, start, luck.astype(np.float64))
    visit, clicks, lengths = model.reset(users, start), [], torch.zeros(users, dtype=torch.int64)
    for page in range(LENGTHS - 1):
        _, leave, visit = model.step(visit, actions, torch.from_numpy(luck[:, page]))
        clicks.append(visit.clicks)
        lengths = torch.where((lengths == 0) & leave, page + 1, lengths)
    expected = torch.stack(clicks, dim=1).tolist()  # [B, pages]
    assert found == [row[:length] for row, length in zip(expected, lengths.tolist(), strict=True)]


def test_both_sides_count_pages_that_users_answered(weights: str) -> None:
    one, many = taobao_alone(weights, 50), taobao_batched(weights, 50, steps=20)
    assert 50 <= one.steps <= 50 * LENGTHS
    assert 50 * 10 < many.steps < 50 * 20  # but for those on which the next user came
    for played in (one, many):
        assert 0 < played.clicks < 10 * played.steps
        assert played.rate == played.steps / played.seconds > 0
    assert 0 < many.outside < 1


def test_the_case_prints_the_baselines_and_measures_the_ratio(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulators, "alone", lambda function, *arguments: Namespace(result=function(*arguments)))
    monkeypatch.setattr(simulators, "BASELINE_USERS", 20)
    monkeypatch.setattr(baselines, "RESTARTS", 1)
    monkeypatch.setattr(baselines, "ITERATIONS", 1)
    monkeypatch.setattr(simulators, "two_cores", lambda weights, users, steps: 2.0)
    options = Namespace(weights=weights, users=30, steps=5, repeat=1)
    speed, two, plain, outside = CASES["virtual_taobao"](options)[:4]
    assert (two.value, two.baseline, plain.value) == (2.0, speed.baseline, 2.0)
    assert plain.baseline is not None
    assert plain.ratio == pytest.approx(2.0 / plain.baseline)
    assert "| constant: best found | full |" in capsys.readouterr().out
    assert (speed.what, speed.unit) == ("Virtual Taobao, 30 users at once, against one at a time", "user-steps / CPU s")
    assert speed.baseline is not None
    assert speed.ratio == pytest.approx(speed.value / speed.baseline)
    assert 0 < outside.value < 1


def test_without_weights_the_case_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert CASES["virtual_taobao"](Namespace(weights=str(tmp_path / "nowhere"), users=1, steps=1, repeat=1)) == []
    assert "no weights at" in capsys.readouterr().out
