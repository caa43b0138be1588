"""Small logs for the tests of the tables from events to features: written as Parquet with the published columns."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.experiment import Partitions
from pipeline.partitions import Partition, partitions_of
from pipeline.schemas import SCHEMAS

START = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def at(hours: float) -> datetime:
    """So many hours after the logs' start, to the microsecond."""
    return START + timedelta(microseconds=round(hours * 3_600_000_000))


def write_rows(path: Path, table: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows of a published table; columns that a row does not name are null."""
    schema = SCHEMAS[table]
    filled = [{name: row.get(name) for name in schema.names} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(filled, schema), path)
    return path


def event(user: str, item: str, moment: datetime, kind: str = "impression", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "event_ts": moment, "event_type": kind, **more}


def write_events(path: Path, events: Sequence[dict[str, Any]]) -> Path:
    """Events with ids in the order given, sorted as the published ones are."""
    rows = [{"event_id": number, **row} for number, row in enumerate(events)]
    return write_rows(path, "events", sorted(rows, key=lambda row: (row["user_id"], row["event_ts"], row["event_id"])))


def days(count: int) -> list[Partition]:
    return partitions_of(Partitions(start=date(2024, 1, 1), end=date(2024, 1, 1) + timedelta(days=count)))


def under(folder: Path, table: str) -> Callable[[Partition], Path]:
    return lambda partition: folder / table / f"{partition.key}.parquet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def busy_log(seed: int, n_days: int = 6) -> list[dict[str, Any]]:
    """Users of all habits: visits over midnight, a robot that never pauses, own session ids, late feedback."""
    rng = np.random.default_rng(seed)
    minutes = n_days * 24 * 60
    events = []
    for number in range(240):
        user, start = f"u{rng.integers(12)}", rng.uniform(0, minutes)
        own = f"s{rng.integers(6)}" if rng.random() < 0.2 else None
        for place in range(rng.integers(1, 8)):
            shown = START + MINUTE * min(start + place * float(rng.exponential(12)), minutes - 1)
            request = f"r{number}-{place // 3}" if rng.random() < 0.9 else None
            item = f"i{rng.integers(30)}"
            events.append(event(user, item, shown, session_id=own, request_id=request))
            if rng.random() < 0.4:
                late = min(shown + MINUTE * float(rng.exponential(90)), START + DAY * n_days - MINUTE)
                kind = ("click", "cart", "purchase")[rng.integers(3)]
                events.append(event(user, item, late, kind, session_id=own, request_id=request))
    events += [event("robot", f"i{n % 30}", START + 20 * MINUTE * n) for n in range(minutes // 20)]
    events += [event("sleeper", "i1", START + 5 * HOUR + 17 * HOUR * n, session_id="one") for n in range(n_days)]
    return events
