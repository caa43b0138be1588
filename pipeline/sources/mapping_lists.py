"""What records of anybody's log hold in lists: events, which become a row each, and the items that were shown."""

import duckdb
from duckdb import DuckDBPyConnection

from pipeline.source_settings import ACTIONS, ATTRIBUTES, Shown, Unpack, entry_parts
from pipeline.sources.mapping_columns import TEXT, Column, Columns, as_entries, as_list, as_parts, as_text, element
from pipeline.warehouse import quote

UNREADABLE = "list cannot be read"
LISTS = {
    "shown_items": "varchar[]",
    **{f"shown_{name}": "varchar[]" for name in ATTRIBUTES},
    "shown_flags": "boolean[][]",  # a list for each of ACTIONS
    "list_fault": "varchar",
}  # the columns of mapped_lists that lay_out adds


def unpack_entries(con: DuckDBPyConnection, columns: Columns, unpack: Unpack) -> Columns:
    """Create ``mapped_entries``, a row an entry; returns its columns: the name of a list now means one of its entries.

    A record whose lists cannot be taken apart is one row with the reason in ``fault``.
    """
    lists = [as_entries(columns[name], unpack.separator) for name in unpack.lists]
    faults = [
        f"when l{place} is null and {is_given(columns[name])} then '{UNREADABLE}'"
        for place, name in enumerate(unpack.lists)
    ]
    faults.append("when coalesce(len(l0), 0) = 0 then 'empty list'")
    if unpack.entry:
        parts = entry_parts(unpack.entry)
        struct = duckdb.struct_type(dict.fromkeys(parts, TEXT))
        lists = [Column(as_parts(lists[0].sql, unpack.entry), duckdb.list_type(struct))]
        faults.append(f"when {_misfits('l0', parts[0])} then 'an entry is not written as unpack.entry'")
    places = range(len(lists))
    faults += [f"when coalesce(len(l{place}), 0) <> len(l0) then 'lists of different lengths'" for place in places]
    con.sql(
        f"""
        with listed as (
            select *, {", ".join(f"{column.sql} as l{place}" for place, column in enumerate(lists))} from raw_rows
        ),
        judged as (
            select * exclude (fault), case when fault is not null then fault {" ".join(faults)} end as fault from listed
        )
        select
            * exclude ({", ".join(f"l{place}" for place in places)}),
            {", ".join(f"unnest(if(fault is null, l{place}, [null])) as e{place}" for place in places)}
        from judged
        """
    ).create_view("mapped_entries", replace=True)
    entries = {name: Column(f"e{place}", element(lists[place])) for place, name in enumerate(unpack.lists)}
    return Columns(columns.place, {**columns.named, **entries})


def lay_out(con: DuckDBPyConnection, columns: Columns, shown: Shown, rows: str) -> None:
    """Create ``mapped_lists``: the view ``rows`` with the columns LISTS, null where the log has no such list."""
    named = {"items": shown.items} | shown.attributes | {str(name): column for name, column in shown.feedback.items()}
    lists = {name: as_list(columns[column], shown.separator) for name, column in named.items()}
    unreadable = [f"(l_{name} is null and {is_given(columns[column])})" for name, column in named.items()]
    faults = f"when {' or '.join(unreadable)} then '{UNREADABLE}'"
    # What each entry says, by name: an item of a plain list, or the parts of an entry, and what lies parallel.
    told = {name: f"l_{name}" for name in named} | {"item": "l_items"}
    if shown.entry:
        parts = entry_parts(shown.entry)
        lists["items"] = as_parts(lists["items"], shown.entry)
        faults += f" when {_misfits('l_items', parts[0])} then 'an entry is not written as shown.entry'"
        told |= {part: f"list_transform(l_items, lambda x: x.{quote(part)})" for part in parts}
    attributes = [
        f"{_each('known', told[name]) if name in told else 'null::varchar[]'} as shown_{name}" for name in ATTRIBUTES
    ]
    flags = [_each("is_set", told[name]) if name in told else "null::boolean[]" for name in ACTIONS]
    con.sql(
        f"""
        with listed as (select *, {", ".join(f"{sql} as l_{name}" for name, sql in lists.items())} from {rows})
        select
            * exclude ({", ".join(f"l_{name}" for name in lists)}),
            {_each("known_id", told["item"])} as shown_items,
            {", ".join(attributes)},
            [{", ".join(flags)}] as shown_flags,
            case {faults} end as list_fault
        from listed
        """
    ).create_view("mapped_lists", replace=True)


def is_given(column: Column) -> str:
    """SQL of whether a list is there at all, readable or not."""
    return f"{column.sql} is not null" if column.is_list else f"known({as_text(column)}) is not null"


def _each(function: str, texts: str) -> str:
    return f"list_transform({texts}, lambda x: {function}(x))"


def _misfits(texts: str, first: str) -> str:
    """SQL of whether an entry did not fit its pattern: all its parts are then empty, while the first never is."""
    return f"list_contains(list_transform({texts}, lambda x: coalesce(x.{quote(first)}, '') = ''), true)"
