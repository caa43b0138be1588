import numpy as np
import pyarrow as pa
import pytest

from pipeline.warehouse import taker

LONG = "longer than twelve bytes é"
ROWS = pa.table(
    {
        "text": pa.chunked_array([["a", None, LONG], ["", "bc" * 40], [None, "twelve bytes"]], pa.string()),
        "number": pa.chunked_array([[1, 2, None, 4], [5, 6, 7]]),
        "nothing": pa.nulls(7, pa.string()),
        "kind": pa.array(["x", "y", None, "x", "y", "x", "x"]).dictionary_encode(),
    }
)


@pytest.mark.parametrize("rows", [ROWS, ROWS.slice(2), ROWS.slice(1, 4), ROWS.combine_chunks().slice(3)])
def test_rows_are_taken_as_arrow_takes_them(rows: pa.Table) -> None:
    places = np.random.default_rng(0).integers(0, len(rows), 50)
    found = taker(rows)(places)
    assert found.equals(rows.take(pa.array(places)))
    found.validate(full=True)


@pytest.mark.parametrize("rows", [ROWS, ROWS.slice(7), ROWS.schema.empty_table()])
def test_no_rows_are_taken_of_any(rows: pa.Table) -> None:
    assert taker(rows)(np.array([], int)).equals(ROWS.slice(0, 0))
