"""Linear and recurrent layers against torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from models.linear import GRU, LARGE, Linear, linear

MANY = 1 + LARGE // (20 * 7)  # rows of a product that oneDNN takes


def layer() -> Linear:
    torch.manual_seed(1)
    return Linear(20, 7)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "inputs",
    [
        random(1, 20),
        random(MANY, 20),
        random(MANY, 3, 20),
        random(MANY, 30)[:, 5:25],
        random(20, MANY).T,
        random(1, 20).expand(MANY, -1),
        random(0, 20),
    ],
    ids=["one", "many", "three dimensions", "a slice", "transposed", "expanded", "none"],
)
def test_the_products_are_torchs(inputs: Tensor) -> None:
    ours = layer()
    theirs = nn.Linear(20, 7)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert_close(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)


def test_inputs_of_no_width_leave_the_bias() -> None:
    with torch.no_grad():
        found = linear(torch.zeros(MANY, 0), torch.zeros(3, 0), torch.tensor([1.0, 2.0, 3.0]))
    assert found.tolist() == MANY * [[1.0, 2.0, 3.0]]


def test_gradients_come_where_they_are_asked_for() -> None:
    ours = layer()
    ours(random(MANY, 20)).sum().backward()
    assert_close(ours.bias.grad, torch.full((7,), float(MANY)))


def test_large_products_go_through_onednn_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inside = torch.ops.mkldnn._linear_pointwise

    def counted(inputs: Tensor, *rest: Any) -> Any:
        seen.append(len(inputs))
        return inside(inputs, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    with torch.no_grad():
        for rows in (MANY - 1, MANY):
            layer()(random(rows, 20))
    assert seen == [MANY]


@pytest.mark.parametrize("users", [1, 2 * LARGE // (3 * 9 * 9)], ids=["one", "many"])
def test_the_states_are_torchs(users: int) -> None:
    torch.manual_seed(1)
    ours = GRU(5, 9)
    inputs = random(users, 4, 5)
    with torch.no_grad():
        states = ours(inputs)[0]  # [B, 4, 9]
        assert_close(ours.last(inputs), states[:, -1], rtol=1e-5, atol=1e-5)
        assert_close(ours.step(inputs[:, 3], states[:, 2]), states[:, 3], rtol=1e-5, atol=1e-5)


def test_gradients_of_the_last_state_are_torchs() -> None:
    ours, inputs = GRU(5, 9), random(2 * LARGE // (3 * 9 * 9), 2, 5)
    gradients = []
    for state in (ours.last(inputs), ours(inputs)[0][:, -1]):
        gradients.append(torch.autograd.grad(state.sum(), list(ours.parameters())))
    for own, torchs in zip(*gradients, strict=True):
        assert_close(own, torchs)
