"""The only training loop: budget, validation, early stopping, checkpoints, progress, and one process a seed."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from models.base import AgentConfig, GradientAgent, Task
from pipeline.artifacts import Weighted, agent_config, load_checkpoint, save_agent, save_checkpoint
from pipeline.evaluation.rerank import scorable, validation_scores
from pipeline.evaluation.sessions import CandidateSessions, load_sessions
from pipeline.experiment import Budget, Experiment
from pipeline.schemas import SCHEMAS
from pipeline.task import load_task, transitions
from pipeline.tuning import LogRow, label, trials, tune
from pipeline.warehouse import read_table, write_parquet
from pipeline.workers import in_processes

SCORES = "validation_scores.parquet"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One agent and seed to train: all that a worker process needs."""

    name: str
    target: str  # module:ConfigClass
    settings: dict[str, Any]
    seed: int
    experiment: Experiment
    inputs: dict[str, list[Path]]
    work: Path  # checkpoints live here until the agent is published
    out: Path
    line: int = 0  # of its progress bar: seeds train side by side
    weights: Path | None = None  # of an agent that learns nothing itself


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    seed: int
    steps: int
    best_step: int
    validation: float  # ndcg_reward_20, paged, on the validation window; nan for agents without training
    seconds: float
    stopped_by: str  # gradient_steps, patience, max_seconds, or "nothing to train"


Logged = tuple[Outcome, list[LogRow]]


def train_agent(
    name: str,
    target: str,
    experiment: Experiment,
    inputs: dict[str, list[Path]],
    work: Path,
    out: Path,
    fitted: tuple[dict[str, Any], Path] | None = None,
) -> list[Outcome]:
    """Train every seed of an agent and write ``out/seed-<s>/``, ``training_log`` and ``validation_scores``.

    An agent with a grid is tuned first: one training a trial, with the first seed. ``fitted`` are more settings and the
    weights of an agent that ranks by a user model. A training that was killed goes on from its last checkpoint in
    ``work``. An agent whose seed changes nothing is run with the first seed only. Raises ConfigError for settings that
    the agent does not know.
    """
    given, weights = fitted or ({}, None)
    first = experiment.seeds[0]

    def run(settings: dict[str, Any], trial: int, seed: int, line: int, out: Path | None = None) -> Run:
        # The chosen trial and its first seed are the same run, so they share a folder: it is not trained again.
        folder = work / f"trial-{trial}" / f"seed-{seed}"
        return Run(name, target, settings, seed, experiment, inputs, folder, out or folder, line, weights)

    def train(tried: list[dict[str, Any]]) -> list[Logged]:
        runs = [run(settings, trial, first, line=trial) for trial, settings in enumerate(tried)]
        return in_processes(_train_run, runs, experiment.device)

    tuned = tune(name, {**experiment.agents[name], **given}, train)
    config = agent_config(name, target, tuned.settings)
    seeds = experiment.seeds if config.stochastic else experiment.seeds[:1]
    runs = [run(tuned.settings, tuned.trial, seed, line, out / f"seed-{seed}") for line, seed in enumerate(seeds)]
    trains = isinstance(config.build(load_task(inputs, experiment), first), GradientAgent)
    results = in_processes(_train_run, runs, experiment.device, workers=None if trains else 1)
    rows = [*tuned.rows, *(row for _, logged in results for row in logged)]
    columns = dict(zip(SCHEMAS["training_log"].names, zip(*rows, strict=True), strict=True)) if rows else {}
    table = pa.table(columns, schema=SCHEMAS["training_log"]) if rows else SCHEMAS["training_log"].empty_table()
    write_parquet(out / "training_log.parquet", "training_log", table.to_batches())
    tried = [label(trial) for trial in trials(name, experiment.agents[name])]
    folders: dict[Path, str | None] = {run.work: None for run in runs}
    scores = [*_scores({work / f"trial-{trial}" / f"seed-{first}": text for trial, text in enumerate(tried) if text})]
    write_parquet(out / SCORES, "validation_scores", [*scores, *_scores(folders)])
    return [outcome for outcome, _ in results]


def _scores(folders: Mapping[Path, str | None]) -> Iterator[pa.RecordBatch]:
    """``validation_scores`` of trainings in some folders, those of a trial under its name."""
    for folder, trial in folders.items():
        if (path := folder / SCORES).exists():  # what learns nothing has none
            table = read_table([path], "validation_scores")
            named = pa.repeat(pa.scalar(trial, pa.string()), len(table))
            yield from table.set_column(table.column_names.index("trial"), "trial", named).to_batches()


def _train_run(run: Run) -> Logged:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    task = load_task(run.inputs, run.experiment)
    config = agent_config(run.name, run.target, run.settings)
    agent = config.build(task, run.seed)
    if isinstance(agent, GradientAgent):
        trainer = Trainer(agent, config, task, run)
        outcome, rows = trainer.run_budget()
    else:
        outcome, rows = Outcome(run.seed, 0, 0, float("nan"), 0.0, "nothing to train"), []
    if run.weights and isinstance(agent, Weighted):
        agent.load_state_dict(load_file(run.weights))
    save_agent(run.out, agent, run.target, config, run.seed)
    return outcome, [(run.name, run.seed, *row) for row in rows]


class Trainer:
    """One gradient agent under its budget. The state of a resume is the agent, the best weights, the log, the RNG."""

    def __init__(self, agent: GradientAgent, config: AgentConfig, task: Task, run: Run) -> None:
        self.agent, self.config, self.task, self.run = agent, config, task, run
        self.budget: Budget = run.experiment.budgets()
        self.step = 0
        self.seconds = 0.0
        self.best = (-np.inf, 0)  # validation score and its step
        self.best_weights = _copied(agent)
        self.rows: list[tuple[int, str, float]] = []  # step, metric, value
        self.scores: list[tuple[int, torch.Tensor]] = []  # step, of each validation session [S]

    def run_budget(self) -> tuple[Outcome, list[tuple[int, str, float]]]:
        """Train until the budget or the patience is spent; leaves the best weights in the agent."""
        self._resume()
        validation = self._validation_sessions()
        started, earlier = time.monotonic(), self.seconds
        recent: dict[str, list[float]] = {}
        stopped_by = self._finished()
        batches = transitions(
            self.run.inputs["trajectories"], self.task, self.budget.batch_size, self.run.seed, self.step
        )
        with tqdm(
            total=self.budget.gradient_steps,
            initial=self.step,
            desc=f"{self.run.name} seed {self.run.seed}",
            unit="step",
            position=self.run.line,
            leave=False,
            disable=None,  # silent where there is no terminal
        ) as bar:
            while not stopped_by:
                for metric, value in self.agent.update(next(batches)).items():
                    recent.setdefault(metric, []).append(float(value))
                self.step += 1
                bar.update()
                self.seconds = earlier + time.monotonic() - started
                stopped_by = self._finished()
                if stopped_by or self.step % self.budget.validate_every == 0:
                    self._validate(validation, recent)
                    stopped_by = stopped_by or self._finished()
                    self._checkpoint()
                    recent.clear()
        self.agent.load_state_dict(self.best_weights)
        write_parquet(self.run.work / SCORES, "validation_scores", self._scored(validation).to_batches())
        score, best_step = self.best
        return Outcome(self.run.seed, self.step, best_step, float(score), self.seconds, stopped_by), self.rows

    def _finished(self) -> str:
        """Why training ends now, or an empty text."""
        waited = (self.step - self.best[1]) // self.budget.validate_every
        if self.step >= self.budget.gradient_steps:
            return "gradient_steps"
        if self.step and waited >= self.budget.patience:
            return "patience"
        return "max_seconds" if self.seconds >= self.budget.max_seconds else ""

    def _validation_sessions(self) -> CandidateSessions:
        experiment = self.run.experiment
        sessions = load_sessions(
            self.run.inputs["candidates"],
            split="validation",
            task=self.task,
            history=experiment.history,
            limit=self.budget.validation_sessions,
            seed=experiment.seeds[0],
        )
        return scorable(sessions)

    def _validate(self, sessions: CandidateSessions, recent: dict[str, list[float]]) -> None:
        scores = validation_scores(self.agent, self.config, self.task, sessions)
        self.scores.append((self.step, torch.from_numpy(scores)))
        score = float(scores.mean())
        self.rows += [(self.step, metric, float(np.mean(values))) for metric, values in recent.items()]
        self.rows.append((self.step, "validation_ndcg_reward_20", score))
        if score > self.best[0]:
            self.best = (score, self.step)
            self.best_weights = _copied(self.agent)

    def _scored(self, sessions: CandidateSessions) -> pa.Table:
        """``validation_scores`` of this training."""
        steps, n = [step for step, _ in self.scores], len(sessions)
        values = torch.cat([values for _, values in self.scores]) if steps else torch.empty(0)
        columns = {
            "agent": pa.repeat(self.run.name, len(values)),
            "trial": pa.nulls(len(values), pa.string()),
            "seed": np.repeat(self.run.seed, len(values)),
            "step": np.repeat(steps, n),
            "session_id": np.tile(sessions.session_id.cpu().numpy(), len(steps)),
            "value": values.numpy(),
        }
        return pa.table(columns, schema=SCHEMAS["validation_scores"])

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.run.work,
            {
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
                "best_weights": self.best_weights,
                "weights": _copied(self.agent),
                "training": self.agent.training_state(),
                "rows": self.rows,
                "scores": self.scores,
                "rng": torch.get_rng_state(),
            },
        )

    def _resume(self) -> None:
        saved = load_checkpoint(self.run.work)
        if saved is None:
            return
        self.step, self.seconds, self.best = saved["step"], saved["seconds"], tuple(saved["best"])
        self.best_weights, self.rows = saved["best_weights"], [tuple(row) for row in saved["rows"]]
        self.scores = [tuple(scores) for scores in saved["scores"]]
        self.agent.load_state_dict(saved["weights"])
        self.agent.load_training_state(saved["training"])
        torch.set_rng_state(saved["rng"])
        log.info("%s seed %d goes on from step %d", self.run.name, self.run.seed, self.step)


def _copied(agent: GradientAgent) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in agent.state_dict().items()}
