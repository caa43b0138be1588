"""Items and users of anybody's log. A row that cannot be used ends in an error that names it: these have no rejects."""

from collections.abc import Callable, Sequence
from pathlib import Path

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import Files, Items, Users
from pipeline.sources.base import ITEM_COLUMNS, USER_COLUMNS
from pipeline.sources.mapping_columns import Columns, as_list, as_text, as_time, id_text, time_value
from pipeline.sources.mapping_files import has_records, open_rows

TEXTS = ("title", "category", "brand", "shop")


def read_items(con: DuckDBPyConnection, paths: Sequence[Path], root: Path, items: Items) -> DuckDBPyRelation:
    """ITEM_COLUMNS of the files. Raises DataError with the first row that cannot be used."""
    texts = {name: column for name in TEXTS if (column := getattr(items, name))}
    listed = items.listed.column if items.listed else ()
    wanted = [items.item, *texts.values(), *listed, *items.features, *([items.price] if items.price else [])]

    def described(columns: Columns) -> dict[str, str]:
        found = {"item_id": id_text(columns, (items.item,)), "features": _features(columns, items.features)}
        found |= {name: f"known({as_text(columns[column])})" for name, column in texts.items()}
        if items.price:
            price = _number(f"known({as_text(columns[items.price])})", "double")
            found["price"] = f"if({price} >= 0, {price}, null)"
        if items.listed:
            moment = time_value([columns[name] for name in listed], items.listed, columns.place)
            found["listed_ts"], _ = as_time(moment, items.listed)
        return found

    _load(con, paths, root, items, wanted, (items.item,), ITEM_COLUMNS, described)
    return con.table("mapped_entities").project(", ".join(ITEM_COLUMNS))


def read_users(con: DuckDBPyConnection, paths: Sequence[Path], root: Path, users: Users) -> DuckDBPyRelation:
    """USER_COLUMNS of the files. Raises DataError with the first row that cannot be used."""

    def described(columns: Columns) -> dict[str, str]:
        return {"user_id": id_text(columns, users.user), "features": _features(columns, users.features)}

    _load(con, paths, root, users, [*users.user, *users.features], users.user, USER_COLUMNS, described)
    return con.table("mapped_entities").project(", ".join(USER_COLUMNS))


def _load(
    con: DuckDBPyConnection,
    paths: Sequence[Path],
    root: Path,
    files: Files,
    wanted: Sequence[str],
    needed: Sequence[str],
    schema: dict[str, str],
    described: Callable[[Columns], dict[str, str]],
) -> None:
    """Create the table ``mapped_entities`` of the files' rows. The first column of the schema is the id."""
    fields = ", ".join(f"{name} {kind}" for name, kind in schema.items())
    con.execute(f"create or replace temp table mapped_entities ({fields}, line bigint, bad varchar)")
    id_column = next(iter(schema))
    for path in paths:
        if not has_records(path, files):
            continue
        found = described(open_rows(con, path, root, files, wanted, needed))
        columns = ", ".join(f"{found.get(name, 'null')} as {name}" for name in schema)
        con.execute(
            f"""
            insert into mapped_entities
            select
                {", ".join(schema)}, line,
                if(fault is not null or {id_column} is null, coalesce(fault, 'has no id') || ': ' || raw, null)
            from (select {columns}, line, raw, fault from raw_rows)
            """
        )
        first = "select line, bad from mapped_entities where bad is not null order by line limit 1"
        for line, bad in con.sql(first).fetchall():
            raise DataError(f"{path}, line {line} {bad}; mend or remove the line.")


def _features(columns: Columns, names: Sequence[str]) -> str:
    """SQL of a list of numbers, null where a list that should be part of it is."""
    found = []
    for name in names:
        column = columns[name]
        several = f"list_transform({as_list(column, None)}, lambda x: {_number('x', 'float')})"
        if column.is_list:
            found.append(several)
        else:
            text = f"known({as_text(column)})"
            found.append(f"if(starts_with({text}, '['), {several}, [{_number(text, 'float')}])")
    lists = " || ".join(found)
    return f"({lists})" if found else "[]::float[]"


def _number(text: str, kind: str) -> str:
    return f"try_cast({text} as {kind})"
