"""What people open: the data report, results.duckdb and the HTML report."""

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, publish, spec, step_asset
from pipeline.defs.metadata import data_report_metadata


@step_asset(spec("data_report"))
def data_report(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.products import publish_data_report

        path = publish_data_report(job)
        context.log.info(f"What {EXPERIMENT.name} holds is shown at {path}")

    yield from publish(context, ("data_report",), build, describe=data_report_metadata)


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
