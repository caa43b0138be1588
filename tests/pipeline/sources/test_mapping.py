"""Anybody's own log: the forms that real logs have, every way to write a time or an id, and every kind of dirt."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.conservation import ingest_counts
from pipeline.errors import ConfigError, DataError
from pipeline.experiment import Partitions, load_experiment
from pipeline.ingest import stage, staged_folders
from pipeline.schemas import EVENT_TYPES
from pipeline.source_settings import EventType, MappingSource, TaobaoSource
from pipeline.sources.base import EVENT_COLUMNS, ITEM_COLUMNS, USER_COLUMNS, RawFile
from pipeline.sources.mapping import MappedLog
from pipeline.sources.taobao import Taobao
from pipeline.warehouse import connect

REAL = Path(os.environ.get("HINDSIGHT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")
FLAT = "events: {files: log.*, user: user, item: item, type: click, time: {column: ts, unit: s}}"
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
SECONDS = int(NOON.timestamp())


def mapped(folder: Path, text: str) -> MappedLog:
    settings = {"kind": "mapping", "path": str(folder), **yaml.safe_load(text)}
    return MappedLog(MappingSource.model_validate(settings), folder)


def write(path: Path, content: str | bytes, codec: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    with pa.CompressedOutputStream(str(path), codec) if codec else path.open("wb") as stream:
        stream.write(data)
    return path


def rows(source: MappedLog, only: Sequence[int] | None = None, file: RawFile | None = None) -> list[dict[str, Any]]:
    """The facts of the first events file in the order of their lines, each checked for the form of the contract."""
    file = file or source.discover()[0]
    with connect() as con:
        relation = source.read(con, file, None if only is None else np.array(only, np.int64))
        types = dict(zip(relation.columns, map(str, relation.types), strict=True))
        found = relation.to_arrow_table().to_pylist()
        count = source.count(con, file)
    assert {name: types[name] for name in types if name in EVENT_COLUMNS} == {
        name: {"timestamptz": "TIMESTAMP WITH TIME ZONE"}.get(kind, kind.upper())
        for name, kind in EVENT_COLUMNS.items()
        if name in types
    }
    assert only is not None or len({row["line"] for row in found}) == count
    assert len({row["line"] for row in found}) == len(found) or source.unpacks
    return sorted(found, key=lambda row: (row["line"], row.get("position") or 0, row["event_type"] != "impression"))


def usable(found: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in found if row["reason"] is None]


def refused(found: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(row["line"], row["reason"]) for row in found if row["reason"] is not None]


def entities(source: MappedLog, kind: str) -> list[dict[str, Any]]:
    wanted = {"items": ITEM_COLUMNS, "users": USER_COLUMNS}[kind]
    with connect() as con:
        relation = getattr(source, kind)(con, source.discover())
        assert relation.columns == list(wanted)
        found: list[dict[str, Any]] = relation.to_arrow_table().to_pylist()
    return found


# The forms of public logs, each a few lines in the publisher's form.

MIND = """
events:
  files: behaviors.tsv
  columns: [impression_id, user_id, time, history, impressions]
  user: user_id
  request: impression_id
  time: {column: time, format: "%m/%d/%Y %I:%M:%S %p"}
  shown: {items: impressions, separator: " ", entry: "{item}-{click}"}
items:
  {files: news.tsv, columns: [id, category, subcategory, title, abstract], item: id, title: title, category: category}
"""


def test_mind_packs_shown_items_and_their_clicks_in_one_string(tmp_path: Path) -> None:
    lines = [
        "1\tU1\t11/11/2019 9:05:58 AM\tN0 N9\tN1-0 N2-1 N3-0",
        "2\tU2\t11/12/2019 6:11:30 PM\t\tN4-x",
        "3\tU2\t11/12/2019 6:11:30 PM\t\tN4-0 N5",
        "4\tU2\t11/12/2019 6:11:30 PM\t\t",
        "5\tU2\t13/11/2019 6:11:30 PM\t\tN4-0",
    ]
    write(tmp_path / "behaviors.tsv", "\n".join(lines))
    write(tmp_path / "news.tsv", 'N1\tsport\tgolf\t5" of "rain\t\nN2\tnews\tworld\tLate\tNews\n')
    source = mapped(tmp_path, MIND)
    found = rows(source)
    assert usable(found, "user_id", "item_id", "event_type", "request_id", "position") == [
        ("U1", "N1", "impression", "1", 0),
        ("U1", "N2", "impression", "1", 1),
        ("U1", "N2", "click", "1", 1),
        ("U1", "N3", "impression", "1", 2),
    ]
    assert {row["event_ts"] for row in found if not row["reason"]} == {datetime(2019, 11, 11, 9, 5, 58, tzinfo=UTC)}
    assert refused(found) == [
        (2, "a flag is neither yes nor no"),
        (3, "an entry is not written as shown.entry"),
        (4, "empty list"),
        (5, "time stamp is not written as time.format"),
    ]
    assert (source.has_impressions, source.unpacks) == (True, True)
    assert [(item["item_id"], item["title"], item["category"]) for item in entities(source, "items")] == [
        ("N1", '5" of "rain', "sport"),
        ("N2", "Late", "news"),
    ]


OTTO = """
events:
  files: "*.jsonl"
  user: session
  session: session
  unpack: events
  item: events.aid
  time: {column: events.ts, unit: ms}
  type: {column: events.type, map: {clicks: click, carts: cart, orders: purchase}}
"""


def test_otto_nests_a_list_of_events_in_a_sessions_object(tmp_path: Path) -> None:
    events = [
        {"aid": 59625, "ts": 1661724000278, "type": "clicks"},
        {"aid": 1142000, "ts": 1661724058352, "type": "carts"},
        {"aid": 1142000, "ts": 1661724058, "type": "orders"},
        {"aid": 7, "ts": 1661724058352, "type": "likes"},
    ]
    lines = [json.dumps({"session": 12899779, "events": events}), '{"session": 1, "events": []}', '{"session": 2}']
    lines += ['{"session": 3, "events": 5}', "[1, 2]", "{'session': 4}", "", '{"session": 5, "ev']
    write(tmp_path / "train.jsonl", "\n".join(lines))
    source = mapped(tmp_path, OTTO)
    found = rows(source)
    assert usable(found, "line", "user_id", "session_id", "item_id", "event_type") == [
        (1, "12899779", "12899779", "59625", "click"),
        (1, "12899779", "12899779", "1142000", "cart"),
        (1, "12899779", "12899779", "7", None),  # an unknown type, which ingest refuses
    ]
    assert found[0]["event_ts"] == datetime(2022, 8, 28, 22, 0, 0, 278_000, tzinfo=UTC)
    assert refused(found) == [
        (1, "time stamp is in seconds instead of milliseconds"),
        (2, "empty list"),
        (3, "empty list"),
        (4, "list cannot be read"),
        (5, "is no JSON object"),
        (6, "is no valid JSON"),
        (7, "blank line"),
        (8, "torn last line"),
    ]
    assert (source.has_impressions, source.unpacks) == (False, True)


TRIVAGO = """
events:
  files: train.csv
  user: user_id
  session: session_id
  time: {column: timestamp, unit: s}
  type:
    column: action_type
    map: {clickout item: click, interaction item image: click, list: impression}
    ignore: others
  item: reference
  shown: {items: impressions, separator: "|", value: prices}
"""


def test_trivago_packs_items_and_prices_and_names_the_clicked_one_elsewhere(tmp_path: Path) -> None:
    lines = [
        "user_id,session_id,timestamp,action_type,reference,city,impressions,prices",
        'U1,s1,1541037460,search for poi,Newtown,"Sydney, AU",,',
        'U1,s1,1541037522,interaction item image,66,"Sydney, AU",,',
        'U1,s1,1541037532,clickout item,20,"Sydney, AU",10|20|30,95|66|501',
        'U1,s1,1541037533,clickout item,77,"Sydney, AU",10|20|,95|66|',
        'U1,s1,1541037534,clickout item,10,"Sydney, AU",10|20,95',
        'U1,s1,1541037535,clickout item,10,"Sydney, AU",10|20,95|cheap',
        'U1,s1,1541037536,list,sort,"Sydney, AU",10,',
        'U1,s1,1541037537,clickout item,,"Sydney, AU",,',
    ]
    found = rows(mapped(write(tmp_path / "train.csv", "\n".join(lines) + "\n").parent, TRIVAGO))
    assert usable(found, "line", "item_id", "event_type", "value", "request_id", "position") == [
        (3, "66", "click", None, None, None),  # without a list: to be credited to what was shown before
        (4, "10", "impression", 95.0, "1541037532000000", 0),
        (4, "20", "impression", 66.0, "1541037532000000", 1),
        (4, "20", "click", 66.0, "1541037532000000", 1),
        (4, "30", "impression", 501.0, "1541037532000000", 2),
        (5, "10", "impression", 95.0, "1541037533000000", 0),
        (5, "77", "click", None, None, None),  # not in the list: kept, the session tells what it belongs to
        (5, "20", "impression", 66.0, "1541037533000000", 1),
        (7, "10", "impression", 95.0, "1541037535000000", 0),
        (7, "10", "click", 95.0, "1541037535000000", 0),
        (8, "10", "impression", None, "1541037536000000", 0),
    ]
    assert refused(found) == [
        (2, "ignored type"),
        (6, "lists of different lengths"),
        (7, "value is not a number"),  # the second price alone
        (9, "empty list"),
    ]


FORMS = {
    "Retailrocket": (
        """
        events:
          files: log.csv
          user: visitorid
          item: itemid
          time: {column: timestamp, unit: ms}
          type: {column: event, map: {view: impression, addtocart: cart, transaction: purchase}}
        """,
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
        "1433224214164,992329,transaction,248676,4000\n",
        [("257597", "355908", "impression"), ("992329", "248676", "purchase")],
    ),
    "Criteo: an impression a row, with flags": (
        """
        events:
          files: log.csv
          separator: "\\t"
          user: uid
          item: campaign
          time: {column: timestamp, unit: s}
          type: impression
          feedback: {click: click, purchase: conversion}
        """,
        "timestamp\tuid\tcampaign\tconversion\tclick\n0\t20073966\t22589171\t0\t0\n2\t20073966\t884761\t1\t1\n",
        [
            ("20073966", "22589171", "impression"),
            ("20073966", "884761", "impression"),
            ("20073966", "884761", "click"),
            ("20073966", "884761", "purchase"),
        ],
    ),
    "H&M: purchases, a day as the time": (
        """
        events: {files: log.csv, user: customer_id, item: article_id, time: t_dat, type: purchase, value: price}
        """,
        "t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-20,000058a1,0663713001,0.0508305084745762,2\n",
        [("000058a1", "0663713001", "purchase")],
    ),
    "parallel lists of events in strings": (
        """
        events:
          files: log.csv
          user: user
          unpack: {lists: [items, kinds, times], separator: ";"}
          item: items
          type: {column: kinds, map: {v: impression, b: purchase}}
          time: {column: times, unit: s}
        """,
        "user,items,kinds,times\nu,a;b,v;b,1704110400;1704110460\n",
        [("u", "a", "impression"), ("u", "b", "purchase")],
    ),
    "events packed in one string": (
        """
        events:
          files: log.csv
          user: user
          unpack: {lists: path, separator: " > ", entry: "{sku}@{at}"}
          item: path.sku
          time: {column: path.at, unit: s}
          type: click
        """,
        "user,path\nu,sku-1@2@1704110400 > sku-3@1704110460\n",
        [("u", "sku-1@2", "click"), ("u", "sku-3", "click")],
    ),
    "several clicked ids": (
        """
        events:
          files: log.csv
          user: user
          time: {column: ts, unit: s}
          type: click
          item: clicked
          shown: {items: shown, separator: "|"}
        """,
        "user,ts,shown,clicked\nu,1704110400,a|b|c,a|c\nu,1704110500,d,\n",
        [
            ("u", "a", "impression"),
            ("u", "a", "click"),
            ("u", "b", "impression"),
            ("u", "c", "impression"),
            ("u", "c", "click"),
            ("u", "d", "impression"),
        ],
    ),
    "lists as Python writes them": (
        """
        events:
          files: log.tsv
          user: user
          time: {column: ts, unit: s}
          shown: {items: shown, feedback: {click: clicked}}
        """,
        "user\tts\tshown\tclicked\nu\t1704110400\t['a', 'b']\t[False, True]\n",
        [("u", "a", "impression"), ("u", "b", "impression"), ("u", "b", "click")],
    ),
    "JSON in a column of a CSV file": (
        """
        events:
          files: log.csv
          user: user
          time: {column: ts, unit: s}
          type: {column: props.kind, map: {open: impression}}
          item: props.sku.id
        """,
        'user,ts,props\nu,1704110400,"{""kind"": ""open"", ""sku"": {""id"": 7}}"\n',
        [("u", "7", "impression")],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_real_logs_is_read(tmp_path: Path, name: str) -> None:
    settings, content, wanted = FORMS[name]
    write(tmp_path / yaml.safe_load(settings)["events"]["files"], content)
    found = rows(mapped(tmp_path, settings))
    assert refused(found) == []
    assert usable(found, "user_id", "item_id", "event_type") == wanted


def test_json_and_parquet_nest_events_and_the_lists_shown_in_them(tmp_path: Path) -> None:
    page = {
        "at": NOON.isoformat(),
        "results": [{"sku": "a", "p": 1.5, "hit": None}, {"sku": "b", "p": 2.5, "hit": True}],
    }
    records = [{"who": {"id": 5}, "pages": [page, {**page, "results": []}]}]
    write(tmp_path / "log.json", "".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "log.parquet")
    settings = """
        events:
          files: log.{}
          user: who.id
          unpack: pages
          time: pages.at
          shown: {{items: pages.results.sku, value: pages.results.p, feedback: {{click: pages.results.hit}}}}
    """
    for ending in ("json", "parquet"):
        found = rows(mapped(tmp_path, settings.format(ending)))
        assert usable(found, "user_id", "item_id", "event_type", "value", "position", "event_ts") == [
            ("5", "a", "impression", 1.5, 0, NOON),
            ("5", "b", "impression", 2.5, 1, NOON),
            ("5", "b", "click", 2.5, 1, NOON),
        ]
        assert refused(found) == [(1, "empty list")]  # the second page alone


def test_parquet_keeps_parallel_lists_as_columns(tmp_path: Path) -> None:
    table = {
        "user": [1, 2, 3],
        "at": pa.array([NOON] * 3, pa.timestamp("us", "UTC")),
        "items": [[10, 20], [30], None],
        "clicked": [[0, 1], [0, 0], None],
        "scores": [[0.25, 0.5], [1.0], None],
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    shown = "{items: items, propensity: scores, feedback: {click: clicked}}"
    found = rows(mapped(tmp_path, f"events: {{files: log.parquet, user: user, time: at, shown: {shown}}}"))
    assert usable(found, "user_id", "item_id", "event_type", "propensity", "position") == [
        ("1", "10", "impression", 0.25, 0),
        ("1", "20", "impression", 0.5, 1),
        ("1", "20", "click", 0.5, 1),
    ]
    assert refused(found) == [(2, "lists of different lengths"), (3, "empty list")]


# Files: whatever their format, the same log gives the same events.

EVENTS = [("ü1", "i,1", NOON), ("u2", 'i"2', NOON)]
CSV = f'user,item,ts\nü1,"i,1",{SECONDS}\nu2,"i""2",{SECONDS}\n'
JSON = "".join(json.dumps({"user": user, "item": item, "ts": SECONDS}) + "\n" for user, item, _ in EVENTS)
PLAIN = "".join(f"{user}::{item}::{SECONDS}\n" for user, item, _ in EVENTS)


@pytest.mark.parametrize(
    ("name", "content", "codec", "options"),
    [
        ("log.csv", CSV, None, ""),
        ("log.csv", CSV.removesuffix("\n"), None, ""),
        ("log.csv", CSV.replace("\n", "\r\n"), None, ""),
        ("log.csv", b"\xef\xbb\xbf" + CSV.encode(), None, ""),
        ("log.csv", CSV.encode("latin-1"), None, "encoding: latin-1"),
        ("log.csv", CSV.replace(",", ";").replace("i;1", "i,1"), None, 'separator: ";"'),
        ("log.CSV.GZ", CSV, "gzip", ""),
        ("log.csv.zst", CSV, "zstd", ""),
        (
            "log.tsv",
            CSV.replace('"i,1"', "i;1").replace('"i""2"', 'i"2').replace(",", "\t").replace(";", ","),
            None,
            "",
        ),
        ("log.dat", PLAIN, None, 'format: csv, separator: "::", columns: [user, item, ts]'),
        ("log.json", JSON, None, ""),
        ("log.ndjson", JSON.removesuffix("\n"), None, ""),
        ("log.jsonl.gz", JSON, "gzip", ""),
    ],
)
def test_every_format_gives_the_same_events(
    tmp_path: Path, name: str, content: str | bytes, codec: str | None, options: str
) -> None:
    write(tmp_path / name, content, codec)
    settings = f"events: {{files: '*.*', {options + ', ' if options else ''}{FLAT.split('log.*, ')[1]}"
    found = rows(mapped(tmp_path, settings))
    assert refused(found) == []
    assert usable(found, "user_id", "item_id", "event_ts") == EVENTS
    assert found[0]["line"] == (1 if "json" in name or "dat" in name else 2)


def test_names_of_columns_may_be_anything(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", f'line,Raw,raw,c0,"select ""x"" --",fault\nu,i,j,k,{SECONDS},z\n')
    settings = """
        events: {files: log.csv, user: line, item: Raw, brand: raw, shop: c0, time: {column: 'select "x" --', unit: s},
                 type: click, category: fault}
    """
    found = rows(mapped(tmp_path, settings))
    assert usable(found, "user_id", "item_id", "brand", "shop", "category", "event_ts") == [
        ("u", "i", "j", "k", "z", NOON)
    ]


def test_folders_of_hive_give_columns_and_hidden_files_are_no_logs(tmp_path: Path) -> None:
    for shop, day in (("de", "2024-01-01"), ("a%2Fb", "2024-01-02"), ("__HIVE_DEFAULT_PARTITION__", "2024-01-03")):
        write(tmp_path / f"shop={shop}" / f"day={day}" / "part-0.csv", "user,item,clock\nu,i,12:00\n")
    write(tmp_path / "shop=de" / "day=2024-01-01" / "_SUCCESS.csv", "")
    write(tmp_path / ".trash" / "day=1" / "part-0.csv", "x")
    source = mapped(
        tmp_path,
        "events: {files: '*/day=*/*.csv', user: user, item: item, shop: shop, time: [day, clock], type: click}",
    )
    files = source.discover()
    assert len({file.context for file in files}) == 3  # so that their equal bytes are not taken for the same file
    found = [usable(rows(source, file=file), "shop", "event_ts") for file in files]
    assert sorted(found, key=str) == [
        [("a/b", NOON.replace(day=2))],
        [("de", NOON)],
        [(None, NOON.replace(day=3))],
    ]


def test_a_truncated_gzip_file_keeps_what_can_be_read_and_names_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lines = "".join(f"u{a},i{b},{SECONDS}\n" for a, b in rng.integers(0, 10**9, (5000, 2)))
    path = write(tmp_path / "log.csv.gz", "user,item,ts\n" + lines, "gzip")
    path.write_bytes(path.read_bytes()[:-5000])
    found = rows(mapped(tmp_path, FLAT))
    assert 3000 < len(usable(found, "line")) < 5000
    assert [reason.split(":")[0] for _, reason in refused(found)] in (
        ["cut off with its compressed file", "the compressed file is cut off or damaged here"],
        ["the compressed file is cut off or damaged here"],
    )


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_chosen_records_are_read_again_as_they_were(tmp_path: Path, ending: str) -> None:
    records = [{"user": f"u{n}", "item": "i", "ts": SECONDS + n} for n in range(50)]
    lines = {
        "csv": "user,item,ts\n" + "".join(f"{r['user']},i,{r['ts']}\n" for r in records),
        "json": "".join(json.dumps(record) + "\n" for record in records),
    }
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "log.parquet", row_group_size=7)
    else:
        write(tmp_path / f"log.{ending}", lines[ending])
    source = mapped(tmp_path, FLAT)
    wanted = [3, 17, 48]
    assert rows(source, only=wanted) == [row for row in rows(source) if row["line"] in wanted]
    assert rows(source, only=[]) == []


# Times.


@pytest.mark.parametrize(
    ("time", "text", "wanted"),
    [
        ("{column: ts, unit: s}", "1704110400", NOON),
        ("{column: ts, unit: s}", "1704110400.25", NOON.replace(microsecond=250_000)),
        ("{column: ts, unit: s}", "1.7041104e9", NOON),
        ("{column: ts, unit: s}", "0", datetime(1970, 1, 1, tzinfo=UTC)),
        ("{column: ts, unit: ms}", "1704110400123", NOON.replace(microsecond=123_000)),
        ("{column: ts, unit: us}", "1704110400123456", NOON.replace(microsecond=123_456)),
        ("{column: ts, unit: ns}", "1704110400123456789", NOON.replace(microsecond=123_456)),
        ("ts", "2024-01-01T12:00:00Z", NOON),
        ("ts", "2024-01-01 12:00:00", NOON),
        ("ts", "2024-01-01T14:00:00+02:00", NOON),
        ("ts", "2024-01-01", NOON.replace(hour=0)),
        ("{column: ts, zone: Europe/Berlin}", "2024-01-01T13:00:00", NOON),
        ("{column: ts, zone: Europe/Berlin}", "2024-01-01T12:00:00Z", NOON),
        ("{column: ts, zone: Europe/Berlin}", "2024-01-01 04:00:00-08", NOON),
        ("{column: ts, zone: Europe/Berlin}", "2024-01-01", datetime(2023, 12, 31, 23, tzinfo=UTC)),
        ("{column: ts, zone: Europe/Berlin}", "2024-03-31T02:30:00", datetime(2024, 3, 31, 1, 30, tzinfo=UTC)),
        ("{column: ts, zone: Europe/Berlin}", "2024-10-27T02:30:00", datetime(2024, 10, 27, 1, 30, tzinfo=UTC)),
        ('{column: ts, format: "%d.%m.%Y %H:%M", zone: Europe/Berlin}', "01.01.2024 13:00", NOON),
        ('{column: ts, format: "%d.%m.%Y %H:%M %z"}', "01.01.2024 14:00 +0200", NOON),
        ('{column: ts, format: "%Y%m%d%H%M"}', "202401011200", NOON),
    ],
)
def test_a_time_is_read_as_it_is_described(tmp_path: Path, time: str, text: str, wanted: datetime) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,i,{text}\n")
    found = rows(mapped(tmp_path, f"events: {{files: log.csv, user: user, item: item, type: click, time: {time}}}"))
    assert [(row["event_ts"], row["reason"]) for row in found] == [(wanted, None)]


@pytest.mark.parametrize(
    ("time", "text", "reason"),
    [
        ("{column: ts, unit: s}", "1704110400000", "time stamp is in milliseconds instead of seconds"),
        ("{column: ts, unit: s}", "1704110400000000", "time stamp is in microseconds instead of seconds"),
        ("{column: ts, unit: ms}", "1704110400", "time stamp is in seconds instead of milliseconds"),
        ("{column: ts, unit: us}", "1704110400123456789", "time stamp is in nanoseconds instead of microseconds"),
        ("{column: ts, unit: s}", "2024-01-01", "unreadable time stamp"),
        ("{column: ts, unit: s}", "99999999999999999999999999", None),  # no time stamp: ingest's
        ("{column: ts, unit: s}", "", None),
        ("ts", "1704110400", "time stamp is a number: set time.unit, or time.format"),
        ("ts", "yesterday", "unreadable time stamp"),
        ("ts", "2024-13-01", "unreadable time stamp"),
        ("{column: ts, zone: Europe/Berlin}", "2024-02-30 10:00", "unreadable time stamp"),
        ('{column: ts, format: "%d.%m.%Y"}', "2024-01-01", "time stamp is not written as time.format"),
    ],
)
def test_a_time_that_cannot_be_is_refused(tmp_path: Path, time: str, text: str, reason: str | None) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,i,{text}\n")
    found = rows(mapped(tmp_path, f"events: {{files: log.csv, user: user, item: item, type: click, time: {time}}}"))
    assert [row["reason"] for row in found] == [reason]
    assert reason or found[0]["event_ts"] is None


@pytest.mark.parametrize(
    ("kind", "zone", "wanted"),
    [
        (pa.timestamp("us", "UTC"), "UTC", NOON),
        (pa.timestamp("us", "Europe/Berlin"), "Asia/Tokyo", NOON),
        (pa.timestamp("ns"), "UTC", NOON),
        (pa.timestamp("ms"), "Europe/Berlin", NOON.replace(hour=11)),
        (pa.timestamp("s"), "UTC", NOON),
        (pa.date32(), "UTC", NOON.replace(hour=0)),
    ],
)
def test_time_stamps_of_parquet_keep_their_value(
    tmp_path: Path, kind: pa.DataType, zone: str, wanted: datetime
) -> None:
    moment = NOON.date() if pa.types.is_date(kind) else NOON if getattr(kind, "tz", None) else NOON.replace(tzinfo=None)
    table = pa.table({"user": ["u"], "item": ["i"], "ts": pa.array([moment], kind)})
    pq.write_table(table, tmp_path / "log.parquet")
    time = f"{{column: ts, zone: {zone}}}"
    source = mapped(tmp_path, f"events: {{files: log.*, user: user, item: item, type: click, time: {time}}}")
    assert [(row["event_ts"], row["reason"]) for row in rows(source)] == [(wanted, None)]
    with pytest.raises(DataError, match="'ts' holds time stamps already; drop time"):
        rows(mapped(tmp_path, FLAT))


# Codes, ids, numbers.


def test_codes_are_mapped_ignored_or_unknown(tmp_path: Path) -> None:
    codes = ["1", "2.0", "false", " 1 ", "", "9", "login"]
    write(tmp_path / "log.csv", "user,item,ts,code\n" + "".join(f"u,i,{SECONDS},{code}\n" for code in codes))
    kinds = "{column: code, map: {1: impression, 2: click, false: cart, null: favorite}, ignore: login}"
    settings = FLAT.replace("type: click", f"type: {kinds}")
    found = rows(mapped(tmp_path, settings))
    assert usable(found, "line", "event_type") == [
        (2, "impression"),
        (3, "click"),
        (4, "cart"),
        (5, "impression"),
        (6, "favorite"),
        (7, None),
    ]
    assert refused(found) == [(8, "ignored type")]
    found = rows(mapped(tmp_path, settings.replace("ignore: login", "ignore: others")))
    assert refused(found) == [(7, "ignored type"), (8, "ignored type")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7", "7"), ("007", "007"), (" a b ", "a b"), ("7.0", "7"), ("-7.0", "-7"), ("1.50", "1.50"), ("v1.0", "v1.0"),
        ("", None), ("  ", None), ("NULL", None), ("nan", None), ("\\N", None), ("None", None), ("nano", "nano"),
    ],
)  # fmt: skip
def test_an_id_is_trimmed_and_nothing_where_nothing_is_known(tmp_path: Path, text: str, wanted: str | None) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\n{text},i,{SECONDS}\n")
    assert usable(rows(mapped(tmp_path, FLAT)), "user_id") == [(wanted,)]


def test_numbers_of_parquet_are_ids_without_a_point(tmp_path: Path) -> None:
    table = {"user": pa.array([12345678901, None], pa.float64()), "item": [2**53 + 1, 2], "ts": [SECONDS, SECONDS]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    assert usable(rows(mapped(tmp_path, FLAT)), "user_id", "item_id") == [
        ("12345678901", "9007199254740993"),
        (None, "2"),
    ]


def test_an_id_may_be_made_of_several_columns(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", f"ip,agent,item,ts\n1.2.3.4,Fox,i,{SECONDS}\n1.2.3.4,,i,{SECONDS}\n")
    found = rows(mapped(tmp_path, FLAT.replace("user: user", "user: [ip, agent]")))
    assert usable(found, "user_id") == [("1.2.3.4|Fox",), (None,)]


@pytest.mark.parametrize(
    ("column", "text", "wanted", "reason"),
    [
        ("value", "9.99", 9.99, None),
        ("value", "-1", -1.0, None),  # ingest refuses it
        ("value", "9,99", None, "value is not a number"),
        ("value", "", None, None),
        ("position", "3", 3, None),
        ("position", "3.0", 3, None),
        ("position", "3.5", 4, "position is not a whole number"),
        ("position", "top", None, "position is not a whole number"),
        ("position", "99999999999", None, "position is not a whole number"),
        ("propensity", "0.25", 0.25, None),
        ("propensity", "often", None, "propensity is not a number"),
    ],
)
def test_a_number_is_read_or_refused(tmp_path: Path, column: str, text: str, wanted: Any, reason: str | None) -> None:
    write(tmp_path / "log.tsv", f"user\titem\tts\tn\nu\ti\t{SECONDS}\t{text}\n")
    [row] = rows(mapped(tmp_path, FLAT.replace("type: click", f"type: purchase, {column}: n")))
    assert (row[column], row["reason"]) == (wanted, reason)


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [("1", True), ("0", False), ("2.5", True), ("-1", False), ("true", True), ("N", False), ("", False), ("ja", None)],
)
def test_a_flag_says_yes_or_no(tmp_path: Path, flag: str, wanted: bool | None) -> None:
    write(tmp_path / "log.csv", f"user,item,ts,liked\nu,i,{SECONDS},{flag}\n")
    found = rows(mapped(tmp_path, FLAT.replace("type: click", "type: impression, feedback: {favorite: liked}")))
    facts = {True: ["impression", "favorite"], False: ["impression"], None: []}[wanted]
    assert [kind for (kind,) in usable(found, "event_type")] == facts
    assert bool(refused(found)) == (wanted is None)


# Dirt.


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"u,i", "has 2 columns instead of 3"),
        (b"u,i,1704110400,x", "has 4 columns instead of 3"),
        (b"", "blank line"),
        (b'u,"i,1704110400', "a quote is not closed, or text follows one"),
        (b"u\xff,i,1704110400", "not valid UTF-8"),
        (b"u\x00,i,1704110400", "holds a NUL byte"),
    ],
)
def test_a_broken_line_is_refused_with_its_number_and_text(tmp_path: Path, line: bytes, reason: str) -> None:
    good = f"u,i,{SECONDS}\n".encode()
    write(tmp_path / "log.csv", b"user,item,ts\n" + good + line + b"\n" + good)
    found = rows(mapped(tmp_path, FLAT))
    assert usable(found, "line") == [(2,), (4,)]
    assert refused(found) == [(3, reason)]


def test_a_refused_row_of_parquet_shows_what_it_held(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["u"], "item": ["i"], "ts": ["soon"]}), tmp_path / "log.parquet")
    [row] = rows(mapped(tmp_path, FLAT))
    assert json.loads(row["raw"]) == {"user": "u", "item": "i", "ts": "soon"}


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("usr,item,ts\nu,i,1\n", FLAT, r"log.csv has no column 'user'; did you mean 'usr'\?"),
        ("user,item,ts,ts\nu,i,1,2\n", FLAT, "log.csv names the column 'ts' twice"),
        ("user,item,ts\nu,i,1\n", FLAT.replace("item: item", "item: item.id.x, session: sesion"), "no column 'sesion'"),
        ("user,item,ts\n", FLAT, r"No file of .*log.\* has any record; check source.events\[0\]"),
        ("", FLAT, r"No file of .*log.\* has any record"),
        (
            "user,item,ts\nu,i,1\n",
            FLAT.replace("log.*", "'*.json'"),
            r"has no \*.json; it holds log.csv. Check the glob",
        ),
    ],
)
def test_a_log_that_does_not_fit_its_description_ends_in_one_sentence(
    tmp_path: Path, content: str, settings: str, message: str
) -> None:
    write(tmp_path / "log.csv", content)
    with pytest.raises(DataError, match=message):
        rows(mapped(tmp_path, settings))


def test_nested_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path / "log.json", '{"usr": 1, "item": 2, "ts": 3}\n')
    with pytest.raises(DataError, match=r"log.json has no 'user' in its first 100 lines; did you mean 'usr'\?"):
        rows(mapped(tmp_path, FLAT))
    (tmp_path / "log.json").unlink()
    table = pa.Table.from_pylist([{"user": {"id": 1}, "item": [1], "ts": SECONDS}])
    pq.write_table(table, tmp_path / "log.parquet")
    for reference, message in (
        ("user.idd", r"has no column 'user.idd': did you mean 'id'\?"),
        ("user", "holds several values; name it in unpack or shown"),
        ("ts.x", "'ts.x' leads into a column of type BIGINT"),
    ):
        with pytest.raises(DataError, match=message):
            rows(mapped(tmp_path, FLAT.replace("user: user", f"user: {reference}")))


def test_an_empty_file_among_others_is_a_day_without_events(tmp_path: Path) -> None:
    write(tmp_path / "log.1.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    write(tmp_path / "log.2.csv", "")
    write(tmp_path / "log.3.csv", "user,item,ts\n")
    source = mapped(tmp_path, FLAT)
    assert [len(rows(source, file=file)) for file in source.discover()] == [1, 0, 0]


@pytest.mark.parametrize(
    ("names", "settings", "error", "message"),
    [
        (["log.zip"], FLAT, DataError, "log.zip is an archive; unpack it"),
        (["log.txt"], FLAT, ConfigError, r"log.txt: its ending tells no format; set format of log.\*"),
        (["log.csv"], FLAT.replace("log.*", "/log.*"), ConfigError, "'/log.*' is no glob below source.path"),
        (["log.csv"], f"{FLAT}\nitems: {{files: '*.csv', item: item}}", ConfigError, r"by source.events\[0\] and by"),
        (["log.csv"], FLAT.replace("{column: ts, unit: s}", "{column: ts, zone: Europe/Berln}"), ConfigError,
         r"the zone 'Europe/Berln' is unknown; did you mean 'Europe/Berlin'\?"),
        (["log.csv"], FLAT.replace("{column: ts, unit: s}", "{column: ts, format: '%Q'}"), ConfigError,
         "time.format '%Q' is none"),
        (["log.csv"], FLAT.replace("user: user", "user: user, encoding: utf-17"), ConfigError, "encoding 'utf-17'"),
        (["log.csv"], FLAT.replace("user: user", "user: user, separator: '::', quote: '\"'"), ConfigError, "separator"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_as_described_are_named(
    tmp_path: Path, names: Sequence[str], settings: str, error: type[Exception], message: str
) -> None:
    for name in names:
        write(tmp_path / name, "user,item,ts\nu,i,1\n")
    with pytest.raises(error, match=message):
        mapped(tmp_path, settings).discover()


def test_a_file_that_was_not_described_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "user,item,ts\nu,i,1\n")
    with (
        connect() as con,
        pytest.raises(DataError, match=r"other.csv is none of the files that the experiment names"),
    ):
        mapped(tmp_path, FLAT).count(con, RawFile(tmp_path / "other.csv", "events"))


def test_a_file_that_arrives_later_is_found(tmp_path: Path) -> None:
    write(tmp_path / "log.1.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    source = mapped(tmp_path, FLAT)
    assert len(source.discover()) == 1
    write(tmp_path / "log.2.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    assert [len(rows(source, file=file)) for file in source.discover()] == [1, 1]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data: neither HINDSIGHT_TEST_DATA nor {REAL} is there")
def test_a_mapping_of_a_publishers_log_reads_what_its_own_source_reads(tmp_path: Path) -> None:
    mapping = mapped(
        REAL / "taobao",
        """
        events:
          files: "UserBehavior*.csv"
          columns: [user_id, item_id, category, behaviour, seconds]
          user: user_id
          item: item_id
          category: category
          type: {column: behaviour, map: {pv: impression, fav: favorite, cart: cart, buy: purchase}}
          time: {column: seconds, unit: s}
        """,
    )
    taobao = Taobao(TaobaoSource(kind="taobao", path=REAL / "taobao"), tmp_path)
    columns = "line, user_id, item_id, event_ts, event_type, category, reason"
    read = []
    for source in (mapping, taobao):
        with connect() as con:
            read.append(source.read(con, source.discover()[0]).project(columns).order("line").fetchall())
    assert len(read[0]) == 84_476
    assert read[0] == read[1]


# Items and users.


def test_items_and_users_are_described_by_files_of_any_format(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    write(
        tmp_path / "goods.csv",
        'id,name,kind,brand,price,listed,weight,vector\n1.0,"Hat, red",hats,NULL,9.5,2024-01-01,2,"[0.5, 1]"\n'
        "2,Coat,,B,-1,soon,x,\n",
    )
    people = [{"id": 5, "age": 40, "taste": [0.1, 0.2]}, {"id": 6, "age": None, "taste": [0.3, 0.4]}]
    pq.write_table(pa.Table.from_pylist(people), tmp_path / "people.parquet")
    settings = f"""
{FLAT}
items: {{files: goods.csv, item: id, title: name, category: kind, brand: brand, price: price, listed: listed,
        features: [weight, vector]}}
users: {{files: people.parquet, user: id, features: [age, taste]}}
"""
    source = mapped(tmp_path, settings)
    hat, coat = entities(source, "items")
    assert hat == {
        "item_id": "1", "title": "Hat, red", "category": "hats", "brand": None, "shop": None, "price": 9.5,
        "listed_ts": NOON.replace(hour=0), "features": [2.0, 0.5, 1.0],
    }  # fmt: skip
    assert (coat["price"], coat["listed_ts"], coat["category"], coat["features"]) == (None, None, None, [None, None])
    ages = {user["user_id"]: user["features"] for user in entities(source, "users")}
    assert ages == {"5": pytest.approx([40, 0.1, 0.2]), "6": [None, pytest.approx(0.3), pytest.approx(0.4)]}


@pytest.mark.parametrize(("line", "reason"), [("7", "has 1 columns instead of 2"), (",x", "has no id")])
def test_a_broken_row_of_items_is_named(tmp_path: Path, line: str, reason: str) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    write(tmp_path / "goods.csv", f"id,name\n1,Hat\n{line}\n")
    with pytest.raises(DataError, match=rf"goods.csv, line 3 {reason}: {line}; mend or remove the line"):
        entities(mapped(tmp_path, f"{FLAT}\nitems: {{files: goods.csv, item: id}}"), "items")


def test_a_log_without_items_and_users_describes_none(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    source = mapped(tmp_path, FLAT)
    assert entities(source, "items") == entities(source, "users") == []


# The experiment file.

EXPERIMENT = """
name: shop
source:
  kind: mapping
  events:
    - {files: log.csv, user: user, item: item, type: click, time: ts}
partitions: {start: 2024-01-01, end: 2024-01-03}
agents: {popularity: {}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("time: ts", "tme: ts", r"unknown key 'tme' in events; did you mean 'time'\?"),
        ("time: ts", "time: {colum: ts}", r"unknown key 'colum' in time; did you mean 'column'\?"),
        ("time: ts", "time: {column: ts, unit: sec}", "source.mapping.events.0.time.unit = 'sec': Input should be 's'"),
        ("time: ts", "time: {column: ts, unit: s, format: '%s'}", "the unit 's', .* and the format '%s'; drop one"),
        ("time: ts", "time: {column: ts, unit: s, zone: Asia/Tokyo}", "and the zone 'Asia/Tokyo'; drop one"),
        (", time: ts", "", "the key 'source.mapping.events.0.time' is missing"),
        ("type: click", "type: clik", "source.mapping.events.0.type.always = 'clik': Input should be 'impression'"),
        ("type: click", "type: {column: kind}", "either an event type or a column with the map of its codes"),
        ("type: click", "type: {column: k, map: {a: click}, ignore: a}", "map and type.ignore both name 'a'"),
        ("type: click", "type: {column: k, map: {a: clicked}}", "source.mapping.events.0.type.map.a = 'clicked'"),
        ("type: click, ", "", "the events of log.csv have no type"),
        ("item: item, ", "", "the events of log.csv have no item"),
        ("type: click", "type: rating", "the ratings in log.csv have no value"),
        ("type: click", "type: rating, value: stars", "the log has ratings; set positive_above"),
        ("type: click", "type: click, feedback: {like: liked}", "Input should be 'click', 'cart'"),
        ("item: item, type: click", "shown: {items: i, entry: '{item}{click}'}", "is no pattern"),
        ("item: item, type: click", "shown: {items: i, entry: '{item}-{clic}'}", "part 'clic'; did you mean 'click'"),
        ("item: item, type: click", "shown: {items: i, entry: '{value}-{click}'}", "has no {item}"),
        ("item: item, type: click", "shown: {items: i, value: v, entry: '{item}-{value}'}", "names 'value' twice"),
        ("item: item, type: click", "shown: {items: i}, feedback: {click: c}", "the feedback of log.csv is to no item"),
        ("user: user", "user: user, columns: [a, a]", "columns names 'a' twice"),
        ("user: user", "user: user, unpack: {lists: [a, b], entry: '{x}:{y}'}", "the form of one list, got 2"),
        (
            "  kind: mapping",
            "  kind: mapping\n  itms: {}",
            r"unknown key 'source.mapping.itms'; did you mean 'items'\?",
        ),
    ],
)
def test_a_mistake_in_the_experiment_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in EXPERIMENT
    (tmp_path / "shop.yaml").write_text(EXPERIMENT)
    assert load_experiment(str(tmp_path / "shop.yaml")).source.kind == "mapping"
    (tmp_path / "shop.yaml").write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_experiment(str(tmp_path / "shop.yaml"))


def test_the_types_of_settings_are_those_of_events() -> None:
    assert get_args(EventType) == EVENT_TYPES


@pytest.mark.parametrize(("told", "wanted"), [("", True), ("\nhas_impressions: false", False)])
def test_a_log_of_views_may_say_that_it_does_not_tell_what_was_shown(tmp_path: Path, told: str, wanted: bool) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,i,{SECONDS}\n")
    source = mapped(tmp_path, FLAT.replace("click", "impression") + told)
    assert (source.has_impressions, source.unpacks) == (wanted, False)


def test_the_example_experiment_loads_and_reads_a_log_of_its_form(tmp_path: Path) -> None:
    experiment = load_experiment("own-log", raw=str(tmp_path))
    assert isinstance(experiment.source, MappingSource)
    write(
        tmp_path / "events" / "date=2024-01-01" / "part-0.csv",
        "user_id,product_id,event,timestamp,session,price\n"
        "u1,p1,view,2024-01-01 09:00:00,s1,\nu1,p1,purchase,2024-01-01 09:05:00,s1,19.90\nu1,,login,2024-01-01,s1,\n",
    )
    write(tmp_path / "products.csv", "product_id,name,category,brand,price,weight\np1,Hat,hats,Acme,19.90,0.2\n")
    source = MappedLog(experiment.source, tmp_path)
    found = rows(source)
    assert usable(found, "item_id", "event_type", "value") == [("p1", "impression", None), ("p1", "purchase", 19.9)]
    assert refused(found) == [(4, "ignored type")]
    assert [item["title"] for item in entities(source, "items")] == ["Hat"]


def test_every_record_of_a_dirty_log_is_accounted_for(tmp_path: Path) -> None:
    lines = ["u,a|b,b,1704110400", "u,a|b,b,1704110400", "u,a|b,,1704110401", "u,,,1704110402", "u,a|b", "u,a,,1"]
    log = write(tmp_path / "raw" / "log.csv", "user,shown,clicked,ts\n" + "\n".join(lines))
    source = mapped(
        log.parent,
        "events: {files: log.csv, user: user, time: {column: ts, unit: s}, type: click, item: clicked,"
        " shown: {items: shown, separator: '|'}}",
    )
    partitions = Partitions(start=date(2024, 1, 1), end=date(2024, 1, 2))
    manifest = stage(source, source.discover(), tmp_path / "staged", partitions, "code").to_pylist()
    [counts] = ingest_counts(staged_folders(manifest, tmp_path / "staged", partitions, "code"), {}).to_pylist()
    # Records 1 and 2 are the same three facts; 3 holds two; 4, 5 and 6 are refused.
    assert {name: counts[name] for name in ("rows_in", "unpacked", "events", "duplicates", "rejects")} == {
        "rows_in": 6, "unpacked": 5, "events": 5, "duplicates": 3, "rejects": 3,
    }  # fmt: skip


def test_pools_are_raw_files_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", f"user,item,ts\nu,a,{SECONDS}\n")
    (tmp_path / "pools").mkdir()
    pq.write_table(pa.table({"request_id": ["r"]}), tmp_path / "pools" / "1.parquet")
    files = mapped(tmp_path, f"{FLAT}\npools: pools/*.parquet").discover()
    assert [(file.path.name, file.kind) for file in files] == [("log.csv", "events"), ("1.parquet", "pools")]
    with pytest.raises(DataError, match=r"has no pool/\*; it holds"):
        mapped(tmp_path, f"{FLAT}\npools: pool/*").discover()
