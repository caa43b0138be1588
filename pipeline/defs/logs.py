"""Raw files → manifest, canonical events, rejects, counts, and what the log says of its items and users."""

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset
from pipeline.defs.metadata import events_metadata, rejects_metadata


@step_asset(spec("manifest"))
def manifest(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.ingest import stage
        from pipeline.warehouse import write_parquet

        plan = job.plan
        table = stage(plan.source, plan.raw_files, plan.staging, job.experiment.partitions, plan.staging_key)
        write_parquet(job.out("manifest"), "manifest", table.to_batches())

    yield from publish(context, ("manifest",), build)


@step_asset(spec("events"))
def events(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.ingest import build_events

        for partition in job.partitions:
            staged = list(job.plan.staged(partition.key).values())
            build_events(staged, partition, job.out("events", partition.key))

    yield from publish(context, ("events",), build, describe=events_metadata)


@step_asset(spec("rejects"))
def rejects(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.ingest import build_rejects

        build_rejects(job.plan.staged(), job.out("rejects"))

    yield from publish(context, ("rejects",), build, describe=rejects_metadata)


@step_asset(spec("ingest_counts"))
def ingest_counts(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.conservation import ingest_counts, published_counts
        from pipeline.warehouse import write_parquet

        counts = ingest_counts(job.plan.staged(), published_counts(job.plan.event_files()))
        write_parquet(job.out("ingest_counts"), "ingest_counts", counts.to_batches())

    yield from publish(context, ("ingest_counts",), build)


@step_asset(spec("mentions"))
def mentions(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.entities import build_mentions

        for partition in job.partitions:
            events = job.plan.store.files("events", [partition.key])
            build_mentions(events, not job.plan.source.has_impressions, job.out("mentions", partition.key))

    yield from publish(context, ("mentions",), build)


@step_asset(spec("entities"))
def entities(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.entities import write_entities

        folder = job.folder("entities")
        write_entities(job.plan.source, job.plan.raw_files, folder / "items.parquet", folder / "users.parquet")

    yield from publish(context, ("entities",), build)


@step_asset(spec("pools"))
def pools(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.pools import build_pools

        build_pools(job.plan.raw_files, job.out("pools"))

    yield from publish(context, ("pools",), build)
