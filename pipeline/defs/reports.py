"""What people open: results.duckdb and the HTML report."""

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, publish, spec, step_asset


@step_asset(spec("results"))
def results(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.products import publish_results

        publish_results(job.plan)

    yield from publish(context, ("results",), build)


@step_asset(spec("report", kinds={"plotly"}))
def report(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.products import publish_report

        path = publish_report(job.plan)
        context.log.info(f"The report of {EXPERIMENT.name} lies at {path}")

    yield from publish(context, ("report",), build)
