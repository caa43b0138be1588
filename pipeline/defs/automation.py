"""One job, one nightly schedule, one sensor. All three launch a run of what is stale, and none when nothing is."""

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, PART_KEYS, key, partitions

materialize_all = dg.define_asset_job(
    "materialize_all",
    selection=dg.AssetSelection.all(),
    partitions_def=partitions,
    description="Every asset of the experiment, over a range of partitions and the snapshots after it, in one run.",
)


def range_tags(stale: dict[str, list[str]]) -> dict[str, str]:
    """The tags that make one run cover the stale partitions; all partitions when the raw files changed."""
    from pipeline.partitions import partitions_of
    from pipeline.plan import STEPS

    keys = [p.key for p in partitions_of(EXPERIMENT.partitions)]
    timed = {part for table, parts in stale.items() if STEPS[table].kind == "time" for part in parts}
    parts = keys if "manifest" in stale else sorted(timed)
    first, last = (parts[0], parts[-1]) if parts else (keys[-1], keys[-1])
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def stale_assets(stale: dict[str, list[str]]) -> list[dg.AssetKey]:
    """The assets of stale tables; of the user models and the agents, only the stale ones."""
    found = []
    for table, parts in stale.items():
        found += [PART_KEYS[table](part) for part in parts] if table in PART_KEYS else [key(table)]
    return found


def request(run_key: str | None = None) -> dg.RunRequest | dg.SkipReason:
    """A run of the stale assets, or why there is nothing to run."""
    from pipeline.plan import Plan

    stale = Plan(EXPERIMENT).stale_tables()
    if not stale:
        return dg.SkipReason(f"Every asset of {EXPERIMENT.name} is fresh.")
    return dg.RunRequest(run_key=run_key, asset_selection=stale_assets(stale), tags=range_tags(stale))


@dg.schedule(
    job=materialize_all,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    description="Every night: whatever new raw files, settings or code have made stale.",
)
def nightly(context: dg.ScheduleEvaluationContext):
    return request()


@dg.sensor(
    job=materialize_all,
    minimum_interval_seconds=60,
    description="Looks at the raw folder and launches a run when its files have changed.",
)
def inbox(context: dg.SensorEvaluationContext):
    from pipeline.errors import DataError
    from pipeline.plan import Plan

    if EXPERIMENT.source.kind == "storefront":
        return dg.SkipReason("The storefront makes its own log: there is no folder to watch.")
    try:
        seen = Plan(EXPERIMENT).discovered
    except DataError as error:
        return dg.SkipReason(str(error))
    if seen == context.cursor:
        return dg.SkipReason("No raw file was added or changed.")
    asked = request(run_key=seen)
    context.update_cursor(seen)
    return asked
