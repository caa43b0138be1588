from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

import pipeline.sessions as sessions_module
from pipeline.errors import DataError
from pipeline.experiment import Partitions, Rewards, Sessions
from pipeline.partitions import Partition, partitions_of
from pipeline.sessions import NEAR, build_sessions, is_constructed, late_path
from tests.pipeline.logs import HOUR, MINUTE, START, at, busy_log, days, event, read_rows, under, write_events

Rows = list[dict[str, Any]]
SETTINGS = Sessions(rows=2, cols=2)
NIGHTLY = Sessions(rows=2, cols=2, gap_minutes=120)


def sessionise(
    folder: Path,
    events: Rows,
    wanted: list[Partition] | None = None,
    settings: Sessions = SETTINGS,
    positive_above: float | None = None,
    constructed: bool | None = None,
    reuse: Any = lambda partition: {},
) -> tuple[Rows, Rows, dict[str, dict[str, int]]]:
    """Impressions and sessions of the wanted days (three by default), and the counts."""
    wanted = wanted or days(3)
    log = write_events(folder / "events.parquet", events)
    outs = under(folder, "impressions"), under(folder, "sessions")
    counts = build_sessions([log], wanted, settings, Rewards(), positive_above, *outs, constructed, reuse)
    return *(rows_of(wanted, out) for out in outs), counts


def rows_of(wanted: list[Partition], out: Any) -> Rows:
    """The rows of both files of each partition, in the order of a session's start."""
    rows = [row for p in wanted for path in (out(p), late_path(out(p))) for row in read_rows(path)]
    first = {row["session_id"]: row.get("start_ts") or row["page_ts"] for row in reversed(rows)}
    return sorted(rows, key=lambda row: (first[row["session_id"]], row["session_id"], row.get("position", 0)))


def acts_of(seed: int) -> Rows:
    """A busy log that only says who acted on what and when."""
    return [{**e, "session_id": None, "request_id": None} for e in busy_log(seed)]


def total(counts: dict[str, dict[str, int]], name: str) -> int:
    return sum(of_partition[name] for of_partition in counts.values())


def test_a_pause_ends_a_session_and_a_shorter_one_does_not(tmp_path: Path) -> None:
    moments = [0, 30, 60, 60 + 30.001]  # minutes: exactly the gap, the gap, a little more than the gap
    _, sessions, _ = sessionise(tmp_path, [event("u", f"i{m}", START + MINUTE * m) for m in moments])
    assert [s["impressions"] for s in sessions] == [3, 1]
    assert (sessions[0]["start_ts"], sessions[0]["end_ts"]) == (START, START + HOUR)


def test_the_logs_own_session_ids_outlast_pauses_and_tell_interleaved_visits_apart(tmp_path: Path) -> None:
    events = [
        event("u", "a", at(0), session_id="x"),
        event("u", "b", at(0.1), session_id="y"),
        event("u", "c", at(3), session_id="x"),
        event("v", "d", at(3), session_id="x"),  # another user's session of the same name
        event("u", "e", at(0.05)),
    ]
    _, sessions, _ = sessionise(tmp_path, events)
    assert Counter((s["user_id"], s["impressions"]) for s in sessions) == {("u", 2): 1, ("u", 1): 2, ("v", 1): 1}
    assert len({s["session_id"] for s in sessions}) == 4


def test_a_session_over_midnight_belongs_to_the_day_of_its_start(tmp_path: Path) -> None:
    events = [event("u", str(n), at(23.5) + 10 * MINUTE * n) for n in range(6)]
    _, sessions, counts = sessionise(tmp_path, events)
    assert [s["impressions"] for s in sessions] == [6]
    assert [of_day["impressions"] for of_day in counts.values()] == [6, 0, 0]


def test_a_long_session_is_cut_at_the_cap_and_then_at_midnight(tmp_path: Path) -> None:
    events = [event("u", str(n), at(8) + 10 * MINUTE * n) for n in range(50 * 6)]  # 50 hours from 08:00
    _, sessions, counts = sessionise(tmp_path, events)
    assert [(s["start_ts"], s["capped"]) for s in sessions] == [
        (at(8), True),
        (at(32), True),  # 24 h after the start
        (at(48), False),  # the UTC day
    ]
    assert sum(s["impressions"] for s in sessions) == len(events)
    assert total(counts, "capped") == 2


@pytest.mark.parametrize("constructed", [False, True])
def test_a_log_of_before_1970_has_the_sessions_of_a_later_one(tmp_path: Path, constructed: bool) -> None:
    partitions = partitions_of(Partitions(start=date(1969, 12, 29), end=date(1970, 1, 4)))
    ago, later = START - partitions[0].start, acts_of(0)
    earlier = [{**e, "event_ts": e["event_ts"] - ago} for e in later]

    def spans(folder: str, log: Rows, wanted: list[Partition], shift: timedelta) -> Counter[tuple[Any, ...]]:
        often_cut = Sessions(rows=2, cols=2, max_hours=7)
        _, found, _ = sessionise(tmp_path / folder, log, wanted, often_cut, constructed=constructed)
        return Counter((s["user_id"], s["start_ts"] + shift, s["end_ts"] + shift, s["capped"]) for s in found)

    assert spans("earlier", earlier, partitions, ago) == spans("later", later, days(6), timedelta(0))


def test_a_session_just_under_the_cap_stays_whole(tmp_path: Path) -> None:
    events = [event("u", str(n), at(8) + 10 * MINUTE * n) for n in range(24 * 6)]
    _, sessions, _ = sessionise(tmp_path, events)
    assert [(s["impressions"], s["capped"]) for s in sessions] == [(144, False)]


@pytest.mark.parametrize("constructed", [False, True])
@pytest.mark.parametrize(("seed", "settings"), [(0, SETTINGS), (1, Sessions(gap_minutes=600, max_hours=7))])
def test_every_range_of_partitions_writes_the_same_bytes(
    tmp_path: Path, seed: int, settings: Sessions, constructed: bool
) -> None:
    log, partitions = acts_of(seed) if constructed else busy_log(seed), days(6)
    sessionise(tmp_path / "all", log, partitions, settings, constructed=constructed)
    for first, last in [(2, 2), (3, 3), (1, 3), (4, 5)]:
        wanted = partitions[first : last + 1]
        near = [e for e in log if wanted[0].start - NEAR <= e["event_ts"] < wanted[-1].end + NEAR]
        kept_ids = [log.index(e) for e in near]
        folder = tmp_path / f"{first}-{last}"
        sessionise(folder, [{**log[n], "event_id": n} for n in kept_ids], wanted, settings, constructed=constructed)
        for table in ("impressions", "sessions"):
            for partition in wanted:
                alone, together = (under(tmp_path / name, table)(partition) for name in (folder.name, "all"))
                for which in (Path, late_path):
                    assert which(alone).read_bytes() == which(together).read_bytes(), which(alone)


@pytest.mark.parametrize("constructed", [False, True])
def test_a_new_day_changes_only_the_sessions_that_cross_midnight(tmp_path: Path, constructed: bool) -> None:
    partitions = days(6)
    log = [{**e, "event_id": n} for n, e in enumerate(acts_of(3))]
    known = [e for e in log if e["event_ts"] < partitions[4].start]

    def made(folder: str, events: Rows, wanted: list[Partition], reuse: Any = lambda partition: {}) -> Any:
        return sessionise(tmp_path / folder, events, wanted, NIGHTLY, constructed=constructed, reuse=reuse)[2]

    made("old", known, partitions[:4])
    published = {table: under(tmp_path / "old", table)(partitions[3]) for table in ("impressions", "sessions")}
    counts = made("new", log, partitions[3:4], lambda partition: published)
    fresh = made("fresh", log, partitions[3:4])
    assert counts == fresh
    for table, old in published.items():
        new, anew = (under(tmp_path / name, table)(partitions[3]) for name in ("new", "fresh"))
        assert new.samefile(old)
        assert not anew.samefile(old)
        assert new.read_bytes() == anew.read_bytes()
        assert late_path(new).read_bytes() == late_path(anew).read_bytes() != late_path(old).read_bytes()


@pytest.mark.parametrize("change", ["event", "settings", "nothing published"])
def test_a_published_file_is_not_taken_for_other_rows_or_settings(tmp_path: Path, change: str) -> None:
    log, [day] = [event("u", "a", at(1)), event("v", "b", at(2))], days(1)
    sessionise(tmp_path / "old", log, [day])
    published = {table: under(tmp_path / "old", table)(day) for table in ("impressions", "sessions")}
    if change == "event":
        log = [*log, event("w", "c", at(3))]
    settings = Sessions(rows=2, cols=3) if change == "settings" else SETTINGS
    reuse = {} if change == "nothing published" else published
    sessionise(tmp_path / "new", log, [day], settings, reuse=lambda partition: reuse)
    assert not under(tmp_path / "new", "impressions")(day).samefile(published["impressions"])


def test_every_shown_item_is_in_exactly_one_session_and_no_session_outlasts_the_cap(tmp_path: Path) -> None:
    log = [{**e, "request_id": None} for e in busy_log(5)]  # without requests no impression is a duplicate
    impressions, sessions, _ = sessionise(tmp_path, log, days(6), Sessions(max_hours=10))
    shown = Counter((e["user_id"], e["item_id"], e["event_ts"]) for e in log if e["event_type"] == "impression")
    assert Counter((i["user_id"], i["item_id"], i["impression_ts"]) for i in impressions) == shown
    assert all(s["end_ts"] - s["start_ts"] < 10 * HOUR for s in sessions)


def test_feedback_is_the_best_that_came_of_a_showing_on_its_request(tmp_path: Path) -> None:
    events = [
        event("u", "b", at(0.9), "click", request_id="p"),  # before it was shown
        event("u", "a", at(1), request_id="p", position=0),
        event("u", "b", at(1), request_id="p", position=1),
        event("u", "a", at(1.1), request_id="q", position=0),
        event("u", "a", at(1.2), "click", request_id="p"),
        event("u", "a", at(1.3), "purchase", request_id="p"),
        event("u", "a", at(1.3), "cart", request_id="p"),
    ]
    impressions, sessions, counts = sessionise(tmp_path, events)
    assert [(i["item_id"], i["page"], i["feedback"], i["reward"]) for i in impressions] == [
        ("a", 0, "purchase", 5.0),
        ("b", 0, "skip", 0.0),
        ("a", 1, "skip", 0.0),
    ]
    assert [(s["start_ts"], s["clicks"], s["purchases"], s["reward"]) for s in sessions] == [(at(0.9), 1, 1, 5.0)]
    assert total(counts, "uncredited") == 1


def test_feedback_without_a_request_goes_to_the_newest_showing_in_its_session(tmp_path: Path) -> None:
    events = [
        event("u", "a", at(0)),
        event("u", "a", at(0.1)),
        event("u", "a", at(0.2), "click"),
        event("u", "a", at(0.3)),
        event("u", "a", at(5), "purchase"),  # another session: shown nothing, bought all the same
    ]
    impressions, sessions, counts = sessionise(tmp_path, events)
    assert [i["feedback"] for i in impressions] == ["skip", "click", "skip"]
    assert len(sessions) == 1
    assert (total(counts, "uncredited"), total(counts, "empty")) == (1, 1)


def test_late_feedback_is_credited_by_its_request_and_lengthens_the_session(tmp_path: Path) -> None:
    events = [
        event("u", "a", at(1), request_id="p"),
        event("u", "a", at(9), "purchase", request_id="p"),
        event("u", "b", at(1), request_id="p"),
        event("u", "b", at(25), "purchase", request_id="p"),  # max_hours after the start: too late
    ]
    impressions, sessions, counts = sessionise(tmp_path, events)
    assert {i["item_id"]: i["feedback"] for i in impressions} == {"a": "purchase", "b": "skip"}
    assert [(s["start_ts"], s["end_ts"], s["purchases"]) for s in sessions] == [(at(1), at(9), 1)]
    assert total(counts, "uncredited") == 1


def test_an_item_is_shown_once_on_a_request(tmp_path: Path) -> None:
    events = [event("u", "a", at(0), request_id="p"), event("u", "a", at(0.1), request_id="p")]
    impressions, _, _ = sessionise(tmp_path, events)
    assert [i["impression_ts"] for i in impressions] == [at(0)]


def test_requests_are_pages_in_the_order_of_time_and_positions_are_slots(tmp_path: Path) -> None:
    events = [
        event("u", "late", at(0.2), request_id="a", position=2),
        event("u", "first", at(0), request_id="z", position=3),
        event("u", "second", at(0), request_id="z", position=0),
    ]
    impressions, sessions, _ = sessionise(tmp_path, events)
    slots = [(i["item_id"], i["page"], i["row"], i["col"], i["position"], i["page_ts"]) for i in impressions]
    assert slots == [
        ("second", 0, 0, 0, 0, at(0)),
        ("first", 0, 1, 1, 1, at(0)),
        ("late", 1, 1, 0, 2, at(0.2)),
    ]
    assert sessions[0]["pages"] == 2


@pytest.mark.parametrize(
    ("positions", "places"),
    [
        ([0, 1, 2, 3, 4, 9], [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 1)]),  # goes on over the next pages
        ([None, 1, 2], [(0, 0), (0, 1), (0, 2)]),  # a hole: the order of showing instead
        ([0, 0, 1], [(0, 0), (0, 1), (0, 2)]),  # two in one slot
        ([-1, 0, 1], [(0, 0), (0, 1), (0, 2)]),  # no slot
    ],
)
def test_pages_never_hold_more_than_their_slots(
    tmp_path: Path, positions: list[int | None], places: list[tuple[int, int]]
) -> None:
    events = [event("u", str(n), at(0) + MINUTE * n, request_id="p", position=slot) for n, slot in enumerate(positions)]
    impressions, _, _ = sessionise(tmp_path, events)
    found = [(i["page"], i["row"] * 2 + i["col"]) for i in sorted(impressions, key=lambda i: i["item_id"])]
    renumbered = {page: number for number, page in enumerate(sorted({page for page, _ in places}))}
    assert found == [(renumbered[page], slot) for page, slot in places]


def test_without_requests_a_page_is_filled_in_the_order_of_showing(tmp_path: Path) -> None:
    impressions, _, _ = sessionise(tmp_path, [event("u", str(n), at(0) + MINUTE * n) for n in range(6)])
    assert [(i["page"], i["row"], i["col"]) for i in impressions] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1),
    ]  # fmt: skip


def test_a_log_without_impressions_shows_what_was_acted_on(tmp_path: Path) -> None:
    events = [
        event("u", "a", at(0), "click"),
        event("u", "b", at(0.1), "favorite"),
        event("u", "a", at(0.2), "purchase"),
    ]
    impressions, sessions, counts = sessionise(tmp_path, events)
    assert [(i["item_id"], i["feedback"], i["impression_ts"]) for i in impressions] == [
        ("a", "purchase", at(0)),
        ("b", "favorite", at(0.1)),
    ]
    assert (sessions[0]["clicks"], sessions[0]["purchases"], sessions[0]["reward"]) == (2, 1, 6.0)
    assert total(counts, "uncredited") == 0


@pytest.mark.parametrize("own_ids", [False, True])
@pytest.mark.parametrize("seed", [4, 5])
def test_the_streaming_form_for_simple_logs_equals_the_portable_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, own_ids: bool
) -> None:
    log = [{**e, "request_id": None} for e in busy_log(seed)] if own_ids else acts_of(seed)
    monkeypatch.setattr("pipeline.constructed.CHUNK", 40)  # rows: visits are carried from one table to the next
    streamed = sessionise(tmp_path / "streamed", log, days(6), NIGHTLY, constructed=True)
    made: list[str] = []
    real = sessions_module.create_table
    monkeypatch.setattr(
        sessions_module, "create_table", lambda con, table, *rest: (made.append(table), real(con, table, *rest))
    )
    monkeypatch.setattr(sessions_module, "_exists", lambda con, condition, table="events": "request_id" in condition)
    portable = sessionise(tmp_path / "portable", log, days(6), NIGHTLY, constructed=True)
    assert "credits" in made
    assert streamed == portable


def test_ratings_above_the_threshold_are_clicks(tmp_path: Path) -> None:
    events = [event("u", f"{value}", at(0), "rating", value=value) for value in (3.0, 3.5, 5.0)]
    events.append(event("u", "unrated", at(0), "rating"))
    impressions, _, _ = sessionise(tmp_path, events, positive_above=3.0)
    assert {i["item_id"]: i["feedback"] for i in impressions} == {
        "3.0": "skip", "3.5": "click", "5.0": "click", "unrated": "skip",
    }  # fmt: skip


def test_ratings_without_a_threshold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ratings or watch ratios.*set source\.positive_above"):
        sessionise(tmp_path, [event("u", "a", at(0), "rating", value=4.0)])


def test_a_range_without_impressions_of_a_log_that_has_them_shows_nothing(tmp_path: Path) -> None:
    log = [event("u", "a", at(0)), event("u", "a", at(50), "click")]
    path = write_events(tmp_path / "whole.parquet", log)
    impressions, _, counts = sessionise(tmp_path, log[1:], constructed=is_constructed([path]))
    assert impressions == []
    assert total(counts, "uncredited") == 1


def test_a_partition_without_events_is_an_empty_file(tmp_path: Path) -> None:
    outs = under(tmp_path, "impressions"), under(tmp_path, "sessions")
    counts = build_sessions([], days(1), SETTINGS, Rewards(), None, *outs)
    assert counts == {"2024-01-01": {"impressions": 0, "sessions": 0, "capped": 0, "empty": 0, "uncredited": 0}}
    assert read_rows(outs[0](days(1)[0])) == []


def test_session_ids_depend_on_nothing_but_the_session(tmp_path: Path) -> None:
    session = [event("u", "a", at(1))]
    _, alone, _ = sessionise(tmp_path / "alone", session)
    _, crowd, _ = sessionise(tmp_path / "crowd", [event("w", "a", at(0)), *session, event("u", "a", at(30))])
    assert alone[0]["session_id"] == crowd[1]["session_id"]
    assert len({s["session_id"] for s in crowd}) == 3
