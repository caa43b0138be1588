"""Running the legs: every agent and seed of an experiment, in processes, from run folders to published tables."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from models.base import StateBatch, Task
from models.feedback import FIRST_POSITIVE
from pipeline.artifacts import agent_config, load_agent
from pipeline.evaluation.rerank import MODES, ranking_table, rerank, session_table
from pipeline.evaluation.sessions import iter_sessions
from pipeline.experiment import Experiment
from pipeline.plan import PRODUCTION, Job
from pipeline.schemas import SCHEMAS
from pipeline.simulation import failed_criteria, load_simulator, simulator_config
from pipeline.source_settings import StorefrontSource
from pipeline.storage import Store
from pipeline.task import TASK_TABLES, load_task
from pipeline.trajectories import feedback_codes, pad_left, ragged
from pipeline.tuning import tried_settings
from pipeline.warehouse import connect, read_table, run_sql, write_parquet
from pipeline.workers import in_processes

if TYPE_CHECKING:
    from pipeline.evaluation.truth import Values


@dataclass(frozen=True)
class AgentRun:
    """One agent to evaluate, all of its seeds: what a worker process needs."""

    name: str
    folder: Path | None  # the published agent; None for the ranker that made the log
    experiment: Experiment
    inputs: dict[str, list[Path]]
    outs: dict[str, Path]  # table → Parquet file to write
    store: Store
    simulators: tuple[str, ...] = ()  # that passed their gate


def rerank_agents(job: Job) -> None:
    """Leg 1 of the job's agents: ``rankings`` and ``rerank``; no rows for an agent that cannot re-rank a log."""
    runs = agent_runs(job, ("rankings", "rerank"), ("candidates", *TASK_TABLES))
    in_processes(_rerank_agent, runs, job.experiment.device)


def roll_out_agents(job: Job) -> None:
    """Leg 2 of the job's agents: ``rollout`` and ``coverage``; no rows for a simulator that failed its gate."""
    passed = tuple(name for name, why in failed_criteria(job.files("simulator_gate")).items() if not why)
    tables = ("impressions", "sessions", *TASK_TABLES)
    runs = [replace(run, simulators=passed) for run in agent_runs(job, ("rollout",), tables)]
    in_processes(_roll_out_agent, runs, job.experiment.device)


def agent_runs(
    job: Job, tables: tuple[str, ...], inputs: tuple[str, ...], names: Iterable[str] | None = None
) -> list[AgentRun]:
    """What worker processes need of each agent: those of the job's parts, or of ``names``."""
    store = job.plan.store
    files = {table: store.files(table) for table in inputs}
    return [
        AgentRun(
            name=name,
            folder=None if name == PRODUCTION else store.require("agents", name).folder,
            experiment=job.experiment,
            inputs=files,
            outs={table: job.out(table, name) for table in tables},
            store=store,
        )
        for name in (job.parts if names is None else names)
    ]


def seed_folders(run: AgentRun) -> list[Path]:
    """The run folders of the agent's seeds, in the order of the seeds."""
    if run.folder is None:
        return []
    return sorted(run.folder.glob("seed-*"), key=lambda folder: int(folder.name.removeprefix("seed-")))


def _rerank_agent(run: AgentRun) -> None:
    torch.set_num_threads(1)
    task = load_task(run.inputs, run.experiment)
    with (
        pq.ParquetWriter(run.outs["rankings"], SCHEMAS["rankings"], compression="zstd") as rankings,
        pq.ParquetWriter(run.outs["rerank"], SCHEMAS["rerank"], compression="zstd") as sessions_out,
    ):
        for folder in seed_folders(run):
            agent, config, seed = load_agent(folder, task)
            if "rerank" not in config.legs:
                continue
            for mode in MODES:
                for sessions in iter_sessions(run.inputs["candidates"], "test", task, run.experiment.history):
                    ranked = rerank(agent, config, task, sessions, mode)
                    rankings.write_table(ranking_table(sessions, ranked, run.name, seed))
                    sessions_out.write_table(session_table(sessions, ranked, run.name, seed))


def _roll_out_agent(run: AgentRun) -> None:
    torch.set_num_threads(1)
    covered: list[dict[str, Any]] = []
    write_parquet(run.outs["rollout"], "rollout", chain(_true_values(run), _simulated(run, covered)))
    table = pa.Table.from_pylist(covered, schema=SCHEMAS["coverage"])
    write_parquet(run.outs["rollout"].with_name("coverage.parquet"), "coverage", table.to_batches())


def _simulated(run: AgentRun, covered: list[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    """An agent's episodes in every user model that passed its gate; appends to ``covered`` what they show."""
    folders, kinds = seed_folders(run), run.experiment.rollouts.sessions
    if not folders or not run.simulators:
        return
    from pipeline.evaluation.rollout import roll_out

    experiment, task = run.experiment, load_task(run.inputs, run.experiment)
    users, start = next_session(run, task)
    first = slice(0, experiment.budgets().rollout_users)  # the same users for every agent
    users, start = users[first], start[first]
    simulators = [load_simulator(run.store, name, experiment, task) for name in run.simulators]
    worlds = tqdm(
        list(product(folders, simulators, kinds)), f"{run.name} rolls out", unit="world", leave=False, disable=None
    )
    for folder, simulator, sessions in worlds:
        agent, config, seed = load_agent(folder, task)
        if "rollout" not in config.legs or "truth" in config.privileges:
            continue
        episodes = roll_out(agent, task, simulator, sessions, experiment.rollouts, start, users, experiment.seeds[0])
        labels = {"setting": f"{simulator.side}/{simulator.name}/{sessions}", "agent": run.name, "seed": seed}
        world = {"simulator": simulator.name, "side": simulator.side, "sessions": sessions}
        covered.append(labels | {"episodes": len(users), "items_shown": len(episodes.items_shown),
                                 "items": episodes.items_shown, "items_known": len(task.catalogue) - 1})  # fmt: skip
        yield _rollout_rows(labels | world, users, episodes.values)


def _true_values(run: AgentRun) -> Iterator[pa.RecordBatch]:
    source = run.experiment.source
    if not isinstance(source, StorefrontSource):
        return
    from pipeline.evaluation.truth import logging_value, true_value
    from pipeline.sources.storefront import load_truth

    task = load_task(run.inputs, run.experiment)
    shop, population = load_truth(source, run.store.root / "raw")
    users, start = next_session(run, task)
    first = slice(0, run.experiment.budgets().rollout_users)  # the same users for every agent
    users, start, population = users[first], start[first], population[first]
    vocabulary = shop_vocabulary(run, shop.config.n_items)
    # Every ranker and seed meets the same luck: the generators' seed is the experiment's, not the agent's.
    luck = run.experiment.seeds[0]
    if run.folder is None:
        yield _rollout_rows(_truth_labels(run.name, luck), users, logging_value(shop, population, luck))
    for folder in seed_folders(run):
        agent, config, seed = load_agent(folder, task)
        if "rollout" in config.legs:
            values = true_value(agent, config, task, shop, population, start, users, vocabulary, luck)
            yield _rollout_rows(_truth_labels(run.name, seed), users, values)


def _truth_labels(agent: str, seed: int) -> dict[str, Any]:
    world = {"setting": "truth", "simulator": "truth", "side": "truth", "sessions": "natural"}
    return world | {"agent": agent, "seed": seed}


def _rollout_rows(labels: dict[str, Any], users: torch.Tensor, values: "Values") -> pa.RecordBatch:
    columns = {name: [value] * len(users) for name, value in labels.items()}
    metrics = {name: pa.array(metric, from_pandas=True) for name, metric in values.items()}  # null where unknown
    return pa.RecordBatch.from_pydict({**columns, "user_key": users.numpy(), **metrics}, schema=SCHEMAS["rollout"])


def shop_vocabulary(run: AgentRun, n_items: int) -> torch.Tensor:
    """The dense index of each of the shop's items, [n_items] int64; 0 = not seen in the training window."""
    items = read_table(run.inputs["items"], "items", ["item_id", "item"]).to_pandas()
    dense = items.set_index("item_id")["item"]
    shop_ids = [f"i{number:04d}" for number in range(n_items)]  # as the source names them
    return torch.from_numpy(dense.reindex(shop_ids, fill_value=0).to_numpy().astype(np.int64))


def next_session(run: AgentRun, task: Task) -> tuple[torch.Tensor, StateBatch]:
    """Keys of all users in the order of their ids, and what the log tells of each when the next session starts."""
    history = run.experiment.history
    with connect({name: run.inputs[name] for name in ("impressions", "sessions", "items", "users")}) as con:
        con.register("codes", feedback_codes())
        params = {"positives": history.positives, "first_positive": int(FIRST_POSITIVE)}
        table = run_sql(con, "staging/user_histories", params).to_arrow_table()
    items = torch.from_numpy(pad_left(table["items"], history.positives).astype(np.int64))
    feedback = torch.from_numpy(pad_left(table["feedback"], history.positives).astype(np.int64))
    features = torch.from_numpy(ragged(table["features"])[0].reshape(len(table), task.user_width).copy())
    state = StateBatch.at_start(features, items, feedback, history.pages, task.page_size)
    return torch.from_numpy(table["user_key"].to_numpy().copy()), state


def validate_settings(experiment: Experiment) -> None:
    """Raise ConfigError now for settings of agents or simulators that would stop a run later."""
    for name, settings in experiment.agents.items():
        for tried in tried_settings(name, settings):
            agent_config(name, experiment.agent_class(name), tried)
    for name, settings in experiment.simulators.settings.items():
        simulator_config(name, settings)
