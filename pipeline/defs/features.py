"""Point-in-time features of every impression, and item embeddings of the training window."""

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset


@step_asset(spec("features"))
def features(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.features import build_features

        described = job.plan.store.require("entities").folder / "items.parquet"
        build_features(
            job.files("impressions"),
            described,
            job.partitions,
            out=lambda partition: job.out("features", partition.key),
            reuse=lambda partition: job.published(("features",), partition.key).get("features"),
            mentions=lambda partition: job.files("mentions", partition.key),
        )

    yield from publish(context, ("features",), build)


@step_asset(spec("item_embeddings"))
def item_embeddings(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.embeddings import build_item_embeddings

        inputs = {table: job.files(table) for table in ("impressions", "sessions", "splits", "items")}
        build_item_embeddings(**inputs, settings=job.experiment.embeddings, out=job.out("item_embeddings"))

    yield from publish(context, ("item_embeddings",), build)
