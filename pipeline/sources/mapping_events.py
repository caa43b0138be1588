"""From the rows of anybody's log to its facts.

The SQL here names what a mapping names: it brings the columns of any log into those of ``mapped_acts``, a row an event
or a list that was shown. What follows is the same for all logs and lies in ``sql/staging/mapping_*.sql``.
"""

from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.source_settings import ACTIONS, ATTRIBUTES, Events, Type, entry_parts
from pipeline.sources.base import EVENT_COLUMNS
from pipeline.sources.mapping_columns import Column, Columns, as_list, as_text, as_time, id_text, time_value
from pipeline.sources.mapping_lists import LISTS, is_given, lay_out, unpack_entries
from pipeline.warehouse import literal, run_sql


def references(files: Events) -> list[str]:
    """Every column that a mapping names."""
    columns = [*needed(files), *files.attributes.values(), *files.feedback.values()]
    columns += [*(files.session or ()), *(files.request or ()), *([files.item] if files.item else ())]
    if files.shown:
        columns += [files.shown.items, *files.shown.attributes.values(), *files.shown.feedback.values()]
    return columns


def needed(files: Events) -> list[str]:
    """The columns that every record has, whatever its type."""
    lists = files.unpack.lists if files.unpack else ()
    of_type = [files.type.column] if files.type and files.type.column else []
    item = [files.item] if files.item and not (files.shown or of_type) else []
    return [*files.user, *files.time.column, *of_type, *lists, *item]


def read_facts(con: DuckDBPyConnection, columns: Columns, files: Events) -> DuckDBPyRelation:
    """The facts of the view ``raw_rows`` as ``Source.read`` gives them. Raises DataError for a missing column."""
    rows = "raw_rows"
    if files.unpack:
        columns = unpack_entries(con, columns, files.unpack)
        rows = "mapped_entries"
    if files.shown:
        lay_out(con, columns, files.shown, rows)
        rows = "mapped_lists"
    moment = time_value([columns[name] for name in files.time.column], files.time, columns.place)
    values = _values(columns, files) | {"time_value": moment.sql}
    read = ", ".join(f"{sql} as {name}" for name, sql in values.items())
    con.sql(f"select line, raw, fault, {read} from {rows}").create_view("mapped_values", replace=True)
    acts = _acts(Column("time_value", moment.type), files)
    made = ", ".join(f"{sql} as {name}" for name, sql in acts.items())
    con.sql(f"select * exclude (fault), {made} from mapped_values").create_view("mapped_acts", replace=True)
    if files.shown or files.feedback:
        facts = run_sql(con, "staging/mapping_facts", {"actions": list(ACTIONS)})
    else:
        facts = con.table("mapped_acts")
    facts.create_view("mapped_facts", replace=True)
    return run_sql(con, "staging/mapping_events").project(", ".join([*_told(files), "line", "raw", "reason"]))


def _values(columns: Columns, files: Events) -> dict[str, str]:
    """What the columns of a mapping hold: SQL by name. They are a step of their own so that each is read once."""
    values = {
        "user_id": id_text(columns, files.user),
        "session_id": id_text(columns, files.session or ()),
        "request_id": id_text(columns, files.request or ()),
        "code": "''",
        **dict.fromkeys(ATTRIBUTES, "null::varchar"),
        **{name: f"known({as_text(columns[column])})" for name, column in files.attributes.items()},
    }
    if files.type and files.type.column:
        # As an id: in a column with gaps a code of 1 is 1.0. A missing code is a code as well.
        values["code"] = f"coalesce(known_id({as_text(columns[files.type.column])}), '')"
    if not (files.shown or files.feedback):
        return values | {"item_id": id_text(columns, (str(files.item),))}
    flags = {str(name): f"is_set({as_text(columns[column])})" for name, column in files.feedback.items()}
    lists = {name: name if files.shown else f"null::{kind}" for name, kind in LISTS.items()}
    return {
        **values,
        **lists,
        "items": _own_items(columns, files),
        "flags": f"[{', '.join(flags.get(name, 'false') for name in ACTIONS)}]",
    }


def _own_items(columns: Columns, files: Events) -> str:
    """SQL of the items that an act is about: one, or with a shown list none or several, written as that list is."""
    if files.item is None:
        return "[]::varchar[]"
    if files.shown is None:
        return f"[{id_text(columns, (files.item,))}]"
    column = columns[files.item]
    several = f"list_transform({as_list(column, files.shown.separator)}, lambda x: known_id(x))"
    if column.is_list:
        return several
    return f"if({is_given(column)}, coalesce({several}, [known_id({as_text(column)})]), []::varchar[])"


def _acts(moment: Column, files: Events) -> dict[str, str]:
    """What is made of the values: SQL by name. ``moment`` is the time among them."""
    event_ts, unreadable = as_time(moment, files.time)
    event_type, ignored = _type(files.type)
    fault = f"coalesce(fault, {ignored}, {unreadable})"
    return {"event_ts": event_ts, "event_type": event_type, "fault": fault}


def _type(kind: Type | None) -> tuple[str, str]:
    """SQL of the event type, null where ``code`` is unknown, and of why a record is of no use here, or null."""
    if kind is None or kind.column is None:
        return literal(kind.always if kind and kind.always else "impression"), "null"
    cases = " ".join(f"when {literal(name)} then {literal(event)}" for name, event in kind.map.items())
    ignored = "false"
    if "others" in kind.ignore:
        ignored = f"code not in ({', '.join(map(literal, kind.map))})"
    elif kind.ignore:
        ignored = f"code in ({', '.join(map(literal, kind.ignore))})"
    return f"case code {cases} end", f"if({ignored}, 'ignored type', null)"


def _told(files: Events) -> list[str]:
    """The columns of events that a mapping fills, in their order."""
    told = {"user_id", "item_id", "event_ts", "event_type", *files.attributes}
    told |= {"session_id"} if files.session else set()
    told |= {"request_id"} if files.request or files.shown else set()
    if files.shown:
        told |= {"position", *files.shown.attributes, *(entry_parts(files.shown.entry) if files.shown.entry else ())}
    return [name for name in EVENT_COLUMNS if name in told]
