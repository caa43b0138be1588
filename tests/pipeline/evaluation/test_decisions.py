"""Logged pages as decisions: candidates, propensities and the reward model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pipeline.errors import DataError
from pipeline.evaluation.decisions import TABLES, build_decisions
from pipeline.evaluation.judged import Judged, read_decisions
from pipeline.evaluation.ope.policies import ConditionalLogit
from pipeline.experiment import Experiment
from pipeline.schemas import SCHEMAS
from pipeline.task import TASK_TABLES, load_task
from pipeline.warehouse import read_table, write_parquet
from tests.conftest import Run

torch.set_num_threads(1)


@dataclass(frozen=True)
class World:
    """The published tables of a run, some of them replaced, and the decisions made of them."""

    experiment: Experiment
    inputs: dict[str, list[Path]]
    folder: Path

    def build(self) -> Judged:
        build_decisions(self.inputs, self.experiment, self.folder)
        task = load_task({table: self.inputs[table] for table in TASK_TABLES}, self.experiment)
        judged = read_decisions([self.folder / "decisions.parquet"], task)
        assert judged is not None
        return judged


def world(run: Run, folder: Path, pool: int | None = None, **replaced: list[Path]) -> World:
    ope = run.experiment.ope.model_copy(update={"pool": pool} if pool else {})
    inputs = {table: run.plan.store.files(table) for table in TABLES}
    return World(run.experiment.model_copy(update={"ope": ope}), inputs | replaced, folder)


@pytest.fixture(scope="module")
def logged(tiny: Run) -> pd.DataFrame:
    return read_table(tiny.plan.store.files("decisions"), "decisions").to_pandas()


def shown_pages(run: Run) -> "pd.api.typing.DataFrameGroupBy":
    shown = read_table(run.plan.store.files("impressions"), "impressions").to_pandas()
    return shown.sort_values(["page", "row", "col"]).groupby(["session_id", "page"])


@pytest.fixture(scope="module")
def sampled(tiny: Run, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """The same log, had it not logged its pools."""
    return world(tiny, tmp_path_factory.mktemp("sampled"), pools=[]).build()


def test_decisions_are_the_pages_of_the_test_window(tiny: Run, logged: pd.DataFrame) -> None:
    splits = read_table(tiny.plan.store.files("splits"), "splits").to_pandas().set_index("split")
    sessions = read_table(tiny.plan.store.files("sessions"), "sessions").to_pandas().set_index("session_id")
    starts = sessions.loc[logged.session_id, "start_ts"]
    assert (starts >= splits.start_ts["test"]).all()
    assert not logged.duplicated(["session_id", "step"]).any()


def test_where_the_log_says_its_pools_the_propensities_are_the_logged_ones(tiny: Run, logged: pd.DataFrame) -> None:
    assert set(logged.pool) == set(logged.propensities) == {"logged"}
    shown = (
        read_table(tiny.plan.store.files("impressions"), "impressions").to_pandas().sort_values(["page", "row", "col"])
    )
    pages = shown.groupby(["session_id", "page"])
    for row in logged.head(30).itertuples():
        page = pages.get_group((row.session_id, row.step))
        np.testing.assert_allclose(row.behaviour, page.propensity, rtol=1e-4)
        assert [row.feedback[slot] > 1 for slot in range(10)] == list(page.feedback != "skip")
        assert row.behaviour_marginal[0] == pytest.approx(row.behaviour[0])
        assert row.first_slot.sum() == pytest.approx(1)


def test_each_slot_names_its_item_among_candidates_that_are_there_once(tiny: Run, logged: pd.DataFrame) -> None:
    items = read_table(tiny.plan.store.files("items"), "items").to_pandas().set_index("item_id").item_key
    shown = (
        read_table(tiny.plan.store.files("impressions"), "impressions").to_pandas().sort_values(["page", "row", "col"])
    )
    pages = shown.groupby(["session_id", "page"])
    for row in logged.head(30).itertuples():
        assert len(set(row.candidate_keys)) == len(row.candidate_keys) == 50
        page = pages.get_group((row.session_id, row.step))
        assert list(row.candidate_keys[row.slate]) == list(items[page.item_id])


def test_what_was_shown_cannot_be_told_from_its_place_among_the_candidates(logged: pd.DataFrame) -> None:
    places = np.concatenate(list(logged.slate))
    counts = np.bincount(places, minlength=50)
    expected = len(places) / 50
    assert ((counts - expected) ** 2 / expected).sum() < 90  # χ² of 49 degrees of freedom: p < .0003 above it


def test_without_pools_candidates_are_what_was_shown_and_a_sample_of_the_catalogue(tiny: Run, sampled: Judged) -> None:
    assert (sampled.pool, sampled.behaviour.kind) == ("sampled", "fitted")
    decisions = sampled.decisions
    assert decisions.mask.sum(dim=1).max() <= tiny.experiment.ope.pool
    keys = decisions.keys.masked_fill(~decisions.mask, -1).sort(dim=1).values
    assert not ((keys[:, 1:] == keys[:, :-1]) & (keys[:, 1:] >= 0)).any()
    np.testing.assert_allclose((sampled.behaviour.first_slot * decisions.mask.numpy()).sum(axis=1), 1)


@pytest.mark.parametrize("pool", [None, 1_000])
def test_what_had_not_been_shown_before_a_page_is_no_candidate_of_it(
    tiny: Run, tmp_path: Path, pool: int | None
) -> None:
    """Of a catalogue that describes as many items again, which are never shown."""
    known = read_table(tiny.plan.store.files("items"), "items").to_pandas()
    never = known.assign(item_id="never " + known.item_id, item_key=-1 - np.arange(len(known)), item=0)
    path, catalogue = tmp_path / "items.parquet", pd.concat([known, never])
    write_parquet(path, "items",
                  pa.Table.from_pandas(catalogue, SCHEMAS["items"], preserve_index=False).to_batches())  # fmt: skip
    decisions = world(tiny, tmp_path, pool, pools=[], items=[path]).build().decisions
    rows = read_table(tiny.plan.store.files("impressions"), "impressions").to_pandas()
    rows["item_key"] = rows.item_id.map(known.set_index("item_id").item_key)
    first = rows.groupby("item_key").impression_ts.min()
    pages = rows.groupby(["session_id", "page"]).impression_ts.min()
    shown = (decisions.slate[:, :, None] == torch.arange(decisions.items.shape[1])).any(dim=1)
    others = decisions.mask & ~shown
    assert others.sum() > 1_000
    moments = pages.loc[list(zip(decisions.session_id.tolist(), decisions.step.tolist(), strict=True))].to_numpy()
    row, column = np.nonzero(others.numpy())
    assert (first.loc[decisions.keys.numpy()[row, column]].to_numpy() < moments[row]).all()


def test_items_that_come_late_in_the_log_are_candidates_of_later_pages_alone(tiny: Run, tmp_path: Path) -> None:
    """Half of the items first shown in the test window: pages before that moment have them nowhere."""
    rows = read_table(tiny.plan.store.files("impressions"), "impressions").to_pandas()
    start = read_table(tiny.plan.store.files("splits"), "splits").to_pandas().set_index("split").start_ts["test"]
    keys = read_table(tiny.plan.store.files("items"), "items").to_pandas().set_index("item_id").item_key
    middle = rows[rows.impression_ts >= start].impression_ts.median()
    late = set(sorted(rows.item_id.unique())[::2])
    kept = rows[~rows.item_id.isin(late) | (rows.impression_ts >= middle)]
    write_parquet(tmp_path / "impressions.parquet", "impressions",
                  pa.Table.from_pandas(kept, SCHEMAS["impressions"], preserve_index=False).to_batches())  # fmt: skip
    decisions = world(tiny, tmp_path, pools=[], impressions=[tmp_path / "impressions.parquet"]).build().decisions
    moments = kept.groupby(["session_id", "page"]).impression_ts.min()
    moments = moments.loc[list(zip(decisions.session_id.tolist(), decisions.step.tolist(), strict=True))].to_numpy()
    of_late = (torch.from_numpy(np.isin(decisions.keys, keys[list(late)])) & decisions.mask).any(dim=1).numpy()
    before = moments < middle
    assert before.sum() > 10
    assert not of_late[before].any()
    assert of_late[~before].any()


def test_the_fitted_behaviour_comes_near_the_logged_one(sampled: Judged) -> None:
    """60 users say little; that it is above chance can be seen."""
    chances = sampled.behaviour.conditional
    assert np.log(chances).mean() > np.log(1 / 45.5)  # the mean over slots of a uniform choice among 50 to 41


def test_a_small_catalogue_is_taken_whole(tiny: Run, tmp_path: Path) -> None:
    small = world(tiny, tmp_path, pool=1_000, pools=[])
    judged, known = small.build(), read_table(small.inputs["items"], "items", ["item"])
    assert judged.pool == "catalogue"
    assert judged.behaviour.kind == "logged"  # propensities of all that could be shown need no pool
    assert (judged.decisions.mask.sum(dim=1).numpy() >= (known["item"].to_numpy() > 0).sum()).all()


def test_what_is_fitted_does_not_see_the_test_window(tiny: Run, sampled: Judged, tmp_path: Path) -> None:
    impressions = [read_table([path], "impressions").to_pandas() for path in tiny.plan.store.files("impressions")]
    rows = pd.concat(impressions)
    start = read_table(tiny.plan.store.files("splits"), "splits").to_pandas().set_index("split").start_ts["test"]
    after = rows.page_ts >= start
    rows.loc[after, ["feedback", "reward"]] = ["purchase", 5.0]
    write_parquet(tmp_path / "impressions.parquet", "impressions",
                  pa.Table.from_pandas(rows, SCHEMAS["impressions"], preserve_index=False).to_batches())  # fmt: skip
    changed = world(tiny, tmp_path, pools=[], impressions=[tmp_path / "impressions.parquet"]).build()
    before = sampled
    states = [(j.decisions.state.history_items * 10 + j.decisions.state.history_feedback) for j in (changed, before)]
    # Later pages, and a user's later sessions, see what came of earlier ones: rightly.
    first = ((before.decisions.step == 0) & (states[0] == states[1]).all(dim=1)).numpy()
    assert first.sum() > 20
    np.testing.assert_array_equal(changed.behaviour.conditional[first], before.behaviour.conditional[first])
    np.testing.assert_array_equal(changed.level[first], before.level[first])
    assert (changed.decisions.rewards[first] != before.decisions.rewards[first]).any()


def test_logits_that_did_not_draw_the_pages_are_refused(tiny: Run, tmp_path: Path) -> None:
    pools = read_table(tiny.plan.store.files("pools"), "pools").to_pandas()
    pools["logits"] = [values[::-1] for values in pools.logits]
    write_parquet(tmp_path / "pools.parquet", "pools",
                  pa.Table.from_pandas(pools, SCHEMAS["pools"], preserve_index=False).to_batches())  # fmt: skip
    with pytest.raises(DataError, match="the logits give propensities that differ"):
        world(tiny, tmp_path, pools=[tmp_path / "pools.parquet"]).build()


def test_a_softmax_over_the_catalogue_is_found_again_from_samples_of_it() -> None:
    """Uniform conditioning (McFadden, 1978): what was chosen beside a uniform sample has the odds of the catalogue."""
    rng, n, catalogue, drawn = np.random.default_rng(5), 4_000, 300, 30
    features = rng.normal(size=(catalogue, 2))
    chances = np.exp(features @ [1.0, -0.5])
    chosen = rng.choice(catalogue, n, p=chances / chances.sum())
    others = rng.integers(catalogue, size=(n, drawn))
    pool = np.hstack([chosen[:, None], others])
    mask = np.hstack([np.ones((n, 1), bool), others != chosen[:, None]])
    ordered = np.sort(np.where(mask, pool, -1 - np.arange(drawn + 1)), axis=1)
    again = np.zeros_like(mask)
    order = np.argsort(np.where(mask, pool, -1 - np.arange(drawn + 1)), axis=1, kind="stable")
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    model = ConditionalLogit(l2=1e-6).fit(features[pool], np.zeros((n, 1), np.int64), mask & ~again)
    assert model.coefficients is not None
    np.testing.assert_allclose(model.coefficients[:2] / model.spread, [1.0, -0.5], atol=0.06)
