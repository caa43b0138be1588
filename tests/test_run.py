"""What a newcomer does: one command from nothing to a report, and again when nothing has changed."""

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from models import AGENTS
from pipeline.evaluation.legs import unsupported
from pipeline.evaluation.run import AgentRun, _simulated
from pipeline.experiment import Experiment, load_experiment
from pipeline.plan import PRODUCTION, STEPS, Plan
from pipeline.results import open_results, query
from pipeline.simulation import failed_criteria
from pipeline.task import TASK_TABLES
from pipeline.warehouse import read_table
from tests.conftest import TINY, Run, command, python, write_experiment


def test_one_command_makes_everything_and_says_where_it_lies(tiny: Run) -> None:
    assert str(tiny.plan.report) in tiny.first.stdout
    assert str(tiny.plan.results) in tiny.first.stdout
    assert "goalrec_off" in tiny.first.stdout
    assert tiny.plan.stale_tables() == {}
    assert tiny.plan.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_terminal_sees_neither_stack_traces_nor_the_notices_of_libraries(tiny: Run) -> None:
    shown = tiny.first.stdout + tiny.first.stderr
    for noise in ("Traceback", "Gym has been unmaintained", "Warning", "leaked", "DEBUG"):
        assert noise not in shown


def runs(tiny: Run) -> int:
    """Runs that Dagster has on record."""
    with sqlite3.connect(tiny.folder / "dagster" / "history" / "runs.db") as con:
        return int(con.execute("select count(*) from runs").fetchone()[0])


def test_a_second_run_finds_everything_fresh_and_launches_nothing(tiny: Run) -> None:
    before = runs(tiny)
    started = time.monotonic()
    again = tiny.command("demo")
    assert again.returncode == 0, again.stderr
    assert "no run was launched" in again.stdout
    assert (runs(tiny), before) == (1, 1)
    assert time.monotonic() - started < 30


def test_every_agent_is_on_the_leaderboard_in_every_leg_that_it_has(tiny: Run) -> None:
    board = read_table(tiny.plan.store.files("leaderboard"), "leaderboard").to_pandas()
    legs = {leg: set(rows["agent"]) for leg, rows in board.groupby("leg")}
    reference_rows = {"logged_order", "ideal"}
    assert legs["rerank"] == set(AGENTS) - {"oracle_myopic", "oracle_farsighted"}
    assert legs["rollout"] == set(AGENTS) - reference_rows | {PRODUCTION}
    assert {"oneshot", "paged", "truth", "page/sn_iips"} <= set(board["setting"])
    assert PRODUCTION in legs["ope"]
    assert not {"oracle_myopic", "oracle_farsighted", *reference_rows} & legs["ope"]
    assert (board["data_hash"].str.len() > 0).all()
    assert json.loads(board["versions"].iloc[0])["torch"]


def test_the_oracles_order_the_storefront(tiny: Run) -> None:
    rows = read_table(tiny.plan.store.files("rollout"), "rollout").to_pandas()
    value = rows.groupby("agent")["return"].mean()
    assert value["oracle_farsighted"] > value["oracle_myopic"] > value["logging"] > value["random"]


def test_every_number_of_the_leaderboard_is_the_mean_of_the_rows_behind_it(tiny: Run) -> None:
    keys = ["agent", "leg", "setting", "metric"]
    with open_results(tiny.plan.results) as con:
        board = con.sql("select * from leaderboard where n > 0").df().set_index(keys)
        means = con.sql("select agent, leg, setting, metric, avg(value) as value from unit_scores group by all").df()
    found = means.set_index(keys)["value"].loc[board.index]
    assert {"rerank", "rollout"} <= set(board.index.get_level_values("leg"))
    assert (found - board["value"]).abs().max() < 1e-9
    assert query(tiny.plan.results, "ope_recomputed").to_pandas()["error"].abs().fillna(0).max() < 1e-9
    assert query(tiny.plan.results, "trend").num_rows == query(tiny.plan.results, "leaderboard").num_rows


def test_a_user_model_that_fails_its_gate_answers_for_nobody(tiny: Run) -> None:
    failed = failed_criteria(tiny.plan.store.files("simulator_gate"))
    assert set(failed) == {"rnn", "attention"}
    assert all(any("sessions" in clause for clause in clauses) for clauses in failed.values())  # too few to judge by
    reason = unsupported(tiny.experiment, failed, "")["rollout in a judge"]
    assert reason.startswith("no user model passed the gate that lets it judge (attention: session sessions is ")
    assert reason in tiny.plan.report.read_text(encoding="utf-8").replace("&#39;", "'")
    assert not read_table(tiny.plan.store.files("rollout"), "rollout").to_pandas().query("side != 'truth'").size


def test_a_user_model_that_passes_answers_every_user_in_every_kind_of_session(tiny: Run) -> None:
    store = tiny.plan.store
    run = AgentRun(
        name="popularity",
        folder=store.require("agents", "popularity").folder,
        experiment=tiny.experiment,
        inputs={table: store.files(table) for table in ("impressions", "sessions", *TASK_TABLES)},
        outs={},
        store=store,
        simulators=("rnn", "attention"),  # as if they had
    )
    covered: list[dict[str, Any]] = []
    rows = pa.Table.from_batches(_simulated(run, covered)).to_pandas()
    worlds = {f"{world}/{kind}" for world in ("train/rnn", "judge/attention") for kind in ("natural", "short", "long")}
    assert set(rows["setting"]) == worlds == {row["setting"] for row in covered}
    assert (rows.groupby("setting")["user_key"].nunique() == 60).all()
    assert rows.query("sessions == 'short'")["depth"].eq(10).all()


def test_the_legs_that_are_missing_give_their_reason(tiny: Run) -> None:
    (row,) = query(tiny.plan.results, "provenance").slice(0, 1).to_pylist()
    assert row
    with duckdb.connect() as con:
        con.execute(f"attach '{tiny.plan.results}' as r (read_only)")
        assert con.sql("select leg from r.unsupported").fetchall() == [("rollout in a judge",)]
    assert "Not supported, because" in tiny.plan.report.read_text(encoding="utf-8")


def test_the_candidates_of_a_session_are_exactly_its_logged_impressions(tiny: Run) -> None:
    inputs = {t: tiny.plan.store.files(t) for t in ("rankings", "impressions")}
    from pipeline.warehouse import connect

    with connect(inputs) as con:
        wrong = con.sql(
            """
            with logged as (
                select distinct session_id, key64(item_id) as item_key from impressions
                where session_id in (select session_id from rankings)
            ),
            ranked as (select agent, mode, session_id, item_key from rankings),
            rankers as (select distinct agent, mode from rankings),
            expected as (select agent, mode, session_id, item_key from rankers, logged)
            select count(*) from (
                (from expected except from ranked) union all (from ranked except from expected)
            )
            """
        ).fetchall()
    assert wrong == [(0,)]


def assert_agrees_with_ranx(run_of: Run, agent: str) -> None:
    """Every published metric of a session is what ranx computes from the published ranking."""
    import ranx

    store = run_of.plan.store
    rankings = read_table(store.files("rankings", [agent]), "rankings").to_pandas()
    rerank = read_table(store.files("rerank", [agent]), "rerank").to_pandas()
    rankings = rankings[rankings["mode"] == "paged"]
    scored = rerank[(rerank["mode"] == "paged") & (rerank["status"] == "scored")].set_index("session_id")
    rankings = rankings[rankings["session_id"].isin(scored.index)]
    assert len(scored) > 5
    run = ranx.Run({str(s): dict(zip(g["item_key"].astype(str), -g["rank"].astype(float), strict=True))
                    for s, g in rankings.groupby("session_id")})  # fmt: skip
    binary, graded = {}, {}
    for session, group in rankings[rankings["feedback"] >= 2].groupby("session_id"):
        binary[str(session)] = dict.fromkeys(group["item_key"].astype(str), 1)
        graded[str(session)] = dict(zip(group["item_key"].astype(str), group["reward"].astype(int), strict=True))
    for ours, theirs, labels in (
        ("map", "map", binary),
        ("mrr", "mrr", binary),
        ("ndcg_10", "ndcg@10", binary),
        ("precision_20", "precision@20", binary),
        ("recall_20", "recall@20", binary),
        ("hit_5", "hit_rate@5", binary),
        ("ndcg_reward_20", "ndcg@20", graded),
    ):
        found = ranx.evaluate(ranx.Qrels(labels), run, theirs, return_mean=False)
        sessions = [int(session) for session in sorted(labels)]  # ranx evaluates in the order of the sorted ids
        np.testing.assert_allclose(scored.loc[sessions, ours], found, atol=1e-9, err_msg=ours)


def test_the_metrics_agree_with_an_independent_library_on_the_published_rankings(tiny: Run) -> None:
    assert_agrees_with_ranx(tiny, "goalrec_off")


def altered(tiny: Run, **changes: object) -> Plan:
    """The plan of the same folder with other settings."""
    document = tiny.experiment.model_dump(mode="json") | changes
    return Plan(Experiment.model_validate(document), tiny.folder / "storage")


def test_another_setting_of_one_agent_makes_that_agent_alone_stale(tiny: Run) -> None:
    agents = {**TINY["agents"], "goalrec_off": {"learning_rate": 0.5}}  # type: ignore[dict-item]
    stale = altered(tiny, agents=agents).stale_tables()
    assert {table: parts for table, parts in stale.items() if STEPS[table].kind == "agent"} == {
        table: ["goalrec_off"] for table in ("agents", "rankings", "rerank", "rollout", "ope")
    }
    together = {"leaderboard", "goal_sweep", "verdicts", "results", "report"}
    assert set(stale) == {"agents", "rankings", "rerank", "rollout", "ope", *together}


def test_other_rewards_spare_the_events_and_other_seeds_spare_the_trajectories(tiny: Run) -> None:
    assert not {"manifest", "events", "rejects"} & set(altered(tiny, rewards={"purchase": 9.0}).stale_tables())
    assert "impressions" in altered(tiny, rewards={"purchase": 9.0}).stale_tables()
    assert not {"trajectories", "simulators", "sessions"} & set(altered(tiny, seeds=[1, 2]).stale_tables())


def test_a_deleted_product_is_made_again(tiny: Run) -> None:
    tiny.plan.report.unlink()
    assert list(tiny.plan.stale_tables()) == ["report"]
    assert tiny.command("report").returncode == 0
    assert tiny.plan.stale_tables() == {}


def test_questions_are_answered_in_the_terminal(tiny: Run) -> None:
    answer = tiny.command("query", "paired_difference", "a=goalrec_off", "b=random")
    assert answer.returncode == 0, answer.stderr
    assert "ndcg_reward_20" in answer.stdout
    unknown = tiny.command("query", "leaderbord")
    assert unknown.returncode == 2
    assert "did you mean 'leaderboard'?" in unknown.stderr


def test_the_same_inputs_give_the_same_bytes(tiny: Run, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, TINY | {"agents": {"popularity": {}, "goalrec_off": {}}})
    done = command(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    plan = Plan(experiment, tmp_path / "storage")
    for table in ("events", "impressions", "sessions", "features", "items", "item_embeddings", "trajectories"):
        first, second = ([path.read_bytes() for path in p.store.files(table)] for p in (tiny.plan, plan))
        assert first == second, table
    for table in ("rankings", "rerank", "rollout"):
        first, second = (p.store.files(table, ["goalrec_off"])[0].read_bytes() for p in (tiny.plan, plan))
        assert first == second, table
    folders = [p.store.require("agents", "goalrec_off").folder / "seed-11" for p in (tiny.plan, plan)]
    first, second = ((folder / "weights.safetensors").read_bytes() for folder in folders)
    assert first == second


BAD_RUNS = [
    ({"EXPERIMENT": "demmo"}, "There is no experiment 'demmo'; did you mean 'demo'?"),
    ({"EXPERIMENT": "movielens-100k", "RAW": "/nowhere"}, "/nowhere"),
    ({"EXPERIMENT": "movielens-100k"}, "RAW"),
]


@pytest.mark.parametrize(("environment", "message"), BAD_RUNS)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    done = command(tmp_path, "demo", **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("hindsight: ")
    assert "Traceback" not in done.stderr


BAD_LOGS = [
    ("1\t10\t5\t881250949\n" * 3, "too small to split"),
    ("1\t10\t7\t881250949\n2\t11\t9\t881250950\n", "no usable"),
    ("".join(f"1\t{n}\t{1 + 4 * (n % 2)}\t{881250949 + 86400 * (n // 2)}\n" for n in range(80)), ""),
]


@pytest.mark.parametrize(
    ("log", "message"), BAD_LOGS, ids=["three copies of a row", "bad ratings only", "a single user"]
)
def test_a_log_that_cannot_be_used_ends_in_one_sentence(tmp_path: Path, log: str, message: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "u.data").write_text(log)
    document = {
        "name": "small",
        "source": {"kind": "movielens"},
        "partitions": {"grain": "month", "start": "1997-09-01", "end": "1998-05-01"},
        "agents": {"popularity": {}, "random": {}},
        "seeds": [11],
        "profile": "demo",
        "budget": {"simulator_steps": 2, "bootstrap": 100},
    }
    write_experiment(tmp_path, document)
    done = command(tmp_path, "demo", RAW=str(raw))
    assert "Traceback" not in done.stderr + done.stdout
    if message:
        assert done.returncode == 2
        assert message in done.stderr
    else:  # a single user is no reason to refuse: intervals are empty, and the table says so
        assert done.returncode == 0, done.stderr


def test_agent_settings_are_checked_before_anything_runs(tiny: Run, tmp_path: Path) -> None:
    document = TINY | {"agents": {"popularity": {}, "goalrec_off": {"lerning_rate": 1}}}
    write_experiment(tmp_path, document)
    done = command(tmp_path, "demo")
    assert done.returncode == 2
    assert "agents.goalrec_off: unknown key 'lerning_rate'; did you mean 'learning_rate'?" in done.stderr


@pytest.fixture(scope="module")
def movielens(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The shipped MovieLens 100K experiment on the real files, with the agents that train fast."""
    folder = tmp_path_factory.mktemp("movielens")
    shipped = load_experiment("movielens-100k").model_dump(mode="json")
    few = {name: shipped["agents"][name] for name in ("random", "popularity", "logged_order", "ideal", "goalrec_off")}
    budget = {"gradient_steps": 20, "validate_every": 10, "simulator_steps": 3, "bootstrap": 100}
    raw = str(real_data / "ml-100k")
    experiment = write_experiment(folder, shipped | {"agents": few, "seeds": [11], "budget": budget})
    first = command(folder, "demo", RAW=raw)
    assert first.returncode == 0, first.stdout + first.stderr
    return Run(folder, experiment, first)


def test_real_movielens_files_give_a_report_that_says_what_was_constructed(movielens: Run) -> None:
    plan = movielens.plan
    assert "What was shown is constructed" in plan.report.read_text(encoding="utf-8")
    counts = read_table(plan.store.files("ingest_counts"), "ingest_counts").to_pylist()
    assert [(row["rows_in"], row["events"], row["duplicates"], row["rejects"]) for row in counts] == [
        (100_000, 100_000, 0, 0)
    ]
    board = read_table(plan.store.files("leaderboard"), "leaderboard").to_pandas()
    assert set(board["leg"]) == {"rerank"}
    assert set(query(plan.results, "leaderboard")["agent"].to_pylist()) == set(movielens.experiment.agents)


def test_the_metrics_of_the_movielens_run_agree_with_an_independent_library(movielens: Run) -> None:
    for agent in ("goalrec_off", "popularity"):
        assert_agrees_with_ranx(movielens, agent)


def test_a_failed_integrity_check_stops_what_comes_after_it_in_this_run_and_in_the_next(tmp_path: Path) -> None:
    """Rows that went missing are simulated by the answer of the check: the runs must stop at the events."""
    experiment = write_experiment(tmp_path, TINY | {"agents": {"popularity": {}}})
    code = (
        "import sys, pipeline.conservation as conservation; from pipeline.__main__ import main; "
        "conservation.check_conservation = lambda counts, events: ['u.data: 3 are missing.']; sys.exit(main(['demo']))"
    )
    for _ in range(2):
        done = python(tmp_path, "-c", code)
        assert done.returncode == 2
        assert "the check conservation failed, so nothing after it was made. u.data: 3 are missing." in done.stderr
        plan = Plan(experiment, tmp_path / "storage")
        assert plan.store.parts("events") == plan.store.parts("impressions") == []
        assert not list(plan.staging.glob("*/counts.json"))  # rows may have gone there: it is parsed again
    done = command(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    assert plan.store.parts("events") == plan.parts("events")
