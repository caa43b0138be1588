"""The training loop: its budget, its resume, its early stopping, and what it leaves behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import AGENTS
from pipeline import training
from pipeline.artifacts import load_agent
from pipeline.errors import ConfigError, StorageError
from pipeline.experiment import Experiment
from pipeline.plan import STEPS
from pipeline.task import load_task
from pipeline.training import train_agent
from pipeline.warehouse import read_table
from tests.conftest import Run


def inputs(tiny: Run) -> dict[str, list[Path]]:
    return {table: tiny.plan.store.files(table) for table in STEPS["agents"].inputs}


def with_budget(tiny: Run, **budget: float) -> Experiment:
    document = tiny.experiment.model_dump(mode="json")
    return Experiment.model_validate(document | {"budget": document["budget"] | budget})


def train(tiny: Run, experiment: Experiment, folder: Path, name: str = "goalrec_off") -> Any:
    return train_agent(name, AGENTS[name], experiment, inputs(tiny), folder / "work", folder / "out")


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", ["goalrec_off", "deeppage_off", "iql"])
def test_a_killed_training_goes_on_where_it_was(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment = with_budget(tiny, gradient_steps=6, validate_every=2)
    train(tiny, experiment, tmp_path / "whole", name)

    save = training.save_checkpoint

    def save_and_die(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if state["step"] == 4:
            raise KilledError

    monkeypatch.setattr(training, "save_checkpoint", save_and_die)
    with pytest.raises(KilledError):
        train(tiny, experiment, tmp_path / "killed", name)
    monkeypatch.setattr(training, "save_checkpoint", save)
    (outcome,) = train(tiny, experiment, tmp_path / "killed", name)
    assert outcome.steps == 6
    weights = [load_file(tmp_path / run / "out" / "seed-11" / "weights.safetensors") for run in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    logs = [
        read_table([tmp_path / run / "out" / "training_log.parquet"], "training_log") for run in ("whole", "killed")
    ]
    assert logs[0].equals(logs[1])


def test_the_budget_is_kept(tiny: Run, tmp_path: Path) -> None:
    (outcome,) = train(tiny, with_budget(tiny, gradient_steps=5), tmp_path)
    assert (outcome.steps, outcome.stopped_by) == (5, "gradient_steps")
    (outcome,) = train(tiny, with_budget(tiny, gradient_steps=1000, max_seconds=1e-3), tmp_path / "short")
    assert outcome.stopped_by == "max_seconds"
    assert outcome.steps < 1000


def test_training_stops_when_validation_gains_nothing_and_the_best_weights_are_kept(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.1, 0.2, 0.3, 0.4, 0.4])
    monkeypatch.setattr(training, "validation_score", lambda *given: next(scores))
    experiment = with_budget(tiny, gradient_steps=100, validate_every=2, patience=3)
    (outcome,) = train(tiny, experiment, tmp_path)
    assert (outcome.stopped_by, outcome.best_step, outcome.validation, outcome.steps) == ("patience", 4, 0.9, 10)
    monkeypatch.setattr(training, "validation_score", lambda *given: 1.0)
    train(tiny, with_budget(tiny, gradient_steps=4, validate_every=4), tmp_path / "four")
    best, four = (load_file(tmp_path / run / "out" / "seed-11" / "weights.safetensors") for run in ("", "four"))
    assert all(torch.equal(best[key], four[key]) for key in best)


def test_the_log_tells_losses_and_the_validation_metric_by_step(tiny: Run, tmp_path: Path) -> None:
    train(tiny, with_budget(tiny, gradient_steps=4, validate_every=2), tmp_path)
    log = read_table([tmp_path / "out" / "training_log.parquet"], "training_log").to_pandas()
    assert set(log["agent"]) == {"goalrec_off"}
    assert sorted(log.loc[log["metric"] == "validation_ndcg_reward_20", "step"]) == [2, 4]
    assert {"loss"} < set(log["metric"])


def test_an_agent_comes_back_from_its_folder_as_it_was(tiny: Run) -> None:
    task = load_task(inputs(tiny), tiny.experiment)
    folder = tiny.plan.store.require("agents", "goalrec_off").folder / "seed-11"
    agent, config, seed = load_agent(folder, task)
    assert seed == 11
    assert type(config).__name__ == "GoalRecConfig"
    weights = load_file(folder / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in agent.state_dict().items())  # type: ignore[attr-defined]


def test_two_seeds_are_two_processes_and_each_is_what_it_is_alone(tiny: Run, tmp_path: Path) -> None:
    two = with_budget(tiny, gradient_steps=2).model_copy(update={"seeds": (11, 13)})
    assert [outcome.seed for outcome in train(tiny, two, tmp_path / "two")] == [11, 13]
    train(tiny, two.model_copy(update={"seeds": (13,)}), tmp_path / "one")
    a, b = (load_file(tmp_path / run / "out" / "seed-13" / "weights.safetensors") for run in ("two", "one"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_no_published_file_holds_a_pickle(tiny: Run) -> None:
    files = [path for path in (tiny.plan.store.root / "agents").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".parquet"}
    assert not (tiny.plan.store.root / "work").exists() or not list((tiny.plan.store.root / "work").rglob("*.pt"))


def test_an_agent_of_ones_own_is_named_in_the_experiment(tiny: Run, tmp_path: Path) -> None:
    target = "models.heuristics:PopularityConfig"
    experiment = tiny.experiment.model_copy(update={"agents": {"mine": {"class": target}}})
    (outcome,) = train_agent("mine", target, experiment, inputs(tiny), tmp_path / "work", tmp_path / "out")
    assert outcome.stopped_by == "nothing to train"


@pytest.mark.parametrize("target", ["models.nothing:Config", "models.heuristics:Nothing", "models.heuristics"])
def test_a_class_that_is_not_there_is_refused(tiny: Run, tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=r"agents\.mine: cannot load"):
        train_agent("mine", target, tiny.experiment.model_copy(update={"agents": {"mine": {}}}), {}, tmp_path, tmp_path)


def test_a_missing_run_folder_says_what_to_do(tiny: Run, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Materialize its asset first"):
        load_agent(tmp_path, load_task(inputs(tiny), tiny.experiment))


def test_cuda_without_a_device_is_refused(tiny: Run) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    experiment = tiny.experiment.model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        load_task(inputs(tiny), experiment)
