"""``results.duckdb``: every published table in one file that any DuckDB client opens.

Small tables are copied into it; the large ones are views over their Parquet files, with absolute paths. Over both lie
the marts (``sql/marts``), views that the queries share; every table, view and column carries a comment. The file is
built aside and renamed over the old one, so a reader sees the old results or the new ones, never half of either. Users
appear as ``user_key`` alone. Only ``rejects`` is personal data, and it stays in its Parquet files.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.dictionary import TABLES, meaning
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
        "validation_scores",
        "rankings",
        "pools",
        "decisions",
        "ope_pages",
        "ope_chances",
        "simulator_answers",
        "simulator_twins",
        "ope_proof_logs",
    }
)
_LEFT_OUT = {"users": {"user_id", "features"}, "items": {"features"}}
MARTS = (  # views that the queries share, each after those that it reads
    "marts/lengths",
    "marts/agent_scores",
    "marts/ope_slots",
    "marts/page_scores",
    "marts/goal_episodes",
    "marts/decoded",
    "marts/scores",
    "marts/unit_scores",
    "marts/rollout_means",
    "marts/slice_scores",
)


def build_results(tables: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Publish the Parquet files of ``tables`` as ``target``; tables that are not given are there, without rows.

    Raises ConfigError for a table that ``schemas.py`` does not define and StorageError for a file that cannot be read.
    """
    _check_names(tables)
    with _replacing(target) as aside, duckdb.connect(aside) as con:
        for name in SCHEMAS:
            _publish(con, name, tables.get(name, ()))
        for mart in MARTS:
            con.execute(f"create view {quote(_name(mart))} as {sql_text(mart)}")
        _comment(con, TABLES | {_name(mart): _header(mart) for mart in MARTS})


def rebuild_views(tables: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Point the views of ``target`` at the files of ``tables``, for a folder that was moved; the rest stays."""
    _check_names(tables)
    _require(target)
    with _replacing(target) as aside:
        shutil.copyfile(target, aside)
        with duckdb.connect(aside) as con:
            kinds, names = _kinds(con), sorted(VIEWS & set(tables))
            for name in names:
                con.execute(f"drop {kinds.get(name, 'table')} if exists {quote(name)}")
                _publish(con, name, tables[name])
            _comment(con, {name: TABLES[name] for name in names})


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


def _comment(con: duckdb.DuckDBPyConnection, relations: Mapping[str, str]) -> None:
    """Say of each relation what a row is, and of each of its columns what it means."""
    kinds = _kinds(con)
    columns = con.execute("select table_name, column_name from duckdb_columns() where not internal").fetchall()
    con.begin()  # one by one, hundreds of comments would wait for the disk
    for name, text in relations.items():
        con.execute(f"comment on {kinds[name]} {quote(name)} is {literal(text)}")
    for name, column in columns:
        if name in relations and (told := meaning(name, column)):
            con.execute(f"comment on column {quote(name)}.{quote(column)} is {literal(told)}")
    con.commit()


def _kinds(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Each relation and whether it is a table or a view."""
    rows = con.execute("select table_name, table_type from information_schema.tables").fetchall()
    return {name: "view" if kind == "VIEW" else "table" for name, kind in rows}


def _name(mart: str) -> str:
    return mart.removeprefix("marts/")


def _header(mart: str) -> str:
    """The comment at the top of a select: what a row is."""
    lines = takewhile(lambda line: line.startswith("--"), sql_text(mart).splitlines())
    return " ".join(line.removeprefix("--").strip() for line in lines)


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
    except duckdb.CatalogException as error:
        raise StorageError(
            f"These results were built by another version: {_first_line(error)} Build them anew with make demo."
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
