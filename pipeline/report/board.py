"""The leaderboard as reports read it: one column a leg, setting and metric; agents from best to worst."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any, NamedTuple

import pyarrow as pa

LEGS = {
    "rollout": "Roll-outs in a user model",
    "rerank": "Re-ranking of logged test sessions",
    "ope": "Off-policy evaluation from the log alone",
}
MAIN_METRIC = {"rollout": "return", "rerank": "ndcg_reward_20", "ope": "value"}
ROLES = {  # rankers that are there to be compared with, and what they may see
    "random": "floor",
    "logged_order": "the log's own order",
    "logging": "the ranker that made the log",
    "ideal": "ceiling: sees the labels",
    "oracle_myopic": "sees the truth, next page only",
    "oracle_farsighted": "sees the truth, looks ahead",
}
_ESTIMATORS = {"sips": "SIPS", "iips": "IIPS", "rips": "RIPS", "cascade_dr": "cascade-DR", "ips": "IPS", "dr": "DR",
               "pdis": "PDIS", "wis": "WIS", "fqe": "FQE"}  # fmt: skip
_NAMES = {"ndcg_reward_20": "NDCG@20", "map": "MAP", "auc": "AUC", "oneshot": "one-shot"}


class Column(NamedTuple):
    leg: str
    setting: str
    metric: str

    @property
    def label(self) -> str:
        if self.leg == "rollout" and self.metric == "return":
            return "True value" if self.setting == "truth" else f"Return in {world(self.setting)}"
        if self.leg == "ope":
            return f"OPE, {estimator_name(self.setting.rpartition('/')[2])}"
        return f"{metric_name(self.metric)}, {_NAMES.get(self.setting, self.setting)}"


class Estimate(NamedTuple):
    agent: str
    value: float
    low: float | None
    high: float | None
    n: int
    seeds: int
    against: str | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_value: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Agreement:
    """Kendall's τ-b between two columns over the agents that both know."""

    first: Column
    second: Column
    tau: float | None  # None: fewer than three agents in common, or one column all tied
    p_value: float | None
    n: int


class Board:
    """Look-ups in a table with the columns of ``leaderboard`` (or of the query of that name)."""

    def __init__(self, leaderboard: pa.Table) -> None:
        rows = leaderboard.to_pylist()
        self._estimates = {
            (row["agent"], Column(row["leg"], row["setting"], row["metric"])): _estimate(row)
            for row in rows
            if _number(row["value"]) is not None
        }
        self.every_column = sorted({column for _, column in self._estimates}, key=_column_order)
        self.columns = [column for column in self.every_column if _is_headline(column)]
        self.agents = sorted({agent for agent, _ in self._estimates}, key=self._best_first)
        references = {row["against"] for row in rows if row["against"]}
        self.reference = min(references, default=None)

    def get(self, agent: str, column: Column) -> Estimate | None:
        return self._estimates.get((agent, column))

    def column(self, column: Column) -> list[Estimate]:
        """The estimates of a column, best first."""
        found = [estimate for agent in self.agents if (estimate := self.get(agent, column))]
        return sorted(found, key=lambda estimate: (-estimate.value, estimate.agent))

    def main_columns(self, leg: str | None = None) -> list[Column]:
        """The columns of each leg's main metric."""
        return [c for c in self.columns if c.metric == MAIN_METRIC[c.leg] and leg in {None, c.leg}]

    def agreements(self) -> list[Agreement]:
        """Kendall's τ between every two main columns."""
        return [self._agreement(a, b) for a, b in combinations(self.main_columns(), 2)]

    def disagreements(self, first: Column, second: Column) -> list[tuple[str, str]]:
        """Pairs (x, y): ``first`` puts x above y, ``second`` y above x, and the intervals are apart in both."""
        shared = [agent for agent in self.agents if self.get(agent, first) and self.get(agent, second)]
        found = []
        for x, y in combinations(shared, 2):
            order = (self._order(x, y, first), self._order(x, y, second))
            if order == (1, -1):
                found.append((x, y))
            elif order == (-1, 1):
                found.append((y, x))
        return found

    def _agreement(self, first: Column, second: Column) -> Agreement:
        from scipy.stats import kendalltau

        pairs = [(a.value, b.value) for x in self.agents if (a := self.get(x, first)) and (b := self.get(x, second))]
        if len(pairs) < 3:
            return Agreement(first, second, None, None, len(pairs))
        tau, p_value = kendalltau(*zip(*pairs, strict=True))
        return Agreement(first, second, _number(tau), _number(p_value), len(pairs))

    def _order(self, x: str, y: str, column: Column) -> int:
        """1 if x is above y with intervals apart, -1 if below, 0 if they overlap or one is missing."""
        a, b = self._estimates[x, column].interval, self._estimates[y, column].interval
        if a is None or b is None:
            return 0
        return int(a[0] > b[1]) - int(b[0] > a[1])

    def _best_first(self, agent: str) -> tuple[Any, ...]:
        found = (self.get(agent, column) for column in self.columns)
        return (*(-estimate.value if estimate else float("inf") for estimate in found), agent)


def world(setting: str) -> str:
    """The setting of a roll-out in words: ``judge/attention/short`` is "attention, short sessions"."""
    side, _, rest = setting.partition("/")
    model, _, sessions = rest.partition("/")
    if not sessions:
        return setting
    kind = "" if sessions == "natural" else f", {sessions.replace('_', ' ')} sessions"
    return f"{model}{' (train side)' if side == 'train' else ''}{kind}"


def metric_name(metric: str) -> str:
    """A metric as people read it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def estimator_name(name: str) -> str:
    """An off-policy estimator as people read it: ``sn_iips`` is "self-normalised IIPS"."""
    kind = name.removeprefix("sn_")
    return f"{'self-normalised ' if kind != name else ''}{_ESTIMATORS.get(kind, kind.replace('_', ' '))}"


def judges(setting: str) -> bool:
    """Whether roll-outs there count: the storefront's truth, and natural sessions with a user model that judges."""
    return setting == "truth" or (setting.startswith("judge/") and setting.endswith("/natural"))


def role(agent: str, reference: str | None) -> str:
    """What an agent is there for, empty for one that is on trial."""
    return "reference" if agent == reference else ROLES.get(agent, "")


def names(values: Iterable[str], limit: int = 20) -> str:
    """``a, b and c``."""
    listed: Sequence[str] = list(values)
    if len(listed) > limit:
        listed = [*listed[:limit], f"{len(listed) - limit} more"]
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1]])) if listed else "none"


def _is_headline(column: Column) -> bool:
    if column.leg == "rollout":
        # What an agent may have been tuned against is no headline, nor are sessions of a made-up length.
        return column.metric == "return" and judges(column.setting)
    return column.metric == MAIN_METRIC.get(column.leg) or (column.leg, column.metric) == ("rerank", "map")


def _column_order(column: Column) -> tuple[Any, ...]:
    legs = ("rollout", "ope", "rerank")
    leg = legs.index(column.leg) if column.leg in legs else len(legs)
    is_main = column.metric == MAIN_METRIC.get(column.leg)
    first = column.setting in {"truth", "paged"}
    return (leg, not is_main, column.metric, not first, column.setting)


def _estimate(row: dict[str, Any]) -> Estimate:
    return Estimate(
        agent=row["agent"],
        value=float(row["value"]),
        low=_number(row["ci_low"]),
        high=_number(row["ci_high"]),
        n=row["n"] or 0,
        seeds=row["seeds"] or 0,
        against=row["against"],
        difference=_number(row["difference"]),
        difference_low=_number(row["difference_low"]),
        difference_high=_number(row["difference_high"]),
        p_value=_number(row["p_value"]),
    )


def _number(value: Any) -> float | None:
    """None for null and for not-a-number alike."""
    return float(value) if value is not None and isfinite(value) else None
