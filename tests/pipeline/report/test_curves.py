from pathlib import Path

import pytest

from pipeline.report.curves import training
from pipeline.results import build_results, query
from tests.published import demo_tables, publish


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    build_results(publish(folder, {"training_log": demo_tables()["training_log"]}), folder / "results.duckdb")
    return folder / "results.duckdb"


def test_validation_comes_first_and_trials_are_no_curves(results: Path) -> None:
    shown = training(query(results, "learning_curves"), query(results, "trials"))
    assert shown.chart is not None
    assert shown.chart.figure["layout"]["yaxis"]["title"]["text"] == "validation"
    assert [chart.figure["layout"]["yaxis"]["title"]["text"] for chart in shown.losses] == ["loss"]


def test_a_trial_is_one_row_and_the_best_by_validation_is_the_chosen_one(results: Path) -> None:
    assert query(results, "trials").to_pylist() == [
        {"agent": "goalrec_off", "trial": f"rate={rate}", "validation": best, "best_step": 200, "steps": 200,
         "seconds": 12.0, "chosen": chosen}
        for rate, best, chosen in ((0.003, 0.41, True), (0.001, 0.38, False))
    ]  # fmt: skip


def test_without_tuning_there_is_no_table_of_trials(tmp_path: Path) -> None:
    results = tmp_path / "results.duckdb"
    build_results({}, results)
    shown = training(query(results, "learning_curves"), query(results, "trials"))
    assert (shown.chart, list(shown.losses), shown.trials) == (None, [], None)
