"""Paths, fingerprints and publishing: what lies under ``storage/<experiment>/`` and how it gets there.

A table consists of parts: one for a table that is made as a whole (key ``all``), one a period for a partitioned
table, one an agent for what belongs to an agent. A part is published as an immutable folder
``<table>/<part>/<fingerprint>/``; ``<table>/manifest.json``, replaced by rename, names the current one of each part.
"""

import ast
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.errors import StorageError
from pipeline.experiment import PROJECT
from pipeline.warehouse import SQL

WHOLE = "all"
KEPT_VERSIONS = 2


def storage_root() -> Path:
    """The folder of all experiments: HINDSIGHT_STORAGE, else ``storage/`` of the project."""
    return Path(os.environ.get("HINDSIGHT_STORAGE") or PROJECT / "storage").resolve()


def fingerprint(*parts: Any) -> str:
    """16 hex digits that name a value of JSON types (and whatever ``str`` writes in a fixed way)."""
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, 16 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


@cache
def code_fingerprint(module: str) -> str:
    """A hash of a module, the project's modules that it imports (found with ``ast``), and the files that these name:
    SQL, and templates beside them.
    """
    return fingerprint({str(path.relative_to(PROJECT)): file_hash(path) for path in sorted(_code_files(module))})


def _code_files(module: str) -> set[Path]:
    found: set[Path] = set()
    queue = [module]
    while queue:
        path = _module_path(queue.pop())
        if path is None or path in found:
            continue
        imported, named = _imported_and_named(path, path.read_text(encoding="utf-8"))
        found |= {path, *named}
        queue += imported
    return found


@cache  # most modules are among the imports of many
def _imported_and_named(path: Path, code: str) -> tuple[list[str], set[Path]]:
    """The modules that a module's code imports, and the files that it names."""
    imported, named = [], set[Path]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named |= _named_files([SQL / f"{node.value}.sql", path.parent / node.value], node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "query":
            for name in (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)):
                named |= _named_files([SQL / "queries" / f"{name}.sql"], name)
    return imported, named


def _named_files(options: list[Path], text: str) -> set[Path]:
    """Those of the options that are files which are not Python, where the text can be a file's name at all."""
    if not 2 < len(text) < 60 or not text.replace("/", "").replace("_", "").replace(".", "").isalnum():
        return set()
    return {path for path in options if path.is_file() and path.suffix != ".py"}


def _module_path(module: str) -> Path | None:
    if module.split(".")[0] not in {"pipeline", "models"}:
        return None
    base = PROJECT.joinpath(*module.split("."))
    options = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in options if path.is_file()), None)


@dataclass(frozen=True)
class Version:
    """One published part of a table."""

    table: str
    part: str
    fingerprint: str
    folder: Path

    def passed(self, check: str) -> bool:
        """Whether a check has found nothing to object to."""
        return (self.folder / f"passed-{check}").exists()

    @property
    def files(self) -> list[Path]:
        """The Parquet files of the table itself, not those that lie beside it."""
        own = (f"{self.table}.parquet", f"{self.table}-")
        return sorted(path for path in self.folder.glob("*.parquet") if path.name.startswith(own))


@dataclass(frozen=True)
class Store:
    """The published tables of one experiment."""

    root: Path

    def current(self, table: str, part: str = WHOLE) -> Version | None:
        """The current version of a part, or None when it was never published."""
        return next(iter(self.versions(table, part)), None)

    def versions(self, table: str, part: str = WHOLE) -> list[Version]:
        """The versions of a part that are kept, newest first."""
        return [self._version(table, part, name) for name in self._manifest(table).get(part, [])]

    def require(self, table: str, part: str = WHOLE) -> Version:
        """The current version of a part; StorageError when there is none."""
        version = self.current(table, part)
        if version is None:
            raise StorageError(f"{table} ({part}) was never published under {self.root}. Run `make demo` first.")
        return version

    def parts(self, table: str) -> list[str]:
        return sorted(self._manifest(table))

    def published(self, table: str, parts: Iterable[str] | None = None) -> dict[str, Version]:
        """The current version of each of ``parts`` (default: all) that has one, in the parts' order."""
        manifest = self._manifest(table)  # once for all: there are as many parts as days of history
        wanted = sorted(manifest) if parts is None else parts
        return {part: self._version(table, part, manifest[part][0]) for part in wanted if part in manifest}

    def files(self, table: str, parts: Iterable[str] | None = None) -> list[Path]:
        """The Parquet files of the current versions of ``parts`` (default: all), in the parts' order."""
        return [path for version in self.published(table, parts).values() for path in version.files]

    @contextmanager
    def publish(self, table: str, recipes: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
        """Yield a scratch folder; write ``<part>/…`` into it. On a clean exit all the parts become current at once.

        A part's recipe (JSON types) is what its fingerprint is made of; it is kept beside the data in ``version.json``.
        """
        home = self.root / table
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".aside-") as scratch:
            aside = Path(scratch)
            yield aside
            for part, recipe in recipes.items():
                (aside / part).mkdir(exist_ok=True)
                record = json.dumps(recipe, indent=1, sort_keys=True, default=str)
                (aside / part / "version.json").write_text(record, encoding="utf-8")
            fingerprints = {part: fingerprint(recipe) for part, recipe in recipes.items()}
            with FileLock(home / ".lock"):
                self._swap(table, aside, fingerprints)

    def _swap(self, table: str, aside: Path, fingerprints: Mapping[str, str]) -> None:
        manifest = self._manifest(table)
        retired = []
        for part, name in fingerprints.items():
            target = self._version(table, part, name).folder
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # it is made again, or a killed run left it
                target.rename(aside / f"{part}-before")  # gone with the scratch folder
            (aside / part).rename(target)
            kept = [name, *(old for old in manifest.get(part, []) if old != name)]
            manifest[part], dropped = kept[:KEPT_VERSIONS], kept[KEPT_VERSIONS:]
            retired += [self._version(table, part, old).folder for old in dropped]
        write_atomically(self.root / table / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True))
        for folder in retired:
            shutil.rmtree(folder, ignore_errors=True)

    def mark_passed(self, table: str, parts: Iterable[str], check: str) -> None:
        """Note in the current versions of ``parts`` that they have passed a check."""
        for version in self.published(table, parts).values():
            (version.folder / f"passed-{check}").touch()

    def unpublish(self, table: str, parts: Iterable[str]) -> None:
        """Forget ``parts``, as if they had never been published; their files stay until garbage is collected."""
        home = self.root / table
        with FileLock(home / ".lock"):
            gone = set(parts)
            kept = {part: names for part, names in self._manifest(table).items() if part not in gone}
            write_atomically(home / "manifest.json", json.dumps(kept, indent=1, sort_keys=True))

    def collect_garbage(self) -> list[Path]:
        """Remove every version folder that no manifest names, and what a killed run left; returns what went."""
        gone = []
        for manifest in sorted(self.root.glob("*/manifest.json")):
            home = manifest.parent
            with FileLock(home / ".lock"):
                named = {home / part / name for part, names in self._manifest(home.name).items() for name in names}
                found = {path for path in home.glob("*/*") if path.is_dir() and not path.parent.name.startswith(".")}
                leftovers = {path for path in home.glob(".aside-*") if path.is_dir()}
                gone += sorted((found - named) | leftovers)
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        return gone

    def _manifest(self, table: str) -> dict[str, list[str]]:
        path = self.root / table / "manifest.json"
        try:
            manifest: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raise StorageError(f"{path} is no valid JSON. Delete the folder {path.parent}: it is made again.") from None
        return manifest

    def _version(self, table: str, part: str, name: str) -> Version:
        return Version(table, part, name, self.root / table / part / name)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader sees the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)


def link(source: Path, target: Path) -> None:
    """The same immutable file under a second name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
