"""Blocking checks of the data's integrity, and the gates, which do not block.

A check judges the published parts that have not passed it yet (all of them, where all have), so that a new day is
checked at the cost of that day, and nothing goes unchecked for good because a run was killed. What fails is published
no more: the run stops, and the next one makes it anew and checks it anew.
"""

from typing import Any

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, key
from pipeline.leakage import CANARIES, leaks
from pipeline.plan import STEPS, Plan
from pipeline.schemas import SCHEMAS
from pipeline.storage import Store


def to_judge(plan: Plan, table: str, check: str) -> list[str]:
    """The published parts that have not passed the check; all of them where all have: then somebody asks again."""
    versions = plan.store.published(table, plan.parts(table) if STEPS[table].kind == "time" else None)
    return [part for part, version in versions.items() if not version.passed(check)] or list(versions)


def judged(
    plan: Plan, table: str, check: str, parts: list[str], problems: list[str], **metadata: Any
) -> dg.AssetCheckResult:
    """The verdict of a blocking check of ``parts``."""
    if problems:
        plan.store.unpublish(table, parts)
    else:
        plan.store.mark_passed(table, parts, check)
    return verdict(problems, **metadata)


def verdict(problems: list[str], **metadata: Any) -> dg.AssetCheckResult:
    """Passed when there are no problems; the first ones as the description."""
    return dg.AssetCheckResult(
        passed=not problems,
        description=" ".join(problems[:5]) or "Nothing to object to.",
        metadata={"problems": len(problems), **metadata},
    )


def schema_check(table: str) -> dg.AssetChecksDefinition:
    """The published files of a table have exactly the columns and types of schemas.py."""

    @dg.asset_check(
        asset=key(table),
        name="schema",
        blocking=True,
        description="The published files have exactly the columns and types of schemas.py.",
    )
    def schema() -> dg.AssetCheckResult:
        from pipeline.checks import check_schema

        plan = Plan(EXPERIMENT)
        parts = to_judge(plan, table, "schema")
        files = plan.store.files(table, parts)
        return judged(plan, table, "schema", parts, check_schema(files, table), files=len(files))

    return schema


CHECKED_PARTITIONS = 5  # whose features a run recounts: evenly spread

schema_checks = [schema_check(table) for table in STEPS if table in SCHEMAS]


@dg.asset_check(asset=key("events"), blocking=True, description="Rows in = events + duplicates + rejects.")
def conservation() -> dg.AssetCheckResult:
    from pipeline.conservation import check_conservation, ingest_counts, published_counts

    plan = Plan(EXPERIMENT)
    events = plan.event_files()  # counted anew: the published counts are made after this check
    problems = check_conservation(ingest_counts(plan.staged(), published_counts(events)), events)
    if problems:  # rows may have gone when a file was staged: all are parsed again
        plan.unstage()
    return judged(plan, "events", "conservation", to_judge(plan, "events", "conservation"), problems)


@dg.asset_check(
    asset=key("events"), blocking=True, description="No raw file was refused beyond the ceiling, ingest.max_rejects."
)
def reject_ceiling() -> dg.AssetCheckResult:
    from pipeline.conservation import check_reject_ceiling, ingest_counts, published_counts

    plan = Plan(EXPERIMENT)
    counts = ingest_counts(plan.staged(), published_counts(plan.event_files()))
    problems = check_reject_ceiling(counts, EXPERIMENT.ingest.max_rejects)
    return judged(plan, "events", "reject_ceiling", to_judge(plan, "events", "reject_ceiling"), problems)


@dg.asset_check(asset=key("splits"), blocking=True, description="Train lies before validation, validation before test.")
def split_order() -> dg.AssetCheckResult:
    from pipeline.splits import check_splits

    plan = Plan(EXPERIMENT)
    sessions, impressions, splits = map(plan.store.files, ("sessions", "impressions", "splits"))
    problems = check_splits(sessions, impressions, splits)
    return judged(plan, "splits", "split_order", plan.store.parts("splits"), problems)


@dg.asset_check(asset=key("features"), blocking=True, description="No feature counts what came at its time or later.")
def no_future_in_features() -> dg.AssetCheckResult:
    from pipeline.features import check_features

    plan = Plan(EXPERIMENT)
    described = plan.store.require("entities").folder / "items.parquet"
    judging = to_judge(plan, "features", "no_future_in_features")
    parts = [part for part in judging if not as_before(plan.store, "features", part, "no_future_in_features")]
    some = parts[:: -max(1, len(parts) // CHECKED_PARTITIONS)]  # the newest first
    problems = []
    for part in some:
        impressions, mentions = (
            plan.store.files(table, plan.read_parts("features", [part], table)) for table in ("impressions", "mentions")
        )
        features = plan.store.files("features", [part])
        problems += check_features(features, impressions, described, mentions=mentions)
    return judged(plan, "features", "no_future_in_features", judging, problems, partitions=len(some))


def as_before(store: Store, table: str, part: str, check: str) -> bool:
    """Whether a part is the very file of a version that passed, linked since nothing that it is made of had changed."""
    now, *before = store.versions(table, part)
    files = [version.folder / f"{table}.parquet" for version in before if version.passed(check)]
    return any(path.exists() and path.samefile(now.folder / path.name) for path in files)


def leakage_check(table: str) -> dg.AssetChecksDefinition:
    """A canary: whether a table knows anything that it must not know yet."""

    @dg.asset_check(asset=key(table), name="no_leakage", blocking=True, description=CANARIES[table].claim)
    def no_leakage() -> dg.AssetCheckResult:
        plan = Plan(EXPERIMENT)
        problems = leaks(table, plan.store.files, EXPERIMENT)
        return judged(plan, table, "no_leakage", plan.store.parts(table), problems)

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
