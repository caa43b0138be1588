"""Page transitions with original and hindsight goals, and the sessions that leg 1 ranks."""

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset
from pipeline.plan import STEPS


@step_asset(spec("trajectories"))
def trajectories(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.trajectories import build_trajectories

        inputs = {table: job.files(table) for table in STEPS["trajectories"].inputs}
        build_trajectories(inputs, job.experiment, job.out("trajectories"))

    yield from publish(context, ("trajectories",), build)


@step_asset(spec("candidates"))
def candidates(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.trajectories import build_candidates

        inputs = {table: job.files(table) for table in STEPS["candidates"].inputs}
        build_candidates(inputs, job.experiment, job.out("candidates"))

    yield from publish(context, ("candidates",), build)
