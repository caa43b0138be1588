"""Leg 3 of the job's agents."""

from pipeline.plan import Job
from pipeline.warehouse import write_parquet


def estimate_agents(job: Job) -> None:
    """Leg 3 of the job's agents."""
    for part in job.parts:
        for table in ("ope", "ope_pages"):
            write_parquet(job.folder("ope", part) / f"{table}.parquet", table, [])
