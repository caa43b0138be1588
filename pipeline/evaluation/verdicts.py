"""What may be said of this run, by rule."""

from pipeline.plan import Job
from pipeline.warehouse import write_parquet


def build_verdicts(job: Job) -> None:
    """What may be said of this run, by rule."""
    write_parquet(job.out("verdicts"), "verdicts", [])
    write_parquet(job.folder("verdicts") / "comparisons.parquet", "comparisons", [])
    write_parquet(job.folder("verdicts") / "agreement.parquet", "agreement", [])
