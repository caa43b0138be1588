"""d3rlpy's BC, TD3+BC, IQL and CQL as rankers: continuous control whose action is an item's vector.

The agent sees ``ObservationEncoder``'s vector and acts in the space of standardised item vectors, scaled to [-1, 1].
A candidate i is scored by where the policy points or by what the critic says of it:

    decode "actor":  score(s, i) = cos(π(s), e_i)            (the proto-action's nearest neighbour)
    decode "critic": score(s, i) = mean over critics of Q(s, e_i)

Papers: TD3+BC, Fujimoto & Gu 2021, eq. 5; IQL, Kostrikov et al. 2022, section 4; CQL, Kumar et al. 2020, eq. 4. Losses,
networks and defaults are d3rlpy's (2.8). Deviations from it: none in a loss; our loop samples the pages, so
``batch_size`` is the experiment's; the next state is encoded from ``state.advance``, so a session cut by the length cap
still bootstraps; CQL draws 3 action samples instead of 10, to save time, and its conservative weight is 0.01
instead of 5, which drowns rewards of this size.

The defaults were measured on a shop like the storefront (20,000 logged pages, 300 steps of 128 pages; NDCG@10 with
rewards on held-out sessions, where random reaches 0.195 and the items' reward rate 0.342):

    IQL     action slate_mean  actor 0.293  critic 0.327        CQL  conservative weight 5    actor 0.229  critic 0.172
            action item        actor 0.294  critic 0.336             conservative weight 1    actor 0.230  critic 0.200
            4 items a page     actor 0.295  critic 0.344             conservative weight 0.1  actor 0.284  critic 0.329
    TD3+BC  action slate_mean  actor 0.279  critic 0.320             conservative weight 0.01 actor 0.230  critic 0.337
            4 items a page     actor 0.288  critic 0.343        BC   action slate_mean        actor 0.285
                                                                     action item              actor 0.289
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from models.base import AgentConfig, Candidates, StateBatch, Task, TransitionBatch
from models.observation import CLIP, ObservationEncoder, item_vectors
from pipeline.errors import ConfigError, DataError, ModelError

SCORED_ROWS = 32_768  # (state, candidate) pairs that the critic scores at a time: bounds the memory of a large pool


def import_d3rlpy() -> Any:
    """d3rlpy, without the notices that it and the unmaintained gym print when they are imported."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import d3rlpy
            import d3rlpy.algos
            import d3rlpy.dataset
        except Exception as error:  # its health check raises ValueError for a package that is too old
            raise ConfigError(f"d3rlpy cannot be imported ({error}). Install d3rlpy>=2.8.1,<2.9.") from error
    return d3rlpy


class _D3rlpyConfig(AgentConfig):
    """What the four have in common."""

    action: Literal["slate_mean", "item"] = "item"  # one transition a page (its mean item) or one a shown item
    hidden: tuple[int, ...] = (256, 256)  # units of each layer of every network
    items_per_page: int = Field(4, ge=1)  # with action "item": drawn from each page's shown items for a gradient step

    def algorithm(self, d3rlpy: Any) -> Any:
        """d3rlpy's own configuration of the algorithm."""
        raise TypeError(f"{type(self).__name__} must define algorithm(d3rlpy)")

    def build(self, task: Task, seed: int) -> D3rlpyAgent:
        return D3rlpyAgent(self, task, seed)

    def _encoder(self, d3rlpy: Any) -> Any:
        return d3rlpy.models.VectorEncoderFactory(hidden_units=list(self.hidden))


class BCConfig(_D3rlpyConfig):
    """Behaviour cloning: the control that every RL agent has to beat."""

    learning_rate: float = Field(1e-3, gt=0)

    def algorithm(self, d3rlpy: Any) -> Any:
        return d3rlpy.algos.BCConfig(learning_rate=self.learning_rate, encoder_factory=self._encoder(d3rlpy))


class _ActorCriticConfig(_D3rlpyConfig):
    """What the three with a critic have in common."""

    decode: Literal["actor", "critic"] = "critic"  # score by the policy's nearest neighbour or by Q
    discount: float = Field(0.99, ge=0, le=1)  # of the next page's value; 0 is the myopic control
    actor_learning_rate: float = Field(3e-4, gt=0)
    critic_learning_rate: float = Field(3e-4, gt=0)
    target_rate: float = Field(0.005, gt=0, le=1)  # τ of the soft target update

    def build(self, task: Task, seed: int) -> D3rlpyCritic:
        return D3rlpyCritic(self, task, seed)

    def _shared(self, d3rlpy: Any) -> dict[str, Any]:
        return {
            "actor_learning_rate": self.actor_learning_rate,
            "critic_learning_rate": self.critic_learning_rate,
            "actor_encoder_factory": self._encoder(d3rlpy),
            "critic_encoder_factory": self._encoder(d3rlpy),
            "gamma": self.discount,
            "tau": self.target_rate,
        }


class TD3PlusBCConfig(_ActorCriticConfig):
    """A minimalist approach: TD3 whose actor also clones the log."""

    alpha: float = Field(2.5, gt=0)  # weight of Q against cloning
    policy_delay: int = Field(2, ge=1)  # critic steps to one actor step

    def algorithm(self, d3rlpy: Any) -> Any:
        return d3rlpy.algos.TD3PlusBCConfig(
            **self._shared(d3rlpy), alpha=self.alpha, update_actor_interval=self.policy_delay
        )


class IQLConfig(_ActorCriticConfig):
    """Implicit Q-learning: an expectile of Q in place of a maximum, so no unseen action is ever valued."""

    expectile: float = Field(0.7, gt=0, lt=1)
    temperature: float = Field(3.0, ge=0)  # β of exp(β·advantage), the weights of the cloned actions
    max_weight: float = Field(100.0, gt=0)  # cap of those weights

    def algorithm(self, d3rlpy: Any) -> Any:
        return d3rlpy.algos.IQLConfig(
            **self._shared(d3rlpy),
            value_encoder_factory=self._encoder(d3rlpy),
            expectile=self.expectile,
            weight_temp=self.temperature,
            max_weight=self.max_weight,
        )


class CQLConfig(_ActorCriticConfig):
    """Conservative Q-learning: values of actions that the log does not hold are pushed down."""

    items_per_page: int = Field(1, ge=1)  # as above; fewer, because a step of CQL costs more than two of IQL's
    actor_learning_rate: float = Field(1e-4, gt=0)
    conservative_weight: float = Field(0.01, ge=0)  # of the gap between proposed and logged actions' values
    alpha_threshold: float = 10.0  # of the conservative gap, above which its multiplier grows
    action_samples: int = Field(3, ge=1)  # of each of the three proposals of the log-sum-exp

    def algorithm(self, d3rlpy: Any) -> Any:
        return d3rlpy.algos.CQLConfig(
            **self._shared(d3rlpy),
            conservative_weight=self.conservative_weight,
            alpha_threshold=self.alpha_threshold,
            n_action_samples=self.action_samples,
        )


class ItemActions:
    """Logged pages as continuous actions: each item's standardised vector, scaled to [-1, 1]; unknown items are 0."""

    def __init__(self, task: Task) -> None:
        self.vectors = (item_vectors(task.catalogue) / CLIP).to(task.device)  # [I+1, A]
        self.width = self.vectors.shape[1]

    def slate_mean(self, items: Tensor, shown: Tensor) -> Tensor:
        """The mean vector [B, A] of the ``shown`` ones of the items of each page, [B, K] both."""
        weights = shown.float()
        total = (weights[:, None] @ self.vectors[items])[:, 0]  # [B, 1, K] @ [B, K, A]
        return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


class D3rlpyAgent:
    """A d3rlpy algorithm behind the contract of gradient agents; only original rows are learnt from."""

    def __init__(self, config: _D3rlpyConfig, task: Task, seed: int) -> None:
        d3rlpy = import_d3rlpy()
        self.config, self.seed, self.device = config, seed, task.device
        self.encode, self.actions = ObservationEncoder(task), ItemActions(task)
        self._batch_class = d3rlpy.TorchMiniBatch
        self._algorithm = config.algorithm(d3rlpy).create(device=_torch_device(task.device))
        with self._own_randomness(step=0):
            self._algorithm.create_impl((self.encode.width,), self.actions.width)
        modules = self._algorithm.impl.modules.get_torch_modules()
        ranks = {name: module for name, module in modules.items() if name in {"imitator", "policy", "q_funcs"}}
        self._weights = nn.ModuleDict(ranks)
        self._rest = nn.ModuleDict({name: module for name, module in modules.items() if name not in ranks})

    def score(self, state: StateBatch, candidates: Candidates) -> Tensor:
        """Scores [B, K] of the candidates by the policy's direction or by the critic."""
        items = self.actions.vectors[candidates.items]  # [B, K, A]
        with torch.no_grad():
            observation = self.encode(state)  # [B, W]
            if getattr(self.config, "decode", "actor") == "critic":
                return self._q_values(observation, items)
            proto_action = self._algorithm.impl.predict_best_action(observation)  # [B, A]
            return cosine_similarity(proto_action[:, None], items, dim=-1)  # [B, K]

    def _q_values(self, observation: Tensor, items: Tensor) -> Tensor:
        states = max(1, SCORED_ROWS // items.shape[1])
        chunks = zip(torch.split(observation, states), torch.split(items, states), strict=True)
        values = [
            self._algorithm.impl.predict_value(o.repeat_interleave(i.shape[1], dim=0), i.flatten(0, 1))  # [b·K]
            for o, i in chunks
        ]
        return torch.cat(values).view(items.shape[:2])

    def update(self, batch: TransitionBatch) -> dict[str, float]:
        """One gradient step on the original rows of ``batch``; raises DataError where there is none."""
        original = batch[~batch.hindsight & batch.mask.any(dim=1)]
        if len(original) == 0:
            raise DataError("A batch without original rows came to a d3rlpy agent, which learns from no others. "
                            "Give it batches of rows with hindsight = False.")  # fmt: skip
        step = self._algorithm.grad_step
        with self._own_randomness(step + 1):
            losses = self._algorithm.impl.update(self._transitions(original), step)
        self._algorithm.set_grad_step(step + 1)
        return {name: float(value) for name, value in losses.items()}

    def _transitions(self, batch: TransitionBatch) -> Any:
        """The pages, or some shown items of each page, as d3rlpy's batch of R transitions."""
        if self.config.action == "slate_mean":
            rows = torch.arange(len(batch), device=self.device)
            actions, rewards = self.actions.slate_mean(batch.items, batch.mask), (batch.rewards * batch.mask).sum(dim=1)
        else:
            slots = batch.mask.float().multinomial(self.config.items_per_page, replacement=True)  # [B, S]
            rows = torch.arange(len(batch), device=self.device).repeat_interleave(slots.shape[1])
            actions = self.actions.vectors[batch.items.gather(1, slots).flatten()]
            rewards = batch.rewards.gather(1, slots).flatten()
        after = batch.state.advance(batch.items, batch.feedback)
        return self._batch_class(
            observations=self.encode(batch.state)[rows],  # [R, W]
            actions=actions,  # [R, A]
            rewards=rewards[:, None],  # [R, 1]
            next_observations=self.encode(after)[rows],  # [R, W]
            next_actions=torch.zeros_like(actions),  # none of the four reads it, nor the returns to go
            returns_to_go=torch.zeros_like(rewards)[:, None],
            terminals=batch.terminated.float()[rows][:, None],  # [R, 1]
            intervals=torch.ones_like(rewards)[:, None],
            device=self.device,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The networks that score: policy and critics."""
        return {name: value.detach().clone() for name, value in self._weights.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        try:
            self._weights.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ModelError(f"These weights do not fit {type(self.config).__name__}: {_brief(error)}. Load weights "
                             "that were saved with these settings and this catalogue.") from None  # fmt: skip

    def training_state(self) -> dict[str, Any]:
        """Targets, value function and multipliers, optimisers, and d3rlpy's count of gradient steps."""
        return {
            "modules": self._rest.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            "grad_step": self._algorithm.grad_step,
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        try:
            self._rest.load_state_dict(state["modules"])
            for name, optimizer in self._optimizers().items():
                optimizer.load_state_dict(state["optimizers"][name])
            self._algorithm.set_grad_step(state["grad_step"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError(f"This checkpoint does not fit {type(self.config).__name__}: {_brief(error)}. Resume it "
                             "with the settings that it was saved with, or start afresh.") from None  # fmt: skip

    def _optimizers(self) -> dict[str, Any]:
        modules = vars(self._algorithm.impl.modules)
        return {name: value for name, value in modules.items() if name.endswith("optim") and value is not None}

    @contextmanager
    def _own_randomness(self, step: int) -> Iterator[None]:
        """d3rlpy draws from torch's global generator: seed it by (seed, step), so that a resumed run draws the same."""
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(1_000_003 * self.seed + step)
            yield


class D3rlpyCritic(D3rlpyAgent):
    """TD3+BC, IQL or CQL, whose critic says what a page will bring.

    An item's transition is its own reward, then the state after its page, where one item's reward counts again: Q(s, i)
    is what one of a page's K slots brings in, now and later, so a page brings the sum over its slots,

        Σ_k Q(s, i_k) = Σ_k r_k + γ·(K·mean_k V(s′ | i_k)),    K·V = the return of a page

    exact where all pages fill as many slots and an item tells which state follows; else V(s′ | i) is the mean over the
    pages that showed i. With the action "slate_mean" a transition is a page and Q its return.
    """

    def __init__(self, config: _ActorCriticConfig, task: Task, seed: int) -> None:
        super().__init__(config, task, seed)
        self.discount = config.discount

    @torch.no_grad()
    def predicted_return(self, state: StateBatch, items: Tensor) -> Tensor:
        """The return [B] that the critic gives the pages ``items`` [B, K]; -1 is an empty slot."""
        observation, shown = self.encode(state), items >= 0
        known = items.clamp(min=0)
        if self.config.action == "slate_mean":
            page = self.actions.slate_mean(known, shown)[:, None]  # [B, 1, A]
            return self._q_values(observation, page)[:, 0]
        return (self._q_values(observation, self.actions.vectors[known]) * shown).sum(dim=1)


def to_mdp_dataset(
    batches: Iterable[TransitionBatch], sessions: Tensor, encoder: ObservationEncoder, actions: ItemActions
) -> Any:
    """The original rows as ``d3rlpy.dataset.MDPDataset``, one transition a page, for d3rlpy's own tools.

    ``sessions`` [R] numbers the session of every row of all batches, hindsight rows included; a session's original rows
    lie together and in order. Its end is a terminal, or a timeout where the length cap cut it: d3rlpy drops the last
    transition of such an episode, because it has no next observation. Raises DataError for rows out of order.
    """
    d3rlpy = import_d3rlpy()
    encoded, first = [], 0
    for batch in batches:
        index = sessions[first : first + len(batch)].to(batch.hindsight.device)
        first += len(batch)
        if len(index) < len(batch):
            raise DataError(f"sessions numbers {len(sessions)} rows, but the batches hold more. Number every row.")
        encoded.append(_encode_pages(batch[~batch.hindsight], index[~batch.hindsight], encoder, actions))
    if not encoded or first != len(sessions):
        raise DataError(f"sessions numbers {len(sessions)} rows, but the batches hold {first}. Number every row.")
    columns = {name: torch.cat([part[name] for part in encoded]).cpu() for name in encoded[0]}
    last = _last_rows(columns["session"], columns["terminated"])
    timeouts = last & columns["truncated"] & ~columns["terminated"]
    with redirect_stdout(io.StringIO()):  # d3rlpy reports the shapes that it found
        return d3rlpy.dataset.MDPDataset(
            observations=columns["observations"].numpy(),
            actions=columns["actions"].numpy(),
            rewards=columns["rewards"].numpy(),
            terminals=(last & ~timeouts).float().numpy(),
            timeouts=timeouts.float().numpy(),
            action_space=d3rlpy.ActionSpace.CONTINUOUS,
            action_size=actions.width,
        )


def _encode_pages(
    batch: TransitionBatch, session: Tensor, encoder: ObservationEncoder, actions: ItemActions
) -> dict[str, Tensor]:
    return {
        "observations": encoder(batch.state),  # [T, W]
        "actions": actions.slate_mean(batch.items, batch.mask),  # [T, A]
        "rewards": (batch.rewards * batch.mask).sum(dim=1),  # [T]
        "terminated": batch.terminated,
        "truncated": batch.truncated,
        "session": session,
    }


def _last_rows(session: Tensor, terminated: Tensor) -> Tensor:
    """Which rows [T] end their session."""
    last = torch.ones_like(terminated)
    last[:-1] = session[1:] != session[:-1]
    if (session[last].sort().values.diff() == 0).any():
        raise DataError("A session's rows do not lie together. Sort the transitions by session and step.")
    if (terminated & ~last).any():
        number = int(session[terminated & ~last][0])
        raise DataError(f"Session {number} goes on after its terminated row. Sort the transitions by session and step.")
    return last


def _torch_device(device: str) -> str:
    """d3rlpy wants the index of the device spelt out."""
    return device if ":" in device else f"{device}:0"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
