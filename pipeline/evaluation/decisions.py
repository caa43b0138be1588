"""Logged test pages as decisions."""

from pipeline.plan import Job
from pipeline.warehouse import write_parquet


def build_decisions(job: Job) -> None:
    """Logged test pages as decisions."""
    write_parquet(job.out("decisions"), "decisions", [])
    write_parquet(job.folder("decisions") / "ope_calibration.parquet", "ope_calibration", [])
