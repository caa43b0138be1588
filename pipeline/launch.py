"""Launching Dagster from the command line: in-process runs over the stale assets, with a line an asset."""

import os
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, HindsightError
from pipeline.evaluation.run import validate_settings
from pipeline.experiment import PROJECT
from pipeline.plan import Plan
from pipeline.workers import warm_up


def dagster_home() -> Path:
    """DAGSTER_HOME, by default ``storage/dagster`` of the project; Dagster wants it absolute."""
    home = Path(os.environ.get("DAGSTER_HOME") or PROJECT / "storage" / "dagster").resolve()
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def launch(plan: Plan) -> None:
    """Run the job over the stale assets and their partitions, a new manifest before the rest; assets log a line each.

    Raises the HindsightError that stopped an asset, and DataError when a blocking check did.
    """
    warm_up()
    validate_settings(plan.experiment)
    dagster_home()
    import dagster as dg

    from pipeline.definitions import defs
    from pipeline.defs.automation import range_tags, stale_assets

    def run(tables: dict[str, list[str]]) -> None:
        result = defs.resolve_job_def("materialize_all").execute_in_process(
            instance=instance,
            tags=range_tags(tables),
            asset_selection=stale_assets(tables),
            run_config={"loggers": {"console": {"config": {}}}},
            raise_on_error=False,
        )
        if not result.success:
            raise _reason(result)

    with dg.DagsterInstance.get() as instance:
        stale = plan.next_run()
        if list(stale) == ["manifest"]:
            run(stale)
            stale = Plan(plan.experiment).stale_tables()
        if stale:
            run(stale)


def _reason(result: Any) -> HindsightError:
    """Why a run failed: our own sentence where there is one, else the error's text and where to read on."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None:
                for kind in _kinds(HindsightError):
                    if error.cls_name == kind.__name__:
                        return kind(error.message.partition(": ")[2].strip())
                text, error = error.message.strip().splitlines()[0], error.cause
            return HindsightError(f"{event.step_key} failed: {text} `make dev` shows run {result.run_id} in full.")
        if event.event_type_value == "ASSET_CHECK_EVALUATION":
            check = event.event_specific_data
            if check.blocking and not check.passed:
                where = check.asset_key.to_user_string()
                return DataError(f"{where}: the check {check.check_name} failed, so nothing after it was made. "
                                 f"{check.description}")  # fmt: skip
    return HindsightError(f"The run failed; `make dev` shows run {result.run_id} in full.")


def _kinds(kind: type[HindsightError]) -> list[type[HindsightError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _kinds(below))]
