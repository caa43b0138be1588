"""The three legs, a part an agent, and the leaderboard over them."""

import dagster as dg

from pipeline.defs.assets import publish, spec, step_asset
from pipeline.defs.metadata import leaderboard_metadata


@step_asset(spec("rankings"), spec("rerank"))
def rerank(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.run import rerank_agents

        rerank_agents(job)

    yield from publish(context, ("rankings", "rerank"), build)


@step_asset(spec("rollout"))
def rollout(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.run import roll_out_agents

        roll_out_agents(job)

    yield from publish(context, ("rollout",), build)


@step_asset(spec("ope"))
def ope(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.run import off_policy_estimates

        off_policy_estimates(job)

    yield from publish(context, ("ope",), build)


@step_asset(spec("leaderboard"))
def leaderboard(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.run import build_leaderboard

        build_leaderboard(job)

    yield from publish(context, ("leaderboard",), build, describe=leaderboard_metadata)
