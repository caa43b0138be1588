"""The log that the benchmark makes, and ours against the same job in polars and in pandas: an independent reference."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks import etl, etl_log
from benchmarks.common import Metered
from benchmarks.etl import COMPETITORS, Limits, Outcome, add_a_day, compare
from benchmarks.etl_log import write_days, write_log
from models.feedback import Feedback
from pipeline.experiment import load_experiment
from pipeline.partitions import Partition
from pipeline.schemas import SCHEMAS
from pipeline.sources import open_source

ROWS = 20_000
OURS = "ours"
FRAME = pd.DataFrame


@dataclass(frozen=True)
class Found:
    """What a competitor wrote, in columns that all can be compared by; times in Unix seconds, -1 for none."""

    events: FRAME
    rejects: FRAME
    impressions: FRAME
    sessions: FRAME


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with so much dirt that every kind of it comes often."""
    path = tmp_path_factory.mktemp("raw") / "UserBehavior.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(etl_log, "DUPLICATES", 0.02)
        patch.setattr(etl_log, "OUTSIDE", 0.01)
        patch.setattr(etl_log, "GARBAGE", 0.02)
        patch.setattr(etl_log, "CHUNK", 6_000)
        write_log(path, ROWS)
    return path


@pytest.fixture(scope="module")
def found(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    return {name: run(name, log, tmp_path_factory.mktemp(name)) for name in (OURS, "polars", "pandas")}


def run(name: str, log: Path, out: Path) -> Found:
    COMPETITORS[name](log, out, Limits(2))
    return ours(out) if name == OURS else theirs(out)


def table(out: Path, name: str) -> FRAME:
    """A table, whether it is one file or several a partition."""
    paths = sorted([*out.glob(f"{name}.parquet"), *out.glob(f"{name}/*/{name}*.parquet")])
    frames: list[FRAME] = [pq.read_table(path).to_pandas() for path in paths]
    return pd.concat(frames, ignore_index=True)


def ours(out: Path) -> Found:
    sessions = table(out, "sessions").rename(columns={"start_ts": "start", "end_ts": "end"})
    impressions = table(out, "impressions").merge(sessions[["session_id", "start"]], on="session_id")
    codes = {code.name.lower(): int(code) for code in Feedback}
    behaviours = {"impression": "pv", "favorite": "fav", "cart": "cart", "purchase": "buy"}
    events = table(out, "events")
    assert not sessions["capped"].any()  # the baselines know no such rule
    return Found(
        events.assign(behaviour=events["event_type"].map(behaviours)).pipe(seconds),
        table(out, "rejects"),
        impressions.assign(code=impressions["feedback"].map(codes)).pipe(seconds),
        sessions.pipe(seconds),
    )


def theirs(out: Path) -> Found:
    sessions = table(out, "sessions")
    impressions = table(out, "impressions").merge(sessions[["session", "start"]], on="session")
    impressions["positive_second"] = impressions["positive_second"].fillna(-1).astype("int64")
    return Found(table(out, "events"), table(out, "rejects"), impressions, sessions)


def seconds(frame: FRAME) -> FRAME:
    """Our columns under the names that the baselines have, ids as numbers, instants as Unix seconds."""
    names = {"user_id": "user", "item_id": "item", "event_ts": "second", "impression_ts": "second"}
    frame = frame.rename(columns=names | {"positive_ts": "positive_second", "page_ts": "page_second"})
    for name in frame.select_dtypes("datetimetz").columns:
        whole = frame[name].dt.as_unit("s")
        frame[name] = whole.astype("int64").where(whole.notna(), -1)
    return frame.astype({name: "int64" for name in ("user", "item") if name in frame})


def same(found: dict[str, Found], other: str, name: str, columns: str) -> None:
    """These columns hold the same rows, in whatever order."""
    mine, its = (getattr(found[who], name)[columns.split()] for who in (OURS, other))
    assert len(mine) > 0
    mine, its = (frame.sort_values(columns.split(), ignore_index=True) for frame in (mine, its))
    pd.testing.assert_frame_equal(mine, its, check_dtype=False)


@pytest.mark.parametrize("other", ["polars", "pandas"])
def test_ours_and_the_baselines_keep_the_same_events(found: dict[str, Found], other: str) -> None:
    same(found, other, "events", "user item behaviour second")


@pytest.mark.parametrize("other", ["polars", "pandas"])
def test_ours_and_the_baselines_refuse_the_same_lines(found: dict[str, Found], other: str) -> None:
    same(found, other, "rejects", "line")


@pytest.mark.parametrize("other", ["polars", "pandas"])
def test_ours_and_the_baselines_find_the_same_sessions(found: dict[str, Found], other: str) -> None:
    same(found, other, "sessions", "user start end pages impressions clicks purchases reward")


@pytest.mark.parametrize("other", ["polars", "pandas"])
def test_ours_and_the_baselines_show_the_same_items_and_credit_them_with_the_same(
    found: dict[str, Found], other: str
) -> None:
    same(found, other, "impressions", "user start item second positive_second code reward")


@pytest.mark.parametrize("other", ["polars", "pandas"])
def test_ours_and_the_baselines_fill_the_same_slots_of_the_same_pages(found: dict[str, Found], other: str) -> None:
    # Without the item: two items of one second may stand in either order.
    same(found, other, "impressions", "user start position page row col second page_second")


def test_the_log_has_every_kind_of_dirt_and_of_behaviour(log: Path, found: dict[str, Found]) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == ROWS
    assert set(etl_log.GARBAGE_LINES) <= set(lines)
    reasons = Counter(found[OURS].rejects["reason"])
    assert len(reasons) == len(etl_log.GARBAGE_LINES) + 1
    assert min(reasons.values()) > 20
    outside = sum(n for reason, n in reasons.items() if reason.startswith("outside"))
    duplicates = ROWS - len(found[OURS].rejects) - len(found[OURS].events)
    garbage = sum(line in etl_log.GARBAGE_LINES for line in lines)
    for number, share in ((duplicates, 0.02), (outside, 0.01), (garbage, 0.02)):
        assert number == pytest.approx(share * ROWS, rel=0.2)
    shares = found[OURS].events["behaviour"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx(etl_log.BEHAVIOURS, abs=0.01)


def test_the_log_is_grouped_by_user_and_not_in_order_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl_log, "CHUNK", 6_000)
    monkeypatch.setattr(etl_log, "GARBAGE", 0)
    users, times = acts(written(tmp_path / "log.csv", write_log, ROWS))
    blocks = (users != users.shift()).sum()
    assert blocks == users.nunique() == pytest.approx(ROWS / etl_log.ACTS_OF_USER, rel=0.1)
    assert (times.groupby(users).diff() < 0).sum() > ROWS / etl_log.ACTS_OF_BURST / 3


def test_bursts_have_about_eight_acts(found: dict[str, Found]) -> None:
    sessions = found[OURS].sessions
    assert len(found[OURS].events) / len(sessions) == pytest.approx(etl_log.ACTS_OF_BURST, rel=0.1)
    assert (sessions["end"] - sessions["start"]).median() < 900


def test_the_same_seed_gives_the_same_log(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, write_log, 2_000).read_bytes() for name in ("a", "b"))
    assert first == second
    write_log(tmp_path / "c", 2_000, seed=8)
    assert (tmp_path / "c").read_bytes() != first


def test_a_days_file_has_what_happened_on_that_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl_log, "OUTSIDE", 0)
    monkeypatch.setattr(etl_log, "GARBAGE", 0)
    midnights = [datetime(2017, 11, day, tzinfo=UTC) for day in (25, 26, 27)]
    days = [Partition(f"{a:%Y-%m-%d}", a, b) for a, b in pairwise(midnights)]
    first, second = (acts(path) for path in write_days(tmp_path, days, 5_000))
    for (_, times), day in zip((first, second), days, strict=True):
        assert times.between(day.start.timestamp(), day.end.timestamp() - 1).all()
    border = midnights[1].timestamp()
    before, after = first[0][first[1] > border - 120], second[0][second[1] < border + 120]
    assert len(set(before) & set(after)) >= 1  # a visit goes on past midnight


def test_medians_are_compared_with_the_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etl, "alone", at_once({"floor": [2.0, 8.0, 3.0], "polars": [9.0, 6.0, 1.0]}))
    measured = compare(tmp_path, 500, Limits(2), 3, ["floor", "polars"])
    expected = [(name, 100.0) for name in ("floor", "floor", "polars", "polars")]
    assert [(m.what.split(",")[0], m.peak_rss_mb) for m in measured] == expected
    assert [(m.value, m.unit, m.baseline, m.ratio) for m in measured] == [
        (3.0, "s", None, None),
        (6.0, "CPU s", None, None),
        (6.0, "s", 3.0, 2.0),
        (12.0, "CPU s", 6.0, 2.0),
    ]


def test_bare_sql_writes_the_published_columns_and_finds_the_sessions_of_a_clean_log(tmp_path: Path) -> None:
    log = tmp_path / "raw" / "UserBehavior.csv"
    log.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for dirt in ("DUPLICATES", "OUTSIDE", "GARBAGE"):
            patch.setattr(etl_log, dirt, 0)
        write_log(log, ROWS)
    for name in (OURS, "sql"):
        (tmp_path / name).mkdir()
        COMPETITORS[name](log, tmp_path / name, Limits(2))
    for name in ("events", "impressions", "sessions"):
        frames = [table(tmp_path / side, name) for side in (OURS, "sql")]
        assert frames[1].columns.tolist() == SCHEMAS[name].names
        shared = {"events": ["user_id", "item_id", "event_ts"], "sessions": ["user_id", "start_ts", "end_ts"],
                  "impressions": ["user_id", "item_id"]}[name]  # fmt: skip
        frames = [frame[shared].drop_duplicates() for frame in frames]
        mine, its = (frame.sort_values(shared, ignore_index=True) for frame in frames)
        assert len(mine) > 0
        pd.testing.assert_frame_equal(mine, its, check_dtype=False)


def test_competitors_that_did_not_do_the_same_work_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etl, "alone", at_once({"polars": [1.0], "lazy": [1.0]}))
    monkeypatch.setitem(COMPETITORS, "lazy", lambda log, out, limits: Outcome({"events": 1}, {}))
    with pytest.raises(SystemExit, match="did not do the same work"):
        compare(tmp_path, 500, Limits(2), 1, ["polars", "lazy"])


def test_a_day_is_added_to_the_days_before_it_and_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingested: list[tuple[list[str], str]] = []

    def ingest(home: Path) -> Outcome:
        """Instead of a Dagster run: what it would read, whether over an earlier run, and what it would have taken."""
        settings = load_experiment(str(home / "experiment.yaml"))
        files = [file.path.stem[-2:] for file in open_source(settings.source, home).discover()]
        done = home / "done"
        ingested.append((files, done.read_text() if done.exists() else ""))
        done.write_text(" ".join(files))
        cost = float(len(files))
        return Outcome({"events": 1}, {"events": cost, "features": 2 * cost, etl.WHOLE_RUN: 10.0})

    monkeypatch.setattr(etl, "ingest", ingest)
    monkeypatch.setattr(etl, "alone", at_once({}))
    measured = add_a_day(tmp_path, days=3, rows=200, repeat=2)
    assert ingested == [(["25", "26"], ""), *2 * [(["27"], ""), (["25", "26", "27"], "25 26")]]
    assert [(m.what.split(": ")[1], m.value, m.baseline, m.ratio) for m in measured] == [
        ("all tables", 9.0, 3.0, 3.0),
        (etl.WHOLE_RUN, 10.0, 10.0, 1.0),
        ("events", 3.0, 1.0, 3.0),
        ("features", 6.0, 2.0, 3.0),
    ]


def at_once(taken: dict[str, list[float]]) -> Callable[..., Metered[object]]:
    """Instead of ``alone``: no process, and the seconds that are given."""
    left: dict[object, list[float]] = {COMPETITORS.get(name): list(times) for name, times in taken.items()}

    def call(function: Callable[..., object], *arguments: object) -> Metered[object]:
        times = left.get(function) or [1.0]
        wall = times.pop(0)
        return Metered(function(*arguments), wall, 2 * wall, 100.0)

    return call


def written(path: Path, write: Callable[[Path, int], None], rows: int) -> Path:
    write(path, rows)
    return path


def acts(path: Path) -> tuple["pd.Series[int]", "pd.Series[int]"]:
    """User and second of every line of a log without garbage."""
    lines = [line.split(b",") for line in path.read_bytes().splitlines()]
    frame = FRAME([(int(line[0]), int(line[4])) for line in lines], columns=["user", "second"])
    return frame["user"], frame["second"]
