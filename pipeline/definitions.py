"""The only ``dg.Definitions``: what Dagster loads. The experiment is the one that EXPERIMENT (and RAW) name."""

import dagster as dg

from pipeline.defs import (
    agents,
    automation,
    checks,
    console,
    evaluation,
    features,
    logs,
    reports,
    sessions,
    simulators,
    trajectories,
)

STAGES = (logs, sessions, features, simulators, trajectories, agents, evaluation, reports)

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(STAGES),
    asset_checks=dg.load_asset_checks_from_modules([checks]),
    jobs=[automation.materialize_all],
    schedules=[automation.nightly],
    sensors=[automation.inbox, automation.onwards],
    loggers={"console": console.plain},
)
