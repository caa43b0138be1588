"""The storefront's log: what a shop would have logged, and nothing that it could not know."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pipeline.errors import StorageError
from pipeline.schemas import SCHEMAS
from pipeline.source_settings import StorefrontSource
from pipeline.sources import storefront_log
from pipeline.sources.base import ITEM_COLUMNS
from pipeline.sources.storefront import RAW_COLUMNS, StorefrontLog, load_truth
from pipeline.sources.storefront_log import session_starts
from pipeline.warehouse import connect

torch.set_num_threads(1)
SETTINGS = StorefrontSource(kind="storefront", users=80, days=4, start=date(2024, 2, 27), seed=3)
HOUR = 3600 * 1_000_000


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> StorefrontLog:
    log = StorefrontLog(SETTINGS, tmp_path_factory.mktemp("raw"))
    log.discover()
    return log


@pytest.fixture(scope="module")
def events(log: StorefrontLog) -> pd.DataFrame:
    with connect() as con:
        parts = [log.read(con, file).df() for file in log.discover() if file.kind == "events"]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def shown(events: pd.DataFrame) -> pd.DataFrame:
    return events[events.event_type == "impression"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_settings_give_the_same_bytes(log: StorefrontLog, tmp_path: Path) -> None:
    again = StorefrontLog(SETTINGS, tmp_path)
    again.discover()
    assert contents(again.home) == contents(log.home)


def test_another_seed_gives_another_log_in_another_folder(log: StorefrontLog, tmp_path: Path) -> None:
    other = StorefrontLog(SETTINGS.model_copy(update={"seed": 4}), tmp_path)
    other.discover()
    assert other.home.name != log.home.name
    assert contents(other.home) != contents(log.home)


def test_a_log_is_simulated_once(log: StorefrontLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storefront_log, "write_log", lambda *_: pytest.fail("simulated again"))
    assert log.discover() == log.discover()


def test_nothing_half_made_stays_when_the_simulation_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storefront_log, "write_entities", fail)
    with pytest.raises(OSError, match="disk full"):
        StorefrontLog(SETTINGS, tmp_path).discover()
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_one_a_day_and_the_truth_is_not_among_them(log: StorefrontLog) -> None:
    files = log.discover()
    days = ["2024-02-27", "2024-02-28", "2024-02-29", "2024-03-01"]
    assert [file.path.stem for file in files] == [*days, "items", "users", "0000000"]
    assert [file.kind for file in files] == ["events"] * 4 + ["items", "users", "pools"]
    assert not any("truth" in file.path.parts for file in files)
    assert (log.home / "truth" / "population.safetensors").exists()


def test_every_event_falls_into_its_files_day_and_none_outside_the_log(log: StorefrontLog) -> None:
    with connect() as con:
        for file in log.discover():
            if file.kind != "events":
                continue
            select = f"select min(event_ts), max(event_ts) from '{file.path}'"
            first, last = con.sql(select).fetchall()[0]
            midnight = datetime.fromisoformat(file.path.stem).replace(tzinfo=UTC)
            assert midnight <= first <= last < midnight + timedelta(days=1)


def test_events_have_the_contracts_columns_and_types(log: StorefrontLog) -> None:
    file = log.discover()[0]
    with connect() as con:
        parsed = log.read(con, file)
        assert parsed.columns == [*RAW_COLUMNS, "line", "raw", "reason"]
        schema = parsed.to_arrow_table().schema
        for name in RAW_COLUMNS:
            assert schema.field(name).type == SCHEMAS["events"].field(name).type, name
        assert parsed.df().line.tolist() == list(range(1, log.count(con, file) + 1))
        assert parsed.filter("reason is not null").fetchall() == []
        assert log.read(con, file, np.array([2, 5])).df().line.tolist() == [2, 5]


def test_items_and_users_show_what_a_shop_knows(log: StorefrontLog) -> None:
    shop, _ = load_truth(SETTINGS, log.folder)
    with connect() as con:
        items = log.items(con, log.discover()).df()
        users = log.users(con, log.discover()).df()
    assert items.columns.tolist() == list(ITEM_COLUMNS)
    assert users.columns.tolist() == ["user_id", "features"]
    assert items.loc[42, ["item_id", "title", "category"]].tolist() == ["i0042", "Item 42", "Category 7"]
    features = np.stack(items.features.to_list())
    np.testing.assert_allclose(features[:, :8], shop.x, rtol=1e-6)
    np.testing.assert_allclose(features[:, 8], shop.badge, rtol=1e-6)
    np.testing.assert_allclose(features[:, 9], shop.rating, rtol=1e-6)
    np.testing.assert_allclose(np.exp(features[:, 10]), items.price, atol=0.006)
    assert users.user_id.tolist()[:2] == ["u000000", "u000001"]
    portrait = np.stack(users.features.to_list())
    np.testing.assert_allclose(np.linalg.norm(portrait, axis=1), 1, rtol=1e-5)


def test_portraits_are_near_the_users_homes_but_not_on_them(log: StorefrontLog) -> None:
    _, population = load_truth(SETTINGS, log.folder)
    with connect() as con:
        portrait = np.stack(log.users(con, log.discover()).df().features.to_list())
    cosine = (portrait * population.home.numpy()).sum(1)
    assert 0.8 < cosine.mean() < 0.95  # 1/√(1 + 0.5²) = 0.89


def test_every_page_has_ten_distinct_items_never_shown_before_in_the_session(shown: pd.DataFrame) -> None:
    for _, page in shown.groupby("request_id"):
        assert sorted(page.position) == list(range(10))
    assert not shown.duplicated(["session_id", "item_id"]).any()
    assert shown.groupby("request_id").event_ts.nunique().max() == 1


def test_propensities_are_those_of_impressions_only(events: pd.DataFrame, shown: pd.DataFrame) -> None:
    assert shown.propensity.between(0, 1, inclusive="right").all()
    assert events[events.event_type != "impression"].propensity.isna().all()
    # What softmax without replacement shows first is likelier than a uniform draw from 50.
    assert shown[shown.position == 0].propensity.mean() > 0.04


def test_clicks_carts_and_purchases_follow_in_this_order_before_the_next_page(
    events: pd.DataFrame, shown: pd.DataFrame
) -> None:
    wide = events.pivot(index=["request_id", "position"], columns="event_type", values="event_ts")
    assert (wide.click.dropna() > wide.impression[wide.click.notna()]).all()
    assert (wide.cart.dropna() > wide.click[wide.cart.notna()]).all()
    assert (wide.purchase.dropna() > wide.cart[wide.purchase.notna()]).all()
    last = events.groupby("request_id").event_ts.max()
    pages = shown.groupby("request_id").agg(session=("session_id", "first"), shown_at=("event_ts", "first"))
    pages = pages.sort_values(["session", "shown_at"])
    following = pages.groupby("session").shown_at.shift(-1)
    assert (last[following.dropna().index] < following.dropna()).all()


def test_purchases_are_at_the_items_price_and_other_events_have_no_value(
    log: StorefrontLog, events: pd.DataFrame
) -> None:
    with connect() as con:
        price = log.items(con, log.discover()).df().set_index("item_id").price
    bought = events[events.event_type == "purchase"]
    assert len(bought) > 10
    assert (bought.value.to_numpy() == price[bought.item_id].to_numpy()).all()
    assert events[events.event_type != "purchase"].value.isna().all()


def test_a_users_sessions_are_more_than_an_hour_apart(events: pd.DataFrame) -> None:
    sessions = events.groupby(["user_id", "session_id"]).event_ts.agg(["min", "max"]).reset_index()
    sessions = sessions.sort_values(["user_id", "min"])
    pause = sessions["min"] - sessions.groupby("user_id")["max"].shift(1)
    assert (pause.dropna() > timedelta(hours=1)).all()
    per_user = sessions.groupby("user_id").size()
    assert len(per_user) == SETTINGS.users
    assert per_user.mean() == pytest.approx(5, abs=4 * 2 / np.sqrt(SETTINGS.users))


@pytest.mark.parametrize("days", [1, 2, 30])
def test_session_starts_keep_their_distance_and_fit_into_the_log(days: int) -> None:
    starts = session_starts(3000, 25, days, np.random.default_rng(0))
    exists = starts >= 0
    assert exists[:, 0].all()
    assert starts.max() <= days * 24 * HOUR - 25 * 60 * 1_000_000
    both = exists[:, 1:]
    assert (np.diff(starts, axis=1)[both] >= HOUR + 25 * 60 * 1_000_000).all()
    assert starts[exists].min() < 0.02 * days * 24 * HOUR  # both ends of the log are reached
    assert starts[exists].max() > 0.97 * (days * 24 * HOUR - 26 * 60 * 1_000_000)


def test_chunks_of_users_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storefront_log, "CHUNK", 7)
    settings = StorefrontSource(kind="storefront", users=20, days=1, seed=1)
    log = StorefrontLog(settings, tmp_path)
    files = log.discover()
    users = duckdb.sql(f"select distinct user_id from '{files[0].path}' order by 1").fetchall()
    assert [user for (user,) in users] == [f"u{n:06d}" for n in range(20)]
    _, population = load_truth(settings, tmp_path)
    assert len(population) == 20
    assert population.home.unique(dim=0).shape[0] == 20
    assert not list(log.home.glob("parts*"))


def test_the_truth_is_the_users_after_their_last_session(log: StorefrontLog) -> None:
    shop, population = load_truth(SETTINGS, log.folder)
    _, expected = storefront_log.simulate(shop, range(SETTINGS.users), SETTINGS.start, SETTINGS.days, SETTINGS.seed)
    assert torch.equal(population.taste, expected.taste)
    np.testing.assert_allclose(population.taste.norm(dim=1), 1, rtol=1e-5)
    assert not torch.allclose(population.taste, population.home, atol=0.05)


def test_a_truth_that_was_never_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the log was not made yet"):
        load_truth(SETTINGS, tmp_path)


def test_the_negative_control_is_a_setting(tmp_path: Path) -> None:
    settings = StorefrontSource(kind="storefront", users=2, days=1, myopic_world=True)
    StorefrontLog(settings, tmp_path).discover()
    shop, _ = load_truth(settings, tmp_path)
    assert shop.world.exit_mood == 0


def test_features_are_arrow_lists(log: StorefrontLog) -> None:
    with connect() as con:
        for relation in (log.items(con, log.discover()), log.users(con, log.discover())):
            assert relation.to_arrow_table().schema.field("features").type == pa.list_(pa.float32())


def test_the_logged_logits_of_a_pool_give_the_logged_propensities(log: StorefrontLog, shown: pd.DataFrame) -> None:
    with connect() as con:
        paths = [str(file.path) for file in log.discover() if file.kind == "pools"]
        pools = con.sql("select * from read_parquet($p)", params={"p": paths}).df().set_index("request_id")
    pages = shown.sort_values("position").groupby("request_id")
    assert set(pools.index) >= set(pages.groups)
    for request, page in list(pages)[:50]:
        items, logits = list(pools.item_ids[request]), np.asarray(pools.logits[request], dtype=np.float64)
        left = np.exp(logits).sum()
        for item, propensity in zip(page.item_id, page.propensity, strict=True):
            mass = np.exp(logits[items.index(item)])
            assert propensity == pytest.approx(mass / left, rel=1e-4)
            left -= mass
