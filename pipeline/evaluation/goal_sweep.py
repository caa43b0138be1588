"""One trained model under a grid of goals: GoalRec's point, that another wish needs no other training.

Every agent that ranks by a goal is rolled out under its own and under each combination of clicks, purchases and depth,
in the storefront's truth and in each judge that passed its gate. All goals meet the same users with the same luck, the
first users of leg 2: the episodes of all other rankers, in ``rollout``, stand beside these, and the query ``pareto``
joins them. (In the truth, luck is drawn for all users at once, so leg 2 has another one where it has more users.)
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from models.base import Agent, AgentConfig, StateBatch, Task
from models.goalrec import reward_goal
from pipeline.artifacts import load_agent
from pipeline.evaluation.rollout import roll_out
from pipeline.evaluation.run import AgentRun, agent_runs, next_session, seed_folders, shop_vocabulary
from pipeline.evaluation.truth import Values, true_value
from pipeline.plan import Job
from pipeline.schemas import SCHEMAS
from pipeline.simulation import Simulator, failed_criteria, load_simulator
from pipeline.source_settings import StorefrontSource
from pipeline.sources.storefront import load_truth
from pipeline.task import TASK_TABLES, load_task
from pipeline.warehouse import write_parquet
from pipeline.workers import in_processes

USERS = 400  # at most: a grid costs as many roll-outs as it has goals
WISHES = {"clicks": "clicks", "purchases": "purchases", "depth": "steps"}  # what may be wished for → its measurement
TRAINED = "as trained"
REPORTED = ("return", "clicks", "purchases", "depth")


@runtime_checkable
class GoalAgent(Agent, Protocol):
    """A ranker that can be asked for something else."""

    def with_goal(self, goal: Mapping[str, float]) -> Agent: ...


@dataclass(frozen=True)
class SeedRun:
    """One seed of one agent: what a worker process needs."""

    agent: AgentRun
    folder: Path


def sweep_goals(job: Job) -> None:
    """Write ``goal_sweep``; no rows where no agent has goals, and none in a judge that failed its gate."""
    experiment, failed = job.experiment, failed_criteria(job.files("simulator_gate"))
    judges = tuple(name for name in experiment.simulators.judge if not failed[name])
    tables = ("impressions", "sessions", *TASK_TABLES)
    runs = agent_runs(job, (), tables, sorted(experiment.agents))
    task = load_task(runs[0].inputs, experiment)
    sweeps = [
        SeedRun(replace(run, simulators=judges), folder)
        for run in runs
        if isinstance(load_agent(seed_folders(run)[0], task)[0], GoalAgent)
        for folder in seed_folders(run)
    ]
    batches = in_processes(sweep, sweeps, experiment.device)
    write_parquet(job.out("goal_sweep"), "goal_sweep", chain.from_iterable(batches))


def goals(task: Task) -> dict[str, dict[str, float]]:
    """Raw weights for each combination of wishes: equal ones in units of each measurement's training deviation."""
    deviation = dict(zip(task.measurement_names, task.measurement_scale.tolist(), strict=True))
    wishes = chain.from_iterable(combinations(WISHES.items(), size) for size in range(1, len(WISHES) + 1))
    return {
        " + ".join(wish for wish, _ in wished): {name: 1 / deviation[name] for _, name in wished} for wished in wishes
    }


def sweep(run: SeedRun) -> list[pa.RecordBatch]:
    """The episodes of one trained model under every goal, in every world."""
    torch.set_num_threads(1)
    task = load_task(run.agent.inputs, run.agent.experiment)
    agent, config, seed = load_agent(run.folder, task)
    assert isinstance(agent, GoalAgent)
    trained = getattr(config, "goal", None) or reward_goal(task.rewards)
    rankers: dict[str, tuple[Mapping[str, float], Agent]] = {TRAINED: (trained, agent)}
    rankers |= {goal: (weights, agent.with_goal(weights)) for goal, weights in goals(task).items()}
    users, start = next_session(run.agent, task)
    first = slice(0, min(USERS, run.agent.experiment.budgets().rollout_users))  # of the users of leg 2
    users, start = users[first], start[first]
    found = []
    pairs = list(product(_worlds(run.agent, task, users, start), rankers.items()))
    for (setting, play), (goal, (weights, ranker)) in tqdm(
        pairs, f"{run.agent.name} seed {seed} under goals", unit="goal", leave=False, disable=None
    ):
        values = play(ranker, config)
        labels = {"setting": setting, "agent": run.agent.name, "seed": seed, "goal": goal,
                  "weights": json.dumps(weights)}  # fmt: skip
        columns: dict[str, Any] = {name: [value] * len(users) for name, value in labels.items()}
        columns |= {"user_key": users.numpy(), **{name: values[name] for name in REPORTED}}
        found.append(pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["goal_sweep"]))
    return found


def _worlds(
    run: AgentRun, task: Task, users: Tensor, start: StateBatch
) -> Iterator[tuple[str, Callable[[Agent, AgentConfig], Values]]]:
    """Each world's name and what each user has in it with a ranker."""
    experiment, luck = run.experiment, run.experiment.seeds[0]
    if isinstance(experiment.source, StorefrontSource):
        shop, population = load_truth(experiment.source, run.store.root / "raw")
        population, vocabulary = population[: len(users)], shop_vocabulary(run, shop.config.n_items)

        def truth(agent: Agent, config: AgentConfig) -> Values:
            return true_value(agent, config, task, shop, population, start, users, vocabulary, luck)

        yield "truth", truth
    for name in run.simulators:
        simulator = load_simulator(run.store, name, experiment, task)

        def simulated(agent: Agent, config: AgentConfig, simulator: Simulator = simulator) -> Values:
            return roll_out(agent, task, simulator, "natural", experiment.rollouts, start, users, luck).values

        yield f"{simulator.side}/{name}/natural", simulated
