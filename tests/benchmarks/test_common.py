"""What every benchmark shares."""

import json
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import Measurement, alone, publish


def hold(megabytes: int) -> int:
    """Touch so much memory and spend some time on it."""
    return sum(bytearray(b"\1") * (megabytes << 20)) >> 20


def test_a_process_of_its_own_tells_what_a_function_gave_and_took() -> None:
    small, large = alone(hold, 1), alone(hold, 120)
    assert (small.result, large.result) == (1, 120)
    assert 100 < large.peak_rss_mb - small.peak_rss_mb < 150
    assert 0 <= small.cpu_seconds <= large.cpu_seconds
    assert 0 < small.seconds < large.seconds


def test_a_measurement_is_a_row_of_the_table_and_a_line_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    measured = [Measurement("read", 12.5, "s", 5.0, 2.5, 1234.4), Measurement("rows", 2_000_000, "rows")]
    publish("mine", measured)
    publish("mine", measured[:1])
    assert "| read | 12.5 | s | 5 | 2.5 | 1,234 |\n| rows | 2,000,000 | rows |  |  |  |" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "results" / "mine.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["read", "rows", "read"]
    assert (lines[0]["ratio"], lines[0]["peak_rss_mb"], lines[1]["baseline"]) == (2.5, 1234, None)
    assert lines[1]["peak_rss_mb"] == pytest.approx(common.peak_rss_mb(), rel=0.2)
    assert {"machine", "versions", "commit", "when"} <= set(lines[0])
