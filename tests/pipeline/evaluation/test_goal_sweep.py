"""The goal sweep: which goals, on whom, and that it is the trained model that ranks under them."""

import json
from itertools import combinations
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from models.goalrec import GoalRecConfig, reward_goal
from pipeline.evaluation.goal_sweep import REPORTED, TRAINED, SeedRun, goals, sweep
from pipeline.evaluation.run import AgentRun
from pipeline.task import TASK_TABLES, load_task
from pipeline.warehouse import read_table
from tests.conftest import Run
from tests.models.builders import make_task


@pytest.fixture(scope="module")
def swept(tiny: Run) -> pd.DataFrame:
    return read_table(tiny.plan.store.files("goal_sweep"), "goal_sweep").to_pandas()


def test_the_goals_are_all_combinations_of_clicks_purchases_and_depth() -> None:
    wishes = ("clicks", "purchases", "depth")
    assert list(goals(make_task())) == [" + ".join(found) for size in (1, 2, 3) for found in combinations(wishes, size)]


def test_what_is_wished_for_together_counts_alike_to_the_model() -> None:
    task = make_task()
    agent = GoalRecConfig(gru=4, state_width=8).build(task, 11)
    measured = {"clicks": "clicks", "purchases": "purchases", "depth": "steps"}
    for goal, weights in goals(task).items():
        expected = torch.tensor(
            [float(name in map(measured.get, goal.split(" + "))) for name in task.measurement_names]
        )
        torch.testing.assert_close(agent.with_goal(weights).goal, expected / expected.norm())


def test_the_trained_goal_is_the_agent_of_leg_two_and_the_others_are_not(tiny: Run, swept: pd.DataFrame) -> None:
    rollout = read_table(tiny.plan.store.files("rollout"), "rollout").to_pandas()
    keys = ["setting", "agent", "seed", "user_key"]
    own = rollout[rollout["agent"] == "goalrec_off"].set_index(keys)[list(REPORTED)].sort_index()
    by_goal = {goal: rows.set_index(keys)[list(REPORTED)].sort_index() for goal, rows in swept.groupby("goal")}
    pd.testing.assert_frame_equal(by_goal.pop(TRAINED), own)
    assert by_goal.keys() == goals(make_task()).keys()
    for goal, values in by_goal.items():
        assert values.index.equals(own.index), goal
        assert not values.equals(own), goal


def test_the_weights_are_those_of_the_measurements(tiny: Run, swept: pd.DataFrame) -> None:
    task = load_task(inputs(tiny), tiny.experiment)
    written = {goal: json.loads(weights) for goal, weights in swept.groupby("goal")["weights"].unique().str[0].items()}
    assert written == {TRAINED: reward_goal(task.rewards), **goals(task)}
    assert (swept.groupby("goal")["weights"].nunique() == 1).all()


def test_only_agents_with_goals_are_swept_and_no_judge_that_failed_its_gate_is_asked(swept: pd.DataFrame) -> None:
    assert set(swept["agent"]) == {"goalrec_off"}
    assert set(swept["setting"]) == {"truth"}


def test_a_judge_that_passed_answers_in_natural_sessions(tiny: Run) -> None:
    store, budget = tiny.plan.store, {**tiny.experiment.budget, "rollout_users": 12}
    folder = store.require("agents", "goalrec_off").folder
    run = AgentRun(
        name="goalrec_off",
        folder=folder,
        experiment=tiny.experiment.model_copy(update={"budget": budget}),
        inputs=inputs(tiny),
        outs={},
        store=store,
        simulators=("attention",),  # as if it had
    )
    rows = pa.Table.from_batches(sweep(SeedRun(run, folder / "seed-11"))).to_pandas()
    judged = rows[rows["setting"] == "judge/attention/natural"]
    assert set(rows["setting"]) == {"truth", "judge/attention/natural"}
    assert (judged.groupby("goal")["user_key"].nunique() == 12).all()
    assert len(judged.groupby("goal")[list(REPORTED)].mean().drop_duplicates()) > 4  # goals matter there, too
    assert not judged[list(REPORTED)].isna().any().any()


def inputs(tiny: Run) -> dict[str, list[Path]]:
    return {table: tiny.plan.store.files(table) for table in ("impressions", "sessions", *TASK_TABLES)}
