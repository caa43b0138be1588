"""The way back: from each kind of number in the report to the command that lists the rows behind it."""

import shlex
from collections.abc import Sequence

import pyarrow as pa

from pipeline.report.tables import Cell, DataTable

PARTS = {
    "leaderboard": "Leaderboard",
    "legs": "Three legs",
    "said": "What may be said",
    "values": "Values by agent",
    "goals": "Goals",
    "ope": "Off-policy",
    "simulators": "User models",
    "training": "Learning curves",
    "slices": "Slices",
    "data": "Data",
}  # sections of the report, by id


def ways_back(ways: pa.Table) -> DataTable:
    """The table, from the query ``ways_back``."""
    rows = [
        [Cell(PARTS[row["part"]]), Cell(row["number"]), Cell(command(row["query"], row["arguments"]))]
        for row in ways.to_pylist()
    ]
    return DataTable(
        "From a number back to its rows", [Cell(title) for title in ("Section", "Number", "Command")], rows
    )


def command(query: str, arguments: Sequence[str]) -> str:
    """What to type for the rows, whatever characters the arguments hold."""
    if not arguments:
        return f"make query Q={query}"
    given = " ".join(map(_quoted, arguments)).replace("$", "$$")  # make would expand a single one
    return f"make query Q={query} ARGS={shlex.quote(given)}"


def _quoted(argument: str) -> str:
    """A shell's word; in double quotes where they do, since the whole stands in single ones."""
    plain = shlex.quote(argument) == argument
    return argument if plain else shlex.quote(argument) if set(argument) & set('"$`\\!') else f'"{argument}"'
