"""Against a walk over the rows, one by one."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.feedback import FIRST_POSITIVE, Feedback
from pipeline import constructed
from pipeline.constructed import Rules, impressions_and_sessions, near_midnight, whole_visits, write_sessions
from pipeline.schemas import SCHEMAS

DAY = constructed.DAY_US
REWARDS = np.array([0.0, 0.0, 0.1, 0.2, 0.3, 5.0])
RULES = Rules(first_us=0, last_us=40 * DAY, max_us=DAY // 3, page_size=3, cols=2, rewards=REWARDS)
PAUSE = DAY // 40
Row = dict[str, Any]


def visits(seed: int, users: int = 12) -> pa.Table:
    """Acts of some users in order of time, one of them without a pause for five days."""
    rng = np.random.default_rng(seed)
    tables = []
    for user in range(users):
        acts = 400 if user == 5 else int(rng.integers(1, 40))
        items = rng.integers(0, 6, acts)
        steps = rng.integers(0, PAUSE, acts) if user == 5 else rng.exponential(PAUSE / 2, acts).astype(np.int64)
        tables.append(
            pa.table(
                {
                    "user_id": [f"u{user}"] * acts,
                    "item_id": [f"i{item}" for item in items],
                    "item_key": (items.astype(np.uint64) + np.uint64(7)) * np.uint64(0x5851F42D4C957F2D),
                    "visit": np.full(acts, 1000 - user, np.uint64),
                    "us": rng.integers(0, DAY) + np.cumsum(steps),
                    "session_id": rng.integers(0, 1 << 62, acts),
                    "pause": np.full(acts, PAUSE),
                    "code": rng.choice([1, 1, 1, 2, 3, 5], acts).astype(np.int8),
                }
            )
        )
    return pa.concat_tables(tables).combine_chunks()


def walked(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Impressions and sessions of the same rows, as the text says it."""
    found: list[list[Row]] = []
    cut: list[bool] = []
    chain_us = 0
    for before, row in zip([None, *rows], rows, strict=False):
        is_chain = before is None or row["visit"] != before["visit"] or row["us"] - before["us"] > row["pause"]
        chain_us = row["us"] if is_chain else chain_us
        is_rest = row["us"] - chain_us >= RULES.max_us
        row["piece"] = (row["us"] // DAY, row["us"] % DAY // RULES.max_us) if is_rest else "first"
        if is_chain or (before and row["piece"] != before["piece"]):
            found.append([])
            cut.append(not is_chain)
        found[-1].append(row)
    shown: list[Row] = []
    sessions: list[Row] = []
    for acts, capped in zip(found, [*cut[1:], False], strict=True):
        items: dict[str, list[Row]] = {}
        for act in acts:
            items.setdefault(act["item_id"], []).append(act)
        starts = [of_item[0]["us"] for of_item in items.values()]
        own = []
        for position, of_item in enumerate(items.values()):
            code = max(act["code"] for act in of_item)
            page, slot = divmod(position, RULES.page_size)
            positive = [act["us"] for act in of_item if act["code"] >= FIRST_POSITIVE]
            own.append(
                {
                    "session_id": acts[0]["session_id"], "user_id": acts[0]["user_id"],
                    "item_id": of_item[0]["item_id"], "page": page, "row": slot // 2, "col": slot % 2,
                    "position": position,
                    "feedback": Feedback(code).name.lower(), "reward": np.float32(REWARDS[code]), "propensity": None,
                    "page_ts": starts[page * RULES.page_size], "impression_ts": starts[position],
                    "positive_ts": positive[0] if positive else None,
                }
            )  # fmt: skip
        shown += own
        codes = [Feedback[row["feedback"].upper()] for row in own]
        sessions.append(
            {
                "session_id": acts[0]["session_id"], "user_id": acts[0]["user_id"],
                "start_ts": acts[0]["us"], "end_ts": acts[-1]["us"], "pages": own[-1]["page"] + 1,
                "impressions": len(own), "clicks": sum(code >= FIRST_POSITIVE for code in codes),
                "purchases": codes.count(Feedback.PURCHASE),
                "reward": np.float32(round(sum(REWARDS[code] for code in codes), 6)), "capped": capped,
            }
        )  # fmt: skip
    return shown, sessions


def as_rows(table: pa.Table | pa.RecordBatch) -> list[Row]:
    """Rows with instants in microseconds."""
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in table.columns]
    return pa.table(columns, names=table.schema.names).to_pylist()


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_over_the_rows_finds_the_same(seed: int) -> None:
    rows = visits(seed)
    shown, sessions = walked(rows.to_pylist())
    of_items, of_sessions = impressions_and_sessions(rows, RULES)
    assert as_rows(of_items) == shown
    assert as_rows(of_sessions) == sessions
    assert any(row["capped"] for row in sessions)
    assert len(shown) < len(rows)


def test_only_sessions_that_start_in_the_range_and_are_not_left_out_are_given() -> None:
    rows = visits(1)
    rules = Rules(DAY // 2, 2 * DAY, RULES.max_us, RULES.page_size, RULES.cols, REWARDS)
    left_out = rows["visit"].to_numpy() == 1000 - 3
    shown, sessions = walked(rows.to_pylist())
    kept = {s["session_id"] for s in sessions if DAY // 2 <= s["start_ts"] < 2 * DAY and s["user_id"] != "u3"}
    assert 0 < len(kept) < len(sessions)
    for found, all_rows in zip(impressions_and_sessions(rows, rules, left_out), (shown, sessions), strict=True):
        assert as_rows(found) == [row for row in all_rows if row["session_id"] in kept]


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_rows_are_cut_only_where_a_visit_ends(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(constructed, "CHUNK", chunk)
    rows = visits(2)
    tables = list(whole_visits(rows.to_batches(max_chunksize=7)))
    assert pa.concat_tables(tables).equals(rows)
    seen = [set(table["visit"].to_pylist()) for table in tables]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert (len(tables) > 3) == (chunk < 100)


def test_a_run_of_acts_near_midnight_is_told_from_the_others() -> None:
    gap = 10
    acts = [  # visit, microsecond, whether the visit may cross midnight
        (1, 10, False), (1, DAY - 11, False),
        (1, DAY + 9, True), (1, DAY + 19, True), (1, DAY + 500, False),
        (2, 300, False), (2, DAY - 21, False), (2, DAY - 10, True),
        (2, DAY + 10, False),
    ]  # fmt: skip
    visit, us, near = zip(*acts, strict=True)
    assert near_midnight(pa.table({"visit": visit, "us": us}), gap).tolist() == list(near)


def test_both_tables_are_written_in_the_published_form(tmp_path: Any) -> None:
    rows = visits(3)
    paths = tmp_path / "a" / "impressions.parquet", tmp_path / "b" / "sessions.parquet"
    counts = write_sessions(rows.to_batches(max_chunksize=100), RULES, *paths)
    shown, sessions = walked(rows.to_pylist())
    capped = sum(row["capped"] for row in sessions)
    assert counts == {"impressions": len(shown), "sessions": len(sessions), "capped": capped}
    for path, table, expected in zip(paths, ("impressions", "sessions"), (shown, sessions), strict=True):
        assert pq.read_schema(path).equals(SCHEMAS[table])
        assert as_rows(pq.read_table(path)) == expected


def test_nothing_gives_empty_tables(tmp_path: Any) -> None:
    paths = tmp_path / "impressions.parquet", tmp_path / "sessions.parquet"
    assert write_sessions([], RULES, *paths) == {"impressions": 0, "sessions": 0, "capped": 0}
    assert [pq.read_schema(path) for path in paths] == [SCHEMAS["impressions"], SCHEMAS["sessions"]]
