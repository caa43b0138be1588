"""Blocking checks of the data's integrity, and the gates, which do not block.

A failed blocking check stops the run and leaves a mark on what it judged: the next run makes that anew and checks it
anew. Of a table by periods a run checks the periods that it is about: parts are immutable, and each was checked by the
run that made it. So the checks of a new day cost the same with a long history as without.
"""

from typing import Any

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, key
from pipeline.leakage import CANARIES, leaks
from pipeline.plan import STEPS, Plan
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store


def judged(plan: Plan, table: str, parts: list[str], problems: list[str], **metadata: Any) -> dg.AssetCheckResult:
    """The verdict of a blocking check of ``parts``, which are stale from now on where there are problems."""
    if problems:
        plan.store.doubt(table, parts)
    return verdict(problems, **metadata)


def verdict(problems: list[str], **metadata: Any) -> dg.AssetCheckResult:
    """Passed when there are no problems; the first ones as the description."""
    return dg.AssetCheckResult(
        passed=not problems,
        description=" ".join(problems[:5]) or "Nothing to object to.",
        metadata={"problems": len(problems), **metadata},
    )


def parts_of_run(context: dg.AssetCheckExecutionContext, plan: Plan, table: str) -> list[str]:
    """The published parts of a table that the run is about: all of them where it is about no partitions."""
    if STEPS[table].kind != "time":
        return plan.store.parts(table)
    parts = list(plan.store.published(table, plan.parts(table)))
    if not (context.has_partition_key or context.has_partition_key_range):
        return parts
    span = context.partition_key_range
    return [part for part in parts if span.start <= part <= span.end]


def schema_check(table: str) -> dg.AssetChecksDefinition:
    """The published files of a table have exactly the columns and types of schemas.py."""

    @dg.asset_check(
        asset=key(table),
        name="schema",
        blocking=True,
        description="The published files have exactly the columns and types of schemas.py.",
    )
    def schema(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        from pipeline.checks import check_schema

        plan = Plan(EXPERIMENT)
        parts = parts_of_run(context, plan, table)
        files = plan.store.files(table, parts)
        return judged(plan, table, parts, check_schema(files, table), files=len(files))

    return schema


CHECKED_PARTITIONS = 5  # whose features a run recounts: evenly spread

schema_checks = [schema_check(table) for table in STEPS if table in SCHEMAS]


@dg.asset_check(asset=key("events"), blocking=True, description="Rows in = events + duplicates + rejects.")
def conservation(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    from pipeline.conservation import check_conservation, ingest_counts, published_counts

    plan = Plan(EXPERIMENT)
    events = plan.event_files()  # counted anew: the published counts are made after this check
    problems = check_conservation(ingest_counts(plan.staged(), published_counts(events)), events)
    return judged(plan, "events", parts_of_run(context, plan, "events"), problems)


@dg.asset_check(
    asset=key("events"), blocking=True, description="No raw file was refused beyond the ceiling, ingest.max_rejects."
)
def reject_ceiling(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    from pipeline.conservation import check_reject_ceiling, ingest_counts, published_counts

    plan = Plan(EXPERIMENT)
    counts = ingest_counts(plan.staged(), published_counts(plan.event_files()))
    problems = check_reject_ceiling(counts, EXPERIMENT.ingest.max_rejects)
    return judged(plan, "events", parts_of_run(context, plan, "events"), problems)


@dg.asset_check(asset=key("splits"), blocking=True, description="Train lies before validation, validation before test.")
def split_order() -> dg.AssetCheckResult:
    from pipeline.splits import check_splits

    plan = Plan(EXPERIMENT)
    sessions, impressions, splits = map(plan.store.files, ("sessions", "impressions", "splits"))
    return judged(plan, "splits", plan.store.parts("splits"), check_splits(sessions, impressions, splits))


@dg.asset_check(asset=key("features"), blocking=True, description="No feature counts what came at its time or later.")
def no_future_in_features(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    from pipeline.features import check_features

    plan = Plan(EXPERIMENT)
    described = plan.store.require("entities").folder / "items.parquet"
    parts = [part for part in parts_of_run(context, plan, "features") if not as_before(plan.store, "features", part)]
    some = parts[:: -max(1, len(parts) // CHECKED_PARTITIONS)]  # the newest first
    problems = []
    for part in some:
        impressions, mentions = (
            plan.store.files(table, plan.read_parts("features", [part], table)) for table in ("impressions", "mentions")
        )
        features = plan.store.files("features", [part])
        problems += check_features(features, impressions, described, mentions=mentions)
    return judged(plan, "features", parts, problems, partitions=len(some))


def as_before(store: Store, table: str, part: str) -> bool:
    """Whether a part is the very file of the version before it, linked since nothing that it is made of had changed."""
    now, *before = (version.folder / f"{table}.parquet" for version in store.versions(table, part))
    return any(path.exists() and path.samefile(now) for path in before)


def leakage_check(table: str) -> dg.AssetChecksDefinition:
    """A canary: whether a table knows anything that it must not know yet."""

    @dg.asset_check(asset=key(table), name="no_leakage", blocking=True, description=CANARIES[table].claim)
    def no_leakage() -> dg.AssetCheckResult:
        plan = Plan(EXPERIMENT)
        return judged(
            plan, table, plan.store.parts(table), leaks(table, plan.store.files, EXPERIMENT.history.positives)
        )

    return no_leakage


leakage_checks = [leakage_check(table) for table in CANARIES]


def gate_check(name: str) -> dg.AssetChecksDefinition:
    """Whether one user model may answer for users: never blocking, an error in the UI when it may not."""

    @dg.asset_check(
        asset=key("simulator_gate"),
        name=f"{name}_passes",
        description=f"{name} passes its gate; where it fails, no roll-outs in it are published.",
    )
    def passes() -> dg.AssetCheckResult:
        from pipeline.simulation import failed_criteria

        failed = failed_criteria(Plan(EXPERIMENT).store.files("simulator_gate"))[name]
        return verdict([f"{clause}." for clause in failed])

    return passes


gate_checks = [gate_check(name) for name in sorted(EXPERIMENT.simulators.settings)]
