"""What changed from one run to another in what its figures come from: raw files, code, settings and versions."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.report.runs import Run
from pipeline.results import read

ORIGINS = {"data_hash": "Data", "code_hash": "Code", "config_hash": "Settings", "commit": "Commit"}


class SettingChange(NamedTuple):
    name: str
    before: str  # empty where only the other run has it
    after: str
    part: str  # what was made with it


def changed_origins(before: Run, after: Run) -> Iterator[tuple[str, str, str]]:
    """What the figures come from, in each run: its name, before and after."""
    origins = [read(run.results, "leaderboard").select([*ORIGINS, "versions"]).to_pylist() for run in (before, after)]
    for column, title in ORIGINS.items():
        first, second = (", ".join(sorted({str(row[column] or "unknown") for row in rows})) for rows in origins)
        yield title, first, second
    first_versions, second_versions = (_versions(rows) for rows in origins)
    for library in sorted({*first_versions, *second_versions}):
        yield library, first_versions.get(library, ""), second_versions.get(library, "")


def changed_files(before: Run, after: Run) -> Iterator[tuple[str, str]]:
    """Raw files that are new, gone or of other content, with which of these."""
    manifests = (read(run.results, "manifest").to_pylist() for run in (before, after))
    old, new = ({row["path"]: row["hash"] for row in rows} for rows in manifests)
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            yield path, "new" if path not in old else "gone" if path not in new else "changed"


def changed_modules(before: Run, after: Run) -> list[str]:
    """The project's modules whose code, or that of a module which they import, is not the same in both runs."""
    old, new = ({module: code for recipe in run.recipes.values() for module, code in recipe["code"].items()}
                for run in (before, after))  # fmt: skip
    return sorted(module for module in {*old} & {*new} if old[module] != new[module])


def changed_settings(before: Run, after: Run) -> list[SettingChange]:
    """The settings that differ, of every part that both runs have made."""
    found = []
    for part in sorted({*before.recipes} & {*after.recipes}):
        old, new = (dict(_leaves(run.recipes[part]["settings"])) for run in (before, after))
        found += [
            SettingChange(name, old.get(name, ""), new.get(name, ""), part)
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
    return found


def _versions(rows: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in sorted({row["versions"] or "{}" for row in rows}):
        found |= json.loads(text)
    return found


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The single values of nested settings with the names that lead to them; places in lists are no names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, (Mapping, list)) for inner in value):
        for place, inner in enumerate(value, start=1):
            yield from _leaves(inner, path if isinstance(inner, Mapping) else f"{path}[{place}]")
    else:
        yield path, json.dumps(value)
