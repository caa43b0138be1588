import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.evaluation.significance import holm, paired_difference
from pipeline.report.board import Column, Estimate
from pipeline.report.changes import Change, changed_figures, same_log, unpaired
from pipeline.report.runs import Run
from pipeline.results import build_results
from tests.pipeline.report.builders import moved, without
from tests.published import demo_tables, publish, table

TRUTH = Column("rollout", "truth", "return")
JUDGE = Column("rollout", "judge/attention/natural", "return")
RESAMPLES = 1_000


def run(folder: Path, name: str, tables: dict[str, pa.Table]) -> Run:
    build_results(publish(folder / name, tables), folder / f"{name}.duckdb")
    return Run(name, folder / f"{name}.duckdb")


def estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate("iql", value, low, high, 9, 1, None, None, None, None, None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    other_log = demo_tables()
    other_log["manifest"] = table("manifest", [{"path": "b.csv", "kind": "events", "hash": "beef"}])
    kinds = {"before": demo_tables(), "same": demo_tables(), "after": moved("goalrec_off", 0.5), "other log": other_log}
    return {name: run(folder, name, tables) for name, tables in kinds.items()}


@pytest.fixture(scope="module")
def changes(runs: dict[str, Run]) -> list[Change]:
    return changed_figures(runs["before"], runs["after"], RESAMPLES)


def test_the_same_run_twice_changes_nothing(runs: dict[str, Run]) -> None:
    found = changed_figures(runs["before"], runs["same"], RESAMPLES)
    assert len(found) == 7 + 4 + 2 * 6  # truth, judge, two modes of re-ranking
    assert all(change.identical for change in found)
    assert {(change.delta.mean, change.delta.p_value, change.significant) for change in found} == {(0.0, 1.0, False)}


def test_rounding_is_no_change(runs: dict[str, Run], tmp_path: Path) -> None:
    rounded = demo_tables()
    for name in ("rollout", "rerank", "leaderboard"):
        frame = rounded[name].to_pandas()
        numbers = frame.select_dtypes("float64").columns
        frame[numbers] *= 1 + 1e-15
        rounded[name] = pa.Table.from_pandas(frame, rounded[name].schema, preserve_index=False)
    found = changed_figures(runs["before"], run(tmp_path, "rounded", rounded), RESAMPLES)
    assert any(change.before.value != change.after.value for change in found)
    assert all(change.identical for change in found)


def test_only_what_moved_is_significant_and_paired_on_the_users_of_both(changes: list[Change]) -> None:
    found = {(change.agent, change.column): change for change in changes if change.significant}
    assert set(found) == {("goalrec_off", TRUTH), ("goalrec_off", JUDGE)}
    change = found["goalrec_off", TRUTH]
    assert change.delta.n == 40
    assert change.delta.mean == pytest.approx(0.5)
    assert change.after.value - change.before.value == pytest.approx(0.5)


def test_a_paired_difference_is_that_of_the_seeds_means(runs: dict[str, Run]) -> None:
    later = demo_tables()
    frame = later["rollout"].to_pandas()
    noise = np.random.default_rng(0).normal(0.1, 0.5, len(frame))
    frame["return"] += noise
    later["rollout"] = table("rollout", frame.to_dict("records"))
    after = run(runs["before"].results.parent, "noisy", later)
    found = {c.agent: c for c in changed_figures(runs["before"], after, RESAMPLES) if c.column == TRUTH}
    mine = frame.assign(noise=noise)[(frame.agent == "goalrec_off") & (frame.setting == "truth")]
    by_user = mine.groupby("user_key")["noise"].mean()
    wanted = paired_difference(by_user.to_numpy(), np.zeros(len(by_user)), by_user.index, 20_000)
    delta = found["goalrec_off"].delta
    assert delta.mean == pytest.approx(wanted.mean)
    assert (delta.low, delta.high) == (pytest.approx(wanted.low, abs=0.05), pytest.approx(wanted.high, abs=0.05))
    assert delta.p_value == pytest.approx(wanted.p_value, abs=0.05)


def test_p_is_adjusted_over_the_whole_page(changes: list[Change]) -> None:
    wanted = holm([change.delta.p_value for change in changes])
    assert [change.p_adjusted for change in changes] == wanted.tolist()


def test_runs_on_different_logs_are_not_paired_although_their_users_have_the_same_keys(runs: dict[str, Run]) -> None:
    assert same_log(runs["before"], runs["after"])
    assert not same_log(runs["before"], runs["other log"])
    found = changed_figures(runs["before"], runs["other log"], RESAMPLES)
    assert {change.delta.n for change in found} == {0}
    assert all(change.delta.low < 0 < change.delta.high for change in found)


def test_agents_of_one_run_alone_are_not_compared(runs: dict[str, Run], tmp_path: Path) -> None:
    fewer = demo_tables()
    fewer["leaderboard"] = without(fewer["leaderboard"], "random")
    found = changed_figures(run(tmp_path, "fewer", fewer), runs["before"], RESAMPLES)
    assert "random" not in {change.agent for change in found}
    assert {change.delta.n for change in found} == {40, 54}


def test_results_of_another_version_of_the_code_are_refused_with_the_remedy(runs: dict[str, Run]) -> None:
    older = runs["before"].results.with_name("older.duckdb")
    shutil.copyfile(runs["before"].results, older)
    with duckdb.connect(older) as con:
        con.execute("drop view unit_scores")
    with pytest.raises(StorageError, match=r"built by another version.*make demo"):
        changed_figures(Run("older", older), runs["before"])


def test_without_pairs_the_interval_joins_both_intervals() -> None:
    # By hand: √(0.3² + 0.4²) = 0.5 below, √(0.6² + 0.8²) = 1 above.
    delta = unpaired(estimate(1.0, 1.0 - 0.8, 1.0 + 0.4), estimate(3.0, 3.0 - 0.3, 3.0 + 0.6))
    assert delta[:3] == pytest.approx((2.0, 1.5, 3.0))
    even = unpaired(estimate(1.0, 0.7, 1.3), estimate(1.5, 1.1, 1.9))  # half-widths 0.3 and 0.4: z = 0.5·1.96 / 0.5
    assert even.p_value == pytest.approx(0.05, abs=1e-6)


def test_a_figure_without_an_interval_has_no_significance() -> None:
    delta = unpaired(estimate(1.0, None, None), estimate(3.0, 2.0, 4.0))
    assert delta.mean == 2.0
    assert np.isnan([delta.low, delta.high, delta.p_value]).all()
    assert not Change("iql", TRUTH, estimate(1, 1, 1), estimate(3, 2, 4), delta).significant
