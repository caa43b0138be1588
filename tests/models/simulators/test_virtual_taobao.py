"""Virtual Taobao against a plain loop over users in numpy, and the published weights against what is known of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from models.feedback import Feedback
from models.hashing import mix64, uniforms
from models.simulators import virtual_taobao_baselines as baselines
from models.simulators.virtual_taobao import ACTION, BLOCK, GROUPS, SHAPES, VirtualTaobao, VirtualTaobaoConfig
from models.simulators.virtual_taobao_baselines import (
    Row,
    baseline_rows,
    baseline_table,
    click_through_rate,
    constant_policy,
    random_policy,
)
from pipeline.errors import ConfigError, DataError, ModelError
from tests.models.builders import empty_state, make_task
from tests.models.simulators.taobao_weights import save_weights

RESET, STEP = 140, 2


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_weights(tmp_path_factory.mktemp("virtual_taobao"))


@pytest.fixture(scope="module")
def model(folder: str) -> VirtualTaobao:
    return VirtualTaobaoConfig(weights=folder).load()


@pytest.fixture(scope="module")
def published(real_data: Path) -> str:
    if not (real_data / "virtualtaobao").is_dir():
        pytest.skip(f"no weights of Virtual Taobao at {real_data / 'virtualtaobao'}")
    return str(real_data / "virtualtaobao")


@pytest.fixture(scope="module")
def taobao(published: str) -> VirtualTaobao:
    return VirtualTaobaoConfig(weights=published).load()


def luck(users: int, page: int, width: int = STEP) -> Tensor:
    """The draws of users 0, 1, … on a page; page 0 is the reset."""
    return uniforms(torch.arange(users), page, width=width)


def actions(users: int, page: int) -> Tensor:
    return 0.4 * uniforms(torch.arange(users), -1, page, width=ACTION) - 0.2


# ---- the reference: one user at a time, in numpy


def reference(folder: str, user: int, max_pages: int) -> tuple[NDArray[Any], int, list[tuple[int, int]]]:
    """One user's features, length and (a, b) of each page, with the draws and the actions from above."""
    nets = {name: torch.load(Path(folder) / f"{name}_model.pt", weights_only=True) for name in SHAPES}

    def forward(name: str, x: NDArray[Any]) -> NDArray[Any]:
        state = {key: value.double().numpy() for key, value in nets[name].items()}
        for layer in range(len(SHAPES[name])):
            x = np.where(x > 0, x, 0.01 * x) if layer else x
            x = state[f"{2 * layer}.weight"] @ x + state[f"{2 * layer}.bias"]
        return x

    def draw(logits: NDArray[Any], u: float) -> int:
        p = np.exp(logits - logits.max())
        return int(np.searchsorted(np.cumsum(p / p.sum()), u, side="right"))

    luck_of = {page: uniforms(torch.tensor([user]), page, width=STEP)[0].tolist() for page in range(1, max_pages + 1)}
    start = uniforms(torch.tensor([user]), 0, width=RESET)[0].double().numpy()
    parts = np.split(forward("generator", start[:128]), np.cumsum(GROUPS)[:-1])
    features = np.concatenate([np.eye(len(part))[draw(part, u)] for part, u in zip(parts, start[128:], strict=False)])
    length = draw(forward("leave", features), start[-1])
    answers: list[tuple[int, int]] = []
    while not answers or len(answers) < min(length, max_pages):
        page = len(answers)
        w = 0.4 * uniforms(torch.tensor([user]), -1, page, width=ACTION)[0] - 0.2
        logits = forward("action", np.concatenate([features, [page], w.double().numpy()]))
        answers.append((draw(logits[:11], luck_of[page + 1][0]), draw(logits[11:], luck_of[page + 1][1])))
    return features, length, answers


def assert_equals_the_reference(model: VirtualTaobao, folder: str, users: int, max_pages: int) -> None:
    """All ``users`` play, in a batch so large that it runs in blocks; a few are followed one at a time, too."""
    batch = BLOCK + 200
    visit = model.reset(batch, luck(batch, 0, RESET))
    start, answers, left = visit, [], torch.zeros(batch, dtype=torch.int64)
    for page in range(max_pages):
        _, leave, visit = model.step(visit, actions(batch, page), luck(batch, page + 1))
        answers.append(torch.stack([visit.clicks, visit.attribute], dim=1))
        left = torch.where((left == 0) & leave, page + 1, left)
    for user in range(batch - users, batch):
        features, length, expected = reference(folder, user, max_pages)
        assert (start.user[user].numpy() == features).all()
        assert int(start.length[user]) == length
        assert [tuple(answer[user].tolist()) for answer in answers][: len(expected)] == expected
        assert int(left[user]) == (len(expected) if max(length, 1) <= max_pages else 0)


def test_a_batch_equals_a_loop_over_users(model: VirtualTaobao, folder: str) -> None:
    assert_equals_the_reference(model, folder, users=40, max_pages=8)


# ---- users and their answers


def test_each_group_of_a_user_is_one_hot(model: VirtualTaobao) -> None:
    visit = model.reset(500, luck(500, 0, RESET))
    groups = visit.user.split(GROUPS, dim=1)
    assert visit.user.shape == (500, 88)
    assert {float(value) for value in visit.user.unique()} == {0.0, 1.0}
    assert all((group.sum(dim=1) == 1).all() for group in groups)
    assert all(len(group.unique(dim=0)) > 1 for group in groups)


def test_the_smallest_and_the_largest_draws_choose_a_value_of_every_group(model: VirtualTaobao) -> None:
    for extreme in (0.0, 1 - 2**-24):
        user = model.reset(3, torch.full((3, RESET), extreme)).user
        assert all((group.sum(dim=1) == 1).all() for group in user.split(GROUPS, dim=1))


def test_the_first_slots_of_a_page_are_the_clicked_ones(model: VirtualTaobao) -> None:
    visit = model.reset(500, luck(500, 0, RESET))
    feedback, _, after = model.step(visit, actions(500, 0), luck(500, 1))
    assert feedback.shape == (500, 10)
    assert {int(clicks) for clicks in after.clicks} == set(range(11))
    for clicks in range(11):
        page = [Feedback.CLICK] * clicks + [Feedback.SKIP] * (10 - clicks)
        assert (feedback[after.clicks == clicks] == torch.tensor(page)).all()


def test_a_user_leaves_after_the_pages_drawn_at_the_start_and_after_one_at_the_least(model: VirtualTaobao) -> None:
    visit = model.reset(2000, luck(2000, 0, RESET))
    for page in range(1, 4):
        _, leave, visit = model.step(visit, actions(2000, page), luck(2000, page))
        assert (leave == (visit.length <= page)).all()
    assert {0, 1, 2, 3} <= {int(length) for length in visit.length}


def test_an_observation_is_the_user_the_last_answers_and_the_pages_seen(model: VirtualTaobao) -> None:
    visit = model.reset(8, luck(8, 0, RESET))
    assert_close(model.observation(visit), torch.cat([visit.user, torch.zeros(8, 3)], dim=1))
    for page in (1, 2):
        _, _, visit = model.step(visit, actions(8, page), luck(8, page))
    dynamic = torch.stack([visit.clicks, visit.attribute, torch.full((8,), 2)], dim=1).float()
    assert_close(model.observation(visit), torch.cat([visit.user, dynamic], dim=1))


def test_what_happens_to_a_user_does_not_depend_on_the_batch(model: VirtualTaobao) -> None:
    users, some = BLOCK + 50, torch.tensor([7, 3, 250])
    together = model.reset(users, luck(users, 0, RESET))
    apart = model.reset(3, luck(users, 0, RESET)[some])
    for page in range(1, 4):
        feedback, leave, together = model.step(together, actions(users, page), luck(users, page))
        fewer, left, apart = model.step(apart, actions(users, page)[some], luck(users, page)[some])
        assert (feedback[some] == fewer).all()
        assert (leave[some] == left).all()
    assert_close(model.observation(together[some]), model.observation(apart))


def test_users_are_generated_whatever_state_they_are_asked_for_with(model: VirtualTaobao) -> None:
    assert (model.reset(empty_state(5), luck(5, 0, RESET)).user == model.reset(5, luck(5, 0, RESET)).user).all()


def test_clicks_come_as_often_as_expected(model: VirtualTaobao) -> None:
    tries = 20_000
    user = model.reset(1, luck(1, 0, RESET))[torch.zeros(tries, dtype=torch.int64)]
    action = actions(1, 0).expand(tries, -1)
    _, _, after = model.step(user, action, luck(tries, 1))
    expected = model.positive_probabilities(user[:1], action[:1, None])
    assert expected.shape == (1, 1)
    assert 0.1 < float(expected) < 0.9
    assert float(after.clicks.float().mean()) / 10 == pytest.approx(float(expected), abs=0.01)


def test_a_shift_tilts_the_number_of_clicks_as_it_tilts_ten_like_slots(model: VirtualTaobao) -> None:
    tries, shift = 20_000, 0.3
    user = model.reset(1, luck(1, 0, RESET))[torch.zeros(tries, dtype=torch.int64)]
    action = actions(1, 0).expand(tries, -1)

    def shares(shift: Tensor | None) -> NDArray[Any]:
        clicks = model.step(user, action, luck(tries, 1), shift)[2].clicks
        return np.bincount(clicks.numpy(), minlength=11) / tries

    tilted = shares(None) * np.exp(shift * np.arange(11))
    assert_close(shares(torch.full((tries,), shift)), tilted / tilted.sum(), atol=0.015, rtol=0)
    assert_close(shares(torch.zeros(tries)), shares(None))


def test_it_is_built_from_a_task_and_cannot_be_fitted(folder: str) -> None:
    model = VirtualTaobaoConfig(weights=folder, max_pages=1).build(make_task())
    assert (model.max_pages, model.device, model.reset_width(), model.step_width(10)) == (1, "cpu", RESET, STEP)
    assert not hasattr(model, "fit")


# ---- errors


def missing_folder(folder: Path) -> Path:
    return folder / "nowhere"


def missing_file(folder: Path) -> Path:
    (folder / "leave_model.pt").unlink()
    return folder


def torn_file(folder: Path) -> Path:
    (folder / "leave_model.pt").write_bytes(b"no weights")
    return folder


def other_shape(folder: Path) -> Path:
    state = torch.load(folder / "action_model.pt", weights_only=True)
    torch.save(state | {"0.weight": torch.zeros(128, 115)}, folder / "action_model.pt")
    return folder


def fewer_layers(folder: Path) -> Path:
    state = torch.load(folder / "action_model.pt", weights_only=True)
    del state["4.bias"]
    torch.save(state, folder / "action_model.pt")
    return folder


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (missing_folder, ConfigError, "no folder .*nowhere of Virtual Taobao's weights"),
        (missing_file, ConfigError, r"leave_model\.pt is missing.*generator_model\.pt, action_model\.pt"),
        (torn_file, ModelError, r"leave_model\.pt cannot be read as a state dict"),
        (other_shape, ModelError, r"action_model\.pt holds \(128, 115\) under '0\.weight', but \(128, 116\) is needed"),
        (fewer_layers, ModelError, r"action_model\.pt holds nothing under '4\.bias', but \(21,\) is needed"),
    ],
)
def test_weights_that_cannot_be_used_are_named(
    damage: Callable[[Path], Path], error: type[Exception], message: str, tmp_path: Path
) -> None:
    save_weights(tmp_path)
    with pytest.raises(error, match=message):
        VirtualTaobaoConfig(weights=str(damage(tmp_path))).load()


@pytest.mark.parametrize(
    ("given", "draws", "error", "message"),
    [
        (torch.zeros(4, 26), torch.zeros(4, 2), ModelError, r"actions have shape \(4, 26\), but 4 users need \(4, 27"),
        (torch.zeros(3, 27), torch.zeros(4, 2), ModelError, r"actions have shape \(3, 27\), but 4 users need \(4, 27"),
        (torch.zeros(4, 27), torch.zeros(4, 21), ModelError, r"draws have shape \(4, 21\), but 4 users need \(4, 2\)"),
        (torch.zeros(4, 27).index_fill(0, torch.tensor([2]), torch.nan), torch.zeros(4, 2), DataError,
         "action of row 2 is not finite"),
        (torch.zeros(4, 27).index_fill(0, torch.tensor([1]), torch.inf), torch.zeros(4, 2), DataError,
         "action of row 1 is not finite"),
    ],
)  # fmt: skip
def test_actions_that_cannot_be_shown_are_refused(
    model: VirtualTaobao, given: Tensor, draws: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.step(model.reset(4, luck(4, 0, RESET)), given, draws)


def test_other_mistakes_are_refused(model: VirtualTaobao, folder: str) -> None:
    with pytest.raises(ModelError, match=r"draws have shape \(3, 140\), but 4 users need \(4, 140\)"):
        model.reset(4, luck(3, 0, RESET))
    with pytest.raises(ModelError, match=r"actions have shape \(8, 26\), but 8 users need \(8, 27\)"):
        model.positive_probabilities(model.reset(4, luck(4, 0, RESET)), torch.zeros(4, 2, 26))
    with pytest.raises(ValidationError, match="max_pages"):
        VirtualTaobaoConfig(weights=folder, max_pages=0)
    with pytest.raises(ConfigError, match="at least 2 users, not 1"):
        click_through_rate(model, random_policy, 1, 0, 1)


# ---- what a policy that learns nothing reaches


def test_the_click_through_rate_is_a_ratio_of_sums_over_the_pages_until_users_leave(model: VirtualTaobao) -> None:
    users, seed, max_pages = 300, 3, 5
    keys = mix64(torch.full((users,), seed), torch.arange(users))
    visit = model.reset(users, uniforms(keys, 0, width=RESET))
    clicks, pages, there = torch.zeros(users), torch.zeros(users), torch.ones(users, dtype=torch.bool)
    for page in range(max_pages):  # nobody is dropped, whoever has left counts no more
        weights = random_policy(model.observation(visit), keys, page)
        _, leave, visit = model.step(visit, weights, uniforms(keys, page + 1, width=STEP))
        clicks, pages, there = clicks + visit.clicks * there, pages + there.float(), there & ~leave
    assert 1 < float(pages.mean()) < max_pages
    ctr, _ = click_through_rate(model, random_policy, users, seed, max_pages)
    assert ctr == pytest.approx(float(clicks.sum() / pages.sum()) / 10)


def test_its_standard_error_is_the_spread_over_samples_of_users(model: VirtualTaobao) -> None:
    found = np.array([click_through_rate(model, random_policy, 100, seed, 5) for seed in range(60)])
    assert found[:, 0].std() == pytest.approx(found[:, 1].mean(), rel=0.3)


def test_the_baselines_are_judged_on_one_page_and_on_full_sessions(
    model: VirtualTaobao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "RESTARTS", 1)
    monkeypatch.setattr(baselines, "ITERATIONS", 5)
    rows = baseline_rows(model, 100, seed=0)
    names = ["random actions", "constant: zeros", "constant: ones", "constant: best found"]
    assert [(row.policy, row.one_page) for row in rows] == [(n, one) for one in (True, False) for n in names]
    assert all(max(part, key=lambda row: row.ctr).policy == "constant: best found" for part in (rows[:4], rows[4:]))
    assert rows == baseline_rows(model, 100, seed=0)
    assert baseline_table([Row("random actions", True, 0.02, 0.0012)]).splitlines()[2:] == [
        "| random actions | one page | 0.0200 | 0.0012 |"
    ]


# ---- the published weights


def test_the_published_users_equal_a_loop_over_them(taobao: VirtualTaobao, published: str) -> None:
    assert_equals_the_reference(taobao, published, users=60, max_pages=10)


def test_the_published_sessions_have_the_known_lengths(taobao: VirtualTaobao) -> None:
    length = taobao.reset(20_000, luck(20_000, 0, RESET)).length.clamp(min=1).double()
    assert float(length.mean()) == pytest.approx(7.7, abs=0.4)
    assert float(length.median()) == 4
    assert float((length == 1).double().mean()) == pytest.approx(0.136, abs=0.01)
    assert float(length.quantile(0.9)) == pytest.approx(17, abs=1)
    assert float(length.quantile(0.99)) == pytest.approx(60, abs=4)


@pytest.mark.parametrize(
    ("policy", "expected", "tolerance"),
    [
        (random_policy, 0.02, 0.005),
        (constant_policy(torch.zeros(ACTION)), 0.05, 0.01),
        (constant_policy(torch.ones(ACTION)), 0.0, 0.0005),
    ],
)
def test_the_published_click_through_rates(
    taobao: VirtualTaobao, policy: baselines.Policy, expected: float, tolerance: float
) -> None:
    ctr, error = click_through_rate(taobao, policy, 4000, 0, taobao.max_pages)
    assert ctr == pytest.approx(expected, abs=tolerance)
    assert error < 0.002


def test_one_constant_for_all_users_comes_near_a_click_through_rate_of_one(
    taobao: VirtualTaobao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "RESTARTS", 3)
    monkeypatch.setattr(baselines, "SEARCH_USERS", 64)
    constant = constant_policy(baselines.best_constant(taobao, seed=0))
    for pages in (1, taobao.max_pages):
        assert click_through_rate(taobao, constant, 1000, 1, pages)[0] > 0.85
