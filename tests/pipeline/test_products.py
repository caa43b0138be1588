"""What a terminal shows of an answer."""

import pyarrow as pa

from pipeline.products import LONGEST_CELL, answer_text


def test_an_answer_is_a_table_while_its_texts_are_short() -> None:
    text = answer_text(pa.table({"agent": ["iql", "bc"], "value": [1.5, 2.0]}))
    assert text.splitlines()[0].split() == ["agent", "value"]
    assert text.splitlines()[2].split() == ["bc", "2.0"]


def test_an_answer_with_long_texts_is_a_line_a_value() -> None:
    reason = "because " * LONGEST_CELL
    text = answer_text(pa.table({"agent": ["iql", "bc"], "reason": [reason, "short"]}))
    assert text.split("\n\n")[1].splitlines() == ["agent   bc", "reason  short"]
    assert reason in text


def test_an_answer_without_rows_is_no_error() -> None:
    assert "agent" in answer_text(pa.table({"agent": pa.array([], pa.string())}))
