from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.entities import build_items, build_mentions, build_users, standardised, write_entities
from pipeline.schemas import COUNTERS
from pipeline.sources.base import ITEM_COLUMNS
from tests.pipeline.logs import at, event, read_rows, write_events, write_rows

ITEMS = {  # title, category, features
    "a": ("A", "tea", [1.0, 5.0]),
    "b": ("B", "coffee", [3.0, 5.0]),
    "later": ("L", "tea", [100.0, 7.0]),
    "never": ("N", "cocoa", None),
}
SHOWN = [  # session, user, item, feedback; sessions 1 and 2 are training, 3 validation, 4 test
    (1, "u", "b", "click"), (1, "u", "a", "skip"), (2, "v", "a", "purchase"), (2, "v", "bare", "skip"),
    (3, "u", "later", "click"), (4, "w", "a", "click"),
]  # fmt: skip


class TableSource:
    """A source that knows some items and users, and nothing else."""

    name = "table"

    def __init__(self, items: dict[str, tuple[str, str, list[float] | None]]) -> None:
        rows = [
            dict.fromkeys(ITEM_COLUMNS)
            | {"item_id": key, "title": title, "category": category, "price": 2, "features": features}
            for key, (title, category, features) in items.items()
        ]
        self._items = pa.Table.from_pylist(rows)
        self._users = pa.Table.from_pylist([{"user_id": u, "features": [n]} for u, n in (("u", 1), ("v", 3), ("x", 9))])

    def items(self, con: DuckDBPyConnection, files: object) -> DuckDBPyRelation:
        con.register("some_items", self._items)
        return con.sql("select * from some_items")

    def users(self, con: DuckDBPyConnection, files: object) -> DuckDBPyRelation:
        con.register("some_users", self._users)
        return con.sql("select * from some_users")


def build(
    folder: Path, shown: list[tuple[int, str, str, str]], items: dict[str, Any], mentioned: bool = False
) -> tuple[Any, Any]:
    """Items by id and users by id, of sessions that start and end in the hour of their number."""
    visits = {number: user for number, user, *_ in shown}
    sessions = [
        {"session_id": n, "user_id": user, "start_ts": at(n), "end_ts": at(n + 0.5)} for n, user in visits.items()
    ]
    bounds = [("train", 0, 3), ("validation", 3, 4), ("test", 4, 9)]
    impressions = [
        {"session_id": n, "user_id": user, "item_id": item, "feedback": feedback, "impression_ts": at(n)}
        | ({"positive_ts": at(n + 0.5)} if feedback != "skip" else {})
        for n, user, item, feedback in shown
    ]
    inputs = {
        "impressions": [write_rows(folder / "impressions.parquet", "impressions", impressions)],
        "sessions": [write_rows(folder / "sessions.parquet", "sessions", sessions)],
        "splits": [
            write_rows(
                folder / "splits.parquet",
                "splits",
                [{"split": name, "start_ts": at(start), "end_ts": at(end)} for name, start, end in bounds],
            )
        ],
    }
    said = [
        {"item_id": "bare", "category": "tea", "shop": "s", "first_ts": at(2)},
        {"item_id": "bare", "category": "birds", "shop": "r", "first_ts": at(3)},  # after the training window
        {"item_id": "a", "category": "coffee", "shop": "t", "first_ts": at(0)},
    ]
    mentions = [write_rows(folder / "mentions.parquet", "mentions", said if mentioned else [])]
    described = folder / "described_items.parquet", folder / "described_users.parquet"
    write_entities(TableSource(items), [], *described)  # type: ignore[arg-type]
    build_items(**inputs, described=described[0], mentions=mentions, out=folder / "items.parquet")
    build_users(**inputs, described=described[1], out=folder / "users.parquet")
    found = read_rows(folder / "items.parquet"), read_rows(folder / "users.parquet")
    return {row["item_id"]: row for row in found[0]}, {row["user_id"]: row for row in found[1]}


def test_indices_and_counts_know_the_training_window_alone(tmp_path: Path) -> None:
    items, users = build(tmp_path, SHOWN, ITEMS)
    numbers = {key: (row["item"], row["train_impressions"], row["train_positives"]) for key, row in items.items()}
    assert numbers == {"a": (1, 2, 1), "b": (2, 1, 1), "bare": (3, 1, 0), "later": (0, 0, 0), "never": (0, 0, 0)}
    assert {key: (row["user"], row["train_sessions"]) for key, row in users.items()} == {
        "u": (1, 1), "v": (2, 1), "w": (0, 0), "x": (0, 0),
    }  # fmt: skip


def test_counters_are_those_of_the_hours_before_the_end_of_the_training_window(tmp_path: Path) -> None:
    items, _ = build(tmp_path, SHOWN, ITEMS)  # it ends at 3, b is shown at 1, a and bare at 2; positives come .5 later
    long = ["1h", "6h", "24h", "1w"]
    counters = {key: row["counters"] for key, row in items.items()}
    assert dict(zip(COUNTERS, counters["a"], strict=True)) == {
        "impressions": 2, "positives": 1, "item_age_hours": 2,
        "item_impressions_1h": 1, "item_positives_1h": 1, "item_ctr_1h": 1,
        **{f"item_{name}_{window}": value for window in long[1:]
           for name, value in (("impressions", 2), ("positives", 1), ("ctr", 0.5))},
    }  # fmt: skip
    assert counters["b"] == [1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert counters["bare"] == [1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
    assert counters["later"] is counters["never"] is None


def test_category_codes_are_dense_over_the_training_window(tmp_path: Path) -> None:
    items, _ = build(tmp_path, SHOWN, ITEMS)
    codes = {key: row["category_code"] for key, row in items.items()}
    assert codes == {"a": 2, "b": 1, "bare": 0, "later": 2, "never": 0}  # cocoa was not seen in training


def test_features_are_scaled_by_the_training_window(tmp_path: Path) -> None:
    items, users = build(tmp_path, SHOWN, ITEMS)
    features = {key: row["features"] for key, row in items.items()}
    assert features["a"] == [-1, 0]  # the second component is the same for all of training
    assert features["b"] == [1, 0]
    assert features["bare"] == features["never"] == [0, 0]
    assert features["later"] == [98, 0]
    assert {key: row["features"] for key, row in users.items()} == {"u": [-1], "v": [1], "w": [0], "x": [7]}


def test_an_item_from_after_the_cut_off_changes_no_other_row(tmp_path: Path) -> None:
    canary = {"canary": ("C", "birds", [1e6, 1e6, 1e6])}  # wider than all others, of a category of its own
    shown = [*SHOWN, (3, "u", "canary", "purchase"), (4, "w", "canary", "click")]
    before, users_before = build(tmp_path / "before", SHOWN, ITEMS)
    after, users_after = build(tmp_path / "after", shown, {**ITEMS, **canary})
    canary_row = after.pop("canary")
    assert (canary_row["item"], canary_row["category_code"], canary_row["train_impressions"]) == (0, 0, 0)
    assert len(canary_row["features"]) == 2
    assert after == before
    assert users_after == users_before


def test_the_catalogue_has_the_first_word_on_an_item_and_the_events_the_second(tmp_path: Path) -> None:
    items, _ = build(tmp_path, SHOWN, ITEMS, mentioned=True)
    known = {key: (row["category"], row["shop"], row["price"]) for key, row in items.items() if key in ("a", "bare")}
    assert known == {"a": ("tea", "t", 2), "bare": ("tea", "s", None)}


def test_mentions_are_what_the_events_of_a_partition_say_of_their_items(tmp_path: Path) -> None:
    rows = [
        event("u", "a", at(0), category="tea"),
        event("v", "a", at(1), category="coffee", brand="b"),
        event("v", "a", at(2), "click", category="clicked", brand="a"),  # known too late for a feature
        event("v", "silent", at(1)),
    ]
    log = [write_events(tmp_path / "events.parquet", rows)]
    build_mentions(log, True, tmp_path / "constructed.parquet")
    assert [(row["category"], row["brand"]) for row in read_rows(tmp_path / "constructed.parquet")] == [
        ("clicked", "a"), ("coffee", "b"), ("tea", None)
    ]  # fmt: skip
    build_mentions(log, False, tmp_path / "mentions.parquet")
    assert read_rows(tmp_path / "mentions.parquet") == [
        {"item_id": "a", "category": "coffee", "brand": "b", "shop": None, "first_ts": at(1)},
        {"item_id": "a", "category": "tea", "brand": None, "shop": None, "first_ts": at(0)},
    ]


def test_a_source_that_describes_nothing_gives_bare_rows(tmp_path: Path) -> None:
    class Silent(TableSource):
        def __init__(self) -> None:
            super().__init__(ITEMS)
            self._items, self._users = self._items.slice(0, 0), self._users.slice(0, 0)

    write_entities(Silent(), [], tmp_path / "items.parquet", tmp_path / "users.parquet")  # type: ignore[arg-type]
    assert pq.read_table(tmp_path / "items.parquet").num_rows == 0
    assert pq.read_schema(tmp_path / "users.parquet").names == ["user_id", "features"]


@pytest.mark.parametrize(
    ("features", "training", "expected"),
    [
        ([[1.0], [3.0], [5.0]], [True, True, False], [[-1], [1], [3]]),
        ([[0.1 + 0.2], [0.3], [9.0]], [True, True, False], [[0], [0], [0]]),  # the same but for rounding
        ([[1.0], None, [3.0], [None], [float("nan")], [float("inf")]], [True] * 6, [[-1], [0], [1], [0], [0], [0]]),
        ([[1.0, 2.0], [3.0], []], [True, True, True], [[-1, 0], [1, 0], [0, 0]]),
        ([[1.0, 2.0], None], [False, True], [[], []]),  # training knows no component
        ([], [], []),
    ],
)
def test_standardised_features_are_finite_and_of_one_width(
    features: list[Any], training: list[bool], expected: list[list[float]]
) -> None:
    column = pa.chunked_array([pa.array(features, pa.list_(pa.float32()))])
    scaled = standardised(column, np.array(training, dtype=bool))
    assert scaled.to_pylist() == expected
