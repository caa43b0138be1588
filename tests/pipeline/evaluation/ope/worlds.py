"""Small worlds whose values are known exactly, and their logs: sampled, or every outcome once with its probability."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.ope.logged import Floats, Ints, LoggedSlates, LoggedSteps, LoggedTrajectories


def draw(chances: Floats, rng: np.random.Generator) -> Ints:
    """One outcome a row of the distributions [n, A]."""
    return np.minimum((chances.cumsum(axis=1) < rng.random(len(chances))[:, None]).sum(axis=1), chances.shape[1] - 1)


def softmax(logits: Floats) -> Floats:
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return chances / chances.sum(axis=-1, keepdims=True)


class Bandit:
    """3 contexts, 4 actions, Bernoulli rewards; a user has one context and a luck of his own."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.contexts = np.array([0.5, 0.3, 0.2])
        self.behaviour = softmax(rng.normal(size=(3, 4)))
        self.target = softmax(rng.normal(size=(3, 4)))
        self.mean = rng.uniform(0.2, 0.8, (3, 4))
        self.value = float((self.contexts[:, None] * self.target * self.mean).sum())

    def log(self, users: int, each: int, seed: int, q: Floats | None = None) -> LoggedSteps:
        return self.log_of(users, each, seed, q)[0]

    def log_of(self, users: int, each: int, seed: int, q: Floats | None = None) -> tuple[LoggedSteps, Ints, Ints]:
        """The log with the context and the action of each row."""
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(users), each)
        x = rng.choice(3, users, p=self.contexts)[user]
        luck = rng.choice([-0.2, 0.2], users)[user]
        a = draw(self.behaviour[x], rng)
        reward = (rng.random(len(x)) < self.mean[x, a] + luck).astype(float)
        return self.logged(x, a, reward, user, q), x, a

    def logged(self, x: Ints, a: Ints, reward: Floats, user: Ints, q: Floats | None = None) -> LoggedSteps:
        q = self.mean if q is None else q
        v = (self.target * q).sum(axis=1)
        return LoggedSteps(reward, self.behaviour[x, a], self.target[x, a], user, q[x, a], v[x])

    def enumerated(self, q: Floats, believed: Floats) -> LoggedSteps:
        """Each (context, action) once, with its probability in the rewards: means over rows are expectations.

        ``q`` [3, 4] is the model and ``believed`` [3, 4] the behaviour policy that the estimator is told of.
        """
        x, a = (cell.ravel() for cell in np.indices((3, 4)))
        chance = 12 * self.contexts[x] * self.behaviour[x, a]
        v = (self.target * q).sum(axis=1)
        return LoggedSteps(
            chance * self.mean[x, a], believed[x, a], self.target[x, a], np.arange(12), chance * q[x, a], chance * v[x]
        )


PAGES = np.array(list(itertools.permutations(range(4), 2)))  # [12, 2] all pages of 2 of 4 items
Rewards = Callable[[int, int], tuple[float, float]]


def plackett_luce(logits: Floats) -> Floats:
    """The conditional propensities of each slot of all PAGES, [12, 2], by the definition."""
    rates = np.exp(logits)
    return np.array([[rates[a] / rates.sum(), rates[b] / (rates.sum() - rates[a])] for a, b in PAGES])


def slot_marginals(conditional: Floats) -> Floats:
    """P(item in slot) [2, 4] by summing over all pages."""
    chance = conditional.prod(axis=1)
    return np.array([[chance[PAGES[:, slot] == item].sum() for item in range(4)] for slot in range(2)])


@dataclass(frozen=True)
class Slates:
    """Pages of 2 of 4 items, one context; ``rewards(above, below)`` are the expected rewards of the two slots."""

    rewards: Rewards
    behaviour: Floats
    target: Floats

    @classmethod
    def make(cls, rewards: Rewards, seed: int = 0) -> "Slates":
        rng = np.random.default_rng(seed)
        return cls(rewards, plackett_luce(rng.normal(size=4)), plackett_luce(rng.normal(size=4)))

    @property
    def table(self) -> Floats:
        return np.array([self.rewards(a, b) for a, b in PAGES])  # [12, 2]

    @property
    def value(self) -> float:
        return float((self.target.prod(axis=1) * self.table.sum(axis=1)).sum())

    def second_moment(self) -> Floats:
        shown = np.zeros((12, 8))
        shown[np.arange(12)[:, None], PAGES + np.array([0, 4])] = 1
        return np.einsum("p,pi,pj->ij", self.behaviour.prod(axis=1), shown, shown)

    def logged(
        self, page: Ints, reward: Floats, user: Ints, scale: Floats | float = 1.0, **more: Floats
    ) -> LoggedSlates:
        """The log of the pages numbered ``page`` [n]; ``scale`` multiplies what the model expects, too."""
        q, v = self.expectations()
        behaviour, target = (slot_marginals(x)[np.arange(2), PAGES[page]] for x in (self.behaviour, self.target))
        model = {"q_logged": q[page] * scale, "v_target": v[page] * scale} | more
        return LoggedSlates(
            reward,
            self.behaviour[page],
            self.target[page],
            np.ones((len(page), 2), bool),
            user,
            behaviour,
            target,
            **model,
        )

    def expectations(self) -> tuple[Floats, Floats]:
        """q_k(a_1..a_k), the rewards from slot k on, and its mean v_k over the target, [12, 2] each."""
        q, v = self.table, np.empty((12, 2))
        for page, (above, _) in enumerate(PAGES):
            same = PAGES[:, 0] == above
            v[page, 1] = (self.target[same, 1] * self.table[same, 1]).sum()
        q[:, 0] += v[:, 1]
        v[:, 0] = (self.target.prod(axis=1) * self.table.sum(axis=1)).sum()
        return q, v

    def enumerated(self, **more: Floats) -> LoggedSlates:
        chance = 12 * self.behaviour.prod(axis=1, keepdims=True)  # [12, 1]
        return self.logged(np.arange(12), self.table * chance, np.arange(12), chance, **more)

    def log(self, n: int, seed: int) -> LoggedSlates:
        """Bernoulli rewards; each user sees two pages."""
        rng = np.random.default_rng(seed)
        page = rng.choice(12, n, p=self.behaviour.prod(axis=1))
        reward = (rng.random((n, 2)) < self.table[page]).astype(float)
        return self.logged(page, reward, np.arange(n) // 2)


@dataclass(frozen=True)
class Sessions:
    """2 states, 2 actions, an end after each step with a chance, 4 steps at most; the step is part of the state."""

    behaviour: Floats  # [2, 2] of actions
    target: Floats
    mean: Floats  # [2, 2] reward of state and action
    moves: Floats  # [2, 2, 3] to state 0, state 1, or the end
    discount: float = 0.9
    horizon: int = 4

    @classmethod
    def make(cls, seed: int = 0) -> "Sessions":
        rng = np.random.default_rng(seed)
        behaviour, target, moves = (softmax(rng.normal(size=shape)) for shape in ((2, 2), (2, 2), (2, 2, 3)))
        return cls(behaviour, target, rng.uniform(0.1, 0.9, (2, 2)), moves)

    def action_values(self) -> Floats:
        """Q of the target policy, [horizon, 2, 2], by backward induction."""
        q = np.zeros((self.horizon + 1, 2, 2))
        for step in reversed(range(self.horizon)):
            later = (self.target * q[step + 1]).sum(axis=1)
            q[step] = self.mean + self.discount * self.moves[:, :, :2] @ later
        return q[:-1]

    @property
    def value(self) -> float:
        return float((self.target * self.action_values()[0]).sum(axis=1).mean())  # either state starts

    def paths(self) -> Iterator[tuple[float, list[tuple[int, int]]]]:
        """Each path of (state, action) with its probability under the behaviour policy."""

        def walk(
            chance: float, path: list[tuple[int, int]], state: int
        ) -> Iterator[tuple[float, list[tuple[int, int]]]]:
            for action in range(2):
                here, so_far = chance * self.behaviour[state, action], [*path, (state, action)]
                ends = 1.0 if len(so_far) == self.horizon else self.moves[state, action, 2]
                yield here * ends, so_far
                if ends < 1:
                    for after in range(2):
                        yield from walk(here * self.moves[state, action, after], so_far, after)

        for start in range(2):
            yield from walk(0.5, [], start)

    def enumerated(self, q: Floats, believed: Floats) -> LoggedTrajectories:
        """Every path once, with its probability in rewards and model."""
        paths = list(self.paths())
        lengths = [len(path) for _, path in paths]
        scale = np.repeat([len(paths) * chance for chance, _ in paths], lengths)
        state, action = np.concatenate([np.asarray(path) for _, path in paths]).T
        session, step = np.repeat(np.arange(len(paths)), lengths), np.concatenate([np.arange(n) for n in lengths])
        return self._logged(session, step, state, action, scale * self.mean[state, action], q, believed, scale)

    def log(self, n: int, seed: int, q: Floats | None = None) -> LoggedTrajectories:
        """n sessions with Bernoulli rewards; each user has two."""
        rng = np.random.default_rng(seed)
        state, visits = rng.integers(2, size=n), []
        for _ in range(self.horizon):
            there = np.minimum(state, 1)
            action = draw(self.behaviour[there], rng)
            visits.append((state, action))
            state = np.where(state < 2, draw(self.moves[there, action], rng), 2)
        states, actions = np.stack(visits, axis=2)  # [n, horizon] each
        session, step = np.nonzero(states < 2)
        state, action = states[session, step], actions[session, step]
        reward = (rng.random(len(state)) < self.mean[state, action]).astype(float)
        q = self.action_values() if q is None else q
        return self._logged(session, step, state, action, reward, q, self.behaviour)

    def _logged(
        self, session: Ints, step: Ints, state: Ints, action: Ints, reward: Floats, q: Floats, believed: Floats,
        scale: Floats | float = 1.0,
    ) -> LoggedTrajectories:  # fmt: skip
        v = (self.target * q).sum(axis=2)
        cell = (step * 2 + state) * 2
        features = np.eye(4 * self.horizon)
        expected = self.target[state, :1] * features[cell] + self.target[state, 1:] * features[cell + 1]
        return LoggedTrajectories(
            session, step, reward, believed[state, action], self.target[state, action], session // 2,
            scale * q[step, state, action], scale * v[step, state], features[cell + action], expected,
        )  # fmt: skip
