"""One asset a user model of the experiment, made by a factory, and the gate that each must pass before it may judge."""

import dagster as dg

from pipeline.defs.assets import EXPERIMENT, publish, simulator_key, spec, step_asset
from pipeline.defs.metadata import gate_metadata
from pipeline.experiment import simulator_class
from pipeline.plan import STEPS
from pipeline.storage import code_fingerprint, fingerprint


def simulator_asset(name: str) -> dg.AssetsDefinition:
    """The asset of one user model: its ensemble, fitted on the window of its side."""
    target = simulator_class(name, EXPERIMENT.simulators.settings[name])
    code = fingerprint(code_fingerprint("pipeline.simulation"), code_fingerprint(target.split(":")[0]))
    about = f"{name} ({target}), {EXPERIMENT.simulators.side(name)} side: the weights of its ensemble."

    @step_asset(spec("simulators", key=simulator_key(name), code_version=code, description=about))
    def simulator(context: dg.AssetExecutionContext):
        def build(job):
            from pipeline.simulation import fit_simulator

            inputs = {table: job.files(table) for table in STEPS["simulators"].inputs}
            fit_simulator(inputs, job.experiment, name, job.folder("simulators", name))

        yield from publish(context, ("simulators",), build, parts=[name])

    return simulator


simulators = [simulator_asset(name) for name in sorted(EXPERIMENT.simulators.settings)]


@step_asset(spec("simulator_gate"))
def simulator_gate(context: dg.AssetExecutionContext):
    def build(job):
        from pipeline.simulation import judge_simulators

        inputs = {table: job.files(table) for table in STEPS["simulator_gate"].inputs if table != "simulators"}
        judge_simulators(inputs, job.plan.store, job.experiment, job.folder("simulator_gate"))

    yield from publish(context, ("simulator_gate",), build, describe=gate_metadata)
