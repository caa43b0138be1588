"""The three legs, a part an agent, the leaderboard over them, and what may be said of it all.

Each asset is one function of its step's module, which is given the job: so its code version is that of what it runs.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset
from pipeline.defs.metadata import leaderboard_metadata
from pipeline.plan import STEPS, Job, Plan


def job_asset(
    function: str, *tables: str, describe: Callable[[Plan], dict[str, Any]] | None = None
) -> dg.AssetsDefinition:
    """The asset of ``tables``, which ``function`` of their steps' module makes together."""

    @step_asset(*(spec(table) for table in tables))
    def made(context: dg.AssetExecutionContext):
        def build(job: Job) -> None:
            getattr(import_module(STEPS[tables[0]].module), function)(job)

        yield from publish(context, tables, build, describe=describe)

    return made


rerank = job_asset("rerank_agents", "rankings", "rerank")
rollout = job_asset("roll_out_agents", "rollout")
ope = job_asset("estimate_agents", "ope")
ope_proof = job_asset("prove_estimators", "ope_proof")
leaderboard = job_asset("build_leaderboard", "leaderboard", describe=leaderboard_metadata)
goal_sweep = job_asset("sweep_goals", "goal_sweep")
decoding = job_asset("decode", "decoding")
verdicts = job_asset("build_verdicts", "verdicts")


@step_asset(spec("decisions"))
def decisions(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.decisions import build_decisions

        inputs = {table: job.files(table) for table in STEPS["decisions"].inputs}
        build_decisions(inputs, job.experiment, job.folder("decisions"))

    yield from publish(context, ("decisions",), build)
