"""Tuning chooses by validation alone, gives every trial the same, and forgets none in the log."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluation.run import validate_settings
from pipeline.experiment import Experiment
from pipeline.training import Outcome
from pipeline.tuning import LogRow, trials, tried_settings, tune

SETTINGS = {"class": "models.gru4rec:GRU4RecConfig", "dropout": 0.1, "grid": {"width": [8, 16], "negatives": [0, 20]}}
SCORES = {(8, 0): 0.1, (8, 20): 0.4, (16, 0): 0.4, (16, 20): 0.3}


def trained(tried: list[dict[str, Any]]) -> list[tuple[Outcome, list[LogRow]]]:
    """Scores by the settings, as if each had been trained for 250 steps."""
    results = []
    for settings in tried:
        score = SCORES[settings["width"], settings["negatives"]]
        rows = [("gru4rec", 11, step, "loss", step * score) for step in (125, 250)]
        results.append((Outcome(11, 250, 125, score, 2.0, "gradient_steps"), rows))
    return results


def test_the_best_validation_score_chooses_and_the_earlier_trial_wins_a_draw() -> None:
    tuned = tune("gru4rec", SETTINGS, trained)
    assert tuned.settings == {"class": SETTINGS["class"], "dropout": 0.1, "width": 8, "negatives": 20}
    assert tried_settings("gru4rec", SETTINGS)[tuned.trial] == tuned.settings


def test_every_trial_is_trained_once_with_the_fixed_settings() -> None:
    seen: list[dict[str, Any]] = []

    def train(tried: list[dict[str, Any]]) -> list[tuple[Outcome, list[LogRow]]]:
        seen.extend(tried)
        return trained(tried)

    tune("gru4rec", SETTINGS, train)
    assert [(trial["width"], trial["negatives"]) for trial in seen] == [(8, 0), (8, 20), (16, 0), (16, 20)]
    assert all(trial["dropout"] == 0.1 and "grid" not in trial for trial in seen)


def test_the_log_holds_every_trial_with_what_it_cost() -> None:
    rows = tune("gru4rec", SETTINGS, trained).rows
    for (width, negatives), score in SCORES.items():
        label = f"trial width={width} negatives={negatives}"
        assert ("gru4rec", 11, 250, f"{label}: loss", 250 * score) in rows
        assert ("gru4rec", 11, 250, f"{label}: seconds", 2.0) in rows
        assert ("gru4rec", 11, 125, f"{label}: best_validation", score) in rows
    assert len(rows) == 4 * 4


def test_without_a_choice_nothing_is_trained() -> None:
    def refuse(tried: list[dict[str, Any]]) -> list[tuple[Outcome, list[LogRow]]]:
        raise AssertionError(tried)

    assert tune("iql", {"discount": 0.9}, refuse).settings == {"discount": 0.9}
    assert tune("iql", {"grid": {"discount": [0.9]}}, refuse).settings == {"discount": 0.9}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": {"width": 8}}, "must give each setting a list of values"),
        ({"grid": {"width": []}}, "must give each setting a list of values"),
        ({"grid": [8, 16]}, "must give each setting a list of values"),
        ({"grid": {"width": [8, 16]}, "width": 8}, "'width' is both set and in the grid"),
    ],
)
def test_a_grid_that_cannot_be_tried_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trials("gru4rec", settings)


def test_the_settings_of_every_trial_are_checked_before_anything_runs() -> None:
    document = {
        "name": "mine",
        "source": {"kind": "movielens"},
        "partitions": {"start": "1997-09-01", "end": "1998-05-01"},
    }
    agents: dict[str, Any] = {"popularity": {}, "iql": {"grid": {"expectile": [0.7, 0.9]}}}
    validate_settings(Experiment.model_validate(document | {"agents": agents}))
    for grid, message in (
        ({"expectile": [0.7, 1.5]}, r"agents\.iql: expectile = 1\.5"),
        ({"expectil": [0.7, 0.8]}, "agents.iql: unknown key 'expectil'; did you mean 'expectile'"),
    ):
        agents["iql"] = {"grid": grid}
        with pytest.raises(ConfigError, match=message):
            validate_settings(Experiment.model_validate(document | {"agents": agents}))


def test_an_agent_that_does_not_train_cannot_be_tuned() -> None:
    def untrained(tried: list[dict[str, Any]]) -> list[tuple[Outcome, list[LogRow]]]:
        return [(Outcome(11, 0, 0, float("nan"), 0.0, "nothing to train"), []) for _ in tried]

    with pytest.raises(ConfigError, match="nothing to train"):
        tune("random", {"grid": {"a": [1, 2]}}, untrained)
