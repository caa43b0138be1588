"""Experiment files: what they accept, and what they say when they do not."""

from pathlib import Path

import pytest
import yaml

from models import AGENTS
from pipeline.errors import ConfigError
from pipeline.experiment import EXPERIMENTS, PROFILES, load_experiment

SMALLEST = {
    "name": "mine",
    "source": {"kind": "movielens"},
    "partitions": {"start": "1997-09-01", "end": "1998-05-01"},
    "agents": {"popularity": {}},
}


def agents(**named: dict[str, object]) -> dict[str, object]:
    return {"agents": {"popularity": {}, **named}}


def written(folder: Path, document: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_loads_and_is_named_after_its_file(path: Path) -> None:
    experiment = load_experiment(path.stem)
    assert experiment.name == path.stem
    assert {experiment.agent_class(name) for name in experiment.agents} <= set(AGENTS.values())


def test_a_path_to_ones_own_file_works_and_raw_replaces_the_folder(tmp_path: Path) -> None:
    experiment = load_experiment(written(tmp_path, SMALLEST), raw="/logs")
    assert str(experiment.source.path) == "/logs"  # type: ignore[union-attr]


def test_a_profile_gives_the_budget_and_overrides_change_it(tmp_path: Path) -> None:
    document = SMALLEST | {"profile": "demo", "budget": {"gradient_steps": 7}}
    budget = load_experiment(written(tmp_path, document)).budgets()
    assert budget == PROFILES["demo"].model_copy(update={"gradient_steps": 7})


def test_an_agent_runs_under_a_name_of_its_own(tmp_path: Path) -> None:
    own = {"cold": {"agent": "iql"}, "iql_discount_0": {"agent": "iql", "discount": 0}, "mine": {"class": "a.b:C"}}
    experiment = load_experiment(written(tmp_path, SMALLEST | agents(**own)))
    assert {name: experiment.agent_class(name) for name in experiment.agents} == {
        "popularity": AGENTS["popularity"],
        "cold": AGENTS["iql"],
        "iql_discount_0": AGENTS["iql"],
        "mine": "a.b:C",
    }


def test_the_greedy_ranker_takes_the_user_model_that_it_names_or_the_first_of_the_train_side(tmp_path: Path) -> None:
    sides = {"simulators": {"train": {"feedback": {}, "rnn": {}}, "judge": {"attention": {}}}}
    named = {"greedy_rnn": {"agent": "greedy_simulator", "simulator": "rnn"}, "greedy_simulator": {}, "iql": {}}
    experiment = load_experiment(written(tmp_path, SMALLEST | sides | agents(**named)))
    found = {name: experiment.simulator_of(name) for name in experiment.agents}
    assert found == {"popularity": None, "greedy_rnn": "rnn", "greedy_simulator": "feedback", "iql": None}


BAD = [
    ({"sede": [1]}, "unknown key 'sede'; did you mean 'seeds'"),
    ({"sessions": {"gap_minuets": 5}}, "unknown key 'sessions.gap_minuets'; did you mean 'gap_minutes'"),
    ({"source": {"kind": "movielens", "pth": "x"}}, "did you mean 'path'"),
    ({"source": {"kind": "netflix"}}, "source"),
    ({"agents": {"goalrec": {}, "popularity": {}}}, "'goalrec' is not a known agent; did you mean 'goalrec_off'"),
    (agents(mine={"agent": "iqll"}), "agents.mine.agent: 'iqll' is not a known agent; did you mean 'iql'"),
    (agents(mine={"agent": "iql", "class": "a:B"}), "agents.mine: both agent and class are given"),
    (agents(iql_discount_0={"agent": "iql"}), "agents.iql_discount_0: the name promises the discount 0"),
    (agents(iql_discount_0={"agent": "iql", "discount": 0.5}), "add discount: 0 or rename it"),
    (agents(greedy_simulator={"simulator": "attention"}), "'attention' is on the judge's side, so it would know"),
    (agents(greedy_simulator={"user_model": {}}), "greedy_simulator.user_model: the fitted user model says that"),
    (agents(greedy_simulator={"simulator": "rn"}), "agents.greedy_simulator.simulator: 'rn' is not a user model of"),
    (agents(iql={"grid": {"decode": "actor"}}), "agents.iql.grid: {'decode': 'actor'} must give each setting a list"),
    (
        agents(iql={"grid": {"expectile": [0.7, 0.9]}}, cql={"grid": {"target_rate": [0.1, 0.2, 0.3]}}),
        "their grids have unequal numbers of trials (cql 3, iql 2); tuning budgets must be equal",
    ),
    ({"simulators": {"train": {"rn": {}}}}, "did you mean 'rnn'"),
    ({"simulators": {"judge": {}}}, "simulators.judge is empty; name at least one of"),
    ({"simulators": {"rnn": {}}}, "unknown key 'simulators.rnn'"),
    ({"simulators": {"train": {"attention": {}}}}, "'attention' is on both sides; give the judge another architecture"),
    ({"simulators": {"judge": {"mine": {"class": "models.simulators.rnn:RNNConfig"}}}}, "is the class on both sides"),
    ({"simulators": {"judge": {"storefront": {}}}}, "'storefront' is not fitted on a log; name one of"),
    ({"simulators": {"members": 2}}, "simulators.members = 2"),
    ({"gate": {"max_length_ks": 2}}, "gate.max_length_ks = 2"),
    ({"rollouts": {"pool": 4}}, "rollouts.pool: 4 candidates cannot fill a page of 10"),
    ({"rollouts": {"sessions": ["endless"]}}, "rollouts.sessions.0 = 'endless'"),
    ({"reference": "random"}, "'random' is not among the agents"),
    ({"splits": {"validation": 0.9, "test": 0.8}}, "need 0 < validation < test < 1, got 0.9 and 0.8"),
    ({"splits": {"validation": 0.5, "test": "2024-01-01"}}, "both cut-offs as shares or both as instants"),
    ({"partitions": {"start": "1998-01-01", "end": "1998-01-01"}}, "partitions.end must come after its start"),
    ({"partitions": {"start": "1998-01-15", "end": "1998-05-01", "grain": "month"}}, "is inside a month"),
    ({"budget": {"steps": 3}}, "unknown key 'steps'"),
    ({"name": "Mine!"}, "name = 'Mine!'"),
    ({"agents": None}, "agents"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_experiment_is_refused_with_the_key_and_the_remedy(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment(written(tmp_path, SMALLEST | change))
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)


FILES = [
    ("[1, 2", "is not valid YAML"),
    ("just text", "must hold keys and values"),
    ("", "must hold keys and values"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(written(tmp_path, text))


def test_unknown_names_and_missing_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="There is no experiment 'demmo'; did you mean 'demo'"):
        load_experiment("demmo")
    with pytest.raises(ConfigError, match="Cannot read the experiment file"):
        load_experiment("/nowhere/mine.yaml")


def test_the_storefront_takes_no_raw_files() -> None:
    with pytest.raises(ConfigError, match="the storefront makes its own log"):
        load_experiment("demo", raw="/logs")
