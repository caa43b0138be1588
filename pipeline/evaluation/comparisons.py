"""The paired comparisons that verdicts rest on: every RL agent against its controls, wherever it was evaluated.

An agent is on trial as RL where the experiment also has it with the future removed, as ``<agent>_discount_0``. Its
controls are that twin, the supervised rankers, the greedy ranker on the train side's user model, and the reference.
Seeds are averaged within a session or user first, so the intervals speak of users; beside them stands the range of the
seeds' own differences. p-values are Holm-adjusted within two families: ``rl_helps``, all that the rule reads (twins and
supervised rankers, in every world that judges), and ``beside_it``, the rest.
"""

from collections.abc import Collection
from math import ceil
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.evaluation.significance import holm, paired_differences
from pipeline.experiment import MYOPIC, RANKS_BY_A_USER_MODEL
from pipeline.report.board import MAIN_METRIC, judges
from pipeline.schemas import SCHEMAS

SUPERVISED = ("gru4rec", "sasrec", "lambdamart", "bc")
RULE = "rl_helps"  # the family of what the rule reads
SIGNIFICANCE = 0.05
PRECISION = 20  # the smallest adjusted p-value that can be found is this many times below SIGNIFICANCE


class Pair(NamedTuple):
    agent: str
    against: str
    control: str  # what the other is there for


def on_trial(agents: Collection[str]) -> list[str]:
    """The RL agents: those that are there with and without a future."""
    return sorted(agent for agent in agents if agent + MYOPIC in agents)


def pairs(agents: Collection[str], reference: str) -> list[Pair]:
    """Whom each RL agent is compared with, of those that are there."""
    roles = [*((name, "supervised") for name in SUPERVISED), (RANKS_BY_A_USER_MODEL, RANKS_BY_A_USER_MODEL),
             (reference, "reference")]  # fmt: skip
    return [
        Pair(agent, other, control)
        for agent in on_trial(agents)
        for other, control in [(agent + MYOPIC, "discount_0"), *roles]
        if other in agents and other != agent
    ]


def comparisons(rerank: pa.Table, rollout: pa.Table, reference: str, resamples: int, seed: int = 0) -> pa.Table:
    """The table ``comparisons`` from the tables ``rerank`` and ``rollout``.

    At least ``resamples`` are drawn, and so many that the smallest possible p-value, adjusted over all comparisons, is
    a twentieth of the level: with fewer, some families could never have a significant row.
    """
    episodes = rollout.to_pandas().assign(unit=lambda rows: rows["user_key"])
    legs = {"rerank": rerank.to_pandas().rename(columns={"session_id": "unit", "mode": "setting"}),
            "rollout": episodes[episodes["setting"].isin(filter(judges, episodes["setting"].unique()))]}  # fmt: skip
    compared = [
        (leg, setting, rows, pairs(set(rows["agent"]), reference))
        for leg, table in legs.items()
        for setting, rows in table.dropna(subset=MAIN_METRIC[leg]).groupby("setting")
    ]
    resamples = max(resamples, ceil(PRECISION * sum(len(found) for *_, found in compared) / SIGNIFICANCE))
    tables = [
        _compared(rows, MAIN_METRIC[leg], found, resamples, seed).assign(
            leg=leg, setting=setting, metric=MAIN_METRIC[leg], family=[_family(leg, pair) for pair in found]
        )
        for leg, setting, rows, found in compared
        if found
    ]
    schema = SCHEMAS["comparisons"]
    if not tables:
        return schema.empty_table()
    table = pd.concat(tables)
    table["p_adjusted"] = table.groupby("family")["p_value"].transform(holm)
    return pa.Table.from_pandas(table[schema.names], schema, preserve_index=False).replace_schema_metadata()


def _family(leg: str, pair: Pair) -> str:
    return RULE if leg == "rollout" and pair.control in {"discount_0", "supervised"} else "beside_it"


def _compared(rows: pd.DataFrame, metric: str, found: list[Pair], resamples: int, seed: int) -> pd.DataFrame:
    """One row a pair, in one world; p-values not yet adjusted. All pairs see the same resamples of users."""
    values = rows.pivot_table(metric, ["unit", "user_key"], ["agent", "seed"])  # [units, agents × seeds]
    means = values.T.groupby(level="agent").mean().T  # [units, agents]
    first, second = (means[[getattr(pair, side) for pair in found]].to_numpy() for side in ("agent", "against"))
    users = means.index.get_level_values("user_key")
    both = ~np.isnan(first - second)  # [units, pairs]
    differences = paired_differences(first, second, users, resamples, seed)
    spreads = [_spread(values, pair) for pair in found]
    return pd.DataFrame(found).assign(
        value=pd.DataFrame(first).where(both).mean(),
        against_value=pd.DataFrame(second).where(both).mean(),
        difference=[d.mean for d in differences],
        difference_low=[d.low for d in differences],
        difference_high=[d.high for d in differences],
        effect_size=[d.effect_size for d in differences],
        share_better=[d.share_better for d in differences],
        p_value=[d.p_value for d in differences],
        n=both.sum(axis=0),
        users=[len(np.unique(users[column])) for column in both.T],
        seeds=[len(spread) for spread in spreads],
        seed_low=[min(spread) for spread in spreads],
        seed_high=[max(spread) for spread in spreads],
    )


def _spread(values: pd.DataFrame, pair: Pair) -> list[float]:
    """The difference that each seed of the agent finds: to the control's same seed, or to the mean of its seeds."""
    agents = values.columns.get_level_values("agent")
    ours, theirs = (values.loc[:, agents == name].droplevel("agent", axis="columns") for name in pair[:2])
    mean = theirs.mean(axis="columns")
    return [float((ours[seed] - theirs.get(seed, mean)).mean()) for seed in ours.columns]
