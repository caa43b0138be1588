"""What every benchmark shares: one JSON object a measurement, and the same rows as a Markdown table."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("duckdb", "numpy", "pyarrow", "torch")


@dataclass(frozen=True)
class Measurement:
    what: str
    value: float
    unit: str
    baseline: float | None = None  # what ``what`` is compared with, in the same unit, measured in the same run
    ratio: float | None = None  # how many times better than the baseline


def publish(name: str, measurements: Sequence[Measurement]) -> None:
    """Print the measurements as a table and append them to ``results/<name>.jsonl``."""
    print("| what | value | unit | baseline | ratio |\n| --- | ---: | --- | ---: | ---: |")
    for m in measurements:
        print(f"| {m.what} | {_number(m.value)} | {m.unit} | {_number(m.baseline)} | {_number(m.ratio)} |")
    RESULTS.mkdir(exist_ok=True)
    surroundings = {
        "peak_rss_mb": round(peak_rss_mb()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "commit": _commit(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
        for measurement in measurements:
            stream.write(json.dumps(asdict(measurement) | surroundings) + "\n")


def peak_rss_mb() -> float:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # macOS counts bytes, Linux kilobytes


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _commit() -> str | None:
    git = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
