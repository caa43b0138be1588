"""User models of an experiment: which sessions each is fitted, calibrated and judged on, its ensemble, and its gate.

Two sides, on windows that do not overlap in what they fit: the train side on the training sessions, the judge side on
later ones. Both are judged on the same sessions, later than anything that either was fitted or calibrated on.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.base import Task
from models.simulators.base import FittedUserModel, SessionBatch, UserModelConfig
from models.simulators.feedback import FeedbackUserModel, class_metrics
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.gate_rows import class_rows
from pipeline.evaluation.simulator_gate import Baselines, GateReport, judge
from pipeline.experiment import Experiment, explain, simulator_class
from pipeline.schemas import SCHEMAS, empty
from pipeline.storage import Store
from pipeline.task import load_task
from pipeline.trajectories import pad_left, page_states, ragged
from pipeline.warehouse import connect, read_table, run_sql, write_parquet
from pipeline.workers import in_processes

BATCH = 32  # sessions of a gradient step
MAX_ITEMS = 200  # shown items of a session that are kept: longer ones are cut there and do not count as left
WEIGHTS, CONFIG, SHOWN = "member-{}.safetensors", "config.json", "shown.safetensors"


class Window(NamedTuple):
    """Some of the training sessions, or of the later ones, in the order of their starts."""

    training: bool
    first: float  # share of the sessions before it
    until: float  # and up to its end
    sessions: int = 100_000  # at most, a random sample: what bounds the memory


FIT = {"train": Window(True, 0, 1), "judge": Window(False, 0, 0.6)}
CALIBRATE = {"train": Window(False, 0, 0.3, 2_000), "judge": Window(False, 0.6, 0.75, 2_000)}
GATE = Window(False, 0.75, 1, 2_000)


@dataclass(frozen=True)
class Simulator:
    """A fitted user model, ready to answer."""

    name: str
    side: str  # train or judge
    members: list[FittedUserModel]  # the ensemble
    shown: Tensor  # [I+1] int64, how often its fit window showed each item

    @property
    def model(self) -> FittedUserModel:
        """The member that acts."""
        return self.members[0]


@dataclass(frozen=True)
class _Member:
    """One model of an ensemble: what a worker process needs."""

    name: str
    number: int
    experiment: Experiment
    inputs: dict[str, list[Path]]
    sessions: Path  # where the windows lie
    out: Path


def fit_simulator(inputs: dict[str, list[Path]], experiment: Experiment, name: str, out: Path) -> None:
    """Fit and calibrate the ensemble of one user model; write its weights and settings to ``out``.

    Raises ConfigError for settings that the model does not know, DataError when a window has no session.
    """
    config = simulator_config(name, experiment.simulators.settings[name])
    side = experiment.simulators.side(name)
    windows = {"fit": FIT[side], "calibrate": CALIBRATE[side]}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        found = session_batches(inputs, experiment, windows)
        for window, sessions in found.items():
            save_file(_tensors(sessions), Path(scratch) / window)
        members = [
            _Member(name, number, experiment, inputs, Path(scratch), out)
            for number in range(experiment.simulators.members)
        ]
        in_processes(_fit_member, members, experiment.device)
    fit = found["fit"]
    counts = torch.bincount(fit.items[fit.feedback > 0], minlength=len(load_task(inputs, experiment).catalogue))
    save_file({"shown": counts}, out / SHOWN)
    described = {
        "class": simulator_class(name, experiment.simulators.settings[name]),
        "settings": config.model_dump(mode="json"),
        "side": side,
        "sessions": {window: len(sessions) for window, sessions in found.items()},
    }
    (out / CONFIG).write_text(json.dumps(described, indent=1, sort_keys=True), encoding="utf-8")


def _fit_member(member: _Member) -> None:
    torch.set_num_threads(1)
    experiment = member.experiment
    model = _build(member.name, experiment, load_task(member.inputs, experiment))
    fit, calibrate = (SessionBatch(**load_file(member.sessions / window)) for window in ("fit", "calibrate"))
    seed = experiment.simulators.seed + member.number
    model.fit(sampled(fit, BATCH, seed), experiment.budgets().simulator_steps, seed).calibrate(calibrate)
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, member.out / WEIGHTS.format(member.number))


def load_simulator(store: Store, name: str, experiment: Experiment, task: Task) -> Simulator:
    """A published user model. Raises ModelError when it was fitted on another vocabulary than the task's."""
    folder = store.require("simulators", name).folder
    members = []
    for number in range(experiment.simulators.members):
        model = _build(name, experiment, task)
        model.load_state_dict(load_file(folder / WEIGHTS.format(number)))
        members.append(model)
    shown = load_file(folder / SHOWN)["shown"]
    return Simulator(name, experiment.simulators.side(name), members, shown.to(task.device))


def acting_model(store: Store, name: str) -> tuple[dict[str, Any], Path]:
    """What an agent that ranks by a published user model is built from: settings, and the acting member's weights."""
    folder = store.require("simulators", name).folder
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    model = {"class": described["class"], **described["settings"]}
    return {"simulator": name, "user_model": model}, folder / WEIGHTS.format(0)


def judge_simulators(inputs: dict[str, list[Path]], store: Store, experiment: Experiment, out: Path) -> None:
    """Hold every user model against the gate: write ``simulator_gate`` and the tables beside it to ``out``."""
    torch.set_num_threads(1)
    task = load_task(inputs, experiment)
    rows, bins, answers, twins = [], [], [empty("simulator_answers")], [empty("simulator_twins")]
    for name in experiment.simulators.settings:
        simulator = load_simulator(store, name, experiment, task)
        report = _judged(simulator, inputs, experiment, task)
        rows += [row | {"side": simulator.side} for row in report.rows]
        bins += report.reliability
        answers.append(report.answers)
        twins.append(report.twins)
    tables = {
        "simulator_gate": pa.Table.from_pylist(rows, schema=SCHEMAS["simulator_gate"]),
        "simulator_reliability": pa.Table.from_pylist(bins, schema=SCHEMAS["simulator_reliability"]),
        "simulator_answers": pa.concat_tables(answers),
        "simulator_twins": pa.concat_tables(twins),
    }
    for table, found in tables.items():
        write_parquet(out / f"{table}.parquet", table, found.to_batches())


def _judged(simulator: Simulator, inputs: dict[str, list[Path]], experiment: Experiment, task: Task) -> GateReport:
    found = session_batches(inputs, experiment, {"fit": FIT[simulator.side], "gate": GATE})
    baselines = Baselines.fit(found["fit"], task.catalogue)
    report = judge(simulator.name, simulator.model, simulator.members, found["gate"], baselines, experiment.gate)
    return with_classes(report, simulator.name, simulator.model, found["gate"])


def with_classes(report: GateReport, name: str, model: FittedUserModel, sessions: SessionBatch) -> GateReport:
    """Besides, what MaHRL reports of its user model, with what it must be compared with; nothing for other models."""
    if not isinstance(model, FeedbackUserModel):
        return report
    labels, p = model.classes(sessions)
    found = class_metrics(labels, p)
    rivals = {"precision": found["majority_rate"], "log_loss": found["base_rate_log_loss"]}
    rows = [
        {"simulator": name, "head": "answer", "criterion": criterion, "value": value,
         "reference": rivals.get(criterion), "passed": None, "n": len(labels)}
        for criterion, value in found.items() if criterion in rivals or criterion.startswith("auc_")
    ]  # fmt: skip
    answers = pa.concat_tables([report.answers, class_rows(name, sessions, labels, p)])
    return replace(report, rows=report.rows + rows, answers=answers)


def failed_criteria(files: list[Path]) -> dict[str, list[str]]:
    """For each user model, a clause for each criterion that it does not meet; none where it passed the gate."""
    failed: dict[str, list[str]] = {}
    for row in read_table(files, "simulator_gate").to_pylist():
        clauses = failed.setdefault(row["simulator"], [])
        if row["passed"] is False:
            limit = "" if row["reference"] is None else f" where {row['reference']:.4g} is the limit"
            clauses.append(f"{row['head']} {row['criterion'].replace('_', ' ')} is {row['value']:.4g}{limit}")
    return failed


def simulator_config(name: str, settings: dict[str, Any]) -> UserModelConfig:
    """The validated settings of a user model. Raises ConfigError for settings that it does not know."""
    target = simulator_class(name, settings)
    module, _, class_name = target.partition(":")
    try:
        config_class: type[UserModelConfig] = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"simulators.{name}: cannot load {target!r} ({error}); write class: module:ConfigClass"
        ) from None
    try:
        return config_class.model_validate({key: value for key, value in settings.items() if key != "class"})
    except ValidationError as error:
        raise ConfigError(f"simulators.{name}: {explain(error, config_class)}") from None


def _build(name: str, experiment: Experiment, task: Task) -> FittedUserModel:
    return simulator_config(name, experiment.simulators.settings[name]).build(task)


def sampled(sessions: SessionBatch, size: int, seed: int) -> Callable[[int], SessionBatch]:
    """The sessions of a gradient step: a sample that the seed and the step alone decide."""

    def batch(step: int) -> SessionBatch:
        rows = np.random.default_rng((seed, step)).integers(0, len(sessions), size)
        found = sessions[torch.from_numpy(rows)]
        width = int((found.feedback > 0).sum(dim=1).max())  # what pads all of them costs time and teaches nothing
        columns = {name: getattr(found, name)[:, :width] for name in ("items", "feedback", "page_end")}
        return replace(found, **columns)

    return batch


def session_batches(
    inputs: dict[str, list[Path]], experiment: Experiment, windows: dict[str, Window]
) -> dict[str, SessionBatch]:
    """The kept sessions of each window as one padded batch: a random sample of at most ``window.sessions``.

    Raises DataError for a window without a session.
    """
    found = {}
    with connect({name: inputs[name] for name in ("impressions", "sessions", "splits", "items", "users")}) as con:
        page_states(con, experiment)
        for name, window in windows.items():
            params = window._asdict() | {"items": MAX_ITEMS}
            table = run_sql(con, "staging/simulator_sessions", params).to_arrow_table()
            if not len(table):
                kind = "training" if window.training else "later"
                raise DataError(f"There is no session to {name} a simulator on, between {window.first:.0%} and "
                                f"{window.until:.0%} of the {kind} ones; move the cut-offs in `splits`.")  # fmt: skip
            found[name] = _batch(table, experiment.history.positives)
    return found


def _batch(table: pa.Table, positives: int) -> SessionBatch:
    _, lengths = ragged(table["items"])
    width = int(lengths.max())

    def padded(name: str) -> Tensor:
        # Left-padded, then rolled to the left: sessions are padded on the right.
        rolled = (np.arange(width) - lengths[:, None]) % width
        return torch.from_numpy(np.take_along_axis(pad_left(table[name], width), rolled, axis=1).astype(np.int64))

    return SessionBatch(
        user_features=torch.from_numpy(ragged(table["user_features"])[0].reshape(len(table), -1).copy()),
        items=padded("items"),
        feedback=padded("feedback"),
        page_end=padded("page_end").bool(),
        terminated=torch.from_numpy(table["terminated"].to_numpy().copy()),
        initial_items=torch.from_numpy(pad_left(table["initial_items"], positives).astype(np.int64)),
        session_id=torch.from_numpy(table["session_id"].to_numpy().copy()),
    )


def _tensors(sessions: SessionBatch) -> dict[str, Tensor]:
    columns = {field.name: getattr(sessions, field.name) for field in fields(sessions)}
    return {name: value.contiguous() for name, value in columns.items() if value is not None}
