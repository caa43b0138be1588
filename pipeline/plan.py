"""What is made from what: every step, its inputs, its code and its settings, and so the fingerprint of each part.

A fingerprint is computed from the fingerprints of the inputs, down to the content of the raw files alone, so the whole
plan is known before anything runs: a part is stale exactly when its fingerprint is not the published one.
"""

import shutil
import subprocess
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from pipeline.experiment import PROJECT, Experiment, simulator_class
from pipeline.ingest import discovered, staged_folders
from pipeline.partitions import Partition, partitions_of
from pipeline.schemas import SCHEMAS
from pipeline.sources import open_source
from pipeline.sources.base import RawFile, Source
from pipeline.storage import WHOLE, Store, code_fingerprint, fingerprint, storage_root
from pipeline.warehouse import read_table

DAY = timedelta(days=1)
NONE = timedelta(0)
BESIDE = {  # table → its home
    "simulator_reliability": "simulator_gate",
    "simulator_answers": "simulator_gate",
    "simulator_twins": "simulator_gate",
    "training_log": "agents",
    "validation_scores": "agents",
    "coverage": "rollout",
    "unsupported": "leaderboard",
    "ope_calibration": "decisions",
    "ope_chances": "decisions",
    "ope_pages": "ope",
    "ope_proof_logs": "ope_proof",
    "comparisons": "verdicts",
    "agreement": "verdicts",
}
HISTORY = "history"  # the table that no step makes: publishing results adds to it, and nothing makes it stale
PRODUCTION = "logging"  # the ranker that made the log: a row of legs 2 (storefront) and 3 without being an agent
# Of the budget: what no agent's training reads.
NOT_TRAINING = {"bootstrap", "simulator_steps", "rollout_users", "proof_logs"}
TOGETHER = (("impressions", "sessions"), ("items", "users"), ("rankings", "rerank"))  # tables that one asset makes
RAW_KINDS = {"entities": {"items", "users"}, "pools": {"pools"}}  # tables that are made of raw files of some kinds
READ_BY_THE_SOURCE = {"manifest", "entities", "rollout", "goal_sweep"}  # the last two: its truth, where it has one
LIBRARIES = ("duckdb", "numpy", "pandas", "pyarrow", "scikit-learn", "torch", "d3rlpy", "dagster")


@dataclass(frozen=True)
class Step:
    """One published table and how it comes about. ``inputs`` maps a table to the time read before and after a part."""

    table: str
    group: str
    description: str
    module: str  # the domain module whose code makes it
    inputs: Mapping[str, tuple[timedelta, timedelta]] = field(default_factory=dict)
    settings: Callable[[Experiment], Any] = lambda experiment: None
    kind: Literal["whole", "time", "agent", "simulator"] = "whole"
    after: tuple[str, ...] = ()  # steps that come first in a run, although nothing of them is read


def _reads(*tables: str, before: timedelta = NONE, after: timedelta = NONE) -> dict[str, tuple[timedelta, timedelta]]:
    return dict.fromkeys(tables, (before, after))


def _shape(experiment: Experiment) -> Any:
    """The settings that shape a state: what trajectories, agents and evaluation share."""
    return experiment.sessions.rows, experiment.sessions.cols, experiment.history, experiment.rewards


def _truth(experiment: Experiment) -> Any:
    """What a storefront's truth depends on; of other logs there is none."""
    return experiment.source if experiment.source.kind == "storefront" else experiment.source.kind


_WORLD = ("items", "users", "item_embeddings", "trajectories")  # what a Task is made of

STEPS = {
    step.table: step
    for step in (
        Step("manifest", "logs", "The raw files: hash, size, rows, and the partitions that each touches.",
             "pipeline.ingest", settings=lambda e: (e.source.model_dump(mode="json", exclude={"path"}), e.partitions)),
        Step("rejects", "logs", "Every refused input row with its file, line and reason. Holds personal data.",
             "pipeline.ingest", _reads("manifest")),
        Step("events", "logs", "Canonical events, deduplicated and sorted, one file a period.",
             "pipeline.ingest", _reads("manifest"), kind="time"),
        Step("ingest_counts", "logs", "Rows in, events, duplicates and rejects of every raw file.",
             "pipeline.ingest", _reads("manifest", "events", "rejects")),
        Step("entities", "logs", "What the log's catalogues say: titles, categories, prices, features.",
             "pipeline.entities", _reads("manifest")),
        Step("pools", "logs", "What each request could have shown, where the log says it.",
             "pipeline.pools", _reads("manifest")),
        Step("mentions", "logs", "What the log says of items as it shows them: category, brand, shop.",
             "pipeline.entities", _reads("events"), kind="time"),
        Step("impressions", "sessions", "Shown items with what came of each, by session, page and slot.",
             "pipeline.sessions", _reads("events", before=2 * DAY, after=2 * DAY), kind="time",
             settings=lambda e: (e.sessions, e.rewards, getattr(e.source, "positive_above", None))),
        Step("sessions", "sessions", "Sessions: a user's visit, from its first event to an inactivity gap.",
             "pipeline.sessions", _reads("events", before=2 * DAY, after=2 * DAY), kind="time",
             settings=lambda e: (e.sessions, e.rewards, getattr(e.source, "positive_above", None))),
        Step("data_report", "sessions", "What was ingested, in figures; with a page of its own, data.html.",
             "pipeline.report.data", _reads("events", "impressions", "sessions", "rejects", "ingest_counts"),
             lambda e: (e.name, e.description, e.partitions.grain)),
        Step("splits", "sessions", "The cut-offs in global time; sessions that cross one are dropped and counted.",
             "pipeline.splits", _reads("sessions"), lambda e: e.splits),
        Step("items", "sessions", "The items; dense index, categories and counts from the training window only.",
             "pipeline.entities", _reads("entities", "mentions", "impressions", "sessions", "splits")),
        Step("users", "sessions", "The users; dense index from the training window only.",
             "pipeline.entities", _reads("entities", "impressions", "sessions", "splits")),
        Step("features", "features", "Item, user, user-item and context, strictly before each impression.",
             "pipeline.features", {**_reads("impressions", "mentions", before=8 * DAY), **_reads("entities")},
             kind="time"),
        Step("item_embeddings", "features", "SVD of the shifted PPMI matrix over training sessions.",
             "pipeline.embeddings", _reads("impressions", "sessions", "splits", "items"), lambda e: e.embeddings),
        Step("trajectories", "trajectories", "Page transitions of the training window, with their goals.",
             "pipeline.trajectories",
             _reads("impressions", "sessions", "splits", "items", "users", "item_embeddings", "features"),
             lambda e: (_shape(e), e.hindsight)),
        Step("candidates", "trajectories", "Validation and test sessions: the state at their start, the items to rank.",
             "pipeline.trajectories",
             _reads("impressions", "sessions", "splits", "items", "users"), _shape),
        Step("simulators", "simulators", "A user model: an ensemble, fitted on its side's window and calibrated later.",
             "pipeline.simulation", _reads("impressions", "sessions", "splits", *_WORLD), kind="simulator",
             settings=lambda e: (e.simulators.members, e.simulators.seed, e.budgets().simulator_steps, _shape(e),
                                 e.device)),
        Step("simulator_gate", "simulators", "What each user model reaches on sessions later than its own.",
             "pipeline.simulation", _reads("simulators", "impressions", "sessions", "splits", *_WORLD),
             lambda e: (e.gate, _shape(e), e.device)),
        Step("agents", "agents", "Trained weights of every seed, and the training log.",
             "pipeline.training", _reads("candidates", *_WORLD), kind="agent",
             settings=lambda e: (e.budgets().model_dump(exclude=NOT_TRAINING), e.seeds, e.device, _shape(e))),
        Step("rankings", "evaluation", "Leg 1: every candidate of every test session as each agent and seed ranks it.",
             "pipeline.evaluation.run", _reads("agents", "candidates", *_WORLD), kind="agent", settings=_shape),
        Step("rerank", "evaluation", "Leg 1: the metrics of every test session under each agent and seed.",
             "pipeline.evaluation.run", _reads("agents", "candidates", *_WORLD), kind="agent", settings=_shape),
        Step("rollout", "evaluation", "Leg 2: each agent in each user model that passed its gate, a row an episode.",
             "pipeline.evaluation.run",
             _reads("agents", "simulators", "simulator_gate", "impressions", "sessions", *_WORLD), kind="agent",
             settings=lambda e: (_shape(e), _truth(e), e.rollouts, e.budgets().rollout_users, e.seeds[0])),
        Step("decisions", "evaluation", "Logged test pages with what they could have shown and its propensities.",
             "pipeline.evaluation.decisions",
             _reads("events", "pools", "impressions", "sessions", "splits", *_WORLD),
             lambda e: (_shape(e), e.ope, e.seeds[0])),
        Step("ope", "evaluation", "Leg 3: off-policy estimates from the log alone, with their diagnostics.",
             "pipeline.evaluation.off_policy", _reads("agents", "decisions", *_WORLD), kind="agent",
             settings=lambda e: (_shape(e), e.ope)),
        Step("ope_proof", "evaluation", "The estimators held against the storefront's truth.",
             "pipeline.evaluation.ope_proof", settings=lambda e: (e.source.kind, e.budgets().proof_logs),
             after=("decisions",)),
        Step("leaderboard", "evaluation", "Each agent, leg and metric: mean, interval, difference to the reference.",
             "pipeline.evaluation.legs", _reads("rerank", "rollout", "ope", "simulator_gate"),
             lambda e: (e.reference, e.budgets().bootstrap)),
        Step("goal_sweep", "evaluation", "One trained model under a grid of goals: what it can be asked for.",
             "pipeline.evaluation.goal_sweep",
             _reads("agents", "simulators", "simulator_gate", "impressions", "sessions", *_WORLD),
             lambda e: (_shape(e), _truth(e), e.rollouts, e.budgets().rollout_users, e.seeds)),
        Step("decoding", "evaluation", "What a greedy decoder reaches of the best decoded return.",
             "pipeline.evaluation.decoding",
             _reads("simulators", "simulator_gate", "impressions", "sessions", *_WORLD),
             lambda e: (_shape(e), e.rollouts, e.budgets().rollout_users, e.seeds[0])),
        Step("verdicts", "evaluation", "What may be said of this run, by rule, and the comparisons it rests on.",
             "pipeline.evaluation.verdicts",
             _reads("leaderboard", "rerank", "rollout", "ope", "decoding", "simulator_gate"),
             lambda e: (e.reference, e.budgets().bootstrap, e.seeds[0], sorted(e.agents))),
        Step("results", "reports", "results.duckdb: every table and result, to be queried with SQL.",
             "pipeline.products", _reads(*(t for t in SCHEMAS if t not in {*BESIDE, HISTORY}), *BESIDE.values())),
        Step("report", "reports", "The HTML report: one self-contained file.", "pipeline.products", _reads("results"),
             lambda e: (e.name, e.description)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What a build is given: where its inputs lie, which parts to make, and where to write them."""

    plan: "Plan"
    parts: list[str]
    aside: Mapping[str, Path]  # scratch folder of each table that is being made

    @property
    def experiment(self) -> Experiment:
        return self.plan.experiment

    @property
    def partitions(self) -> list[Partition]:
        """The time partitions to make."""
        return [p for p in self.plan.partitions if p.key in self.parts]

    def files(self, table: str, part: str | None = None) -> list[Path]:
        """The published files of an input that the parts being made read, or that one of them does."""
        parts = self.parts if part is None else [part]
        return self.plan.store.files(table, self.plan.read_parts(next(iter(self.aside)), parts, table))

    def published(self, tables: Iterable[str], part: str) -> dict[str, Path]:
        """The first file of the current version of a part of each table, where there is one."""
        versions = {table: self.plan.store.current(table, part) for table in tables}
        return {table: version.folder / f"{table}.parquet" for table, version in versions.items() if version}

    def folder(self, table: str, part: str = WHOLE) -> Path:
        """The scratch folder of one part that is being made."""
        folder = self.aside[table] / part
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def out(self, table: str, part: str = WHOLE) -> Path:
        """Where the table's Parquet file of one part goes."""
        return self.folder(table, part) / f"{table}.parquet"


class Plan:
    """The steps of one experiment over its store."""

    def __init__(self, experiment: Experiment, root: Path | None = None) -> None:
        self.experiment = experiment
        self.store = Store((root or storage_root()) / experiment.name)
        self.partitions = partitions_of(experiment.partitions)
        self._known: dict[tuple[str, str], str] = {}
        self._staged: dict[str, dict[str | None, dict[str, Path]]] = {}

    @cached_property
    def source(self) -> Source:
        return open_source(self.experiment.source, self.store.root / "raw")

    @cached_property
    def raw_files(self) -> list[RawFile]:
        """The raw files as they lie there now. Raises DataError when there are none."""
        return self.source.discover()

    @cached_property
    def discovered(self) -> str:
        """A fingerprint of the raw files' names and contents."""
        return discovered(self.raw_files, self.staging)

    @property
    def staging(self) -> Path:
        return self.store.root / "staged"

    @property
    def results(self) -> Path:
        return self.store.root / "results.duckdb"

    @property
    def report(self) -> Path:
        return self.store.root / "report.html"

    @property
    def data_page(self) -> Path:
        return self.store.root / "data.html"

    def parts(self, table: str) -> list[str]:
        """Every part that the table should have."""
        kind = STEPS[table].kind
        if kind == "whole":
            return [WHOLE]
        if kind == "time":
            return [p.key for p in self.partitions]
        if kind == "simulator":
            return sorted(self.experiment.simulators.settings)
        is_shop = self.experiment.source.kind == "storefront"
        logging = [PRODUCTION] if table == "ope" or (table == "rollout" and is_shop) else []
        return sorted([*self.experiment.agents, *logging])

    def read_parts(self, table: str, parts: Iterable[str], source: str) -> list[str]:
        """The parts of the input ``source`` that ``parts`` of ``table`` are made from."""
        kinds = (STEPS[table].kind, STEPS[source].kind)
        if kinds[0] == kinds[1] != "time":
            return sorted(set(parts) & set(self.parts(source)))
        if kinds != ("time", "time"):
            return self.parts(source)
        before, after = STEPS[table].inputs[source]
        wanted, found = set(parts), set[int]()
        for p in self.partitions:
            if p.key in wanted:
                first = bisect_right(self.partitions, p.start - before, key=lambda q: q.end)
                found.update(range(first, bisect_left(self.partitions, p.end + after, key=lambda q: q.start)))
        return [self.partitions[n].key for n in sorted(found)]

    def fingerprint(self, table: str, part: str = WHOLE) -> str:
        """The fingerprint that the part will have once it is made from what lies there now."""
        if (table, part) not in self._known:
            self._known[table, part] = fingerprint(self.recipe(table, part))
        return self._known[table, part]

    def recipe(self, table: str, part: str) -> dict[str, Any]:
        """All that decides the content of a part: JSON types, kept beside the data as its provenance."""
        step = STEPS[table]
        inputs = {
            f"{source}/{key}": self.fingerprint(source, key)
            for source in step.inputs
            if source != "manifest" or table not in ("events", *RAW_KINDS)
            for key in self.read_parts(table, [part], source)
        }
        if table == "manifest":
            inputs = {"raw": self.discovered}
        elif table == "events":  # not the whole manifest: a new file makes only the periods stale that it touches
            inputs = {path: folder.name for path, folder in self.staged(part).items()}
        elif table in RAW_KINDS:  # nor do new events change the catalogues
            inputs = {row["path"]: row["hash"] for row in self.manifest if row["kind"] in RAW_KINDS[table]}
        if table == "agents" and (simulator := self.experiment.simulator_of(part)):
            inputs[f"simulators/{simulator}"] = self.fingerprint("simulators", simulator)
        settings: list[Any] = [_plain(step.settings(self.experiment))]
        modules = [step.module]
        if part in self.experiment.agents:
            settings.append(self.experiment.agents[part])
            modules.append(self.experiment.agent_class(part).split(":")[0])
        simulators = self.experiment.simulators
        if table == "simulators":
            settings.append((simulators.side(part), simulators.settings[part]))
            modules.append(simulator_class(part, simulators.settings[part]).split(":")[0])
        if "simulators" in step.inputs:
            modules += [simulator_class(*named).split(":")[0] for named in simulators.settings.items()]
        if table in READ_BY_THE_SOURCE:
            modules.append(type(self.source).__module__)
        code = {module: code_fingerprint(module) for module in modules}
        return {"table": table, "part": part, "inputs": inputs, "settings": settings, "code": code}

    @cached_property
    def staging_key(self) -> str:
        """Fingerprint of the code and the settings that read raw files; where they lie does not count."""
        settings = self.experiment.source.model_dump(mode="json", exclude={"path"})
        code = [code_fingerprint(module) for module in ("pipeline.ingest", type(self.source).__module__)]
        return fingerprint(settings, code)

    def staged(self, part: str | None = None) -> dict[str, Path]:
        """The staged folder of each raw events file of the current manifest; with ``part``, of those that touch it."""
        version = self.store.require("manifest").fingerprint
        if version not in self._staged:  # every part of the events asks, and a version never changes
            rows = [row for row in self.manifest if row["kind"] == "events"]
            folders = staged_folders(rows, self.staging, self.experiment.partitions, self.staging_key)
            self._staged[version] = {None: folders}
            for row in rows:
                for key in row["partitions"]:
                    self._staged[version].setdefault(key, {})[row["path"]] = folders[row["path"]]
        return self._staged[version].get(part, {})

    def unstage(self) -> None:
        """Forget what was parsed of the raw files: the next run parses them all."""
        for folder in self.staged().values():
            shutil.rmtree(folder, ignore_errors=True)
        self.store.unpublish("manifest", [WHOLE])

    @property
    def manifest(self) -> list[dict[str, Any]]:
        """The rows of the current manifest."""
        return list(read_table(self.store.require("manifest").files, "manifest").to_pylist())

    def collect_garbage(self) -> list[Path]:
        """Remove versions that nothing points to, staged files of other content or code, and logs of other shops."""
        gone = self.store.collect_garbage()
        if self.store.current("manifest") and not self.stale("manifest"):
            kept = set(self.staged().values())
            gone += [folder for folder in sorted(self.staging.glob("*")) if folder not in kept]
        home = getattr(self.source, "home", None)
        if home is not None:
            gone += [folder for folder in sorted(home.parent.glob("*")) if folder != home]
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        return gone

    def event_files(self) -> dict[str, Path]:
        """The published events of each partition that has been published, by its key."""
        versions = self.store.published("events", [p.key for p in self.partitions])
        return {key: path for key, version in versions.items() for path in version.files}

    def stale(self, table: str, parts: Iterable[str] | None = None) -> list[str]:
        """The parts of a table that are not published with their present fingerprint."""
        if table != "manifest" and self.stale("manifest"):
            return list(parts or self.parts(table))
        found = []
        published = self.store.published(table)
        beside = {"results": self.results, "report": self.report, "data_report": self.data_page}.get(table)
        for part in self.parts(table) if parts is None else parts:
            current = published.get(part)
            missing = beside is not None and not beside.exists()
            there = current if current and current.folder.exists() and not missing else None
            if there is None or there.fingerprint != self.fingerprint(table, part):
                found.append(part)
        return found

    def stale_tables(self) -> dict[str, list[str]]:
        """Every table with stale parts, in the order of the flow; where one is, so are those made together with it."""
        found = {table: self.stale(table) for table in STEPS}
        for tables in TOGETHER:
            union = {part for table in tables for part in found[table]}
            found |= {table: [part for part in self.parts(table) if part in union] for table in tables}
        return {table: parts for table, parts in found.items() if parts}

    def next_run(self) -> dict[str, list[str]]:
        """What to make in one run now: the stale tables; where the manifest is one of them and not the first, it alone.

        Only the new manifest knows which partitions new files touch, and a run costs by the partition.
        """
        stale = self.stale_tables()
        if "manifest" in stale and self.store.current("manifest"):
            return {"manifest": stale["manifest"]}
        return stale

    def make(self, tables: tuple[str, ...], parts: Iterable[str], build: Callable[[Job], None]) -> dict[str, list[str]]:
        """Build the stale ones of ``parts`` of tables that are made together; returns the parts made, by table."""
        stale = sorted({part for table in tables for part in self.stale(table, parts)})
        if not stale:
            return {table: [] for table in tables}
        with ExitStack() as stack:
            aside = {}
            for table in tables:
                recipes = {part: self.recipe(table, part) for part in stale}
                aside[table] = stack.enter_context(self.store.publish(table, recipes))
            build(Job(self, stale, aside))
        return dict.fromkeys(tables, stale)


def row_count(files: Iterable[Path]) -> int:
    """Rows of Parquet files, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in files)


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def commit() -> str:
    """The commit of the checkout; ``+`` for uncommitted changes of more than benchmarks' results, empty outside git."""
    status = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(PROJECT), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "--short=12", "HEAD"], status)
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + ("+" if changes.strip() else "")


def _plain(value: Any) -> Any:
    """Settings as JSON types."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
