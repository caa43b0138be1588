"""``make check``: how a log would be understood, before anything is written."""

import tempfile
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.experiment import Experiment
from pipeline.sources import open_source
from pipeline.sources.base import RawFile, Source
from pipeline.warehouse import connect

EXAMPLES = 3


def describe_log(experiment: Experiment) -> str:
    """Counts by type, time range, examples and refused rows of each raw events file, as text.

    Raises ConfigError for the storefront, which has no raw files of its own, and DataError for unreadable files.
    """
    if experiment.source.kind == "storefront":
        raise ConfigError("The storefront makes its own log: there is nothing to check. Choose another EXPERIMENT.")
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(experiment.source, Path(scratch))
        files = source.discover()
        listed = [f"{file.kind:<7} {file.path} ({file.path.stat().st_size:,} bytes)" for file in files]
        described = [_describe(source, file) for file in files if file.kind == "events"]
    return "\n".join([f"{experiment.name}: {source.name}, {len(files)} files", *listed, *described])


def _describe(source: Source, file: RawFile) -> str:
    with connect() as con:
        parsed = source.read(con, file)
        parsed.events.create_view("parsed_events")
        parsed.rejects.create_view("parsed_rejects")
        kinds = con.sql(
            "select event_type, count(*), min(event_ts), max(event_ts) from parsed_events group by all order by all"
        ).fetchall()
        examples = con.sql("select * exclude (raw) from parsed_events order by line").limit(EXAMPLES).to_arrow_table()
        reasons = con.sql(
            "select count(*) as n, reason, min(line), any_value(raw order by line) from parsed_rejects "
            "group by reason order by n desc, reason limit 5"
        ).fetchall()
    lines = [f"\n{file.path.name}"]
    lines += [f"  {count:>12,} {kind} from {first} to {last}" for kind, count, first, last in kinds]
    lines += [f"  example   { ({k: v for k, v in row.items() if v is not None}) }" for row in examples.to_pylist()]
    lines += [
        f"  {count:>12,} refused: {reason} (first in line {line}: {raw!r})" for count, reason, line, raw in reasons
    ]
    return "\n".join(lines)
