"""MovieLens in the publisher's three formats: ml-100k, ml-latest (the form of 25M and 32M too) and ml-1m.

A rating is one event of type ``rating`` with the stars as its value. Item features are the genres as flags in the
order of ``GENRES`` and the release year; user features are age, gender and occupation where the format has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import DataError
from pipeline.source_settings import MovieLensSource
from pipeline.sources.base import Lines, RawFile, log_folder
from pipeline.sources.text import Layout, count_lines, first_line, has_rows, read_rows
from pipeline.warehouse import create_table, run_sql

GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "IMAX", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman", "scientist",
    "student", "technician", "writer",
)  # fmt: skip
COLUMNS = ("user_id", "item_id", "stars", "seconds")
HEADER = "userid,movieid,rating,timestamp"  # only the ml-latest files have one


@dataclass(frozen=True)
class Format:
    """Where one of the publisher's formats keeps what. Catalogue files may be absent; their features are then empty."""

    ratings: str  # glob
    separator: str  # of the ratings
    items: str
    item_pattern: str  # regular expression: item id, title, genres
    genre_flags: tuple[str, ...] = ()  # the genres' names where they are 0/1 columns
    users: str = ""
    user_separator: str = ""
    age_column: int = 0  # 1-based
    gender_column: int = 0
    occupations: tuple[str, ...] = ()  # the values of column 4, in the order of their flags


FORMATS = (
    Format(
        ratings="u.data",
        separator="\t",
        items="u.item",
        item_pattern=r"^\s*(\d+)\|([^|]*)\|[^|]*\|[^|]*\|[^|]*\|([01](?:\|[01]){18})\s*$",
        genre_flags=("", *(genre for genre in GENRES if genre != "IMAX")),  # the first flag is "unknown"
        users="u.user",
        user_separator="|",
        age_column=2,
        gender_column=3,
        occupations=OCCUPATIONS,
    ),
    Format(
        ratings="ratings.csv",
        separator=",",
        items="movies.csv",
        item_pattern=r"^\s*(\d+),(.*),([^,]*)$",
    ),
    Format(
        ratings="ratings*.dat",
        separator="::",
        items="movies.dat",
        item_pattern=r"^\s*(\d+)::(.*)::(.*)$",
        users="users.dat",
        user_separator="::",
        age_column=3,
        gender_column=2,
        occupations=tuple(str(code) for code in range(21)),
    ),
)


class MovieLens:
    """A folder of MovieLens files; the format is told by the names of the files."""

    name = "movielens"
    has_impressions = False
    unpacks = False

    def __init__(self, settings: MovieLensSource, folder: Path) -> None:
        del folder  # nothing is generated
        self.folder = log_folder(settings.path, "MovieLens")

    def discover(self) -> list[RawFile]:
        found = self._format()
        ratings = sorted(self.folder.glob(found.ratings))
        for path in ratings:
            if not has_rows(path, _header_lines(path)):
                raise DataError(f"{path} holds no ratings; fetch it again, or remove it if another file replaces it.")
        files = [RawFile(path, "events") for path in ratings]
        if (items := self.folder / found.items).is_file():
            files.append(RawFile(items, "items"))
        if found.users and (users := self.folder / found.users).is_file():
            files.append(RawFile(users, "users"))
        return files

    def read(self, con: DuckDBPyConnection, file: RawFile, only: Lines | None = None) -> DuckDBPyRelation:
        layout = Layout(columns=COLUMNS, separator=self._format().separator)
        rows = read_rows(con, file.path, layout, only)
        rows.filter(f"line > {_header_lines(file.path)}").create_view("raw_rows")
        return run_sql(con, "staging/movielens_ratings")

    def count(self, con: DuckDBPyConnection, file: RawFile) -> int:
        return count_lines(file.path) - _header_lines(file.path)

    def items(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        found = self._format()
        params = {"pattern": found.item_pattern, "flags": list(found.genre_flags), "genres": list(GENRES)}
        return _catalogue(con, files, "items", "staging/movielens_items", params)

    def users(self, con: DuckDBPyConnection, files: Sequence[RawFile]) -> DuckDBPyRelation:
        found = self._format()
        params = {
            "separator": found.user_separator,
            "age": found.age_column,
            "gender": found.gender_column,
            "occupations": list(found.occupations),
        }
        return _catalogue(con, files, "users", "staging/movielens_users", params)

    def _format(self) -> Format:
        formats = [known for known in FORMATS if any(self.folder.glob(known.ratings))]
        if not formats:
            wanted = ", ".join(known.ratings for known in FORMATS)
            held = ", ".join(sorted(path.name for path in self.folder.iterdir())[:5]) or "nothing"
            raise DataError(f"{self.folder} has no MovieLens ratings (one of {wanted}); it holds {held}.")
        if len(formats) > 1:
            both = " and ".join(known.ratings for known in formats)
            raise DataError(f"{self.folder} holds several MovieLens logs ({both}); keep one of them in a folder.")
        return formats[0]


def _header_lines(path: Path) -> int:
    """1 where the first line names the columns. Raises DataError where it names them in another order."""
    first = first_line(path)[:1000].strip().lower().replace('"', "")
    if not first.startswith("userid"):
        return 0
    if first != HEADER:
        raise DataError(f"{path} has the columns {first!r}; MovieLens has {HEADER!r} in this order.")
    return 1


def _catalogue(
    con: DuckDBPyConnection, files: Sequence[RawFile], kind: str, sql: str, params: Mapping[str, object]
) -> DuckDBPyRelation:
    """The rows of the catalogue files of one kind. Raises DataError with the first line that cannot be read."""
    tables = [_text_lines(file.path) for file in files if file.kind == kind]
    con.register("lines", pa.concat_tables(tables) if tables else _TEXT_LINES.empty_table())
    table = f"movielens_{kind}"
    create_table(con, table, sql, params)
    con.unregister("lines")
    id_column = f"{kind[:-1]}_id"
    bad = con.sql(f"select file, line, text from {table} where {id_column} is null order by line limit 1").fetchall()
    for path, line, text in bad:
        raise DataError(f"{path}, line {line}: {text!r} is no MovieLens {kind[:-1]}; mend or remove the line.")
    return con.table(table).project("* exclude (file, line, text)")


_TEXT_LINES = pa.schema({"file": pa.string(), "line": pa.int64(), "text": pa.string()})


def _text_lines(path: Path) -> pa.Table:
    """The lines of a catalogue file, which is small: UTF-8 (ml-latest), else latin-1 (the two older formats)."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = text.split("\n")
    columns = [pa.array([str(path)] * len(lines)), pa.array(range(1, len(lines) + 1), pa.int64()), pa.array(lines)]
    return pa.table(columns, schema=_TEXT_LINES)
