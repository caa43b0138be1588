"""Events → impressions and sessions, the cut-offs, and the items and users as the training window knows them."""

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset
from pipeline.defs.metadata import sessions_metadata, splits_metadata


@step_asset(spec("impressions"), spec("sessions"))
def sessions(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.sessions import build_sessions

        build_sessions(
            job.files("events"),
            job.partitions,
            job.experiment.sessions,
            job.experiment.rewards,
            getattr(job.experiment.source, "positive_above", None),
            impressions_out=lambda partition: job.out("impressions", partition.key),
            sessions_out=lambda partition: job.out("sessions", partition.key),
            constructed=not job.plan.source.has_impressions,
            reuse=lambda partition: job.published(("impressions", "sessions"), partition.key),
        )

    yield from publish(context, ("impressions", "sessions"), build, describe=sessions_metadata)


@step_asset(spec("splits"))
def splits(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.splits import build_splits

        build_splits(job.files("sessions"), job.experiment.splits, job.out("splits"))

    yield from publish(context, ("splits",), build, describe=splits_metadata)


@step_asset(spec("items"), spec("users"))
def items_and_users(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.entities import build_items, build_users

        inputs = {table: job.files(table) for table in ("impressions", "sessions", "splits")}
        described = job.plan.store.require("entities").folder
        build_items(
            **inputs, described=described / "items.parquet", mentions=job.files("mentions"), out=job.out("items")
        )
        build_users(**inputs, described=described / "users.parquet", out=job.out("users"))

    yield from publish(context, ("items", "users"), build)
