"""Showings before a page against a plain count."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.evaluation.showings import Showings
from pipeline.warehouse import connect, run_sql
from tests.pipeline.logs import write_rows


def plain(log: pd.DataFrame, key: int, hour: int) -> list[float]:
    before = log[(log.item_key == key) & (log.hour < hour)]
    day = before[before.hour >= hour - 24]
    since = hour - before.hour.min() if len(before) else 0
    return [float(np.log1p(count)) for count in (day.showings.sum(), before.showings.sum(), since)]


def test_showings_are_counted_in_the_day_before_and_in_all_time_before() -> None:
    rng = np.random.default_rng(2)
    cells = pd.DataFrame({"item_key": rng.choice([-9, 4, 5, 80], 90), "hour": 480_000 + rng.integers(0, 200, 90)})
    log = cells.groupby(["item_key", "hour"]).size().rename("showings").reset_index()
    keys = rng.choice([-9, 4, 5, 80, 6, 1_000, -50], (40, 5))  # the last three were never shown
    hours = 480_000 + rng.integers(-30, 260, 40)  # some before the log and some after it
    found = Showings(pa.Table.from_pandas(log, preserve_index=False))(keys, hours)
    expected = [[plain(log, key, hour) for key in row] for row, hour in zip(keys, hours, strict=True)]
    np.testing.assert_allclose(found, expected)
    assert (found[:, :, 0] != found[:, :, 1]).any()


def test_an_hour_before_1970_is_not_the_first_one_after_it(tmp_path: Path) -> None:
    moments = [
        datetime(1970, 1, 1, hour, tzinfo=UTC) - timedelta(microseconds=late) for hour in (0, 1) for late in (0, 1)
    ]
    rows = [{"item_id": "i", "impression_ts": moment} for moment in moments]
    with connect({"impressions": [write_rows(tmp_path / "impressions.parquet", "impressions", rows)]}) as con:
        hours = run_sql(con, "staging/decision_showings").to_arrow_table()
    assert hours.select(["hour", "showings"]).to_pylist() == [
        {"hour": -1, "showings": 1}, {"hour": 0, "showings": 2}, {"hour": 1, "showings": 1}
    ]  # fmt: skip


def test_an_empty_log_has_shown_nothing() -> None:
    nothing = pa.table({name: pa.array([], pa.int64()) for name in ("item_key", "hour", "showings")})
    assert not Showings(nothing)(np.array([[1, 2]]), np.array([480_000])).any()
