"""Dagster's side: what loads, how fast it may be, and that every promise of the design holds for every asset."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.definitions import defs
from pipeline.defs.assets import EXPERIMENT, partitions
from pipeline.defs.automation import inbox, nightly, onwards, range_tags, stale_assets
from pipeline.defs.checks import as_before, judged, to_judge
from pipeline.experiment import PROJECT
from pipeline.partitions import partitions_of
from pipeline.plan import STEPS, TOGETHER, Plan
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store, link

GROUPS = ["logs", "sessions", "features", "simulators", "trajectories", "agents", "evaluation", "reports"]
GRAPH = defs.resolve_asset_graph()
KEYS = sorted(GRAPH.get_all_asset_keys())


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh interpreter has after a statement."""
    code = f"{statement}; import sys; print(' '.join(sorted(name for name in sys.modules if '.' not in name)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_code_location_loads_without_the_heavy_packages() -> None:
    loaded = loaded_by("import pipeline.definitions")
    assert not {"torch", "pandas", "sklearn", "matplotlib", "scipy", "d3rlpy", "plotly"} & loaded


DOMAIN = [
    "pipeline.training",
    "pipeline.simulation",
    "pipeline.evaluation.run",
    "pipeline.evaluation.legs",
    "pipeline.evaluation.verdicts",
    "pipeline.products",
    "pipeline.ingest",
    "pipeline.features",
    "models.goalrec",
    "models.d3rlpy_baselines",
]


def test_the_domain_never_imports_dagster() -> None:
    assert "dagster" not in loaded_by("import " + ", ".join(DOMAIN))


def test_listing_agents_imports_no_torch() -> None:
    assert "torch" not in loaded_by("import models; models.AGENTS")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: "/".join(key.path))
def test_every_asset_has_a_single_run_policy_and_says_what_it_is(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)
    assert key.path[0] == EXPERIMENT.name
    assert node.backfill_policy == dg.BackfillPolicy.single_run()
    assert node.group_name in GROUPS
    assert node.owners
    assert node.kinds
    assert node.code_version
    assert node.description
    assert node.pools


def test_every_step_is_an_asset_and_so_is_every_user_model_and_every_agent() -> None:
    tables = {key.path[1] for key in KEYS if len(key.path) == 2}
    assert tables == set(STEPS) - {"agents", "simulators"}
    parts = {"agents": EXPERIMENT.agents, "simulators": EXPERIMENT.simulators.settings}
    for table, names in parts.items():
        assert {key.path[2] for key in KEYS if len(key.path) == 3 and key.path[1] == table} == set(names)


def test_the_partitioned_tables_are_partitioned_and_the_snapshots_are_not() -> None:
    partitioned = {key.path[1] for key in KEYS if GRAPH.get(key).is_partitioned}
    assert partitioned == {table for table, step in STEPS.items() if step.kind == "time"}
    assert partitioned == {"events", "mentions", "impressions", "sessions", "features"}


def test_dagster_and_the_files_at_rest_have_the_same_partitions() -> None:
    assert [p.key for p in partitions_of(EXPERIMENT.partitions)] == list(partitions.get_partition_keys())


def test_assets_depend_on_what_their_steps_read() -> None:
    for key in KEYS:
        table = key.path[1]
        parents = {parent.path[1] for parent in GRAPH.get(key).parent_keys}
        assert parents == {*STEPS[table].inputs, *STEPS[table].after}, table


def test_a_ranker_by_a_user_model_depends_on_that_user_model_and_no_other_agent_does(tmp_path) -> None:
    """In a process of its own, because the experiment is read when the location loads."""
    experiment = tmp_path / "mine.yaml"
    experiment.write_text(
        "name: mine\nsource: {kind: movielens}\npartitions: {start: 1997-09-01, end: 1997-10-01}\n"
        "agents: {popularity: {}, greedy_simulator: {}, other: {agent: greedy_simulator, simulator: feedback}}\n"
        "simulators: {train: {rnn: {}, feedback: {}}}\n"
    )
    code = """
from pipeline.definitions import defs
graph = defs.resolve_asset_graph()
for key in sorted(key for key in graph.get_all_asset_keys() if "agents" in key.path):
    print(key.path[-1], *(parent.path[-1] for parent in graph.get(key).parent_keys if "simulators" in parent.path))
"""
    environment = {"EXPERIMENT": str(experiment), "HINDSIGHT_STORAGE": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:-1] == ["greedy_simulator rnn", "other feedback", "popularity"]


def test_published_tables_carry_their_columns_as_metadata() -> None:
    for key in KEYS:
        if len(key.path) == 2 and key.path[1] in SCHEMAS:
            schema = GRAPH.get(key).metadata["dagster/column_schema"]
            assert [column.name for column in schema.columns] == SCHEMAS[key.path[1]].names


def test_integrity_is_guarded_by_blocking_checks() -> None:
    checks = {key.name: GRAPH.get(key) for key in GRAPH.asset_check_keys}
    for name in ("conservation", "split_order", "no_future_in_features", "schema"):
        assert checks[name].blocking
    for name in EXPERIMENT.simulators.settings:
        assert not checks[f"{name}_passes"].blocking


def publish(store: Store, table: str, part: str, setting: int = 0, file: Path | None = None) -> None:
    """A part of one file: a new one, or a link to ``file``."""
    with store.publish(table, {part: {"part": part, "setting": setting}}) as aside:
        path = aside / part / f"{table}.parquet"
        path.parent.mkdir()
        link(file, path) if file else path.write_text("rows")


def test_a_check_judges_what_has_not_passed_it_and_by_itself_all_of_it(tmp_path: Path) -> None:
    plan = Plan(EXPERIMENT, tmp_path)
    days = plan.parts("events")[:5]
    for part in (*days, "1999-01-01"):  # the last as of an earlier time range
        publish(plan.store, "events", part)
    assert judged(plan, "events", "schema", to_judge(plan, "events", "schema")[:3], []).passed
    assert to_judge(plan, "events", "schema") == days[3:]
    assert to_judge(plan, "events", "conservation") == days
    judged(plan, "events", "schema", days[3:], [])
    assert to_judge(plan, "events", "schema") == days
    publish(plan.store, "events", days[1])  # made again
    assert to_judge(plan, "events", "schema") == [days[1]]


def test_what_fails_a_check_is_published_no_more_however_many_checks_it_fails(tmp_path: Path) -> None:
    plan = Plan(EXPERIMENT, tmp_path)
    days = plan.parts("events")[:3]
    for setting in (0, 1):
        for part in days:
            publish(plan.store, "events", part, setting)
    for check in ("conservation", "reject_ceiling"):
        assert not judged(plan, "events", check, days[1:], ["rows are missing"]).passed
    assert plan.store.parts("events") == days[:1]
    assert len(plan.store.versions("events", days[0])) == 2


@pytest.mark.parametrize("table", [table for tables in TOGETHER for table in tables])
def test_tables_that_one_asset_makes_are_stale_together(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(EXPERIMENT, tmp_path)
    part = plan.parts(table)[0]
    monkeypatch.setattr(plan, "stale", lambda name: [part] if name == table else [])
    (tables,) = [tables for tables in TOGETHER if table in tables]
    assert plan.stale_tables() == {name: [part] for name in tables}
    selected = stale_assets(plan.stale_tables())
    assert defs.resolve_job_def("materialize_all").get_subset(asset_selection=set(selected))


def test_every_asset_of_several_tables_is_known_to_the_plan() -> None:
    several = {frozenset(k.path[1] for k in GRAPH.get(one).execution_set_asset_keys) for one in KEYS}
    assert {tables for tables in several if len(tables) > 1} == set(map(frozenset, TOGETHER))


def test_features_are_not_recounted_where_they_are_a_file_that_passed(tmp_path: Path) -> None:
    store, check = Store(tmp_path), "no_future_in_features"
    for part, file in {"linked": True, "made": False, "linked, but never passed": True}.items():
        publish(store, "features", part, 0)
        assert not as_before(store, "features", part, check)  # the first version
        if "never" not in part:
            store.mark_passed("features", [part], check)
        publish(store, "features", part, 1, store.files("features", [part])[0] if file else None)
    assert [part for part in store.parts("features") if as_before(store, "features", part, check)] == ["linked"]


def test_one_run_covers_the_range_of_stale_partitions() -> None:
    stale = {"events": ["2024-01-03", "2024-01-05"], "leaderboard": ["all"]}
    assert range_tags(stale) == {
        "dagster/asset_partition_range_start": "2024-01-03",
        "dagster/asset_partition_range_end": "2024-01-05",
    }
    assert stale_assets({"agents": ["bc"], "events": ["2024-01-03"]}) == [
        dg.AssetKey([EXPERIMENT.name, "agents", "bc"]),
        dg.AssetKey([EXPERIMENT.name, "events"]),
    ]


def test_the_run_of_a_manifest_alone_covers_one_partition() -> None:
    last = partitions_of(EXPERIMENT.partitions)[-1].key
    assert list(range_tags({"manifest": ["all"]}).values()) == [last, last]


def test_a_stale_manifest_is_made_alone_unless_it_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = {"manifest": ["all"], "events": ["2024-01-03"]}
    monkeypatch.setattr(Plan, "stale_tables", lambda self: stale)
    plan = Plan(EXPERIMENT, tmp_path)
    assert plan.next_run() == stale
    publish(plan.store, "manifest", "all")
    assert plan.next_run() == {"manifest": ["all"]}
    monkeypatch.setattr(Plan, "stale_tables", lambda self: {"events": ["2024-01-03"]})
    assert plan.next_run() == {"events": ["2024-01-03"]}


def test_the_schedule_asks_for_a_run_of_what_is_stale(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.Plan.next_run", lambda self: {"leaderboard": ["all"]})
    monkeypatch.setattr("pipeline.plan.storage_root", lambda: tmp_path)
    request = nightly(dg.build_schedule_context())
    assert isinstance(request, dg.RunRequest)
    assert request.asset_selection == [dg.AssetKey([EXPERIMENT.name, "leaderboard"])]
    monkeypatch.setattr("pipeline.plan.Plan.next_run", lambda self: {})
    assert isinstance(nightly(dg.build_schedule_context()), dg.SkipReason)


def after_run(selection: set[dg.AssetKey], tags: dict[str, str]) -> Any:
    """What follows a run that succeeded."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun(job_name="materialize_all", asset_selection=frozenset(selection), tags=tags)
        event = dg.DagsterEvent("PIPELINE_SUCCESS", run.job_name)
        return onwards(dg.build_run_status_sensor_context("onwards", event, instance, run))


BY_SENSOR = {"dagster/sensor_name": "inbox"}


def test_the_rest_is_asked_for_once_the_manifest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = {"events": ["2024-01-03"], "impressions": ["2024-01-02", "2024-01-03"]}
    monkeypatch.setattr("pipeline.plan.Plan.next_run", lambda self: stale)
    manifest = dg.AssetKey([EXPERIMENT.name, "manifest"])
    for tags in (BY_SENSOR, {"dagster/schedule_name": "nightly"}):
        asked = after_run({manifest}, tags)
        assert asked.tags == range_tags(stale)
        assert asked.asset_selection == stale_assets(stale)
    assert isinstance(after_run({manifest}, {}), dg.SkipReason)  # a person's run, or that of `make demo`
    assert isinstance(after_run({manifest, *stale_assets(stale)}, BY_SENSOR), dg.SkipReason)


def test_the_sensor_has_nothing_to_watch_in_the_storefront() -> None:
    answer = inbox(dg.build_sensor_context())
    assert isinstance(answer, dg.SkipReason)
    assert "makes its own log" in str(answer.skip_message)


def test_the_sensor_asks_once_for_new_files(tmp_path) -> None:
    """In a process of its own, because the experiment is read when the location loads."""
    code = """
import dagster as dg
from pipeline.defs.automation import inbox
context = dg.build_sensor_context()
first = inbox(context)
assert isinstance(first, dg.RunRequest), first
assert isinstance(inbox(context), dg.SkipReason)
from pathlib import Path
import os
(Path(os.environ["RAW"]) / "u.data").write_text("1\\t2\\t3\\t881250949\\n1\\t3\\t3\\t881250950\\n")
assert isinstance(inbox(context), dg.RunRequest)
"""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "u.data").write_text("1\t2\t3\t881250949\n")
    environment = {"EXPERIMENT": "movielens-100k", "RAW": str(raw), "HINDSIGHT_STORAGE": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
