"""What a day's features cost with a long history, against that day alone.

``python -m benchmarks.features --rows 200000`` writes nine days of impressions and makes the features of the last one
from all of them, and from its own file alone; of a longer history nothing more is read. Both run in turn, each time in
a process of its own, ``--repeat`` times. CPU seconds count: wall time would measure who else is on the machine.
"""

import argparse
import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.common import Measurement, alone, publish
from pipeline.experiment import Partitions
from pipeline.features import build_features
from pipeline.partitions import Partition, partitions_of
from pipeline.plan import row_count
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import write_parquet

SEED = 7
FIRST, DAYS = date(2024, 1, 1), 9  # the day itself and the eight that its features read
IMPRESSIONS_OF_SESSION, PAGE = 20, 10
ITEMS, ITEM_SKEW = 10_000, 0.8  # the exponent of a Zipf law, as for the users
USERS, USER_SKEW = 50_000, 0.6
POSITIVES = 0.1  # share of the impressions
DWELL, LATEST_POSITIVE = 15, 120  # seconds
CATEGORIES, BRANDS, SHOPS = 200, 1_000, 3_000
SECOND = 1_000_000  # microseconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=200_000, help="impressions of a day")
    arguments.add_argument("--repeat", type=int, default=5)
    options = arguments.parse_args()
    days = partitions_of(Partitions(start=FIRST, end=FIRST + timedelta(days=DAYS)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        history = [_write_day(folder, day, options.rows) for day in days]
        catalogue = _write_catalogue(folder)
        runs = [
            [alone(_features, files, catalogue, days[-1], folder) for files in (history, history[-1:])]
            for _ in range(options.repeat)
        ]
    with_history, by_itself = (median(run[n].cpu_seconds for run in runs) for n in (0, 1))
    features = f"features of a day of {runs[0][1].result:,} impressions"
    publish(
        "features",
        [
            Measurement(f"{features}, alone", by_itself, "CPU s", peak_rss_mb=max(run[1].peak_rss_mb for run in runs)),
            Measurement(
                f"{features}, with {DAYS - 1} days of history, against alone",
                with_history,
                "CPU s",
                by_itself,
                with_history / by_itself,
                max(run[0].peak_rss_mb for run in runs),
            ),
        ],
    )


def _features(impressions: Sequence[Path], catalogue: Path, day: Partition, folder: Path) -> int:
    build_features(impressions, catalogue, [day], lambda partition: folder / "features.parquet")
    return row_count([folder / "features.parquet"])


def _write_day(folder: Path, day: Partition, rows: int) -> Path:
    """Sessions of a fixed length, each item shown some seconds after the one before it."""
    rng = np.random.default_rng([SEED, day.start.toordinal()])
    sessions = rows // IMPRESSIONS_OF_SESSION
    start = np.sort(rng.integers(0, 86_400 * SECOND, sessions))
    place = np.tile(np.arange(IMPRESSIONS_OF_SESSION), sessions)
    shown = np.repeat(start, IMPRESSIONS_OF_SESSION) + (place * DWELL + rng.uniform(0, DWELL, len(place))) * SECOND
    positive = rng.random(len(place)) < POSITIVES
    known = shown + rng.uniform(0, LATEST_POSITIVE, len(place)) * SECOND
    users = np.repeat(_popular(rng, USERS, USER_SKEW, sessions), IMPRESSIONS_OF_SESSION)
    columns = {
        "session_id": np.repeat(rng.integers(0, 2**62, sessions), IMPRESSIONS_OF_SESSION),
        "user_id": _ids("u", users),
        "item_id": _ids("i", _popular(rng, ITEMS, ITEM_SKEW, len(place))),
        "page": place // PAGE,
        "position": place,
        "impression_ts": _instants(day, shown),
        "positive_ts": pc.if_else(positive, _instants(day, known), None),
    }
    path = folder / f"{day.key}.parquet"
    schema = SCHEMAS["impressions"]
    filled = {f.name: columns.get(f.name, pa.nulls(len(place), f.type)) for f in schema}
    write_parquet(path, "impressions", pa.table(filled).to_batches())
    return path


def _write_catalogue(folder: Path) -> Path:
    items = np.arange(ITEMS)
    columns = {
        "item_id": _ids("i", items),
        "category": _ids("c", items % CATEGORIES),
        "brand": _ids("b", items % BRANDS),
        "shop": _ids("s", items % SHOPS),
    }
    schema = SCHEMAS["items"]
    path = folder / "items.parquet"
    filled = {f.name: columns.get(f.name, pa.nulls(ITEMS, f.type)) for f in schema}
    write_parquet(path, "items", pa.table(filled).to_batches())
    return path


def _popular(rng: np.random.Generator, count: int, skew: float, size: int) -> np.ndarray:
    weights = np.arange(1, count + 1) ** -skew
    return rng.choice(count, size, p=weights / weights.sum())


def _ids(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _instants(day: Partition, microseconds: np.ndarray) -> pa.Array:
    first = round(day.start.timestamp()) * SECOND
    return pa.array(first + microseconds.astype(np.int64)).cast(pa.timestamp("us", tz="UTC"))


if __name__ == "__main__":
    main()
