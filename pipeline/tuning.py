"""The settings of an agent, chosen on validation only: every trial has the budget of a training and is logged.

In an experiment, ``gru4rec: {grid: {learning_rate: [0.001, 0.003], negatives: [20, 100]}}`` trains four trials with the
first seed; the settings of the best validation score are those with which all seeds are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.training import Outcome

GRID = "grid"  # the key of an agent's settings that is the tuner's
LogRow = tuple[str, int, int, str, float]  # of training_log: agent, seed, step, metric, value
Train = Callable[[list[dict[str, Any]]], "list[tuple[Outcome, list[LogRow]]]"]  # settings of each trial → its outcome


@dataclass(frozen=True)
class Tuned:
    """The settings of the best trial, without the grid, which one it was, and what is to be logged of all of them."""

    settings: dict[str, Any]
    trial: int
    rows: list[LogRow]


def trials(name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each trial sets, the last key of the grid fastest; one trial that sets nothing where there is no grid.

    Raises ConfigError for a grid that is no mapping of settings to lists of values.
    """
    grid = settings.get(GRID, {})
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"agents.{name}.{GRID}: {grid!r} must give each setting a list of values to try, as in "
                          "{learning_rate: [0.001, 0.003]}.")  # fmt: skip
    if both := sorted(set(grid) & set(settings)):
        raise ConfigError(f"agents.{name}: {both[0]!r} is both set and in the {GRID}; leave one of them out.")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def tried_settings(name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The whole settings of each trial, without the grid."""
    fixed = {key: value for key, value in settings.items() if key != GRID}
    return [{**fixed, **trial} for trial in trials(name, settings)]


def label(trial: Mapping[str, Any]) -> str:
    """How a trial is named in the log: ``learning_rate=0.001 negatives=20``."""
    return " ".join(f"{key}={value}" for key, value in trial.items())


def tune(name: str, settings: Mapping[str, Any], train: Train) -> Tuned:
    """Train all trials of the grid and choose by validation; the earlier one wins a draw."""
    tried = tried_settings(name, settings)
    if len(tried) == 1:
        return Tuned(tried[0], 0, [])
    results = train(tried)
    scores = [outcome.validation for outcome, _ in results]
    if any(math.isnan(score) for score in scores):
        raise ConfigError(f"agents.{name}: it has nothing to train, so its {GRID} chooses nothing; leave it out.")
    rows: list[LogRow] = []
    for trial, (outcome, logged) in zip(trials(name, settings), results, strict=True):
        about = f"trial {label(trial)}"
        rows += [(agent, seed, step, f"{about}: {metric}", value) for agent, seed, step, metric, value in logged]
        rows.append((name, outcome.seed, outcome.steps, f"{about}: seconds", outcome.seconds))
        rows.append((name, outcome.seed, outcome.best_step, f"{about}: best_validation", outcome.validation))
    best = scores.index(max(scores))
    return Tuned(tried[best], best, rows)
