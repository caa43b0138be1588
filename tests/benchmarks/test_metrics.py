"""The benchmark of the metrics gives both sides the same rankings, and runs leg 1 over the whole log."""

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import metrics
from benchmarks.metrics import LENGTH, SHARES, compare, make_log, ranked, remember, rerank_log, rewards_as_ranked
from models.feedback import Feedback
from pipeline.schemas import RERANK_METRICS, SCHEMAS

pytest.importorskip("ranx")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_log(tmp_path_factory.mktemp("metrics"), 300)


def in_this_process(function: object, *arguments: object) -> Namespace:
    return Namespace(result=function(*arguments), cpu_seconds=1.0, peak_rss_mb=2.0)  # type: ignore[operator]


def test_the_made_up_log_has_sessions_of_distinct_items_and_the_stated_feedback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "BATCH", 130)  # three batches, the last one shorter
    log = pq.read_table(make_log(tmp_path, 300))
    assert log.schema.equals(SCHEMAS["candidates"])
    assert log["session_id"].to_pylist() == list(range(300))
    items = np.array(log["items"].to_pylist())
    assert (np.diff(np.sort(items, axis=1)) > 0).all()
    assert items.min() > 0
    feedback, rewards = np.array(log["feedback"].to_pylist()), np.array(log["rewards"].to_pylist())
    assert (feedback == Feedback.CLICK).mean() == pytest.approx(SHARES[Feedback.CLICK], abs=0.02)
    assert (rewards[feedback == Feedback.PURCHASE] == 5).all()
    assert (rewards[feedback == Feedback.SKIP] == 0).all()


def test_rewards_are_those_of_the_log_in_another_order(log: Path) -> None:
    chunks = [chunk for chunk in ranked(log) if chunk[1].mode == "oneshot"]
    found = rewards_as_ranked(chunks)
    logged = np.array(pq.read_table(log)["rewards"].to_pylist())
    np.testing.assert_array_equal(np.sort(found), np.sort(logged))
    assert (found != logged).any()


def test_all_rows_of_the_log_are_written_in_both_modes(log: Path, tmp_path: Path) -> None:
    rerank_log(log, tmp_path)
    rankings, sessions = (pq.read_table(tmp_path / f"{table}.parquet") for table in ("rankings", "rerank"))
    assert (len(rankings), len(sessions)) == (2 * 300 * LENGTH, 2 * 300)
    assert sessions["map"].null_count == sum(status != "scored" for status in sessions["status"].to_pylist()) > 0


def test_both_sides_agree_and_the_table_holds_their_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "alone", in_this_process)
    rows, alone, all_cores, difference = compare(200, repeat=2)
    for row in (rows, alone, all_cores):
        assert row.baseline is not None
        assert row.ratio == row.value / row.baseline
    assert rows.baseline == alone.baseline != all_cores.baseline
    assert f"{len(RERANK_METRICS)} metrics" in rows.what
    assert f"on {os.cpu_count()} cores" in all_cores.what
    assert difference.value < 1e-9


def test_the_difference_would_show_a_metric_that_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "alone", in_this_process)
    monkeypatch.setitem(metrics.BINARY, "mrr", "map")
    assert compare(50, repeat=1)[-1].value > 0.01


def test_memory_is_that_of_the_process_that_ranked_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "alone", in_this_process)
    (row,) = remember(100)
    assert (row.value, row.unit, row.peak_rss_mb) == (1.0, "CPU s", 2.0)
    assert row.what.startswith("100 sessions of 20 items")
