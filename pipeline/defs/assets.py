"""What all assets share: the experiment, its partitions, an asset's arguments, and publishing with metadata."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dagster as dg

from pipeline.experiment import experiment_from_environment
from pipeline.partitions import between
from pipeline.plan import STEPS, Job, Plan
from pipeline.schemas import SCHEMAS
from pipeline.storage import WHOLE, code_fingerprint, fingerprint

EXPERIMENT = experiment_from_environment()  # read once, when the location loads
OWNERS = ["team:hindsight"]
KINDS = {
    "logs": {"duckdb", "parquet"},
    "sessions": {"duckdb", "parquet"},
    "features": {"duckdb", "parquet"},
    "simulators": {"pytorch"},
    "trajectories": {"duckdb", "parquet"},
    "agents": {"pytorch"},
    "evaluation": {"python", "parquet"},
    "reports": {"duckdb"},
}
POOLS = {"simulators": "gpu", "agents": "gpu"}  # the others share the warehouse

# The parameter is marked beta in Dagster 1.13; without it the first and last partitions could not be materialized.
warnings.filterwarnings("ignore", message="Parameter `allow_nonexistent_upstream_partitions`")
_CRON = {"day": "0 0 * * *", "month": "0 0 1 * *", "year": "0 0 1 1 *"}
partitions = dg.TimeWindowPartitionsDefinition(
    start=EXPERIMENT.partitions.start.isoformat(),
    end=EXPERIMENT.partitions.end.isoformat(),
    fmt="%Y-%m-%d",
    cron_schedule=_CRON[EXPERIMENT.partitions.grain],
)


def key(table: str) -> dg.AssetKey:
    """The asset of a table: ``<experiment>/<table>``."""
    return dg.AssetKey([EXPERIMENT.name, table])


def agent_key(agent: str) -> dg.AssetKey:
    return dg.AssetKey([EXPERIMENT.name, "agents", agent])


def simulator_key(name: str) -> dg.AssetKey:
    return dg.AssetKey([EXPERIMENT.name, "simulators", name])


PART_KEYS = {"agents": agent_key, "simulators": simulator_key}  # tables with an asset for each part


def upstream(table: str) -> list[dg.AssetDep]:
    """The assets that a table's step reads, with the look-back of partitioned ones spelt out."""
    found = []
    for source in STEPS[table].inputs:
        if source == "agents":
            found += [dg.AssetDep(agent_key(name)) for name in sorted(EXPERIMENT.agents)]
        elif source == "simulators":
            found += [dg.AssetDep(simulator_key(name)) for name in sorted(EXPERIMENT.simulators.settings)]
        elif STEPS[source].kind == "time" and STEPS[table].kind == "time":
            found.append(dg.AssetDep(key(source), partition_mapping=_neighbours(table, source)))
        else:
            found.append(dg.AssetDep(key(source)))
    return [*found, *(dg.AssetDep(key(earlier)) for earlier in STEPS[table].after)]


def _neighbours(table: str, source: str) -> dg.TimeWindowPartitionMapping:
    """The partitions around one that it reads, in whole partitions of the experiment's grain."""
    days = {"day": 1, "month": 28, "year": 365}[EXPERIMENT.partitions.grain]
    before, after = (-(-reach.days // days) for reach in STEPS[table].inputs[source])
    return dg.TimeWindowPartitionMapping(
        start_offset=-before, end_offset=after, allow_nonexistent_upstream_partitions=True
    )


def spec(table: str, **changes: Any) -> dg.AssetSpec:
    """The asset of a step: key, group, description, upstream assets, code version."""
    step = STEPS[table]
    arguments: dict[str, Any] = {
        "key": key(table),
        "deps": upstream(table),
        "group_name": step.group,
        "description": step.description,
        "owners": OWNERS,
        "kinds": KINDS[step.group],
        "code_version": code_fingerprint(step.module),
        "partitions_def": partitions if step.kind == "time" else None,
        "metadata": schema_metadata(table),
    }
    return dg.AssetSpec(**(arguments | changes))


def step_asset(*specs: dg.AssetSpec) -> Callable[..., dg.AssetsDefinition]:
    """The decorator of every asset: one run for any range of partitions, one pool, specs from the plan."""
    group = str(specs[0].group_name)
    return dg.multi_asset(
        specs=specs,
        name="_".join(specs[0].key.path[1:]),
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool=POOLS.get(group, "warehouse"),
    )


def publish(
    context: dg.AssetExecutionContext,
    tables: tuple[str, ...],
    build: Callable[[Job], None],
    parts: Iterable[str] | None = None,
    describe: Callable[[Plan], dict[str, Any]] | None = None,
) -> Iterator[dg.MaterializeResult]:
    """Build what is stale of the tables' parts; report every table with its metadata. Nothing stale costs nothing."""
    plan = Plan(EXPERIMENT)
    timed = STEPS[tables[0]].kind == "time"
    if timed:
        span = context.partition_key_range
        parts = [p.key for p in between(plan.partitions, span.start, span.end)]
    wanted = list(parts or plan.parts(tables[0]))
    started = time.monotonic()
    made = plan.make(tables, wanted, build)
    if "manifest" in tables:  # what the fingerprints of all that comes after it are made of
        plan = Plan(EXPERIMENT)
    for table in tables:
        one = wanted[0] if table in PART_KEYS else None
        metadata = version_metadata(plan, table, wanted, made[table]) | (describe(plan) if describe else {})
        rows = metadata.get("dagster/row_count")
        context.log.info(
            f"{one or table:<18} {len(made[table]):>3} of {len(wanted)} made"
            + ("" if rows is None else f", {rows:,} rows")
            + f", {time.monotonic() - started:.1f} s"
        )
        yield dg.MaterializeResult(
            asset_key=PART_KEYS[table](one) if one else key(table),
            metadata=metadata,
            data_version=None if timed else dg.DataVersion(fingerprint([plan.fingerprint(table, p) for p in wanted])),
        )


def schema_metadata(table: str) -> dict[str, Any]:
    """The published columns, and which input column of the same name and type each comes from."""
    if table not in SCHEMAS:
        return {}
    columns = [dg.TableColumn(field.name, str(field.type)) for field in SCHEMAS[table]]
    sources = [source for source in STEPS[table].inputs if source in SCHEMAS]
    lineage = {
        field.name: [
            dg.TableColumnDep(key(source), field.name)
            for source in sources
            if field.name in SCHEMAS[source].names and SCHEMAS[source].field(field.name).type == field.type
        ]
        for field in SCHEMAS[table]
    }
    known = {name: deps for name, deps in lineage.items() if deps}
    return {
        "dagster/column_schema": dg.TableSchema(columns),
        "dagster/table_name": f"{EXPERIMENT.name}.{table}",
        **({"dagster/column_lineage": dg.TableColumnLineage(known)} if known else {}),
    }


def version_metadata(plan: Plan, table: str, parts: list[str], made: list[str]) -> dict[str, Any]:
    """Rows, folder and fingerprint of what is published now, and what this run had to make."""
    from pipeline.plan import row_count

    versions = list(plan.store.published(table, parts).values())
    files = [path for version in versions for path in version.files]
    described: dict[str, Any] = {
        "made": len(made),
        "reused": len(parts) - len(made),
        "folder": dg.MetadataValue.path(str(plan.store.root / table)),
    }
    if files:
        described["dagster/row_count"] = row_count(files)
    if parts == [WHOLE] and versions:
        described["fingerprint"] = versions[0].fingerprint
    return described
