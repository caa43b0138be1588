"""Conservation: every raw record is an event, a duplicate or a reject, and the published files hold what was counted.

What a record became is counted by ``pipeline.ingest`` where it is decided. Here the counts are added up by raw file and
held against the published files' own rows, and the share of the dirt against its ceiling.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.schemas import SCHEMAS

LEFT_OUT = ("outside the experiment's time range", "ignored type", "session without a purchase")  # not dirt, but chosen


def ingest_counts(staged: Mapping[str, Path], published: Mapping[str, Mapping[str, int]]) -> pa.Table:
    """What became of each raw file's records. ``published`` is what ``build_events`` returned, by partition key.

    A partition that is not published yet counts as the file itself counted it.
    """
    rows = []
    seen: set[Path] = set()
    for path, folder in staged.items():
        counts = staged_counts(folder)
        # What a published partition never heard of is neither an event nor a duplicate: it is missing.
        taken = {key: n for key, n in counts["events"].items() if folder.name in published.get(key, {folder.name: n})}
        kept = sum(published[key][folder.name] if key in published else n for key, n in taken.items())
        events = 0 if folder in seen else kept
        seen.add(folder)
        rows.append(
            {
                "path": path,
                "rows_in": counts["rows_in"],
                "unpacked": counts["unpacked"],
                "events": events,
                "duplicates": counts["duplicates"] + sum(taken.values()) - events,
                "rejects": sum(counts["reasons"].values()),
                "left_out": sum(n for reason, n in counts["reasons"].items() if reason.startswith(LEFT_OUT)),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMAS["ingest_counts"])


def published_counts(events: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """What lies beside the published events of each partition: how many of them each raw file gave."""
    return {key: json.loads((path.parent / "counts.json").read_text(encoding="utf-8")) for key, path in events.items()}


def check_conservation(counts: pa.Table, events: Mapping[str, Path]) -> list[str]:
    """One sentence for each raw file whose records, and each partition whose rows, are not all accounted for.

    ``events`` are the published files by partition key: their own row counts are held against what was counted.
    """
    if not len(counts):
        return ["No raw events file was counted; ingest the log first."]
    problems = []
    for row in counts.to_pylist():
        came = row["rows_in"] + row["unpacked"]
        found = row["events"] + row["duplicates"] + row["rejects"]
        if found != came:
            problems.append(
                f"{row['path']}: {came:,} records came in, but {row['events']:,} events, "
                f"{row['duplicates']:,} duplicates and {row['rejects']:,} rejects make {found:,}: "
                f"{abs(came - found):,} {'are missing' if came > found else 'too many'}. Ingest the file again."
            )
    for key, counted in published_counts(events).items():
        rows, wanted = pq.read_metadata(events[key]).num_rows, sum(counted.values())
        if rows != wanted:
            problems.append(f"Partition {key} holds {rows:,} events, but {wanted:,} were counted. Ingest it again.")
    return problems


def check_reject_ceiling(counts: pa.Table, ceiling: float) -> list[str]:
    """One sentence for each raw file of which more than the share ``ceiling`` was refused as dirt."""
    problems = []
    for row in counts.to_pylist():
        came, dirt = row["rows_in"] + row["unpacked"], row["rejects"] - row["left_out"]
        if dirt > ceiling * came:
            problems.append(
                f"{row['path']}: {dirt:,} of {came:,} records were refused ({dirt / came:.2%}), more than "
                f"ingest.max_rejects = {ceiling:.2%}; `make check` shows why. Mend the file or raise it."
            )
    return problems


def staged_counts(folder: Path) -> dict[str, Any]:
    """What became of the records of one raw file, as counted when it was staged."""
    try:
        counts: dict[str, Any] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StorageError(f"The staged file {folder} is missing or damaged; delete it and ingest again.") from None
    return counts
