"""What each request could have shown."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError
from pipeline.pools import build_pools
from pipeline.sources.base import RawFile
from pipeline.warehouse import read_table


def raw(path: Path, **columns: object) -> RawFile:
    pq.write_table(pa.table(columns), path)
    return RawFile(path, "pools")


def built(files: list[RawFile], out: Path) -> list[dict[str, object]]:
    build_pools(files, out)
    return list(read_table([out], "pools").to_pylist())


def test_a_request_that_comes_twice_counts_once_and_one_without_an_id_not_at_all(tmp_path: Path) -> None:
    files = [
        raw(tmp_path / "a.parquet", request_id=["r2", None, "r1"], item_ids=[["x"], ["y"], ["x", "y"]],
            logits=[[1.0], [0.5], [0.1, 0.2]]),
        raw(tmp_path / "b.parquet", request_id=["r2"], item_ids=[["z"]], logits=[[9.0]]),
    ]  # fmt: skip
    assert built(files, tmp_path / "pools.parquet") == [
        {"request_id": "r1", "item_ids": ["x", "y"], "logits": [0.1, 0.2]},
        {"request_id": "r2", "item_ids": ["x"], "logits": [1.0]},
    ]


def test_logits_may_be_absent_and_ids_may_be_numbers(tmp_path: Path) -> None:
    file = raw(tmp_path / "a.parquet", request_id=[7], item_ids=[[1, 2]], logits=pa.nulls(1))
    assert built([file], tmp_path / "pools.parquet") == [{"request_id": "7", "item_ids": ["1", "2"], "logits": None}]


def test_other_raw_files_are_no_pools(tmp_path: Path) -> None:
    assert built([RawFile(tmp_path / "events.csv", "events")], tmp_path / "pools.parquet") == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"request_id": ["r"], "item_ids": [["x"]]}, "a.parquet has no column 'logits'"),
        ({"request_id": ["r1"], "item_ids": [["x"]], "logits": [[1.0, 2.0]]}, "request r1 has not one logit an item"),
    ],
)
def test_a_file_that_is_no_pool_is_refused(columns: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        build_pools([raw(tmp_path / "a.parquet", **columns)], tmp_path / "pools.parquet")
