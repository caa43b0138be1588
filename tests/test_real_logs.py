"""The publishers' own files, from raw rows to sessions: every record accounted for, to the last one."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.check import describe_log
from pipeline.conservation import check_conservation, check_reject_ceiling, ingest_counts, published_counts
from pipeline.experiment import Experiment, load_experiment
from pipeline.ingest import build_events, stage, staged_folders
from pipeline.partitions import partitions_of
from pipeline.plan import Plan, row_count
from pipeline.sessions import build_sessions, late_path
from pipeline.sources import open_source
from tests.conftest import command

LOGS = {  # experiment: folder, then rows in, facts that they unpack to, events, duplicates and rejects of all files
    "movielens-100k": ("ml-100k", 100_000, 0, 100_000, 0, 0),
    "movielens-latest-small": ("ml-latest-small", 100_836, 0, 100_836, 0, 0),
    "movielens-1m": ("ml-1m", 100_000, 0, 100_000, 0, 0),
    "kuairand-pure": ("kuairand-pure", 94_784, 30_748, 122_362, 3_170, 0),
    "taobao": ("taobao", 84_476, 0, 84_440, 0, 36),
    "yoochoose": ("yoochoose", 509, 0, 509, 0, 0),
    "rl4rs": ("rl4rs", 5, 81, 86, 0, 0),
    "open-bandit": ("obd", 10_000, 38, 10_038, 0, 0),
}


def loaded(name: str, data: Path) -> Experiment:
    return load_experiment(name, raw=str(data / LOGS[name][0]))


@pytest.mark.parametrize("name", LOGS)
def test_every_record_of_the_publishers_files_is_accounted_for(name: str, real_data: Path, tmp_path: Path) -> None:
    experiment = loaded(name, real_data)
    source = open_source(experiment.source, tmp_path)
    manifest = stage(source, source.discover(), tmp_path / "staged", experiment.partitions, "c").to_pylist()
    staged = staged_folders(manifest, tmp_path / "staged", experiment.partitions, "c")
    events = {p.key: tmp_path / "events" / p.key / "events.parquet" for p in partitions_of(experiment.partitions)}
    for partition in partitions_of(experiment.partitions):
        build_events(list(staged.values()), partition, events[partition.key])
    counts = ingest_counts(staged, published_counts(events))
    columns = ("rows_in", "unpacked", "events", "duplicates", "rejects")
    assert tuple(sum(counts[column].to_pylist()) for column in columns) == LOGS[name][1:]
    assert check_conservation(counts, events) == []
    assert check_reject_ceiling(counts, experiment.ingest.max_rejects) == []

    touched = [p for p in partitions_of(experiment.partitions) if pq.read_metadata(events[p.key]).num_rows]
    out = {table: lambda p, table=table: tmp_path / table / f"{p.key}.parquet" for table in ("impressions", "sessions")}
    build_sessions(
        [events[p.key] for p in touched],
        touched[:3],
        experiment.sessions,
        experiment.rewards,
        getattr(experiment.source, "positive_above", None),
        out["impressions"],
        out["sessions"],
        not source.has_impressions,
    )
    shown = [pq.read_metadata(path(out["impressions"](p))).num_rows for p in touched[:3] for path in (Path, late_path)]
    assert sum(shown) > 0


@pytest.mark.parametrize("name", LOGS)
def test_make_check_shows_how_the_publishers_files_are_understood(name: str, real_data: Path) -> None:
    text = describe_log(loaded(name, real_data))
    assert name in text
    assert "rating" in text if name.startswith("movielens") else "impression" in text


@pytest.mark.parametrize("name", ["yoochoose", "rl4rs"])
def test_a_log_too_small_to_split_still_gives_its_data_report(name: str, real_data: Path, tmp_path: Path) -> None:
    run = command(tmp_path, "demo", EXPERIMENT=name, RAW=str(real_data / LOGS[name][0]))
    page = tmp_path / "storage" / name / "data.html"
    assert run.returncode == 2
    assert "too small to split" in run.stderr
    assert f"What the log holds is shown at {page}" in run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    assert page.stat().st_size > 10_000
    published = Plan(loaded(name, real_data), tmp_path / "storage").store.files("events")
    assert row_count(published) == LOGS[name][3]
