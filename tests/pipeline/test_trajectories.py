"""Trajectories: states of the past alone, goals that were reached, and batches that a resume finds again."""

from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.feedback import FIRST_POSITIVE, Feedback
from models.observation import ObservationEncoder
from pipeline.errors import DataError
from pipeline.schemas import COUNTERS
from pipeline.task import TASK_TABLES, load_task, transition_batch, transitions
from pipeline.trajectories import TrajectoryReader, build_trajectories, pad_left
from pipeline.warehouse import connect, read_table
from tests.conftest import Run

CODE = {code.name.lower(): int(code) for code in Feedback}
N, P, K = 10, 5, 10


@pytest.fixture(scope="module")
def rows(tiny: Run) -> list[dict[str, Any]]:
    return read_table(tiny.plan.store.files("trajectories"), "trajectories").to_pylist()


@pytest.fixture(scope="module")
def logged(tiny: Run) -> list[dict[str, Any]]:
    """Every impression of the log in the order in which its user saw it, with dense items."""
    inputs = {table: tiny.plan.store.files(table) for table in ("impressions", "sessions", "items")}
    with connect(inputs) as con:
        return (
            con.sql(
                "select i.*, s.start_ts, items.item from impressions i join sessions s using (session_id) "
                "join items using (item_id) order by i.user_id, s.start_ts, session_id, page, position"
            )
            .to_arrow_table()
            .to_pylist()
        )


def last(values: list[int], width: int) -> list[int]:
    return ([0] * width + values)[-width:]


def test_states_are_what_the_user_had_done_before_the_page(
    rows: list[dict[str, Any]], logged: list[dict[str, Any]]
) -> None:
    pages: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in logged:
        pages[row["session_id"], row["page"]].append(row)
    wanted = {}
    history: dict[str, list[tuple[int, int]]] = defaultdict(list)
    start: dict[int, list[tuple[int, int]]] = {}
    skipped: dict[int, list[int]] = defaultdict(list)
    for (session, page), shown in pages.items():
        user = shown[0]["user_id"]
        start.setdefault(session, list(history[user]))
        wanted[session, page] = {
            "history_items": last([item for item, _ in history[user]], N),
            "history_feedback": last([code for _, code in history[user]], N),
            "initial_items": last([item for item, _ in start[session]], N),
            "skipped_items": last(skipped[session], N),
            "action": [row["item"] for row in shown],
            "feedback": [CODE[row["feedback"]] for row in shown],
            "reward": sum(row["reward"] for row in shown),
        }
        history[user] += [(r["item"], CODE[r["feedback"]]) for r in shown if CODE[r["feedback"]] >= FIRST_POSITIVE]
        skipped[session] += [row["item"] for row in shown if row["feedback"] == "skip"]
    assert rows
    for row in rows:
        expected = wanted[row["session_id"], row["step"]]
        assert {name: row[name] for name in expected} == expected


def test_earlier_pages_are_those_of_the_same_session(rows: list[dict[str, Any]]) -> None:
    action = {(row["session_id"], row["step"]): row["action"] for row in rows}
    for row in rows:
        earlier = [action.get((row["session_id"], row["step"] - back), [0] * K) for back in range(P, 0, -1)]
        assert row["page_items"] == [item for page in earlier for item in page]


def test_a_page_is_told_what_features_say_of_its_items_and_all_that_lay_before(
    tiny: Run, rows: list[dict[str, Any]], logged: list[dict[str, Any]]
) -> None:
    features = read_table(tiny.plan.store.files("features"), "features").to_pylist()
    windows = {(row["session_id"], row["position"]): [row[name] for name in COUNTERS[2:]] for row in features}
    shown, liked = defaultdict(list), defaultdict(list)
    for row in logged:
        shown[row["item"]].append(row["impression_ts"])
        liked[row["item"]] += [row["positive_ts"]] if row["positive_ts"] else []
    pages = {(row["session_id"], row["page"], row["row"] * 2 + row["col"]): row for row in logged}
    assert tiny.experiment.sessions.cols == 2
    known = 0
    for row in rows[:: len(rows) // 100]:
        for slot, item in enumerate(row["action"]):
            found = row["counters"][slot * len(COUNTERS) : (slot + 1) * len(COUNTERS)]
            if row["feedback"][slot] == 0:
                assert not any(found)
                continue
            page = pages[row["session_id"], row["step"], slot]
            so_far = [sum(ts < page["impression_ts"] for ts in past[item]) for past in (shown, liked)]
            wanted = so_far + windows[row["session_id"], page["position"]]
            assert found == [None if value is None else np.float32(value) for value in wanted]
            known += so_far[1] > 0
    assert known > 50


def test_only_training_sessions_have_goals(tiny: Run, rows: list[dict[str, Any]]) -> None:
    inputs = {table: tiny.plan.store.files(table) for table in ("sessions", "splits")}
    from pipeline.splits import session_splits

    with connect(inputs) as con:
        session_splits(con)
        train = {s for (s,) in con.sql("select session_id from session_splits where split = 'train'").fetchall()}
    assert {row["session_id"] for row in rows} == train


def test_each_page_has_an_original_and_a_hindsight_row_and_goals_have_unit_length(rows: list[dict[str, Any]]) -> None:
    kinds = defaultdict(list)
    for row in rows:
        kinds[row["session_id"], row["step"]].append(row["relabel"])
        lengths = np.linalg.norm(np.reshape(row["goal"], (K, -1)), axis=1)
        assert np.all(np.isclose(lengths, 1, atol=1e-5) | (lengths == 0))
    assert all(sorted(found) == ["hindsight", "original"] for found in kinds.values())


def test_a_hindsight_goal_points_where_the_measurement_went(tiny: Run, rows: list[dict[str, Any]]) -> None:
    task = load_task({table: tiny.plan.store.files(table) for table in TASK_TABLES}, tiny.experiment)
    scale = task.measurement_scale.numpy()
    for row in [row for row in rows if row["relabel"] == "hindsight"][:200]:
        measured = np.reshape(row["measurement"], (K, -1)) / scale
        goal = np.reshape(row["goal"], (K, -1))
        np.testing.assert_allclose((measured * goal).sum(1), np.linalg.norm(measured, axis=1), rtol=1e-4)


def test_the_last_page_terminates_and_no_other(rows: list[dict[str, Any]]) -> None:
    steps: dict[int, int] = defaultdict(int)
    for row in rows:
        steps[row["session_id"]] = max(steps[row["session_id"]], row["step"])
    assert all(row["terminated"] == (row["step"] == steps[row["session_id"]]) for row in rows)


def test_advancing_a_state_gives_the_next_row_of_the_session(tiny: Run) -> None:
    files = tiny.plan.store.files("trajectories")
    task = load_task({table: tiny.plan.store.files(table) for table in TASK_TABLES}, tiny.experiment)
    table = read_table(files, "trajectories").to_pandas()
    table = table[table["relabel"] == "original"].sort_values(["session_id", "step"])
    batch = transition_batch(pa.Table.from_pandas(table, preserve_index=False), task)
    after = batch.state.advance(batch.items, batch.feedback)
    session = torch.tensor(table["session_id"].to_numpy())
    going_on = (session[1:] == session[:-1]).nonzero()[:, 0]
    assert len(going_on) > 20
    for name in ("history_items", "history_feedback", "skipped_items", "page_items", "page_feedback", "pages_seen"):
        assert torch.equal(getattr(after[going_on], name), getattr(batch.state[going_on + 1], name)), name


def test_batches_depend_on_the_seed_and_the_step_alone(tiny: Run) -> None:
    files = tuple(tiny.plan.store.files("trajectories"))
    first = list(islice(TrajectoryReader(files, 32, seed=1).batches(), 60))
    resumed = list(islice(TrajectoryReader(files, 32, seed=1).batches(start=37), 23))
    assert all(a.equals(b) for a, b in zip(first[37:], resumed, strict=True))
    other = next(TrajectoryReader(files, 32, seed=2).batches())
    assert not other.equals(first[0])


def test_an_epoch_shows_every_row_once(tmp_path: Path) -> None:
    table = pa.table({"row": np.arange(1000)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=70)
    reader = TrajectoryReader((tmp_path / "t.parquet",), batch_size=10, seed=0, groups_at_once=2)
    seen = [row for batch in islice(reader.batches(), 100) for row in batch["row"].to_pylist()]
    assert sorted(seen) == list(range(1000))


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": pa.array([], pa.int64())}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="hold no training rows"):
        next(TrajectoryReader((tmp_path / "t.parquet",), 10, 0).batches())


@pytest.mark.parametrize("strategy", ["final", "future", "random"])
def test_every_strategy_looks_from_the_step_to_the_end(tiny: Run, tmp_path: Path, strategy: str) -> None:
    inputs = {
        table: tiny.plan.store.files(table)
        for table in ("impressions", "sessions", "splits", "items", "users", "item_embeddings", "features")
    }
    hindsight = tiny.experiment.hindsight.model_copy(update={"strategy": strategy})
    experiment = tiny.experiment.model_copy(update={"hindsight": hindsight})
    build_trajectories(inputs, experiment, tmp_path / "trajectories.parquet")
    table = read_table([tmp_path / "trajectories.parquet"], "trajectories").to_pandas()
    final = table.groupby("session_id")["step"].transform("max")
    relabelled = table["relabel"] == "hindsight"
    assert (table.loc[~relabelled, "horizon"] == final[~relabelled]).all()
    horizon, step, end = (column[relabelled] for column in (table["horizon"], table["step"], final))
    assert ((horizon >= step) & (horizon <= end)).all()
    if strategy == "final":
        assert (horizon == end).all()
    else:
        assert (horizon < end).any()
        assert ((horizon == step) & (step < end)).any() == (strategy == "random")


def test_an_item_of_the_test_window_alone_is_unknown_everywhere(tiny: Run) -> None:
    """No item in a training row or in a catalogue is one that the training window never showed."""
    inputs = {table: tiny.plan.store.files(table) for table in ("impressions", "items", "sessions", "splits")}
    from pipeline.splits import session_splits

    with connect(inputs) as con:
        session_splits(con)
        shown = {
            item
            for (item,) in con.sql(
                "select distinct item_id from impressions join session_splits using (session_id) where split = 'train'"
            ).fetchall()
        }
        known = {item for (item,) in con.sql("select item_id from items where item > 0").fetchall()}
    assert known == shown


def test_the_mdp_dataset_holds_the_same_transitions(tiny: Run) -> None:
    from models.d3rlpy_baselines import ItemActions, to_mdp_dataset

    task = load_task({table: tiny.plan.store.files(table) for table in TASK_TABLES}, tiny.experiment)
    table = read_table(tiny.plan.store.files("trajectories"), "trajectories").to_pandas()
    table = table.sort_values(["session_id", "step", "relabel"])
    batch = transition_batch(pa.Table.from_pandas(table, preserve_index=False), task)
    sessions = torch.tensor(table["session_id"].to_numpy())
    dataset = to_mdp_dataset([batch], sessions, ObservationEncoder(task), ItemActions(task))
    assert dataset.transition_count == int((table["relabel"] == "original").sum())


def test_lists_are_padded_on_the_left_and_keep_the_newest() -> None:
    column = pa.chunked_array([[[1, 2, 3], None, []], [[4]]])
    assert pad_left(column, 2).tolist() == [[2, 3], [0, 0], [0, 0], [0, 4]]


def test_a_batch_has_the_widths_of_its_task(tiny: Run) -> None:
    task = load_task({table: tiny.plan.store.files(table) for table in TASK_TABLES}, tiny.experiment)
    batch = next(transitions(tiny.plan.store.files("trajectories"), task, 16, seed=0))
    assert batch.state.user_features.shape == (16, task.user_width)
    assert batch.goal.shape == (16, task.page_size, len(task.measurement_names))
    assert batch.hindsight.any()
    assert not batch.hindsight.all()
