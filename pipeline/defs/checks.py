"""Blocking checks of the data's integrity, and the gates, which do not block. A failed blocking check stops the run."""

from typing import Any

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, key
from pipeline.leakage import CANARIES, leaks
from pipeline.plan import STEPS, Plan
from pipeline.schemas import SCHEMAS


def verdict(problems: list[str], **metadata: Any) -> dg.AssetCheckResult:
    """Passed when there are no problems; the first ones as the description."""
    return dg.AssetCheckResult(
        passed=not problems,
        description=" ".join(problems[:5]) or "Nothing to object to.",
        metadata={"problems": len(problems), **metadata},
    )


def schema_check(table: str) -> dg.AssetChecksDefinition:
    """Every published file of a table has exactly the columns and types of schemas.py."""

    @dg.asset_check(
        asset=key(table),
        name="schema",
        blocking=True,
        description="Every published file has exactly the columns and types of schemas.py.",
    )
    def schema() -> dg.AssetCheckResult:
        from pipeline.checks import check_schema

        files = Plan(EXPERIMENT).store.files(table)
        return verdict(check_schema(files, table), files=len(files))

    return schema


CHECKED_PARTITIONS = 5  # whose features are recounted: evenly spread

schema_checks = [schema_check(table) for table in STEPS if table in SCHEMAS]


@dg.asset_check(asset=key("events"), blocking=True, description="Rows in = events + duplicates + rejects.")
def conservation() -> dg.AssetCheckResult:
    from pipeline.conservation import check_conservation, ingest_counts, published_counts

    plan = Plan(EXPERIMENT)
    events = plan.event_files()  # counted anew: the published counts are made after this check
    return verdict(check_conservation(ingest_counts(plan.staged(), published_counts(events)), events))


@dg.asset_check(
    asset=key("events"), blocking=True, description="No raw file was refused beyond the ceiling, ingest.max_rejects."
)
def reject_ceiling() -> dg.AssetCheckResult:
    from pipeline.conservation import check_reject_ceiling, ingest_counts, published_counts

    plan = Plan(EXPERIMENT)
    counts = ingest_counts(plan.staged(), published_counts(plan.event_files()))
    return verdict(check_reject_ceiling(counts, EXPERIMENT.ingest.max_rejects))


@dg.asset_check(asset=key("splits"), blocking=True, description="Train lies before validation, validation before test.")
def split_order() -> dg.AssetCheckResult:
    from pipeline.splits import check_splits

    store = Plan(EXPERIMENT).store
    return verdict(check_splits(store.files("sessions"), store.files("impressions"), store.files("splits")))


@dg.asset_check(asset=key("features"), blocking=True, description="No feature counts what came at its time or later.")
def no_future_in_features() -> dg.AssetCheckResult:
    from pipeline.features import check_features

    plan = Plan(EXPERIMENT)
    described = plan.store.require("entities").folder / "items.parquet"
    parts = [part for part in plan.parts("features") if plan.store.files("features", [part])]
    some = parts[:: -max(1, len(parts) // CHECKED_PARTITIONS)]  # the newest first
    problems = []
    for part in some:
        impressions, mentions = (
            plan.store.files(table, plan.read_parts("features", [part], table)) for table in ("impressions", "mentions")
        )
        features = plan.store.files("features", [part])
        problems += check_features(features, impressions, described, mentions=mentions)
    return verdict(problems, partitions=len(some))


def leakage_check(table: str) -> dg.AssetChecksDefinition:
    """A canary: whether a table knows anything that it must not know yet."""

    @dg.asset_check(asset=key(table), name="no_leakage", blocking=True, description=CANARIES[table].claim)
    def no_leakage() -> dg.AssetCheckResult:
        return verdict(leaks(table, Plan(EXPERIMENT).store.files, EXPERIMENT.history.positives))

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
