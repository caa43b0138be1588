"""What was ingested, against pandas and numpy on a random log, and by hand where a log is tiny, one-sided or empty."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.data_report import MEASURES, NAMED_REASONS, Figures, build_data_report
from pipeline.schemas import SCHEMAS
from tests.pipeline.logs import START, at, event, write_rows

KINDS = ("skip", "click", "cart", "purchase")
EPOCH = (date(1970, 1, 1) - START.date()).days * 24  # hours
Rows = Sequence[dict[str, Any]]


def impression(session: int, user: str, item: str, hour: float, feedback: str = "skip", **more: Any) -> dict[str, Any]:
    return {"session_id": session, "user_id": user, "item_id": item, "impression_ts": at(hour), "page": 0,
            "feedback": feedback, **more}  # fmt: skip


def sessions_of(impressions: Rows) -> list[dict[str, Any]]:
    """A session for each id, from its impressions; it goes on for 90 seconds after the last of them."""
    if not impressions:
        return []
    found = pd.DataFrame(impressions).assign(positive=lambda rows: rows.feedback != "skip")
    sessions = found.groupby("session_id").agg(
        user_id=("user_id", "first"), start_ts=("impression_ts", "min"), end_ts=("impression_ts", "max"),
        pages=("page", "nunique"), impressions=("item_id", "size"), clicks=("positive", "sum"))  # fmt: skip
    sessions["end_ts"] += timedelta(seconds=90)
    sessions["capped"] = sessions.index % 7 == 0
    return [{str(key): value for key, value in row.items()} for row in sessions.reset_index().to_dict("records")]


def report(
    folder: Path, impressions: Rows, events: Rows = (), rejects: Rows = (), counts: Rows = (), grain: str = "day"
) -> Figures:
    """The data report of a log; its events are its impressions unless others are given."""
    facts = list(events) or [event(r["user_id"], r["item_id"], r["impression_ts"]) for r in impressions]
    facts = [row | {"event_date": row["event_ts"].date()} for row in facts]
    tables = {"events": facts, "impressions": impressions, "sessions": sessions_of(impressions), "rejects": rejects,
              "ingest_counts": counts}  # fmt: skip
    inputs = {name: [write_rows(folder / f"{name}.parquet", name, rows)] for name, rows in tables.items()}
    return Figures(build_data_report(inputs, grain, False, folder / "data_report.parquet"))


def values(figures: Figures, section: str) -> dict[str, Any]:
    """A section of single figures: the value of each name, or its instant."""
    return {row["name"]: row["bucket"] if row["value"] is None else row["value"] for row in figures.rows(section)}


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """900 impressions in 200 sessions of 25 users over six days; popular items are shown much more often."""
    rng = np.random.default_rng(7)
    starts, owners = np.sort(rng.uniform(0, 140, 200)), rng.integers(25, size=200)
    sessions = np.sort(np.concatenate([np.arange(200), rng.integers(200, size=700)]))
    rows = [
        impression(int(s), f"u{owners[s]}", f"i{min(rng.zipf(1.4), 60)}", starts[s] + 0.05 * n % 3,
                   str(rng.choice(KINDS, p=[0.7, 0.2, 0.05, 0.05])), page=int(n % 3),
                   propensity=0.1 if n % 4 else None)
        for n, s in enumerate(sessions)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"propensity": float})


@pytest.fixture(scope="module")
def figures(log: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Figures:
    rows: list[dict[str, Any]] = log.astype(object).where(log.notna(), None).to_dict("records")
    return report(tmp_path_factory.mktemp("log"), rows)


def test_the_overview_counts_what_pandas_counts(figures: Figures, log: pd.DataFrame) -> None:
    positive = log.feedback != "skip"
    users, items = log.user_id.nunique(), log.item_id.nunique()
    by_session = positive.groupby(log.session_id)
    assert values(figures, "overview") == pytest.approx(
        {
            "first_event": f"{log.impression_ts.min():%Y-%m-%d %H:%M:%S}",
            "last_event": f"{log.impression_ts.max():%Y-%m-%d %H:%M:%S}",
            "events": 900,
            "users": users,
            "items": items,
            "sessions": 200,
            "impressions": 900,
            "positives": positive.sum(),
            "positives_share": positive.mean(),
            "impressions_with_propensity_share": log.propensity.notna().mean(),
            "shown_set_is_constructed": 0,
            "pairs_shown_share": len(log.drop_duplicates(["user_id", "item_id"])) / users / items,
            "pairs_positive_share": len(log[positive].drop_duplicates(["user_id", "item_id"])) / users / items,
            "sessions_without_positive_share": (~by_session.any()).mean(),
            "sessions_of_positives_only_share": by_session.all().mean(),
            "sessions_cut_by_length_share": 29 / 200,
        }
    )


def test_counts_by_period_match_pandas(figures: Figures, log: pd.DataFrame) -> None:
    days = log.impression_ts.dt.strftime("%Y-%m-%d")
    by_feedback = log.groupby(["feedback", days]).size()
    found = figures.series("feedback_by_period")
    assert {(name, day): n for name, of_day in found.items() for day, n in of_day.items()} == by_feedback.to_dict()
    assert list(found) == list(log.feedback.value_counts().index)
    assert figures.series("events_by_period") == {"impression": log.groupby(days).size().to_dict()}
    start_days = log.groupby("session_id").impression_ts.min().dt.strftime("%Y-%m-%d")
    has_positive = (log.feedback != "skip").groupby(log.session_id).any()
    sessions = figures.series("sessions_by_period")
    assert sessions["with_positive"] == has_positive.groupby(start_days).sum().to_dict()
    assert sessions["without_positive"] == (~has_positive).groupby(start_days).sum().to_dict()


@pytest.mark.parametrize(("section", "column"), [("users_by_period", "user_id"), ("items_by_period", "item_id")])
def test_an_entity_is_new_in_its_first_period_and_known_in_later_ones(
    figures: Figures, log: pd.DataFrame, section: str, column: str
) -> None:
    days = log.impression_ts.dt.strftime("%Y-%m-%d")
    first = days.groupby(log[column]).min().value_counts()
    active = log.groupby(days)[column].nunique()
    found = figures.series(section)
    assert {day: n for day, n in found["new"].items() if n} == first.to_dict()
    assert found["known"] == (active - first.reindex(active.index, fill_value=0)).to_dict()


def test_lengths_have_the_quantiles_of_numpy_and_histograms_lose_nothing(figures: Figures, log: pd.DataFrame) -> None:
    by_session = log.groupby("session_id")
    spans = by_session.impression_ts.max() - by_session.impression_ts.min() + timedelta(seconds=90)
    lengths = {
        "impressions_of_a_session": by_session.size(),
        "pages_of_a_session": by_session.page.nunique(),
        "minutes_of_a_session": spans // timedelta(minutes=1),
        "sessions_of_a_user": log.groupby("user_id").session_id.nunique(),
        "impressions_of_a_user": log.groupby("user_id").size(),
        "impressions_of_an_item": log.groupby("item_id").size(),
    }
    shares = {"min": 0, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1}
    spread, histogram = figures.series("spread"), figures.series("histogram")
    assert tuple(spread) == tuple(histogram) == tuple(lengths) == MEASURES
    for measure, numbers in lengths.items():
        wanted = {name: np.quantile(numbers, share, method="inverted_cdf") for name, share in shares.items()}
        assert spread[measure] == pytest.approx({"mean": numbers.mean(), **wanted}), measure
        for length, n in histogram[measure].items():
            low, _, high = length.partition("–")
            assert n == numbers.between(int(low), int(high or low)).sum(), (measure, length)
        assert sum(histogram[measure].values()) == len(numbers)


@pytest.mark.parametrize("kind", ["impressions", "positives"])
def test_the_gini_coefficient_is_half_the_mean_difference_over_the_mean(
    figures: Figures, log: pd.DataFrame, kind: str
) -> None:
    counted = log if kind == "impressions" else log[log.feedback != "skip"]
    taken = counted.groupby("item_id").size().reindex(log.item_id.unique(), fill_value=0).to_numpy()
    gini = np.abs(taken[:, None] - taken[None, :]).mean() / taken.mean() / 2
    best = np.sort(taken)[::-1]
    found = {name: of_kind[kind] for name, of_kind in figures.series("popularity").items()}
    assert found == pytest.approx(
        {
            "top_1_percent_share": best[: int(np.ceil(0.01 * len(best)))].sum() / best.sum(),
            "top_10_percent_share": best[: int(np.ceil(0.1 * len(best)))].sum() / best.sum(),
            "gini": gini,
        }
    )


def test_cold_is_what_the_last_fifth_of_the_sessions_meets_first(tmp_path: Path) -> None:
    early = [impression(n, f"u{n % 2}", "known", n) for n in range(8)]
    late = [
        impression(8, "u0", "known", 8),
        impression(8, "u0", "fresh", 8.1),
        impression(9, "newcomer", "fresh", 9),
        impression(9, "newcomer", "fresh", 9.1),
    ]
    assert values(report(tmp_path, early + late), "cold_start") == {
        "cut_off": "2024-01-01 08:00:00",
        "cold_users_share": 1 / 2,
        "cold_sessions_share": 1 / 2,
        "cold_items_share": 1 / 2,
        "cold_impressions_share": 3 / 4,
    }


def test_coverage_is_the_share_of_a_types_events_that_fill_a_column(tmp_path: Path) -> None:
    facts = [
        event("u", "i", at(0), session_id="s", position=0, propensity=0.5),
        event("u", "j", at(0), session_id="s", position=1),
        event("u", "k", at(0), position=2),
        event("u", "k", at(1), "purchase", value=3.5),
    ]
    found = report(tmp_path, [impression(1, "u", "i", 0)], facts).series("coverage")
    assert found == {
        "session_id": {"impression": 2 / 3, "purchase": 0},
        "request_id": {"impression": 0, "purchase": 0},
        "position": {"impression": 1, "purchase": 0},
        "propensity": {"impression": 1 / 3, "purchase": 0},
        "value": {"impression": 0, "purchase": 1},
    }


@pytest.mark.parametrize(
    ("grain", "midnight", "periods"),
    [
        ("day", 31 * 24, ["2024-01-31", "2024-02-01"]),
        ("month", 31 * 24, ["2024-01-01", "2024-02-01"]),
        ("year", 31 * 24, ["2024-01-01"]),
        ("day", EPOCH, ["1969-12-31", "1970-01-01"]),
        ("year", EPOCH, ["1969-01-01", "1970-01-01"]),
    ],
)
def test_periods_are_those_of_the_experiment(tmp_path: Path, grain: str, midnight: int, periods: list[str]) -> None:
    log = [impression(1, "u", "i", midnight - 0.1), impression(2, "u", "i", midnight)]
    found = report(tmp_path, log, grain=grain)
    for section in ("events", "feedback", "sessions", "users", "items"):
        assert {row["bucket"] for row in found.rows(f"{section}_by_period")} == set(periods), section


def test_the_records_of_all_files_are_added_up(tmp_path: Path) -> None:
    counts = [
        {"path": "a", "rows_in": 10, "unpacked": 5, "events": 12, "duplicates": 2, "rejects": 1, "left_out": 1},
        {"path": "b", "rows_in": 3, "unpacked": 0, "events": 3, "duplicates": 0, "rejects": 0},
    ]
    found = values(report(tmp_path, [impression(1, "u", "i", 0)], counts=counts), "ingest")
    assert found == {"raw_files": 2, "rows_in": 13, "unpacked": 5, "events": 15, "duplicates": 2, "rejects": 1,
                     "left_out": 1}  # fmt: skip


def test_reasons_lose_what_they_quote_and_rare_ones_are_counted_together(tmp_path: Path) -> None:
    rejects = [{"file": "a", "line": n, "raw": "", "reason": f"cannot read 'Ann {n}' as a time"} for n in range(3)]
    rejects += [{"file": "a", "line": n, "raw": "", "reason": f"reason {n:03}"} for n in range(NAMED_REASONS + 4)]
    rows = report(tmp_path, [impression(1, "u", "i", 0)], rejects=rejects).rows("rejects")
    assert [(row["bucket"], row["value"]) for row in rows[:2]] == [("cannot read … as a time", 3), ("reason 000", 1)]
    assert [(row["bucket"], row["value"]) for row in rows[-1:]] == [("other reasons", 5)]
    assert sum(row["value"] for row in rows) == len(rejects)


def test_one_session_is_reported_without_a_claim_about_cold_users(tmp_path: Path) -> None:
    found = report(tmp_path, [impression(1, "u", "i", 0, "click"), impression(1, "u", "j", 0.1)])
    overview = values(found, "overview")
    assert (overview["sessions"], overview["positives_share"], overview["pairs_shown_share"]) == (1, 0.5, 1)
    assert found.series("spread")["minutes_of_a_session"]["p50"] == 7
    assert found.rows("cold_start") == []


def test_events_without_any_session_are_still_reported(tmp_path: Path) -> None:
    found = report(tmp_path, [], [event("u", "i", at(0), "click")])
    overview = values(found, "overview")
    assert (overview["events"], overview["users"], overview["sessions"], overview["impressions"]) == (1, 1, 0, 0)
    assert overview["positives_share"] is None
    assert found.series("events_by_period") == {"click": {f"{START:%Y-%m-%d}": 1}}
    assert found.rows("popularity") == found.rows("cold_start") == []


def test_a_log_without_positives_has_no_popularity_of_positives(tmp_path: Path) -> None:
    found = report(tmp_path, [impression(1, "u", "i", 0), impression(1, "u", "j", 0)])
    assert found.series("popularity")["gini"] == {"impressions": 0}


def test_the_report_is_typed_ordered_and_the_same_bytes_again(tmp_path: Path, log: pd.DataFrame) -> None:
    rows: list[dict[str, Any]] = log.astype(object).where(log.notna(), None).to_dict("records")
    for name in ("first", "second"):
        report(tmp_path / name, rows)
    first, second = (tmp_path / name / "data_report.parquet" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    table = pd.read_parquet(first)
    assert list(table.columns) == SCHEMAS["data_report"].names
    assert table.place.tolist() == list(range(1, len(table) + 1))
    assert not table.duplicated(["section", "name", "bucket"]).any()


def test_no_id_of_a_user_or_an_item_is_in_it(tmp_path: Path) -> None:
    log = [impression(n, f"ann-{n}", f"thing-{n}", n) for n in range(20)]
    report(tmp_path, log)
    text = str(pd.read_parquet(tmp_path / "data_report.parquet").to_dict("list"))
    assert "ann-" not in text
    assert "thing-" not in text
    assert "2024-01-01" in text
