"""Partitions: contiguous periods whose keys are the same in Python and in SQL."""

from datetime import UTC, date, datetime
from itertools import pairwise

import pytest

from pipeline.experiment import Partitions
from pipeline.partitions import between, key_sql, partitions_of
from pipeline.warehouse import connect


@pytest.mark.parametrize(
    ("grain", "start", "end", "keys"),
    [
        ("day", date(2024, 2, 28), date(2024, 3, 2), ["2024-02-28", "2024-02-29", "2024-03-01"]),
        ("month", date(1997, 11, 1), date(1998, 2, 1), ["1997-11-01", "1997-12-01", "1998-01-01"]),
        ("year", date(1996, 1, 1), date(1998, 1, 1), ["1996-01-01", "1997-01-01"]),
    ],
)
def test_partitions_cover_the_range_without_gap_or_overlap(grain: str, start: date, end: date, keys: list[str]) -> None:
    found = partitions_of(Partitions(grain=grain, start=start, end=end))
    assert [partition.key for partition in found] == keys
    assert all(before.end == after.start for before, after in pairwise(found))
    assert all(partition.start.strftime("%Y-%m-%d") == partition.key for partition in found)


def test_between_includes_both_ends() -> None:
    days = partitions_of(Partitions(start=date(2024, 1, 1), end=date(2024, 1, 6)))
    assert [day.key for day in between(days, "2024-01-02", "2024-01-04")] == ["2024-01-02", "2024-01-03", "2024-01-04"]


@pytest.mark.parametrize("grain", ["day", "month", "year"])
def test_the_key_in_sql_is_the_key_in_python_at_both_ends_of_every_partition(grain: str) -> None:
    partitions = partitions_of(Partitions(grain=grain, start=date(2023, 1, 1), end=date(2025, 1, 1)))
    with connect() as con:
        for partition in partitions[:3] + partitions[-3:]:
            keys = f"{key_sql('first', grain)}, {key_sql('last', grain)}"
            query = f"select {keys} from (select $first as first, $last as last)"
            last = datetime.fromtimestamp(partition.end.timestamp() - 1e-6, UTC)
            assert con.sql(query, params={"first": partition.start, "last": last}).fetchall() == [(partition.key,) * 2]
