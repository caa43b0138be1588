"""One trained model under a grid of goals."""

from pipeline.plan import Job
from pipeline.warehouse import write_parquet


def sweep_goals(job: Job) -> None:
    """One trained model under a grid of goals."""
    write_parquet(job.out("goal_sweep"), "goal_sweep", [])
