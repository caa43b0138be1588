"""Which sessions a user model is fitted, calibrated and judged on, and what is published of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import simulation
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.plan import STEPS
from pipeline.schemas import SCHEMAS
from pipeline.simulation import (
    CALIBRATE,
    FIT,
    GATE,
    Window,
    failed_criteria,
    load_simulator,
    sampled,
    session_batches,
    simulator_config,
)
from pipeline.task import load_task
from tests.conftest import Run


@pytest.fixture(scope="module")
def inputs(tiny: Run) -> dict[str, list[Path]]:
    return {t: tiny.plan.store.files(t) for t in STEPS["simulator_gate"].inputs if t in SCHEMAS}


@pytest.fixture(scope="module")
def train(tiny: Run, inputs: dict[str, list[Path]]) -> simulation.SessionBatch:
    return session_batches(inputs, tiny.experiment, {"fit": FIT["train"]})["fit"]


def test_sessions_are_padded_on_the_right_and_end_with_a_page(train: simulation.SessionBatch) -> None:
    shown = train.feedback > 0
    lengths = shown.sum(dim=1)
    assert (lengths > 0).all()
    assert torch.equal(shown, torch.arange(shown.shape[1]) < lengths[:, None])
    assert train.page_end.gather(1, lengths[:, None] - 1).all()
    assert torch.equal(train.page_end.sum(dim=1), (lengths + 9) // 10)  # the storefront fills its pages of ten
    assert train.terminated[lengths < simulation.MAX_ITEMS].all()


def test_memory_is_bounded_by_a_sample_of_the_sessions(
    tiny: Run, inputs: dict[str, list[Path]], train: simulation.SessionBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "MAX_ITEMS", 20)
    few = session_batches(inputs, tiny.experiment, {"fit": FIT["train"]._replace(sessions=7)})["fit"]
    assert few.items.shape == (7, 20)
    assert torch.equal(few.items, torch.where(few.feedback > 0, train.items[:7, :20], 0))
    cut = (train.feedback[:7] > 0).sum(dim=1) > 20
    assert cut.any()
    assert not few.terminated[cut].any()


def test_what_judges_is_later_than_what_was_fitted_or_calibrated_and_the_sides_share_no_fit() -> None:
    for side in ("train", "judge"):
        for window in (FIT[side], CALIBRATE[side]):
            assert window.training or window.until <= GATE.first
    assert (FIT["train"].training, FIT["judge"].training) == (True, False)
    assert CALIBRATE["judge"].first >= FIT["judge"].until


def test_windows_split_the_later_sessions_in_the_order_of_their_starts(
    tiny: Run, inputs: dict[str, list[Path]]
) -> None:
    windows = {name: Window(False, first, until) for name, first, until in (("a", 0, 0.5), ("b", 0.5, 1), ("ab", 0, 1))}
    found = session_batches(inputs, tiny.experiment, windows)
    assert len(found["a"]) + len(found["b"]) == len(found["ab"])
    assert abs(len(found["a"]) - len(found["b"])) <= 1


def test_an_empty_window_is_an_error_that_names_it(tiny: Run, inputs: dict[str, list[Path]]) -> None:
    with pytest.raises(DataError, match=r"no session to gate a simulator on, between 50% and 50% of the later ones"):
        session_batches(inputs, tiny.experiment, {"gate": Window(False, 0.5, 0.5)})


def test_a_batch_depends_on_the_seed_and_the_step_alone(train: simulation.SessionBatch) -> None:
    assert torch.equal(sampled(train, 8, 1)(3).items, sampled(train, 8, 1)(3).items)
    assert not torch.equal(sampled(train, 8, 1)(3).feedback[:, :10], sampled(train, 8, 1)(4).feedback[:, :10])


def test_an_ensemble_is_published_with_what_its_window_showed(tiny: Run, train: simulation.SessionBatch) -> None:
    task = load_task({t: tiny.plan.store.files(t) for t in ("items", "users", "item_embeddings", "trajectories")},
                     tiny.experiment)  # fmt: skip
    found = load_simulator(tiny.plan.store, "rnn", tiny.experiment, task)
    assert (found.side, len(found.members)) == ("train", 3)
    weights = [member.state_dict()["click.0.weight"] for member in found.members]
    assert not torch.equal(weights[0], weights[1])
    assert int(found.shown.sum()) == int((train.feedback > 0).sum())
    described = json.loads((tiny.plan.store.require("simulators", "rnn").folder / "config.json").read_text())
    assert described["sessions"]["fit"] == len(train)


@pytest.fixture
def other_vocabulary(tiny: Run) -> Iterator[None]:
    """The published weights of rnn as if they were fitted on another catalogue."""
    path = tiny.plan.store.require("simulators", "rnn").folder / "member-0.safetensors"
    before = path.read_bytes()
    weights = load_file(path)
    save_file(weights | {"vocabulary": weights["vocabulary"] + 1}, path)
    yield
    path.write_bytes(before)


@pytest.mark.usefixtures("other_vocabulary")
def test_a_simulator_of_another_vocabulary_is_refused(tiny: Run) -> None:
    task = load_task({t: tiny.plan.store.files(t) for t in ("items", "users", "item_embeddings", "trajectories")},
                     tiny.experiment)  # fmt: skip
    with pytest.raises(ModelError, match="fitted on another vocabulary"):
        load_simulator(tiny.plan.store, "rnn", tiny.experiment, task)


def test_failed_criteria_are_told_with_their_figures(tmp_path: Path) -> None:
    rows = [
        {"simulator": name, "side": "judge", "head": "click", "criterion": "log_loss", "value": value,
         "reference": 0.3, "passed": value < 0.3, "n": 9}
        for name, value in (("good", 0.2), ("bad", 0.31))
    ]  # fmt: skip
    rows.append(rows[0] | {"criterion": "auc", "passed": None, "reference": None})
    pq.write_table(pa.Table.from_pylist(rows, SCHEMAS["simulator_gate"]), tmp_path / "gate.parquet")
    assert failed_criteria([tmp_path / "gate.parquet"]) == {
        "good": [],
        "bad": ["click log loss is 0.31 where 0.3 is the limit"],
    }


def test_unknown_settings_of_a_user_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"simulators\.rnn: unknown key 'hiden'; did you mean 'hidden'"):
        simulator_config("rnn", {"hiden": 3})
    with pytest.raises(ConfigError, match=r"simulators\.mine: cannot load 'nowhere:Config'"):
        simulator_config("mine", {"class": "nowhere:Config"})
