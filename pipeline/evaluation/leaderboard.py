"""The leaderboard: one row an agent × leg × setting × metric, each with its interval and its paired difference.

Seeds are averaged within a session first, so the interval speaks of users alone; ``seed_sd`` is the other variance.
Differences to the reference are taken session by session; their p-values are Holm-adjusted over the agents of a
leg, setting and metric. Rows of no value (a metric that is null everywhere) stay, with n = 0.

The sessions of a leg are read agent by agent: no more than those of two agents in one setting are in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa

from pipeline.evaluation.significance import cluster_bootstraps, holm, paired_differences
from pipeline.schemas import RERANK_METRICS, ROLLOUT_METRICS, SCHEMAS
from pipeline.warehouse import connect, quote, run_sql

COLUMNS = SCHEMAS["leaderboard"].names
PROVENANCE = COLUMNS[COLUMNS.index("p_value") + 1 :]
DIFFERENCE = ["agent", "metric", "against", "difference", "difference_low", "difference_high", "p_value"]
LEGS = {  # leg → what its table calls the setting and the unit that is resampled with its user, and its metrics
    "rerank": ("mode", "session_id", RERANK_METRICS),
    "rollout": ("setting", "user_key", ROLLOUT_METRICS),  # one episode a user and seed, so the user is the unit
}


def leaderboard(legs: Sequence[pd.DataFrame], provenance: Mapping[str, str]) -> pa.Table:
    """The table ``leaderboard`` from the rows of its legs; ``provenance`` fills the columns ``PROVENANCE``."""
    board = pd.concat([leg for leg in legs if len(leg)] or [pd.DataFrame(columns=COLUMNS)])
    board = board.assign(**{name: provenance[name] for name in PROVENANCE})
    return pa.Table.from_pandas(board[COLUMNS], SCHEMAS["leaderboard"], preserve_index=False).replace_schema_metadata()


def leg_rows(leg: str, files: Sequence[Path], reference: str, resamples: int, seed: int = 0) -> pd.DataFrame:
    """The leaderboard's rows of ``rerank`` or ``rollout``, from the Parquet files of that table.

    ``reference`` is the agent that the others are compared with; where a setting lacks it, the differences are null.
    ``resamples`` are drawn for intervals and tests.
    """
    with measured(leg, files) as con:
        seeds = run_sql(con, "staging/leaderboard_seeds").df().set_index(["agent", "seed"])
        settings = [
            _setting(con, str(setting), means.drop(columns="setting"), reference, resamples, seed)
            for setting, means in seeds.groupby("setting")
        ]
    return pd.concat(settings).assign(leg=leg) if settings else pd.DataFrame(columns=COLUMNS)


@contextmanager
def measured(leg: str, files: Sequence[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the rows of a leg as the view ``measured``: setting, agent, seed, unit, user_key, metrics."""
    setting, unit, metrics = LEGS[leg]
    with connect({leg: files}) as con:
        con.execute("set threads = 1")  # with more, sums of floats differ in their last bits from run to run
        columns = ", ".join(map(quote, metrics))
        con.execute(
            f"create view measured as "
            f"select {setting} as setting, agent, seed, {unit} as unit, user_key, {columns} from {quote(leg)}"
        )
        yield con


def unit_means(con: duckdb.DuckDBPyConnection, setting: str, agent: str) -> pd.DataFrame:
    """The metrics of an agent's sessions, averaged over seeds: a row a unit, indexed by ``unit`` and ``user_key``.

    Sessions without a metric, and with them users who have no other, are no part of what is resampled.
    """
    rows: pd.DataFrame = run_sql(con, "staging/leaderboard_units", {"setting": setting, "agent": agent}).df()
    return rows.set_index(["unit", "user_key"]).dropna(how="all")


def _setting(
    con: duckdb.DuckDBPyConnection, setting: str, seeds: pd.DataFrame, reference: str, resamples: int, seed: int
) -> pd.DataFrame:
    """All agents in one setting of one leg; ``seeds`` has the means of each agent and seed."""
    agents = {str(agent): means for agent, means in seeds.groupby("agent")}
    against = unit_means(con, setting, reference) if reference in agents else None
    found, differences = [], []
    for agent, means in agents.items():
        units = against if against is not None and agent == reference else unit_means(con, setting, agent)
        found.append(_agent(units, means, resamples, seed).assign(agent=agent))
        if against is not None and agent != reference:
            difference = _difference(units, against, resamples, seed)
            differences.append(difference.assign(agent=agent, against=reference))
    paired = pd.concat(differences) if differences else pd.DataFrame(columns=DIFFERENCE)
    paired["p_value"] = paired.groupby("metric")["p_value"].transform(holm)
    board = pd.concat(found).merge(paired, on=["agent", "metric"], how="left", validate="one_to_one")
    return board.assign(setting=setting)


def _agent(units: pd.DataFrame, seeds: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """One agent, by metric: the mean over the units [S, M], its interval, and the spread of the seeds' means."""
    metrics, users = units.columns, units.index.get_level_values("user_key")
    intervals = cluster_bootstraps(units.to_numpy(), users, resamples, seed)
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
