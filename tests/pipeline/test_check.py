"""``make check``: what it says of a log, that it reads the first rows only, and that it writes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import check
from pipeline.check import describe_log
from pipeline.errors import ConfigError, DataError
from pipeline.experiment import Experiment, load_experiment
from pipeline.sources import text

SECONDS = 1704110400  # noon of 1 January 2024
NESTED = {
    "files": "*/part-*.json", "user": "user", "unpack": "events", "item": "events.item",
    "time": {"column": "events.ts", "unit": "s"}, "type": {"column": "events.kind", "map": {"c": "click"}},
}  # fmt: skip


def movielens(raw: Path) -> Experiment:
    return load_experiment("movielens-100k", raw=str(raw))


def own(folder: Path, events: dict[str, Any], **changes: Any) -> Experiment:
    document = {
        "name": "shop",
        "source": {"kind": "mapping", "path": str(folder), "events": [events], **changes.pop("source", {})},
        "partitions": {"start": "2024-01-01", "end": "2024-01-03"},
        "agents": {"popularity": {}},
        **changes,
    }
    path = folder.parent / "shop.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_experiment(str(path))


def flat(folder: Path, lines: str, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text("user,item,ts,kind,request\n" + lines)
    kinds = {"v": "impression", "c": "click"}
    events = {
        "files": "log.csv", "user": "user", "item": "item", "time": {"column": "ts", "unit": "s"},
        "type": {"column": "kind", "map": kinds, "ignore": "x"}, "request": "request",
    }  # fmt: skip
    return describe_log(own(folder, events, **changes))


def test_a_log_is_described_by_type_time_examples_and_refused_rows(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t10\t5\t881250949\n2\t11\t7\t881250950\n3\t\t4\t881250950\ntorn\t1")
    described = describe_log(movielens(tmp_path))
    assert "what was shown is not in the log and will be constructed" in described
    assert f"events  {tmp_path}/u.data ({(tmp_path / 'u.data').stat().st_size} bytes)" in described
    assert "4 records hold 4 facts, 1 of them usable: 1 users, 1 items" in described
    assert "1 rating from 1997-12-04 15:55:49+00:00 to 1997-12-04 15:55:49+00:00" in described
    assert "(line 1) user_id=1 item_id=10 event_ts=1997-12-04 15:55:49+00:00 event_type=rating value=5.0" in described
    assert "1 refused: rating is not between 0.5 and 5, first in line 2: '2\\t11\\t7\\t881250950'" in described
    assert "1 refused: torn last line, first in line 4: 'torn\\t1'" in described
    assert "75.0% is refused as dirt, more than ingest.max_rejects allows" in described


def test_a_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "u.data").write_text("1\t10\t5\t881250949\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HINDSIGHT_STORAGE", str(tmp_path / "storage"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    describe_log(movielens(raw))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_nothing_is_read_behind_the_first_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ROWS", 3)
    monkeypatch.setattr(text, "BLOCK", 64)
    good = "1\t10\t5\t881250949\n"
    (tmp_path / "u.data").write_text(good * 500)
    read: list[int] = []
    blocks = text._blocks

    def counted(path: Path, *size: int) -> Any:
        for block in blocks(path, *size):
            read.append(len(block))
            yield block

    monkeypatch.setattr(text, "_blocks", counted)
    assert "3 records hold 3 facts" in describe_log(movielens(tmp_path))
    assert sum(read) < len(good) * 50


def test_rows_of_parquet_are_limited_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ROWS", 10)
    raw = tmp_path / "raw"
    raw.mkdir()
    table = {"user": np.arange(100), "item": np.arange(100), "ts": np.full(100, SECONDS)}
    pq.write_table(pa.table(table), raw / "log.parquet", row_group_size=20)
    events = {
        "files": "*.parquet",
        "user": "user",
        "item": "item",
        "type": "click",
        "time": {"column": "ts", "unit": "s"},
    }
    assert "10 records hold 10 facts, 10 of them usable: 10 users" in describe_log(own(raw, events))


def test_records_that_hold_several_facts_are_unpacked_and_of_many_alike_files_three_are_read(tmp_path: Path) -> None:
    event = {"item": 1, "ts": SECONDS, "kind": "c"}
    record = json.dumps({"user": 1, "events": [event, {**event, "item": 2}, {**event, "kind": "?"}]})
    for day in range(1, 8):
        folder = tmp_path / "raw" / f"date=2024-01-0{day}"
        folder.mkdir(parents=True)
        (folder / f"part-{day:05}.json").write_text(record + "\n")
    described = describe_log(own(tmp_path / "raw", NESTED))
    assert "part-00001.json and 6 more" in described
    assert [day for day in range(1, 8) if f"part-0000{day}.json: the first" in described] == [1, 4, 7]
    assert "1 records hold 3 facts, 2 of them usable: 1 users, 2 items" in described
    assert "1 refused: unknown event type, first in line 1" in described


@pytest.mark.parametrize(
    ("lines", "changes", "note"),
    [
        (f"u,i,{SECONDS},v,\nu,j,{SECONDS},c,\n", {}, "request_id: empty in all of these rows"),
        (f"u,i,{SECONDS},v,1\nu,j,{SECONDS},v,1\n", {}, "No positives here"),
        (f"u,i,{SECONDS},c,1\nu,j,{SECONDS},c,1\n", {}, "No impressions here"),
        (f"u,i,{SECONDS},v,1\nu,j,{SECONDS},c,1\n", {}, "1 of 1 actions are on items that their request did not show"),
        (f"u,i,{SECONDS},v,1\n", {}, "Median facts of a session (or of a user, where the log has none): 1;"),
        (
            "".join(f"u,i,{SECONDS + day * 86_400},v,1\n" for day in (-40, -40, -39, 0)),
            {},
            "75.0% of 4 lie outside the partitions 2024-01-01 to 2024-01-03. These rows would need at least "
            "{grain: day, start: 2023-11-22, end: 2024-01-02}.",
        ),
        (
            "".join(f"u,i,{SECONDS + day * 86_400},v,1\n" for day in (-400, -200)),
            {},
            "need at least {grain: month, start: 2022-11-01, end: 2023-07-01}.",
        ),
        (
            "".join(f"u,i,{SECONDS + day * 86_400},v,1\n" for day in (-4000, -200)),
            {"partitions": {"grain": "month", "start": "2024-01-01", "end": "2024-12-01"}},
            "need at least {grain: year, start: 2013-01-01, end: 2024-01-01}.",
        ),
    ],
)
def test_what_a_person_should_look_at_is_noted(tmp_path: Path, lines: str, changes: dict[str, Any], note: str) -> None:
    described = flat(tmp_path / "raw", lines, **changes)
    assert any(note in line for line in described.splitlines() if line.strip().startswith("note "))


def test_a_sound_log_has_no_notes(tmp_path: Path) -> None:
    lines = "".join(f"u{n % 3},{n},{SECONDS + n},v,{n % 3}\nu{n % 3},{n},{SECONDS + n},c,{n % 3}\n" for n in range(9))
    described = flat(tmp_path / "raw", lines + f"u,i,{SECONDS},x,\n")
    assert " note " not in described
    assert "1 refused: ignored type, first in line 20" in described
    assert "what was shown is in the log" in described


def test_what_is_known_of_items_is_counted(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "goods.csv").write_text("id,name,price,weight\n1,Hat,9.5,2\n2,,1,3\n")
    items = {"files": "goods.csv", "item": "id", "title": "name", "price": "price", "features": ["weight"]}
    described = flat(tmp_path / "raw", f"u,i,{SECONDS},v,1\n", source={"items": items})
    assert "items: 2 with item_id, 1 with title, 2 with price, 1 features" in described


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"usr,item,ts\n", "no column 'user'"),
        ("log.parquet", b"PAR1", "log.parquet is no Parquet file, or dam"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(content + b"u,i\n" * (name == "log.csv"))
    events = {"files": "log.*", "user": "user", "item": "item", "time": "ts", "type": "click"}
    with pytest.raises(DataError, match=message):
        describe_log(own(tmp_path / "raw", events))


def test_the_storefront_has_nothing_to_check_and_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to check"):
        describe_log(load_experiment("demo"))
    with pytest.raises(DataError, match="nowhere"):
        describe_log(movielens(tmp_path / "nowhere"))
