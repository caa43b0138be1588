from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.base import Task
from models.hashing import mix64
from pipeline.errors import DataError
from pipeline.evaluation.sessions import CandidateSessions, iter_sessions, load_sessions
from pipeline.experiment import History
from tests.models.builders import make_task
from tests.pipeline.evaluation.builders import Row, make_rows, write

HISTORY = History(positives=4, pages=3)
TASK: Task = make_task()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return make_rows(60)


@pytest.fixture
def files(rows: list[Row], tmp_path: Path) -> list[Path]:
    return write(tmp_path / "candidates.parquet", rows)


def splitmix64(z: int) -> int:
    """The published C code, on Python's integers."""
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_mix64_is_splitmix64_twice() -> None:
    pairs = torch.tensor([[0, 0], [1, 2], [2, 1], [-1, 2**62], [2**63 - 1, -(2**63)], [1234567, 0]])
    expected = [splitmix64(splitmix64(a % 2**64) ^ b % 2**64) for a, b in pairs.tolist()]
    assert mix64(pairs[:, 0], pairs[:, 1]).numpy().view(np.uint64).tolist() == expected
    assert splitmix64(1234567) == 6457827717110365317  # the published test vector


def as_row(sessions: CandidateSessions, index: int) -> dict[str, list[int | float]]:
    """One session's candidates in the order of the log."""
    real = sessions.mask[index]
    order = sessions.positions[index][real].argsort()
    names = ("items", "item_keys", "positions", "feedback", "rewards")
    return {name: getattr(sessions, name)[index][real][order].tolist() for name in names}


def test_every_logged_candidate_is_there_once_with_its_labels(files: list[Path], rows: list[Row]) -> None:
    sessions = load_sessions(files, "test", TASK, HISTORY)
    logged = {row["session_id"]: row for row in rows}
    assert sorted(sessions.session_id.tolist()) == sorted(logged)
    for index, session in enumerate(sessions.session_id.tolist()):
        found = as_row(sessions, index)
        assert found == {name: logged[session][name] for name in found}
        assert sessions.user_key[index] == logged[session]["user_key"]
    for values in (sessions.items, sessions.feedback, sessions.item_keys, sessions.tie, sessions.rewards):
        assert (values[~sessions.mask] == 0).all()


def test_the_state_is_that_before_the_first_page(files: list[Path], rows: list[Row]) -> None:
    sessions = load_sessions(files, "test", TASK, HISTORY)
    logged = {row["session_id"]: row for row in rows}
    state = sessions.state
    for index, session in enumerate(sessions.session_id.tolist()):
        row = logged[session]
        for values, name in ((state.initial_items, "initial_items"), (state.initial_feedback, "initial_feedback")):
            newest = row[name][-4:]
            assert values[index].tolist() == [0] * (4 - len(newest)) + newest
        np.testing.assert_allclose(state.user_features[index], row["user_features"], rtol=1e-6)
    assert torch.equal(state.history_items, state.initial_items)
    assert torch.equal(state.history_feedback, state.initial_feedback)
    assert state.page_items.shape == state.page_feedback.shape == (60, 3, TASK.page_size)
    nothing: list[Tensor] = [state.page_items, state.page_feedback, state.skipped_items, state.pages_seen]
    assert not any(values.any() for values in nothing)


def test_the_logged_order_is_gone(rows: list[Row], files: list[Path], tmp_path: Path) -> None:
    """Candidates that the file lists in reverse give the same batch, in the order of the hash."""
    lists = ("items", "item_keys", "positions", "feedback", "rewards")
    reversed_rows = [row | {name: row[name][::-1] for name in lists} for row in rows[::-1]]
    a = load_sessions(files, "test", TASK, HISTORY)
    b = load_sessions(write(tmp_path / "reversed.parquet", reversed_rows), "test", TASK, HISTORY)
    for name in (*lists, "session_id", "mask", "tie"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    expected = torch.where(a.mask, mix64(a.session_id[:, None], a.item_keys), 0)
    assert torch.equal(a.tie, expected)
    assert ((a.tie[:, 1:] > a.tie[:, :-1]) | ~a.mask[:, 1:]).all()
    shares = [
        np.mean(np.diff(p[m]) > 0) for p, m in zip(a.positions.numpy(), a.mask.numpy(), strict=True) if m.sum() > 5
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_chunks_hold_all_sessions_shortest_first_and_hardly_padded(files: list[Path]) -> None:
    whole = load_sessions(files, "test", TASK, HISTORY)
    chunks = list(iter_sessions(files, "test", TASK, HISTORY, chunk=7))
    assert [len(chunk) for chunk in chunks] == [7] * 8 + [4]
    assert torch.equal(torch.cat([chunk.session_id for chunk in chunks]), whole.session_id)
    assert (whole.lengths.diff() >= 0).all()
    for chunk in chunks:
        assert chunk.items.shape[1] == int(chunk.lengths[-1])
    part = whole[7:14].trimmed()
    assert torch.equal(part.tie, chunks[1].tie)
    assert torch.equal(part.state.history_items, chunks[1].state.history_items)


def test_a_sample_is_fixed_by_its_seed(files: list[Path]) -> None:
    samples = [load_sessions(files, "test", TASK, HISTORY, 20, seed).session_id.tolist() for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert len(set(samples[0])) == 20
    assert len(load_sessions(files, "test", TASK, HISTORY, limit=1000)) == 60


def test_the_status_of_a_session_follows_its_feedback(tmp_path: Path) -> None:
    feedback = {1: [1, 1, 1], 2: [1, 2, 5], 3: [2, 3, 4], 4: [1, 5, 1]}
    lists = {"items": [7, 8, 9], "item_keys": [70, 80, 90], "positions": [0, 1, 2], "rewards": [0.0, 0.0, 0.0]}
    rows = [make_rows(1)[0] | lists | {"session_id": n, "feedback": codes} for n, codes in feedback.items()]
    sessions = load_sessions(write(tmp_path / "c.parquet", rows), "test", TASK, HISTORY)
    assert sessions.session_id.tolist() == [1, 2, 3, 4]
    assert sessions.positives.tolist() == [0, 2, 3, 1]
    assert sessions.scored.tolist() == [False, True, False, True]


def test_users_without_a_history_are_ranked_too(tmp_path: Path) -> None:
    rows = [row | {"initial_items": [], "initial_feedback": []} for row in make_rows(3)]
    sessions = load_sessions(write(tmp_path / "c.parquet", rows), "test", TASK, HISTORY)
    assert len(sessions) == 3
    assert not sessions.state.history_items.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "train"}, "There is no test session to rank. Give the test split a longer part of the log."),
        ({"user_features": [1.0]}, "a row of 1 values where the task has 4"),
    ],
)
def test_candidates_that_cannot_be_ranked_say_why(change: Row, message: str, tmp_path: Path) -> None:
    files = write(tmp_path / "c.parquet", [row | change for row in make_rows(3)])
    with pytest.raises(DataError, match=message):
        load_sessions(files, "test", TASK, HISTORY)


def test_a_split_without_sessions_yields_no_chunk(files: list[Path]) -> None:
    assert list(iter_sessions(files, "validation", TASK, HISTORY)) == []
    assert list(iter_sessions([], "test", TASK, HISTORY)) == []
