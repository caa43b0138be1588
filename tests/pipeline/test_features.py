from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.features as features_module
from pipeline.experiment import Partitions
from pipeline.features import build_features, check_features
from pipeline.partitions import Partition, partitions_of
from pipeline.schemas import SCHEMAS, WINDOWS
from tests.pipeline.logs import DAY, HOUR, MINUTE, at, days, read_rows, under, write_rows

Row = dict[str, Any]
TICK = timedelta(microseconds=1)
WEEK = 7 * DAY
LENGTHS = dict(zip(WINDOWS, (HOUR, 6 * HOUR, DAY, WEEK), strict=True))
WEEK_LATER = days(10)[8:]  # a range with its eight days of past
ITEMS: dict[str, Row] = {
    "a": {"category": "shoes", "brand": "acme", "shop": "north", "listed_ts": at(0)},
    "b": {"category": "shoes", "brand": None, "shop": "south", "listed_ts": at(8 * 24 + 1)},
    "c": {"category": "", "brand": "acme", "shop": "", "listed_ts": None},
    "d": {"category": "hats", "brand": "", "shop": "north", "listed_ts": at(10 * 24)},
}  # and "e", of which the catalogue knows nothing
TOLD = [  # what events say of items: of "d" the catalogue has the first word
    {"item_id": "c", "category": "hats", "brand": "other", "shop": ""},
    {"item_id": "d", "category": "shoes", "brand": "acme", "shop": None},
    {"item_id": "e", "category": "shoes", "brand": None, "shop": "north"},
    {"item_id": "e", "category": "shows", "brand": None, "shop": "south"},  # the greater of two: it does not count
    {"item_id": "z", "category": "never shown", "brand": "acme", "shop": "north"},
]
KNOWN: dict[str, Row] = ITEMS | {
    "c": {"category": "hats", "brand": "acme", "shop": None, "listed_ts": None},
    "d": ITEMS["d"] | {"brand": "acme"},
    "e": {"category": "shoes", "brand": None, "shop": "north", "listed_ts": None},
}
KINDS = ("category", "brand", "shop")


def impression(
    session: int, item: str, moment: datetime, positive: datetime | None = None, position: int = 0, user: str = ""
) -> Row:
    return {
        "session_id": session,
        "user_id": user or f"u{session}",
        "item_id": item,
        "page": position // 10,
        "position": position,
        "feedback": "skip" if positive is None else "click",
        "page_ts": moment,
        "impression_ts": moment,
        "positive_ts": positive,
    }


def write_catalogue(folder: Path) -> Path:
    columns = {"item_id": pa.string()} | {
        name: SCHEMAS["items"].field(name).type for name in ("title", *KINDS, "price", "listed_ts", "features")
    }
    rows = [{"item_id": item, **described} for item, described in ITEMS.items()]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns.items())), folder / "items.parquet")
    return folder / "items.parquet"


def featured(
    folder: Path, shown: Sequence[Row], wanted: Sequence[Partition] = WEEK_LATER, told: Sequence[Row] = ()
) -> list[Row]:
    impressions = write_rows(folder / "impressions.parquet", "impressions", shown)
    mentions = [write_rows(folder / "mentions.parquet", "mentions", told)]
    out = under(folder, "features")
    assert build_features([impressions], write_catalogue(folder), wanted, out, mentions=lambda p: mentions) == wanted
    return [row for p in wanted for row in read_rows(out(p))]


def test_what_events_say_of_an_item_fills_what_the_catalogue_leaves_open(tmp_path: Path) -> None:
    now = at(9 * 24)
    bare = [impression(1, "bare", now - HOUR, now - HOUR), impression(2, "other", now)]
    told = [{"item_id": item, "category": "told", "shop": "s"} for item in ("bare", "other")]
    mentions = write_rows(tmp_path / "mentions.parquet", "mentions", told)
    log = write_rows(tmp_path / "impressions.parquet", "impressions", [{**row, "user_id": "u"} for row in bare])
    out, catalogue = under(tmp_path, "features"), write_catalogue(tmp_path)
    build_features([log], catalogue, WEEK_LATER, out, mentions=lambda partition: [mentions])
    [last] = [row for p in WEEK_LATER for row in read_rows(out(p)) if row["item_id"] == "other"]
    assert (last["item_category"], last["item_shop"], last["item_brand"]) == ("told", "s", None)
    assert (last["user_category_positives_1w"], last["user_shop_positives_1w"]) == (1, 1)
    files = [out(p) for p in WEEK_LATER]
    assert check_features(files, [log], catalogue, mentions=[mentions]) == []
    assert check_features(files, [log], catalogue) != []  # without them the counts have no ground


@pytest.mark.parametrize("told_of", [[0], [1], []])
def test_events_may_say_something_of_items_in_some_partitions_alone(tmp_path: Path, told_of: list[int]) -> None:
    shown = [impression(n, "bare", p.start) for n, p in enumerate(WEEK_LATER)]
    log = write_rows(tmp_path / "impressions.parquet", "impressions", shown)
    told = write_rows(tmp_path / "mentions.parquet", "mentions", [{"item_id": "bare", "category": "told"}])
    out, catalogue = under(tmp_path, "features"), write_catalogue(tmp_path)
    said = {p.key: [told] if n in told_of else [] for n, p in enumerate(WEEK_LATER)}
    build_features([log], catalogue, WEEK_LATER, out, mentions=lambda partition: said[partition.key])
    found = [read_rows(out(p))[0]["item_category"] for p in WEEK_LATER]
    assert found == ["told" if n in told_of else None for n in range(2)]


def by_hand(of: Row, log: Sequence[Row], catalogue: dict[str, Row]) -> Row:
    """The features of one impression, counted as their definitions read."""
    user, item, now = of["user_id"], of["item_id"], of["impression_ts"]
    kinds = {item: {k: described[k] or None for k in KINDS} for item, described in catalogue.items()}
    own = kinds.get(item, dict.fromkeys(KINDS))
    facts = [(s["user_id"], s["item_id"], s["impression_ts"], "impressions") for s in log]
    facts += [(s["user_id"], s["item_id"], s["positive_ts"], "positives") for s in log if s["positive_ts"]]
    past = [fact for fact in facts if now - WEEK <= fact[2] < now]

    def count(what: str, since: timedelta = WEEK, **same: str) -> int:
        return sum(
            kind == what and ts >= now - since and same.get("user", u) == u and same.get("item", i) == i
            for u, i, ts, kind in past
        )

    found: Row = {f"item_{kind}": own[kind] for kind in KINDS}
    for window, length in LENGTHS.items():
        n, positives = count("impressions", length, item=item), count("positives", length, item=item)
        mine = [(i, ts) for u, i, ts, kind in past if u == user and kind == "positives" and ts >= now - length]
        found |= {
            f"item_impressions_{window}": n,
            f"item_positives_{window}": positives,
            f"item_ctr_{window}": positives / n if n else 0,
            f"user_impressions_{window}": count("impressions", length, user=user),
            f"user_positives_{window}": count("positives", length, user=user),
            f"user_categories_{window}": len({kinds.get(i, {}).get("category") for i, _ in mine} - {None}),
        }
    showings = [ts for _, i, ts, kind in past if i == item and kind == "impressions"]
    found["item_age_hours"] = (now - min(showings)) / HOUR if showings else None
    found["user_item_impressions_1w"] = count("impressions", user=user, item=item)
    found["user_item_positives_1w"] = count("positives", user=user, item=item)
    for kind in KINDS:
        alike = [i for i, described in kinds.items() if own[kind] and described[kind] == own[kind]]
        same = sum(count("positives", user=user, item=i) for i in alike)
        found[f"user_{kind}_positives_1w"] = same if own[kind] else None
    listed = catalogue.get(item, {}).get("listed_ts")
    return found | {
        "context_hour": now.hour,
        "context_weekday": now.weekday(),
        "context_page": of["page"],
        "context_position": of["position"],
        "context_freshness_hours": (now - listed) / HOUR if listed and listed <= now else None,
    }


def narrow(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


# Days, hours and ticks whose differences are the lengths of the windows, so that moments and edges often coincide.
MOMENTS = st.builds(
    lambda day, hour, tick: at(24 * day + hour) + tick * TICK,
    st.sampled_from([1, 2, 4, 7, 8, 9]),
    st.sampled_from([1, 2, 7, 8, 20]),
    st.sampled_from([-1, 0, 0, 0, 1]),
)
DELAYS = st.sampled_from([None, None, timedelta(0), TICK, HOUR, 20 * HOUR])
SHOWN = st.lists(st.tuples(MOMENTS, st.sampled_from("uv"), st.sampled_from("abcde"), DELAYS), min_size=1, max_size=40)
RANGES = st.sampled_from([WEEK_LATER, WEEK_LATER[:1], days(10)[4:]])  # with quiet time in the past and without


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(SHOWN, RANGES, st.sampled_from([[], TOLD]))
def test_features_of_all_groups_equal_a_plain_count(
    drawn: list[tuple[datetime, str, str, timedelta | None]], wanted: list[Partition], told: list[Row]
) -> None:
    log = [
        impression(n, item, moment, None if delay is None else moment + delay, position=n % 25, user=user)
        for n, (moment, user, item, delay) in enumerate(drawn)
    ]
    with TemporaryDirectory() as folder:
        rows = featured(Path(folder), log, wanted, told)
    inside = {s["session_id"]: s for s in log if wanted[0].start <= s["impression_ts"] < wanted[-1].end}
    assert {row["session_id"] for row in rows} == set(inside)
    for row in rows:
        expected = by_hand(inside[row["session_id"]], log, KNOWN if told else ITEMS)
        assert set(expected) == set(row) - {"session_id", "position", "item_id", "impression_ts"}
        assert {name: row[name] for name in expected} == {name: narrow(value) for name, value in expected.items()}


@pytest.mark.parametrize("wanted", [WEEK_LATER, WEEK_LATER[1:]])  # the moment lies in the range, and is its start
def test_windows_are_closed_at_their_start_and_open_at_the_impression(tmp_path: Path, wanted: list[Partition]) -> None:
    now = at(9 * 24)
    past = [TICK, HOUR, HOUR + TICK, 6 * HOUR, DAY, WEEK, WEEK + MINUTE]
    shown = [impression(n, "a", now - ago, now - ago, user="u") for n, ago in enumerate(past)]
    shown += [impression(20, "a", now, user="u"), impression(21, "a", now, now, user="u")]
    shown += [impression(22, "b", now - MINUTE)]
    rows = [row for row in featured(tmp_path, shown, wanted) if row["impression_ts"] == now]
    for counted in ("item_impressions", "item_positives", "user_impressions", "user_positives"):
        assert [[row[f"{counted}_{window}"] for window in WINDOWS] for row in rows] == [[2, 4, 5, 6]] * 2
    for counted in ("item_impressions", "item_positives", "category_positives", "brand_positives", "shop_positives"):
        assert [row[f"user_{counted}_1w"] for row in rows] == [6, 6]
    assert [row["item_age_hours"] for row in rows] == [168, 168]


@pytest.mark.parametrize("wanted", [WEEK_LATER, WEEK_LATER[1:]])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_windows_of_categories_have_the_same_bounds(tmp_path: Path, window: str, wanted: list[Partition]) -> None:
    now, since = at(9 * 24), at(9 * 24) - LENGTHS[window]
    clicks = [("a", since - TICK), ("d", since), ("b", now)]  # shoes too early, hats in time, shoes too late
    shown = [impression(n, item, moment, moment, user="u") for n, (item, moment) in enumerate(clicks)]
    (row,) = (row for row in featured(tmp_path, shown, wanted) if row["impression_ts"] == now)
    assert row[f"user_categories_{window}"] == 1


def test_a_positive_counts_from_the_moment_it_was_known(tmp_path: Path) -> None:
    shown = [
        impression(1, "a", at(200), positive=at(200.75)),
        impression(2, "a", at(200.5)),  # before the purchase
        impression(3, "a", at(200.75)),  # its very moment
        impression(4, "a", at(200.8)),
    ]
    rows = featured(tmp_path, shown)
    assert [row["item_positives_6h"] for row in rows] == [0, 0, 0, 1]
    assert [row["item_ctr_6h"] for row in rows] == [0, 0, 0, pytest.approx(1 / 3)]


def test_a_category_counts_once_for_as_long_as_any_of_its_positives_does(tmp_path: Path) -> None:
    clicks = [("a", 200.0), ("b", 201.0), ("a", 201.5), ("d", 201.0), ("c", 201.0), ("e", 201.0)]  # c, e: no category
    shown = [impression(n, item, at(hour), at(hour), user="u") for n, (item, hour) in enumerate(clicks)]
    asked = [201.0, 201.25, 202.0, 202.5, 202.75]
    shown += [impression(20 + n, "a", at(hour), user="u") for n, hour in enumerate(asked)]
    rows = [row for row in featured(tmp_path, shown) if row["session_id"] >= 20]
    assert [row["user_categories_1h"] for row in rows] == [1, 2, 2, 1, 0]
    assert [row["user_category_positives_1w"] for row in rows] == [1, 2, 3, 3, 3]


def test_what_the_catalogue_does_not_say_is_null_and_no_category_of_its_own(tmp_path: Path) -> None:
    shown = [impression(1, item, at(200) + n * MINUTE, at(200), n, user="u") for n, item in enumerate("ce")]
    for row in featured(tmp_path, shown):
        known = {"brand": "acme"} if row["item_id"] == "c" else {}  # a blank is no category and no shop either
        assert {kind: row[f"item_{kind}"] for kind in KINDS} == {kind: known.get(kind) for kind in KINDS}
        unknown = [kind for kind in KINDS if kind not in known]
        assert [row[f"user_{kind}_positives_1w"] for kind in unknown] == [None] * len(unknown)
        assert row["user_categories_1w"] == 0
        assert row["context_freshness_hours"] is None


def test_a_row_belongs_to_the_partition_of_its_impression(tmp_path: Path) -> None:
    shown = [impression(1, "a", at(9 * 24 - 0.1)), impression(1, "a", at(9 * 24), position=1)]
    featured(tmp_path, shown)
    out = under(tmp_path, "features")
    assert [[row["position"] for row in read_rows(out(p))] for p in WEEK_LATER] == [[0], [1]]


def busy_shop(start: datetime, hours: float, count: int) -> list[Row]:
    """Many impressions at whole minutes, of few users and items."""
    rng = np.random.default_rng(5)
    moments = [start + MINUTE * int(m) for m in rng.integers(0, int(hours * 60), count)]
    delays = [MINUTE * int(m) if m < 90 else None for m in rng.integers(0, 300, count)]
    users, items = rng.integers(0, 9, count), rng.integers(0, 5, count)
    return [
        impression(n, "abcde"[items[n]], moment, moment + delay if delay else None, user=f"u{users[n]}")
        for n, (moment, delay) in enumerate(zip(moments, delays, strict=True))
    ]


MONTHS = partitions_of(Partitions(grain="month", start=date(2024, 1, 1), end=date(2024, 5, 1)))


@pytest.mark.parametrize(("wanted", "hours", "count"), [(WEEK_LATER, 240, 600), (MONTHS[1:], 24 * 121, 1500)])
def test_features_of_one_partition_are_those_of_the_whole_range(
    tmp_path: Path, wanted: list[Partition], hours: float, count: int
) -> None:
    shown = busy_shop(at(0), hours, count)
    featured(tmp_path / "all", shown, wanted)
    for partition in wanted:
        near = [s for s in shown if partition.start - 8 * DAY <= s["impression_ts"] < partition.end]
        featured(tmp_path / partition.key, near, [partition])
        one, together = (under(tmp_path / name, "features")(partition) for name in (partition.key, "all"))
        assert pq.read_metadata(one).num_rows > count // 20
        assert one.read_bytes() == together.read_bytes()


def test_partitions_with_a_gap_between_them_are_made_alike(tmp_path: Path) -> None:
    shown, wanted = busy_shop(at(0), 240, 400), days(10)[5:]
    featured(tmp_path / "all", shown, wanted)
    featured(tmp_path / "some", shown, [wanted[0], wanted[3], wanted[4]])
    for partition in (wanted[0], wanted[3], wanted[4]):
        some, together = (under(tmp_path / name, "features")(partition) for name in ("some", "all"))
        assert some.read_bytes() == together.read_bytes()


NEWS = [  # what another run finds beside or instead of the first one's impressions, and what it must make
    ("nothing", [], []),
    ("another day", [impression(900, "a", at(241))], []),
    ("an earlier one known as positive on another day", [impression(800, "a", at(239), at(240))], []),
    ("an earlier one known as positive", [impression(800, "a", at(239), at(239.9))], [1]),
    ("an impression of the last day", [impression(900, "a", at(239))], [1]),
    ("an impression of the first day", [impression(900, "a", at(200))], [0, 1]),
    ("an impression of the week before the first day alone", [impression(900, "a", at(30))], [0]),
    ("an impression of the days before that", [impression(900, "a", at(20))], []),
]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder, shown = tmp_path_factory.mktemp("first"), [*busy_shop(at(0), 240, 100), impression(800, "a", at(239))]
    featured(folder, shown)
    return folder, shown


@pytest.mark.parametrize(("news", "stale"), [case[1:] for case in NEWS], ids=[case[0] for case in NEWS])
def test_only_features_of_other_facts_are_made_again(
    tmp_path: Path, first_run: tuple[Path, list[Row]], news: list[Row], stale: list[int]
) -> None:
    folder, before = first_run
    shown = [*(s for s in before if s["session_id"] not in {n["session_id"] for n in news}), *news]
    featured(tmp_path, shown)
    published, anew, out = under(folder, "features"), under(tmp_path, "features"), under(tmp_path, "reused")
    inputs = [tmp_path / "impressions.parquet"], tmp_path / "items.parquet"
    assert build_features(*inputs, WEEK_LATER, out, published) == [WEEK_LATER[n] for n in stale]
    assert [out(p).read_bytes() for p in WEEK_LATER] == [anew(p).read_bytes() for p in WEEK_LATER]
    assert build_features(*inputs, WEEK_LATER, under(tmp_path, "third"), out) == []


def test_of_a_long_history_only_new_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partitions, shown = days(11), busy_shop(at(0), 264, 300)
    logs = [
        write_rows(
            tmp_path / f"{p.key}.parquet", "impressions", [s for s in shown if p.start <= s["impression_ts"] < p.end]
        )
        for p in partitions
    ]
    counted: list[list[str]] = []
    real = features_module.run_sql
    monkeypatch.setattr(
        features_module,
        "run_sql",
        lambda con, name, params: (counted.append(params["files"]), real(con, name, params))[1],
    )
    catalogue, published, out = write_catalogue(tmp_path), under(tmp_path, "published"), under(tmp_path, "features")
    assert build_features(logs[:-1], catalogue, partitions[8:10], published) == partitions[8:10]
    reuse = {p.key: published(p) for p in partitions[8:10]}
    made = build_features(logs[1:], catalogue, partitions[9:], out, lambda p: reuse.get(p.key))
    assert made == partitions[10:]
    assert counted == [[str(path) for path in logs[:-1]], [str(logs[-1])]]
    anew = under(tmp_path, "anew")
    build_features(logs[1:], catalogue, partitions[9:], anew)
    assert [out(p).read_bytes() for p in partitions[9:]] == [anew(p).read_bytes() for p in partitions[9:]]
    records = [out(p).with_suffix(".json").read_bytes() for p in partitions[9:]]
    assert records == [anew(p).with_suffix(".json").read_bytes() for p in partitions[9:]]
    monkeypatch.setattr(features_module, "code_fingerprint", lambda module: "other code")
    assert build_features(logs, catalogue, partitions[8:10], out, lambda p: reuse.get(p.key)) == partitions[8:10]
    assert counted[-1] == [str(path) for path in logs]  # what other code counted may be something else


def test_a_new_fact_of_before_1970_makes_its_day_again(tmp_path: Path) -> None:
    wanted = partitions_of(Partitions(start=date(1969, 12, 30), end=date(1970, 1, 2)))
    shown = [impression(n, "a", p.start + HOUR) for n, p in enumerate(wanted)]
    featured(tmp_path, shown, wanted)
    late = [*shown, impression(9, "b", wanted[1].start + 2 * HOUR)]
    log = write_rows(tmp_path / "impressions.parquet", "impressions", late)
    published, again = (under(tmp_path, name) for name in ("features", "again"))
    assert build_features([log], tmp_path / "items.parquet", wanted, again, published) == wanted[1:]


def test_features_are_made_again_for_another_catalogue_and_without_a_readable_record(tmp_path: Path) -> None:
    shown = busy_shop(at(0), 240, 100)
    featured(tmp_path, shown)
    published, again = (under(tmp_path, name) for name in ("features", "again"))
    impressions, items = tmp_path / "impressions.parquet", tmp_path / "items.parquet"
    published(WEEK_LATER[0]).with_suffix(".json").write_text('{"made_from', encoding="utf-8")
    assert build_features([impressions], items, WEEK_LATER, again, published) == WEEK_LATER[:1]
    pq.write_table(pq.read_table(items).slice(1), items)
    assert build_features([impressions], items, WEEK_LATER, under(tmp_path, "third"), again) == WEEK_LATER


def test_a_partition_without_impressions_has_no_features(tmp_path: Path) -> None:
    assert featured(tmp_path, [impression(1, "a", at(5))]) == []


LEAKS = [
    ("item_positives_1h", 1),  # its own click
    ("item_ctr_1w", 0.5),
    ("item_age_hours", -1),
    ("user_impressions_24h", 1),
    ("user_categories_6h", 1),
    ("user_item_positives_1w", 1),
    ("user_category_positives_1w", 1),
    ("user_brand_positives_1w", 1),
    ("user_shop_positives_1w", 1),
    ("context_hour", 1),
    ("context_freshness_hours", 1),
]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("honest")
    return folder, featured(folder, busy_shop(at(160), 80, 150))


def test_the_check_finds_nothing_in_honest_features(honest: tuple[Path, list[Row]]) -> None:
    folder, rows = honest
    features = [under(folder, "features")(p) for p in WEEK_LATER]
    assert len(rows) > 50
    assert check_features(features, [folder / "impressions.parquet"], folder / "items.parquet") == []


@pytest.mark.parametrize(("column", "more"), LEAKS)
def test_the_check_finds_features_that_know_the_future(
    tmp_path: Path, honest: tuple[Path, list[Row]], column: str, more: float
) -> None:
    folder, rows = honest
    victim = next(n for n, row in enumerate(rows) if n > 20 and row["item_id"] == "a")
    peeking = [row | {column: row[column] + more} if n == victim else row for n, row in enumerate(rows)]
    features = write_rows(tmp_path / "peeking.parquet", "features", peeking)
    (problem,) = check_features([features], [folder / "impressions.parquet"], folder / "items.parquet")
    session = rows[victim]["session_id"]
    wrong, true = (np.float32(row[victim][column]) for row in (peeking, rows))
    assert problem.startswith(f"{column} of impression 0 in session {session} is {wrong:g}, but what lay strictly")
    assert problem.endswith(f" before it gives {true:g}")
