"""Two runs to be compared: of two experiments, or the present and the previous one of the same.

A store keeps the last two versions of every part, and each names what it was made of. So the previous leaderboard leads
to the sessions and episodes behind it, as far as these are still there.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.experiment import load_experiment
from pipeline.results import build_results
from pipeline.schemas import SCHEMAS
from pipeline.storage import WHOLE, Store, Version, storage_root
from pipeline.warehouse import read_table

COMPARED = ("rerank", "rollout", "ope")  # the parts of the leaderboard whose rows are read

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    name: str
    results: Path
    recipes: Mapping[str, Recipe] = field(default_factory=dict)  # ``table/part`` → what it was made of, where kept


@contextmanager
def two_runs(first: str, second: str = "") -> Iterator[tuple[Run, Run]]:
    """The run before and the run after; each is named by its experiment or is the path of a ``results.duckdb``.

    With one name alone the run before is its previous one. Raises ConfigError for an unknown experiment and
    StorageError for results that do not exist.
    """
    if second:
        yield _run(first), _run(second)
        return
    after = _run(first)
    store = Store(after.results.parent)
    versions = store.versions("leaderboard")
    if len(versions) < 2:
        raise StorageError(f"{after.name} has no previous run under {store.root}: name two runs, or compare again "
                           "after the next one.")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        yield _previous(f"{after.name}, previous run", store, versions[1], Path(folder) / "results.duckdb"), after


def _run(name: str) -> Run:
    path = Path(name)
    if path.suffix == ".duckdb":
        name = path.absolute().parent.name
    else:
        name = load_experiment(name).name
        path = storage_root() / name / "results.duckdb"
    if not path.is_file():
        raise StorageError(f"There are no results at {path}; run make demo EXPERIMENT={name} first, or name another "
                           "file.")  # fmt: skip
    current = Store(path.parent).current("leaderboard")
    return Run(name, path, _recipes(current) if current else {})


def _previous(name: str, store: Store, version: Version, target: Path) -> Run:
    """A version of the leaderboard with what is left of the rows that it was made from, as results of their own."""
    recipes = _recipes(version)
    tables = {"leaderboard": version.files, "unsupported": sorted(version.folder.glob("unsupported.parquet"))}
    for key, made in recipes[f"leaderboard/{version.part}"]["inputs"].items():
        table, part = key.split("/", 1)
        if table in COMPARED:
            tables.setdefault(table, []).extend(_version(store, table, part, made).files)
    (data,) = set(read_table(version.files, "leaderboard", ["data_hash"])["data_hash"].to_pylist()) or {""}
    tables["manifest"] = _version(store, "manifest", WHOLE, data).files  # which a data hash is the name of
    build_results({table: _readable(table, files) for table, files in tables.items()}, target)
    return Run(name, target, recipes)


def _readable(table: str, files: Iterable[Path]) -> list[Path]:
    """Those that this version of the code can read: an older one may have written other columns."""
    return [path for path in files if set(SCHEMAS[table].names) <= set(pq.read_schema(path).names)]


def _recipes(version: Version) -> dict[str, Recipe]:
    """The recipes of a part and of all that it was made from, down to the raw files, as far as they are kept."""
    root = version.folder.parents[2]
    found: dict[str, Recipe] = {}
    queue = [(f"{version.table}/{version.part}", version.fingerprint)]
    while queue:
        key, made = queue.pop()
        record = root / key / made / "version.json"
        if key not in found and record.is_file():
            found[key] = json.loads(record.read_text(encoding="utf-8"))
            queue += found[key]["inputs"].items()
    return found


def _version(store: Store, table: str, part: str, made: str) -> Version:
    return Version(table, part, made, store.root / table / part / made)
