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


@step_asset(spec("decisions"))
def decisions(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.decisions import build_decisions

        build_decisions(job)

    yield from publish(context, ("decisions",), build)


@step_asset(spec("ope"))
def ope(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.off_policy import estimate_agents

        estimate_agents(job)

    yield from publish(context, ("ope",), build)


@step_asset(spec("ope_proof"))
def ope_proof(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.ope_proof import prove_estimators

        prove_estimators(job)

    yield from publish(context, ("ope_proof",), build)


@step_asset(spec("leaderboard"))
def leaderboard(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.legs import build_leaderboard

        build_leaderboard(job)

    yield from publish(context, ("leaderboard",), build, describe=leaderboard_metadata)


@step_asset(spec("goal_sweep"))
def goal_sweep(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.goal_sweep import sweep_goals

        sweep_goals(job)

    yield from publish(context, ("goal_sweep",), build)


@step_asset(spec("decoding"))
def decoding(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.decoding import decode

        decode(job)

    yield from publish(context, ("decoding",), build)


@step_asset(spec("verdicts"))
def verdicts(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.evaluation.verdicts import build_verdicts

        build_verdicts(job)

    yield from publish(context, ("verdicts",), build)
