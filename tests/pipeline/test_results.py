from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, HindsightError, StorageError
from pipeline.results import MARTS, VIEWS, build_results, query, read, rebuild_views
from pipeline.schemas import SCHEMAS
from tests.published import RAW_USER, demo_tables, publish, table


def unsupported(reason: str) -> pa.Table:
    return table("unsupported", [{"leg": "ope", "reason": reason}])


def test_every_published_table_is_there_also_without_rows(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results({}, target)
    for name in SCHEMAS:
        assert read(target, name).num_rows == 0


def test_small_tables_are_copied_and_large_ones_are_views_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_results(publish(Path("data"), demo_tables()), tmp_path / "results.duckdb")
    with duckdb.connect(tmp_path / "results.duckdb", read_only=True) as con:
        views = dict(con.execute("select view_name, sql from duckdb_views() where not internal").fetchall())
    assert set(views) == VIEWS & set(demo_tables()) | {mart.removeprefix("marts/") for mart in MARTS}
    assert str(tmp_path / "data" / "events.parquet") in views["events"]
    (tmp_path / "data" / "leaderboard.parquet").unlink()
    assert read(tmp_path / "results.duckdb", "leaderboard").num_rows > 0


def test_raw_user_ids_are_published_nowhere_but_in_the_rejects(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "data", demo_tables()), target)
    for name in set(SCHEMAS) - {"rejects"}:
        published = read(target, name)
        assert "user_id" not in published.column_names
        assert RAW_USER not in str(published.to_pylist())
    assert RAW_USER.encode() not in target.read_bytes()


def test_a_view_replaces_the_user_by_the_key_that_other_tables_use(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "data", demo_tables()), target)
    with duckdb.connect() as con:
        wanted = con.execute("select (md5_number_lower($id) >> 1)::bigint", {"id": RAW_USER}).fetchall()
    assert set(read(target, "events")["user_key"].to_pylist()) == {wanted[0][0]}


def test_an_open_reader_keeps_the_old_results_and_a_new_one_sees_the_new(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "old", {"unsupported": unsupported("old")}), target)
    with duckdb.connect(target, read_only=True) as reader:
        build_results(publish(tmp_path / "new", {"unsupported": unsupported("new")}), target)
        assert reader.execute("select reason from unsupported").fetchall() == [("old",)]
        assert read(target, "unsupported")["reason"].to_pylist() == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "results.duckdb"]


def test_a_build_that_fails_leaves_the_old_results_and_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "data", {"unsupported": unsupported("old")}), target)
    with pytest.raises(StorageError, match=r"Cannot publish events: .*gone.parquet.* Materialise events again"):
        build_results({"events": [tmp_path / "gone.parquet"]}, target)
    assert read(target, "unsupported")["reason"].to_pylist() == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "results.duckdb"]


def test_views_follow_a_moved_folder_once_rebuilt(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "here", demo_tables()), target)
    events = read(target, "events")
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(StorageError, match="run make query once"):
        read(target, "events")
    rebuild_views({name: [tmp_path / "there" / f"{name}.parquet"] for name in demo_tables()}, target)
    assert read(target, "events").equals(events)
    assert read(target, "leaderboard").num_rows > 0


def test_tables_and_columns_carry_comments(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "data", demo_tables()), target)
    with duckdb.connect(target, read_only=True) as con:
        views = dict(con.execute("select view_name, comment from duckdb_views() where not internal").fetchall())
        columns = con.execute(
            "select comment from duckdb_columns() where table_name = 'rerank' and column_name = 'user_key'"
        ).fetchall()
    assert "personal data" in views["rejects"]
    assert views["scores"].startswith("One row a measurement under one agent and seed: of a test session (rerank), of")
    assert "pseudonym" in columns[0][0]


def test_comments_of_views_outlast_a_move(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    build_results(publish(tmp_path / "here", demo_tables()), target)
    told = query(target, "dictionary")
    rebuild_views({name: [tmp_path / "here" / f"{name}.parquet"] for name in demo_tables()}, target)
    assert query(target, "dictionary").equals(told)


@pytest.mark.parametrize(
    ("name", "params", "error", "message"),
    [
        ("leaderbord", {}, ConfigError, "There is no query 'leaderbord'.*did you mean 'leaderboard'"),
        ("../staging/sessions", {}, ConfigError, "There is no query"),
        ("leaderboard", {"agent": "iql"}, ConfigError, "has no parameter 'agent'; it takes none"),
        ("worst_sessions", {"agnet": "iql"}, ConfigError, "no parameter 'agnet'; did you mean 'agent'"),
        ("paired_difference", {"a": "iql"}, ConfigError, "paired_difference needs b; add b=…"),
        ("leaderboard", {}, StorageError, "There are no results at .*; run make demo"),
    ],
)
def test_a_wrong_question_names_the_right_one(
    name: str, params: dict[str, str], error: type[HindsightError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        query(tmp_path / "results.duckdb", name, params)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda target: build_results({"event": []}, target), "'event' is not a published table; did you mean 'event"),
        (lambda target: rebuild_views({}, target), "There are no results at .* run make demo"),
        (lambda target: read(target, "rolout"), "no table 'rolout' in the results; did you mean 'rollout'"),
    ],
)
def test_a_wrong_name_is_an_error_with_a_remedy(action, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(HindsightError, match=message):
        action(tmp_path / "results.duckdb")


def test_a_file_that_is_no_database_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    target = tmp_path / "results.duckdb"
    target.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StorageError, match=r"Cannot open .* Build it anew"):
        read(target, "leaderboard")
