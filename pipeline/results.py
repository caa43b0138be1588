"""``results.duckdb``: every published table in one file that any DuckDB client opens.

Small tables are copied into it; the large ones are views over their Parquet files, with absolute paths. The file is
built aside and renamed over the old one, so a reader sees the old results or the new ones, never half of either.
Users appear as ``user_key`` alone. Only ``rejects`` is personal data, and it stays in its Parquet files.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.errors import ConfigError, StorageError, nearest
from pipeline.schemas import SCHEMAS
from pipeline.warehouse import SQL, literal, quote, sql_text

VIEWS = frozenset(
    {
        "events",
        "rejects",
        "impressions",
        "sessions",
        "features",
        "item_embeddings",
        "trajectories",
        "candidates",
        "rankings",
        "pools",
        "decisions",
        "ope_pages",
    }
)
_LEFT_OUT = {"users": {"user_id", "features"}, "items": {"features"}}
_TABLE_COMMENTS = {
    "events": "one logged fact; user_key stands for the user",
    "rejects": "one refused input row with its raw text: may hold personal data",
    "impressions": "one shown item with what came of it",
    "sessions": "one session, in the partition of its start",
    "data_report": "one figure about what was ingested; place orders the rows",
    "splits": "one cut-off; sessions that cross it are dropped and counted",
    "rankings": "one candidate of one test session under one agent and seed",
    "rerank": "one test session of one agent and seed; metrics are null unless status is scored",
    "simulator_gate": "one criterion that a fitted user model was held against; passed is null where reported only",
    "simulator_reliability": "one bin of a user model's reliability plot",
    "rollout": "one episode of one agent and seed; simulator truth is the storefront itself",
    "coverage": "how many different items an agent's roll-outs show in one world",
    "pools": "one logged request and the items that it could have shown",
    "decisions": "one logged test page: its state, its candidates, what was shown, with which propensities",
    "ope_calibration": "one bin of the reliability plot of the behaviour policy",
    "ope": "one off-policy estimate of one agent and seed; not to be read as a value unless supported",
    "ope_pages": "one logged page under one agent and seed: what slate estimates are computed from",
    "ope_proof": "one claim about an off-policy estimator, held against the storefront's truth",
    "goal_sweep": "one episode of one trained model under one goal, or of a ranker beside it",
    "decoding": "one episode under a greedy or a looking-ahead decoder",
    "comparisons": "one paired comparison that a verdict rests on",
    "agreement": "how far two columns of the leaderboard order the agents alike",
    "verdicts": "one question that the report answers; holds is null where there is no verdict",
    "leaderboard": "one agent, leg, setting and metric, with its interval and provenance",
    "unsupported": "one leg that this data cannot support, with the reason",
}
_COLUMN_COMMENTS = {
    "user_key": "63-bit hash of the user's id: a pseudonym",
    "item": "dense index of the training window, 0 = not seen in it",
    "user": "dense index of the training window, 0 = not seen in it",
    "ci_low": "lower end of the 95 % interval, bootstrap clustered by user",
    "ci_high": "upper end of the 95 % interval, bootstrap clustered by user",
    "against": "the agent that difference and p_value compare with",
    "seed_sd": "standard deviation of the seeds' means",
}


def build_results(tables: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Publish the Parquet files of ``tables`` as ``target``; tables that are not given are there, without rows.

    Raises ConfigError for a table that ``schemas.py`` does not define and StorageError for a file that cannot be read.
    """
    _check_names(tables)
    with _replacing(target) as aside, duckdb.connect(aside) as con:
        for name in SCHEMAS:
            _publish(con, name, tables.get(name, ()))


def rebuild_views(tables: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Point the views of ``target`` at the files of ``tables``, for a folder that was moved; the rest stays."""
    _check_names(tables)
    _require(target)
    with _replacing(target) as aside:
        shutil.copyfile(target, aside)
        with duckdb.connect(aside) as con:
            kinds = dict(con.execute("select table_name, table_type from information_schema.tables").fetchall())
            for name in sorted(VIEWS & set(tables)):
                kind = "view" if kinds.get(name) == "VIEW" else "table"
                con.execute(f"drop {kind} if exists {quote(name)}")
                _publish(con, name, tables[name])


def query(target: Path, name: str, params: Mapping[str, Any] | None = None) -> pa.Table:
    """The answer of ``sql/queries/<name>.sql`` over the results, read-only.

    Raises StorageError without results and ConfigError for an unknown query or parameter, naming the nearest.
    """
    known = query_names()
    if name not in known:
        raise ConfigError(f"There is no query {name!r} in {SQL / 'queries'}; {nearest(name, known)}")
    select = sql_text(f"queries/{name}")
    given = dict(params or {})
    wanted = set(duckdb.extract_statements(select)[0].named_parameters)
    for unknown in sorted(set(given) - wanted):
        hint = nearest(unknown, wanted) if wanted else "it takes none"
        raise ConfigError(f"The query {name} has no parameter {unknown!r}; {hint}")
    if missing := sorted(wanted - set(given)):
        example = " ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"The query {name} needs {' and '.join(missing)}; add {example}")
    with open_results(target) as con:
        return _answer(con, select, given)


def read(target: Path, table: str) -> pa.Table:
    """One published table, its rows in a total order."""
    if table not in SCHEMAS:
        raise ConfigError(f"There is no table {table!r} in the results; {nearest(table, SCHEMAS)}")
    with open_results(target) as con:
        return _answer(con, f"select * from {quote(table)} order by all", {})


def query_names() -> list[str]:
    """The questions under ``sql/queries``."""
    return sorted(path.stem for path in (SQL / "queries").glob("*.sql"))


@contextmanager
def open_results(target: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection in UTC. Raises StorageError when there are no results yet."""
    _require(target)
    # Attached rather than opened: DuckDB would hand a second reader in this process the file as it was before a swap.
    with duckdb.connect() as con:
        try:
            con.execute(f"attach {literal(target)} as results (read_only)")
        except duckdb.Error as error:
            raise StorageError(f"Cannot open {target}: {_first_line(error)} Build it anew with make demo.") from None
        con.execute("use results")
        con.execute("set timezone = 'UTC'")
        con.execute("set threads = 1")  # with more, sums of floats differ in their last bits from run to run
        yield con


def _publish(con: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path]) -> None:
    columns = ", ".join(_published_columns(name))
    source = f"read_parquet([{', '.join(literal(path.absolute()) for path in files)}])"
    kind = "view" if name in VIEWS and files else "table"
    if not files:
        source = "_none"
        con.register(source, SCHEMAS[name].empty_table())
    try:
        con.execute(f"create {kind} {quote(name)} as select {columns} from {source}")
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
        raise StorageError(f"Cannot publish {name}: {_first_line(error)} Materialise {name} again.") from None
    finally:
        con.unregister("_none")
    if comment := _TABLE_COMMENTS.get(name):
        con.execute(f"comment on {kind} {quote(name)} is {literal(comment)}")
    if kind == "table":
        for column in set(_COLUMN_COMMENTS) & set(SCHEMAS[name].names):
            con.execute(f"comment on column {quote(name)}.{quote(column)} is {literal(_COLUMN_COMMENTS[column])}")


def _published_columns(name: str) -> Iterator[str]:
    """The columns of a table as published: a raw user id becomes its key."""
    names = SCHEMAS[name].names
    for column in names:
        if column == "user_id" and "user_key" not in names:
            yield "(md5_number_lower(user_id) >> 1)::bigint as user_key"
        elif column not in _LEFT_OUT.get(name, ()):
            yield quote(column)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` that is renamed over it on success and leaves no trace on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".results-", dir=target.parent) as folder:
        aside = Path(folder) / target.name
        yield aside
        # A log that a killed writer left behind would be replayed into the new file.
        target.with_name(f"{target.name}.wal").unlink(missing_ok=True)
        os.replace(aside, target)


def _answer(con: duckdb.DuckDBPyConnection, select: str, params: Mapping[str, Any]) -> pa.Table:
    try:
        return con.sql(select, params=dict(params)).to_arrow_table()
    except duckdb.IOException as error:
        raise StorageError(
            f"A file behind the results is missing: {_first_line(error)} If the folder was moved, run make query once."
        ) from None


def _require(target: Path) -> None:
    if not target.is_file():
        raise StorageError(f"There are no results at {target} yet; run make demo first.")


def _check_names(tables: Mapping[str, Sequence[Path]]) -> None:
    for name in tables:
        if name not in SCHEMAS:
            raise ConfigError(f"{name!r} is not a published table; {nearest(name, SCHEMAS)}")


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0].strip()
    return text if text.endswith(".") else f"{text}."
