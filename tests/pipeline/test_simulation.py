"""What the user model is fitted on, and what its quality check says."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import simulation
from pipeline.errors import ConfigError
from pipeline.plan import STEPS
from pipeline.schemas import SCHEMAS
from pipeline.simulation import check_quality, sampled, session_batches, simulator_config
from tests.conftest import Run


@pytest.fixture(scope="module")
def train(tiny: Run) -> simulation.SessionBatch:
    inputs = {table: tiny.plan.store.files(table) for table in STEPS["simulator"].inputs}
    return session_batches(inputs, tiny.experiment, "train")


def test_sessions_are_padded_on_the_right_and_end_with_a_page(train: simulation.SessionBatch) -> None:
    shown = train.feedback > 0
    lengths = shown.sum(dim=1)
    assert (lengths > 0).all()
    assert torch.equal(shown, torch.arange(shown.shape[1]) < lengths[:, None])
    assert train.page_end.gather(1, lengths[:, None] - 1).all()
    assert torch.equal(train.page_end.sum(dim=1), (lengths + 9) // 10)  # the storefront fills its pages of ten
    assert train.terminated[lengths < simulation.MAX_ITEMS].all()


def test_memory_is_bounded_by_a_sample_of_the_sessions(
    tiny: Run, train: simulation.SessionBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(simulation.SESSIONS, "train", 7)
    monkeypatch.setattr(simulation, "MAX_ITEMS", 20)
    inputs = {table: tiny.plan.store.files(table) for table in STEPS["simulator"].inputs}
    few = session_batches(inputs, tiny.experiment, "train")
    assert few.items.shape == (7, 20)
    assert torch.equal(few.items, torch.where(few.feedback > 0, train.items[:7, :20], 0))
    cut = (train.feedback[:7] > 0).sum(dim=1) > 20
    assert cut.any()
    assert not few.terminated[cut].any()


def test_a_batch_depends_on_the_seed_and_the_step_alone(train: simulation.SessionBatch) -> None:
    assert torch.equal(sampled(train, 8, 1)(3).items, sampled(train, 8, 1)(3).items)
    assert not torch.equal(sampled(train, 8, 1)(3).feedback[:, :10], sampled(train, 8, 1)(4).feedback[:, :10])


def test_a_head_that_is_no_better_than_the_base_rate_is_named(tmp_path: Path) -> None:
    rows = [
        {"simulator": "rnn", "head": head, "split": "validation", "metric": metric, "value": value, "n": 9}
        for head, metric, value in (
            ("click", "log_loss", 0.2),
            ("click", "base_rate_log_loss", 0.3),
            ("exit", "log_loss", 0.5),
            ("exit", "base_rate_log_loss", 0.4),
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMAS["simulator_quality"]), tmp_path / "q.parquet")
    assert check_quality(tmp_path / "q.parquet") == [
        "The head exit has a log-loss of 0.5000, no better than the base rate's 0.4000."
    ]


def test_unknown_settings_of_a_user_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"simulators\.rnn: unknown key 'hiden'; did you mean 'hidden'"):
        simulator_config("rnn", {"hiden": 3})
