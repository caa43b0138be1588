"""The training loop: its budget, its resume, its early stopping, and what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
import torch
from safetensors.torch import load_file

from models import AGENTS
from models.goalrec import GoalRec
from models.greedy_simulator import GreedySimulator
from pipeline import training
from pipeline.artifacts import load_agent
from pipeline.errors import ConfigError, StorageError
from pipeline.experiment import Experiment
from pipeline.plan import STEPS
from pipeline.simulation import load_simulator
from pipeline.task import load_task
from pipeline.training import train_agent
from pipeline.warehouse import read_table, write_parquet
from tests.conftest import Run


def inputs(tiny: Run) -> dict[str, list[Path]]:
    return {table: tiny.plan.store.files(table) for table in STEPS["agents"].inputs}


def with_budget(tiny: Run, **budget: float) -> Experiment:
    document = tiny.experiment.model_dump(mode="json")
    return Experiment.model_validate(document | {"budget": document["budget"] | budget})


def with_grid(tiny: Run, name: str, grid: dict[str, list[Any]], **budget: float) -> Experiment:
    return with_budget(tiny, **budget).model_copy(update={"agents": {name: {"grid": grid}}, "seeds": (11, 13)})


def train(tiny: Run, experiment: Experiment, folder: Path, name: str = "goalrec_off") -> Any:
    return train_agent(name, AGENTS[name], experiment, inputs(tiny), folder / "work", folder / "out")


def chosen(folder: Path, seed: int) -> Any:
    return json.loads((folder / "out" / f"seed-{seed}" / "config.json").read_text())["settings"]


def weights(folder: Path, seed: int = 11) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / f"seed-{seed}" / "weights.safetensors")


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a test replaces is replaced where agents are trained."""
    monkeypatch.setattr(training, "in_processes", lambda function, runs, *given, **named: [*map(function, runs)])


def widths_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The width of GoalRec's GRU at every gradient step from now on."""
    seen: list[int] = []
    update = GoalRec.update

    def seeing(self: GoalRec, batch: Any) -> dict[str, float]:
        seen.append(self.config.gru)
        return update(self, batch)

    monkeypatch.setattr(GoalRec, "update", seeing)
    return seen


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


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
    scores = [
        read_table([tmp_path / run / "out" / training.SCORES], "validation_scores") for run in ("whole", "killed")
    ]
    assert scores[0].equals(scores[1])
    assert set(scores[0]["step"].to_pylist()) == {2, 4, 6}


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
    monkeypatch.setattr(training, "validation_scores", lambda *given: np.array([next(scores)] * len(given[-1])))
    experiment = with_budget(tiny, gradient_steps=100, validate_every=2, patience=3)
    (outcome,) = train(tiny, experiment, tmp_path)
    assert (outcome.stopped_by, outcome.best_step, outcome.validation, outcome.steps) == ("patience", 4, 0.9, 10)
    monkeypatch.setattr(training, "validation_scores", lambda *given: np.ones(len(given[-1])))
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


@pytest.mark.parametrize("best", [0, 1])
def test_the_trial_that_validates_best_gives_every_seed_its_settings(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    """Whatever its losses are: the score here knows nothing but the width."""
    widths = [4, 8]
    in_this_process(monkeypatch)

    def scores(agent: Any, config: Any, task: Any, sessions: Any) -> Any:
        return np.full(len(sessions), float(config.gru == widths[best]))

    monkeypatch.setattr(training, "validation_scores", scores)
    experiment = with_grid(tiny, "goalrec_off", {"gru": widths}, gradient_steps=2, validate_every=2)
    outcomes = train(tiny, experiment, tmp_path)
    assert [(outcome.seed, outcome.validation) for outcome in outcomes] == [(11, 1.0), (13, 1.0)]
    assert [chosen(tmp_path, seed)["gru"] for seed in (11, 13)] == [widths[best]] * 2
    log = read_table([tmp_path / "out" / "training_log.parquet"], "training_log").to_pandas()
    tried = log[log["metric"].str.endswith(": best_validation")].set_index("metric")["value"].to_dict()
    assert tried == {f"trial gru={width}: best_validation": float(n == best) for n, width in enumerate(widths)}
    scores = read_table([tmp_path / "out" / training.SCORES], "validation_scores").to_pandas()
    of_trials = scores.groupby(scores["trial"].fillna("none"))["value"].mean().to_dict()
    assert of_trials == {"none": 1.0} | {f"gru={width}": float(n == best) for n, width in enumerate(widths)}
    assert set(scores.loc[scores["trial"].isna(), "seed"]) == {11, 13}
    alone = experiment.model_copy(update={"agents": {"goalrec_off": {"gru": widths[best]}}})
    train(tiny, alone, tmp_path / "alone")
    assert all(same(weights(tmp_path, seed), weights(tmp_path / "alone", seed)) for seed in (11, 13))


def test_every_trial_has_the_budget_of_a_training_and_the_chosen_one_is_not_trained_again(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    seen = widths_trained(monkeypatch)
    train(tiny, with_grid(tiny, "goalrec_off", {"gru": [4, 8, 12]}, gradient_steps=2, validate_every=2), tmp_path)
    best = chosen(tmp_path, 11)["gru"]
    assert sorted(seen) == sorted([4, 4, 8, 8, 12, 12, best, best])  # three trials, and the second seed


def test_tuning_never_reads_the_test_window(tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    experiment = with_grid(tiny, "lambdamart", {"leaves": [3, 7]}, gradient_steps=4, validate_every=2)
    candidates = read_table(tiny.plan.store.files("candidates"), "candidates")
    is_test = pa.compute.equal(candidates["split"], "test")
    assert pa.compute.any(is_test).as_py()
    write_parquet(
        tmp_path / "candidates.parquet", "candidates", candidates.filter(pa.compute.invert(is_test)).to_batches()
    )
    for folder, files in (("with", {}), ("without", {"candidates": [tmp_path / "candidates.parquet"]})):
        given = {**inputs(tiny), **files}
        train_agent(
            "lambdamart", AGENTS["lambdamart"], experiment, given, tmp_path / folder / "w", tmp_path / folder / "out"
        )
    assert chosen(tmp_path / "with", 11) == chosen(tmp_path / "without", 11)
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))


def test_a_killed_tuning_goes_on_with_the_trials_that_are_left(
    tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = with_grid(tiny, "goalrec_off", {"gru": [4, 8]}, gradient_steps=2, validate_every=2)
    in_this_process(monkeypatch)
    train(tiny, experiment, tmp_path / "whole")
    score = training.validation_scores

    def killed(agent: Any, config: Any, *given: Any) -> Any:
        if config.gru == 8:
            raise KilledError
        return score(agent, config, *given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "validation_scores", killed)
        with pytest.raises(KilledError):
            train(tiny, experiment, tmp_path / "killed")
    seen = widths_trained(monkeypatch)
    train(tiny, experiment, tmp_path / "killed")
    assert seen[:2] == [8, 8]  # the first trial was done
    assert all(same(weights(tmp_path / "whole", seed), weights(tmp_path / "killed", seed)) for seed in (11, 13))


def test_the_greedy_ranker_comes_back_with_the_acting_member_of_its_user_model(tiny: Run) -> None:
    folder = tiny.plan.store.require("agents", "greedy_simulator").folder
    assert [path.name for path in folder.glob("seed-*")] == ["seed-11"]  # it learns nothing, so one seed
    task = load_task(inputs(tiny), tiny.experiment)
    agent, config, _ = load_agent(folder / "seed-11", task)
    simulator = load_simulator(tiny.plan.store, "rnn", tiny.experiment, task)
    assert config.model_dump()["simulator"] == "rnn" == tiny.experiment.simulator_of("greedy_simulator")
    assert isinstance(agent, GreedySimulator)
    assert same(agent.state_dict(), simulator.model.state_dict())
    assert not same(agent.state_dict(), simulator.members[1].state_dict())


def test_the_greedy_ranker_is_made_anew_when_its_user_model_is_and_no_other_agent(tiny: Run) -> None:
    plan = tiny.plan
    inputs = plan.recipe("agents", "greedy_simulator")["inputs"]
    assert inputs["simulators/rnn"] == plan.fingerprint("simulators", "rnn")
    read = {source.split("/")[0] for name in AGENTS if name != "greedy_simulator"
            for source in plan.recipe("agents", name)["inputs"]}  # fmt: skip
    assert "simulators" not in read


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
