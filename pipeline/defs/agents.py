"""One asset an agent of the experiment, made by a factory: changing one paper's file makes that agent stale alone."""

import shutil

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, agent_key, publish, simulator_key, spec, step_asset, upstream
from pipeline.defs.metadata import agent_metadata
from pipeline.plan import STEPS
from pipeline.storage import code_fingerprint, fingerprint


def agent_asset(name: str) -> dg.AssetsDefinition:
    """The asset of one agent: all of its seeds, trained one process each, each resumable."""
    target, simulator = EXPERIMENT.agent_class(name), EXPERIMENT.simulator_of(name)
    code = fingerprint(code_fingerprint("pipeline.training"), code_fingerprint(target.split(":")[0]))
    about = f"{name} ({target}): weights of every seed."
    deps = upstream("agents") + ([dg.AssetDep(simulator_key(simulator))] if simulator else [])

    @step_asset(spec("agents", key=agent_key(name), code_version=code, description=about, deps=deps))
    def agent(context: dg.AssetExecutionContext):
        def build(job):
            from pipeline.simulation import acting_model
            from pipeline.training import train_agent

            inputs = {table: job.files(table) for table in STEPS["agents"].inputs}
            work = job.plan.store.root / "work" / name / job.plan.fingerprint("agents", name)
            out = job.folder("agents", name)
            fitted = acting_model(job.plan.store, simulator) if simulator else None
            for done in train_agent(name, target, job.experiment, inputs, work, out, fitted):
                if done.steps:
                    context.log.info(
                        f"  seed {done.seed}: {done.steps} steps in {done.seconds:.0f} s, ended by {done.stopped_by}; "
                        f"best validation NDCG {done.validation:.4f} at step {done.best_step}"
                    )
            shutil.rmtree(work.parent, ignore_errors=True)

        yield from publish(context, ("agents",), build, parts=[name], describe=lambda plan: agent_metadata(plan, name))

    return agent


agents = [agent_asset(name) for name in sorted(EXPERIMENT.agents)]
