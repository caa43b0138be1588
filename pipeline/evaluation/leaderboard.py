"""The leaderboard: one row an agent × leg × setting × metric, each with its interval and its paired difference.

Seeds are averaged within a session first, so the interval speaks of users alone; ``seed_sd`` is the other variance.
Differences to the reference are taken session by session; their p-values are Holm-adjusted over the agents of a
leg, setting and metric. Rows of no value (a metric that is null everywhere) stay, with n = 0.
"""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from pipeline.evaluation.significance import cluster_bootstraps, holm, paired_differences
from pipeline.experiment import Budget
from pipeline.schemas import RERANK_METRICS, ROLLOUT_METRICS, SCHEMAS

COLUMNS = SCHEMAS["leaderboard"].names
PROVENANCE = COLUMNS[COLUMNS.index("p_value") + 1 :]


def leaderboard(
    rerank: pa.Table, rollout: pa.Table, reference: str, budget: Budget, provenance: Mapping[str, str], seed: int = 0
) -> pa.Table:
    """The table ``leaderboard`` from the tables ``rerank`` and ``rollout``.

    ``reference`` is the agent that the others are compared with; where a setting lacks it, the differences are null.
    ``provenance`` fills the columns ``PROVENANCE``. ``budget.bootstrap`` resamples are drawn for intervals and tests.
    """
    legs = (
        ("rerank", rerank.to_pandas().rename(columns={"session_id": "unit", "mode": "setting"}), RERANK_METRICS),
        # A roll-out has one episode a user and seed, so the user is the unit.
        ("rollout", rollout.to_pandas().assign(unit=lambda rows: rows["user_key"]), ROLLOUT_METRICS),
    )
    settings = [
        _setting(rows, list(metrics), reference, budget.bootstrap, seed).assign(leg=leg, setting=setting)
        for leg, table, metrics in legs
        for setting, rows in table.groupby("setting")
    ]
    board = pd.concat(settings) if settings else pd.DataFrame(columns=COLUMNS)
    board = board.assign(**{name: provenance[name] for name in PROVENANCE})
    return pa.Table.from_pandas(board[COLUMNS], SCHEMAS["leaderboard"], preserve_index=False).replace_schema_metadata()


def _setting(rows: pd.DataFrame, metrics: list[str], reference: str, resamples: int, seed: int) -> pd.DataFrame:
    """All agents in one setting of one leg."""
    agents = {str(agent): group for agent, group in rows.groupby("agent")}
    # Sessions without a metric, and with them users who have no other, are no part of what is resampled.
    units = {a: group.groupby(["unit", "user_key"])[metrics].mean().dropna(how="all") for a, group in agents.items()}
    board = pd.concat([_agent(agents[agent], units[agent], resamples, seed).assign(agent=agent) for agent in agents])
    others = [agent for agent in agents if agent != reference] if reference in agents else []
    differences = [
        _difference(units[agent], units[reference], resamples, seed).assign(agent=agent, against=reference)
        for agent in others
    ]
    columns = ["agent", "metric", "against", "difference", "difference_low", "difference_high", "p_value"]
    paired = pd.concat(differences) if differences else pd.DataFrame(columns=columns)
    paired["p_value"] = paired.groupby("metric")["p_value"].transform(holm)
    return board.merge(paired, on=["agent", "metric"], how="left", validate="one_to_one")


def _agent(rows: pd.DataFrame, units: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """One agent, by metric: the mean over the units [S, M], its interval, and the spread of the seeds' means."""
    metrics, users = units.columns, units.index.get_level_values("user_key")
    intervals = cluster_bootstraps(units.to_numpy(), users, resamples, seed)
    seeds = rows.groupby("seed")[list(metrics)].mean()  # [seeds, M]
    return pd.DataFrame(
        {
            "metric": metrics,
            "value": [interval.mean for interval in intervals],
            "ci_low": [interval.low for interval in intervals],
            "ci_high": [interval.high for interval in intervals],
            "n": units.notna().sum().to_numpy(),
            "users": units.notna().groupby(users).any().sum().to_numpy(),
            "seeds": len(seeds),
            "seed_sd": seeds.std().to_numpy(),  # null for a single seed
        }
    )


def _difference(units: pd.DataFrame, reference: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """The differences to the reference on the units that both have, by metric; p-values not yet adjusted."""
    a, b = units.align(reference, join="inner", axis=0)
    users = a.index.get_level_values("user_key")
    differences = paired_differences(a.to_numpy(), b.to_numpy(), users, resamples, seed)
    return pd.DataFrame(
        {
            "metric": units.columns,
            "difference": [difference.mean for difference in differences],
            "difference_low": [difference.low for difference in differences],
            "difference_high": [difference.high for difference in differences],
            "p_value": [difference.p_value for difference in differences],
        }
    )
