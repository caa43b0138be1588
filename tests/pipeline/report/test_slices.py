import pyarrow as pa

from pipeline.report.slices import slice_tables

ROW = {"agent": "iql", "mode": "paged", "dimension": "user", "slice": "new", "metric": "ndcg_reward_20", "value": 0.4,
       "ci_low": 0.3, "ci_high": 0.5, "n": 12, "users": 9}  # fmt: skip


def test_a_dimension_is_a_table_with_intervals_and_the_size_of_every_slice() -> None:
    rows = [
        ROW,
        ROW | {"slice": "returning", "value": 0.6, "ci_low": None, "ci_high": None, "n": 2000},
        ROW | {"agent": "bc", "value": 0.2},
        ROW | {"mode": "oneshot", "value": 0.9},
        ROW | {"dimension": "category", "slice": "toys", "metric": "auc", "value": 0.7},
    ]
    users, category = slice_tables(pa.Table.from_pylist(rows), ["bc", "random", "iql"])
    assert users.caption == "NDCG@20 by user"
    assert [cell.text for cell in users.head] == ["Agent", "new", "returning"]
    assert [cell.note for cell in users.head] == ["", "n = 12", "n = 2,000"]
    assert [[cell.text for cell in row] for row in users.rows] == [["bc", "0.200", "–"], ["iql", "0.400", "0.600"]]
    assert [cell.note for cell in users.rows[1]] == ["", "[0.300, 0.500]", ""]
    assert (category.caption, len(category.rows)) == ("AUC by category", 1)


def test_nothing_re_ranked_is_nothing_sliced() -> None:
    assert slice_tables(pa.Table.from_pylist([], schema=pa.schema([])), ["iql"]) == []
