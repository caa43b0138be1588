"""The user model that answers in place of users."""

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset
from pipeline.defs.metadata import simulator_metadata
from pipeline.plan import STEPS


@step_asset(spec("simulator"))
def simulator(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.simulation import fit_simulator

        inputs = {table: job.files(table) for table in STEPS["simulator"].inputs}
        fit_simulator(inputs, job.experiment, job.folder("simulator"))

    yield from publish(context, ("simulator",), build, describe=simulator_metadata)
