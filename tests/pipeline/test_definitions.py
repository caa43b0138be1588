"""Dagster's side: what loads, how fast it may be, and that every promise of the design holds for every asset."""

import subprocess
import sys

import dagster as dg
import pytest

from pipeline.definitions import defs
from pipeline.defs.assets import EXPERIMENT, partitions
from pipeline.defs.automation import inbox, nightly, range_tags, stale_assets
from pipeline.experiment import PROJECT
from pipeline.partitions import partitions_of
from pipeline.plan import STEPS
from pipeline.schemas import SCHEMAS

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


def test_a_changed_manifest_asks_for_every_partition() -> None:
    keys = [p.key for p in partitions_of(EXPERIMENT.partitions)]
    tags = range_tags({"manifest": ["all"]})
    assert list(tags.values()) == [keys[0], keys[-1]]


def test_the_schedule_asks_for_a_run_of_what_is_stale(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.Plan.stale_tables", lambda self: {"leaderboard": ["all"]})
    monkeypatch.setattr("pipeline.plan.storage_root", lambda: tmp_path)
    request = nightly(dg.build_schedule_context())
    assert isinstance(request, dg.RunRequest)
    assert request.asset_selection == [dg.AssetKey([EXPERIMENT.name, "leaderboard"])]
    monkeypatch.setattr("pipeline.plan.Plan.stale_tables", lambda self: {})
    assert isinstance(nightly(dg.build_schedule_context()), dg.SkipReason)


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
