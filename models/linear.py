"""Linear and recurrent layers that take half the time on a CPU where no gradient is asked for."""

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGE = 2**20  # multiplications from which on oneDNN pays: a call of it takes 12 µs more
# oneDNN's product of plain tensors is torch's own and not public; where a build lacks it, torch's BLAS does.
ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``inputs`` [..., n] times ``weight`` [m, n] plus ``bias`` [m]: [..., m].

    Large products on a CPU go through oneDNN: on an EPYC's core 210 GFLOP/s from [256, 306] × [306, 256] on, torch's
    BLAS 95.
    """
    large = inputs.numel() * len(weight) >= LARGE
    plain = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and not torch.is_grad_enabled()
    if not (large and plain and ONEDNN):
        return functional.linear(inputs, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


class Linear(nn.Linear):
    """torch's, by ``linear``."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)


class GRU(nn.GRU):
    """torch's, of one layer, with a cell of our own for where no gradient is asked for."""

    weight_ih_l0: Tensor  # [3H, V]
    weight_hh_l0: Tensor  # [3H, H]
    bias_ih_l0: Tensor  # [3H]
    bias_hh_l0: Tensor  # [3H]

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True)

    def last(self, inputs: Tensor) -> Tensor:
        """The hidden state [B, H] after ``inputs`` [B, N, V]."""
        if torch.is_grad_enabled() or inputs.is_cuda or len(inputs) * self.weight_hh_l0.numel() < LARGE:
            last: Tensor = self(inputs)[1][0]
            return last
        hidden = inputs.new_zeros(len(inputs), self.hidden_size)
        for product in linear(inputs.transpose(0, 1), self.weight_ih_l0, self.bias_ih_l0):  # [B, 3H]
            hidden = self._cell(product, hidden)
        return hidden

    def step(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """The hidden state [B, H] after ``hidden`` and one more input [B, V]."""
        return self._cell(linear(inputs, self.weight_ih_l0, self.bias_ih_l0), hidden)

    def _cell(self, new: Tensor, hidden: Tensor) -> Tensor:
        """The next state from the inputs' product ``new`` [B, 3H], which it overwrites."""
        gates = 2 * self.hidden_size
        old = linear(hidden, self.weight_hh_l0, self.bias_hh_l0)  # [B, 3H]
        reset, update = new[:, :gates].add_(old[:, :gates]).sigmoid_().chunk(2, dim=1)
        candidate = torch.addcmul(new[:, gates:], reset, old[:, gates:])
        candidate = candidate.mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh: torch's takes four times as long
        return candidate.lerp_(hidden, update)
