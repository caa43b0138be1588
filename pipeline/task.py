"""From published tables to tensors: the Task that every agent is told, and batches of transitions."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.base import Catalogue, StateBatch, Task, TransitionBatch
from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.schemas import COUNTERS
from pipeline.trajectories import MEASUREMENT_FILE, TrajectoryReader, embedding_matrix, ragged
from pipeline.warehouse import read_table

TASK_TABLES = ("items", "users", "item_embeddings", "trajectories")


def load_task(inputs: Mapping[str, list[Path]], experiment: Experiment) -> Task:
    """The Task of an experiment, from the published files of TASK_TABLES; all of it as of the training window's end."""
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; set device: cpu or install a CUDA torch.")
    measured = json.loads((inputs["trajectories"][0].parent / MEASUREMENT_FILE).read_text(encoding="utf-8"))
    users = read_table(inputs["users"][:1], "users", ["features"]).slice(0, 1)
    return Task(
        catalogue=_catalogue(inputs),
        rows=experiment.sessions.rows,
        cols=experiment.sessions.cols,
        user_width=len(users["features"][0]) if len(users) else 0,
        rewards=experiment.rewards.by_code(),
        measurement_names=tuple(measured["names"]),
        measurement_scale=torch.tensor(measured["scale"], dtype=torch.float32),
        device=experiment.device,
    )


def _catalogue(inputs: Mapping[str, list[Path]]) -> Catalogue:
    items = read_table(inputs["items"], "items")
    known = items.filter(pa.compute.greater(items["item"], 0)).sort_by("item")
    features, widths = ragged(known["features"])
    width = int(widths[0]) if len(widths) else 0

    def with_unknown(values: Any, dtype: torch.dtype) -> Tensor:
        """[I+1, …]: row 0, the unknown item, is zeros."""
        tensor = torch.as_tensor(np.array(values), dtype=dtype)
        return torch.cat([torch.zeros_like(tensor[:1]), tensor])

    codes = known["category_code"].to_numpy()
    counters = with_unknown(ragged(known["counters"])[0].reshape(len(known), len(COUNTERS)), torch.float32)
    counters[0, COUNTERS.index("item_age_hours")] = torch.nan  # what was never shown is not new, but of no age
    return Catalogue(
        embeddings=torch.from_numpy(embedding_matrix(inputs["item_embeddings"])),
        features=with_unknown(features.reshape(len(known), width), torch.float32),
        category=with_unknown(codes, torch.int64),
        popularity=with_unknown(known["train_positives"].to_numpy(), torch.float32),
        impressions=with_unknown(known["train_impressions"].to_numpy(), torch.float32),
        counters=counters,
        n_categories=int(codes.max(initial=0)) + 1,
    )


def transition_batch(table: pa.Table, task: Task) -> TransitionBatch:
    """Rows of the trajectories table as tensors on the task's device."""
    rows, slots = len(table), task.page_size
    dims = len(task.measurement_names)

    def lists(name: str, *shape: int, kind: type = np.int64) -> Tensor:
        return torch.from_numpy(ragged(table[name])[0].reshape(rows, *shape).astype(kind))

    def flags(name: str) -> Tensor:
        return torch.from_numpy(table[name].to_numpy().copy())

    state = StateBatch(
        user_features=lists("user_features", task.user_width, kind=np.float32),
        initial_items=lists("initial_items", -1),
        initial_feedback=lists("initial_feedback", -1),
        history_items=lists("history_items", -1),
        history_feedback=lists("history_feedback", -1),
        skipped_items=lists("skipped_items", -1),
        page_items=lists("page_items", -1, slots),
        page_feedback=lists("page_feedback", -1, slots),
        pages_seen=flags("step").long(),
    )
    return TransitionBatch(
        state=state,
        items=lists("action", slots),
        feedback=lists("feedback", slots),
        rewards=lists("rewards", slots, kind=np.float32),
        measurement=lists("measurement", slots, dims, kind=np.float32),
        goal=lists("goal", slots, dims, kind=np.float32),
        hindsight=torch.from_numpy(table["relabel"].to_numpy() == "hindsight"),
        terminated=flags("terminated"),
        truncated=flags("truncated"),
        propensity=lists("propensities", slots, kind=np.float32),
        counters=lists("counters", slots, len(COUNTERS), kind=np.float32),
    ).to(task.device)


def transitions(files: list[Path], task: Task, batch_size: int, seed: int, start: int = 0) -> Iterator[TransitionBatch]:
    """Training batches without end, from gradient step ``start`` on."""
    for table in TrajectoryReader(tuple(files), batch_size, seed).batches(start):
        yield transition_batch(table, task)
