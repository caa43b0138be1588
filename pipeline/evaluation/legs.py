"""The three legs together: the leaderboard with where its numbers come from, and the legs that have none."""

import json

import pandas as pd
import pyarrow as pa

from pipeline.evaluation.leaderboard import leaderboard, leg_rows
from pipeline.evaluation.off_policy_board import board_rows, refusal
from pipeline.experiment import Experiment
from pipeline.plan import Job, commit, library_versions
from pipeline.schemas import SCHEMAS
from pipeline.simulation import failed_criteria
from pipeline.source_settings import StorefrontSource
from pipeline.storage import fingerprint
from pipeline.warehouse import read_table, write_parquet


def build_leaderboard(job: Job) -> None:
    """The leaderboard over the three legs and, beside it, the legs that are not supported."""
    experiment, estimates = job.experiment, job.files("ope")
    resamples, seed = experiment.budgets().bootstrap, experiment.seeds[0]
    rows = [leg_rows(leg, job.files(leg), experiment.reference, resamples, seed) for leg in ("rerank", "rollout")]
    rows.append(pd.DataFrame(board_rows(estimates, experiment.reference)))
    write_parquet(job.out("leaderboard"), "leaderboard", leaderboard(rows, _provenance(job)).to_batches())
    failed, silent = failed_criteria(job.files("simulator_gate")), refusal(read_table(estimates, "ope"))
    legs = [{"leg": leg, "reason": reason} for leg, reason in unsupported(experiment, failed, silent).items()]
    none = pa.Table.from_pylist(legs, schema=SCHEMAS["unsupported"])
    write_parquet(job.folder("leaderboard") / "unsupported.parquet", "unsupported", none.to_batches())


def unsupported(experiment: Experiment, failed: dict[str, list[str]], silent: str) -> dict[str, str]:
    """The legs that this version and this data cannot support, each with its reason: a clause after "because".

    ``failed`` names the criteria of the gate that each user model fails; with all judges failed, no roll-out is left
    but the storefront's truth. ``silent`` says why no agent has an off-policy estimate, or nothing.
    """
    legs = {"ope": silent} if silent else {}
    judges = list(experiment.simulators.judge)
    if all(failed[name] for name in judges):
        reasons = "; ".join(f"{name}: {', '.join(failed[name])}" for name in judges)
        legs["rollout in a judge"] = f"no user model passed the gate that lets it judge ({reasons})"
        if not isinstance(experiment.source, StorefrontSource):
            legs["rollout"] = legs.pop("rollout in a judge")
    return legs


def _provenance(job: Job) -> dict[str, str]:
    """Where the numbers come from: the columns that every row of the leaderboard carries."""
    plan = job.plan
    recipe = plan.recipe("leaderboard", "all")
    return {
        "data_hash": plan.fingerprint("manifest"),
        "code_hash": fingerprint(recipe["code"], recipe["inputs"]),
        "config_hash": fingerprint(plan.experiment.model_dump(mode="json")),
        "commit": commit(),
        "versions": json.dumps(library_versions(), sort_keys=True),
    }
