"""Virtual Taobao: users generated from a real shop's log, who click on a page chosen by a vector of 27 weights.

A generator draws a user (88 one-hot features in 11 groups), a leave model draws once how many pages they will look at,
and an action model draws how many of a page's ten items they click, from the user, the page number and the weights:

user ~ softmax per group of G(z), z ~ uniform[0, 1)^128;   L ~ softmax(Q(user));   (a, b) ~ softmax(M([user; page; w]))

The reward of a page is a ∈ {0..10}; b ∈ {0..9} is a second attribute without a reward; the session ends when the pages
seen reach L; CTR = clicks / pages / 10. Source: Shi et al., "Virtual-Taobao", AAAI 2019, and its published weights V0,
which the user names and this project does not ship. Weights w are neither clipped nor normalised, as published.

What the networks imply, and what anyone who trains on them should know: L depends on the user alone, and M looks at
neither a nor b, so this is a contextual bandit; and one constant w for all users and pages reaches a CTR near 1, so a
high CTR says nothing of personalisation. Every table about it carries the rows of ``virtual_taobao_baselines``.

Deviations from the published environment: luck comes in as draws (inverse CDF); the last observation of a session is
that of its user, not of the next one; page and click counters start at 0 with each user, where the published ones go
on until ``reset()``; ``max_pages`` may cut sessions; what M's first layer makes of the user is computed once a session.

Shapes: B users, K actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from models.base import StateBatch, Task, TensorBatch
from models.feedback import Feedback
from models.linear import linear
from models.simulators.base import UserModelConfig
from pipeline.errors import ConfigError, DataError, ModelError

LATENT, ACTION, SLOTS = 128, 27, 10
GROUPS = (8, 8, 11, 11, 11, 11, 2, 2, 3, 18, 3)  # widths of a user's one-hot groups
USER = sum(GROUPS)
CLICKS, ATTRIBUTES, LENGTHS = SLOTS + 1, 10, 101
BLOCK = 1024  # users whom a network sees at a time
SHAPES = {  # layers of each network, as (outputs, inputs)
    "generator": ((128, LATENT), (USER, 128)),
    "action": ((128, USER + 1 + ACTION), (256, 128), (CLICKS + ATTRIBUTES, 256)),
    "leave": ((128, USER), (256, 128), (LENGTHS, 256)),
}


class VirtualTaobaoConfig(UserModelConfig):
    """Settings of Virtual Taobao."""

    weights: str  # a folder with generator_model.pt, action_model.pt and leave_model.pt, as published
    max_pages: int = Field(LENGTHS - 1, ge=1, le=LENGTHS - 1)  # environments cut sessions there; 1: one-page sessions

    def build(self, task: Task) -> VirtualTaobao:  # type: ignore[override]  # nothing of it is fitted on a log
        return self.load(task.device)

    def load(self, device: str = "cpu") -> VirtualTaobao:
        """Raises ConfigError where the folder or a file is missing, ModelError where the weights do not fit."""
        networks = {name: _load(Path(self.weights), name) for name in SHAPES}
        return VirtualTaobao(networks, self.max_pages, device)


@dataclass(frozen=True)
class Visit(TensorBatch):
    """The hidden state of B users."""

    user: Tensor  # [B, 88] float32, one-hot in each group
    clicks: Tensor  # [B] int64, a of the last page
    attribute: Tensor  # [B] int64, b of the last page
    page: Tensor  # [B] int64, pages seen so far
    length: Tensor  # [B] int64, the pages after which the user leaves; 0 and 1 both mean one
    entry: Tensor  # [B, 128] float32, the user's share of the action model's first layer

    def __len__(self) -> int:
        return len(self.page)

    @property
    def over(self) -> Tensor:
        """Whether the user leaves after the last page, [B] bool."""
        return self.page >= self.length


class _Network:
    """Layers of a published network, as (weight, bias), with leaky ReLUs between them."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        self._layers = layers

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Logits of the first of ``inputs`` [B, n]; the second, if any, is what the first layer adds, [B, h]."""
        # In blocks, because activations of some MB leave the cache, and malloc gives them back to the system each time.
        blocks = [self._block(*block) for block in zip(*(torch.split(part, BLOCK) for part in inputs), strict=True)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _block(self, inputs: Tensor, entry: Tensor | None = None) -> Tensor:
        (weight, bias), *rest = self._layers
        values = linear(inputs, weight, bias)
        if entry is not None:
            values += entry
        for weight, bias in rest:
            values = linear(leaky_relu(values, inplace=True), weight, bias)
        return values


class VirtualTaobao:
    """A user model whose pages are actions [B, 27] instead of items, behind the same three calls.

    Which of the ten items are clicked is not modelled: the first a slots are given as the clicked ones.
    """

    def __init__(
        self, networks: Mapping[str, nn.Sequential], max_pages: int = LENGTHS - 1, device: str = "cpu"
    ) -> None:
        """``networks`` by the names and with the shapes of ``SHAPES``."""
        self.max_pages, self.device = max_pages, device
        generator, leave, action = (_layers(networks[name], device) for name in ("generator", "leave", "action"))
        (weight, self._bias), *rest = action
        self._user_weight = weight[:, :USER].contiguous()  # [128, 88]
        self.generator, self.leave = _Network(generator), _Network(leave)
        self.answers = _Network([(weight[:, USER:].contiguous(), None), *rest])  # of pages and entries
        ends = torch.tensor(GROUPS).cumsum(dim=0)  # [11]
        columns = ends - torch.arange(max(GROUPS), 0, -1)[:, None]  # [18, 11], right-aligned: each group ends in row 17
        self._before_group = (columns < ends - torch.tensor(GROUPS)).to(device)
        self._columns = columns.clamp(min=0).to(device)

    def reset_width(self) -> int:
        return LATENT + len(GROUPS) + 1

    def step_width(self, slots: int = SLOTS) -> int:
        return 2

    @torch.no_grad()
    def reset(self, state: StateBatch | int, draws: Tensor) -> Visit:
        """B new users of ``draws`` [B, 140]. They are generated: of ``state`` only the number of users is used."""
        users = state if isinstance(state, int) else len(state)
        _check("draws", draws, users, self.reset_width())
        logits = _by_class(self.generator(draws[:, :LATENT]))[self._columns]  # [18, 11, B]
        logits.masked_fill_(self._before_group[..., None], -torch.inf)
        chosen = _sample(logits, draws[:, LATENT:-1].T).T  # [B, 11], rows of 18
        user = torch.zeros(users, USER, device=self.device)
        user.scatter_(1, self._columns.gather(0, chosen), 1.0)
        zero = torch.zeros(users, dtype=torch.int64, device=self.device)
        length = _sample(_by_class(self.leave(user)), draws[:, -1])
        return Visit(user, zero, zero, zero, length, linear(user, self._user_weight, self._bias))

    @torch.no_grad()
    def positive_probabilities(self, hidden: Visit, actions: Tensor) -> Tensor:
        """The expected share of the ten items that is clicked under each of ``actions`` [B, K, 27], [B, K]."""
        users, count = actions.shape[:2]
        rows = torch.arange(users, device=self.device).repeat_interleave(count)
        _check("actions", actions.flatten(0, 1), len(hidden) * count, ACTION)
        probabilities = self._logits(hidden[rows], actions.flatten(0, 1))[:, :CLICKS].softmax(dim=1)  # [B·K, 11]
        return (probabilities @ torch.arange(CLICKS, device=self.device).float() / SLOTS).view(users, count)

    @torch.no_grad()
    def step(
        self, hidden: Visit, actions: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Visit]:
        """Rank a page by ``actions`` [B, 27], with ``draws`` [B, 2]: feedback [B, 10], leave [B], the visit after it.

        ``shift`` [B] tilts P(a) by e^{shift·a}, which is what it would be for ten independent, like slots.
        """
        after = self.after(hidden, actions, draws, shift)
        clicked = torch.arange(SLOTS, device=self.device) < after.clicks[:, None]  # [B, 10]
        return torch.where(clicked, int(Feedback.CLICK), int(Feedback.SKIP)), after.over, after

    @torch.no_grad()
    def after(self, hidden: Visit, actions: Tensor, draws: Tensor, shift: Tensor | None = None) -> Visit:
        """The visit after a page, as ``step`` has it, without the feedback of each slot."""
        _check("actions", actions, len(hidden), ACTION)
        _check("draws", draws, len(hidden), self.step_width())
        if not actions.sum().isfinite() and not actions.isfinite().all():  # the sum takes a tenth of the time
            wrong = (~actions.isfinite().all(dim=1)).nonzero()[0]
            raise DataError(f"The action of row {int(wrong)} is not finite. Give finite weights, at best in [-1, 1].")
        logits = _by_class(self._logits(hidden, actions))  # [21, B]
        click_logits, attribute_logits = logits[:CLICKS], logits[CLICKS:]
        if shift is not None:
            click_logits = click_logits + shift * torch.arange(CLICKS, device=self.device)[:, None]
        clicks, attribute = _sample(click_logits, draws[:, 0]), _sample(attribute_logits, draws[:, 1])  # [B], [B]
        return replace(hidden, clicks=clicks, attribute=attribute, page=hidden.page + 1)

    def observation(self, hidden: Visit) -> Tensor:
        """What the published environment shows of B users: [user; last a; last b; pages seen], [B, 91] float32."""
        return torch.cat([hidden.user, torch.stack([hidden.clicks, hidden.attribute, hidden.page], dim=1)], dim=1)

    def _logits(self, hidden: Visit, actions: Tensor) -> Tensor:
        """The action model's logits of a and b, [B, 21]."""
        page = torch.cat([hidden.page[:, None], actions], dim=1)  # [B, 28]
        return self.answers(page, hidden.entry)


def _layers(network: nn.Sequential, device: str) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight.to(device), m.bias.to(device)) for m in network if isinstance(m, nn.Linear)]


def _by_class(logits: Tensor) -> Tensor:
    """[B, n] → [n, B]: sums over a few classes then run along many users, ten times as fast as along the classes."""
    return logits.T.contiguous()


def _sample(logits: Tensor, draws: Tensor) -> Tensor:
    """One class [...] of each of ``logits`` [n, ...] by the inverse of the cumulative distribution, int64."""
    cumulative = logits.softmax(dim=0).cumsum(dim=0)
    return (cumulative[:-1] <= draws * cumulative[-1]).sum(dim=0)


def _load(folder: Path, name: str) -> nn.Sequential:
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder} of Virtual Taobao's weights. Put the published *_model.pt "
                          "files there, or name their folder in `weights`.")  # fmt: skip
    path = folder / f"{name}_model.pt"
    if not path.is_file():
        needed = ", ".join(f"{other}_model.pt" for other in SHAPES)
        raise ConfigError(f"{path} is missing. Virtual Taobao needs {needed} of its published weights.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the first wrong byte leads to
        raise ModelError(
            f"{path} cannot be read as a state dict ({type(error).__name__}). Download it again."
        ) from None
    modules = [m for out, width in SHAPES[name] for m in (nn.Linear(width, out), nn.LeakyReLU(0.01, inplace=True))]
    network = nn.Sequential(*modules[:-1])
    for key, needed_weight in network.state_dict().items():
        found = tuple(weights[key].shape) if isinstance(weights, Mapping) and key in weights else "nothing"
        if found != tuple(needed_weight.shape):
            raise ModelError(f"{path} holds {found} under {key!r}, but {tuple(needed_weight.shape)} is needed. "
                             "Use the weights of Virtual Taobao V0 as published.")  # fmt: skip
    network.load_state_dict({key: weights[key] for key in network.state_dict()})
    return network.requires_grad_(False)


def _check(what: str, values: Tensor, rows: int, width: int) -> None:
    if values.shape != (rows, width):
        raise ModelError(f"The {what} have shape {tuple(values.shape)}, but {rows} users need ({rows}, {width}).")
