"""Which runs are compared: of two experiments, two files, or the present and the previous run of one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.report.origins import changed_files, changed_modules, changed_origins, changed_settings
from pipeline.report.runs import two_runs
from pipeline.results import build_results, read
from pipeline.storage import Store, fingerprint
from tests.pipeline.report.builders import moved
from tests.published import PROVENANCE, demo_tables, publish, table

PARTS = {"rerank": ["goalrec_off", "popularity"], "rollout": ["goalrec_off", "popularity"]}


def publish_run(store: Store, tables: dict[str, pa.Table], code: str, steps: int) -> None:
    """One run as the pipeline publishes it: agents, then their legs, then the leaderboard over them."""
    made: dict[str, str] = {}
    for home, needed in {"agents": ["goalrec_off", "popularity"], **PARTS}.items():
        inputs = {f"agents/{agent}": made[f"agents/{agent}"] for agent in needed} if home != "agents" else {}
        recipes = {
            agent: {"table": home, "part": agent, "inputs": {k: v for k, v in inputs.items() if k.endswith(agent)},
                    "code": {"pipeline.training": code, "models.layers": "same"},
                    "settings": [{"gradient_steps": steps, "batch_size": 32}]}
            for agent in needed
        }  # fmt: skip
        with store.publish(home, recipes) as aside:
            for agent in needed:
                if home in tables:
                    frame = tables[home].to_pandas()
                    rows = table(home, frame[frame.agent == agent].to_dict("records"))
                    publish(aside / agent, {home: rows})
        made |= {f"{home}/{agent}": fingerprint(recipes[agent]) for agent in needed}
    inputs = {key: name for key, name in made.items() if not key.startswith("agents/")}
    recipe = {"table": "leaderboard", "part": "all", "inputs": inputs, "code": {}, "settings": [None]}
    with store.publish("leaderboard", {"all": recipe}) as aside:
        publish(aside / "all", {"leaderboard": tables["leaderboard"]})
    folder = store.root / "manifest" / "all" / PROVENANCE["data_hash"]  # a data hash names a manifest
    publish(folder, {"manifest": tables["manifest"]})
    build_results(publish(store.root / "flat", tables), store.root / "results.duckdb")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that ran twice: the second time with other code, more steps and one better agent."""
    root = tmp_path_factory.mktemp("storage")
    publish_run(Store(root / "demo"), demo_tables(), "c0de", 250)
    publish_run(Store(root / "demo"), moved("goalrec_off", 0.5), "beef", 500)
    return root


@pytest.fixture(autouse=True)
def _here(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HINDSIGHT_STORAGE", str(storage))


def test_the_previous_run_of_an_experiment_is_found_with_the_rows_behind_it(storage: Path) -> None:
    with two_runs("demo") as (before, after):
        assert (before.name, after.name) == ("demo, previous run", "demo")
        assert after.results == storage / "demo" / "results.duckdb"
        assert set(read(before.results, "leaderboard")["code_hash"].to_pylist()) == {PROVENANCE["code_hash"]}
        assert set(read(before.results, "rollout")["agent"].to_pylist()) == {"goalrec_off", "popularity"}
        assert read(before.results, "manifest")["hash"].to_pylist() == ["f00d"]
        old = read(before.results, "rollout").to_pandas().groupby("agent")["return"].mean()
        new = read(after.results, "rollout").to_pandas().groupby("agent")["return"].mean()
        assert new["goalrec_off"] - old["goalrec_off"] == pytest.approx(0.5)
        assert new["popularity"] == old["popularity"]
    assert not before.results.exists()


def test_what_both_runs_were_made_with_is_compared_part_by_part() -> None:
    with two_runs("demo") as (before, after):
        assert changed_modules(before, after) == ["pipeline.training"]
        changes = changed_settings(before, after)
        assert {change[:3] for change in changes} == {("gradient_steps", "250", "500")}
        assert [change.part for change in changes] == sorted(
            f"{home}/{agent}" for home in ("agents", *PARTS) for agent in ("goalrec_off", "popularity")
        )
        assert [row for row in changed_origins(before, after) if row[1] != row[2]] == [
            ("Code", PROVENANCE["code_hash"], "beef" * 4)
        ]
        assert list(changed_files(before, after)) == []


def test_files_are_new_gone_or_changed(tmp_path: Path) -> None:
    for name, files in (("a", {"x": "1", "y": "1", "z": "1"}), ("b", {"x": "1", "y": "2", "w": "1"})):
        rows = table("manifest", [{"path": path, "hash": content} for path, content in files.items()])
        build_results(publish(tmp_path / f"{name}.files", {"manifest": rows}), tmp_path / name / "results.duckdb")
    with two_runs(str(tmp_path / "a" / "results.duckdb"), str(tmp_path / "b" / "results.duckdb")) as (before, after):
        assert (before.name, after.name) == ("a", "b")
        assert list(changed_files(before, after)) == [("w", "new"), ("y", "changed"), ("z", "gone")]


def test_rows_that_are_no_longer_kept_are_left_out(storage: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    publish_run(store, demo_tables(), "c0de", 250)
    publish_run(store, demo_tables(), "beef", 250)
    with store.publish("rollout", {"popularity": {"inputs": {}, "code": {}, "settings": []}}) as aside:
        publish(aside / "popularity", {"rollout": table("rollout", [])})  # the oldest of three versions goes
    with two_runs(str(tmp_path / "demo" / "results.duckdb")) as (before, _):
        assert set(read(before.results, "rollout")["agent"].to_pylist()) == {"goalrec_off"}
        assert set(read(before.results, "rerank")["agent"].to_pylist()) == {"goalrec_off", "popularity"}


def test_rows_of_another_version_of_the_code_are_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    publish_run(store, demo_tables(), "c0de", 250)
    (path,) = store.require("rollout", "popularity").files
    pq.write_table(pq.read_table(path).drop_columns(["setting"]), path)
    publish_run(store, demo_tables(), "beef", 250)
    with two_runs(str(tmp_path / "demo" / "results.duckdb")) as (before, _):
        assert set(read(before.results, "rollout")["agent"].to_pylist()) == {"goalrec_off"}


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("storefrond", ""), ConfigError, "no experiment 'storefrond'"),
        (("demo", "nowhere/results.duckdb"), StorageError, "There are no results at nowhere/results.duckdb"),
        (("movielens-100k", ""), StorageError, "run make demo EXPERIMENT=movielens-100k"),
        (("{new}/results.duckdb", ""), StorageError, "no previous run"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    names: tuple[str, str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    build_results({}, tmp_path / "results.duckdb")
    with pytest.raises(error, match=message), two_runs(names[0].format(new=tmp_path), names[1]):
        pass
