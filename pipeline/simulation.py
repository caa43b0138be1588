"""Fitting a user model on the training window, and how far it can be believed on the validation window."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file

from models import SIMULATORS
from models.simulators.metrics import reliability
from models.simulators.rnn import SessionBatch
from pipeline.errors import ConfigError, DataError
from pipeline.experiment import Experiment, explain
from pipeline.schemas import SCHEMAS
from pipeline.task import load_task
from pipeline.trajectories import pad_left, page_states, ragged
from pipeline.warehouse import connect, read_table, run_sql, write_parquet

BATCH = 32  # sessions of a gradient step
MAX_ITEMS = 200  # shown items of a session that are kept: longer ones are cut there and do not count as left
SESSIONS = {"train": 100_000, "validation": 2_000}  # at most, a random sample: what bounds the memory


def fit_simulator(inputs: dict[str, list[Path]], experiment: Experiment, out: Path) -> dict[str, dict[str, float]]:
    """Fit the experiment's simulator; write weights, settings and ``simulator_quality`` to ``out``; return the latter.

    Raises DataError when a split shows nothing to anybody.
    """
    torch.set_num_threads(1)
    task = load_task(inputs, experiment)
    [(name, settings)] = experiment.simulators.items()
    config = simulator_config(name, settings)
    model = config.build(task)  # type: ignore[attr-defined]
    train, validation = (session_batches(inputs, experiment, split) for split in ("train", "validation"))
    seed = experiment.seeds[0]
    model.fit(sampled(train, BATCH, seed), experiment.budgets().simulator_steps, seed)
    predicted = model.predict(validation)
    quality: dict[str, dict[str, float]] = model.evaluate(validation)
    save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, out / "weights.safetensors")
    curves = {head: [bins.tolist() for bins in reliability(*values)] for head, values in predicted.items()}
    described = {"class": SIMULATORS[name], "settings": config.model_dump(), "reliability": curves}
    (out / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True), encoding="utf-8")
    rows = [
        {"simulator": name, "head": head, "split": "validation", "metric": metric, "value": value,
         "n": int(metrics["n"])}
        for head, metrics in quality.items() for metric, value in metrics.items() if metric != "n"
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["simulator_quality"])
    write_parquet(out / "simulator_quality.parquet", "simulator_quality", table.to_batches())
    return quality


def simulator_config(name: str, settings: dict[str, Any]) -> BaseModel:
    """The validated settings of a user model. Raises ConfigError for settings that it does not know."""
    module, _, class_name = SIMULATORS[name].partition(":")
    config_class: type[BaseModel] = getattr(import_module(module), class_name)
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"simulators.{name}: {explain(error, config_class)}") from None


def sampled(sessions: SessionBatch, size: int, seed: int) -> Callable[[int], SessionBatch]:
    """The sessions of a gradient step: a sample that the seed and the step alone decide."""

    def batch(step: int) -> SessionBatch:
        rows = np.random.default_rng((seed, step)).integers(0, len(sessions), size)
        found = sessions[torch.from_numpy(rows)]
        width = int((found.feedback > 0).sum(dim=1).max())  # what pads all of them costs time and teaches nothing
        columns = {name: getattr(found, name)[:, :width] for name in ("items", "feedback", "page_end")}
        return replace(found, **columns)

    return batch


def session_batches(inputs: dict[str, list[Path]], experiment: Experiment, split: str) -> SessionBatch:
    """Kept sessions of a split as one padded batch: the first ones in the order of their hashes, a random sample."""
    with connect({name: inputs[name] for name in ("impressions", "sessions", "splits", "items", "users")}) as con:
        page_states(con, experiment)
        params = {"split": split, "items": MAX_ITEMS, "sessions": SESSIONS[split]}
        table = run_sql(con, "staging/simulator_sessions", params).to_arrow_table()
    if not len(table):
        raise DataError(f"There is no {split} session to fit or judge a simulator on; move the cut-offs in `splits`.")
    _, lengths = ragged(table["items"])
    width = int(lengths.max())

    def padded(name: str) -> torch.Tensor:
        # Left-padded, then rolled to the left: sessions are padded on the right.
        rolled = (np.arange(width) - lengths[:, None]) % width
        return torch.from_numpy(np.take_along_axis(pad_left(table[name], width), rolled, axis=1).astype(np.int64))

    return SessionBatch(
        user_features=torch.from_numpy(ragged(table["user_features"])[0].reshape(len(table), -1).copy()),
        items=padded("items"),
        feedback=padded("feedback"),
        page_end=padded("page_end").bool(),
        terminated=torch.from_numpy(table["terminated"].to_numpy().copy()),
        initial_items=torch.from_numpy(pad_left(table["initial_items"], experiment.history.positives).astype(np.int64)),
    )


def check_quality(file: Path) -> list[str]:
    """One sentence for each head that predicts no better than the base rate of its labels."""
    rows = read_table([file], "simulator_quality").to_pylist()
    value = {(row["head"], row["metric"]): row["value"] for row in rows}
    return [
        f"The head {head} has a log-loss of {value[head, 'log_loss']:.4f}, "
        f"no better than the base rate's {value[head, 'base_rate_log_loss']:.4f}."
        for head in sorted({head for head, _ in value})
        if value[head, "log_loss"] >= value[head, "base_rate_log_loss"]
    ]
