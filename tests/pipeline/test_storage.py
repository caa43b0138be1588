"""Publishing: whole or not at all, at most two versions, and fingerprints that follow code and SQL."""

from pathlib import Path
from pkgutil import iter_modules

import pytest

import pipeline.sources
from pipeline import storage
from pipeline.errors import StorageError
from pipeline.plan import STEPS
from pipeline.storage import Store, code_fingerprint, fingerprint
from pipeline.warehouse import SQL

RECIPES = [{"settings": number} for number in range(4)]


def publish(store: Store, recipe: dict[str, int], text: str = "rows", part: str = "all") -> None:
    with store.publish("events", {part: recipe}) as aside:
        (aside / part).mkdir()
        (aside / part / "events.parquet").write_text(text)


def test_a_part_is_current_once_it_is_published_and_named_by_its_recipe(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.current("events") is None
    publish(store, RECIPES[0])
    version = store.require("events")
    assert version.fingerprint == fingerprint(RECIPES[0])
    assert [path.read_text() for path in version.files] == ["rows"]


def test_a_build_that_fails_leaves_the_old_version_and_no_trace(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, RECIPES[0])

    def build_half() -> None:
        with store.publish("events", {"all": RECIPES[1]}) as aside:
            (aside / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build_half()
    assert store.require("events").fingerprint == fingerprint(RECIPES[0])
    assert [path.name for path in (tmp_path / "events").glob(".aside-*")] == []


def test_several_parts_become_current_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.publish("events", {"a": RECIPES[0], "b": RECIPES[1]}) as aside:
        for part in "ab":
            (aside / part).mkdir()
            (aside / part / "events.parquet").write_text(part)
        assert store.parts("events") == []
    assert [path.read_text() for path in store.files("events", ["b", "a", "missing"])] == ["b", "a"]


def test_the_last_two_versions_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for recipe in RECIPES:
        publish(store, recipe)
    kept = {path.name for path in (tmp_path / "events" / "all").iterdir()}
    assert kept == {fingerprint(RECIPES[2]), fingerprint(RECIPES[3])}


def test_the_same_fingerprint_again_replaces_what_a_killed_run_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, RECIPES[0], "first")
    publish(store, RECIPES[0], "second")
    assert [path.read_text() for path in store.require("events").files] == ["second"]


def test_what_is_unpublished_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, RECIPES[0], "first")
    store.unpublish("events", ["never published"])
    assert store.current("events")
    store.unpublish("events", store.parts("events"))
    assert store.versions("events") == []
    publish(store, RECIPES[0], "second")  # where the first still lies
    assert [path.read_text() for path in store.require("events").files] == ["second"]


def test_a_version_passes_a_check_until_it_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, RECIPES[0], "first")
    store.mark_passed("events", store.parts("events"), "schema")
    assert store.require("events").passed("schema")
    assert not store.require("events").passed("conservation")
    publish(store, RECIPES[0], "second")
    assert not store.require("events").passed("schema")


def test_garbage_is_what_no_manifest_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, RECIPES[0])
    orphan, aside = tmp_path / "events" / "all" / "0123", tmp_path / "events" / ".aside-x"
    orphan.mkdir()
    aside.mkdir()
    assert store.collect_garbage() == sorted([orphan, aside])
    assert store.require("events").files
    assert store.collect_garbage() == []


def test_what_was_never_published_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"events \(all\) was never published .* Run `make demo`"):
        Store(tmp_path).require("events")


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "manifest.json").write_text("{")
    with pytest.raises(StorageError, match=r"manifest\.json is no valid JSON"):
        Store(tmp_path).current("events")


def test_every_select_of_a_table_is_in_the_fingerprint_of_a_step() -> None:
    """A name that is put together in an f-string would be missed, and its table stay as it is when the SQL changes."""
    sources = [f"pipeline.sources.{found.name}" for found in iter_modules(pipeline.sources.__path__)]
    modules = {step.module for step in STEPS.values()} | set(sources)
    named = set[Path]().union(*map(storage._code_files, modules))
    of_checks = ("check_", "counted_")  # they make no table
    selects = [path for path in (SQL / "staging").glob("*.sql") if not path.stem.startswith(of_checks)]
    assert len(selects) > 50
    assert [path.name for path in selects if path not in named] == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of three modules and a select: a imports b, b names the select, c stands alone."""
    for name, text in {
        "pipeline/a.py": "def f():\n    from pipeline import b\n",
        "pipeline/b.py": "QUERY = 'staging/q'\n",
        "models/c.py": "import torch\n",
        "sql/staging/q.sql": "select 1",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(storage, "PROJECT", tmp_path)
    monkeypatch.setattr(storage, "SQL", tmp_path / "sql")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "affected"),
    [
        ("pipeline/a.py", {"pipeline.a"}),
        ("pipeline/b.py", {"pipeline.a", "pipeline.b"}),
        ("sql/staging/q.sql", {"pipeline.a", "pipeline.b"}),
        ("models/c.py", {"models.c"}),
    ],
)
def test_a_change_of_code_or_sql_changes_the_fingerprints_of_what_imports_it(
    project: Path, changed: str, affected: set[str]
) -> None:
    modules = ("pipeline.a", "pipeline.b", "models.c")
    code_fingerprint.cache_clear()
    before = {module: code_fingerprint(module) for module in modules}
    (project / changed).write_text((project / changed).read_text() + " ")
    code_fingerprint.cache_clear()
    after = {module: code_fingerprint(module) for module in modules}
    code_fingerprint.cache_clear()
    assert {module for module in modules if before[module] != after[module]} == affected
