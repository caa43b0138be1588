"""One job, one nightly schedule, two sensors. They launch runs of what is stale, and none when nothing is.

Where raw files have changed that is first a run of the manifest, which says which partitions they touch; once it has
succeeded, the sensor ``onwards`` asks for the rest, over the stale partitions alone.
"""

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, PART_KEYS, key, partitions

materialize_all = dg.define_asset_job(
    "materialize_all",
    selection=dg.AssetSelection.all(),
    partitions_def=partitions,
    description="Every asset of the experiment, over a range of partitions and the snapshots after it, in one run.",
)


def range_tags(stale: dict[str, list[str]]) -> dict[str, str]:
    """The tags that make one run cover the stale partitions."""
    from pipeline.partitions import partitions_of
    from pipeline.plan import STEPS

    timed = sorted({part for table, parts in stale.items() if STEPS[table].kind == "time" for part in parts})
    parts = timed or [partitions_of(EXPERIMENT.partitions)[-1].key]
    return {"dagster/asset_partition_range_start": parts[0], "dagster/asset_partition_range_end": parts[-1]}


def stale_assets(stale: dict[str, list[str]]) -> list[dg.AssetKey]:
    """The assets of stale tables; of the user models and the agents, only the stale ones."""
    found = []
    for table, parts in stale.items():
        found += [PART_KEYS[table](part) for part in parts] if table in PART_KEYS else [key(table)]
    return found


def request(run_key: str | None = None) -> dg.RunRequest | dg.SkipReason:
    """The next run of stale assets, or why there is nothing to run."""
    from pipeline.plan import Plan

    tables = Plan(EXPERIMENT).next_run()
    if not tables:
        return dg.SkipReason(f"Every asset of {EXPERIMENT.name} is fresh.")
    return dg.RunRequest(run_key=run_key, asset_selection=stale_assets(tables), tags=range_tags(tables))


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


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[materialize_all],
    request_job=materialize_all,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Once the schedule or the sensor has a new manifest: launches a run of what it has made stale.",
)
def onwards(context: dg.RunStatusSensorContext):
    run = context.dagster_run
    asked_for = {"dagster/schedule_name", "dagster/sensor_name"} & run.tags.keys()  # what people launch is theirs
    if not asked_for or run.asset_selection != {key("manifest")}:
        return dg.SkipReason("No manifest alone, or one that a person asked for.")
    return request(run_key=run.run_id)
