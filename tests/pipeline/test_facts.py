"""Against Python's own sort and a set."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import facts
from pipeline.facts import write_facts
from pipeline.schemas import EVENT_TYPES, SCHEMAS, TIME

START = datetime(2024, 1, 1, tzinfo=UTC)
Row = dict[str, Any]
BATCH = pa.schema(
    [
        ("period", pa.date32()), ("event_id", pa.int64()), ("user_id", pa.string()), ("event_ts", TIME),
        ("event_type", pa.string()), ("category", pa.string()),
        ("line", pa.int64()), ("raw", pa.string()), ("reason", pa.string()),
    ]
)  # fmt: skip


def some_facts(seed: int, count: int = 600, spread: timedelta = timedelta(hours=60)) -> list[Row]:
    """Facts of three days, many of them at the same time or twice, and some that are refused."""
    rng = np.random.default_rng(seed)
    scattered = rng.permutation(72).reshape(2, 12, 3).astype(object)  # ids of a user's facts at a moment
    rows: list[Row] = []
    for line in range(1, count + 1):
        moment = START + round(rng.integers(0, 40) / 40 * (spread / timedelta(microseconds=1))) * timedelta(
            microseconds=1
        )
        accent, name, number = (int(draw) for draw in rng.integers(0, (5, 12, 3)))
        user = f"{'é' * (accent == 0)}{name}"
        row = {"event_id": scattered[int(accent == 0), name, number], "user_id": user, "event_ts": moment}
        row |= {"period": moment.date(), "event_type": "click", "category": str(line), "line": line}
        if rng.random() < 0.1:
            row |= {"period": None, "reason": f"reason {line % 3}", "raw": f"line {line}"}
        rows.append(row)
    return rows


def written(rows: list[Row], folder: Path, size: int = 70) -> facts.Written:
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, BATCH)
    clicks = pa.array([EVENT_TYPES.index("click")] * len(rows), pa.uint8())
    types = pa.DictionaryArray.from_arrays(clicks, list(EVENT_TYPES))  # as DuckDB gives an enum
    table = table.set_column(BATCH.get_field_index("event_type"), "event_type", types)
    return write_facts(iter(table.to_batches(max_chunksize=size)), folder, "a log")


def expected(rows: list[Row], day: date) -> list[tuple[Any, ...]]:
    """The first of equal facts, by user, time and id; text is ordered by its bytes."""
    first: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row["period"] == day:
            key = (row["user_id"].encode(), row["event_ts"], row["event_id"])
            first.setdefault(key, row["category"])
    return [(*key, category) for key, category in sorted(first.items())]


@pytest.mark.parametrize("largest", [0, 1 << 30])
@pytest.mark.parametrize("seed", range(3))
def test_a_partition_has_each_of_its_facts_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, largest: int
) -> None:
    monkeypatch.setattr(facts, "LARGEST", largest)
    monkeypatch.setattr(facts, "ROW_GROUP", 50)
    monkeypatch.setattr(facts, "CHUNK", 90)
    rows = some_facts(seed)
    found = written(rows, tmp_path / "staged")
    kept = 0
    for key, count in found.events.items():
        table = pq.read_table(tmp_path / "staged" / "events" / f"{key}.parquet")
        assert table.schema.equals(SCHEMAS["events"])
        own = table.select(["user_id", "event_ts", "event_id", "category"]).to_pylist()
        assert [(r["user_id"].encode(), *list(r.values())[1:]) for r in own] == expected(rows, date.fromisoformat(key))
        assert table["event_date"].unique().to_pylist() == [date.fromisoformat(key)]
        assert table["source"].unique().to_pylist() == ["a log"]
        assert table["value"].null_count == count == len(table)
        kept += count
    assert list(found.events) == ["2024-01-01", "2024-01-02", "2024-01-03"]
    refused = [row for row in rows if row["period"] is None]
    assert found.duplicates == len(rows) - len(refused) - kept > 0
    rejects = pq.read_table(tmp_path / "staged" / "rejects.parquet").to_pylist()
    assert rejects == [{name: row[name] for name in ("line", "raw", "reason")} for row in refused]
    assert found.reasons == Counter(row["reason"] for row in refused)
    assert sorted(path.name for path in (tmp_path / "staged").iterdir()) == ["events", "rejects.parquet"]


def test_times_too_far_apart_for_one_number_are_sorted_too() -> None:
    rows = pa.Table.from_pylist(some_facts(5, spread=timedelta(days=365 * 290)), BATCH)
    many = pa.array([f"{n:07}" for n in np.random.default_rng(0).permutation(len(rows)) % 37])
    rows = rows.set_column(rows.schema.get_field_index("user_id"), "user_id", many)
    keys = list(zip(*(rows[name].to_pylist() for name in ("user_id", "event_ts", "event_id")), strict=True))
    order = facts._order(rows)
    assert order.tolist() == sorted(range(len(keys)), key=lambda place: (*keys[place], place))


@pytest.mark.parametrize("bits", [1, 54, 55, 64])  # a thousand places take ten bits
def test_numbers_of_any_width_are_sorted(bits: int) -> None:
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, 1_000, dtype=np.uint64, endpoint=False)
    order = facts._argsort(numbers, bits)
    assert sorted(order.tolist()) == list(range(1_000))
    assert np.array_equal(numbers[order], np.sort(numbers))


@pytest.mark.parametrize(
    "texts",
    [
        ["b", "a", "", "ab", "a b", "é", "日本", "zz", "12345678", "1234567"],
        ["123456789", "12345678", "a"],  # too long for a number
        ["a\0", "a", "b", "a\0\0"],  # the same number
        ["7"],
    ],
)
def test_texts_are_ordered_by_their_bytes(texts: list[str]) -> None:
    order = facts._text_order(pa.array(["y", *texts], pa.string()).slice(1))
    assert [texts[place] for place in order] == sorted(texts, key=str.encode)


def test_the_bytes_do_not_depend_on_how_the_facts_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ROW_GROUP", 50)
    rows = some_facts(9)
    outputs = []
    for largest, chunk, size in ((0, 90, 70), (0, 10_000, 3), (1 << 30, 90, 70), (1 << 30, 10_000, 3)):
        monkeypatch.setattr(facts, "LARGEST", largest)
        monkeypatch.setattr(facts, "CHUNK", chunk)
        folder = tmp_path / f"{largest}-{chunk}"
        written(rows, folder, size)
        outputs.append([path.read_bytes() for path in sorted((folder / "events").iterdir())])
    assert all(output == outputs[0] for output in outputs)


@pytest.mark.parametrize(("memory", "by_duckdb"), [("10MiB", True), ("4GiB", False)])
def test_what_may_be_held_in_memory_decides_who_sorts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, by_duckdb: bool
) -> None:
    asked: list[int] = []
    inside = facts._sorted_by_duckdb
    monkeypatch.setattr(facts, "_sorted_by_duckdb", lambda rows: asked.append(len(rows)) or inside(rows))
    monkeypatch.setattr(facts, "TIMES", 1_000)  # 5 kB each for the two writers, or 2 MB
    monkeypatch.setenv("HINDSIGHT_MEMORY", memory)
    written(some_facts(4, 3_000), tmp_path / "staged")
    assert bool(asked) == by_duckdb


def test_a_log_without_usable_facts_has_no_partitions(tmp_path: Path) -> None:
    refused = [row for row in some_facts(1) if row["period"] is None]
    assert written(refused, tmp_path / "refused").events == {}
    assert written([], tmp_path / "none") == facts.Written({}, 0, {})
    assert pq.read_metadata(tmp_path / "none" / "rejects.parquet").num_rows == 0
