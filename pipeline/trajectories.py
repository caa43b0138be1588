"""Trajectories: logged page transitions with their states, original and hindsight goals; how they are written and read.

Written a bucket of sessions at a time and read a row group at a time, so memory does not grow with the log. The next
state is not stored: it is ``state.advance(action, feedback)``, the same function that roll-outs use.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline import hindsight
from pipeline.counters import count_items, count_totals
from pipeline.errors import DataError
from pipeline.experiment import Experiment
from pipeline.schemas import COUNTERS, SCHEMAS
from pipeline.splits import session_splits
from pipeline.warehouse import connect, copy_select, create_table, read_table, sql_text

Array = np.ndarray[Any, np.dtype[Any]]
BUCKET_PAGES = 20_000  # pages that are worked on at once, and rows of a row group: what bounds the memory
MEASUREMENT_FILE = "measurement.json"


def build_candidates(inputs: dict[str, list[Path]], experiment: Experiment, out: Path) -> int:
    """Write the validation and test sessions that leg 1 ranks; returns the sessions."""
    with connect(inputs) as con:
        page_states(con, experiment)
        con.execute(
            "create table questions as select distinct item_id, start_ts as ts "
            "from impressions join sessions using (session_id) join session_splits using (session_id) "
            "where split in ('validation', 'test')"
        )
        count_items(con)
        return copy_select(con, sql_text("staging/session_candidates"), out, "candidates")


def build_trajectories(inputs: dict[str, list[Path]], experiment: Experiment, out: Path) -> int:
    """Write the training window's page transitions, each as an original and a hindsight row; returns the rows.

    Beside the table lies ``measurement.json``: the names of the components and their training standard deviations.
    Sessions are put in buckets by a hash, so that a row group is a random sample of sessions.
    """
    rng = np.random.default_rng(experiment.hindsight.seed)
    reduced = hindsight.fit_pca(embedding_matrix(inputs["item_embeddings"]), experiment.hindsight.embedding_components)
    with connect(inputs) as con:
        page_states(con, experiment)
        con.execute(
            "create table questions as select distinct item_id, impression_ts as ts "
            "from impressions join session_splits using (session_id) where split = 'train'"
        )
        count_totals(con)
        create_table(con, "page_counters", "staging/page_counters", {"cols": experiment.sessions.cols})
        [(pages,)] = con.sql("select count(*) from page_states where split = 'train'").fetchall()
        if not pages:
            raise DataError("The training window shows no page to anybody: move the cut-offs in `splits`.")
        buckets = -(-pages // BUCKET_PAGES)
        deviation = None
        rows = 0
        with pq.ParquetWriter(out, SCHEMAS["trajectories"], compression="zstd") as writer:
            for bucket in range(buckets):
                logged = _bucket(con, bucket, buckets)
                columns, sessions = _columns(logged, experiment, reduced)
                final = hindsight.measurements(sessions, hindsight.horizons(sessions.offsets, "final", rng))
                if deviation is None:  # the first bucket is a random sample of the training sessions
                    deviation = hindsight.scale(final, sessions.shown)
                for table in _relabelled(columns, sessions, final, deviation, experiment, rng):
                    writer.write_table(table, row_group_size=BUCKET_PAGES)
                    rows += len(table)
    names = hindsight.measurement_names(experiment.hindsight.embedding_components)
    described = {"names": names, "scale": [float(value) for value in np.asarray(deviation)]}
    (out.parent / MEASUREMENT_FILE).write_text(json.dumps(described, indent=1), encoding="utf-8")
    return rows


def embedding_matrix(files: Sequence[Path]) -> Array:
    """Item embeddings as [I+1, E] float32; row 0, the unknown item, is zeros."""
    table = read_table(files, "item_embeddings")
    vectors = np.stack(table["embedding"].to_numpy()) if len(table) else np.zeros((0, 2), np.float32)
    matrix = np.zeros((len(vectors) + 1, vectors.shape[1]), np.float32)
    matrix[table["item"].to_numpy()] = vectors
    return matrix


def feedback_codes() -> pa.Table:
    """The table ``codes`` of the SQL: the name and the number of each feedback."""
    codes = pa.array([int(code) for code in Feedback], pa.int8())
    return pa.table({"name": [code.name.lower() for code in Feedback], "code": codes})


def page_states(con: duckdb.DuckDBPyConnection, experiment: Experiment) -> None:
    """Make the temporary table ``page_states``: see sql/staging/page_states.sql."""
    con.register("codes", feedback_codes())
    session_splits(con)
    # A frame's bound cannot be a parameter of a prepared statement; the settings are checked integers.
    text = sql_text("staging/page_states").replace("$positives", str(int(experiment.history.positives)))
    params = {"first_positive": int(FIRST_POSITIVE), "skip": int(Feedback.SKIP), "cols": experiment.sessions.cols}
    con.execute(f"create or replace temp table page_states as {text}", params)


def _bucket(con: duckdb.DuckDBPyConnection, bucket: int, buckets: int) -> pa.Table:
    query = (
        "select * from page_states join page_counters using (session_id, page) "
        "where split = 'train' and session_id % $n = $b order by session_id, step"
    )
    return con.sql(query, params={"n": buckets, "b": bucket}).to_arrow_table()


def _columns(logged: pa.Table, experiment: Experiment, reduced: Array) -> tuple[dict[str, Array], hindsight.Pages]:
    """The columns that both relabels share, as padded arrays of R rows; the sessions as hindsight.py wants them."""
    slots, positives, pages = experiment.sessions.page_size, experiment.history.positives, experiment.history.pages
    step = logged["step"].to_numpy()
    placed = {name: place(logged, name, slots) for name in ("action", "feedback", "rewards", "propensities")}
    columns = {
        **{name: logged[name].to_numpy() for name in ("session_id", "user", "step", "terminated", "truncated")},
        "user_features": ragged(logged["user_features"])[0].reshape(len(logged), -1),
        **placed,
        **{
            name: pad_left(logged[name], positives)
            for name in ("initial_items", "initial_feedback", "history_items", "history_feedback", "skipped_items")
        },
        "page_items": earlier(placed["action"], step, pages),
        "page_feedback": earlier(placed["feedback"], step, pages),
        "reward": placed["rewards"].sum(axis=1),
        "page_propensity": _page_propensity(placed["propensities"], placed["feedback"]),
        "counters": place(logged, "counters", slots, len(COUNTERS)),
    }
    offsets = np.append(np.flatnonzero(step == 0), len(step))
    sessions = hindsight.Pages(
        offsets=offsets,
        items=placed["action"],
        feedback=placed["feedback"],
        terminated=columns["terminated"],
        embeddings=reduced,
    )
    return columns, sessions


def _relabelled(
    columns: dict[str, Array],
    sessions: hindsight.Pages,
    final: Array,
    deviation: Array,
    experiment: Experiment,
    rng: np.random.Generator,
) -> Iterator[pa.Table]:
    """The bucket's original rows and its hindsight rows, as two published tables."""
    last = hindsight.horizons(sessions.offsets, "final", rng)
    session_goal, _ = hindsight.session_goals(sessions, deviation)
    original_goal = np.where(sessions.shown[..., None], session_goal[:, None], 0)  # [R, K, D]
    horizon = hindsight.horizons(sessions.offsets, experiment.hindsight.strategy, rng)
    reached = final if experiment.hindsight.strategy == "final" else hindsight.measurements(sessions, horizon)
    for relabel, until, measured, goal in (
        ("original", last, final, original_goal),
        ("hindsight", horizon, reached, hindsight.goals(reached, deviation)[0]),
    ):
        labels = {"level": "page", "relabel": relabel}
        rows = len(until)
        values = {**columns, "horizon": until, "measurement": measured, "goal": goal}
        yield pa.table(
            {
                field.name: pa.array([labels[field.name]] * rows, field.type)
                if field.name in labels
                else _arrow(values[field.name], field.type)
                for field in SCHEMAS["trajectories"]
            },
            schema=SCHEMAS["trajectories"],
        )


def _arrow(values: Array, kind: pa.DataType) -> pa.Array:
    """Rows of equal width as a list column, of NaN null; plain columns as they are."""
    if not pa.types.is_list(kind):
        return pa.array(values).cast(kind)
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.ravel(), from_pandas=True).cast(kind.value_type))


def ragged(column: pa.ChunkedArray) -> tuple[Array, Array]:
    """The values of a list column end to end, and the length of each row's list (0 for null)."""
    array = column.combine_chunks()
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False), lengths


def pad_left(column: pa.ChunkedArray, width: int) -> Array:
    """A list column as [R, width], newest entries at the right end, zeros before them."""
    values, lengths = ragged(column)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    place = width - np.repeat(np.cumsum(lengths), lengths) + np.arange(len(values))
    padded = np.zeros((len(lengths), width), values.dtype)
    padded[rows[place >= 0], place[place >= 0]] = values[place >= 0]
    return padded


def place(logged: pa.Table, name: str, width: int, numbers: int | None = None) -> Array:
    """A list column laid out by the column ``slots``, [R, width]; empty slots hold 0, unknown propensities NaN.

    With ``numbers`` the list has so many of them for each slot: [R, width, numbers].
    """
    values = ragged(logged[name])[0]
    slots, lengths = ragged(logged["slots"])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    fill = np.nan if name == "propensities" else 0
    of_slot = () if numbers is None else (numbers,)
    placed = np.full((len(lengths), width, *of_slot), fill, values.dtype)
    placed[rows, slots] = values.reshape(-1, *of_slot)
    return placed


def earlier(pages: Array, step: Array, count: int) -> Array:
    """The ``count`` pages of the same session before each row, [R, count, K], zeros where there were fewer."""
    back = np.arange(count, 0, -1)  # [count], the newest last
    rows = np.arange(len(pages))[:, None] - back
    valid = step[:, None] >= back
    return np.where(valid[..., None], pages[np.maximum(rows, 0)], 0)


def _page_propensity(propensities: Array, feedback: Array) -> Array:
    """Product over the shown slots, [R]; NaN where one was not logged."""
    product: Array = np.where(feedback > 0, propensities, 1.0).prod(axis=1)
    return product


@dataclass(frozen=True)
class TrajectoryReader:
    """Streams training batches: row groups in a shuffled order, rows shuffled within a few of them at a time.

    The batch of a step depends on the seed and the step alone, so a resumed run sees what the first would have seen.
    """

    files: tuple[Path, ...]
    batch_size: int  # rows
    seed: int
    groups_at_once: int = 4

    def batches(self, start: int = 0) -> Iterator[pa.Table]:
        """Batches without end, from step ``start`` on; every row once an epoch, its last incomplete batch dropped."""
        sizes = {
            (path, group): pq.read_metadata(path).row_group(group).num_rows
            for path in self.files
            for group in range(pq.read_metadata(path).num_row_groups)
        }
        groups = [group for group, size in sizes.items() if size]
        rows = [sizes[group] for group in groups]
        epoch = 0
        while True:
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(len(groups))
            produced = 0
            for at in range(0, len(order), self.groups_at_once):
                chosen = order[at : at + self.groups_at_once]
                shuffled = rng.permutation(sum(rows[g] for g in chosen))
                count = max(1, len(shuffled) // self.batch_size)
                produced += count
                if start >= count:
                    start -= count
                    continue
                table = pa.concat_tables([pq.ParquetFile(groups[g][0]).read_row_group(groups[g][1]) for g in chosen])
                for b in range(start, count):
                    yield table.take(shuffled[b * self.batch_size : (b + 1) * self.batch_size])
                start = 0
            if not produced:
                raise DataError(f"{self.files} hold no training rows: move the cut-offs in `splits`.")
            epoch += 1
