"""Running the legs: every agent and seed of an experiment, in processes, from run folders to published tables."""

import json
import subprocess
from collections.abc import Iterator
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
from pipeline.evaluation.leaderboard import leaderboard
from pipeline.evaluation.rerank import MODES, ranking_table, rerank, session_table
from pipeline.evaluation.sessions import iter_sessions
from pipeline.experiment import PROJECT, Experiment
from pipeline.plan import PRODUCTION, Job, library_versions
from pipeline.schemas import SCHEMAS
from pipeline.simulation import failed_criteria, load_simulator, simulator_config
from pipeline.source_settings import StorefrontSource
from pipeline.storage import Store, fingerprint
from pipeline.task import TASK_TABLES, load_task
from pipeline.trajectories import feedback_codes, pad_left, ragged
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
    in_processes(_rerank_agent, _runs(job, ("rankings", "rerank"), ("candidates", *TASK_TABLES)), job.experiment.device)


def roll_out_agents(job: Job) -> None:
    """Leg 2 of the job's agents: ``rollout`` and ``coverage``; no rows for a simulator that failed its gate."""
    passed = tuple(name for name, why in failed_criteria(job.files("simulator_gate")).items() if not why)
    tables = ("impressions", "sessions", *TASK_TABLES)
    runs = [replace(run, simulators=passed) for run in _runs(job, ("rollout",), tables)]
    in_processes(_roll_out_agent, runs, job.experiment.device)


def build_leaderboard(job: Job) -> None:
    """The leaderboard over the three legs and, beside it, the legs that are not supported."""
    rows = read_table(job.files("rerank"), "rerank"), read_table(job.files("rollout"), "rollout")
    experiment = job.experiment
    table = leaderboard(*rows, experiment.reference, experiment.budgets(), _provenance(job), experiment.seeds[0])
    write_parquet(job.out("leaderboard"), "leaderboard", table.to_batches())
    failed = failed_criteria(job.files("simulator_gate"))
    legs = [{"leg": leg, "reason": reason} for leg, reason in unsupported(experiment, failed).items()]
    none = pa.Table.from_pylist(legs, schema=SCHEMAS["unsupported"])
    write_parquet(job.folder("leaderboard") / "unsupported.parquet", "unsupported", none.to_batches())


def unsupported(experiment: Experiment, failed: dict[str, list[str]]) -> dict[str, str]:
    """The legs that this version and this data cannot support, each with its reason: a clause after "because".

    ``failed`` names the criteria of the gate that each user model fails; with all judges failed, no roll-out is left
    but the storefront's truth.
    """
    legs = {
        "ope": "no asset applies the off-policy estimators to agents yet, so nothing is estimated from the log alone",
    }
    judges = list(experiment.simulators.judge)
    if all(failed[name] for name in judges):
        reasons = "; ".join(f"{name}: {', '.join(failed[name])}" for name in judges)
        legs["rollout in a judge"] = f"no user model passed the gate that lets it judge ({reasons})"
        if not isinstance(experiment.source, StorefrontSource):
            legs["rollout"] = legs.pop("rollout in a judge")
    return legs


def _runs(job: Job, tables: tuple[str, ...], inputs: tuple[str, ...]) -> list[AgentRun]:
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
        for name in job.parts
    ]


def _seed_folders(run: AgentRun) -> list[Path]:
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
        for folder in _seed_folders(run):
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
    folders, kinds = _seed_folders(run), run.experiment.rollouts.sessions
    if not folders or not run.simulators:
        return
    from pipeline.evaluation.rollout import roll_out

    experiment, task = run.experiment, load_task(run.inputs, run.experiment)
    users, start = _next_session(run, task)
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
        covered.append(labels | {"episodes": len(users), "items_shown": episodes.items_shown,
                                 "items_known": len(task.catalogue) - 1})  # fmt: skip
        yield _rollout_rows(labels | world, users, episodes.values)


def _true_values(run: AgentRun) -> Iterator[pa.RecordBatch]:
    source = run.experiment.source
    if not isinstance(source, StorefrontSource):
        return
    from pipeline.evaluation.truth import logging_value, true_value
    from pipeline.sources.storefront import load_truth

    task = load_task(run.inputs, run.experiment)
    shop, population = load_truth(source, run.store.root / "raw")
    users, start = _next_session(run, task)
    first = slice(0, run.experiment.budgets().rollout_users)  # the same users for every agent
    users, start, population = users[first], start[first], population[first]
    vocabulary = _vocabulary(run, shop.config.n_items)
    # Every ranker and seed meets the same luck: the generators' seed is the experiment's, not the agent's.
    luck = run.experiment.seeds[0]
    if run.folder is None:
        yield _rollout_rows(_truth_labels(run.name, luck), users, logging_value(shop, population, luck))
    for folder in _seed_folders(run):
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


def _vocabulary(run: AgentRun, n_items: int) -> torch.Tensor:
    """The dense index of each of the shop's items, [n_items] int64; 0 = not seen in the training window."""
    items = read_table(run.inputs["items"], "items", ["item_id", "item"]).to_pandas()
    dense = items.set_index("item_id")["item"]
    shop_ids = [f"i{number:04d}" for number in range(n_items)]  # as the source names them
    return torch.from_numpy(dense.reindex(shop_ids, fill_value=0).to_numpy().astype(np.int64))


def _next_session(run: AgentRun, task: Task) -> tuple[torch.Tensor, StateBatch]:
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


def _provenance(job: Job) -> dict[str, str]:
    """Where the numbers come from: the columns that every row of the leaderboard carries."""
    plan = job.plan
    recipe = plan.recipe("leaderboard", "all")
    return {
        "data_hash": plan.fingerprint("manifest"),
        "code_hash": fingerprint(recipe["code"], recipe["inputs"]),
        "config_hash": fingerprint(plan.experiment.model_dump(mode="json")),
        "commit": _commit(),
        "versions": json.dumps(library_versions(), sort_keys=True),
    }


def _commit() -> str:
    """The commit of the checkout when the numbers were computed; ``+`` for uncommitted changes, empty outside git."""
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(PROJECT), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + ("+" if changes.strip() else "")


def validate_settings(experiment: Experiment, classes: dict[str, str]) -> None:
    """Raise ConfigError now for settings of agents or simulators that would stop a run later."""
    for name, target in classes.items():
        agent_config(name, target, experiment.agents[name])
    for name, settings in experiment.simulators.settings.items():
        simulator_config(name, settings)
