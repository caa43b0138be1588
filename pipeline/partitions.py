"""The experiment's time partitions: the same for Dagster and for the files at rest. No Dagster here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.experiment import Partitions, utc


@dataclass(frozen=True)
class Partition:
    key: str  # Dagster's key: the first day of the period, 2024-01-31
    start: datetime  # UTC
    end: datetime  # UTC, exclusive


def partitions_of(settings: Partitions) -> list[Partition]:
    """Every partition of the experiment, oldest first."""
    found = []
    start, stop = utc(settings.start), utc(settings.end)
    while start < stop:
        end = _next(start, settings.grain)
        found.append(Partition(start.strftime("%Y-%m-%d"), start, end))
        start = end
    return found


def between(partitions: Sequence[Partition], first: str, last: str) -> list[Partition]:
    """The partitions from key ``first`` to key ``last``, both included."""
    return [p for p in partitions if first <= p.key <= last]


def key_sql(column: str, grain: str) -> str:
    """The SQL expression of the partition key of a timestamp column."""
    return f"strftime(date_trunc('{grain}', {column}), '%Y-%m-%d')"


def _next(start: datetime, grain: str) -> datetime:
    if grain == "day":
        return start + timedelta(days=1)
    if grain == "month":
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1, day=1)
    return start.replace(year=start.year + 1, month=1, day=1)
