"""What changed from one run to another in the main figures of every agent.

Where both runs saw the same log, a figure is compared on the sessions (or users) that both have: the mean difference,
its bootstrap interval clustered by user, and a sign-flip test. Otherwise only the two figures with their intervals are
left, and the difference has the interval of Zou and Donner (Statistics in Medicine 2008, "MOVER") with the p of the
normal approximation. All p are Holm-adjusted over the whole page.
"""

from dataclasses import dataclass, replace
from math import hypot, isclose, isfinite, nan
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.evaluation.significance import holm, paired_differences
from pipeline.report.board import Board, Column, Estimate
from pipeline.report.runs import Run
from pipeline.results import query, read

SIGNIFICANCE = 0.05
ROUNDING = 1e-9  # below which a difference comes from the order of additions, not from the run
HALF_WIDTH = 1.959964  # of a 95 % interval, in standard errors


class Delta(NamedTuple):
    """The later value minus the earlier one. ``n`` sessions or users are in both runs; 0 where nothing was paired."""

    mean: float
    low: float
    high: float
    p_value: float
    n: int = 0


@dataclass(frozen=True)
class Change:
    """One figure in both runs."""

    agent: str
    column: Column
    before: Estimate
    after: Estimate
    delta: Delta
    p_adjusted: float = nan

    @property
    def significant(self) -> bool:
        return self.p_adjusted < SIGNIFICANCE

    @property
    def identical(self) -> bool:
        """The same but for rounding, session by session."""
        return isclose(self.before.value, self.after.value, rel_tol=ROUNDING) and self.delta[:3] == (0, 0, 0)


def same_log(before: Run, after: Run) -> bool:
    """Whether the runs share a raw file, so that an equal user or session is the same one."""
    first, second = (set(read(run.results, "manifest")["hash"].to_pylist()) for run in (before, after))
    return bool(first & second)


def changed_figures(before: Run, after: Run, resamples: int = 10_000, seed: int = 0) -> list[Change]:
    """Every main figure that both runs have, in the order of the later one's leaderboard."""
    old, new = (Board(read(run.results, "leaderboard")) for run in (before, after))
    pairs, found = same_log(before, after), []
    for column in new.main_columns():
        paired = _paired(before, after, column, resamples, seed) if pairs else {}
        for agent in new.agents:
            first, second = old.get(agent, column), new.get(agent, column)
            if first and second:
                delta = paired.get(agent) or unpaired(first, second)
                found.append(Change(agent, column, first, second, delta))
    adjusted = holm([change.delta.p_value for change in found])
    return [replace(change, p_adjusted=float(p)) for change, p in zip(found, adjusted, strict=True)]


def unpaired(before: Estimate, after: Estimate) -> Delta:
    """From the two values and their 95 % intervals alone, as if the runs were independent."""
    mean = after.value - before.value
    if before.interval is None or after.interval is None:
        return Delta(mean, nan, nan, nan)
    low = mean - hypot(after.value - after.interval[0], before.interval[1] - before.value)
    high = mean + hypot(after.interval[1] - after.value, before.value - before.interval[0])
    return Delta(mean, low, high, _two_sided(mean, (high - low) / (2 * HALF_WIDTH)))


def _paired(before: Run, after: Run, column: Column, resamples: int, seed: int) -> dict[str, Delta]:
    """By agent, of those with a session or user in both runs."""
    old, new = (_units(run, column) for run in (before, after))
    old, new = old.align(new, join="inner")  # [units, agents]; NaN where an agent has no such unit
    shared = (old.notna() & new.notna()).sum()
    agents = [agent for agent in old.columns if shared[agent]]
    if not agents:
        return {}
    users = old.index.get_level_values("user_key")
    first, second = old[agents].to_numpy(), new[agents].to_numpy()
    second = np.where(np.isclose(second, first, ROUNDING, ROUNDING), first, second)  # else rounding is significant
    deltas = paired_differences(second, first, users, resamples, seed)
    return {
        agent: Delta(delta.mean, delta.low, delta.high, delta.p_value, int(shared[agent]))
        for agent, delta in zip(agents, deltas, strict=True)
    }


def _units(run: Run, column: Column) -> pd.DataFrame:
    """The values of a column [units, agents]; none for a leg that is no mean over sessions or users."""
    scores = query(run.results, "column_scores", column._asdict()).to_pandas()
    units: pd.DataFrame = scores.pivot(index=["unit", "user_key"], columns="agent", values="value")
    return units


def _two_sided(mean: float, error: float) -> float:
    from scipy.stats import norm

    return float(2 * norm.sf(abs(mean) / error)) if isfinite(error) and error > 0 else nan
