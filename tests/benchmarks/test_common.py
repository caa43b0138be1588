"""What every benchmark shares."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import Measurement, alone, publish
from pipeline import plan


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


def test_a_commit_has_a_plus_for_changes_of_more_than_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROJECT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert plan.commit() == ""  # outside git
    code, results = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "mine.jsonl"
    results.parent.mkdir(parents=True)
    code.touch()
    results.touch()
    for command in (["init"], ["add", "."], ["-c", "user.name=u", "-c", "user.email=e", "commit", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    clean = plan.commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    results.write_text("{}")  # one benchmark's results do not make the next one's tree another
    assert plan.commit() == clean
    code.write_text("changed")
    assert plan.commit() == clean + "+"
