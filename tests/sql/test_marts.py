"""From a number back to its rows: the marts and the queries that a reviewer follows."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.evaluation.comparisons import comparisons
from pipeline.evaluation.leaderboard import LEGS, leaderboard, leg_rows
from pipeline.evaluation.ope.logged import LoggedSlates
from pipeline.evaluation.ope.slates import SLATE_ESTIMATORS
from pipeline.products import publish_results
from pipeline.results import build_results, query
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store
from tests.pipeline.logs import at
from tests.published import HOSTILE, PROVENANCE, REFERENCE, demo_tables, publish, table

KEYS = ["agent", "leg", "setting", "metric"]
RECOMPUTED = ["sips", "iips", "rips", "cascade_dr"]


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    """The demo's tables with holes: a seed that lacks sessions, episodes without a critic."""
    found = demo_tables()
    rerank, rollout = found["rerank"].to_pandas(), found["rollout"].to_pandas()
    lost = (rerank["agent"] == "goalrec_off") & (rerank["seed"] == 13) & (rerank["session_id"] % 7 == 1)
    rollout.loc[rollout["user_key"] % 3 == 0, "ctr"] = None
    found["rerank"] = pa.Table.from_pandas(rerank[~lost], SCHEMAS["rerank"], preserve_index=False)
    found["rollout"] = pa.Table.from_pandas(rollout, SCHEMAS["rollout"], preserve_index=False)
    return found | {"ope_pages": _pages()}


@pytest.fixture(scope="module")
def results(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the leaderboard and the off-policy estimates that the pipeline computes from those tables."""
    folder = tmp_path_factory.mktemp("results")
    files = publish(folder / "data", tables)
    board = leaderboard([leg_rows(leg, files[leg], REFERENCE, 100) for leg in LEGS], PROVENANCE)
    files |= publish(folder / "computed", {"leaderboard": board, "ope": table("ope", _estimates(tables["ope_pages"]))})
    build_results(files, folder / "results.duckdb")
    return folder / "results.duckdb"


def ask(results: Path, name: str, **params: Any) -> pd.DataFrame:
    return query(results, name, params).to_pandas()


def _pages(n: int = 60, slots: int = 4) -> pa.Table:
    """Pages of one agent under two seeds, some with an empty last slot."""
    rng = np.random.default_rng(1)
    rows = []
    for seed in (11, 13):
        for page in range(n):
            filled = np.arange(slots) < slots - page % 2
            draw = {
                name: rng.uniform(0.1, 1, slots)
                for name in ("behaviour", "target", "behaviour_marginal", "target_marginal")
            }
            draw |= {name: rng.normal(size=slots) for name in ("reward", "q_logged", "v_target")}
            values = {
                name: np.where(filled, part, float(name[:3] in ("beh", "tar"))).tolist() for name, part in draw.items()
            }
            rows.append({"agent": "goalrec_off", "seed": seed, "session_id": page // 3, "step": page % 3,
                         "user_key": page // 6, "filled": filled.tolist(), **values})  # fmt: skip
    return table("ope_pages", rows)


def _estimates(pages: pa.Table) -> list[dict[str, Any]]:
    """What the estimators of the pipeline make of the pages."""
    rows = []
    for seed, part in pages.to_pandas().groupby("seed"):
        lists = {name: np.stack(part[name]) for name in ("reward", "behaviour", "target", "behaviour_marginal",
                                                         "target_marginal", "q_logged", "v_target")}  # fmt: skip
        logged = LoggedSlates(mask=np.ones_like(lists["reward"], bool), user_key=part["user_key"].to_numpy(), **lists)
        rows += [
            {"agent": "goalrec_off", "seed": seed, "setting": "page", "estimator": name,
             "value": SLATE_ESTIMATORS[name].terms(logged).value, "supported": True}
            for kind in RECOMPUTED for name in (kind, f"sn_{kind}")
        ]  # fmt: skip
    return rows


def test_every_number_of_the_leaderboard_is_the_mean_of_the_rows_behind_it(results: Path) -> None:
    with duckdb.connect(results, read_only=True) as con:
        board = con.execute("select * from leaderboard where n > 0").df().set_index(KEYS)
        units = con.execute("select * from unit_scores where leg in ('rerank', 'rollout')").df()
    means = units.groupby(KEYS)["value"].agg(["mean", "count"])
    users = units.groupby(KEYS)["user_key"].nunique()
    assert len(board) == len(means) > 250
    assert (means["mean"].loc[board.index] - board["value"]).abs().max() < 1e-9
    assert (means["count"].loc[board.index] == board["n"]).all()
    assert (users.loc[board.index] == board["users"]).all()


@pytest.mark.parametrize(
    ("leg", "setting", "metric"),
    [("rerank", "paged", "ndcg_reward_20"), ("rerank", "oneshot", "hit_5"), ("rollout", "truth", "ctr"),
     ("rollout", "judge/attention/natural", "return")],
)  # fmt: skip
def test_one_query_lists_the_rows_behind_a_number(results: Path, leg: str, setting: str, metric: str) -> None:
    number = {"agent": "goalrec_off", "leg": leg, "setting": setting, "metric": metric}
    rows = ask(results, "rows_behind", **number)
    with duckdb.connect(results, read_only=True) as con:
        [(value, n)] = con.execute(
            "select value, n from leaderboard where agent = $agent and leg = $leg and setting = $setting "
            "and metric = $metric", number).fetchall()  # fmt: skip
    unit = "session_id" if leg == "rerank" else "user_key"
    by_unit = rows.groupby(unit)["value"].mean()
    assert set(rows["seed"]) == {11, 13}
    assert (len(by_unit), by_unit.mean()) == (n, pytest.approx(value, abs=1e-9))
    assert rows[["user_key", "value"]].notna().all(axis=None)


def test_every_comparison_is_the_mean_of_its_rows(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    """Of an agent with its discount 0, whom the demo lacks: another agent plays it."""
    rerank, rollout = (_renamed(tables[leg], HOSTILE, "goalrec_off_discount_0") for leg in ("rerank", "rollout"))
    compared = comparisons(rerank, rollout, REFERENCE, 50)
    files = publish(tmp_path, {"rerank": rerank, "rollout": rollout, "comparisons": compared})
    build_results(files, tmp_path / "results.duckdb")
    assert set(compared["control"].to_pylist()) == {"discount_0", "reference"}
    assert len(compared) >= 6
    keys = ("agent", "against", "leg", "setting", "metric")
    for row in compared.to_pylist():
        rows = ask(tmp_path / "results.duckdb", "difference_rows", **{key: row[key] for key in keys})
        assert rows["difference"].mean() == pytest.approx(row["difference"], abs=1e-9)
        assert (len(rows), rows["user_key"].nunique()) == (row["n"], row["users"])


def _renamed(table: pa.Table, agent: str, name: str) -> pa.Table:
    names = [name if other == agent else other for other in table["agent"].to_pylist()]
    return table.set_column(table.column_names.index("agent"), table.schema.field("agent"), [names])


def test_the_mean_over_seeds_is_taken_within_a_session_first(results: Path) -> None:
    """A session that one seed lacks counts like the others; the plain mean of the rows would be another number."""
    rows = ask(results, "rows_behind", agent="goalrec_off", leg="rerank", setting="paged", metric="map")
    assert rows.groupby("session_id").size().nunique() == 2
    assert abs(rows.groupby("session_id")["value"].mean().mean() - rows["value"].mean()) > 1e-6


def test_slate_estimates_are_computed_again_from_the_logged_pages(results: Path) -> None:
    answer = ask(results, "ope_recomputed")
    assert set(answer["setting"]) == {"page"}
    assert set(answer["estimator"]) == {name for kind in RECOMPUTED for name in (kind, f"sn_{kind}")}
    assert len(answer) == 2 * 8
    assert answer["error"].abs().max() < 1e-9
    assert answer["value"].nunique() == 16
    assert (answer["n"] == 60).all()


def test_the_rows_behind_an_estimate_are_its_pages(results: Path) -> None:
    rows = ask(results, "rows_behind", agent="goalrec_off", leg="ope", setting="page/sn_cascade_dr", metric="value")
    published = ask(results, "ope_recomputed").query("estimator == 'sn_cascade_dr'")["value"].mean()
    assert rows.groupby(["session_id", "page"])["value"].mean().mean() == pytest.approx(published, abs=1e-9)
    assert len(rows) == 2 * 60


def test_a_number_leads_to_its_raw_files_and_hashes(results: Path) -> None:
    (row,) = query(
        results, "lineage", {"agent": "random", "leg": "rerank", "setting": "paged", "metric": "map"}
    ).to_pylist()
    assert {name: row[name] for name in PROVENANCE} == PROVENANCE
    assert (row["path"], row["kind"], row["hash"], row["size"]) == ("a.csv", "events", "f00d", 4096)


def test_the_trend_tells_what_moved_and_what_had_changed(tmp_path: Path) -> None:
    def version(day: int, value: float, **changed: str) -> dict[str, Any]:
        row = {"published_at": at(24 * day), "leaderboard": f"board-{day}", "agent": "iql", "leg": "rerank"}
        return row | {"setting": "paged", "metric": "map", "value": value, "n": 9, **PROVENANCE, **changed}

    rows = [version(2, 0.7, data_hash="n3w"), version(1, 0.5), version(3, 0.6, data_hash="n3w", code_hash="n3w")]
    rows = [{name: row[name] for name in SCHEMAS["history"].names if name in row} for row in rows]
    build_results(publish(tmp_path, {"history": table("history", rows)}), tmp_path / "results.duckdb")
    answer = ask(tmp_path / "results.duckdb", "trend")
    assert answer["leaderboard"].tolist() == ["board-3", "board-2", "board-1"]
    assert answer["change"].tolist()[:2] == pytest.approx([-0.1, 0.2])
    assert np.isnan(answer["change"].iloc[2])
    assert answer["changed"].tolist() == ["code", "data", ""]


@dataclass(frozen=True)
class Published:
    """As much of a plan as publishing results needs."""

    store: Store

    @property
    def results(self) -> Path:
        return self.store.root / "results.duckdb"

    def publish_board(self, board: pa.Table, code: str) -> None:
        with self.store.publish("leaderboard", {"all": {"code": code}}) as aside:
            publish(aside / "all", {"leaderboard": board})
        publish_results(self)  # type: ignore[arg-type]


def test_a_leaderboard_enters_the_history_once_and_stays_when_it_is_gone(tmp_path: Path) -> None:
    board = demo_tables()["leaderboard"]
    plan = Published(Store(tmp_path))
    for code in ("first", "first", "second", "third", "fourth"):
        plan.publish_board(board, code)
    plan.store.collect_garbage()
    assert len(list((tmp_path / "leaderboard" / "all").iterdir())) == 2  # only the last two versions are kept
    history = ask(plan.results, "trend")
    assert history["leaderboard"].nunique() == 4
    assert set(history["metric"]) == {"return", "ndcg_reward_20", "map"}
    assert "train/rnn/natural" not in set(history["setting"])
    assert history.groupby("leaderboard")["published_at"].nunique().eq(1).all()
    moments = history.drop_duplicates("leaderboard")["published_at"]
    assert moments.is_monotonic_decreasing
    assert sorted(path.suffix for path in (tmp_path / "history").iterdir()) == [".parquet"] * 4


def test_any_client_opens_the_results_from_any_folder(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(os.path.relpath(results), read_only=True) as con:
        relations = [name for (name,) in con.execute("select table_name from information_schema.tables").fetchall()]
        assert len(relations) > 40
        for name in relations:  # tables, views over Parquet, and marts
            con.execute(f'select * from "{name}" limit 1').fetchall()
        assert con.execute("select count(*) from agent_scores").fetchall()[0][0] > 20
    shutil.copyfile(results, tmp_path / "copy.duckdb")
    with duckdb.connect() as con:
        con.execute("attach 'copy.duckdb' as elsewhere (read_only)")
        assert con.execute("select count(*) from elsewhere.unit_scores").fetchall()[0][0] > 1000
