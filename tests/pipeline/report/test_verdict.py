from pipeline.report.verdict import verdict
from tests.published import demo_tables


def test_the_report_opens_with_the_row_of_place_one_and_the_numbers_beside_it() -> None:
    rows = demo_tables()["verdicts"].to_pylist()
    found = verdict(rows[::-1])
    assert found.headline == "No verdict: controls not run"
    assert found.paragraph == (
        "Missing: supervised rankers (gru4rec and sasrec). goalrec_off has 5.95 [5.71, 6.18]. "
        "It reaches 0.85 [0.83, 0.87]."
    )


def test_no_rows_claim_nothing() -> None:
    assert "Nothing was measured yet" in verdict([]).paragraph
